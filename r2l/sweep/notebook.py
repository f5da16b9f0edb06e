"""Notebooks run with parameters: papermill, with what it only warns of as errors.

papermill only logs a line when a notebook lacks a parameter, and makes no folders; here the one is an error
before anything runs, and the other is done.
"""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from r2l.files import R2LError, need_extra

# Grids need three or four.
_DEEPEST = 30


class ParameterError(R2LError, ValueError):
    """A file of parameters, or a parameter, that does not fit."""


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML without aliases: nine lines of them can stand for more values than memory holds."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node, as the base class does."""
        line = self.peek_event().start_mark.line + 1
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {line}: aliases (*name) are not taken here")
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"line {line}: nested more than {_DEEPEST} deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


# A number since YAML 1.2, and everywhere else; to 1.1 it is a word.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Return what YAML says, by a safe loader: no code, no aliases; 1e-3 is a number.

    >>> parse_yaml("[1e-3, 5]")
    [0.001, 5]

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is none; 2024-99-99 is of the second kind.
    """
    return yaml.load(text, _PlainLoader)


def read_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the comment that a YAML file begins with, and its mapping.

    Raises:
        OSError: the file can't be read.
        ParameterError: it is no text, no YAML, or no mapping.
    """
    remedy = "Give lines of the form 'name: value', as the files in experiments/ do"
    try:
        text = path.read_text("utf-8")
        values = parse_yaml(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ParameterError(path, f"no readable YAML: {error}", remedy) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ParameterError(path, "not values by name", remedy)
    lines = text.splitlines()
    about = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.lstrip("#").strip() for line in lines[:about]), values


def find_notebook(path: Path, name: str) -> Path:
    """Return a notebook that a file names, relative to the file's folder or the one above.

    Raises:
        ParameterError: it is at neither place.
    """
    folders = path.parent, path.parent.parent
    for folder in folders:
        if name.endswith(".ipynb") and (folder / name).is_file():
            return (folder / name).resolve()
    others = sorted(p.name for folder in folders for p in folder.glob("[0-9]*.ipynb"))
    raise ParameterError(path, f"there is no notebook {name}", f"There are {', '.join(others)}")


def defaults(notebook: Path) -> dict[str, Any]:
    """Return the parameters of a notebook with their values."""
    need_extra("notebooks", "papermill", "jupyterlab")
    import papermill

    parameters = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(entry["default"]) for name, entry in parameters.items()}


def _is_like(value: Any, default: Any) -> bool:
    """Whether ``value`` may stand in the place of ``default``: a list for a list, and so on."""
    if value is None or default is None:
        return True
    if isinstance(value, bool) != isinstance(default, bool):
        return False
    wider = {float: int | float, tuple: list}
    return isinstance(value, wider.get(type(default), type(default)))


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Compare parameters with those that a notebook has.

    Raises:
        ParameterError: the notebook lacks one, or its default is of another type.
    """
    known = defaults(notebook)
    for name, value in parameters.items():
        if name not in known:
            has = f"It has {', '.join(known)}"
            raise ParameterError(notebook.name, f"it has no parameter {name}", has)
        if not _is_like(value, known[name]):
            raise ParameterError(
                notebook.name,
                f"{name} is {value!r}, but the default is {known[name]!r}",
                "Give a value of the same kind",
            )


def code_of(notebook: Path) -> str:
    """Return a hash of a notebook's code: its outputs and its words make no difference."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def run(
    notebook: Path, parameters: dict[str, Any], folder: Path, cwd: Path | None = None, progress: bool = True
) -> Path:
    """Run a notebook with parameters and return where the executed one lies.

    Args:
        notebook: the notebook, which is left as it is.
        parameters: values by name; ``OUTPUT``, where the notebook has it, is always ``folder``.
        folder: where the executed notebook and what it writes go; made if need be.
        cwd: the folder that the notebook runs in, where it finds ``data/``; None for the working folder.
        progress: whether to show a bar.

    Raises:
        ParameterError: see `check_parameters`.
        PapermillExecutionError: a cell failed; the executed notebook is kept, the error in it.
    """
    import papermill

    if "OUTPUT" in defaults(notebook):
        parameters = {**parameters, "OUTPUT": str(folder.resolve())}
    check_parameters(notebook, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / notebook.name
    cwd = str(cwd or Path.cwd())
    papermill.execute_notebook(
        str(notebook), str(done), parameters=parameters, cwd=cwd, progress_bar=progress
    )
    return done
