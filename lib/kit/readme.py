"""The parts of README.md that are made: the figure map and the scorecard, each between markers."""

import re
from collections.abc import Iterator

from lib.kit import scorecard, session, stamps

HEAD = ("notebook", "figures", "command", "time and hardware", "exercises")
EXERCISE = re.compile(r"\*\*(\d) \((predict|change|derive)\)([^*]*)\*\*\s*(.*?[.?])(?=\s|$)", re.S)


def figure_map() -> str:
    """Return the Markdown table notebook -> figures -> command -> time -> exercises."""
    head = "| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD)
    return "\n".join([head, *(f"| {' | '.join(_row(name))} |" for name in stamps.notebooks())])


def _row(name: str) -> Iterator[str]:
    text = [c.source for c in stamps.read_notebook(name).cells if c.cell_type == "markdown"]
    folder = session.root() / "figures" / name
    figures = sorted(path.name for path in folder.glob("*.png"))
    yield f"[{name}](notebooks/{name}.ipynb)"
    yield ", ".join(f"[{file[:-4]}](figures/{name}/{file})" for file in figures) or "not drawn yet"
    yield f"`make {name}`"
    yield _header(text[0] if text else "", "Time")
    yield "; ".join(f"{kind}: {first}" for kind, first in _exercises("\n".join(text)))


def _header(card: str, field: str) -> str:
    """What the header card of a notebook says in one row of its table."""
    found = re.search(rf"^\| \*\*{field}\*\* \|(.*)\|\s*$", card, re.MULTILINE)
    return found[1].strip() if found else ""


def _exercises(text: str) -> Iterator[tuple[str, str]]:
    """Kind and first sentence of each exercise."""
    for _, kind, title, first in EXERCISE.findall(text):
        sentence = title.strip(" :.") or first
        yield kind, " ".join(sentence.split()).rstrip(".").replace("|", "\\|")


def blocks() -> dict[str, str]:
    """Return {marker: text} of everything that is made."""
    return {"figure map": figure_map(), "scorecard": scorecard.markdown()}


def write() -> None:
    """Put each block between its markers <!-- NAME --> and <!-- /NAME --> in README.md.

    Raises:
        ValueError: when README.md lacks a marker or holds them in the wrong order.
    """
    path = session.root() / "README.md"
    text = path.read_text() if path.is_file() else ""
    for name, block in blocks().items():
        text = _filled(text, f"<!-- {name} -->", f"<!-- /{name} -->", block)
    session.write_atomically(path, text)


def _filled(text: str, begin: str, end: str, block: str) -> str:
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"README.md needs a line {begin} and, below it, a line {end}")
    return f"{before}{begin}\n{block}\n{end}{after}"
