"""Where this run stands: the root folder, and what `run.start` has set for the whole kernel."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PROFILES = ("smoke", "quick", "full", "paper")


@dataclass(frozen=True)
class Session:
    """What `run.start` announced: notebook, profile, seed, sizes and the folder for its outputs."""

    notebook: str
    profile: str
    seed: int
    sizes: dict
    output: Path


_current: Session | None = None


def announce(session: Session | None) -> None:
    """Make `session` the one that `results`, `plots` and `cache` refer to."""
    global _current
    _current = session


def active() -> Session | None:
    """Return the announced session, or None before `run.start`."""
    return _current


def current() -> Session:
    """Return the announced session.

    Raises ValueError when `run.start` has not been called in this Python session.
    """
    if _current is None:
        raise ValueError("no run has started: call run.start(profile, notebook=...) first")
    return _current


def root() -> Path:
    """Return the folder of notebooks/, figures/ and build/: `KIT_ROOT`, or the checkout."""
    return Path(os.environ.get("KIT_ROOT") or CHECKOUT).resolve()


def cache_folder() -> Path:
    """Return the folder of kept results: `KIT_CACHE`, or cache/ under the root."""
    return Path(os.environ.get("KIT_CACHE") or root() / "cache")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that offers the nearest of the known names."""
    known = list(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or known
    return f"; did you mean {' or '.join(close)}?" if close else ""


def check_profile(profile: str) -> None:
    """Raise ValueError for an unknown profile."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}{nearest(profile, PROFILES)}")


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`; a reader sees the old file or the whole new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
