"""The pipeline: what has run as a whole counts as done, what failed or was killed never does."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from small_notebooks import PARAMETERS, write_notebook

from lib.kit import crew, pipeline, results, session, stamps

WRITE = """
import os
from pathlib import Path
output = Path(os.environ["KIT_OUTPUT"])
(output / "map.png").write_bytes(b"drawn in " + profile.encode())
(output / "facts.txt").write_text(
    f"{os.environ.get('KIT_PROFILE')} {os.environ['CUBLAS_WORKSPACE_CONFIG']} "
    f"{os.environ['TQDM_DISABLE']} {os.environ['OMP_WAIT_POLICY']} {sys.executable}"
)
"""
FIGURES = "figures/01_ising"


def run(*arguments, **environment):
    """Run the pipeline as a user does; environment variables set to None are removed."""
    settings = {**os.environ, "PYTHONPATH": str(session.CHECKOUT), **environment}
    return subprocess.run(
        [sys.executable, "-m", "lib.kit.pipeline", *arguments],
        env={name: value for name, value in settings.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run one notebook where a profile is set and another kernel has the same name."""
    root = tmp_path_factory.mktemp("run") / "a root"
    kernel = root / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    wrong = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(wrong))
    write_notebook(
        root, "# A title\n\n## 1. Draw", "import sys" + WRITE, "print('seed', seed)\nseed + 1"
    )
    stray = root / FIGURES / "old.png"
    stray.parent.mkdir(parents=True)
    stray.touch()
    kept = root / FIGURES / "results.full.json"
    kept.write_text("{}")
    done = run(
        "run",
        KIT_ROOT=str(root),
        KIT_PROFILE="smoke",
        JUPYTER_DATA_DIR=str(root / "jupyter"),
        JUPYTER_PATH=str(root / "jupyter"),
        OMP_WAIT_POLICY=None,
    )
    return root, done


@pytest.fixture
def in_finished(finished, monkeypatch):
    monkeypatch.setenv("KIT_ROOT", str(finished[0]))
    return finished[0]


def test_a_run_moves_its_outputs_to_figures(finished):
    root, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / FIGURES / "map.png").read_bytes() == b"drawn in quick"
    assert not list((root / "build" / "run" / "quick" / "01_ising").iterdir())


def test_a_run_says_its_sections_and_where_it_wrote(finished):
    said = re.sub(r"\d+ s\b", "T", finished[1].stdout).splitlines()
    assert said[1:] == [
        "01_ising quick: section 1 of 1, Draw, T",
        "01_ising quick: done in T, written to figures/01_ising",
    ]


def test_figures_of_earlier_runs_go_and_results_of_other_profiles_stay(finished):
    names = {path.name for path in (finished[0] / FIGURES).iterdir()}
    assert names == {"map.png", "facts.txt", "results.full.json", "stamp.json"}


def test_the_kernel_is_this_python_without_profile_override_or_bars(finished):
    facts = (finished[0] / FIGURES / "facts.txt").read_text()
    assert facts == f"None :4096:8 1 PASSIVE {sys.executable}"


def test_a_second_run_finds_it_up_to_date(in_finished, capsys):
    assert pipeline.main(["run"]) == 0
    assert capsys.readouterr().out == "01_ising quick: up to date\n"


def test_host_and_time_are_in_the_stamp_only(in_finished):
    stamp = json.loads(stamps.stamp_file("01_ising", "quick").read_text())
    assert set(stamp["run"]) == {"seconds", "host", "commit"}
    made = {f"{FIGURES}/{name}" for name in ("map.png", "facts.txt", "stamp.json")}
    assert set(stamp["outputs"]) == made
    kept = json.loads((in_finished / FIGURES / "stamp.json").read_text())
    assert set(kept) == {"inputs", "definitions"} and kept["inputs"] == stamp["inputs"]
    assert stamps.reason_older("01_ising", "quick") == ""


def test_a_machine_without_git_stamps_its_runs_too(root, monkeypatch):
    monkeypatch.setenv("PATH", str(root))
    assert pipeline._notes(1.23)["commit"] == ""


def test_refreshed_notebooks_carry_outputs_and_nothing_of_the_machinery(in_finished):
    source = stamps.read_notebook("01_ising")
    executed = nbformat.read(in_finished / "build/run/quick/01_ising.ipynb", as_version=4)
    book = nbformat.reads(pipeline._with_outputs("01_ising", source, executed), as_version=4)
    assert [cell.source for cell in book.cells] == [cell.source for cell in source.cells]
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    stream, result = code[-1].outputs
    assert stream.text == "seed 0\n" and result.data["text/plain"] == "1"
    assert result.execution_count == 3
    assert "papermill" not in nbformat.writes(book)


def test_outputs_that_name_the_machine_are_refused(in_finished):
    source = stamps.read_notebook("01_ising")
    executed = nbformat.read(in_finished / "build/run/quick/01_ising.ipynb", as_version=4)
    executed.cells[-1].outputs[0]["text"] = f"written to {in_finished}/figures"
    with pytest.raises(ValueError, match="keep paths and hosts out"):
        pipeline._with_outputs("01_ising", source, executed)


def test_a_notebook_that_changed_meanwhile_is_not_refreshed(in_finished):
    source = stamps.read_notebook("01_ising")
    executed = nbformat.read(in_finished / "build/run/quick/01_ising.ipynb", as_version=4)
    source.cells[-1].source += "\n"
    with pytest.raises(ValueError, match="changed while it ran"):
        pipeline._with_outputs("01_ising", source, executed)


def test_a_failed_notebook_is_kept_aside_and_named_on_the_last_line(root, capfd):
    write_notebook(root, "import sys" + WRITE + "raise RuntimeError('broken on purpose')")
    figure = root / FIGURES / "map.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"older")
    assert pipeline.main(["run"]) == 1
    kept = root / "build" / "failed" / "01_ising.quick.ipynb"
    assert capfd.readouterr().out.splitlines()[-1].endswith("build/failed/01_ising.quick.ipynb")
    assert "broken on purpose" in kept.read_text() and '"traceback"' in kept.read_text()
    assert figure.read_bytes() == b"older"
    assert stamps.reason_stale("01_ising", "quick", {"profile": "quick"}) == "not run yet"


@pytest.mark.parametrize(
    ("said", "most", "tries"),
    [("Kernel died before replying", 9, 3), ("Kernel died before", 1, 2), ("other", 9, 1)],
)
def test_a_kernel_whose_port_was_taken_is_started_again(root, monkeypatch, said, most, tries):
    import papermill

    write_notebook(root)
    started = []

    def execute(source, target, **_):
        started.append(source)
        if len(started) <= most:
            raise RuntimeError(said)
        shutil.copy(source, target)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    assert pipeline.main(["run"]) == int(most > tries)
    assert len(started) == tries


def test_one_failure_does_not_stop_the_others_but_counts(root, monkeypatch, capsys):
    for name in ("01_ising", "02_tasep", "03_diffusion_phases"):
        write_notebook(root, name=name)

    def execute(name, *_):
        if name != "02_tasep":
            return 0.0
        raise pipeline.RunFailed(root / "build" / "failed" / name, OSError("x"))

    monkeypatch.setattr(pipeline, "_execute", execute)
    monkeypatch.setattr(crew, "room", lambda names: 1)
    assert pipeline.main(["run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "03_diffusion_phases quick: done in 0 s" in lines
    assert lines[-1] == "failed, kept with its traceback: build/failed/02_tasep"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "sed=1"], "no parameter 'sed'.*seed"),
        (["run", "--profile", "quikc"], "unknown profile 'quikc'.*quick"),
        (["run", "01_isin"], "unknown notebook '01_isin'.*01_ising"),
        (["refresh", "01_isin"], "unknown notebook '01_isin'.*01_ising"),
    ],
)
def test_a_misspelt_name_is_an_error_that_offers_the_nearest(root, capsys, arguments, message):
    write_notebook(root)
    assert pipeline.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_notebook_without_parameters_cell_is_refused(root, capsys):
    path = write_notebook(root)
    path.write_text(path.read_text().replace('"parameters"', '"parameter"'))
    assert pipeline.main(["run"]) == 2
    assert "tag 'parameters', found 0" in capsys.readouterr().err


def test_settings_are_python_literals_or_text():
    assert pipeline._setting("seed=3") == ("seed", 3)
    assert pipeline._setting("name=avatars-sd") == ("name", "avatars-sd")


@pytest.mark.parametrize(
    ("profile", "places"),
    [
        ("smoke", {"build/smoke/01_ising/map.png", "build/smoke/01_ising/results.json"}),
        ("quick", {f"{FIGURES}/map.png", f"{FIGURES}/results.json"}),
        ("full", {f"{FIGURES}/full/map.png", f"{FIGURES}/results.full.json"}),
        ("paper", {f"{FIGURES}/paper/map.png", f"{FIGURES}/results.paper.json"}),
    ],
)
def test_each_profile_has_its_own_place(root, profile, places):
    others = {f"{FIGURES}/kept/map.png", f"{FIGURES}/notes.md"}
    for relative in others:
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).touch()
    staging = pipeline._staging("01_ising", profile)
    staging.mkdir(parents=True)
    results = f"results.{profile}.json" if profile in ("full", "paper") else "results.json"
    for name in ("map.png", results):
        (staging / name).touch()
    moved = {str(path.relative_to(root)) for path in pipeline._publish_outputs("01_ising", profile)}
    assert moved == places
    assert all((root / relative).is_file() for relative in places | others)


def test_a_full_run_leaves_what_it_printed_beside_its_figures(root):
    write_notebook(root, "# Numbers", "print('measured in', profile)")
    assert pipeline.main(["run", "--profile", "full"]) == 0
    page = (root / FIGURES / "full" / "printed.md").read_text()
    assert "# Numbers\n\n```\nmeasured in full\n```" in page


def test_a_rehearsal_without_sizes_says_why_it_is_skipped(root, capsys):
    write_notebook(root)
    assert pipeline.main(["rehearse"]) == 0
    assert "01_ising: skipped, its metadata has no kit.rehearse" in capsys.readouterr().out


def test_a_rehearsal_runs_the_paper_profile_where_its_folders_were_written(
    root, monkeypatch, capsys
):
    sizes = {"model": "cache/rehearsal/big", "seed": 3}
    path = write_notebook(root, metadata={"kit": {"rehearse": sizes}})
    path.write_text(path.read_text().replace("seed: int = 0", "seed: int = 0\\nmodel = 'x'"))
    ran = []
    monkeypatch.setattr(pipeline, "_execute", lambda *arguments: ran.append(arguments[:3]))
    assert pipeline.main(["rehearse"]) == 0 and not ran
    assert "skipped, cache/rehearsal/big was not written" in capsys.readouterr().out
    (root / "cache" / "rehearsal" / "big").mkdir(parents=True)
    assert pipeline.main(["rehearse"]) == 0
    assert ran == [("01_ising", "paper", {**sizes, "profile": "paper"})]


OTHER_TARGETS = {
    "help": "make TARGET",
    "scorecard": f"{len(results.CLAIMS)} claims",
    "student": "build/student/01_ising.ipynb\n",
    "evidence/01_ising": "evidence/01_ising quick: up to date\n",
    "verify": "of 0 committed sets",
    "clean": "",
}


EVIDENCE = """
from lib.kit import plots, results, run
kit = run.start(profile, notebook="evidence/01_ising", seed=seed)
fig, ax = plots.figure()
plots.save_figure(fig, "drawn", "A plot of nothing.")
results.record("hessian.ising.torus_rmse", 0.001, 0, 1, None)
"""


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_lesson_and_its_evidence_share_a_folder_and_keep_each_other(root, profile):
    write_notebook(root, "import sys" + WRITE)
    write_notebook(root, EVIDENCE, name="evidence/01_ising")
    folder = root / FIGURES
    for names in (["1"], ["01_ising"], ["evidence/01_ising"]):
        assert pipeline.main(["run", "--force", "--profile", profile, *names]) == 0
        kept = {str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file()}
        lesson, below = ("", "evidence/") if profile == "quick" else ("full/", "evidence/full/")
        rows = "results.json" if profile == "quick" else "results.full.json"
        assert {f"{lesson}map.png", f"{lesson}stamp.json", rows} <= kept
        assert {f"{below}drawn.png", f"{below}drawn.txt", f"{below}stamp.json"} <= kept
        assert f"{lesson}drawn.png" not in kept


def test_evidence_that_no_longer_records_leaves_no_rows_behind(root):
    write_notebook(root)
    write_notebook(root, name="evidence/01_ising")
    rows = root / FIGURES / "results.json"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}")
    assert pipeline._publish_outputs("01_ising", "quick") == [] and rows.is_file()
    assert pipeline._publish_outputs("evidence/01_ising", "quick") == [] and not rows.is_file()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_fails_when_a_notebook_fails_also_in_a_folder_with_spaces(root):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(session.CHECKOUT / name, root)
    shutil.copytree(session.CHECKOUT / "lib" / "kit", root / "lib" / "kit")
    shutil.copytree(session.CHECKOUT / "book", root / "book")
    (root / "lib" / "__init__.py").touch()
    (root / "README.md").write_text("<!-- scorecard --><!-- /scorecard -->")
    write_notebook(root, "raise RuntimeError('broken on purpose')")
    for copy in ("01_ising-Copy1", "01_ising (1)", "evidence/01_ising (1)"):
        write_notebook(root, "raise RuntimeError('a copy')", name=copy)
    write_notebook(root, "print('sound')", name="evidence/01_ising")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    for name in ("KIT_ROOT", "MAKEFLAGS", "MAKELEVEL"):  # the last two, when make runs this test
        environment.pop(name, None)
    arguments = ["make", "-j2", "figures"]
    done = subprocess.run(arguments, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "kept with its traceback: build/failed/01_ising.quick.ipynb\n" in done.stdout
    assert "evidence/01_ising quick: done" in done.stdout and "Copy" not in done.stdout
    assert not (root / ".venv").exists()
    for target, said in OTHER_TARGETS.items():
        done = subprocess.run(
            ["make", target], cwd=root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and said in done.stdout, (target, done.stdout + done.stderr)
    kept = [path.name for path in (root / "build").iterdir()]  # a student's own work
    assert kept == ["student"] and list((root / "notebooks").iterdir())


def test_parameters_are_read_from_assignments_with_and_without_types(root):
    path = write_notebook(root)
    path.write_text(path.read_text().replace("seed: int = 0", "seed = 0"))
    assert pipeline._declared_parameters(stamps.read_notebook("01_ising")) == ["profile", "seed"]
    assert "seed: int" in PARAMETERS
