"""What a notebook printed in a profile whose outputs are not committed, as one page of Markdown."""

import nbformat


def page(book: nbformat.NotebookNode, profile: str) -> str:
    """Return the headings of an executed notebook, each with what the cells below it printed.

    Headings below which nothing was printed are left out.
    """
    parts, heading = [f"*Printed by the run of profile `{profile}`.*"], []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            heading = [line for line in cell.source.splitlines() if line.startswith("#")] or heading
            continue
        streams = [o.text for o in cell.get("outputs", []) if o.get("name") == "stdout"]
        if text := "".join(streams).strip("\n"):
            parts += [*heading[-1:], f"```\n{text}\n```"]
            heading = []
    return "\n\n".join(parts) + "\n"
