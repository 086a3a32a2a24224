"""A notebook is stale when code, its part of lib, lock, weights, settings or outputs changed."""

import nbformat
import pytest
from conftest import write_notebook

from lib.kit import pipeline, stamps

QUICK = {"profile": "quick"}
CELLS = ("# A title", "%matplotlib inline\nfrom lib import used", "plot(colour='blue')")


@pytest.fixture
def finished(root, copied_lib):
    """Stamp a notebook as if it had run: one figure, one lock, one folder of weights."""
    write_notebook(root, *CELLS, metadata={"kit": {"weights": ["tiny"]}})
    (root / "requirements.lock").write_text("numpy==1\n")
    (root / "models" / "tiny").mkdir(parents=True)
    (root / "models" / "tiny" / "model.safetensors").write_bytes(b"one")
    figure = root / "figures" / "01_ising" / "map.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"figure")
    made_from = stamps.inputs("01_ising", "quick", QUICK)
    stamps.write_stamp("01_ising", made_from, [figure], {})
    return root


def reason(parameters=QUICK, profile="quick"):
    return stamps.reason_stale("01_ising", profile, parameters)


def edit_cell(root, old, new):
    path = root / "notebooks" / "01_ising.ipynb"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_finished_notebook_is_up_to_date(finished):
    assert reason() == ""


def test_editing_a_plot_makes_it_stale(finished):
    edit_cell(finished, "blue", "red")
    assert reason() == "changed: cells"


def test_editing_markdown_or_outputs_or_times_does_not(finished):
    edit_cell(finished, "A title", "Another title")
    path = finished / "notebooks" / "01_ising.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="hello")]
    book.cells[2].execution_count = 4
    nbformat.write(book, path)
    (finished / "lib" / "deeper.py").touch()
    assert reason() == ""


def test_editing_a_used_function_makes_it_stale(finished):
    (finished / "lib" / "deeper.py").write_text("def g(x):\n    return 3 * x\n")
    assert reason() == "changed: lib"


def test_editing_an_unrelated_module_does_not(finished):
    (finished / "lib" / "unrelated.py").write_text("def h(x):\n    return -x\n")
    assert reason() == ""


def test_another_lock_or_other_weights_make_it_stale(finished):
    (finished / "requirements.lock").write_text("numpy==2\n")
    (finished / "models" / "tiny" / "model.safetensors").write_bytes(b"two!")
    assert reason() == "changed: lock, weights"


def test_weights_that_a_cell_names_need_no_metadata(finished):
    other = finished / "models" / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"one")
    edit_cell(finished, "colour='blue'", 'load(\\"other\\")')
    assert reason() == "changed: cells, weights"
    assert set(stamps.inputs("01_ising", "quick", QUICK)["weights"]) == {"tiny", "other"}


def test_other_parameters_and_profiles_are_not_done(finished):
    assert reason({**QUICK, "seed": 1}) == "changed: parameters"
    assert reason({"profile": "full"}, "full") == "not run yet"


def test_a_deleted_figure_makes_it_stale(finished):
    (finished / "figures" / "01_ising" / "map.png").unlink()
    assert reason() == "missing: figures/01_ising/map.png"


def test_an_edited_figure_makes_it_stale(finished):
    (finished / "figures" / "01_ising" / "map.png").write_bytes(b"touched up")
    assert reason() == "edited: figures/01_ising/map.png"


def test_the_state_is_said_with_its_reason(finished, capsys):
    edit_cell(finished, "blue", "red")
    assert pipeline.main(["stale"]) == 0
    assert capsys.readouterr().out == "01_ising quick: changed: cells\n"


def test_missing_weights_are_named(finished):
    (finished / "models" / "tiny" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights at 'tiny'"):
        reason()


@pytest.mark.parametrize("copy", ["01_ising-Copy1", "01_ising (1)", "01_Ising", "Untitled"])
def test_a_copy_beside_a_notebook_is_none(root, copy):
    for name in ("01_ising", copy):
        write_notebook(root, name=name)
    assert list(stamps.notebooks()) == ["01_ising"]
