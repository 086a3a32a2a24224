"""The files that describe the environment agree with each other and with what is installed."""

import importlib.metadata
import importlib.resources
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import lib
from lib.kit import environment

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = environment.pins(
    "\n".join([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
)
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def test_every_declared_dependency_has_one_exact_version():
    assert len(DECLARED) == len(PROJECT["dependencies"]) + len(
        PROJECT["optional-dependencies"]["dev"]
    )


def test_the_lock_holds_every_declared_version():
    assert DECLARED.items() <= environment.pins(LOCK).items()


def test_the_conda_file_holds_the_same_direct_pins_and_python():
    *plain, pip = CONDA["dependencies"]
    assert plain == [f"python{PROJECT['requires-python']}", "pip"]
    assert environment.pins("\n".join(pip["pip"])) == DECLARED


RELEASES = [f"3.{minor}.{micro}" for minor in range(11, 15) for micro in range(30)]


def test_every_file_that_names_the_range_of_pythons_names_the_same():
    (oldest, newest) = environment.OLDEST, environment.NEWEST
    assert RELEASES[0] == f"{oldest[0]}.{oldest[1]}.0" and RELEASES[-1].startswith("3.14.")
    declared = SpecifierSet(PROJECT["requires-python"])
    assert all(declared.contains(release) for release in RELEASES)
    assert not declared.contains("3.10.20") and not declared.contains("3.15.0")
    tried = re.search(r"^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    named = {f"python3.{minor}" for minor in range(oldest[1], newest[1] + 1)}
    assert set(tried.split()) == named | {"python3", "python"}
    for text in (LOCK, (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()):
        assert "3.11 to 3.14" in text


@pytest.mark.parametrize("name", sorted(environment.pins(LOCK)))
def test_every_locked_package_admits_every_release_of_the_range(name):
    try:
        declared = importlib.metadata.metadata(name)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        pytest.fail(f"{name} is not installed: make setup")
    refused = [r for r in RELEASES if not SpecifierSet(declared or "").contains(r)]
    assert not refused, f"{name} wants {declared}: lock a version that admits {refused}"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ((3, 10, 13), "expected 3.11 to 3.14"),
        ((3, 11, 0), ""),
        ((3, 14, 7), ""),
        ((3, 15, 0), "expected 3.11 to 3.14"),
    ],
)
def test_a_python_outside_the_range_is_told_the_range(monkeypatch, version, said):
    monkeypatch.setattr(environment.sys, "version_info", version)
    assert said in environment.why_unfit() and bool(said) == bool(environment.why_unfit())
    assert (environment.wrong_version() in environment.problems()) == bool(said)


def test_a_python_without_venv_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    assert "python3-venv" in environment.why_unfit()
    assert environment.problems() == []  # an environment that is there needs no venv


def test_the_lock_is_transitive_and_fits_every_machine():
    pins = environment.pins(LOCK)
    for name in DECLARED:
        for requirement in importlib.metadata.requires(name) or []:
            plain = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
            assert plain in pins or ";" in requirement, f"{name} needs {plain}"
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not [line for line in lines if re.search("nvidia|cuda|triton", line)]


def test_this_environment_meets_the_lock():
    assert environment.problems() == []


def test_a_wrong_version_is_noticed(monkeypatch):
    monkeypatch.setattr(environment, "_installed", lambda name: {"numpy": "1.0"}.get(name, ""))
    found = environment.problems()
    assert f"numpy is 1.0, expected {DECLARED['numpy']}" in found
    assert f"torch is absent, expected {DECLARED['torch']}" in found


@pytest.fixture
def nowhere_to_write(monkeypatch, tmp_path):
    """Checkout and home cannot be written to, a folder for temporary files can."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(lib.os, "access", lambda path, mode: False)
    monkeypatch.setattr(lib.tempfile, "gettempdir", lambda: str(tmp_path))
    yield tmp_path / f"numba-{os.getuid()}"
    os.environ.pop("NUMBA_CACHE_DIR", None)


def test_a_read_only_checkout_without_home_compiles_in_a_folder_of_the_users_own(nowhere_to_write):
    lib._find_a_place_for_compiled_code()
    assert os.environ["NUMBA_CACHE_DIR"] == str(nowhere_to_write)
    assert nowhere_to_write.stat().st_mode & 0o777 == 0o700


def test_code_that_another_user_may_have_planted_is_not_run(nowhere_to_write, monkeypatch):
    nowhere_to_write.mkdir()
    owner = os.getuid()
    monkeypatch.setattr(lib.os, "getuid", lambda: owner + 1)
    nowhere_to_write.rename(nowhere_to_write.with_name(f"numba-{owner + 1}"))
    lib._find_a_place_for_compiled_code()
    assert "NUMBA_CACHE_DIR" not in os.environ


def test_a_place_that_numba_has_stays(nowhere_to_write, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    lib._find_a_place_for_compiled_code()
    assert os.environ["NUMBA_CACHE_DIR"] == "mine"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(lib.os, "access", lambda path, mode: "physics" in str(path))
    lib._find_a_place_for_compiled_code()
    assert "NUMBA_CACHE_DIR" not in os.environ and not nowhere_to_write.exists()


def test_torchvision_is_absent_or_fits_torch():
    if importlib.util.find_spec("torchvision"):
        import torchvision  # noqa: F401 (must be the same build, CPU or CUDA, as torch)


def test_dicebear_is_the_local_library_and_not_the_web_client_of_the_same_name():
    assert importlib.metadata.version("dicebear-core")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("dicebear")
    from dicebear import Style

    assert callable(Style)


def test_the_notice_names_creator_source_and_licence_of_the_faces():
    style = importlib.resources.files("dicebear_styles") / "personas.json"
    meta = json.loads(style.read_text())["meta"]
    notice = (ROOT / "NOTICE").read_text()
    for part in (meta["creator"], meta["source"], meta["license"]):
        assert part["name"] in notice and part["url"] in notice


def test_the_citation_file_is_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == PROJECT["version"]
    assert len(citation["references"]) == 3
    for work in (citation, *citation["references"]):
        assert work["title"] and work["authors"]
        assert all({"name"} <= set(a) or {"family-names"} <= set(a) for a in work["authors"])
    assert all({"type", "title", "authors"} <= set(work) for work in citation["references"])


@pytest.mark.skipif(
    not (shutil.which("git") and (ROOT / ".git").exists()), reason="not a git checkout"
)
@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("lib/kit/run.py", False),
        ("models/avatars-ddpm/model.safetensors", False),
        ("figures/01_ising/map.png", False),
        ("notebooks/01_ising.ipynb", False),
        ("build/run/x", True),
        ("cache/x", True),
    ],
)
def test_git_ignores_what_is_generated_and_nothing_else(path, ignored):
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT)
    assert done.returncode == (0 if ignored else 1)


def test_continuous_integration_runs_the_tests_and_hides_no_failure():
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -eo pipefail" in script and script.rstrip().endswith("make test")
    makefile = (ROOT / "Makefile").read_text()
    recipes = [recipe_of(makefile, target) for target in ("test", "pytest-first", "pytest-second")]
    assert all("|| true" not in recipe and "\n\t-" not in recipe for recipe in recipes)
    assert recipes[0].rstrip().endswith("pytest-first pytest-second")
    assert recipes[1].index("--profile smoke") < recipes[1].index("tests/test_results.py")


def recipe_of(makefile, target):
    return makefile.partition(f"\n{target}:")[2].partition("\n\n")[0]


def test_the_two_halves_of_the_tests_are_all_of_them_once():
    makefile = (ROOT / "Makefile").read_text()
    first, second = (
        recipe_of(makefile, target).split() for target in ("pytest-first", "pytest-second")
    )
    named = {path for path in first if path.startswith("tests/")}
    assert named == {path.removeprefix("--ignore=") for path in second if "--ignore" in path}
    assert "tests" in second and all((ROOT / path).exists() for path in named)
    assert "--nbval-lax" in first and "$(NOTEBOOKS:%=notebooks/%.ipynb)" in first
