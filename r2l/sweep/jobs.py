"""What a sweep is: the file that describes it, its runs, what each is known by, and where it lies."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from r2l.files import content_hash, local_path
from r2l.isp.grammar import check_pipeline
from r2l.isp.static import parse_code
from r2l.options import FIELDS, Options
from r2l.sweep.notebook import ParameterError, check_parameters, code_of, find_notebook, read_yaml
from r2l.training.run_folder import WHERE, identity, what_counts

#: What a finished run leaves, last of all.
RESULT = "result.json"
#: Of a grid; more of them would not come to an end, and a typing error can ask for them.
_MOST_RUNS = 100_000
_HEAD = "Parameters for "
_SHAPE = (
    "Give either 'train:' with options of r2l train, or 'notebook:' with the path of one and "
    "'parameters:'; and 'grid:' with a list of values for each name. In a notebook's own parameter file "
    f"the first line must read '# {_HEAD}NAME.ipynb'"
)
_LINES = "Give lines 'name: value'"


@dataclass(frozen=True)
class Job:
    """One run of a sweep: of `r2l.training.experiment.experiment`, or of a notebook.

    Attributes:
        parameters: options or notebook parameters, by name.
        axes: its values on the axes of the grid; empty for a sweep of one run.
        notebook: the notebook; None for a training.
        files: hash of the files that the parameters name, as they are when the sweep is read.
    """

    parameters: dict[str, Any]
    axes: dict[str, Any] = field(default_factory=dict)
    notebook: Path | None = None
    files: str = ""

    @cached_property
    def hash(self) -> str:
        """Hash of all that the outcome depends on except this package's code."""
        if self.notebook is not None:
            return identity("notebook", code_of(self.notebook), self.parameters, self.files)
        return identity("train", what_counts(self.options()), self.files)

    def folder(self, runs: Path, code: str, any_code: bool = False) -> Path:
        """Return where the run lies: its name, its hash, and the version of the code.

        Args:
            runs: the folder of all runs.
            code: see `code_version`.
            any_code: take a finished run of another version, if there is one.
        """
        folder = runs / f"{self.name}-{self.hash}-{code[:6]}"
        if any_code and not (folder / RESULT).exists():
            others = sorted(p.parent for p in runs.glob(f"*-{self.hash}-*/{RESULT}"))
            return others[-1] if others else folder
        return folder

    @property
    def name(self) -> str:
        """Its values on the grid as a name that a folder can have."""
        if not self.axes:
            return self.notebook.stem if self.notebook else "train"
        parts = (f"{axis}={_plain(value)}" for axis, value in self.axes.items())
        return re.sub(r"[^\w.=+-]+", "_", " ".join(parts))[:100]

    def options(self, **given: Any) -> Options:
        """Return the options of a training.

        Raises:
            ValueError: values that do not exist or contradict each other.
        """
        return Options(**{**self.parameters, **given})

    def check(self) -> None:
        """Find what can be found wrong before anything runs.

        Raises:
            ParameterError: an unknown name, or a value that is not possible.
        """
        if self.notebook is not None:
            check_parameters(self.notebook, self.parameters)
            return
        known = sorted(set(FIELDS) - set(WHERE))
        for name in self.parameters:
            if name not in known:
                raise ParameterError(
                    f"run {self.name}",
                    f"r2l train has no option {name} that a sweep can give",
                    f"There are {', '.join(known)}, and pipeline",
                )
        try:
            self.options()
        except (ValueError, TypeError) as error:
            remedy = "`r2l train --help` says what each option takes"
            raise ParameterError(f"run {self.name}", str(error), remedy) from error


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Sweep:
    """A list of runs.

    Attributes:
        name: of the sweep, its file's; also of the mlflow experiment.
        about: what it is, in words.
        jobs: its runs, no two alike.
        path: of its file.
    """

    name: str
    about: str
    jobs: tuple[Job, ...]
    path: Path | None = None


def read_sweep(path: str | Path, given: dict[str, Any] | None = None) -> Sweep:
    """Read a sweep: a grid of runs, or a parameter file of a notebook (one run).

    The first line of a parameter file names the notebook, ``# Parameters for 03_drift_synthesis.ipynb``,
    which lies beside the file or one folder above; the rest is one value a parameter.

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
    first, _, rest = about.partition("\n")
    if first.startswith(_HEAD):
        about, values = rest, {"notebook": first.removeprefix(_HEAD), "parameters": values}
    jobs, seen = [], {}
    hashes: dict[tuple, str] = {}
    for job in _jobs(path, values, given or {}):
        job.check()
        job = replace(job, files=_files_of(job, hashes))
        jobs.append(job)
        other = seen.setdefault(job.hash, job)
        if other is not job:
            same = f"{other.name} and {job.name} are one and the same run"
            raise ParameterError(path, same, "Take one of the two out")
    return Sweep(path.stem, " ".join(about.split()), tuple(jobs), path)


def _files_of(job: Job, hashes: dict[tuple, str]) -> str:
    """Return a hash of the files that a run's parameters name; ``hashes`` has those of the runs before."""
    if job.notebook is not None:
        named = [str(value) for value in job.parameters.values() if isinstance(value, str)]
        paths = [path for path in map(local_path, named) if path.is_file()]
        return identity(*map(content_hash, paths)) if paths else ""
    options = job.options()
    if options.dataset.startswith("Synthetic"):
        return ""  # as `data_identity` says too, once it is imported, which a plan need not wait for
    data = tuple(getattr(options, n) for n, f in FIELDS.items() if f.metadata["group"] == "Data")
    if data not in hashes:
        hashes[data] = resolve_name("r2l.training.data:data_identity")(options)
    return hashes[data]


def _jobs(path: Path, values: dict[str, Any], given: dict[str, Any]) -> Iterator[Job]:
    kind, block = ("notebook", "parameters") if "notebook" in values else ("train", "train")
    if kind not in values:
        raise ParameterError(path, "neither train nor notebook", _SHAPE)
    if odd := set(values) - {kind, block, "grid"}:
        raise ParameterError(path, f"{', '.join(sorted(odd))} is not known here", _SHAPE)
    fixed = values.get(block) or {}
    if not isinstance(fixed, dict) or not all(isinstance(key, str) for key in fixed):
        raise ParameterError(path, f"below {block} are no values by name", _LINES)
    notebook = find_notebook(path, str(values["notebook"])) if kind == "notebook" else None
    for axes in _points(path, values.get("grid"), given):
        parameters = {**fixed, **given, **axes}
        if notebook is None:
            parameters = _with_pipeline(path, parameters)
        yield Job(parameters, axes, notebook)


def _points(path: Path, grid: Any, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the points of a grid, or of several; a single one with no axes if there is none."""
    for axes in grid if isinstance(grid, list) else [grid or {}]:
        lines = "Give lines 'name: [value, ...]'"
        if not isinstance(axes, dict):
            raise ParameterError(path, "below grid are no lists by name", lines)
        for name, axis in axes.items():
            if not isinstance(name, str) or not isinstance(axis, list) or not axis:
                raise ParameterError(path, f"grid: {name} needs a list of values", lines)
        axes = {name: [given[name]] if name in given else axis for name, axis in axes.items()}
        runs = math.prod(map(len, axes.values()))
        if runs > _MOST_RUNS:
            raise ParameterError(
                path, f"grid: {runs:.3g} runs", f"At most {_MOST_RUNS} are possible: give fewer"
            )
        for point in product(*axes.values()):
            yield dict(zip(axes, point, strict=True))


def _with_pipeline(path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write ``pipeline`` out as the options that it stands for."""
    parameters = dict(parameters)
    pipeline = parameters.pop("pipeline", None)
    if pipeline is None:
        return parameters
    modes = FIELDS["processing_mode"].metadata["choices"]
    if pipeline in modes:
        return {**parameters, "processing_mode": pipeline}
    try:
        if "," not in str(pipeline) or set(str(pipeline)) & set("+@:/"):
            return {**parameters, "pipeline": check_pipeline(str(pipeline))}
        parts = parse_code(str(pipeline))
    except ValueError as error:
        remedy = f"Give such a pipeline, or one of {', '.join(modes)}"
        raise ParameterError(path, f"pipeline: {error}", remedy) from error
    names = ("sp_debayer", "sp_sharpening", "sp_denoising")
    return {**parameters, "processing_mode": "static", **dict(zip(names, parts, strict=True))}
