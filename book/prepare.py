"""Copies of all that the book shows in build/book/source, ready for Sphinx.

They lie as in the repository, so that links between them hold. Nothing is executed.
"""

import os
import re
import shutil
from pathlib import Path

import nbformat

from lib.kit import session, stamps

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|[/#])([^)\s#]+)(#[^)]*)?\)")
IMAGE = re.compile(r"!\[[^\]]*\]\((?!\w+:|[/#])([^)\s#]+)\)")
SOLUTION = "::::{admonition} Solution\n:collapsible: closed\n\n%s\n::::"
WIDE = "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n"


def notebook(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with folded solutions, and each alternative text where myst-nb looks.

    Raises:
        ValueError: when a cell shows several figures, for which there is one text only.
    """
    book = nbformat.read(path, as_version=4)
    for k, cell in enumerate(book.cells):
        tags = cell.metadata.setdefault("tags", [])
        if "solution" in tags and cell.cell_type == "code":
            tags.append("hide-cell")
        elif "solution" in tags:
            cell.source = SOLUTION % cell.source
        shown = [o.metadata for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        if len(shown) > 1:
            raise ValueError(f"{path.name}, cell {k} shows {len(shown)} figures: one a cell")
        for alt in (data.get("image/png", {}).get("alt") for data in shown):
            cell.metadata["mystnb"] = {"image": {"alt": alt}} if alt else {}
    return book


def slug(heading: str) -> str:
    """Return the anchor of a heading as JupyterLab and the claim tables of the lessons write it."""
    return heading.strip().replace(" ", "-")


def without_folders(text: str, here: Path) -> str:
    """Return Markdown in which a link to a folder is only its text: a book has no such page."""
    return LINK.sub(lambda m: m[1] if (here / m[2]).is_dir() else m[0], text)


def linked(text: str, here: Path) -> list[Path]:
    """Return the files of the checkout that Markdown written in the folder `here` points to."""
    targets = [m[2] for m in LINK.finditer(text)] + IMAGE.findall(text)
    return [path for path in (Path(os.path.normpath(here / t)) for t in targets) if path.is_file()]


def pages() -> dict[Path, str]:
    """Return {file of the checkout: text in the book} of everything but the pages of the API."""
    root = session.root()
    plain = [root / "README.md", root / "SCORECARD.md", *sorted((root / "docs").glob("*.md"))]
    found = {path: path.read_text(encoding="utf-8") for path in plain}
    found[root / "SCORECARD.md"] = WIDE + found[root / "SCORECARD.md"]
    for path in sorted((root / "figures").rglob("printed.md")):
        text = path.read_text(encoding="utf-8")
        found[path] = re.sub(
            "^# ", f"# What `{path.parent.name}` printed: ", text, count=1, flags=re.M
        )
    for path in stamps.notebooks().values():
        book = notebook(path)
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source = without_folders(cell.source, path.parent)
        found[path] = nbformat.writes(book) + "\n"
    return {p: without_folders(t, p.parent) if p.suffix == ".md" else t for p, t in found.items()}


def attachments(text: str, path: Path) -> list[Path]:
    """Return the files that a page points to: those of its prose, if it is a notebook."""
    if path.suffix != ".ipynb":
        return linked(text, path.parent)
    cells = nbformat.reads(text, as_version=4).cells
    return linked("\n\n".join(c.source for c in cells if c.cell_type == "markdown"), path.parent)


def api() -> dict[str, str]:
    """Return {room: page with the docstrings of its files}."""
    found = {"intervals": automodule("lib.intervals")}
    for face in sorted((session.root() / "lib").glob("*/__init__.py")):
        room = face.parent.name
        files = [p.stem for p in sorted(face.parent.glob("*.py")) if p != face]
        parts = [f"## {name}\n\n" + automodule(f"lib.{room}.{name}") for name in files]
        head = f"```{{eval-rst}}\n.. automodule:: lib.{room}\n```"
        found[room] = "\n\n".join([head, *parts])
    return {room: f"# `lib.{room}`\n\n{text}\n" for room, text in found.items()}


def automodule(name: str) -> str:
    """Return the directive that shows the public members of a module."""
    return f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"


def write(folder: Path) -> list[Path]:
    """Write the sources of the book; return the pages, relative to `folder`."""
    root, shown = session.root(), pages()
    texts = {path.relative_to(root): text for path, text in shown.items()}
    texts |= {Path("api", f"{room}.md"): text for room, text in api().items()}
    front = root / "book" / "index.md"
    texts[Path("index.md")] = front.read_text(encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in texts.items():
        session.write_atomically(folder / path, text)
    carried = [file for path, text in shown.items() for file in attachments(text, path)]
    for file in {*carried, *linked(texts[Path("index.md")], root)} - set(shown):
        (folder / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.relative_to(root))
    return sorted(texts)


if __name__ == "__main__":
    write(session.root() / "build" / "book" / "source")
