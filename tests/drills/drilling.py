"""What drills share: a small root with one slow notebook, runs of it, a count of what is lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import psutil

CHECKOUT = Path(__file__).resolve().parents[2]
NAME, FIGURE = "01_ising", "figures/01_ising/sum.txt"
PATIENCE = 1800  # seconds after which a wait is called a hang: drills wait for states, not for time
PARAMETERS = 'profile: str = "quick"\nseed: int = 0'
SLOW = """
import os, time
from lib.kit import run
kit = run.start(profile, notebook="01_ising", seed=seed, items=(6, 6, 6))
root = os.environ["KIT_ROOT"]

def slow(item):
    with open(f"{root}/calls", "a") as log:
        log.write(f"{item} {os.getpid()}\\n")
    while item == 3 and not os.path.exists(f"{root}/go"):
        time.sleep(0.05)
    return float(item) ** 2

total = sum(run.tiles(range(kit.items), slow, label="items"))
with open(os.environ["KIT_OUTPUT"] + "/sum.txt", "w") as written:
    print(total, end="", file=written)
"""


class Skipped(Exception):
    """This machine does not allow the fault; the text says why."""


class Outcome(NamedTuple):
    """Results that were finished and are gone or wrong, and what the user saw."""

    lost: int
    saw: str


class Drill(NamedTuple):
    """A fault; `act(folder)` makes it happen once in an empty folder."""

    fault: str
    act: Callable[[Path], Outcome]
    short: bool


DRILLS: list[Drill] = []


def drill(fault: str, short: bool = False) -> Callable:
    """Put a drill on the list; the short ones are part of `make test`."""

    def listed(act: Callable) -> Callable:
        DRILLS.append(Drill(fault, act, short))
        return act

    return listed


def new_root(folder: Path, *cells: str) -> Path:
    """A root with one notebook of the given cells."""
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    book.cells += [nbformat.v4.new_markdown_cell("## 1. Über alles"), *map(new_cell, cells)]
    path = folder / "notebooks" / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(book, path)
    return folder


def new_cell(source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source)


class Job:
    """A command as a user starts it, in a group of its own, with what it prints."""

    def __init__(self, root: Path, *command: str, wrapper: tuple = (), **environment: str | None):
        self.root = root
        self.printed = root.with_name(
            f"{root.name} {len(list(root.parent.glob(root.name + ' *')))}"
        )
        settings = {**os.environ, "KIT_ROOT": str(root), "PYTHONPATH": str(CHECKOUT)}
        settings |= dict.fromkeys(("KIT_PROFILE", "KIT_CACHE", "KIT_DASK"))
        settings |= {"OMP_NUM_THREADS": "1", **environment}
        with open(self.printed, "w") as out:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, *command],
                cwd=CHECKOUT,
                env={name: value for name, value in settings.items() if value is not None},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> int:
        """Exit status, when it has come."""
        return self.process.wait(PATIENCE)

    def press(self, number: int) -> int:
        """Send a signal to the whole group, as a terminal does; return the exit status."""
        os.killpg(self.process.pid, number)
        return self.end()

    def said(self) -> str:
        """All that was printed, without the name of the folder."""
        text = self.printed.read_text(encoding="utf-8", errors="replace")
        return text.replace(str(self.root), "ROOT").strip()

    def last_line(self) -> str:
        return self.said().splitlines()[-1] if self.said() else "nothing"


def pipeline(root: Path, *arguments: str, **options: object) -> Job:
    return Job(root, "-m", "lib.kit.pipeline", *(arguments or ("run",)), **options)


def calls(root: Path) -> list[tuple[int, int]]:
    """(item, process) of each call of the slow function so far."""
    log = root / "calls"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [tuple(map(int, line.split())) for line in lines]


def wait_until(condition: Callable[[], bool], job: Job | None = None) -> None:
    """Wait for a state, however long a busy machine takes to reach it.

    Fails with what was printed when the job has ended without it.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if job and job.process.poll() is not None and not condition():
            raise AssertionError(f"ended with {job.process.returncode}, the user saw: {job.said()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing happened for {PATIENCE} s")
        time.sleep(0.05)


def is_gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def at_item_three(root: Path, *arguments: str, **environment: str | None) -> Job:
    """A run that has kept three items and waits in the fourth."""
    job = pipeline(root, *arguments, **environment)
    wait_until(lambda: 3 in dict(calls(root)), job)
    return job


def waits_for_lock(job: Job) -> bool:
    """Whether a run has come to the lock of its notebook."""
    return any(
        "/build/locks/" in file.path for file in psutil.Process(job.process.pid).open_files()
    )


def lost_after(root: Path, *arguments: str, finished: int = 3, **environment: str | None) -> int:
    """Run to the end; count items computed anew though they were kept, and a wrong result."""
    (root / "go").touch()
    job = pipeline(root, *arguments, **environment)
    status = job.end()
    again = sum([item for item, _ in calls(root)].count(k) > 1 for k in range(finished))
    figure = root / FIGURE
    right = status == 0 and figure.is_file() and figure.read_text() == "55.0"
    if not right:
        print(job.said())
    return again + (not right)


def expect(pattern_holds: bool, saw: str) -> None:
    """Fail with what was printed when it is not what a user needs to read."""
    if not pattern_holds:
        raise AssertionError(f"the user saw: {saw}")


def obedient() -> tuple[str, ...]:
    """What makes a command of the superuser respect read-only folders; nothing for others."""
    if os.geteuid():
        return ()
    if not shutil.which("setpriv"):
        raise Skipped("the superuser may write everywhere, and setpriv is not installed")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")


INTERRUPT, KILL = signal.SIGINT, signal.SIGKILL
