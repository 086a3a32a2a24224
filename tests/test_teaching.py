"""Copies for a course: nothing that a student should find is in them, and no work is lost."""

import ast
import base64
import builtins
import copy
import importlib.util
import json
import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import exports, teaching
from lib.kit import stamps

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FIGURE = new_output(
    "display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": "a <dot>"}}
)
DRAWN = """two = 2  # β
alt = (
    f"falls to {two}, "
    "a SECRET"
)
plots.save_figure(fig, "β", alt); plots.save_figure(fig, "other", f"SECRET {two}")
plots.save_figure(fig, "third", alt=\"\"\"a long
SECRET\"\"\")"""
CHECK = """for value in (root, -root):
    assert abs(value**2 - 2) < 1e-9, "square it: what do you get?\""""


def tagged(make, source, *tags, **metadata):
    return make(source, metadata={"tags": list(tags), **metadata})


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """A root with a lesson, its evidence and a picture of the title."""
    monkeypatch.setenv("KIT_ROOT", str(tmp_path))
    worth = {"kit": {"points": 5, "rubric": ["the root is found"]}}
    cells = [
        new_markdown_cell("# A lesson\n\n![a SECRET peak](../figures/01_a/title.png)\n\nGoals."),
        tagged(new_code_cell, 'profile: str = "quick"', "parameters"),
        new_markdown_cell("## 1. The question\n\nWhat? See [models](../models).\n\nMore of it."),
        new_markdown_cell("**Predict first.** Up or down?"),
        new_code_cell(DRAWN, outputs=[FIGURE], execution_count=1),
        tagged(new_markdown_cell, "As you saw, SECRET.", "spoiler"),
        new_markdown_cell("## 2. Exercises\n\n**1 (predict).** Which?"),
        tagged(new_markdown_cell, "SECRET, of course.", "solution"),
        new_markdown_cell("**2 (change).** Find the root of 2.", metadata=worth),
        tagged(new_code_cell, "root = 2**0.5  # SECRET", "solution"),
        tagged(new_code_cell, CHECK, "check"),
        new_markdown_cell("**3 (derive).** Why?"),
        new_code_cell('scorecard.claims_table("01_a")', outputs=[FIGURE]),
        new_markdown_cell("**Conclusion.** It is SECRET.\n\nTwice.\n\n**References.** One."),
    ]
    for name in ("01_a", "evidence/01_a", "evidence/07_alone"):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), path)
    return tmp_path


def written(lesson, kind, name="01_a"):
    assert teaching.main([kind]) == 0
    return nbformat.read(lesson / "build" / kind / f"{name}.ipynb", as_version=4)


def test_a_student_finds_nothing_that_gives_a_result_away(lesson):
    book = written(lesson, "student")
    text = json.dumps(book, ensure_ascii=False)
    assert "SECRET" not in text and "claims_table" not in text and PIXEL not in text
    assert "**References.** One." in text and "Goals." in text and "two = 2  # β" in text
    assert sum(teaching.WORDS in cell.source for cell in book.cells) == 1  # thrice in one cell
    assert [path.name for path in (lesson / "build/student").iterdir()] == ["01_a.ipynb"]


def test_what_came_out_of_a_prediction_is_not_in_the_copy_but_the_question_is():
    asked = "**Was your prediction right?**"
    cell = new_markdown_cell(f"Look.\n\n{asked} SECRET.\n\nSECRET.\n\n## 2. Next\n\nOn.")
    bold = new_markdown_cell(f"{asked} SECRET.\n\n**Another.** On.")
    last = new_markdown_cell(f"{asked} SECRET.")
    made = teaching.student_copy("01_a", new_notebook(cells=[cell, bold, last])).cells
    asked += " *Compare with what you wrote.*"
    assert made[0].source == f"Look.\n\n{asked}\n\n## 2. Next\n\nOn."
    assert [c.source for c in made[1:]] == [f"{asked}\n\n**Another.** On.", asked]


@pytest.mark.parametrize("name", [n for n in stamps.notebooks() if "/" not in n])
def test_a_lesson_leaves_its_conclusion_and_its_table_to_the_student(name):
    book = stamps.read_notebook(name)
    text = "\n\n".join(c.source for c in teaching.student_copy(name, book).cells)
    assert "**Conclusion.** *Yours, in three sentences.*" in text
    assert "*Reproduced* means" not in text and "claims_table(" not in text


def test_code_without_its_alternative_texts_is_the_same_code(lesson):
    found = teaching.without_alt(DRAWN)
    assert found.count(teaching.WORDS) == 3
    assert compile(found, "cell", "exec") and 'save_figure(fig, "β", alt)' in found
    assert teaching.without_alt("%time x = 1") == "%time x = 1"


def test_answer_cells_have_names_and_points(lesson):
    book = written(lesson, "student")
    answers = [c for c in book.cells if "answer" in teaching.tags(c)]
    kept = {
        c.metadata.kit.answer: c.metadata.kit.get("points")
        for c in answers
        if "points" in c.metadata.kit
    }
    assert kept == {"01_a-prediction-1": 0, "01_a-1": 2, "01_a-2": 5, "01_a-3": 4}
    assert [c.cell_type for c in answers] == ["markdown"] + ["markdown", "code"] * 3
    assert "Answer 01_a-2 (5 points)" in answers[3].source
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    nbformat.validate(book)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("", "not yet: name 'root' is not defined; run your answer first\n"),
        ("root = 1.5", "not yet: square it: what do you get?\n"),
        ("root = None", "not yet: TypeError: "),
        ("root = 2**0.5", "passed\n"),
    ],
)
def test_a_check_tells_a_student_what_is_missing(lesson, capsys, before, said):
    (check,) = [c for c in written(lesson, "student").cells if "check" in teaching.tags(c)]
    capsys.readouterr()
    names = {}
    exec(before, names)
    exec(check.source, names)
    out = capsys.readouterr().out
    assert out.startswith(said) and out.count("\n") == 1


def names_of(sources):
    """The names that code reads, and those that it defines or imports."""
    nodes = [n for source in sources for n in ast.walk(ast.parse(source))]
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    made = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    made |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    made |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    made |= {n.name for n in nodes if isinstance(n, ast.ExceptHandler)}
    aliases = [a for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    return read, made | {a.asname or a.name for a in aliases}


@pytest.mark.parametrize("name", [n for n in stamps.notebooks() if stamps.lesson_of(n) == n])
def test_every_lesson_has_points_and_a_check_whose_names_its_exercises_give(name):
    copied = teaching.student_copy(name, stamps.read_notebook(name))
    worth = [cell.metadata.get("kit", {}).get("points") for cell in copied.cells]
    assert sum(map(bool, worth)) >= 3, "three exercises with points"
    code = {k: c for k, c in enumerate(copied.cells) if c.cell_type == "code"}
    checks = [c.source for c in code.values() if "check" in teaching.tags(c)]
    assert checks, "a check: assertions below the line `# check` of a solution"
    text = "\n".join(c.source for c in copied.cells if teaching.EXERCISE.search(c.source))
    lesson = [c.source for c in code.values() if "check" not in teaching.tags(c)]
    for check in checks:
        read, made = names_of([check])
        unknown = read - made - names_of(lesson)[1] - {*dir(builtins)}
        assert unknown and all(f"`{each}" in text for each in unknown), unknown
        assert all(n.msg for n in ast.walk(ast.parse(check)) if isinstance(n, ast.Assert))


def test_exercises_of_one_cell_get_an_answer_each(lesson):
    own = {"kit": {"2": {"points": 7}}}
    cell = new_markdown_cell("## 2\n\n**1 (predict).** A?\n\n**2 (change).** B?", metadata=own)
    solved = tagged(new_code_cell, "x = 2  # SECRET\n# check\nassert x > 1, 'more'", "solution")
    copied = teaching.student_copy("01_a", new_notebook(cells=[cell, solved])).cells
    points = {c.metadata.kit.answer: c.metadata.kit.get("points") for c in copied[1:5:3]}
    assert points == {"01_a-1": 2, "01_a-2": 7} and copied[3].source == "**2 (change).** B?"
    assert "assert x > 1" in copied[-1].source and "SECRET" not in str(copied)


def test_a_second_run_leaves_the_work_of_a_student(lesson, capsys):
    path = lesson / "build/student/01_a.ipynb"
    book = written(lesson, "student")
    made = path.read_text()
    assert written(lesson, "student") == book and path.read_text() == made
    book.cells[-1].source = "my own words"
    nbformat.write(book, path)
    mine = path.read_text()
    written(lesson, "student")
    written(lesson, "student")
    assert path.read_text() == mine and path.with_name("01_a-2.ipynb").read_text() == made
    assert len(list(path.parent.iterdir())) == 2
    assert capsys.readouterr().out.endswith("build/student/01_a-2.ipynb\n")


def test_the_links_of_a_copy_lead_where_they_led(lesson):
    links = re.findall(r"\]\(([^)]*)\)", json.dumps(written(lesson, "student")))
    assert links == ["../../models"]


def test_the_key_has_points_rubric_and_solutions(lesson):
    text = "\n".join(cell.source for cell in written(lesson, "answers").cells)
    assert text.startswith("# Answers to 01_a\n\n3 exercises, 11 points.")
    assert "**Rubric 01_a-2, 5 points.**\n\n- the root is found" in text
    assert "SECRET, of course." in text and "# SECRET" in text and "assert" in text
    assert "Conclusion" not in text and "Goals" not in text


def test_an_unknown_lesson_is_answered_with_the_nearest(lesson, capsys):
    assert teaching.main(["student", "01_b"]) == 2
    assert "unknown notebook '01_b'; did you mean 01_a" in capsys.readouterr().err


def kinds(book):
    return [cell.metadata.slideshow.slide_type for cell in exports.with_slides(book).cells]


def test_slides_are_what_the_cells_say_else_headings_and_figures(lesson):
    book = nbformat.read(lesson / "notebooks/01_a.ipynb", as_version=4)
    slides = [k for k, kind in enumerate(kinds(book)) if kind != "skip"]
    assert slides == [0, 2, 4, 6, 12] and kinds(book)[4] == "subslide"
    assert "More of it" not in exports.with_slides(book).cells[2].source
    book.cells[3].metadata["slideshow"] = {"slide_type": "fragment"}
    assert kinds(book) == ["skip"] * 3 + ["fragment"] + ["skip"] * 10


def test_slides_say_what_a_cell_tells_them_to_and_keep_the_prose_for_the_speaker():
    on = {"slideshow": {"slide_type": "slide"}}
    prose = new_markdown_cell("All of it.", metadata=on | {"kit": {"slide": ["# One", "# Two"]}})
    warned = new_output("stream", name="stderr", text="UserWarning")
    drawn = new_code_cell("draw()", metadata=on, outputs=[warned, FIGURE])
    drawn.metadata["kit"] = {"slide": ["# Three"]}
    made = exports.with_slides(new_notebook(cells=[prose, drawn])).cells
    shown = [(cell.metadata.slideshow.slide_type, cell.source) for cell in made]
    assert shown[:3] == [("slide", "# One"), ("slide", "# Two"), ("notes", "All of it.")]
    assert shown[3:] == [("slide", "# Three"), ("-", "draw()")] and made[-1].outputs == [FIGURE]


def test_a_slide_shows_the_file_of_a_figure_which_is_finer_than_that_of_the_page(tmp_path):
    (tmp_path / "root.png").write_bytes(b"fine")
    sources = ['plots.save_figure(fig, "root", alt)', 'plots.save_figure(fig, "absent", alt)']
    cells = [new_code_cell(source, outputs=[copy.deepcopy(FIGURE)]) for source in sources]
    made = exports.sharpened(new_notebook(cells=cells), tmp_path).cells
    shown = [base64.b64decode(cell.outputs[0].data["image/png"]) for cell in made]
    assert shown == [b"fine", base64.b64decode(PIXEL)]
    assert made[0].outputs[0].metadata["image/png"]["alt"] == "a <dot>"


@pytest.mark.parametrize("name", [n for n in stamps.notebooks() if n[:2] in exports.SLIDES])
def test_a_lecture_has_twelve_to_twenty_slides_of_few_words(name):
    book = stamps.read_notebook(name)
    cells = exports.with_slides(book).cells
    slides = [c for c in cells if c.metadata.slideshow.slide_type in ("slide", "subslide")]
    assert 12 <= len(slides) <= 20
    texts = [re.sub(r"\$[^$]*\$", "x", c.source) for c in slides if c.cell_type == "markdown"]
    assert max(len(text.split()) for text in texts) <= 70


NEEDED = ("sphinx_revealjs", "sphinx-mathjax-offline")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(ABSENT), reason=f"absent: {', '.join(ABSENT)} (make slides)")
def test_slides_need_no_other_site(lesson):
    (lesson / "figures/01_a").mkdir(parents=True)
    (lesson / "figures/01_a/title.png").write_bytes(b"png")
    assert exports.main("slides") == 0
    text = (lesson / "build/slides/01_a.html").read_text()
    loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]*)\"", text)
    assert loaded and not [link for link in loaded if re.match(r"(https?:)?//", link)]
    for link in loaded:
        assert link.startswith("data:") or (lesson / "build/slides" / link).is_file(), link
    theme = (lesson / "build/slides/offline/dist/theme/white.css").read_text()
    assert "http" not in re.sub(r"/\*.*?\*/", "", theme, flags=re.DOTALL)
    assert 'alt="a &lt;dot&gt;"' in text and "More of it" not in text


def test_slides_without_their_parts_say_what_to_install(lesson, monkeypatch, capsys):
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None)
    assert exports.main("slides") == 2
    assert "pip install -e '.[book]'" in capsys.readouterr().err


def test_the_commands_run_from_the_root_of_the_checkout(lesson):
    done = subprocess.run([sys.executable, "-m", "book.teaching", "answers"], capture_output=True)
    assert done.returncode == 0 and (lesson / "build/answers/01_a.ipynb").is_file()
