"""Without a terminal a run says where it stands: by section, by minute, by item."""

import re
import time

import nbformat
import pytest

from lib.kit import progress, run


def book():
    cells = [
        nbformat.v4.new_markdown_cell("# 00 · A title\n\n## 1. The question"),
        nbformat.v4.new_markdown_cell("## 2. The data\n\n### not a section"),
        nbformat.v4.new_code_cell("1"),
        nbformat.v4.new_code_cell("2"),
        nbformat.v4.new_markdown_cell("## Inversion"),
        nbformat.v4.new_code_cell("3"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def walk(notebook, starts, pause=0.0):
    for index, cell in enumerate(notebook.cells):
        starts(cell=cell, cell_index=index)
        time.sleep(pause)


def test_a_line_for_each_section_that_computes(capsys):
    with progress.lines("00_models quick", book()) as starts:
        walk(book(), starts)
    assert re.sub(r"\d+ s", "T", capsys.readouterr().out) == (
        "00_models quick: section 2 of 3, The data, T\n"
        "00_models quick: section 3 of 3, Inversion, T\n"
    )


def test_a_cell_that_takes_minutes_is_told_again_with_its_items(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    monkeypatch.setenv("KIT_PROGRESS", str(tmp_path / "progress"))
    with progress.lines("00_models quick", book()) as starts:
        walk(book(), starts)
        capsys.readouterr()
        for k in progress.noted(range(3), "images", None):
            deadline = time.monotonic() + 30
            while k == 0 and "images 0 of 3" not in (told := capsys.readouterr().out):
                assert time.monotonic() < deadline
    assert "00_models quick: section 3 of 3, Inversion, images 0 of 3, " in told
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().out == ""  # nothing is said after the end
    assert not (tmp_path / "progress").exists()


def test_where_a_terminal_shows_a_bar_nothing_is_printed(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.lines("00_models quick", book()) as starts:
        walk(book(), starts)
    assert capsys.readouterr().out == ""


def test_the_bar_of_a_headless_run_notes_its_items(monkeypatch, tmp_path):
    monkeypatch.setenv("KIT_OUTPUT", str(tmp_path))
    monkeypatch.setenv("KIT_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.delenv("KIT_TERMINAL", raising=False)
    seen = []
    for item in run.bar(iter("ab"), "pieces", total=2):
        seen.append((item, (tmp_path / "progress").read_text()))
    assert seen == [("a", "pieces 0 of 2"), ("b", "pieces 0 of 2")]  # at most once a second


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (80, "1 min 20 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_read_as_a_person_says_them(seconds, text):
    assert progress.duration(seconds) == text
