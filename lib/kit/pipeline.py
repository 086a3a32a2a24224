"""Run notebooks headlessly and publish what they made; the one place that knows papermill.

A run writes below build/ and is moved into figures/ when it has succeeded as a whole; its stamp is
written last. `python -m lib.kit.pipeline --help` lists the commands.
"""

import argparse
import ast
import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat

from lib.kit import kernels, pages, progress, scorecard, session, stamps

PROFILES = ("smoke", "quick", "full", "paper")
LARGEST_NOTEBOOK = 1_000_000  # bytes
CELL_TIMEOUT = None  # full runs last a night
INTERRUPTED = 130  # the exit status of a shell after Ctrl-C


class RunFailed(Exception):
    """A notebook did not run to its end; `kept` is where its executed copy lies."""

    def __init__(self, kept: Path, cause: BaseException):
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.kept = kept


def run(names: list[str], profile: str, settings: Mapping[str, object], force: bool = False) -> int:
    """Run what is stale of the named notebooks (all if none is named); return the exit status.

    Goes on after a failure; the last line printed names the failed notebooks.
    """
    failed = []
    for name in stamps.chosen(names):
        try:
            _run_if_stale(name, profile, settings, force)
        except RunFailed as failure:
            print(f"{name}: {failure}", flush=True)
            failed.append(str(failure.kept.relative_to(session.root())))
    if failed:
        print(f"failed, kept with its traceback: {', '.join(failed)}", flush=True)
    return int(bool(failed))


def _run_if_stale(name: str, profile: str, settings: Mapping, force: bool) -> None:
    parameters = _checked_parameters(name, profile, settings)
    with _one_at_a_time(name, profile):
        reason = "forced" if force else stamps.reason_stale(name, profile, parameters)
        if not reason:
            print(f"{name} {profile}: up to date", flush=True)
            return
        print(f"{name} {profile}: running ({reason})", flush=True)
        made_from = stamps.inputs(name, profile, parameters)
        seconds = _execute(name, profile, parameters, made_from)
        stamps.stamp_file(name, profile).unlink(missing_ok=True)
        outputs = _publish_outputs(name, profile)
        stamps.write_stamp(name, made_from, outputs, _notes(seconds))
    places = sorted({str(path.parent.relative_to(session.root())) for path in outputs})
    where = f", written to {' and '.join(places)}" if places else ""
    print(f"{name} {profile}: done in {progress.duration(seconds)}{where}", flush=True)


def _checked_parameters(name: str, profile: str, settings: Mapping) -> dict[str, object]:
    """Parameters to inject; papermill itself would ignore a misspelt one."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}{session.nearest(profile, PROFILES)}")
    known = _declared_parameters(stamps.read_notebook(name))
    for setting in ("profile", *settings):
        if setting not in known:
            hint = session.nearest(setting, known)
            raise ValueError(f"{name} has no parameter {setting!r} in its parameters cell{hint}")
    return {**settings, "profile": profile}


def _declared_parameters(book: nbformat.NotebookNode) -> list[str]:
    """Names that the cell tagged `parameters` assigns."""
    tagged = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"expected one cell with the tag 'parameters', found {len(tagged)}")
    names = []
    for statement in ast.parse(tagged[0].source).body:
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


@contextlib.contextmanager
def _one_at_a_time(name: str, profile: str) -> Iterator[None]:
    """Let a second process with the same notebook and profile wait, and then find it up to date."""
    path = session.root() / "build" / "locks" / f"{name}.{profile}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _staging(name: str, profile: str) -> Path:
    return session.root() / "build" / "run" / profile / name


def _executed(name: str, profile: str) -> Path:
    return _staging(name, profile).with_suffix(".ipynb")


def _execute(name: str, profile: str, parameters: Mapping, made_from: Mapping) -> float:
    """Run one notebook into its staging folder; return the seconds it took."""
    import papermill

    for library in ("papermill", "asyncio"):  # what goes wrong is raised as well
        logging.getLogger(library).setLevel(logging.CRITICAL)
    staging = _staging(name, profile)
    partial = staging.with_suffix(".partial.ipynb")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    stamp = stamps.committed_text(name, made_from)
    started = time.monotonic()
    try:
        with (
            kernels.environment(staging, made_from),
            progress.lines(f"{name} {profile}", stamps.read_notebook(name)) as cell_starts,
        ):
            papermill.execute_notebook(
                str(stamps.notebooks()[name]).replace("{", "{{").replace("}", "}}"),
                str(partial).replace("{", "{{").replace("}", "}}"),  # papermill fills in braces
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=session.root(),
                progress_bar={"disable": not sys.stderr.isatty()},
                execution_timeout=CELL_TIMEOUT,
                on_cell_start=cell_starts,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except BaseException as cause:  # also an interrupt: what ran is kept, nothing counts as done
        kept = session.root() / "build" / "failed" / f"{name}.{profile}.ipynb"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if partial.is_file():
            os.replace(partial, kept)
        if isinstance(cause, KeyboardInterrupt):
            raise
        raise RunFailed(kept, cause) from cause
    os.replace(partial, _executed(name, profile))
    if profile in stamps.COMMITTED:
        session.write_atomically(staging / "stamp.json", stamp)
    if profile in ("full", "paper"):  # refresh publishes the outputs of quick only
        book = nbformat.read(_executed(name, profile), as_version=4)
        session.write_atomically(staging / "printed.md", pages.printed(book, profile))
    return time.monotonic() - started


def _publish_outputs(name: str, profile: str) -> list[Path]:
    """Move the staged files to where they belong; return their new paths.

    Rows lie in the folder of the lesson, also those of its evidence.
    """
    folder, rows = stamps.figures(name, profile), stamps.rows_file(name, profile)
    moves = {}
    for staged in sorted(_staging(name, profile).glob("*.*")):
        moves[staged] = rows if staged.name == rows.name else folder / staged.name
    leftovers = {path for path in folder.glob("*.*") if path.suffix in (".png", ".txt", ".json")}
    leftovers -= {folder / f"results{suffix}.json" for suffix in ("", ".full", ".paper")}
    if stamps.recorder(name) == name and profile in ("smoke", "quick"):
        leftovers |= {rows}
    for leftover in leftovers - set(moves.values()):
        leftover.unlink(missing_ok=True)
    for staged, target in moves.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)
    return list(moves.values())


def _notes(seconds: float) -> dict[str, object]:
    """Time, host and commit of a run: for build/ only."""
    return {"seconds": round(seconds, 1), "host": platform.node(), "commit": _commit()}


def _commit() -> str:
    """Commit of the checkout, "" outside a repository or on a machine without git."""
    command = ["git", "-C", str(session.root()), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def stale(profile: str) -> int:
    """Print each notebook's state; return 0."""
    for name in stamps.notebooks():
        parameters = _checked_parameters(name, profile, {})
        print(f"{name} {profile}: {stamps.reason_stale(name, profile, parameters) or 'up to date'}")
    return 0


def refresh(names: list[str]) -> int:
    """Write the outputs of the quick profile into notebooks/, running first what is stale."""
    chosen = stamps.chosen(names)
    missing = [name for name in chosen if not _executed(name, "quick").is_file()]
    status = run(missing, "quick", {}, force=True) if missing else 0
    status = status or run(chosen, "quick", {})
    if status:
        return status
    for name in chosen:
        source = stamps.read_notebook(name)
        executed = nbformat.read(_executed(name, "quick"), as_version=4)
        session.write_atomically(stamps.notebooks()[name], _with_outputs(name, source, executed))
        print(f"{name}: outputs written")
    return 0


def _with_outputs(name: str, source: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> str:
    """Text of the source notebook with the outputs of its executed copy."""
    cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    if [cell.source for cell in cells] != [cell.source for cell in source.cells]:
        raise ValueError(f"{name} changed while it ran: run the refresh again")
    count = 0
    for cell, ran in zip(source.cells, cells, strict=True):
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [_clean_output(item, count) for item in ran.outputs if _is_shown(item)]
    text = nbformat.writes(source) + "\n"
    refuse_leaks(name, source)
    if len(text.encode()) > LARGEST_NOTEBOOK:
        raise ValueError(f"{name} would have {len(text)} bytes, more than {LARGEST_NOTEBOOK}")
    return text


def _is_shown(output: nbformat.NotebookNode) -> bool:
    """Widgets have no state in a file."""
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _clean_output(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def refuse_leaks(name: str, book: nbformat.NotebookNode) -> None:
    """Raise ValueError when outputs name this machine: its paths or its host name."""
    outputs = [item for cell in book.cells for item in cell.get("outputs", [])]
    text = json.dumps([item for item in outputs if "image/png" not in item.get("data", {})])
    secrets = [str(session.root()), f"{Path.home()}/", sys.prefix, platform.node()]
    found = [s for s in secrets if len(s) > 4 and re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text)]
    if found:
        raise ValueError(f"outputs of {name} contain {found}: keep paths and hosts out of them")


def student(names: list[str]) -> int:
    """Write copies of the lessons without solutions and outputs to build/student/."""
    from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor

    for name in dict.fromkeys(map(stamps.lesson_of, stamps.chosen(names))):
        book = stamps.read_notebook(name)
        book, _ = TagRemovePreprocessor(remove_cell_tags={"solution"}).preprocess(book, {})
        book, _ = ClearOutputPreprocessor().preprocess(book, {})
        path = session.root() / "build" / "student" / f"{name}.ipynb"
        session.write_atomically(path, nbformat.writes(book) + "\n")
        print(path.relative_to(session.root()))
    return 0


def rehearse(names: list[str]) -> int:
    """Run the paper profile with the tiny sizes of each notebook's `kit.rehearse` metadata."""
    for name in stamps.chosen(names):
        sizes = stamps.read_notebook(name).metadata.get("kit", {}).get("rehearse")
        reason = _why_not_rehearsed(sizes)
        if reason:
            print(f"{name}: skipped, {reason}")
            continue
        parameters = _checked_parameters(name, "paper", sizes)
        try:
            _execute(name, "paper", parameters, stamps.inputs(name, "paper", parameters))
        except RunFailed as failure:
            print(f"{name}: {failure}")
            print(f"failed, kept with its traceback: {failure.kept.relative_to(session.root())}")
            return 1
        print(f"{name}: rehearsed, outputs in build/run/paper/{name}")
    return 0


def _why_not_rehearsed(sizes: Mapping | None) -> str:
    """Reason to leave a notebook out of the rehearsal, "" when there is none."""
    if sizes is None:
        return "its metadata has no kit.rehearse (it has no paper-size checkpoints)"
    folders = [v for v in sizes.values() if isinstance(v, str) and v.startswith("cache/")]
    missing = [folder for folder in folders if not (session.root() / folder).is_dir()]
    return f"{missing[0]} was not written on this machine" if missing else ""


def verify() -> int:
    """List what in figures/ is older than its code, and in what; return 1 if any quick set is."""
    older = {pair: stamps.reason_older(*pair) for pair in stamps.committed_sets()}
    for (name, profile), reason in older.items():
        print(f"{name} {profile}: {f'older than its code: {reason}' if reason else 'current'}")
    count = sum(map(bool, older.values()))
    print(f"{count} of {len(older)} committed sets are older than their code")
    return int(any(reason for (_, profile), reason in older.items() if profile == "quick"))


def show_scorecard(write: bool) -> int:
    """Print the totals; write SCORECARD.md and its summary in README.md when asked."""
    if write:
        pages.write()
    print(scorecard.terminal())
    return 0


def _setting(text: str) -> tuple[str, object]:
    """Parse `name=value`; a value that is no Python literal is taken as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected name=value")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.kit.pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in {
        "run": "run what is stale",
        "stale": "say what would run, and why",
        "refresh": "write outputs into notebooks/",
        "student": "copies without solutions and outputs",
        "rehearse": "the paper profile with tiny sizes",
        "verify": "list what in figures/ is older than its code",
        "scorecard": "print the totals of the scorecard",
    }.items():
        sub = commands.add_parser(command, help=text, description=text)
        if command in ("run", "refresh", "student", "rehearse"):
            sub.add_argument("names", nargs="*", metavar="NAME", help="notebooks, by default all")
        if command in ("run", "stale"):
            sub.add_argument("--profile", default="quick", help=", ".join(PROFILES))
        if command == "run":
            sub.add_argument("--set", action="append", type=_setting, default=[], dest="settings")
            sub.add_argument("--force", action="store_true", help="run also what is up to date")
        if command == "scorecard":
            sub.add_argument("--write", action="store_true", help="write README.md, SCORECARD.md")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = _parser().parse_args(arguments)
    actions = {
        "run": lambda: run(given.names, given.profile, dict(given.settings), given.force),
        "stale": lambda: stale(given.profile),
        "refresh": lambda: refresh(given.names),
        "student": lambda: student(given.names),
        "rehearse": lambda: rehearse(given.names),
        "verify": verify,
        "scorecard": lambda: show_scorecard(given.write),
    }
    began = time.time()
    try:
        return actions[given.command]()
    except (ValueError, OSError) as error:  # of a disk: full, or not to be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted, {_kept_since(began)} items kept, run again", file=sys.stderr)
        return INTERRUPTED


def _kept_since(began: float) -> int:
    """How many results the cache has got since then."""
    entries = session.cache_folder().rglob("*.npz")
    return sum(path.stat().st_mtime >= began for path in entries)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # headings have letters that not every locale has
        stream.reconfigure(errors="replace")
    sys.exit(main())
