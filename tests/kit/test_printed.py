"""The page of a run: its headings, what was printed below them, and nothing else."""

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.kit import printed


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
    assert printed.page(book, "full") == (
        "*Printed by the run of profile `full`.*\n\n"
        "## Table\n\n```\na   1\nb   2\n```\n\n```\nc   3\n```\n"
    )
