"""The made parts of the README say what lies in notebooks/ and figures/; the rest stays."""

import nbformat
import pytest
from conftest import write_notebook

from lib.kit import readme, results

CARD = (
    "# 01\n\n| | |\n| --- | --- |\n| **Time** | `quick` 3 min on two cores |\n| **Memory** | 1 GB |"
)
EXERCISES = (
    "# Tasks\n\n**1 (predict).** What is *x*? Then\nsee.\n\n"
    "**2 (change): your own.** Change it.\n\n**3 (derive).** Show that a|b\nholds. Hint: no."
)
PAGE = "before\n{}between\n<!-- scorecard -->\n<!-- /scorecard -->\nafter\n"
MAP = "<!-- figure map -->\nstale\n<!-- /figure map -->\n"


@pytest.fixture
def page(root):
    path = write_notebook(root, EXERCISES)
    book = nbformat.read(path, as_version=4)
    book.cells.insert(0, nbformat.v4.new_markdown_cell(CARD))
    nbformat.write(book, path)
    figures = root / "figures" / "01_ising"
    figures.mkdir(parents=True)
    for name in ("b", "a"):
        (figures / f"{name}.png").touch()
    (root / "README.md").write_text(PAGE.format(MAP))
    return root / "README.md"


def test_the_figure_map_names_figures_command_time_and_exercises(page):
    (row,) = readme.figure_map().splitlines()[2:]
    assert row == (
        "| [01_ising](notebooks/01_ising.ipynb) "
        "| [a](figures/01_ising/a.png), [b](figures/01_ising/b.png) | `make 01_ising` "
        "| `quick` 3 min on two cores "
        "| predict: What is *x*?; change: your own; derive: Show that a\\|b holds |"
    )


def test_the_readme_keeps_its_text_around_what_is_made(page):
    readme.write()
    once = page.read_text()
    readme.write()
    assert page.read_text() == once and "stale" not in once
    assert once.startswith("before\n<!-- figure map -->\n| notebook |")
    assert "\nbetween\n<!-- scorecard -->\n| claim |" in once
    assert once.endswith(f"{len(results.CLAIMS)} open\n<!-- /scorecard -->\nafter\n")


@pytest.mark.parametrize(
    "text", ["no markers", PAGE.format("<!-- /figure map --><!-- figure map -->")]
)
def test_a_readme_without_markers_is_refused(page, text):
    page.write_text(text)
    with pytest.raises(ValueError, match="README.md needs"):
        readme.write()
    assert page.read_text() == text
