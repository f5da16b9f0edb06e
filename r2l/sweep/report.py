"""What came out of a sweep: tables, matrices, a page that shows them and says what failed; what is left."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from dask.utils import format_bytes, format_time

from r2l.files import atomic_path, csv_text, read_csv
from r2l.isp.static import pipeline_code
from r2l.options import resolve_options
from r2l.sweep.jobs import RESULT, Job, Sweep
from r2l.training.run_folder import TESTED, code_version

if TYPE_CHECKING:
    import pandas as pd

#: What a run leaves beside its result.
LOG, ERROR = "log.txt", "error.txt"
PREDICTIONS, SCORES = "predictions.csv", "scores.csv"
#: Axes that a score is averaged over.
_REPEATS = ("fold", "seed")
_LINES = 20  # of the traceback of a run that failed


@dataclass(frozen=True)
class Outcome:
    """One run, and how it ended if it has."""

    job: Job
    folder: Path
    # "finished before" is by an earlier sweep.
    state: Literal["waiting", "finished", "finished before", "failed"] = "waiting"
    seconds: float = 0.0  # of the last attempt
    host: str = ""
    run_id: str | None = None  # of its mlflow record
    scores: dict[str, float] = field(default_factory=dict)  # means over its folds; none for notebooks
    error: str | None = None  # in one line

    @property
    def is_finished(self) -> bool:
        """Whether it is not to be done again."""
        return self.state.startswith("finished")

    def __str__(self) -> str:
        """Say in a line how it ended."""
        words = self.error or next((f"{k} {v:.3f}" for k, v in self.scores.items()), "")
        tail = f"{':' if self.error else ','} {words}" if words else ""
        return f"{self.state:8}  {self.job.name}  {self.seconds:.0f} s{tail}"

    def read(self) -> Outcome | None:
        """Return it as the run in its folder ended; None if that did not finish."""
        try:
            kept = json.loads((self.folder / RESULT).read_text("utf-8"))
            return replace(self, state="finished before", **{name: kept[name] for name in _KEPT})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self) -> None:
        """Write how it ended into its folder: from now on it is finished."""
        kept = {name: getattr(self, name) for name in _KEPT}
        with atomic_path(self.folder / RESULT) as partial:
            partial.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


_KEPT = ("seconds", "host", "run_id", "scores")


def read_outcomes(sweep: Sweep, folder: Path, *, any_code: bool = False) -> list[Outcome]:
    """Return where the runs of a sweep stand by what lies in its folder; ``any_code`` as in `run_sweep`."""
    code, runs = code_version(), folder.resolve() / "runs"
    waiting = [Outcome(job, job.folder(runs, code, any_code)) for job in sweep.jobs]
    return [outcome.read() or outcome for outcome in waiting]


def write_report(sweep: Sweep, outcomes: list[Outcome], folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write ``report.html``, ``runs.csv``, ``scores.csv`` and each matrix into the folder of a sweep.

    What they hold depends on the finished runs alone, not on how the sweep came to its end, except for the
    seconds and the ``notes`` of ``report.html``.

    Returns:
        Where the page lies.
    """
    import pandas as pd  # half a second: not for a plan

    runs = pd.DataFrame(
        {"run": run.job.name, **_axes(run), "state": run.state.removesuffix(" before"), **run.scores}
        for run in outcomes
    )
    summary, matrices = _scores_table(outcomes), list(_matrices(outcomes))
    tables = {"runs.csv": runs, SCORES: summary}
    for number, matrix in enumerate(matrices, 1):
        stem = "matrix" + (f"_{number}" if len(matrices) > 1 else "")
        tables[f"{stem}.csv"] = matrix["summary"].cells
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("r2l.sweep").joinpath("report.html.j2").read_text("utf-8")
    )
    page = template.render(
        sweep=sweep,
        count=Counter(run.state for run in outcomes),
        notes=notes,
        trained=_trained(outcomes),
        matrices=[{**matrix, "picture": _picture(matrix)} for matrix in matrices],
        summary=summary,
        runs=[_row(run, folder) for run in outcomes],
    )
    texts = {name: csv_text(table) for name, table in tables.items()}
    for name, text in {**texts, "report.html": page}.items():
        with atomic_path(folder / name) as part:
            part.write_text(text, "utf-8")
    return folder / "report.html"


def _scores_table(outcomes: list[Outcome]) -> pd.DataFrame:
    """Return mean and standard deviation of the first score by place on the grid, over folds and seeds."""
    import pandas as pd

    firsts = [(run, *next(iter(run.scores.items()))) for run in outcomes if run.scores]
    if not firsts:
        return pd.DataFrame()
    table = pd.DataFrame(
        {**_axes(run, without=_REPEATS), "score": score, "value": value} for run, score, value in firsts
    )
    by_place = table.groupby([n for n in table if n != "value"], sort=False, dropna=False)["value"]
    return by_place.agg(mean="mean", spread="std", lowest="min", runs="count").reset_index()


def _axes(run: Outcome, without: tuple[str, ...] = ()) -> dict[str, str]:
    return {axis: str(value) for axis, value in run.job.axes.items() if axis not in without}


def _pipeline_of(run: Outcome) -> str:
    """Return a training's pipeline, the code of its static one, or its processing mode."""
    options, _ = resolve_options(run.job.options())
    if options.pipeline:
        return options.pipeline
    if options.processing_mode != "static":
        return options.processing_mode
    return pipeline_code(options.sp_debayer, options.sp_sharpening, options.sp_denoising)


def _trained(outcomes: list[Outcome]) -> dict[str, str]:
    """Return what the trainings of a sweep were: of each option that tells it, all values that occur."""
    told: dict[str, dict[str, None]] = {}
    for run in outcomes:
        if run.job.notebook is not None:
            continue
        given = run.job.options()
        options, _ = resolve_options(given)
        masks = options.known_task == "segmentation"
        segmenter = f"{options.smp_network}/{options.smp_encoder}"
        values = {
            "data set": f"{options.dataset} {options.root or ''}".strip(),
            "task model": segmenter if masks else options.classifier_network,
            "processing": _pipeline_of(run),
            "epochs": options.epochs,
            "learning rate": f"{options.lr:g}, {'by default' if given.lr is None else 'given'}",
            "folds": options.n_splits,
            "seed": options.seed,
        }
        for name, value in values.items():
            told.setdefault(name, {})[str(value)] = None
    return {name: "; ".join(values) for name, values in told.items()}


def _matrices(outcomes: list[Outcome]) -> Iterator[dict[str, Any]]:
    """Yield name, summary and what is missing of the matrix at each place on the grid's other axes."""
    import pandas as pd

    groups: dict[str, list[Outcome]] = {}
    for run in outcomes:
        if run.job.notebook is None and run.job.options().tested_codes:
            axes = _axes(run, without=("pipeline", *_REPEATS))
            name = ", ".join(f"{axis} {value}" for axis, value in axes.items())
            groups.setdefault(name, []).append(run)
    for name, runs in groups.items():
        # Pairs need every image: a training pipeline is in it if all of its folds and seeds are finished.
        short = dict.fromkeys(_pipeline_of(run) for run in runs if not run.is_finished)
        tables = [read_csv(run.folder / TESTED) for run in runs if _pipeline_of(run) not in short]
        if not tables:
            continue
        table = pd.concat(tables, ignore_index=True)
        # What is trained with learned processing has no diagonal.
        table = table[table["train"].isin(set(table["test"]))]
        if table["test"].nunique() > 1:
            from r2l.drift.matrix import summarise  # takes seconds: not for a plan

            yield {"name": name, "summary": summarise(table), "missing": list(short)}


def _picture(matrix: dict[str, Any]) -> str:
    from r2l.viz import plot_matrix
    from r2l.viz.style import to_png

    figure = plot_matrix(matrix["summary"], title=matrix["name"] or "train (rows) x test (columns)")
    return base64.b64encode(to_png(figure, dpi=110, bbox_inches="tight")).decode()


def _row(run: Outcome, folder: Path) -> dict[str, Any]:
    """Return what the page says of a run; paths to what it left that people read are relative to the page."""
    names = [LOG, ERROR, PREDICTIONS, "matrix.png"]
    if run.job.notebook:
        names.insert(0, run.job.notebook.name)
    left = {name: run.folder / name for name in names if (run.folder / name).exists()}
    trace = left[ERROR].read_text("utf-8", "replace").splitlines() if ERROR in left else []
    return {
        "name": run.job.name,
        **vars(run),
        "scores": ", ".join(f"{k} {v:.3f}" for k, v in list(run.scores.items())[:3]),
        "trace": "\n".join(trace[-_LINES:]),
        "files": {n: Path(os.path.relpath(p, folder)).as_posix() for n, p in left.items()},
    }


def plan(outcomes: list[Outcome], workers: int, folder: Path) -> str:
    """Say what is left of a sweep, and what it will cost if what the finished runs took is any measure.

    The outcomes are those of `read_outcomes`, and workers share what is left of them.
    """
    done = [run for run in outcomes if run.is_finished]
    left = len(outcomes) - len(done)
    parents = folder.resolve(), *folder.resolve().parents
    free = shutil.disk_usage(next(place for place in parents if place.exists())).free
    time, disk = "not known: let one run finish (--limit 1) and ask again", "not known"
    if done:
        each = float(np.mean([run.seconds for run in done]))
        sizes = [p.stat().st_size for run in done for p in run.folder.rglob("*") if p.is_file()]
        size = sum(sizes) / len(done) * left
        # Runs are whole, so that the last ones may leave workers idle.
        whole = format_time(math.ceil(left / workers) * each)
        time = f"{whole} with {workers} worker(s), {format_time(each)} a run; the mean of "
        time = f"{time}{len(done)} finished run(s)" if left else "none"
        disk = f"{format_bytes(int(size))} more"
        disk += "; THIS IS MORE THAN THERE IS" if size > free else ""
    return (
        f"runs    {len(outcomes)}, of which {len(done)} are finished and {left} are left\n"
        f"time    {time}\ndisk    {disk}; {format_bytes(free)} are free"
    )
