"""Start a run (profile, seed, device, determinism), and map over work items resumably."""

import functools
import os
import random
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from lib.kit import cache, pools, progress, session


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
    full). The environment variable `KIT_PROFILE` replaces `profile`; only tests set it. Raises
    ValueError for an unknown profile, a bad notebook name or seed, or a size that is no tuple of
    three or four.
    """
    profile = os.environ.get("KIT_PROFILE") or profile
    session.check_profile(profile)
    if not re.fullmatch(r"(evidence/)?\d\d_[a-z0-9_]+", notebook):
        raise ValueError(
            f"notebook is {notebook!r}: expected a name like '01_ising' or 'evidence/01_ising'"
        )
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed is {seed!r}: expected an integer, 0 or larger")
    chosen = {name: _choose(name, values, profile) for name, values in sizes.items()}
    _make_deterministic(seed)
    # A warning in a committed output must not name a machine's folder.
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    own = session.root() / "build" / "interactive" / notebook
    output = Path(os.environ.get("KIT_OUTPUT") or own)
    session.announce(session.Session(notebook, profile, seed, chosen, output))
    place = [] if _headless() else [f"figures go to build/interactive/{notebook}/"]
    told = (f"{k} {v:,}" if type(v) is int else f"{k} {v}" for k, v in chosen.items())
    parts = notebook, f"profile {profile}", f"seed {seed}", ", ".join(told), *place
    print(" · ".join(filter(None, parts)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Run(notebook, profile, seed, device, chosen)


def tiles(items: Iterable, fn: Callable, *, label: str = "", parallel: bool = False) -> list:
    """Return [fn(item) for item in items]; each result is kept, so that a rerun resumes.

    parallel: what is not kept yet is computed several items at a time, each with one thread, which
    keeps small networks busier than all threads on one item: on the Dask cluster whose scheduler
    the environment variable `KIT_DASK` names, else in as many processes as torch has threads (only
    on Linux without a GPU, and not for code compiled by numba). Seconds measured in `fn` are then
    those of one thread among others, and what it prints is dropped. Raises KeyboardInterrupt, with
    how many items are finished and kept, and ValueError when the cluster cannot be used
    (`pools.on_cluster` has the reasons).
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
    """Fill the cache with what it lacks, several items at a time."""

    def is_kept(item: object) -> bool:
        return cache.path(fn, item).is_file()

    waiting = [item for item in items if not is_kept(item)]
    if not waiting:
        return
    if address := os.environ.get("KIT_DASK"):
        prepare = functools.partial(_go_on_elsewhere, session.active())
        arrivals = pools.on_cluster(address, waiting, fn, prepare)
    else:
        arrivals = pools.on_processes(waiting, fn)
    try:
        for _ in bar(arrivals, label, total=len(waiting)):
            pass
    except KeyboardInterrupt:
        arrivals.close()
        raise _stopped(sum(map(is_kept, items)), len(items)) from None
    finally:
        arrivals.close()


def _go_on_elsewhere(announced: session.Session | None) -> None:
    """Set in another process what `start` set here."""
    session.announce(announced)
    if announced:
        _make_deterministic(announced.seed)


def bar(items: Iterable, label: str = "", total: int | None = None) -> Iterable:
    """Return `items` with a progress bar: in the notebook, or in the terminal of a headless run.

    total: how many there will be, where `items` cannot tell.
    """
    if not _headless():
        return tqdm(items, desc=label, total=total, leave=False)
    return _terminal_bar(items, label, total)


def _terminal_bar(items: Iterable, label: str, total: int | None) -> Iterable:
    """Bar on the terminal that the pipeline names; a notebook's outputs stay free of it."""
    try:
        terminal = open(os.environ["KIT_TERMINAL"], "w", encoding="utf-8")  # noqa: SIM115
    except (KeyError, OSError):
        yield from progress.noted(items, label, total) if "KIT_PROGRESS" in os.environ else items
        return
    from tqdm import tqdm as text_bar

    with terminal:
        yield from text_bar(
            items, desc=label, total=total, leave=False, file=terminal, disable=False
        )


def _headless() -> bool:
    return bool(os.environ.get("KIT_OUTPUT") or os.environ.get("KIT_PROFILE"))


def _choose(name: str, values: tuple, profile: str) -> object:
    if not isinstance(values, tuple) or len(values) not in (3, 4):
        raise ValueError(f"size {name} is {values!r}: expected (smoke, quick, full[, paper])")
    return values[min(session.PROFILES.index(profile), len(values) - 1)]


def _make_deterministic(seed: int) -> None:
    # Read when CUDA starts, hence a default only: the pipeline sets it before the kernel starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries that draw from the global generator)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
