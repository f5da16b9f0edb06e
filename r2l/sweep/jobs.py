"""What a sweep is: the file that describes it, its runs, what each is known by, and where it lies.

Runs are trainings, or notebooks with parameters. Papermill only logs a line when a notebook lacks a
parameter: here that is an error before anything runs.
"""

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from r2l.files import R2LError, choose, content_hash, identity, local_path, need_extra
from r2l.options import FIELDS, Options
from r2l.training.run_folder import WHERE, own_module, what_counts

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
_DEEPEST = 30  # of what is nested in a file; grids need three or four


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


def _find_notebook(path: Path, name: str) -> Path:
    """Return a notebook that a file names, relative to the file's folder or the one above, or raise."""
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


def _check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raise a ParameterError where a notebook lacks one of these, or has a default of another type."""
    known = defaults(notebook)
    for name, value in parameters.items():
        if name not in known:
            has = f"It has {', '.join(known)}"
            raise ParameterError(notebook.name, f"it has no parameter {name}", has)
        default = known[name]
        kind = {float: int | float, tuple: list}.get(type(default), type(default))
        alike = isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
        if not (alike or value is None or default is None):
            why = f"{name} is {value!r}, but the default is {default!r}"
            raise ParameterError(notebook.name, why, "Give a value of the same kind")


def _code_of(notebook: Path) -> str:
    """Return a hash of a notebook's code: its outputs and its words make no difference."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """One run of a sweep: of `r2l.training.experiment.experiment`, or of a notebook."""

    parameters: dict[str, Any]  # options or notebook parameters, by name
    axes: dict[str, Any] = field(default_factory=dict)  # its values on those of the grid
    notebook: Path | None = None  # None for a training
    files: str = ""  # hash of the files that the parameters name, as they are when the sweep is read

    @cached_property
    def hash(self) -> str:
        """Hash of all that the outcome depends on except this package's code."""
        if self.notebook is not None:
            return identity("notebook", _code_of(self.notebook), self.parameters, self.files)
        return identity("train", what_counts(self._options), self.files)

    def folder(self, runs: Path, code: str, any_code: bool = False) -> Path:
        """Return where in ``runs`` it lies: by its name, its hash, and the version of the code.

        With ``any_code`` a finished run of another version is taken, if there is one.
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
        texts = {a: " ".join(map(str, v)) if isinstance(v, list) else v for a, v in self.axes.items()}
        parts = (f"{axis}={text}" for axis, text in texts.items())
        return re.sub(r"[^\w.=+-]+", "_", " ".join(parts))[:100]

    def options(self, **given: Any) -> Options:
        """Return the options of a training; raises what they raise."""
        return replace(self._options, **given) if given else self._options

    @cached_property
    def _options(self) -> Options:
        return Options(**self.parameters)  # checked once, which takes a thousandth of a second

    def check(self) -> None:
        """Raise a ParameterError for an unknown name, or a value that is not possible."""
        if self.notebook is not None:
            _check_parameters(self.notebook, self.parameters)
            return
        try:
            for name in self.parameters:
                choose("option of a sweep", name, sorted(set(FIELDS) - set(WHERE)))
            _ = self._options
        except (ValueError, TypeError) as error:
            remedy = "See what each takes: `r2l train --help`"
            raise ParameterError(f"run {self.name}", str(error), remedy) from error


@dataclass(frozen=True)
class Sweep:
    """A list of runs, no two alike, and the file that it was read from."""

    name: str  # the file's; also of the mlflow experiment
    about: str
    jobs: tuple[Job, ...]
    path: Path


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

    Values that are ``given`` stand in the place of the file's, for all runs.

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
        values = (each for v in job.parameters.values() for each in (v if isinstance(v, list) else [v]))
        texts = [text for text in values if isinstance(text, str)]
        modules = (own_module(part) for text in texts for part in text.split("+"))
        paths = [path for path in (*map(local_path, texts), *modules) if path.is_file()]
        return identity(*map(content_hash, paths)) if paths else ""
    options = job.options()
    if options.dataset.startswith("Synthetic"):
        return ""  # as `data_identity` says too, once it is imported, which a plan need not wait for
    data = tuple(getattr(options, n) for n, f in FIELDS.items() if f.metadata["group"] == "Data")
    if data not in hashes:
        hashes[data] = resolve_name("r2l.datasets.from_options:data_identity")(options)
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
    notebook = _find_notebook(path, str(values["notebook"])) if kind == "notebook" else None
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
        if (runs := math.prod(map(len, axes.values()))) > _MOST_RUNS:
            remedy = f"At most {_MOST_RUNS} are possible: give fewer"
            raise ParameterError(path, f"grid: {runs:.3g} runs", remedy)
        for point in product(*axes.values()):
            yield dict(zip(axes, point, strict=True))


def _with_pipeline(path: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write ``pipeline`` out as the options that it stands for."""
    parameters = dict(parameters)
    pipeline = parameters.pop("pipeline", None)
    if pipeline is None:
        return parameters
    modes, text = FIELDS["processing_mode"].metadata["choices"], str(pipeline)
    mode = pipeline if pipeline in modes else "static"
    if (other := parameters.setdefault("processing_mode", mode)) != mode:
        why = f"pipeline {text} contradicts processing_mode {other}"
        raise ParameterError(path, why, "Leave processing_mode out: pipeline can say it too")
    if pipeline in modes:
        return parameters
    try:
        if "," not in text or set(text) & set("+@:/"):
            return {**parameters, "pipeline": resolve_name("r2l.isp.grammar:check_pipeline")(text)}
        parts = resolve_name("r2l.isp.static:parse_code")(text)  # torch comes with it, in seconds
    except ValueError as error:
        remedy = f"Give such a pipeline, or one of {', '.join(modes)}"
        raise ParameterError(path, f"pipeline: {error}", remedy) from error
    return {**parameters, **dict(zip(("sp_debayer", "sp_sharpening", "sp_denoising"), parts, strict=True))}
