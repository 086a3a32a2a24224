"""Made pages say what lies in notebooks/ and figures/; the text around them stays."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from small_notebooks import write_notebook

from book import scorecard
from lib.kit import pipeline, results

CARD = (
    "# 01\n\n| | |\n| --- | --- |\n| **Time** | `quick` 3 min on two cores |\n| **Memory** | 1 GB |"
)
PAGE = "before\n<!-- scorecard -->\nstale\n<!-- /scorecard -->\nafter\n"


@pytest.fixture
def page(root):
    for name, figures in (("01_ising", ""), ("evidence/01_ising", "evidence")):
        path = write_notebook(root, name=name)
        book = nbformat.read(path, as_version=4)
        book.cells.insert(0, nbformat.v4.new_markdown_cell(CARD))
        nbformat.write(book, path)
        folder = root / "figures" / "01_ising" / figures
        folder.mkdir(parents=True)
        for figure in ("b", "a"):
            (folder / f"{figure}.png").touch()
    (root / "README.md").write_text(PAGE)
    return root / "README.md"


def test_the_figure_map_names_figures_command_and_time(page):
    rows = scorecard.figure_map().splitlines()[2:]
    assert rows == [
        "| [01_ising](notebooks/01_ising.ipynb) "
        "| [a](figures/01_ising/a.png), [b](figures/01_ising/b.png) | `make 01_ising` "
        "| `quick` 3 min on two cores |",
        "| [evidence/01_ising](notebooks/evidence/01_ising.ipynb) "
        "| [a](figures/01_ising/evidence/a.png), [b](figures/01_ising/evidence/b.png) "
        "| `make evidence/01_ising` | `quick` 3 min on two cores |",
    ]


def test_the_readme_keeps_its_text_around_what_is_made(page):
    scorecard.write()
    once = page.read_text()
    scorecard.write()
    assert page.read_text() == once and "stale" not in once
    assert once.startswith("before\n<!-- scorecard -->\n| paper |")
    assert once.endswith("<!-- /scorecard -->\nafter\n")


def test_the_scorecard_holds_every_claim_and_links_to_the_notebook_that_records_it(page):
    scorecard.write()
    text = (page.parent / "SCORECARD.md").read_text()
    assert all(text.count(f"`{claim}`") == 1 for claim in results.CLAIMS)
    assert "[evidence/01_ising](notebooks/evidence/01_ising.ipynb)" in text
    assert "[02_tasep](notebooks/02_tasep.ipynb)" in text and scorecard.figure_map() in text


@pytest.mark.parametrize("text", ["no markers", "<!-- /scorecard --><!-- scorecard -->"])
def test_a_readme_without_markers_is_refused(page, text):
    page.write_text(text)
    with pytest.raises(ValueError, match="README.md needs"):
        scorecard.write()
    assert page.read_text() == text and not (page.parent / "SCORECARD.md").exists()


def said(text, name="stdout"):
    return new_code_cell("run()", outputs=[new_output("stream", name=name, text=text)])


def test_a_page_holds_what_was_printed_below_its_headings():
    book = new_notebook(
        cells=[
            new_markdown_cell("# Title\n\nwords"),
            new_markdown_cell("## Silent"),
            new_code_cell("x = 1"),
            new_markdown_cell("prose\n\n## Table\n\nmore prose"),
            said("a   1\nb   2\n"),
            said("a warning", name="stderr"),
            said("c   3\n"),
        ]
    )
    assert pipeline.printed(book, "full") == (
        "*Printed by the run of profile `full`.*\n\n"
        "## Table\n\n```\na   1\nb   2\n```\n\n```\nc   3\n```\n"
    )
