"""When is a notebook up to date? A stamp holds what it was made from and what it made, by hash."""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from lib.kit import session, sources


def notebooks() -> dict[str, Path]:
    """Return {name: path} of the numbered notebooks, in order; copies beside them are none."""
    found = sorted((session.root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return {path.stem: path for path in found if re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)}


def read_notebook(name: str) -> nbformat.NotebookNode:
    """Return the notebook called `name`; raises ValueError with the nearest names otherwise."""
    known = notebooks()
    if name not in known:
        raise ValueError(f"unknown notebook {name!r}{session.nearest(name, known)}")
    return nbformat.read(known[name], as_version=4)


def code_cells(book: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the code cells."""
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def inputs(name: str, profile: str, parameters: Mapping[str, object]) -> dict[str, object]:
    """Return what a run depends on: settings, and hashes of cells, lib, lock and weights."""
    book = read_notebook(name)
    cells = code_cells(book)
    lock = session.root() / "requirements.lock"
    return {
        "cells": sources.sha256(*cells),
        "lib": sources.sha256(json.dumps(_lib_closure(cells))),
        "lock": sources.file_sha256(lock) if lock.is_file() else "absent",
        "weights": {item: sources.weights(item) for item in _weights_named(book, cells)},
        "profile": profile,
        "parameters": json.loads(json.dumps(dict(sorted(parameters.items())))),
    }


def _weights_named(book: nbformat.NotebookNode, cells: list[str]) -> list[str]:
    """Folders of models/ that a cell names as text, and what the metadata `kit.weights` adds."""
    folders = (session.root() / "models").glob("*/")
    found = {folder.name for folder in folders if any(f'"{folder.name}"' in c for c in cells)}
    return sorted({*found, *book.metadata.get("kit", {}).get("weights", [])})


def _lib_closure(cells: list[str]) -> dict[str, str]:
    """Digests of the `lib` modules behind the cells: those of the root, else of this checkout."""
    library = session.root() / "lib"
    transform = TransformerManager().transform_cell  # turns magics into Python
    imported = set().union(*(sources.lib_imports(ast.parse(transform(cell))) for cell in cells))
    return sources.closure(imported, library if library.is_dir() else sources.LIBRARY)


def stamp_file(name: str, profile: str) -> Path:
    """Return where the stamp of a finished run lies."""
    return session.root() / "build" / "stamps" / f"{name}.{profile}.json"


def reason_stale(name: str, profile: str, parameters: Mapping[str, object]) -> str:
    """Return why the notebook has to run again, or "" when it is up to date."""
    path = stamp_file(name, profile)
    if not path.is_file():
        return "not run yet"
    stamp = json.loads(path.read_text())
    now = inputs(name, profile, parameters)
    changed = [key for key, value in now.items() if stamp["inputs"].get(key) != value]
    if changed:
        return f"changed: {', '.join(changed)}"
    for relative, digest in stamp["outputs"].items():
        output = session.root() / relative
        if not output.is_file():
            return f"missing: {relative}"
        if sources.file_sha256(output) != digest:
            return f"edited: {relative}"
    return ""


def write_stamp(name: str, made_from: Mapping, outputs: list[Path], notes: Mapping) -> None:
    """Record a finished run; written last, so that a run without a stamp never counts as done."""
    root = session.root()
    digests = {str(path.relative_to(root)): sources.file_sha256(path) for path in sorted(outputs)}
    stamp = {"inputs": made_from, "outputs": digests, "run": notes}
    path = stamp_file(name, made_from["profile"])
    session.write_atomically(path, json.dumps(stamp, indent=1) + "\n")
