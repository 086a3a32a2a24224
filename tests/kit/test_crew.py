"""Notebooks side by side: in which order, what a failure and an interrupt do to the others."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from small_notebooks import write_notebook

from lib.kit import crew, pipeline, session

LESSONS = ["01_ising", "02_tasep", "03_diffusion_phases"]
EVIDENCE = [f"evidence/{name}" for name in LESSONS]
ALL = [*LESSONS, *EVIDENCE, "evidence/07_photographs"]
PATIENCE = 300  # seconds after which a wait is called a hang

# A notebook notes its kernel, then waits until as many as it is told have done so, or for "go".
MEETING = """
import os, time
from pathlib import Path
root = Path(os.environ["KIT_ROOT"])
started = time.time()
(root / f"met {os.getpid()}").touch()
deadline = time.monotonic() + 200
while len(list(root.glob("met *"))) < COUNT and not (root / "go").exists():
    assert time.monotonic() < deadline, "nobody came"
    time.sleep(0.05)
with open(root / "times", "a") as log:
    log.write(f"NAME {started} {time.time()} {os.environ['OMP_NUM_THREADS']}\\n")
"""


def meeting(root, name, count):
    text = MEETING.replace("COUNT", str(count)).replace("NAME", name)
    return write_notebook(root, text, name=name)


def times(root):
    lines = [line.split() for line in (root / "times").read_text().splitlines()]
    return {name: (float(start), float(end), int(threads)) for name, start, end, threads in lines}


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(crew, "_cores", lambda: 2)
    monkeypatch.setattr(crew, "KERNEL", 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def ran(names, width, statuses=None):
    """(what started, with how many threads, beside what) and exit statuses; nothing computes."""
    seen, here = [], set()

    def follow(command, threads, *_):
        here.add(command[-1])
        seen.append((command[-1], threads, frozenset(here)))
        time.sleep(0.02)
        here.discard(command[-1])
        return (statuses or {}).get(command[-1], 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "_follow", follow)
        patch.setattr(crew, "_cores", lambda: 2)
        return seen, crew.run(names, ["echo"], width)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_lessons_start_first_and_a_second_family_comes_last(width):
    seen, ended = ran(ALL, width, {"02_tasep": 1})
    started = [name for name, _, _ in seen]
    assert set(started[:3]) == set(LESSONS) and started[-1] == ALL[-1]
    assert sorted(started) == sorted(ALL) == sorted(ended)
    for name, _, beside in seen:
        assert len(beside) <= width
        assert not {name.removeprefix("evidence/"), f"evidence/{name}"} & (beside - {name})
    assert seen[-1][2] == {ALL[-1]}


def test_threads_are_shared_among_those_that_run():
    threads = {name: count for name, count, _ in ran(ALL, 2)[0]}
    assert threads.pop(ALL[-1]) == 2 and set(threads.values()) == {1}


@pytest.mark.parametrize(
    ("cores", "kernels", "card", "names", "most"),
    [
        (2, 9, False, ALL, 2),
        (8, 9, False, ALL, 4),  # numbers: an evidence waits for its lesson
        (8, 4, False, ALL, 3),
        (8, 2, False, ALL, 1),  # not even two: 4 GB are all there is
        (8, 0, False, ALL, 1),
        (8, 9, True, ALL, 1),
        (8, 9, False, ["01_ising", "evidence/01_ising"], 1),
    ],
)
def test_as_many_as_cores_and_memory_and_numbers_allow(
    monkeypatch, cores, kernels, card, names, most
):
    import torch

    monkeypatch.setattr(crew, "_cores", lambda: cores)
    monkeypatch.setattr(os, "sysconf", lambda what: kernels * crew.KERNEL if "PHYS" in what else 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    assert crew.room(names) == most


def test_two_notebooks_run_side_by_side_with_a_thread_each(root, two_cores, capsys):
    for name in LESSONS[:2]:
        meeting(root, name, 2)
    assert pipeline.main(["run", "--set", "seed=3", "--profile", "smoke"]) == 0
    (a, b), said = times(root).values(), capsys.readouterr().out.splitlines()
    assert max(a[0], b[0]) < min(a[1], b[1]) and a[2] == b[2] == 1
    assert all(sum(f"{name} smoke: done" in line for line in said) == 1 for name in LESSONS[:2])
    assert pipeline.main(["run", "--set", "seed=3", "--profile", "smoke"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"{name} smoke: up to date" for name in LESSONS[:2]
    ]


def test_published_checkpoints_run_one_after_the_other(root, two_cores, monkeypatch, capsys):
    for name in LESSONS[:2]:
        write_notebook(root, "1", name=name)
    monkeypatch.setattr(pipeline, "_execute", lambda *_: 0.0)  # in this very process
    assert pipeline.main(["run", "--profile", "paper"]) == 0
    assert capsys.readouterr().out.count("paper: done in 0 s") == 2


def test_a_lesson_ends_before_its_evidence_starts(root, two_cores):
    for name in (*LESSONS[:2], *EVIDENCE[:2]):
        meeting(root, name, 0)
    assert pipeline.main(["run"]) == 0
    at = times(root)
    for lesson, evidence in zip(LESSONS[:2], EVIDENCE[:2], strict=True):
        assert at[lesson][1] < at[evidence][0]


def test_a_failure_does_not_stop_the_others_and_the_last_line_names_it(root, two_cores, capsys):
    write_notebook(root, "raise RuntimeError('broken on purpose')", name="01_ising")
    write_notebook(root, "import os; os.kill(os.getppid(), 9)", name="02_tasep")
    for name in (LESSONS[2], EVIDENCE[0]):
        write_notebook(root, "1", name=name)
    assert pipeline.main(["run"]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] in {
        "failed, kept with its traceback: " + ", ".join(order)
        for a in ["build/failed/01_ising.quick.ipynb"]
        for b in ["02_tasep (exit status -9, no copy)"]
        for order in ((a, b), (b, a))
    }
    assert "RuntimeError: broken on purpose" in said
    assert f"{LESSONS[2]} quick: done" in said and f"{EVIDENCE[0]} quick: done" in said


def test_an_error_of_one_is_the_status_of_all(root, two_cores, capsys):
    for name in LESSONS[:2]:
        write_notebook(root, "1", name=name)
    (root / "build" / "run").mkdir(parents=True)
    (root / "build" / "run" / "quick").touch()  # no folder can be made in it
    assert pipeline.main(["run"]) == 2
    assert capsys.readouterr().out.count("error: ") == 2


def test_a_misspelt_parameter_is_told_before_anything_runs(root, two_cores, capsys):
    for name in LESSONS[:2]:
        write_notebook(root, "1", name=name)
    assert pipeline.main(["run", "--set", "sed=1"]) == 2
    told = capsys.readouterr()
    assert "did you mean seed" in told.err and not told.out and not (root / "build").exists()


# Three items, each kept when it is finished, as `run.tiles` keeps them; the last one waits.
SLOW = """
import os, time
from pathlib import Path
root = Path(os.environ["KIT_ROOT"])
(root / "cache").mkdir(exist_ok=True)
for item in range(3):
    kept = root / "cache" / f"NAME {item}.npz"
    if kept.exists():
        continue
    with open(root / "calls NAME", "a") as log:
        log.write(f"{item} {os.getpid()}\\n")
    while item == 2 and not (root / "go").exists():
        time.sleep(0.05)
    kept.touch()
"""
CODE = "import sys; from lib.kit import crew, pipeline; crew.room = lambda names: 2; "


def start(root):
    """Run all in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE + "sys.exit(pipeline.main(['run']))"],
        env={**os.environ, "KIT_ROOT": str(root), "PYTHONPATH": str(session.CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    )


def wait_until(state, job=None):
    deadline = time.monotonic() + PATIENCE
    while not state():
        assert time.monotonic() < deadline and (job is None or job.poll() is None)
        time.sleep(0.05)


def calls(root, name):
    """(item, process) of each call so far."""
    log = root / f"calls {name}"
    return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []


@pytest.fixture
def at_item_two(root):
    """A run of three of which two wait in an item, with two kept each; its kernels."""
    for name in LESSONS:
        write_notebook(root, SLOW.replace("NAME", name), name=name)
    job = start(root)
    wait_until(lambda: all(len(calls(root, name)) == 3 for name in LESSONS[:2]), job)
    kernels = [psutil.Process(int(calls(root, name)[0][1])) for name in LESSONS[:2]]
    parents = [kernel.parent() for kernel in kernels]
    yield SimpleNamespace(job=job, processes=kernels + parents)
    job.kill()
    (root / "go").touch()
    job.communicate()


def ended(processes):
    return lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("whom", [os.killpg, os.kill], ids=["terminal", "itself"])
def test_an_interrupt_ends_all_says_one_line_and_loses_nothing(root, at_item_two, whom):
    job = at_item_two.job
    whom(job.pid, signal.SIGINT)
    out, err = job.communicate(timeout=PATIENCE)
    assert job.returncode == pipeline.INTERRUPTED
    assert err == "interrupted, 4 items kept, run again\n"
    assert "Traceback" not in out and "interrupted" not in out
    wait_until(ended(at_item_two.processes))
    assert not calls(root, LESSONS[2])
    (root / "go").touch()
    out, _ = (again := start(root)).communicate(timeout=PATIENCE)
    assert again.returncode == 0 and len(re.findall(": done in", out)) == 3
    for name in LESSONS[:2]:
        assert [item for item, _ in calls(root, name)] == ["0", "1", "2", "2"]


def test_who_kills_the_run_ends_its_notebooks(root, at_item_two):
    at_item_two.job.kill()
    wait_until(ended(at_item_two.processes))
    assert not calls(root, LESSONS[2]) and not (root / "figures").exists()


@pytest.mark.skipif(not shutil.which("script"), reason="script, which gives a terminal, is missing")
def test_on_a_terminal_there_are_lines_and_no_bars(root):
    for name in LESSONS[:2]:
        write_notebook(root, "# A title\n\n## 1. Draw", "1", name=name)
    python = f"{shlex.quote(sys.executable)} -c \"{CODE}sys.exit(pipeline.main(['run']))\""
    environment = {**os.environ, "KIT_ROOT": str(root), "PYTHONPATH": str(session.CHECKOUT)}
    done = subprocess.run(
        ["script", "-qec", python, "/dev/null"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(re.match(rf"({'|'.join(LESSONS[:2])}) quick: ", line) for line in lines), lines
    assert sum("section 1 of 1, Draw" in line for line in lines) == 2
