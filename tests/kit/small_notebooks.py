"""Small notebooks, so that the pipeline can be tried without the real ones."""

from pathlib import Path

import nbformat

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
