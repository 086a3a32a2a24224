"""Three papers on the latent space of generative models: each room is described in README.md."""

import contextlib
import os
import tempfile
from pathlib import Path


def _find_a_place_for_compiled_code() -> None:
    """Name a folder for numba where it has none: a read-only checkout of a user without a home.

    Numba would say "no locator available" and not that NUMBA_CACHE_DIR is what it wants.
    """
    beside, home = Path(__file__).parent / "physics" / "__pycache__", os.path.expanduser("~")
    writable = (os.access(p, os.W_OK) for p in (beside if beside.exists() else beside.parent, home))
    if any(writable) or "NUMBA_CACHE_DIR" in os.environ or not hasattr(os, "getuid"):
        return
    folder = Path(tempfile.gettempdir()) / f"numba-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid():  # code of another user must not be run
            os.environ["NUMBA_CACHE_DIR"] = str(folder)


_find_a_place_for_compiled_code()
