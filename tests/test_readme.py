"""The README is true: its links lead somewhere, its commands exist, its example runs."""

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = README.partition("## Figure map")[2].partition("\n## ")[0]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_link_leads_to_a_file_or_a_heading():
    headings = {re.sub(r"[^a-z ]", "", h.lower()).replace(" ", "-") for h in headings_of(README)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def headings_of(text):
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def test_every_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    targets |= {path.stem for path in NOTEBOOKS}
    named = set(re.findall(r"(?:`|^)make ([a-z0-9_]+)", README, re.MULTILINE))
    assert {"figures", "test", "student", "rehearse"} <= named <= targets


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_figure_map_has_every_notebook_with_its_command_and_every_figure(path):
    (row,) = [line for line in MAP.splitlines() if f"](notebooks/{path.name})" in line]
    assert f"`make {path.stem}`" in row
    missing = [
        png.name
        for png in (ROOT / "figures" / path.stem).glob("*.png")
        if f"(figures/{path.stem}/{png.name})" not in row
    ]
    assert not missing, f"the figure map does not name {missing}"


def test_the_faces_are_attributed():
    from lib.training import avatars

    assert avatars.attribution() in README


def test_the_example_runs(monkeypatch):
    from lib.geometry import geodesics, potential

    short = functools.partial(potential.fit_direct, steps=20, grid=16)
    monkeypatch.setattr(potential, "fit_direct", short)
    monkeypatch.setattr(geodesics, "geodesic", functools.partial(geodesics.geodesic, points=9))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["path"].points.shape[-1] == 2
