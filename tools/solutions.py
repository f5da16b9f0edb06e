"""Write the lessons with their answers filled in, for teachers: `python -m tools.solutions [folder]`.

The lessons hold both: a cell tagged ``exercise`` for the reader's answer, and behind it cells tagged
``solution``, folded. Here each solution takes the exercise's place, and none is folded.
What comes out lies in solutions/, which is not committed: the lessons are the source.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

from tools.places import NOTEBOOKS, ROOT

_CHECK = re.compile(r'\bcheck\("([^"]+)"')


def tags(cell: nbformat.NotebookNode | dict) -> set[str]:
    """Return a cell's tags."""
    return set(cell["metadata"].get("tags", ()))


def exercises(cells: list) -> dict[str, set[str]]:
    """Return which exercises the cells tagged ``exercise`` ask for, and which ``solution`` solves."""
    return {
        tag: {
            name
            for cell in cells
            if cell["cell_type"] == "code" and tag in tags(cell)
            for name in _CHECK.findall("".join(cell["source"]))
        }
        for tag in ("exercise", "solution")
    }


def solved(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook with its solutions in the exercises' places, open, for a clean kernel.

    Raises:
        ValueError: an exercise has no solution.
    """
    asked, answered = exercises(notebook.cells).values()
    if asked - answered:
        raise ValueError(f"no cell tagged 'solution' solves {', '.join(sorted(asked - answered))}")
    kept = []
    for cell in notebook.cells:
        if "exercise" in tags(cell) and _CHECK.search(cell.source):
            continue
        if "solution" in tags(cell):
            cell.metadata.pop("jupyter", None)
            cell.source = cell.source.replace("<details>", "<details open>")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        kept.append(cell)
    notebook.cells = kept
    return notebook


def main(folder: str = str(ROOT / "solutions")) -> None:
    """Write each lesson solved into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        nbformat.write(solved(nbformat.read(path, as_version=4)), Path(folder) / path.name)
        print(Path(folder) / path.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
