"""Settings of the book: what Sphinx needs to know to make it from build/book/source."""

import ast
import importlib.util
import inspect
import re
import shutil
import sys
import textwrap
from pathlib import Path

from sphinx.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "Latent geometry kit"
html_title = project
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

nb_execution_mode = "off"  # the committed outputs are shown
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
nb_ipywidgets_js = {}  # its sources lie on other sites
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
myst_heading_slug_func = "book.prepare.slug"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "literal"
suppress_warnings = ["ref.python"]  # signatures keep short names, which two rooms may share

html_theme = "sphinx_book_theme"
html_theme_options = {
    "footer_content_items": [],  # a name and a year, of which the book gives neither
    "navbar_persistent": [],  # a second search field
    "show_toc_level": 2,
    "use_download_button": False,
}
html_static_path = ["static"]
html_css_files = ["book.css"]
html_js_files = ["names.js", "scorecard.js"]
html_copy_source = False
mathjax_path = "mathjax/tex-svg.js"  # one file that holds its fonts
MATHJAX = ("tex-svg.js", "input/tex", "a11y", "sre", "ui")  # and what it may load later


def mathjax_folder() -> Path:
    """Return the folder of the installed MathJax.

    Raises:
        ConfigError: when there is none.
    """
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None:
        raise ConfigError(
            "MathJax is missing: pip install the `book` extra of pyproject.toml, whose package "
            "sphinx-mathjax-offline holds it"
        )
    return Path(spec.origin).parent / "static" / "mathjax"


def copy_mathjax(app, exception: Exception | None) -> None:
    """Put MathJax beside the pages, so that no formula needs another site."""
    if exception is None:
        for name in MATHJAX:
            source, target = mathjax_folder() / name, app.outdir / "_static" / "mathjax" / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def as_restructured(app, what, name, thing, options, lines: list[str]) -> None:
    """Turn a plain docstring into reStructuredText: paragraphs with indented lines stay as set.

    Outside of backticks and bold type, characters that open markup there stand for themselves.
    """
    written, section = [], False
    for paragraph in "\n".join(lines).split("\n\n"):
        own = paragraph.strip("\n").splitlines() or [""]
        if not own[0].startswith(" "):
            section = re.fullmatch(r"[A-Z]\w+:", own[0]) is not None  # as "Args:", "Raises:"
        indented = any(line.startswith("  ") for line in own)
        if indented and not section and not re.match(r"- |\d+\. ", own[0]):
            written += ["::", "", *("    " + line for line in own), ""]
        else:
            written += [*map(escaped, own), ""]
    lines[:] = written


def escaped(line: str) -> str:
    """Return a line whose stars, bars and trailing underscores open no markup."""
    parts = re.split(r"(`[^`]*`|\*\*[^*]+\*\*)", line)
    parts[::2] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def as_written(app, what, name, thing, options, signature, returns) -> tuple | None:
    """Return the signature of a function as its source has it: short types, no machine's paths."""
    if what not in ("function", "method"):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))
    except (OSError, TypeError):  # made by a decorator or an extension module
        return None
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.FunctionDef):
        return None
    if what == "method" and node.args.args and node.args.args[0].arg in ("self", "cls"):
        del node.args.args[0]
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns else None


def is_field(app, what, name, thing, skip: bool, options) -> bool | None:
    """Leave out the fields of a named tuple, of which Python only says their number."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app) -> dict[str, bool]:
    """Register the steps of this file; run by Sphinx, which may read pages side by side."""
    mathjax_folder()
    app.connect("autodoc-process-docstring", as_restructured, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", is_field)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
