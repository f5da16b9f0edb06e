"""Run every notebook at its defaults, from a clean kernel, and keep the outputs: `make notebooks`."""

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LARGEST = 2000 * 1024
# Where a run was made, when, and how its widgets stood: nothing that a reader needs.
PRIVATE = {"papermill", "widgets", "execution", "ExecuteTime"}
# A picture with alternative text (`r2l.viz.with_alt`).
IN_PAGE = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=]+")


def with_palette(png: str) -> str:
    """Return a base64 PNG with 256 colours: less than half the size, and nobody sees it."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, kmeans=1).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def slim(notebook: nbformat.NotebookNode) -> None:
    """Shrink the pictures, and take out where and when the run was made."""
    for part in (notebook, *notebook.cells):
        for key in PRIVATE & set(part.metadata):
            del part.metadata[key]
        for output in part.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = with_palette(data["image/png"])
            if "text/html" in data:
                data["text/html"] = IN_PAGE.sub(lambda m: with_palette(m[0]), data["text/html"])


def run(path: Path, work: Path) -> None:
    """Execute one notebook in the folder ``work`` and write it back with its outputs."""
    done = work / path.name
    # The parameters cell stays as it is: without values to inject papermill adds no cell.
    papermill.execute_notebook(str(path), str(done), cwd=str(work), log_output=False)
    notebook = nbformat.read(done, as_version=4)
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    slim(notebook)
    nbformat.write(notebook, path)
    size = path.stat().st_size
    print(f"{path.name}: {size // 1024} KiB")
    if size > LARGEST:
        raise SystemExit(f"{path.name} is larger than {LARGEST // 1024} KiB: smaller figures, please")


def find(name: str) -> Path:
    """Return the notebook at a path, or the one whose name begins so: 02, 02_differentiable."""
    if Path(name).is_file():
        return Path(name)
    found = sorted(NOTEBOOKS.glob(f"{name}*.ipynb")) if name else []
    if len(found) != 1:
        known = ", ".join(p.stem for p in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")))
        raise SystemExit(f"no notebook, or several, of the name {name!r}; there are {known}")
    return found[0]


def main() -> None:
    """Run the notebooks named on the command line, by path or by name, or all."""
    chosen = [find(a) for a in sys.argv[1:]] or sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    with tempfile.TemporaryDirectory() as work:
        for path in chosen:
            run(path, Path(work))


if __name__ == "__main__":
    main()
