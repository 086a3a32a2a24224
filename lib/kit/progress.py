"""What a run says while it runs: a line per section and per minute where there is no terminal."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import nbformat

EVERY = 60.0  # seconds between two lines of one section
SECTION = re.compile(r"^## (?:\d+\. )?(.+)$", re.MULTILINE)


@contextlib.contextmanager
def lines(title: str, book: nbformat.NotebookNode) -> Iterator[Callable]:
    """Yield what papermill has to call as `on_cell_start`; silent where a terminal has a bar.

    A line reads "00_models quick: section 3 of 9, Inversion, images 12 of 40, 1 min 20 s".
    """
    if sys.stderr.isatty():
        yield lambda cell, cell_index: None
        return
    teller = _Teller(title, [text for cell in book.cells for text in _sections(cell)])
    threading.Thread(target=teller.each_minute, daemon=True).start()
    try:
        yield teller.cell_starts
    finally:
        teller.ended.set()


def _sections(cell: nbformat.NotebookNode) -> list[str]:
    return SECTION.findall(cell.source) if cell.cell_type == "markdown" else []


class _Teller:
    def __init__(self, title: str, sections: list[str]):
        self.title, self.sections = title, sections
        self.reached = self.told = 0
        self.started = self.spoken = time.monotonic()
        self.ended = threading.Event()

    def cell_starts(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Say when the first code cell of a section starts."""
        self.reached += len(_sections(cell))
        if cell.cell_type == "code" and self.reached > self.told:
            self.told = self.reached
            self.say()

    def each_minute(self) -> None:
        """Say where it stands whenever nothing has been said for a minute."""
        while not self.ended.wait(max(0.0, self.spoken + EVERY - time.monotonic())):
            if time.monotonic() >= self.spoken + EVERY:
                self.say()

    def say(self) -> None:
        """Print section, the items that the bar of the kernel has noted last, and time."""
        self.spoken, place = time.monotonic(), "start"
        if self.told:
            place = f"section {self.told} of {len(self.sections)}, {self.sections[self.told - 1]}"
        with contextlib.suppress(OSError, KeyError):
            noted_last = Path(os.environ["KIT_PROGRESS"]).read_text(encoding="utf-8")
            place += f", {noted_last}" if noted_last else ""
        print(f"{self.title}: {place}, {duration(self.spoken - self.started)}", flush=True)


def duration(seconds: float) -> str:
    """Return "45 s", "1 min 20 s" or "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def noted(items: Iterable, label: str, total: int | None) -> Iterator:
    """Pass the items on; note once a second, in the file `KIT_PROGRESS`, how many are done."""
    path, written = Path(os.environ["KIT_PROGRESS"]), 0.0
    total = len(items) if total is None and hasattr(items, "__len__") else total
    try:
        for count, item in enumerate(items):
            if time.monotonic() > written + 1:
                written = time.monotonic()
                where = f"{label or 'items'} {count}{f' of {total}' if total else ''}"
                path.write_text(where, encoding="utf-8")
            yield item
    finally:
        path.unlink(missing_ok=True)
