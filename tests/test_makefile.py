"""Targets of the Makefile, in a copy of it: what is one, what is not, and what a number runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.kit import environment

ROOT = Path(__file__).resolve().parents[1]
LESSONS = ["01_ising", "03_diffusion_phases", "10_more"]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine")


@pytest.fixture
def checkout(tmp_path):
    """Makefile, notebooks and folders without content, where a path has a space and an umlaut."""
    folder = tmp_path / "a kit für alle"
    for name in ("notebooks/evidence", "tests", "lib/kit", "benchmarks", "models", "figures"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "lib" / "kit" / "environment.py", folder / "lib" / "kit")
    for name in [*LESSONS, "evidence/03_diffusion_phases"]:
        (folder / "notebooks" / f"{name}.ipynb").touch()
    return folder


def make(folder, *arguments):
    """Run make with a stand-in for Python, so that nothing is installed and nothing runs."""
    ignored = ("VIRTUAL_ENV", "CONDA_PREFIX", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEFILES")
    outside = {name: value for name, value in os.environ.items() if name not in ignored}
    python = folder.parent / "python"  # PYTHONS is a list: this name has no space in it
    python.is_symlink() or python.symlink_to(sys.executable)
    command = ["make", "--no-print-directory", f"PYTHONS={python}", *arguments]
    return subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True)


def calls(folder, *targets):
    """What the recipes of the targets hand to the pipeline, continued lines in one."""
    done = make(folder, "PYTHON=true", *targets)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if "lib.kit.pipeline" in line]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tests", "test"),
        ("figurse", "figures"),
        ("lib", "lab"),
        ("benchmarks", "bench"),
        ("01_isign", "01_ising"),
        ("03_diffusion_phases.ipynb", "03_diffusion_phases"),
    ],
)
def test_a_mistake_is_answered_with_the_nearest_target(checkout, typed, meant):
    done = make(checkout, typed)
    assert done.returncode == 2 and f'no target "{typed}": did you mean "{meant}"?' in done.stderr


@pytest.mark.parametrize("typed", ["notebooks", "Makefile", "zzz", "99", "it's", "$(shell ls)"])
def test_what_is_near_to_nothing_is_refused_too(checkout, typed):
    done = make(checkout, typed.replace("$", "$$"))
    assert done.returncode == 2 and "no target" in done.stderr and "make help" in done.stderr


def test_a_mistake_behind_a_right_target_is_found_before_anything_runs(checkout):
    (checkout / "build").mkdir()
    done = make(checkout, "-j2", "clean", "figurse")
    assert done.returncode == 2 and (checkout / "build").is_dir()


@pytest.mark.parametrize("folder", ["models", "figures"])
def test_a_target_runs_though_a_folder_has_its_name(checkout, folder):
    assert "Nothing to be done" not in make(checkout, "PYTHON=true", folder).stdout


@pytest.mark.parametrize("number", ["3", "03", "1", "10", "evidence/03_diffusion_phases"])
def test_numbers_and_evidence_go_to_the_pipeline_as_they_are(checkout, number):
    (line,) = calls(checkout, number)
    assert line.endswith(f'run --profile "quick" {number}')


@pytest.mark.parametrize(
    "copy", ["01_ising-Copy1.ipynb", "01_ising (1).ipynb", "Untitled.ipynb", "01_ising.txt"]
)
def test_a_copy_beside_a_notebook_is_no_target_and_breaks_none(checkout, copy):
    before = make(checkout, "help").stdout
    (checkout / "notebooks" / copy).touch()
    assert make(checkout, "help").stdout == before
    assert len(calls(checkout, "1")) == 1
    assert make(checkout, copy.removesuffix(".ipynb")).returncode == 2


def test_help_lists_every_target_that_says_what_it_is_for(checkout):
    said = make(checkout, "help").stdout
    described = re.findall(r"^(\S+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(described) > 10 and all(f"  {target} " in said for target in described)
    assert make(checkout).stdout == said


def test_without_a_python_that_fits_it_says_what_was_found(checkout):
    old = checkout / "old"
    old.write_text("#!/bin/sh\n[ \"$1\" = -V ] && echo 'Python 2.7.18' || exit 1\n")
    old.chmod(0o755)
    done = make(checkout, "setup", "PYTHONS=./old no-such-python")
    assert done.returncode == 2 and "./old: Python 2.7.18" in done.stderr
    allowed = " to ".join(".".join(map(str, v)) for v in (environment.OLDEST, environment.NEWEST))
    assert f"No Python from {allowed} found: tried ./old no-such-python." in done.stderr


def test_the_first_python_that_fits_builds_the_environment(checkout):
    (checkout / "requirements.lock").write_text("")
    (checkout / "pyproject.toml").write_text("")
    for name, status in (("old", 1), ("new", 0)):
        script = checkout / name
        script.write_text(f'#!/bin/sh\necho "{name} $*" >> calls\nexit {status}\n')
        script.chmod(0o755)
    make(checkout, "setup", "PYTHONS=./old ./new ./never")
    called = (checkout / "calls").read_text()
    assert "old -I" in called and "never" not in called
    assert "new -m venv --clear .venv" in called and "old -m venv" not in called
