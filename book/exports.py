"""Notebooks as HTML: `make html`, a page of each; `make slides`, reveal.js that asks no other site.

Every figure keeps its alternative text, which nbconvert leaves out. What is on a slide says the
metadata `slideshow.slide_type` of a cell, as in JupyterLab. In which words says `kit.slide`: a
list, one text a slide, of which the last stands above what the cell shows; the cell's own prose is
then in the notes of the speaker (key S). A lesson that sets no types gets a slide for each heading,
with the paragraph below it, and one for each figure.
"""

import base64
import copy
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter, SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from book import lab, teaching
from lib.kit import session, stamps

SLIDES = ("01", "04", "06")
SAVED = re.compile(r'\bsave_figure\(\w+, "(\w+)"')
ALT = """{%- block data_png scoped -%}
{%- set alt = output | get_metadata('alt', 'image/png') or '' -%}
{{ super() | replace('<img ', '<img alt="' ~ (alt | escape_html) ~ '" ', 1) }}
{%- endblock -%}
"""
PAGE_TEMPLATE = "{%- extends 'lab/index.html.j2' -%}\n"
SLIDES_TEMPLATE = """{%- extends 'reveal/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script>MathJax = {tex: {inlineMath: [["$", "$"]], processEscapes: true}}</script>
<script src="offline/mathjax/tex-svg.js"></script>
{%- endblock -%}
{%- block html_head_css -%}
<style>
.reveal .slides :is(h1, h2, h3) { text-transform: none }
.reveal .slides .jp-RenderedHTMLCommon { font-size: 28px }
.reveal .slides .jp-InputPrompt { display: none }
.reveal .slides .jp-OutputArea-output pre { font-size: 24px; white-space: pre; box-shadow: none }
.reveal .slides img:not(figure img) { width: 100%; max-height: 490px; object-fit: contain;
  object-position: left top; margin: 0 }
.reveal .slides figure { font-size: 24px; margin: 0 1em }
.reveal .slides figure img { max-height: none }
.reveal .slides figure > p { display: none }
</style>
{%- endblock -%}
{%- block footer_js -%}
<script src="offline/dist/reveal.js"></script>
<script src="offline/plugin/notes/notes.js"></script>
<script>
Reveal.initialize({width: 1280, height: 720, center: false, history: true, slideNumber: "c/t",
  plugins: [RevealNotes]})
</script>
{%- endblock -%}
"""


def _exporter(kind: type, template: str) -> HTMLExporter:
    loader = DictLoader({"kit.html.j2": template + ALT})
    return kind(extra_loaders=[loader], template_file="kit.html.j2")


def page(book: NotebookNode, title: str) -> str:
    """Return a notebook with its outputs as one page of HTML."""
    exporter = _exporter(HTMLExporter, PAGE_TEMPLATE)
    return exporter.from_notebook_node(book, {"metadata": {"name": title}})[0]


def write_pages() -> list[Path]:
    """Write a page of each notebook, whose links lead where they led; return the paths."""
    written = []
    for name, source in stamps.notebooks().items():
        path = session.root() / "build" / "html" / f"{name}.html"
        book = lab.moved(nbformat.read(source, as_version=4), source.parent, path.parent)
        session.write_atomically(path, page(book, source.stem))
        written.append(path)
    return written


def with_slides(book: NotebookNode) -> NotebookNode:
    """Return a lesson whose cells say what is on a slide, as the lesson does or by its headings."""
    book, cells = copy.deepcopy(book), []
    marked = any("slideshow" in cell.metadata for cell in book.cells)
    for cell in book.cells:
        if {"solution", "check"} & {*teaching.tags(cell)}:
            kind = "skip"
        elif marked:
            kind = cell.metadata.get("slideshow", {}).get("slide_type", "skip")
        else:
            kind = _slide_type(cell)
            cell.source = _first_words(cell) if kind == "slide" else cell.source
        words = cell.metadata.get("kit", {}).get("slide", []) if kind != "skip" else []
        cells += [new_markdown_cell(text, metadata=_typed(kind)) for text in words]
        if words:
            kind = "notes" if cell.cell_type == "markdown" else "-"
        cell.metadata |= _typed(kind)
        cells.append(_bare(cell))
    book.cells = cells
    return book


def _typed(kind: str) -> dict[str, NotebookNode]:
    return {"slideshow": NotebookNode(slide_type=kind)}


def _bare(cell: NotebookNode) -> NotebookNode:
    """A cell without warnings, and of a cell with a figure nothing else."""
    if cell.cell_type == "code":
        shown = [o for o in cell.outputs if o.get("name") != "stderr"]
        figures = [o for o in shown if "image/png" in o.get("data", {})]
        cell.outputs = figures or shown
    return cell


def sharpened(book: NotebookNode, folder: Path) -> NotebookNode:
    """A lesson whose figures are the files of `folder`: a wall shows them larger than a page."""
    for cell in book.cells:
        shown = [o.data for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        for name, data in zip(SAVED.findall(cell.source), shown, strict=False):
            file = folder / f"{name}.png"
            if file.is_file():
                data["image/png"] = base64.b64encode(file.read_bytes()).decode()
    return book


def _slide_type(cell: NotebookNode) -> str:
    if cell.cell_type == "markdown":
        return "slide" if re.match("#{1,2} ", cell.source) else "skip"
    shown = any("image/png" in output.get("data", {}) for output in cell.outputs)
    return "subslide" if shown else "skip"


def _first_words(cell: NotebookNode) -> str:
    """The heading, the paragraph below it, and the formula that this leads to."""
    head, *rest = cell.source.split("\n\n")
    formula = [part for part in rest[1:2] if part.startswith("$$")]
    return "\n\n".join([head, *rest[:1], *formula])


def write_slides(names: Iterable[str]) -> list[Path]:
    """Write build/slides/NAME.html, which asks no other site; return the paths.

    Raises:
        ValueError: when reveal.js or MathJax is not installed.
    """
    folder = session.root() / "build" / "slides"
    _offline(folder / "offline")
    exporter = _exporter(SlidesExporter, SLIDES_TEMPLATE)
    exporter.reveal_url_prefix, exporter.reveal_theme = "offline", "white"
    exporter.exclude_input = exporter.exclude_output_prompt = exporter.embed_images = True
    written = []
    for name, book in teaching.lessons(names).items():
        book = sharpened(with_slides(book), session.root() / "figures" / name)
        book = lab.moved(book, stamps.notebooks()[name].parent, session.root())
        place = {"metadata": {"name": name, "path": str(session.root())}}  # of embedded pictures
        text, _ = exporter.from_notebook_node(book, place)
        session.write_atomically(folder / f"{name}.html", text)
        written.append(folder / f"{name}.html")
    return written


def _offline(folder: Path) -> None:
    """Copy what the slides load: reveal.js with one theme, and MathJax."""
    carried = {
        "sphinx_revealjs": ("_static/revealjs", ("dist", "plugin/notes")),
        "sphinx-mathjax-offline": ("static", ("mathjax/tex-svg.js",)),
    }
    for package, (place, parts) in carried.items():
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ValueError(f"{package} is missing: pip install -e '.[book]'")
        for part in parts:
            source, target = Path(spec.origin).parent / place / part, folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            copied = shutil.copytree if source.is_dir() else shutil.copyfile
            copied(source, target, **({"dirs_exist_ok": True} if source.is_dir() else {}))


def main(kind: str, *names: str) -> int:
    """Write pages or slides, of 01, 04 and 06 if none is named; return the exit status."""
    try:
        own = [name for name in stamps.notebooks() if name[:2] in SLIDES]
        written = write_slides(names or own) if kind == "slides" else write_pages()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*(path.relative_to(session.root()) for path in written), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
