"""What every notebook promises: lesson shape, checked cells, clean outputs, alt texts, claims."""

import ast
import contextlib
import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from lib.kit import pipeline, results, scorecard, stamps
from lib.kit.claims import SECOND

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = stamps.notebooks()
LESSONS = {name: path for name, path in NOTEBOOKS.items() if stamps.lesson_of(name) == name}
SPLIT = {name for name in NOTEBOOKS if stamps.EVIDENCE + stamps.lesson_of(name) in NOTEBOOKS}
MODELS = sorted(folder.name for folder in (ROOT / "models").iterdir() if folder.is_dir())
FIGURES = sorted((ROOT / "figures").rglob("*.png"))
HEADER = ("goals", "prerequisites", "time", "memory", "figures", "paper")
MACHINE = re.compile(r"/home/|/Users/|/root/|/tmp/|/work/|C:\\\\|\.local/share")

each_notebook = pytest.mark.parametrize(("name", "path"), NOTEBOOKS.items(), ids=NOTEBOOKS)
each_lesson = pytest.mark.parametrize("path", LESSONS.values(), ids=LESSONS)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


@each_notebook
def test_the_file_is_valid_and_small_and_evidence_has_a_lesson(name, path):
    assert stamps.lesson_of(name) in {*LESSONS, *SECOND}
    nbformat.validate(read(path))
    assert path.stat().st_size < pipeline.LARGEST_NOTEBOOK


@each_notebook
def test_it_opens_with_a_header_card(name, path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    missing = [word for word in HEADER if word not in first.source.lower()]
    assert not missing, f"the header card says nothing about {missing}"


@each_notebook
def test_the_first_code_cell_holds_typed_literal_parameters(name, path):
    first = code_cells(path)[0]
    assert tags(first) == ["parameters"]
    values = {}
    for statement in ast.parse(first.source).body:
        assert isinstance(statement, ast.AnnAssign)
        values[statement.target.id] = ast.literal_eval(statement.value)
    assert values["profile"] == "quick" and isinstance(values["seed"], int)


@each_notebook
def test_the_second_code_cell_starts_the_run_under_its_own_name(name, path):
    source = code_cells(path)[1].source
    assert "run.start(" in source and f'notebook="{name}"' in source


def is_checked(cell):
    return "NBVAL_CHECK_OUTPUT" in cell.source or "nbval-check-output" in tags(cell)


@each_notebook
def test_checked_cells_have_something_to_compare(name, path):
    checked = [cell for cell in code_cells(path) if is_checked(cell)]
    assert len(checked) >= 2
    assert all(cell.outputs and cell.execution_count for cell in checked)


@each_notebook
def test_committed_outputs_are_those_of_one_run_from_top_to_bottom(name, path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for cell in code_cells(path) for output in cell.outputs}
    assert "error" not in kinds


@pytest.mark.parametrize("name", sorted(SPLIT))
def test_lessons_and_evidence_that_are_split_are_short(name):
    """The limits of a lesson and of its evidence; the parameters cell and what follows it apart."""
    sources = [cell.source for cell in code_cells(NOTEBOOKS[name])]
    if name in LESSONS:
        assert len(read(NOTEBOOKS[name]).cells) <= 40
        assert sum(len(source.splitlines()) for source in sources) <= 400
        assert all(len(source.splitlines()) <= 15 for source in sources[2:])
        assert not any("results.record(" in source for source in sources)
    else:
        assert len(read(NOTEBOOKS[name]).cells) <= 80


@pytest.mark.parametrize("name", sorted(SPLIT & set(LESSONS)))
def test_each_claim_is_settled_in_one_section_of_the_evidence(name):
    evidence = read(NOTEBOOKS[stamps.EVIDENCE + name]).cells
    texts = [cell.source for cell in evidence if cell.cell_type == "markdown"]
    sections = re.split(r"^## ", "\n".join(texts), flags=re.MULTILINE)[1:]
    for claim in (c.id for c in results.CLAIMS.values() if c.notebook == name):
        found = [section.splitlines()[0] for section in sections if f"`{claim}`" in section]
        assert len(found) == 1, f"{claim} is settled in {found}"


@pytest.mark.parametrize("name", sorted(SPLIT & set(LESSONS)))
def test_a_lesson_ends_with_the_verdicts_that_are_committed(name):
    shown = [
        "".join(output.data["text/markdown"])
        for cell in code_cells(NOTEBOOKS[name])
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    assert scorecard.claims_table(name).data in shown, f"run {name} again, then refresh"


@each_lesson
def test_three_exercises_have_solutions(path):
    cells = read(path).cells
    assert sum("solution" in tags(cell) for cell in cells) >= 3
    assert any(re.search(r"^#+ .*exercise", cell.source, re.I | re.M) for cell in cells)


@each_notebook
def test_the_weights_it_uses_are_named_for_the_make_graph(name, path):
    cells = [cell.source for cell in code_cells(path)]
    modules = {module for module, _ in stamps.closure(cells)[1].parts}
    judged = any(module.endswith(".judge") for module in modules)
    scorers = {"judge-a", "judge-b", "clip"} if judged else set()
    named = set(read(path).metadata.get("kit", {}).get("weights", []))
    assert scorers <= named, "add to the metadata kit.weights, or new weights leave old figures"
    assert named <= set(MODELS)


@each_notebook
def test_outputs_name_no_machine(name, path):
    book = read(path)
    pipeline.refuse_leaks(name, book)
    outputs = json.dumps(
        [
            [o for o in cell.outputs if "image/png" not in o.get("data", {})]
            for cell in code_cells(path)
        ]
    )
    assert not MACHINE.search(outputs), MACHINE.search(outputs)
    assert "papermill" not in book.metadata and "widgets" not in book.metadata


@pytest.mark.parametrize("path", sorted((ROOT / "figures").rglob("*.md")), ids=str)
def test_pages_of_printed_tables_name_no_machine(path):
    assert path.name == "printed.md" and not MACHINE.search(path.read_text())


@each_notebook
def test_all_that_it_names_of_the_library_is_there(name, path):
    """Also in cells that only the largest profile runs."""
    trees = [ast.parse(cell.source) for cell in code_cells(path)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lib":
            for alias in node.names:
                with contextlib.suppress(ModuleNotFoundError):  # a function or a class
                    named = importlib.import_module(f"{node.module}.{alias.name}")
                    modules[alias.asname or alias.name] = named
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and is_stored(node)}
    assigned |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        of = getattr(getattr(node, "value", None), "id", None)
        if isinstance(node, ast.Attribute) and of in modules.keys() - assigned:
            assert hasattr(modules[of], node.attr), f"{of}.{node.attr}"


def is_stored(node):
    return isinstance(node.ctx, ast.Store)


@each_notebook
def test_no_control_needs_a_kernel(name, path):
    assert not any("ipywidgets" in cell.source for cell in code_cells(path))


@each_notebook
def test_its_figures_are_committed(name, path):
    folder = stamps.figures(name, "quick")
    saved = {
        figure
        for cell in code_cells(path)
        for figure in re.findall(r'save_figure\(\s*\w+,\s*"(\w+)"', cell.source)
    }
    assert saved and saved <= {figure.stem for figure in folder.glob("*.png")}


@each_notebook
def test_every_figure_it_shows_is_a_file_and_every_file_is_shown(name, path):
    """By number and not by content, which another machine's `make figures` may change."""
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    shown = ["image/png" in output.get("data", {}) for output in outputs]
    assert sum(shown) == len(list(stamps.figures(name, "quick").glob("*.png")))


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_claim_that_needs_nothing_is_filled(lesson):
    rows = {}
    for profile in ("quick", "full", "paper"):
        rows |= results.read(stamps.rows_file(lesson, profile))
    expected = {
        claim
        for claim, entry in results.CLAIMS.items()
        if entry.notebook == lesson and not entry.needs
    }
    assert expected <= set(rows), f"open: {sorted(expected - set(rows))}"
    for claim, row in rows.items():
        assert results.CLAIMS[claim].notebook == lesson
        assert row["statement"] == results.CLAIMS[claim].statement
        assert row["needs"] or row["verdict"] != "not tested here"


def test_committed_figures_are_light_in_all():
    assert sum(png.stat().st_size for png in FIGURES) <= 12_000_000


@pytest.mark.parametrize("png", FIGURES, ids=lambda path: str(path.relative_to(ROOT / "figures")))
def test_every_figure_has_alt_text_and_provenance(png):
    alt = png.with_suffix(".txt").read_text()
    assert len(alt.split()) >= 8, "say what is plotted, the trend, the number to remember"
    with Image.open(png) as image:
        assert image.text["Description"] == alt.strip()
    provenance = json.loads(png.with_suffix(".json").read_text())
    assert {"profile", "seed", "sizes", "inputs", "versions"} <= set(provenance)
