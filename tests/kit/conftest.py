"""Small roots with small notebooks, so that the pipeline can be tried without the real ones."""

import shutil
from pathlib import Path

import nbformat
import pytest

from lib.kit import session

PARAMETERS = 'profile: str = "quick"  # smoke | quick | full | paper\nseed: int = 0'


def write_notebook(root: Path, *cells: str, name: str = "01_ising", metadata=None) -> Path:
    """Write a notebook: a cell that starts with '#' is Markdown, the parameters come first."""
    book = nbformat.v4.new_notebook(metadata=metadata or {})
    book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    for cell in cells:
        markdown = cell.startswith("# ")
        new = nbformat.v4.new_markdown_cell if markdown else nbformat.v4.new_code_cell
        book.cells.append(new(cell))
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Give the kit an empty root with a cache of its own."""
    folder = tmp_path / "a root"
    folder.mkdir()
    monkeypatch.setenv("KIT_ROOT", str(folder))
    monkeypatch.delenv("KIT_CACHE", raising=False)
    return folder


@pytest.fixture
def session_in(tmp_path, monkeypatch):
    """Announce a session of the evidence of 01_ising that writes below tmp_path."""
    monkeypatch.setattr(session, "_current", None)
    output = tmp_path / "output"
    session.announce(session.Session("evidence/01_ising", "quick", 0, {"samples": 4}, output))
    return output


@pytest.fixture
def copied_lib(root):
    """Put a copy of lib/kit with two modules of its own under the root."""
    kit = session.CHECKOUT / "lib" / "kit"
    shutil.copytree(kit, root / "lib" / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "lib" / "__init__.py").touch()
    (root / "lib" / "used.py").write_text(
        "from lib import deeper\n\ndef f(x):\n    return deeper.g(x)\n"
    )
    (root / "lib" / "deeper.py").write_text("def g(x):\n    return 2 * x\n")
    (root / "lib" / "unrelated.py").write_text("def h(x):\n    return x\n")
    return root / "lib"
