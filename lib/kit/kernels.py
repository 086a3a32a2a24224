"""What the kernel of a headless run inherits."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib.kit import session


@contextlib.contextmanager
def environment(staging: Path, made_from: Mapping) -> Iterator[None]:
    """Set what the kernel inherits: this interpreter's kernel, this checkout's lib, the folders."""
    before = dict(os.environ)
    path = os.pathsep.join([str(session.CHECKOUT), *filter(None, [before.get("PYTHONPATH")])])
    os.environ.update(
        KIT_OUTPUT=str(staging),
        KIT_PROGRESS=str(staging.with_suffix(".progress")),
        KIT_INPUTS=json.dumps(made_from),
        PYTHONPATH=path,
        JUPYTER_PREFER_ENV_PATH="1",  # a user's own kernel named python3 must not win
        CUBLAS_WORKSPACE_CONFIG=":4096:8",  # is read when CUDA starts
        TQDM_DISABLE="1",  # no bars in the outputs; `run.bar` draws on the terminal
        # Threads that spin at a barrier stop each other as soon as the machine has other work.
        OMP_WAIT_POLICY=before.get("OMP_WAIT_POLICY", "PASSIVE"),
    )
    for name in ("KIT_PROFILE", "JUPYTER_PATH"):
        os.environ.pop(name, None)
    if sys.stderr.isatty():
        os.environ["KIT_TERMINAL"] = os.ttyname(sys.stderr.fileno())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
