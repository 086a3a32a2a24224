"""A notebook is stale when code, its part of lib, lock, weights, settings or outputs changed."""

import json

import nbformat
import pytest
from small_notebooks import write_notebook

from lib.kit import pipeline, stamps, verdicts

QUICK = {"profile": "quick"}
CELLS = (
    "# A title",
    "%matplotlib inline\nfrom lib import used",
    "plot(used.f(1), colour='blue')",
)


FIGURE = "figures/01_ising/map.png"


def commit(root, profile="quick", name="01_ising", rows=None):
    """Leave a set of figures or rows as a run does, with its stamp."""
    folder = stamps.figures(name, profile)
    folder.mkdir(parents=True, exist_ok=True)
    if rows is None:
        (folder / "map.png").write_bytes(b"figure")
    else:
        stamps.rows_file(name, profile).write_text(json.dumps(rows))
    made_from = stamps.inputs(name, profile, {"profile": profile})
    (folder / "stamp.json").write_text(stamps.committed_text(name, made_from))


@pytest.fixture
def finished(root, copied_lib):
    """Stamp a notebook as if it had run: one figure, one lock, one folder of weights."""
    write_notebook(root, *CELLS, metadata={"kit": {"weights": ["tiny"]}})
    (root / "requirements.lock").write_text("numpy==1\n")
    (root / "models" / "tiny").mkdir(parents=True)
    (root / "models" / "tiny" / "model.safetensors").write_bytes(b"one")
    figure = root / "figures" / "01_ising" / "map.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"figure")
    made_from = stamps.inputs("01_ising", "quick", QUICK)
    stamps.write_stamp("01_ising", made_from, [figure], {})
    return root


def reason(parameters=QUICK, profile="quick"):
    return stamps.reason_stale("01_ising", profile, parameters)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_stamp_that_was_cut_short_counts_as_none(finished):
    cut(stamps.stamp_file("01_ising", "quick"))
    assert reason() == "its stamp is unreadable"
    commit(finished)
    cut(finished / "figures" / "01_ising" / "stamp.json")
    assert stamps.reason_older("01_ising", "quick") == "its stamp is unreadable"


def test_a_notebook_that_was_cut_short_is_named(finished, capsys):
    cut(finished / "notebooks" / "01_ising.ipynb")
    assert pipeline.main(["run"]) == 2
    assert "notebooks/01_ising.ipynb is not a whole notebook" in capsys.readouterr().err


def edit_cell(root, old, new):
    path = root / "notebooks" / "01_ising.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_finished_notebook_is_up_to_date(finished):
    assert reason() == ""


def test_editing_a_plot_makes_it_stale(finished):
    edit_cell(finished, "blue", "red")
    assert reason() == "changed: cells"


def test_editing_markdown_or_outputs_or_times_does_not(finished):
    edit_cell(finished, "A title", "Another title")
    path = finished / "notebooks" / "01_ising.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello")]
    book.cells[2].execution_count = 4
    nbformat.write(book, path)
    (finished / "lib" / "deeper.py").touch()
    assert reason() == ""


def test_editing_a_used_function_makes_it_stale(finished):
    (finished / "lib" / "deeper.py").write_text("def g(x):\n    return 3 * x\n")
    assert reason() == "changed: lib"


def test_editing_an_unrelated_module_or_function_does_not(finished):
    (finished / "lib" / "unrelated.py").write_text("def h(x):\n    return -x\n")
    deeper = finished / "lib" / "deeper.py"
    deeper.write_text(deeper.read_text() + "\n\ndef other(x):\n    return x\n")
    assert reason() == ""


def test_moving_what_is_used_does_not(finished):
    (finished / "lib" / "deeper.py").rename(finished / "lib" / "below.py")
    used = finished / "lib" / "used.py"
    used.write_text(used.read_text().replace("import deeper", "import below as deeper"))
    assert reason() == ""


def test_another_lock_or_other_weights_make_it_stale(finished):
    (finished / "requirements.lock").write_text("numpy==2\n")
    (finished / "models" / "tiny" / "model.safetensors").write_bytes(b"two!")
    assert reason() == "changed: lock, weights"


def test_weights_that_a_cell_names_need_no_metadata(finished):
    other = finished / "models" / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"one")
    edit_cell(finished, "colour='blue'", 'load(\\"other\\")')
    assert reason() == "changed: cells, weights"
    assert set(stamps.inputs("01_ising", "quick", QUICK)["weights"]) == {"tiny", "other"}


def test_other_parameters_and_profiles_are_not_done(finished):
    assert reason({**QUICK, "seed": 1}) == "changed: parameters"
    assert reason({"profile": "full"}, "full") == "not run yet"


def test_a_deleted_figure_makes_it_stale(finished):
    (finished / "figures" / "01_ising" / "map.png").unlink()
    assert reason() == "missing: figures/01_ising/map.png"


def test_an_edited_figure_makes_it_stale(finished):
    (finished / "figures" / "01_ising" / "map.png").write_bytes(b"touched up")
    assert reason() == "edited: figures/01_ising/map.png"


def test_the_state_is_said_with_its_reason(finished, capsys):
    edit_cell(finished, "blue", "red")
    assert pipeline.main(["stale"]) == 0
    assert capsys.readouterr().out == "01_ising quick: changed: cells\n"


def test_missing_weights_are_named(finished):
    (finished / "models" / "tiny" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights at 'tiny'"):
        reason()


@pytest.mark.parametrize("copy", ["01_ising-Copy1", "01_ising (1)", "01_Ising", "Untitled"])
def test_a_copy_beside_a_notebook_is_none(root, copy):
    for name in ("01_ising", copy):
        write_notebook(root, name=name)
    assert list(stamps.notebooks()) == ["01_ising"]


def test_a_stamp_says_which_definitions_differ(finished, capsys):
    commit(finished)
    commit(finished, "full")
    assert pipeline.main(["verify"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "01_ising quick: current",
        "01_ising full: current",
        "0 of 2 committed sets are older than their code",
    ]
    (finished / "lib" / "deeper.py").write_text("def g(x):\n    return 3 * x\n")
    assert pipeline.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "01_ising quick: older than its code: lib (g)\n" in out
    assert "2 of 2 committed sets are older" in out


def test_an_older_full_set_alone_is_listed_and_no_failure(finished, capsys):
    commit(finished, "full")
    (finished / "requirements.lock").write_text("numpy==2\n")
    commit(finished)
    assert pipeline.main(["verify"]) == 0
    assert "01_ising full: older than its code: lock\n" in capsys.readouterr().out


def test_a_set_without_a_stamp_is_older(finished, capsys):
    assert pipeline.main(["verify"]) == 1
    assert "01_ising quick: older than its code: it has no stamp" in capsys.readouterr().out


def test_rows_without_figures_are_a_set_too(finished):
    (finished / "figures" / "01_ising" / "map.png").unlink()
    assert stamps.committed_sets() == []
    commit(finished, "full", rows={})
    assert stamps.committed_sets() == [("01_ising", "full")]
    assert stamps.reason_older("01_ising", "full") == ""


def test_the_bounds_of_the_own_claims_count_and_those_of_others_do_not(finished, monkeypatch):
    commit(finished)
    for claim, other in (("hessian.tasep.rmse_J", ""), ("hessian.ising.rmse_dF_dT", "claims")):
        entry = stamps.CLAIMS[claim]._replace(bound=verdicts.below(7.0))
        monkeypatch.setitem(stamps.CLAIMS, claim, entry)
        assert stamps.reason_older("01_ising", "quick") == other


def test_a_lesson_is_older_when_its_evidence_comes_to_another_verdict(finished):
    write_notebook(finished, name="evidence/01_ising")
    row, claim = {"verdict": "partly", "measured": 1.0, "n": 3}, "hessian.ising.rmse_dF_dT"
    commit(finished, rows={claim: row})
    assert stamps.reason_older("01_ising", "quick") == ""
    assert "rows" not in stamps.inputs("evidence/01_ising", "quick", {})
    path = stamps.rows_file("01_ising", "quick")
    for changed, reason in (({"n": 4}, ""), ({"verdict": "reproduced"}, "rows")):
        path.write_text(json.dumps({claim: row | changed}))
        assert stamps.reason_older("01_ising", "quick") == reason


def test_lesson_and_evidence_are_known_by_path_and_number(root):
    for name in ("01_ising", "02_tasep", "evidence/02_tasep"):
        write_notebook(root, name=name)
    for copy in ("01_ising-Copy1", "01_ising (1)", "Untitled"):
        write_notebook(root, name=copy)
        write_notebook(root, name=f"evidence/{copy}")
    assert list(stamps.notebooks()) == ["01_ising", "02_tasep", "evidence/02_tasep"]
    assert stamps.chosen([]) == list(stamps.notebooks())
    assert stamps.chosen(["2"]) == stamps.chosen(["02"]) == ["02_tasep", "evidence/02_tasep"]
    assert stamps.chosen(["evidence/02_tasep", "1"]) == ["evidence/02_tasep", "01_ising"]
    assert stamps.recorder("02_tasep") == "evidence/02_tasep"
    assert stamps.recorder("evidence/02_tasep") == "evidence/02_tasep"
    assert stamps.recorder("01_ising") == "01_ising"
    with pytest.raises(ValueError, match="unknown notebook '3'"):
        stamps.chosen(["3"])


@pytest.mark.parametrize(
    ("name", "profile", "figures", "rows"),
    [
        ("02_tasep", "quick", "figures/02_tasep", "figures/02_tasep/results.json"),
        ("02_tasep", "full", "figures/02_tasep/full", "figures/02_tasep/results.full.json"),
        ("02_tasep", "smoke", "build/smoke/02_tasep", "build/smoke/02_tasep/results.json"),
        (
            "evidence/02_tasep",
            "quick",
            "figures/02_tasep/evidence",
            "figures/02_tasep/results.json",
        ),
        (
            "evidence/02_tasep",
            "paper",
            "figures/02_tasep/evidence/paper",
            "figures/02_tasep/results.paper.json",
        ),
    ],
)
def test_figures_and_rows_of_a_number_share_a_folder(root, name, profile, figures, rows):
    assert stamps.figures(name, profile) == root / figures
    assert stamps.rows_file(name, profile) == root / rows
