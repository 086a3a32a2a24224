"""Is there a wheel of every pin for every Python of the range, on this kind of machine?

`make wheels`, a minute or two: the package index is asked for names of files, and no package is
loaded but pip itself, whose older releases do not ask for one Python on behalf of another.
"""

import concurrent.futures
import functools
import importlib.metadata
import json
import re
import subprocess
import venv

import pytest

from lib.kit import environment

LOCK = environment.pins((environment.CHECKOUT / "requirements.lock").read_text())
MINORS = range(environment.OLDEST[1], environment.NEWEST[1] + 1)


def bound_to_one_python(name: str) -> bool:
    """Wheels for any Python, or from one on, are held by Requires-Python, which needs no index."""
    tags = importlib.metadata.distribution(name).read_text("WHEEL") or ""
    return bool(re.search(r"^Tag: cp\d+-cp", tags, re.MULTILINE))


BOUND = sorted(filter(bound_to_one_python, LOCK))


@pytest.fixture(scope="module")
def pip(tmp_path_factory) -> list[str]:
    """Command of a recent pip in an environment of its own."""
    folder = tmp_path_factory.mktemp("pip")
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip"]
    install = [*command, "install", "--quiet", "--retries=1", "pip>=25.3"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index is reached: {done.stderr.strip().splitlines()[-1]}")
    return command


def offered(pip: list[str], python: str, name: str) -> list[str]:
    """Versions of which there is a wheel for that Python."""
    options = ["--python-version", python, "--only-binary", ":all:", "--json"]
    done = subprocess.run([*pip, "index", "versions", name, *options], capture_output=True)
    return json.loads(done.stdout)["versions"] if done.returncode == 0 else []


@pytest.mark.parametrize("python", [f"3.{minor}" for minor in MINORS])
def test_every_pin_has_a_wheel(pip, python):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(functools.partial(offered, pip, python), BOUND))
    without = [n for n, versions in zip(BOUND, found, strict=True) if LOCK[n] not in versions]
    assert len(BOUND) > 10 and not without, f"no wheel for Python {python}: {without}"


def test_a_python_that_has_no_wheels_is_noticed(pip):
    assert LOCK["numpy"] not in offered(pip, "3.9", "numpy")
