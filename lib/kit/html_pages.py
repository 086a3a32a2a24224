"""The notebooks as HTML in build/html/, with the alternative texts that nbconvert leaves out."""

from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter

from lib.kit import lab, session, stamps

TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block data_png scoped -%}
{%- set alt = output | get_metadata('alt', 'image/png') or '' -%}
{{ super() | replace('<img ', '<img alt="' ~ (alt | escape_html) ~ '" ', 1) }}
{%- endblock -%}
"""


def page(book: nbformat.NotebookNode, title: str) -> str:
    """Return a notebook with its outputs as one page of HTML."""
    loader = DictLoader({"alt.html.j2": TEMPLATE})
    exporter = HTMLExporter(extra_loaders=[loader], template_file="alt.html.j2")
    text, _ = exporter.from_notebook_node(book, {"metadata": {"name": title}})
    return text


def write() -> list[Path]:
    """Write a page of each notebook, whose links lead where they led; return the paths."""
    written = []
    for name, source in stamps.notebooks().items():
        path = session.root() / "build" / "html" / f"{name}.html"
        book = nbformat.reads(lab.text_at(path, source), as_version=4)
        session.write_atomically(path, page(book, source.stem))
        written.append(path)
    return written


if __name__ == "__main__":
    for written_path in write():
        print(written_path.relative_to(session.root()))
