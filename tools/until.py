"""Print a lesson up to the end of one section: `python -m tools.until notebooks/03_....ipynb "The matrix"`.

For `make demo`, which is to show the matrix and not what goes deeper.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell


def until(notebook: nbformat.NotebookNode, section: str) -> nbformat.NotebookNode:
    """Return the cells up to the heading that follows a section's own, and a last one that says so.

    Raises:
        ValueError: there is no such section; names those that there are.
    """
    headings = {
        number: cell.source.splitlines()[0].lstrip("# ")
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown" and cell.source.startswith("#")
    }
    if section not in headings.values():
        raise ValueError(f"no section {section!r}; there are: {', '.join(headings.values())}")
    first = next(number for number, heading in headings.items() if heading == section)
    end = min((number for number in headings if number > first), default=len(notebook.cells))
    left = [heading for number, heading in headings.items() if number >= end]
    if left:
        said = f"**Not run here:** {', '.join(left)}. They are in the lesson itself: `make lab`."
        notebook.cells[end:] = [new_markdown_cell(said)]
    return notebook


if __name__ == "__main__":
    lesson = nbformat.read(Path(sys.argv[1]), as_version=4)
    print(nbformat.writes(until(lesson, sys.argv[2])))
