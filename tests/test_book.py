"""The book shows every page, keeps what a figure says in words, and asks no other site."""

import fnmatch
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from lib.kit import stamps

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_sphinx = pytest.mark.skipif(bool(ABSENT), reason=f"absent: {', '.join(ABSENT)} (make book)")
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


prepare = module("prepare")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return folder, prepare.write(folder)


def test_every_page_is_in_the_table_of_contents_once(source):
    _, pages = source
    index = (ROOT / "book" / "index.md").read_text()
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    entries = [re.sub(r".*<(.*)>", r"\1", line) for line in lines]
    used = set()
    for page in {p.with_suffix("").as_posix() for p in pages} - {"index"}:
        depth = page.count("/")
        at = [e for e in entries if e.count("/") == depth and fnmatch.fnmatchcase(page, e)]
        assert len(at) == 1, f"{page} is in the table of contents {len(at)} times"
        used.update(at)
    assert used == set(entries), "the table of contents names pages that there are not"


def test_all_of_the_repository_that_is_to_be_read_is_a_page(source):
    pages = {p.as_posix() for p in source[1]}
    wanted = {"README.md", "SCORECARD.md", *(f"notebooks/{n}.ipynb" for n in stamps.notebooks())}
    wanted |= {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")}
    wanted |= {f"api/{p.parent.name}.md" for p in (ROOT / "lib").glob("*/__init__.py")}
    assert wanted <= pages


def test_every_file_of_the_library_is_on_a_page_of_its_room(source):
    folder, _ = source
    text = "\n".join(page.read_text() for page in (folder / "api").glob("*.md"))
    shown = set(re.findall(r"automodule:: (\S+)", text))
    files = {p.relative_to(ROOT).with_suffix("") for p in (ROOT / "lib").glob("*/*.py")}
    assert {".".join(p.parts).removesuffix(".__init__") for p in files} <= shown


def test_links_and_pictures_of_the_pages_are_there(source):
    folder, pages = source
    for page in pages:
        for target in prepare.linked((folder / page).read_text(), ROOT / page.parent):
            assert (folder / target.relative_to(ROOT)).is_file(), f"{page} points to {target}"


def test_no_notebook_loses_an_alternative_text(source):
    folder, _ = source
    for name, path in stamps.notebooks().items():
        before = nbformat.read(path, as_version=4)
        after = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        said = [c.metadata.get("mystnb", {}).get("image", {}).get("alt") for c in after.cells]
        assert said == [alt_of(cell) for cell in before.cells], name


def alt_of(cell):
    texts = [o.get("metadata", {}).get("image/png", {}) for o in cell.get("outputs", [])]
    return next((text["alt"] for text in texts if text.get("alt")), None)


def figure(alt):
    metadata = {"image/png": {"alt": alt}}
    return nbformat.v4.new_output("display_data", {"image/png": PIXEL}, metadata=metadata)


def small(*outputs):
    new, solution = nbformat.v4, {"tags": ["solution"]}
    cells = [
        new.new_markdown_cell("# Small\n\n$$E = mc^2$$"),
        new.new_code_cell("plot()", outputs=list(outputs)),
        new.new_code_cell("answer = 42", metadata=solution),
        new.new_markdown_cell("It is *forty-two*.", metadata=solution),
        new.new_code_cell("1 / 0"),
    ]
    return new.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def test_two_figures_of_one_cell_are_refused(tmp_path):
    nbformat.write(small(figure("a"), figure("b")), tmp_path / "two.ipynb")
    with pytest.raises(ValueError, match="two.ipynb, cell 1 shows 2 figures: one a cell"):
        prepare.notebook(tmp_path / "two.ipynb")


class Page(HTMLParser):
    """Images, scripts and styles of a page, and the text inside of folded parts."""

    def __init__(self, text):
        super().__init__()
        self.alts, self.sources, self.folded, self.depth = [], [], "", 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.alts += [given.get("alt")] if tag == "img" else []
        if tag in ("script", "link", "img", "iframe", "source"):
            self.sources += filter(None, [given.get("src"), given.get("href")])
        self.depth += tag == "details"
        assert tag != "details" or "open" not in given

    def handle_endtag(self, tag):
        self.depth -= tag == "details"

    def handle_data(self, data):
        self.folded += data if self.depth else ""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page of a small notebook, built with the settings of the book. Nothing is executed."""
    folder = tmp_path_factory.mktemp("book")
    nbformat.write(small(figure('a "ridge" < wall')), folder / "raw.ipynb")
    source = folder / "source"
    source.mkdir()
    nbformat.write(prepare.notebook(folder / "raw.ipynb"), source / "small.ipynb")
    (source / "index.md").write_text("# Index\n\n```{toctree}\nsmall\n```\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", ROOT / "book", source]
    done = subprocess.run([*command, folder / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@needs_sphinx
def test_a_figure_keeps_its_alternative_text(built):
    assert 'a "ridge" < wall' in Page((built / "small.html").read_text()).alts


@needs_sphinx
def test_solutions_are_folded_and_nothing_else(built):
    folded = Page((built / "small.html").read_text()).folded
    assert "42" in folded and "forty-two" in folded
    assert (
        "plot" not in folded and "mc^2" not in folded and "1 / 0" not in re.sub(" +", " ", folded)
    )


@needs_sphinx
def test_formulas_are_set_by_a_file_of_the_site(built):
    sources = Page((built / "small.html").read_text()).sources
    (mathjax,) = (s.partition("?")[0] for s in sources if "mathjax" in s)
    assert (built / mathjax).is_file()


@needs_sphinx
def test_no_page_asks_another_site(built):
    whole = ROOT / "build" / "book" / "html"
    pages = [*built.glob("*.html"), *whole.rglob("*.html")]
    for path in (p for p in pages if "_static" not in p.parts):
        abroad = [s for s in Page(path.read_text()).sources if re.match(r"(https?:)?//", s)]
        assert not abroad, f"{path}: {abroad}"


@needs_sphinx
def test_docstrings_become_restructured_text():
    conf = module("conf")
    lines = "A |W> of `x_` and x_.\n\n    Z = a * b\n\nArgs:\n    x: the *value*\n".splitlines()
    conf.as_restructured(None, "function", "f", None, None, lines)
    text = "\n".join(lines)
    assert r"A \|W> of `x_` and x\_." in text and "::\n\n        Z = a * b" in text
    assert "Args:\n    x: the " + r"\*value\*" in text
    assert json.dumps(conf.html_theme_options)  # plain values, or Sphinx keeps no settings
