"""Serve a lesson's sliders as a page: `python -m tools.explorer 02_differentiable_processing --visitors 3`.

Voila starts a kernel for each visitor. The lesson's cells run up to its explorer, unseen, and the explorer is
all that is shown. When as many as allowed are there, or memory is short, the next one reads so and is let in
as soon as there is room.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
from tornado.web import Finish
from traitlets.config import Config
from voila.app import Voila

from tools.places import NOTEBOOKS
from tools.solutions import tags

_EXPLORER = re.compile(r"\b\w+_explorer\(")
#: What a lesson's kernel takes, in bytes, with some to spare.
_KERNEL = 1.5e9
_IDLE = 1200
_FULL = """<!doctype html><html lang="en"><meta charset="utf-8"><title>One moment, please</title>
<meta http-equiv="refresh" content="20"><meta name="viewport" content="width=device-width">
<style>:root { color-scheme: light dark }
body { font: 1.2rem/1.6 sans-serif; max-width: 34em; margin: 15vh auto; padding: 0 1em }</style>
<h1>One moment, please</h1><p>WHY</p><p>You need do nothing: this page looks again every twenty seconds
and opens the sliders as soon as there is room.</p></html>"""


def sliders(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a lesson whose page is its first explorer, under the title of the explorer's section.

    Raises:
        ValueError: it has none.
    """
    lesson, section, unseen = "", "", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
            lesson, section = lesson or headings[0], headings[-1] if headings else section
        elif _EXPLORER.search(cell.source):
            below = f"Arrow keys move a slider by a step. From the lesson *{lesson}* of r2l."
            first, last = map(nbformat.v4.new_markdown_cell, (f"# {section}", below))
            notebook.cells = [first, *unseen, cell, last]
            notebook.metadata["title"] = f"{section} · r2l"
            return notebook
        elif not {"exercise", "solution"} & tags(cell):
            cell.source = "%%capture\n" + cell.source
            unseen.append(cell)
    raise ValueError("the lesson has no explorer")


def why_full(kernels: int, visitors: int, available: float) -> str | None:
    """Return why nobody more can be let in, or None."""
    if kernels >= visitors:
        people = "somebody else is" if visitors == 1 else f"{visitors} others are"
        return f"There is room for {visitors}, and {people} at the sliders."
    if available < _KERNEL:
        return "The machine that serves the sliders has no memory left for one more visitor."
    return None


def door(visitors: int) -> Callable[..., nbformat.NotebookNode]:
    """Return what Voila calls before it starts a visitor's kernel."""

    def enter(request: Any, notebook: nbformat.NotebookNode, cwd: str) -> nbformat.NotebookNode:
        kernels = len(request.kernel_manager.list_kernel_ids())
        if why := why_full(kernels, visitors, psutil.virtual_memory().available):
            request.set_status(503)
            request.set_header("Retry-After", "20")
            request.finish(_FULL.replace("WHY", why))
            raise Finish
        # The cookie with which the page may end its kernel when it is left.
        _ = request.xsrf_token
        return sliders(notebook)

    return enter


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A lesson's sliders as a page.")
    parser.add_argument("lesson", help="its name, such as 02_differentiable_processing, or a notebook's path")
    parser.add_argument("--ip", default="127.0.0.1")
    parser.add_argument("--port", default="8866")
    parser.add_argument("--visitors", type=int, default=3, help="at most so many at a time")
    asked = parser.parse_args()
    path = Path(asked.lesson)
    path = path if path.is_file() else NOTEBOOKS / f"{asked.lesson}.ipynb"
    sliders(nbformat.read(path, as_version=4))
    config = Config()
    config.VoilaConfiguration.prelaunch_hook = door(asked.visitors)
    # Who has gone to lunch makes room, page open or not.
    cull = {"cull_idle_timeout": _IDLE, "cull_interval": 60, "cull_connected": True}
    config.MappingKernelManager.update(cull)
    print(f"http://{asked.ip}:{asked.port}/ shows {asked.lesson} to {asked.visitors}; Ctrl-C ends it")
    listen = [f"--Voila.ip={asked.ip}", f"--port={asked.port}", "--Voila.log_level=WARN"]
    Voila.launch_instance([str(path), "--no-browser", *listen], config=config)


if __name__ == "__main__":
    main()
