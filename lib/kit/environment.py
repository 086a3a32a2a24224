"""Does this Python meet the lock file? Runs as a plain script, before anything is installed.

`python -I lib/kit/environment.py` exits with 0 when it does, else prints what differs;
`--python` asks only whether an environment can be built with this Python; `--stamp` prints a digest
of what an installation depends on; `--summary` says what the machine has.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
OLDEST, NEWEST = (3, 11), (3, 14)  # a test holds the lock and pyproject.toml against them


def pins(text: str) -> dict[str, str]:
    """Return {normalised name: version} of the `name==version` lines of a requirements file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;#]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def wrong_version() -> str:
    """Return what is wrong with the version of this Python, "" when nothing is."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return ""
    allowed = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
    return f"Python is {platform.python_version()}, expected {allowed}"


def why_unfit() -> str:
    """Return why no environment can be built with this Python, "" when one can."""
    lacks = "" if importlib.util.find_spec("ensurepip") else "no venv (install python3-venv)"
    return wrong_version() or lacks


def problems() -> list[str]:
    """Return in what this interpreter differs from the lock file."""
    found = list(filter(None, [wrong_version()]))
    for name, version in pins((CHECKOUT / "requirements.lock").read_text()).items():
        installed = _installed(name)
        if installed != version:
            found.append(f"{name} is {installed or 'absent'}, expected {version}")
    return found


def _installed(name: str) -> str:
    """Installed version without its local tag (`+cpu`), "" when absent."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def stamp() -> str:
    """Return a digest of the lock, the declared dependencies and the place of the checkout."""
    parts = [(CHECKOUT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml")]
    return hashlib.sha256(b"\n".join([str(CHECKOUT).encode(), *parts])).hexdigest()


def summary() -> str:
    """Return one line on Python, torch, device and memory; imports what notebooks import."""
    import torch

    from lib.kit import cache, plots, results, run  # noqa: F401 (shows that they import)

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"ready: Python {platform.python_version()}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, {memory:.1f} GiB memory, {device}"
    )


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
    asked = {"--stamp": stamp, "--summary": summary, "--python": why_unfit}
    if len(arguments) == 1 and arguments[0] in asked:
        answer = asked[arguments[0]]()
        print(answer)
        return int(arguments == ["--python"] and answer != "")
    if found := problems():
        print("this environment does not meet requirements.lock:", *found, sep="\n  ")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
