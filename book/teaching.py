"""Copies of the lessons for a course: `make student` and `make answers`.

What they are made of is marked in the lessons themselves, and nowhere else:

    **1 (predict).** ...   opens an exercise; `kit.points` and `kit.rubric` in the metadata of its
                           cell replace the usual points and rubric of its kind
    tag `solution`         the answer of the kit; a student finds an empty answer cell instead
    # check                a line of a solution: below it stand assertions on names that an answer
                           has to define, each with a hint; a cell with the tag `check` is another
    tag `spoiler`          is left out of a student's copy
    **Was your prediction right?** ...   what came out, up to the next heading or bold opening: the
                           question stays in a student's copy, what follows does not

A file that is there is never written over: a changed one goes beside it, as NAME-2.ipynb.
"""

import argparse
import ast
import copy
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from book import lab
from lib.kit import session, stamps

EXERCISE = re.compile(r"\*\*(\d+) \((predict|change|derive)\)\.\*\*")
CHECK = re.compile(r"^# check\n", re.MULTILINE)
PREDICTION = re.compile(r"\*\*Predict first[.:]?\*\*")
ANSWERED = re.compile(r"(\*\*Was your prediction right\?\*\*).*?(?=\n\n(?:#|\*\*)|\Z)", re.DOTALL)
RESULT = re.compile(r"!\[[^\]]*\]\([^)]*figures/[^)]*\)\n?")
CONCLUSION = re.compile(r"\*\*Conclusion\.\*\*.*?(?=\n\n\*\*References|\Z)", re.DOTALL)
RUBRIC = {  # what a point is given for
    "predict": ("a prediction with its reason, written before the run", "what came out against it"),
    "change": (
        "the code runs and changes what was asked for",
        "the number with its error, beside that of the lesson",
        "one sentence on why",
    ),
    "derive": (
        "the starting point is stated",
        "each step follows",
        "the result is the one asked for",
        "it is checked with a number",
    ),
}
WORDS = "your words: what is plotted, and what it shows"


def lessons(names: Iterable[str] = ()) -> dict[str, NotebookNode]:
    """Return {name: notebook} of the lessons that the names stand for, all if none is given."""
    chosen = dict.fromkeys(map(stamps.lesson_of, stamps.chosen(names)))
    return {n: stamps.read_notebook(n) for n in chosen if n in stamps.notebooks()}


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def exercises(book: NotebookNode) -> dict[int, tuple[str, str, int, list[str]]]:
    """Return {place of its cell: (number, kind, points, rubric)} of the exercises.

    A line of the rubric is worth a point, unless the cell says otherwise.
    """
    found = {}
    for place, cell in enumerate(book.cells):
        opened = EXERCISE.search(cell.source) if cell.cell_type == "markdown" else None
        if opened and "solution" not in tags(cell):
            own = cell.metadata.get("kit", {})
            rubric = list(own.get("rubric", RUBRIC[opened[2]]))
            found[place] = opened[1], opened[2], own.get("points", len(rubric)), rubric
    return found


def one_each(book: NotebookNode) -> NotebookNode:
    """Return a lesson in which a cell that opens several exercises is a cell for each of them.

    The `kit` of such a cell is by number, {"1": {"points": 2}, ...}.
    """
    book, cells = copy.deepcopy(book), []
    for cell in book.cells:
        opened = list(EXERCISE.finditer(cell.source)) if "solution" not in tags(cell) else []
        if cell.cell_type == "code" or len(opened) < 2:
            cells.append(cell)
            continue
        cuts = [0, *(found.start() for found in opened[1:]), len(cell.source)]
        for found, first, last in zip(opened, cuts, cuts[1:], strict=False):
            meta = cell.metadata | {"kit": cell.metadata.get("kit", {}).get(found[1], {})}
            text = cell.source[first:last].strip()
            cells.append(new_markdown_cell(text, metadata=meta, id=f"{cell.id}-{found[1]}"))
    book.cells = cells
    return book


# --- student --------------------------------------------------------------------------------------


def student_copy(name: str, book: NotebookNode) -> NotebookNode:
    """Return a lesson with answer cells instead of solutions, outputs and what gives them away."""
    book = one_each(book)
    cells, asked, predictions = [], exercises(book), 0
    for place, cell in enumerate(book.cells):
        if "solution" in tags(cell):
            checks = CHECK.split(cell.source)[1:] if cell.cell_type == "code" else []
            meta = {"tags": ["check"]}
            cells += [
                _check(new_code_cell(c, metadata=meta, id=f"{cell.id}-check")) for c in checks
            ]
            continue
        cell.metadata.pop("kit", None)  # the rubric gives results away
        if "spoiler" in tags(cell) or "claims_table(" in cell.source:
            continue
        cells.append(_check(cell) if "check" in tags(cell) else _without_results(cell))
        if place in asked:
            number, _, worth, _ = asked[place]
            cells += _answer(f"{name}-{number}", worth, code=True)
        elif cell.cell_type == "markdown" and PREDICTION.search(cell.source):
            predictions += 1
            cells += _answer(f"{name}-prediction-{predictions}", 0)
    return nbformat.v4.new_notebook(cells=cells, metadata=book.metadata)


def _answer(name: str, worth: int, *, code: bool = False) -> list[NotebookNode]:
    """The cells that a student fills in: one for words, one where something is to be computed."""
    title = f"Answer {name}" + f" ({worth} point{'s' * (worth != 1)})" * bool(worth)
    meta = {"tags": ["answer"], "kit": {"answer": name, "points": worth}}
    text = f"**{title}.** *Write here.*"
    cells = [new_markdown_cell(text, metadata=meta, id=f"answer-{name}")]
    if code:
        meta = {"tags": ["answer"], "kit": {"answer": name}}
        cells.append(new_code_cell(f"# {title}", metadata=meta, id=f"answer-{name}-code"))
    return cells


def _check(cell: NotebookNode) -> NotebookNode:
    """A check that a student can run at any time: it says what is missing, and never fails."""
    cell.source = (
        "try:\n"
        + textwrap.indent(cell.source.strip(), "    ")
        + '\nexcept NameError as missing:\n    print(f"not yet: {missing}; run your answer first")'
        + '\nexcept AssertionError as hint:\n    print(f"not yet: {hint}")'
        + '\nexcept Exception as wrong:\n    print(f"not yet: {type(wrong).__name__}: {wrong}")'
        + '\nelse:\n    print("passed")'
    )
    return _without_outputs(cell)


def _without_results(cell: NotebookNode) -> NotebookNode:
    """A cell without what it showed, and without figures and words that say what comes out."""
    if cell.cell_type == "code":
        cell.source = without_alt(cell.source)
    else:
        text = RESULT.sub("", cell.source)
        text = ANSWERED.sub(r"\1 *Compare with what you wrote.*", text)
        cell.source = CONCLUSION.sub("**Conclusion.** *Yours, in three sentences.*", text)
    return _without_outputs(cell)


def _without_outputs(cell: NotebookNode) -> NotebookNode:
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
    return cell


def without_alt(code: str) -> str:
    """Return code whose alternative texts are left to the student; magics stay as they are."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return code
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "alt":
            texts.append(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "save_figure":
            given = [k.value for k in node.keywords if k.arg == "alt"] + node.args[2:3]
            texts += [value for value in given if not isinstance(value, ast.Name)]
    lines = code.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:k])) for k in range(len(lines))]
    data = code.encode()
    for node in sorted(texts, key=lambda node: (-node.lineno, -node.col_offset)):
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        data = data[:first] + f'"{WORDS}"'.encode() + data[last:]
    return data.decode()


# --- answers --------------------------------------------------------------------------------------


def key(name: str, book: NotebookNode) -> NotebookNode:
    """Return the exercises of a lesson with points, rubric and the solutions as they ran."""
    book = one_each(book)
    asked = exercises(book)
    total = sum(worth for _, _, worth, _ in asked.values())
    head = f"# Answers to {name}\n\n{len(asked)} exercises, {total} points."
    cells = [new_markdown_cell(head, id="answers")]
    for place, cell in enumerate(book.cells):
        if place in asked:
            number, _, worth, rubric = asked[place]
            lines = [
                f"**Rubric {name}-{number}, {worth} points.**",
                "",
                *(f"- {r}" for r in rubric),
            ]
            cells += [cell, new_markdown_cell("\n".join(lines), id=f"rubric-{number}")]
        elif {"solution", "check"} & {*tags(cell)}:
            cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=book.metadata)


def write_beside(path: Path, text: str) -> Path:
    """Write a text to the path, or beside it where another text lies; return where it is."""
    places = (path, *(path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(2, 1000)))
    for place in places:
        if not place.exists():
            session.write_atomically(place, text)
        if place.read_text(encoding="utf-8") == text:
            return place
    raise ValueError(f"there are 1,000 copies of {path.name} already: move some away")


def write_copies(kind: str, names: Iterable[str]) -> list[Path]:
    """Write the copies of a kind, "student" or "answers", below build/; return the paths."""
    make = {"student": student_copy, "answers": key}[kind]
    written = []
    for name, book in lessons(names).items():
        path = session.root() / "build" / kind / f"{name}.ipynb"
        made = make(name, lab.moved(book, stamps.notebooks()[name].parent, path.parent))
        written.append(write_beside(path, nbformat.writes(made) + "\n"))
    return written


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m book.teaching", description=__doc__)
    parser.add_argument("kind", choices=("student", "answers"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="lessons, by default all")
    given = parser.parse_args(arguments)
    try:
        written = write_copies(given.kind, given.names)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path.relative_to(session.root()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
