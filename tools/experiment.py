"""Run notebooks with the parameters of files: `python -m tools.experiment FILE.yaml ...`.

A parameter file's first line names its notebook: ``# Parameters for 03_drift_synthesis.ipynb``. The
comment lines below it say what the experiment is; the rest is YAML, one value a parameter.
papermill only logs a line when a notebook lacks a parameter, and makes no folders; here the one is
an error before anything runs, and the other is done.
"""

from __future__ import annotations

import ast
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import papermill
import typer
import yaml
from papermill.exceptions import PapermillExecutionError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
EXPERIMENTS = NOTEBOOKS / "experiments"
HEAD = "# Parameters for "


class ParameterError(ValueError):
    """A parameter file that does not fit its notebook; the message says where and what to do."""


@dataclass(frozen=True)
class Experiment:
    """One parameter file: the notebook it is for, what it does, and the values it gives."""

    path: Path
    notebook: Path
    about: str
    parameters: dict[str, Any]


def read_experiment(path: Path) -> Experiment:
    """Read a parameter file.

    Raises:
        OSError: the file can't be read.
        ParameterError: it does not name a notebook that exists, or is no mapping.
    """
    lines = path.read_text("utf-8").splitlines()
    if not lines or not lines[0].startswith(HEAD):
        raise ParameterError(f"{path}: the first line must read '{HEAD}NAME.ipynb'")
    notebook = NOTEBOOKS / lines[0].removeprefix(HEAD).strip()
    if not notebook.is_file():
        known = ", ".join(sorted(p.name for p in NOTEBOOKS.glob("[0-9]*.ipynb")))
        raise ParameterError(f"{path}: there is no notebook {notebook.name}; there are {known}")
    rest = lines[1:]
    about = next((i for i, line in enumerate(rest) if not line.startswith("#")), len(rest))
    try:
        values = yaml.safe_load("\n".join(rest)) or {}
    except yaml.YAMLError as error:
        raise ParameterError(f"{path}: no readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: one 'NAME: value' a line is expected")
    text = " ".join(line.lstrip("# ").strip() for line in rest[:about])
    return Experiment(path, notebook, text, values)


def defaults(notebook: Path) -> dict[str, Any]:
    """Return the parameters of a notebook with their values."""
    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(entry["default"]) for name, entry in found.items()}


def is_like(value: Any, default: Any) -> bool:
    """Whether ``value`` may stand in the place of ``default``: a list for a list, and so on."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list)
    return isinstance(value, type(default))


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Compare parameters with those that a notebook has.

    Raises:
        ParameterError: the notebook lacks one, or its default is of another type.
    """
    known = defaults(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise ParameterError(
                f"{notebook.name} has no parameter {name}; it has {', '.join(known)}"
            )
        if not is_like(value, known[name]):
            raise ParameterError(
                f"{notebook.name}: {name} is {value!r}, but the default is {known[name]!r}"
            )


def run(
    notebook: Path,
    parameters: dict[str, Any],
    folder: Path,
    cwd: Path = ROOT,
    progress: bool = True,
) -> Path:
    """Run a notebook with parameters and return where the executed one lies.

    Args:
        notebook: the notebook, which is left as it is.
        parameters: values by name; ``OUTPUT``, where the notebook has it, is always ``folder``.
        folder: where the executed notebook and what it writes go; made if need be.
        cwd: the folder that the notebook runs in, where it finds ``data/``.
        progress: whether to show a bar.

    Raises:
        ParameterError: see `check_parameters`.
        PapermillExecutionError: a cell failed; the executed notebook is kept, the error in it.
    """
    if "OUTPUT" in defaults(notebook):
        parameters = {**parameters, "OUTPUT": str(folder.resolve())}
    check_parameters(notebook, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / notebook.name
    papermill.execute_notebook(
        str(notebook), str(done), parameters=parameters, cwd=str(cwd), progress_bar=progress
    )
    return done


def run_file(path: Path, output: Path, given: dict[str, Any]) -> bool:
    """Run one parameter file into a folder of its name, say how it went, and whether it did."""
    folder = output / path.stem
    start = time.perf_counter()
    try:
        experiment = read_experiment(path)
        print(f"{path.stem}: {experiment.about or experiment.notebook.name}", flush=True)
        done = run(experiment.notebook, {**experiment.parameters, **given}, folder)
    except (ParameterError, OSError) as error:
        print(f"{path.stem}: not run. {error}", file=sys.stderr)
        return False
    except PapermillExecutionError as error:
        print(
            f"{path.stem}: failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"the notebook, the error in it: {folder}",
            file=sys.stderr,
        )
        return False
    print(f"{path.stem}: {time.perf_counter() - start:.0f} s, {done}")
    return True


def main(
    files: Annotated[list[Path], typer.Argument(help="Parameter files.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="One folder a file is made in it.")
    ] = ROOT / "runs" / "experiments",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="NAME=VALUE, in place of the file's."),
    ] = None,
) -> None:
    """Run notebooks with the parameters of files, one after the other."""
    given = {}
    for text in parameter or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text}: NAME=VALUE is expected")
        given[name] = yaml.safe_load(value)
    failed = [path.name for path in files if not run_file(path, output, given)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
