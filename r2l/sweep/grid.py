"""Files that describe a sweep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from r2l.isp.static import parse_code
from r2l.options import FIELDS
from r2l.sweep.job import Job
from r2l.sweep.notebook import HEAD, ParameterError, find_notebook, read_experiment, read_yaml

#: Of a grid; more of them would not come to an end, and a typing error can ask for them.
_MOST_RUNS = 100_000
_SHAPE = (
    "expected is either 'train:' with options of r2l train, or 'notebook:' with the path of one and "
    "'parameters:'; and 'grid:' with a list of values for each name"
)


@dataclass(frozen=True)
class Sweep:
    """A list of runs.

    Attributes:
        name: of the sweep, its file's; also of the mlflow experiment.
        about: what it is, in words.
        jobs: its runs, no two alike.
    """

    name: str
    about: str
    jobs: tuple[Job, ...]


def read_sweep(path: str | Path, given: dict[str, Any] | None = None) -> Sweep:
    """Read a sweep: a grid of runs, or a parameter file of a notebook (one run).

    A grid is YAML such as::

        train: {dataset: SyntheticMicroscopy, epochs: 5, n_splits: 3}
        grid: {pipeline: ["bi,s,ga", "me,u,me", parametrized], fold: [0, 1, 2]}

    Every combination of the grid's values is one run. ``pipeline`` stands for the options of processing: a
    code of a static pipeline, or another processing mode. With ``notebook:`` and ``parameters:`` in the
    place of ``train:`` the runs are of a notebook. ``grid`` can be a list of grids.

    Args:
        path: of the file.
        given: values in the place of the file's, for all runs.

    Raises:
        OSError: the file can't be read.
        ParameterError: it is no such file, or one of its runs is not possible; says which.
    """
    path = Path(path)
    about, values = read_yaml(path)
    if f"# {about}".startswith(HEAD):
        experiment = read_experiment(path)
        about, parameters = experiment.about, experiment.parameters
        values = {"notebook": experiment.notebook.name, "parameters": parameters}
    jobs = tuple(_jobs(path, values, given or {}))
    seen: dict[str, Job] = {}
    for job in jobs:
        job.check()
        other = seen.setdefault(job.hash, job)
        if other is not job:
            raise ParameterError(f"{path}: {other.name} and {job.name} are one and the same run")
    return Sweep(path.stem, " ".join(about.split()), jobs)


def _jobs(path: Path, values: dict[str, Any], given: dict[str, Any]) -> Iterator[Job]:
    is_notebook = "notebook" in values
    known = {"notebook", "parameters", "grid"} if is_notebook else {"train", "grid"}
    if not is_notebook and "train" not in values:
        raise ParameterError(f"{path}: neither train nor notebook; {_SHAPE}")
    if odd := set(values) - known:
        raise ParameterError(f"{path}: {', '.join(sorted(odd))} is not known here; {_SHAPE}")
    fixed = _mapping(path, "parameters" if is_notebook else "train", values)
    notebook = str(find_notebook(path, str(values["notebook"]))) if is_notebook else None
    kind = "notebook" if is_notebook else "train"
    for place in _places(path, values.get("grid"), given):
        parameters = {**fixed, **given, **place}
        if not is_notebook:
            parameters = _with_pipeline(path, parameters)
        yield Job(kind, parameters, place, notebook)


def _mapping(path: Path, name: str, values: dict[str, Any]) -> dict[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ParameterError(f"{path}: below {name}, lines 'name: value' are expected")
    return found


def _places(path: Path, grid: Any, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the points of a grid, or of several; a single one with no axes if there is none."""
    for axes in grid if isinstance(grid, list) else [grid or {}]:
        if not isinstance(axes, dict):
            raise ParameterError(f"{path}: below grid, lines 'name: [value, ...]' are expected")
        for name, axis in axes.items():
            if not isinstance(name, str) or not isinstance(axis, list) or not axis:
                raise ParameterError(f"{path}: grid: {name} needs a list of values")
        axes = {name: [given[name]] if name in given else axis for name, axis in axes.items()}
        runs = math.prod(map(len, axes.values()))
        if runs > _MOST_RUNS:
            raise ParameterError(
                f"{path}: grid: {runs:.3g} runs, at most {_MOST_RUNS} are possible"
            )
        for point in product(*axes.values()):
            yield dict(zip(axes, point, strict=True))


def _with_pipeline(path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write ``pipeline`` out as the options that it stands for."""
    parameters = dict(parameters)
    pipeline = parameters.pop("pipeline", None)
    if pipeline is None:
        return parameters
    if pipeline in FIELDS["processing_mode"].metadata["choices"]:
        return {**parameters, "processing_mode": pipeline}
    try:
        parts = parse_code(str(pipeline))
    except ValueError as error:
        raise ParameterError(f"{path}: pipeline: {error}") from error
    names = ("sp_debayer", "sp_sharpening", "sp_denoising")
    return {**parameters, "processing_mode": "static", **dict(zip(names, parts, strict=True))}
