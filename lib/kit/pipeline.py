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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import nbformat

from lib.kit import crew, kernels, progress, session, stamps

LARGEST_NOTEBOOK = 1_000_000  # bytes
BUSY = 600  # seconds that a machine with other work may take to start a kernel or pass an output on
WIDGET = "application/vnd.jupyter.widget-view+json"  # has no state in a file
INTERRUPTED = 130  # the exit status of a shell after Ctrl-C


class RunFailed(Exception):
    """A notebook did not run to its end; `kept` is where its executed copy lies."""

    def __init__(self, kept: Path, cause: BaseException):
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.kept = kept


def run(names: list[str], profile: str, settings: Iterable, force: bool = False) -> int:
    """Run what is stale of the named notebooks (all if none is named); return the exit status.

    Those of several numbers run side by side, as many as fit.
    """
    chosen, settings = stamps.chosen(names), dict(settings)
    checked = {name: _checked_parameters(name, profile, settings) for name in chosen}
    old = [k for k, own in checked.items() if force or stamps.reason_stale(k, profile, own)]
    width = 1 if profile == "paper" else crew.room(old)  # a checkpoint may fill the memory
    if width == 1:
        return _each(chosen, lambda name: _run_if_stale(name, profile, settings, force))
    for name in chosen:
        if name not in old:
            print(f"{name} {profile}: up to date", flush=True)
    return _run_crew(old, profile, settings, force, width)


def _run_crew(names: list[str], profile: str, settings: Mapping, force: bool, width: int) -> int:
    """Run each in a process of its own; the last line printed names the failed notebooks."""
    command = [sys.executable, "-m", "lib.kit.pipeline", "run", "--profile", profile]
    command += ["--force"] * force + [f"--set={key}={value!r}" for key, value in settings.items()]
    ended = {k: status for k, status in crew.run(names, command, width).items() if status}
    kept = {k: _kept(k, profile).relative_to(session.root()) for k in ended}
    _tell_failed(
        str(kept[k]) if status == 1 else f"{k} (exit status {status}, no copy)"
        for k, status in ended.items()
    )
    return 2 if 2 in ended.values() else int(bool(ended))


def _each(names: list[str], act: Callable[[str], None]) -> int:
    """Go on after a failure; the last line printed names the failed notebooks."""
    failed = []
    for name in stamps.chosen(names):
        try:
            act(name)
        except RunFailed as failure:
            print(f"{name}: {failure}", flush=True)
            failed.append(str(failure.kept.relative_to(session.root())))
    _tell_failed(failed)
    return int(bool(failed))


def _tell_failed(places: Iterable[str]) -> None:
    if text := ", ".join(places):
        print(f"failed, kept with its traceback: {text}", flush=True)


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
    session.check_profile(profile)
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


def _kept(name: str, profile: str) -> Path:
    """Where the executed copy of a run that failed lies."""
    return session.root() / "build" / "failed" / f"{name}.{profile}.ipynb"


def _execute(name: str, profile: str, parameters: Mapping, made_from: Mapping) -> float:
    """Run one notebook into its staging folder; return the seconds it took."""
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
            _run_cells(stamps.notebooks()[name], partial, parameters, cell_starts)
    except BaseException as cause:  # also an interrupt: what ran is kept, nothing counts as done
        kept = _kept(name, profile)
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
        session.write_atomically(staging / "printed.md", printed(book, profile))
    return time.monotonic() - started


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


def _run_cells(source: Path, target: Path, parameters: Mapping, cell_starts: Callable) -> None:
    """Run the cells of a notebook in a new kernel.

    A kernel binds ports that were free when they were chosen for it. Where another process has
    taken one meanwhile it dies before its first cell, and another kernel is started.
    """
    import papermill

    for library in ("papermill", "asyncio"):  # what goes wrong is raised as well
        logging.getLogger(library).setLevel(logging.CRITICAL)
    for tries_left in (2, 1, 0):
        try:
            papermill.execute_notebook(
                *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, target)),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=session.root(),
                progress_bar={"disable": not sys.stderr.isatty()},
                start_timeout=BUSY,
                iopub_timeout=BUSY,
                on_cell_start=cell_starts,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
            return
        except RuntimeError as error:
            if not tries_left or "Kernel died before" not in str(error):
                raise


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
    """Time, host and commit of a run, "" outside a repository or without git: for build/ only."""
    command = ["git", "-C", str(session.root()), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        commit = ""
    return {"seconds": round(seconds, 1), "host": platform.node(), "commit": commit}


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
    if (missing and run(missing, "quick", {}, force=True)) or run(chosen, "quick", {}):
        return 1
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
            cell.outputs = [item for item in ran.outputs if WIDGET not in item.get("data", {})]
            for result in (o for o in cell.outputs if o.output_type == "execute_result"):
                result.execution_count = count
    text = nbformat.writes(source) + "\n"
    refuse_leaks(name, source)
    if len(text.encode()) > LARGEST_NOTEBOOK:
        raise ValueError(f"{name} would have {len(text)} bytes, more than {LARGEST_NOTEBOOK}")
    return text


def refuse_leaks(name: str, book: nbformat.NotebookNode) -> None:
    """Raise ValueError when outputs name this machine: its paths or its host name."""
    outputs = [item for cell in book.cells for item in cell.get("outputs", [])]
    text = json.dumps([item for item in outputs if "image/png" not in item.get("data", {})])
    secrets = [str(session.root()), f"{Path.home()}/", sys.prefix, platform.node()]
    found = [s for s in secrets if len(s) > 4 and re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text)]
    if found:
        raise ValueError(f"outputs of {name} contain {found}: keep paths and hosts out of them")


def rehearse(names: list[str]) -> int:
    """Run the paper profile with the tiny sizes of each notebook's `kit.rehearse` metadata."""
    return _each(names, _rehearse)


def _rehearse(name: str) -> None:
    sizes = stamps.read_notebook(name).metadata.get("kit", {}).get("rehearse")
    reason = "its metadata has no kit.rehearse (it has no paper-size checkpoints)"
    if sizes is not None:
        folders = [v for v in sizes.values() if isinstance(v, str) and v.startswith("cache/")]
        missing = [folder for folder in folders if not (session.root() / folder).is_dir()]
        reason = f"{missing[0]} was not written on this machine" if missing else ""
    if reason:
        print(f"{name}: skipped, {reason}")
        return
    parameters = _checked_parameters(name, "paper", sizes)
    _execute(name, "paper", parameters, stamps.inputs(name, "paper", parameters))
    print(f"{name}: rehearsed, outputs in build/run/paper/{name}")


def verify() -> int:
    """List what in figures/ is older than its code, and in what; return 1 if any quick set is."""
    older = {pair: stamps.reason_older(*pair) for pair in stamps.committed_sets()}
    for (name, profile), reason in older.items():
        print(f"{name} {profile}: {f'older than its code: {reason}' if reason else 'current'}")
    count = sum(map(bool, older.values()))
    print(f"{count} of {len(older)} committed sets are older than their code")
    return int(any(reason for (_, profile), reason in older.items() if profile == "quick"))


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
    """Each command with what it does; the names of its arguments are those of the function."""
    parser = argparse.ArgumentParser(prog="python -m lib.kit.pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(act: Callable[..., int], text: str, *, names: bool = False) -> Callable:
        sub = commands.add_parser(act.__name__, help=text, description=text)
        sub.set_defaults(act=act)
        if names:
            sub.add_argument("names", nargs="*", metavar="NAME", help="notebooks, by default all")
        return sub.add_argument

    profile = {"default": "quick", "help": ", ".join(session.PROFILES)}
    option = command(run, "run what is stale", names=True)
    option("--profile", **profile)
    option("--set", action="append", type=_setting, default=[], dest="settings")
    option("--force", action="store_true", help="run also what is up to date")
    command(stale, "say what would run, and why")("--profile", **profile)
    command(refresh, "write outputs into notebooks/", names=True)
    command(rehearse, "the paper profile with tiny sizes", names=True)
    command(verify, "list what in figures/ is older than its code")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = vars(_parser().parse_args(arguments))
    began = time.time()
    try:
        crew.join()
        return given.pop("act")(**given)
    except (ValueError, OSError) as error:  # of a disk: full, or not to be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        entries = session.cache_folder().rglob("*.npz")
        kept = sum(path.stat().st_mtime >= began for path in entries)
        print(f"interrupted, {kept} items kept, run again", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # headings have letters that not every locale has
        stream.reconfigure(errors="replace")
    sys.exit(main())
