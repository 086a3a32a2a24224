"""Pages that are made: SCORECARD.md, the scorecard's block in README.md, what a run printed."""

import re
from collections.abc import Iterator

import nbformat

from lib.kit import results, scorecard, session, stamps

HEAD = ("notebook", "figures", "command", "time and hardware")
BEGIN, END = "<!-- scorecard -->", "<!-- /scorecard -->"
INTRODUCTION = """# Scorecard

Every claim of the three papers: what was reported, at which setting, what we measure at ours, and
the verdict. Best available profile of each claim: `full` before `paper` before `quick`, and any
that could test it before one that could not. The verdict follows from the numbers: *reproduced*
when the number, with two standard errors, is on the right side of the bound and beats the trivial
predictors; *partly* when one of the two holds, when the bound lies within two errors and the number
itself beats the trivial predictors, or when a stated condition fails or the controls show more than
5 % false alarms or less than 90 % power. This page is made by `make refresh`."""
MAP = """## Figure map

All of a notebook's figures come from its one command. Beside each `NAME.png` lie its description
`NAME.txt` and its provenance `NAME.json`; `stamp.json` says from which code the set was made."""


def figure_map() -> str:
    """Return the Markdown table notebook -> figures -> command -> time."""
    return results.markdown(HEAD, map(_row, stamps.notebooks()))


def _row(name: str) -> Iterator[str]:
    text = [c.source for c in stamps.read_notebook(name).cells if c.cell_type == "markdown"]
    folder = stamps.figures(name, "quick")
    figures = sorted(path.relative_to(session.root()) for path in folder.glob("*.png"))
    yield f"[{name}](notebooks/{name}.ipynb)"
    yield ", ".join(f"[{file.stem}]({file.as_posix()})" for file in figures) or "not drawn yet"
    yield f"`make {name}`"
    yield _header(text[0] if text else "", "Time")


def _header(card: str, field: str) -> str:
    """What the header card of a notebook says in one row of its table."""
    found = re.search(rf"^\| \*\*{field}\*\* \|(.*)\|\s*$", card, re.MULTILINE)
    return found[1].strip() if found else ""


def scorecard_page() -> str:
    """Return the text of SCORECARD.md."""
    parts = [INTRODUCTION, scorecard.LEGEND, scorecard.page(), MAP, figure_map()]
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Write SCORECARD.md, and its summary between the markers of README.md.

    Raises:
        ValueError: when README.md lacks a marker or holds them in the wrong order.
    """
    path = session.root() / "README.md"
    text = _filled(path.read_text(encoding="utf-8") if path.is_file() else "", scorecard.summary())
    session.write_atomically(session.root() / "SCORECARD.md", scorecard_page())
    session.write_atomically(path, text)


def _filled(text: str, block: str) -> str:
    before, opened, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not opened or not closed:
        raise ValueError(f"README.md needs a line {BEGIN} and, below it, a line {END}")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def printed(book: nbformat.NotebookNode, profile: str) -> str:
    """Return the headings of an executed notebook, each with what the cells below it printed.

    Headings below which nothing was printed are left out.
    """
    parts, heading = [f"*Printed by the run of profile `{profile}`.*"], []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            heading = [line for line in cell.source.splitlines() if line.startswith("#")] or heading
            continue
        streams = [o.text for o in cell.get("outputs", []) if o.get("name") == "stdout"]
        if text := "".join(streams).strip("\n"):
            parts += [*heading[-1:], f"```\n{text}\n```"]
            heading = []
    return "\n\n".join(parts) + "\n"
