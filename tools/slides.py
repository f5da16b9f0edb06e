"""Make slides of the lessons' own cells, reveal.js beside them: `python -m tools.slides [folder]`.

A cell whose metadata say what slide it is (View, Right Sidebar, Slide Type) is that. Of the others: a
heading begins a slide with the paragraph below it, what follows goes to the speaker's notes (key S); a figure
is shown without its code; short code is shown; set-up, exercises and answers are left out.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nbformat
import sphinx_revealjs
from nbconvert import SlidesExporter
from traitlets.config import Config

from tools.places import NOTEBOOKS, ROOT
from tools.solutions import tags

_REVEAL = Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs"
_LEFT_OUT = {"parameters", "exercise", "solution"}
_SKIPPED = {"What you need", "Parameters", "Try it"}
_WIDGET = "application/vnd.jupyter.widget-view+json"
#: Longer code is not read on a wall.
_LINES = 14
#: nbconvert's template asks require.js for reveal.js, and MathJax at each change: this stands for both.
_SHIM = """
window.require = (options, names, run) => run(Reveal, RevealNotes);
window.MathJax = { Hub: new Proxy({}, { get: () => () => null }) };
"""
_STYLE = """<style>
.reveal .slides section { max-height: 100%; overflow: hidden auto; }
.reveal .slides section :is(p, li) { text-align: left; font-size: 26px; line-height: 1.35; }
.reveal .slides img { width: 100%; max-height: 690px; object-fit: contain; margin: 0; }
.reveal .slides .jp-Cell, .reveal .slides .jp-OutputArea-output { padding: 0; }
.reveal pre { --jp-code-font-size: 19px; font-size: 19px; }
.reveal h1 { font-size: 54px; } .reveal h2 { font-size: 44px; } .reveal h3 { font-size: 36px; }
</style></head>"""
#: Diagrams, of which the lessons have none, come from elsewhere.
_MERMAID = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid.*?</script>', re.DOTALL)


def _typed(cell: nbformat.NotebookNode, kind: str) -> nbformat.NotebookNode:
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def _text(source: str) -> list[nbformat.NotebookNode]:
    """Return a text's slide, its heading and first paragraph, and the rest as the speaker's notes."""
    blocks = [b for b in re.split(r"\n{2,}", source.strip()) if not b.startswith("[![")]
    heading = re.match(r"#+", blocks[0]) if blocks else None
    kept = 2 if heading else 1
    kind = "slide" if heading and len(heading[0]) < 3 else "subslide"
    cells = [_typed(nbformat.v4.new_markdown_cell("\n\n".join(blocks[:kept])), kind)]
    if rest := "\n\n".join(blocks[kept:]):
        cells.append(_typed(nbformat.v4.new_markdown_cell(rest), "notes"))
    return cells if blocks else []


def _code(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return a figure without its code, or short code without what it prints, or nothing.

    An explorer answers nobody here: its code is left out too.
    """
    if any(_WIDGET in output.get("data", {}) for output in cell.outputs):
        return []
    figures = [o for o in cell.outputs if "<img" in "".join(o.get("data", {}).get("text/html", ""))]
    if figures:
        cell.outputs = figures
        cell.metadata["tags"] = ["only-figure"]
        return [_typed(cell, "subslide")]
    cell.outputs = []
    return [_typed(cell, "subslide")] if len(cell.source.splitlines()) <= _LINES else []


def slides(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a lesson with a slide type for each cell that is shown."""
    shown, section = [], ""
    for cell in notebook.cells:
        heading = cell.cell_type == "markdown" and re.match(r"##? (.+)", cell.source)
        if heading:
            section = heading[1].strip()
        if cell.metadata.get("slideshow", {}).get("slide_type"):
            shown.append(cell)
        elif section not in _SKIPPED and not _LEFT_OUT & tags(cell):
            shown += _text(cell.source) if cell.cell_type == "markdown" else _code(cell)
    notebook.cells = shown
    return notebook


def main(folder: str = str(ROOT / "build" / "slides")) -> None:
    """Write the lessons' slides, a page that lists them, and what they need, into a folder."""
    out = Path(folder)
    shutil.copytree(_REVEAL, out / "reveal.js", dirs_exist_ok=True)
    scripts = [_REVEAL / "dist" / "reveal.js", _REVEAL / "plugin" / "notes" / "notes.js"]
    texts = [script.read_text("utf-8") for script in scripts]
    (out / "reveal.js" / "all.js").write_text("\n".join([*texts, _SHIM]), "utf-8")
    exporter = {"reveal_url_prefix": "reveal.js", "reveal_theme": "white"}
    exporter |= {"reveal_width": "1280", "reveal_height": "720"}
    exporter |= {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter |= dict.fromkeys(("jquery_url", "mathjax_url"), "data:text/javascript,")
    exporter["require_js_url"] = "reveal.js/all.js"
    hidden = {"enabled": True, "remove_input_tags": {"only-figure"}}
    config = Config({"SlidesExporter": exporter, "TagRemovePreprocessor": hidden})
    lines = []
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        page, _ = SlidesExporter(config=config).from_notebook_node(
            slides(nbformat.read(path, as_version=4)), {"metadata": {"name": path.stem}}
        )
        page = _MERMAID.sub("", page).replace("</head>", _STYLE, 1)
        (out / f"{path.stem}.html").write_text(page, "utf-8")
        lines.append(f'<li><a href="{path.stem}.html">{path.stem}</a></li>')
    title = '<!doctype html><meta charset="utf-8"><title>r2l, slides</title><h1>r2l, slides</h1>'
    (out / "index.html").write_text("\n".join([title, "<ul>", *lines, "</ul>"]), "utf-8")
    print(out / "index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
