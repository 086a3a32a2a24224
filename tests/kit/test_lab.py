"""Working copies of notebooks: what a reader wrote stays, what nobody touched is up to date."""

import os

import nbformat
import pytest
from small_notebooks import write_notebook

from book import exports, lab
from lib.kit import session


def copy_of(root, name="01_ising"):
    return root / "build" / "lab" / f"{name}.ipynb"


def edit(path, index, source):
    """Rewrite one cell as an editor would."""
    book = nbformat.read(path, as_version=4)
    book.cells[index].source = source
    nbformat.write(book, path)


def run(path):
    """Leave an output as a run would."""
    book = nbformat.read(path, as_version=4)
    book.cells[-1].outputs = [nbformat.v4.new_output("stream", text="done\n")]
    nbformat.write(book, path)


def sources_of(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


def test_an_untouched_copy_follows_its_notebook(root):
    notebook = write_notebook(root, "x = 1")
    assert lab.refresh() == [] and sources_of(copy_of(root)) == sources_of(notebook)
    write_notebook(root, "x = 2")
    assert lab.refresh() == [] and sources_of(copy_of(root))[-1] == "x = 2"
    run(notebook)
    assert lab.refresh() == [] and "done" in copy_of(root).read_text()


def test_what_the_reader_wrote_is_kept_and_named(root):
    write_notebook(root, "x = 1")
    lab.refresh()
    edit(copy_of(root), -1, "x = 'mine'")
    for newer in ("x = 1", "x = 2"):
        write_notebook(root, newer)
        assert lab.refresh() == ["01_ising.ipynb"] and sources_of(copy_of(root))[-1] == "x = 'mine'"


def test_a_copy_that_was_only_run_keeps_its_outputs_until_the_cells_change(root):
    write_notebook(root, "x = 1")
    lab.refresh()
    run(copy_of(root))
    assert lab.refresh() == [] and "done" in copy_of(root).read_text()
    write_notebook(root, "x = 2")
    assert lab.refresh() == [] and sources_of(copy_of(root))[-1] == "x = 2"


@pytest.mark.parametrize("text", ["", "not a notebook", "{}", '{"cells": 3}'])
def test_a_file_of_the_readers_own_is_kept_even_if_it_is_no_notebook(root, text):
    write_notebook(root, "x = 1")
    copy_of(root).parent.mkdir(parents=True)
    copy_of(root).write_text(text)
    assert lab.refresh() == (["01_ising.ipynb"] if text else [])
    assert text in copy_of(root).read_text()


def test_copies_beside_notebooks_are_not_copied(root):
    for name in ("01_ising", "01_ising-Copy1", "01_ising (1)", "Untitled", "evidence/01_ising"):
        write_notebook(root, "x = 1", name=name)
    lab.refresh()
    found = {path.relative_to(root / "build" / "lab").as_posix() for path in lab_files(root)}
    assert found == {"01_ising.ipynb", "evidence/01_ising.ipynb"}


def lab_files(root):
    return (root / "build" / "lab").rglob("*.ipynb")


@pytest.mark.parametrize(
    ("name", "link", "moved"),
    [
        ("01_ising", "![t](../figures/a/b.png)", "![t](../../figures/a/b.png)"),
        ("evidence/01_ising", "![t](../../figures/b.png)", "![t](../../../figures/b.png)"),
        ("01_ising", '<img src="../figures/b.png">', '<img src="../../figures/b.png">'),
        ("01_ising", "[s](../SCORECARD.md#ising)", "[s](../../SCORECARD.md#ising)"),
        ("01_ising", "[e](evidence/02_tasep.ipynb)", "[e](evidence/02_tasep.ipynb)"),
        ("evidence/01_ising", "[l](../01_ising.ipynb#s)", "[l](../01_ising.ipynb#s)"),
        ("01_ising", "[w](https://example.org/../x)", "[w](https://example.org/../x)"),
        ("01_ising", "[s](#section) and $f[x](y)$", "[s](#section) and $f[x](y)$"),
    ],
)
def test_relative_links_lead_where_they_led(root, name, link, moved):
    write_notebook(root, f"# A title\n\n{link}", name=name)
    lab.refresh()
    assert sources_of(copy_of(root, name))[1] == f"# A title\n\n{moved}"


def test_title_images_of_the_real_copies_are_files():
    notebooks = session.CHECKOUT / "notebooks"
    for source in notebooks.glob("[0-9][0-9]_*.ipynb"):
        first = sources_of(source)[0]
        there = session.CHECKOUT / "build" / "lab"
        moved = lab.moved_links(first, source.parent, there)
        (target,) = [m[2] for m in lab.LINK.finditer(moved) if m[2].endswith(".png")]
        assert os.path.isfile(os.path.normpath(there / target))


def test_the_server_starts_at_the_root_and_takes_more_arguments(root, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command = lab.command(["--no-browser", "--port", "9999"])
    assert f"--ServerApp.root_dir={root}" in command and "--allow-root" not in command
    assert command[-3:] == ["--no-browser", "--port", "9999"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--allow-root" in lab.command([])


def test_pages_of_html_lie_where_their_links_lead(root):
    write_notebook(root, "# A title\n\n![t](../../figures/b.png)", name="evidence/01_ising")
    (path,) = exports.write_pages()
    assert path == root / "build" / "html" / "evidence" / "01_ising.html"
    assert 'src="../../../figures/b.png"' in path.read_text()
