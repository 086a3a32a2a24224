"""Working copies of the notebooks in build/lab/, and JupyterLab on them.

The server's root is that of the repository, so that links and title images of the copies resolve
and lib, figures and README are at hand; the committed notebooks stay as they are.
"""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lib.kit import digests, session, stamps

LINK = re.compile(r"""(\]\(|\b(?:src|href)=["'])(?!\w+:|[/#])([^)"'\s#]+)""")


def refresh() -> list[str]:
    """Bring build/lab/ up to date; return the names of the copies that their reader changed.

    What the reader wrote is kept. A copy that was only run is written anew when the cells of its
    notebook have changed, an untouched one also when its outputs have.
    """
    folder = session.root() / "build" / "lab"
    ledger = folder / ".written.json"
    written = json.loads(ledger.read_text(encoding="utf-8")) if ledger.is_file() else {}
    kept = []
    for source in stamps.notebooks().values():
        name = source.relative_to(session.root() / "notebooks").as_posix()
        copy, known = folder / name, written.get(name, {})
        book = moved(nbformat.read(source, as_version=4), source.parent, copy.parent)
        text = nbformat.writes(book) + "\n"
        now = copy.read_text(encoding="utf-8") if copy.is_file() else ""
        untouched = not now or digests.sha256(now) == known.get("file")
        if untouched or _cells(now) == known.get("cells") != _cells(text):
            session.write_atomically(copy, text)
            written[name] = {"file": digests.sha256(text), "cells": _cells(text)}
        elif _cells(now) != _cells(text):
            kept.append(name)
    session.write_atomically(ledger, json.dumps(written, indent=1) + "\n")
    return kept


def _cells(text: str) -> str:
    """Digest of what is written in the cells of a notebook, of the text itself if it is none."""
    try:
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    except (ValueError, KeyError, TypeError):
        return digests.sha256(text)
    return digests.sha256(*(part for cell in cells for part in cell))


def moved(book: NotebookNode, before: Path, after: Path) -> NotebookNode:
    """Return the notebook with its relative links leading from `after` where they led."""
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = moved_links(cell.source, before, after)
    return book


def moved_links(text: str, before: Path, after: Path) -> str:
    """Return Markdown whose relative links mean from `after` what they meant from `before`.

    Links between notebooks stay, for their copies lie as they do.
    """
    notebooks = session.root() / "notebooks"

    def moved(match: re.Match) -> str:
        target = Path(os.path.normpath(before / match[2]))
        if target.is_relative_to(notebooks):
            return match[0]
        return match[1] + Path(os.path.relpath(target, after)).as_posix()

    return LINK.sub(moved, text)


def command(arguments: list[str]) -> list[str]:
    """Return the command line that starts JupyterLab on the copies; `arguments` come last."""
    options = [f"--ServerApp.root_dir={session.root()}", "--LabApp.default_url=/lab/tree/build/lab"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")  # as in a container, where there is no other user
    return [sys.executable, "-m", "jupyterlab", *options, *arguments]


def main(arguments: list[str]) -> None:
    """Bring the copies up to date, say what was kept, and become JupyterLab."""
    kept = ", ".join(refresh())
    print("working copies of the notebooks are in build/lab/", flush=True)
    if kept:
        print(f"kept as you changed them: {kept} (delete a copy to get it anew)", flush=True)
    os.execv(sys.executable, command(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
