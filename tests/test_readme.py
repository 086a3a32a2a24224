"""The README is true: its links lead somewhere, its commands exist, its example runs."""

import functools
import re
from pathlib import Path

from lib.kit import pages, scorecard, stamps

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    lessons = {stamps.lesson_of(name) for name in stamps.notebooks()}
    targets |= set(stamps.notebooks()) | {str(int(name[:2])) for name in lessons}
    named = set(re.findall(r"(?:`|^)make ([a-z0-9_/]+)", README, re.MULTILINE))
    assert {"figures", "test", "student", "rehearse"} <= named <= targets


def test_the_scorecard_is_that_of_this_checkout():
    assert f"{pages.BEGIN}\n{scorecard.summary()}\n{pages.END}" in README, "run: make scorecard"
    assert (ROOT / "SCORECARD.md").read_text() == pages.scorecard_page(), "run: make scorecard"


def test_every_link_of_the_scorecard_leads_to_a_file():
    targets = re.findall(r"\]\(([^)]+)\)", pages.scorecard_page())
    assert targets and all((ROOT / target).exists() for target in targets)


def test_the_faces_are_attributed():
    from lib.faces import avatars

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
