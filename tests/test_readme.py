"""The README is true: its links lead somewhere, its commands exist, its example runs."""

import re
from pathlib import Path

import pytest
import torch

from book import scorecard
from lib.kit import stamps

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_or_a_heading(page):
    text = page.read_text()
    headings = {re.sub(r"[^a-z ]", "", h.lower()).replace(" ", "-") for h in headings_of(text)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def headings_of(text):
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def test_every_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    lessons = {stamps.lesson_of(name) for name in stamps.notebooks()}
    targets |= set(stamps.notebooks()) | {str(int(name[:2])) for name in lessons}
    texts = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?:`|^)make ([a-z0-9_/]+)", texts, re.MULTILINE))
    assert {"figures", "test", "student", "rehearse"} <= named <= targets


def test_the_plans_name_sections_that_the_lessons_have():
    plans = " ".join((ROOT / "docs/teaching.md").read_text().split())
    named = re.findall(r"\b(0\d)\.(\d+) ([^\W\d]+(?: [^\W\d]+)?)", plans)
    assert len(named) > 20
    for number, section, words in named:
        (name,) = (n for n in stamps.notebooks() if n.startswith(number))
        cells = [c.source for c in stamps.read_notebook(name).cells if c.cell_type == "markdown"]
        assert re.search(rf"^## {section}\. {words}", "\n".join(cells), re.MULTILINE), words


def test_the_scorecard_is_that_of_this_checkout():
    assert f"{scorecard.BEGIN}\n{scorecard.summary()}\n{scorecard.END}" in README, (
        "run: make scorecard"
    )
    assert (ROOT / "SCORECARD.md").read_text() == scorecard.scorecard_page(), "run: make scorecard"


def test_every_link_of_the_scorecard_leads_to_a_file():
    targets = re.findall(r"\]\(([^)]+)\)", scorecard.scorecard_page())
    assert targets and all((ROOT / target).exists() for target in targets)


def test_the_faces_are_attributed():
    from lib.faces import avatars

    assert avatars.attribution() in README


def test_the_example_of_a_family_says_what_it_prints():
    names = run_example("swaps.fit_swaps")
    metric, exact = names["fisher"](torch.zeros(1, 2))[0], torch.eye(2)
    assert torch.allclose(metric, torch.tensor([[1.04, -0.02], [-0.02, 1.04]]).double(), atol=0.01)
    assert (metric - exact).abs().max() < 0.05
    assert names["path"].length.item() == pytest.approx(5.68, abs=0.01)


def test_the_example_of_an_image_writes_another(tmp_path, monkeypatch):
    from lib.diffusion import images
    from lib.faces import attributes, avatars

    held_out = avatars.load("held-out", 64, pink=False)  # the model has not seen pink hair
    bare = (held_out.labels["eyewear"] == 0) & (held_out.labels["hat"] == 0)
    images.save(avatars.to_float(held_out.images[bare][:1]), tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    names = run_example("images.read")
    after = images.read("with-glasses.png", names["generator"])
    assert not attributes.labels(names["x"])["glasses"] and attributes.labels(after)["glasses"]


def test_the_example_of_a_checkpoint_writes_its_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example("mine.noise", str(ROOT / "models/avatars-ddpm"))
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_it_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 170


def run_example(holding, folder="FOLDER"):
    """The names after the Python block of the README that holds a text."""
    blocks = re.findall(r"```python\n(.*?)```", README.replace("FOLDER", folder), re.DOTALL)
    (code,) = (block for block in blocks if holding in block)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    return names
