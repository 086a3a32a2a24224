"""When is a notebook up to date? A stamp holds what it was made from and what it made, by hash.

Notebooks are known by their path below notebooks/ without suffix: "02_tasep" is a lesson,
"evidence/02_tasep" its evidence, and 02 or 2 is both. The stamp of a run lies under build/; that of
a committed set of figures and rows lies beside them, and `verify` compares it with the code.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import nbformat

from lib.kit import digests, session
from lib.kit.claims import CLAIMS, SECOND

EVIDENCE = "evidence/"
COMMITTED = session.PROFILES[1:]
NAME = re.compile(r"\d\d_[a-z0-9_]+")  # a copy made beside a notebook has another name


def notebooks() -> dict[str, Path]:
    """Return {name: path} of the numbered notebooks: the lessons in order, then the evidence."""
    folder, found = session.root() / "notebooks", {}
    for prefix in ("", EVIDENCE):
        paths = sorted((folder / prefix).glob("*.ipynb"))
        found |= {prefix + path.stem: path for path in paths if NAME.fullmatch(path.stem)}
    return found


def lesson_of(name: str) -> str:
    """Return the name of the lesson of a notebook, by which claims and figures are kept."""
    return name.removeprefix(EVIDENCE)


def recorder(name: str) -> str:
    """Return the notebook that records the claims of `name`: its evidence where there is one."""
    evidence = EVIDENCE + lesson_of(name)
    return evidence if evidence in notebooks() else lesson_of(name)


def chosen(names: Iterable[str]) -> list[str]:
    """Return the named notebooks, a number standing for lesson and evidence; all if none is named.

    Raises ValueError for an unknown name, with the nearest ones.
    """
    known, found = list(notebooks()), []
    for name in names:
        number = f"{int(name):02d}_" if re.fullmatch(r"\d\d?", name) else None
        matches = [k for k in known if number and lesson_of(k).startswith(number) or k == name]
        if not matches:
            raise ValueError(f"unknown notebook {name!r}{session.nearest(name, known)}")
        found += matches
    return list(dict.fromkeys(found)) or known


def read_notebook(name: str) -> nbformat.NotebookNode:
    """Return the notebook called `name`; raises ValueError with the nearest names otherwise."""
    (only,) = chosen([name])
    try:
        return nbformat.read(notebooks()[only], as_version=4)
    except Exception as error:  # of nbformat, json or its schema, by what is broken
        raise ValueError(
            f"notebooks/{only}.ipynb is not a whole notebook ({type(error).__name__}): take it "
            "from git, or from a copy"
        ) from error


def code_cells(book: nbformat.NotebookNode) -> list[str]:
    """Return the sources of the code cells."""
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def closure(cells: list[str]) -> tuple[digests.Unit, digests.Closure, str]:
    """Cells, the definitions of `lib` behind them (of the root, else of this checkout), digest."""
    folder = session.root() / "lib"
    library = _library(folder if folder.is_dir() else digests.LIBRARY)
    unit = library.cells(cells)
    behind = library.closure(unit.references)
    return unit, behind, digests.sha256(behind.digest, library.order(unit))


_library = functools.cache(digests.Library)


def inputs(name: str, profile: str, parameters: Mapping[str, object]) -> dict[str, object]:
    """Return what a run depends on: settings, and digests of cells, lib, lock and weights."""
    book = read_notebook(name)
    cells = code_cells(book)
    lock = session.root() / "requirements.lock"
    unit, _, behind = closure(cells)
    made_from = {
        "cells": unit.digest,
        "lib": behind,
        "claims": digests.sha256(json.dumps(_bounds(name))),
        "lock": digests.file_sha256(lock) if lock.is_file() else "absent",
        "weights": {item: digests.weights(item) for item in _weights_named(book, cells)},
        "profile": profile,
        "parameters": json.loads(json.dumps(dict(sorted(parameters.items())))),
    }
    if recorder(name) != name:  # a lesson ends with the verdicts of its evidence
        shown = {claim: (row["verdict"], row["measured"]) for claim, row in best_rows(name).items()}
        made_from["rows"] = digests.sha256(json.dumps(shown))
    return made_from


def _bounds(name: str) -> list:
    """What the list of claims asks of this notebook's rows, without its words."""
    if recorder(name) != name:
        return []
    lesson = lesson_of(name)
    own = (claim for claim in CLAIMS.values() if claim.notebook == lesson or lesson in SECOND)
    return [[claim.id, claim.reported, claim.unit, claim.needs, claim.bound] for claim in own]


def _weights_named(book: nbformat.NotebookNode, cells: list[str]) -> list[str]:
    """Folders of models/ that a cell names as text, and what the metadata `kit.weights` adds."""
    folders = (session.root() / "models").glob("*/")
    found = {folder.name for folder in folders if any(f'"{folder.name}"' in c for c in cells)}
    return sorted({*found, *book.metadata.get("kit", {}).get("weights", [])})


def stamp_file(name: str, profile: str) -> Path:
    """Return where the stamp of a finished run lies."""
    return session.root() / "build" / "stamps" / f"{name}.{profile}.json"


def reason_stale(name: str, profile: str, parameters: Mapping[str, object]) -> str:
    """Return why the notebook has to run again, or "" when it is up to date."""
    stamp, missing = _read(stamp_file(name, profile), "not run yet")
    if missing:
        return missing
    if changed := _changed(stamp["inputs"], inputs(name, profile, parameters)):
        return f"changed: {', '.join(changed)}"
    for relative, digest in stamp["outputs"].items():
        output = session.root() / relative
        if not output.is_file():
            return f"missing: {relative}"
        if digests.file_sha256(output) != digest:
            return f"edited: {relative}"
    return ""


def _read(path: Path, absent: str) -> tuple[dict, str]:
    """A stamp, and why there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), ""
    except FileNotFoundError:
        return {}, absent
    except ValueError:
        return {}, "its stamp is unreadable"


def _changed(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [key for key, value in now.items() if then.get(key) != value]


def write_stamp(name: str, made_from: Mapping, outputs: list[Path], notes: Mapping) -> None:
    """Record a finished run; written last, so that a run without a stamp never counts as done."""
    root = session.root()
    made = {str(path.relative_to(root)): digests.file_sha256(path) for path in sorted(outputs)}
    stamp = {"inputs": made_from, "outputs": made, "run": notes}
    path = stamp_file(name, made_from["profile"])
    session.write_atomically(path, json.dumps(stamp, indent=1) + "\n")


def figures(name: str, profile: str) -> Path:
    """Return the folder of a notebook's figures: figures/02_tasep[/evidence][/full]."""
    base = session.root() / ("build/smoke" if profile == "smoke" else "figures")
    folder = base / lesson_of(name) / ("evidence" if name.startswith(EVIDENCE) else "")
    return folder / profile if profile in ("full", "paper") else folder


def rows_name(profile: str) -> str:
    """Return the name of the file of rows: results.json, or results.PROFILE.json."""
    return f"results.{profile}.json" if profile in ("full", "paper") else "results.json"


def rows_file(name: str, profile: str) -> Path:
    """Return where the rows of a lesson or of its evidence lie: beside the lesson's figures."""
    folder = figures(lesson_of(name), "smoke" if profile == "smoke" else "quick")
    return folder / rows_name(profile)


def best_rows(lesson: str) -> dict[str, dict]:
    """Return {claim: committed row with its profile}, full before paper before quick.

    A profile that could not test a claim does not hide the one that did.
    """
    found: dict[str, dict] = {}
    for profile in ("quick", "paper", "full"):
        path = rows_file(lesson, profile)
        for claim, row in json.loads(path.read_text() if path.is_file() else "{}").items():
            if row["verdict"] != "not tested here" or claim not in found:
                found[claim] = row | {"profile": profile}
    return found


def committed_text(name: str, made_from: Mapping) -> str:
    """Return the stamp that is committed with a set: its inputs, and the definitions by name."""
    names = closure(code_cells(read_notebook(name)))[1].names()
    return json.dumps({"inputs": made_from, "definitions": names}, indent=1) + "\n"


def committed_sets() -> list[tuple[str, str]]:
    """Return (notebook, profile) of each set of figures or rows that lies in figures/."""
    return [
        (name, profile)
        for profile in COMMITTED
        for name in notebooks()
        if any(figures(name, profile).glob("*.png"))
        or (recorder(name) == name and rows_file(name, profile).is_file())
    ]


def reason_older(name: str, profile: str) -> str:
    """Return in what a committed set is older than the code that is committed, "" if in nothing."""
    stamp, missing = _read(figures(name, profile) / "stamp.json", "it has no stamp")
    if missing:
        return missing
    then = stamp["inputs"]
    changed = _changed(then, inputs(name, profile, then["parameters"]))
    if "lib" in changed:
        changed[changed.index("lib")] = f"lib ({_differing(name, stamp['definitions'])})"
    return ", ".join(changed)


def _differing(name: str, then: Mapping[str, str], most: int = 6) -> str:
    """The definitions that differ from those of a stamp, by name."""
    now = closure(code_cells(read_notebook(name)))[1].names()
    differing = sorted(key for key in {*now, *then} if now.get(key) != then.get(key))
    more = f" and {len(differing) - most} more" if len(differing) > most else ""
    return ", ".join(differing[:most]) + more or "what is called where"
