"""Start a run (profile, seed, device, determinism), and map over work items resumably."""

import contextlib
import io
import multiprocessing
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from lib.kit import cache, session

PROFILES = ("smoke", "quick", "full", "paper")


@dataclass(frozen=True)
class Run:
    """What a notebook runs with; every size of `sizes` is also an attribute."""

    notebook: str
    profile: str
    seed: int
    device: str
    sizes: Mapping[str, object]

    def __getattr__(self, name: str) -> object:
        """Return the size called `name`."""
        sizes = self.__dict__.get("sizes", {})
        if name in sizes:
            return sizes[name]
        raise AttributeError(f"this run has no size {name!r}{session.nearest(name, sizes)}")


def start(profile: str, *, notebook: str, seed: int = 0, **sizes: tuple) -> Run:
    """Return the frozen record of this run; set seeds, determinism and the output folder.

    Each size is a tuple with the value for smoke, quick, full and, if given, paper (else that of
    full). The environment variable `KIT_PROFILE` replaces `profile`; only tests set it.

    Raises:
        ValueError: for an unknown profile, a bad notebook name or seed, or a size that is no tuple
            of three or four.
    """
    profile = os.environ.get("KIT_PROFILE") or profile
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}{session.nearest(profile, PROFILES)}")
    if not re.fullmatch(r"(evidence/)?\d\d_[a-z0-9_]+", notebook):
        raise ValueError(
            f"notebook is {notebook!r}: expected a name like '01_ising' or 'evidence/01_ising'"
        )
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed is {seed!r}: expected an integer, 0 or larger")
    chosen = {name: _choose(name, values, profile) for name, values in sizes.items()}
    _make_deterministic(seed)
    warnings.formatwarning = _warning_without_path
    session.announce(session.Session(notebook, profile, seed, chosen, _output_folder(notebook)))
    place = [] if _headless() else [f"figures go to build/interactive/{notebook}/"]
    print(" · ".join([notebook, f"profile {profile}", f"seed {seed}", *_describe(chosen), *place]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Run(notebook, profile, seed, device, chosen)


def tiles(items: Iterable, fn: Callable, *, label: str = "", parallel: bool = False) -> list:
    """Return [fn(item) for item in items]; each result is kept, so that a rerun resumes.

    parallel: as many processes as torch has threads compute first, each with one thread, which
    keeps small networks busier than all threads on one item. Only on Linux without a GPU, and not
    for code compiled by numba; elsewhere one item comes after the other. Seconds measured in `fn`
    are then those of one thread among others, and what it prints is dropped.

    Raises:
        KeyboardInterrupt: when interrupted; says how many items are finished and kept.
    """
    items = list(items)
    finished = []
    if parallel:
        _compute_ahead(items, fn, label)
    try:
        for item in bar(items, label):
            finished.append(cache.cached(fn, item))
    except KeyboardInterrupt:
        raise _stopped(len(finished), len(items)) from None
    return finished


def _stopped(finished: int, total: int) -> KeyboardInterrupt:
    return KeyboardInterrupt(
        f"stopped after {finished} of {total} items; these are kept, rerun to go on"
    )


def _compute_ahead(items: list, fn: Callable, label: str) -> None:
    """Fill the cache from several processes; what fails there is met again by the caller."""
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2 or sys.platform != "linux" or torch.cuda.is_available():
        return
    context = multiprocessing.get_context("fork")  # the others would have to pickle notebook code
    done = context.Value("i", 0)
    shares = [items[k::workers] for k in range(workers)]
    crew = [context.Process(target=_compute, args=(s, fn, done), daemon=True) for s in shares]
    try:
        for process in crew:
            process.start()
        for _ in bar(_arrivals(crew, done), label):
            pass
    except KeyboardInterrupt:
        raise _stopped(done.value, len(items)) from None
    finally:
        for process in crew:
            process.terminate()


def _compute(items: list, fn: Callable, done: object) -> None:
    torch.set_num_threads(1)  # nested tiles then run one after the other
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        for item in items:
            cache.cached(fn, item)
            with done.get_lock():
                done.value += 1


def _arrivals(crew: list, done: object) -> Iterator[int]:
    """The items as they are finished, until all processes have ended."""
    seen = 0
    while any(process.is_alive() for process in crew):
        time.sleep(0.1)
        yield from range(seen, seen := done.value)


def bar(items: Iterable, label: str = "") -> Iterable:
    """Return `items` with a progress bar: in the notebook, or in the terminal of a headless run."""
    if not _headless():
        return tqdm(items, desc=label, leave=False)
    return _terminal_bar(items, label)


def _terminal_bar(items: Iterable, label: str) -> Iterable:
    """Bar on the terminal that the pipeline names; a notebook's outputs stay free of it."""
    try:
        terminal = open(os.environ["KIT_TERMINAL"], "w")  # noqa: SIM115
    except (KeyError, OSError):
        yield from items
        return
    from tqdm import tqdm as text_bar

    with terminal:
        yield from text_bar(items, desc=label, leave=False, file=terminal, disable=False)


def _warning_without_path(message, category, *_) -> str:
    """A warning in a committed output must not name a machine's folder."""
    return f"{category.__name__}: {message}\n"


def _headless() -> bool:
    return bool(os.environ.get("KIT_OUTPUT") or os.environ.get("KIT_PROFILE"))


def _output_folder(notebook: str) -> Path:
    given = os.environ.get("KIT_OUTPUT")
    return Path(given) if given else session.root() / "build" / "interactive" / notebook


def _choose(name: str, values: tuple, profile: str) -> object:
    if not isinstance(values, tuple) or len(values) not in (3, 4):
        raise ValueError(f"size {name} is {values!r}: expected (smoke, quick, full[, paper])")
    return values[min(PROFILES.index(profile), len(values) - 1)]


def _describe(sizes: dict) -> list[str]:
    texts = (
        f"{name} {value:,}" if type(value) is int else f"{name} {value}"
        for name, value in sizes.items()
    )
    return [", ".join(texts)] if sizes else []


def _make_deterministic(seed: int) -> None:
    # Read when CUDA starts, hence a default only: the pipeline sets it before the kernel starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries that draw from the global generator)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
