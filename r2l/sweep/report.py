"""What came out of a sweep: tables, matrices, and a page that shows them and says what failed."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from r2l.drift.matrix import MatrixSummary, summarise
from r2l.files import atomic_path
from r2l.isp.static import pipeline_code
from r2l.sweep.board import Board, Entry
from r2l.sweep.grid import Sweep
from r2l.sweep.work import ERROR, LOG, PREDICTIONS, last_lines
from r2l.training.run_folder import TESTED

REPORT, RUNS, SUMMARY = "report.html", "runs.csv", "scores.csv"
#: Axes that a score is averaged over.
_REPEATS = ("fold", "seed")


@dataclass(frozen=True)
class Matrix:
    """One train x test matrix of a sweep.

    Attributes:
        name: the values on the other axes of the grid; "" if there are none.
        summary: the matrix.
        missing: training pipelines that lack runs, and are left out.
    """

    name: str
    summary: MatrixSummary
    missing: tuple[str, ...]


def write_report(sweep: Sweep, board: Board, folder: Path) -> Path:
    """Write ``report.html``, ``runs.csv``, ``scores.csv`` and each matrix into the folder of a sweep.

    What they hold depends on the finished runs alone, not on how the sweep came to its end, except for the
    seconds of ``report.html``.

    Returns:
        Where the page lies.
    """
    runs, summary, found = runs_table(board), scores_table(board), list(matrices(board))
    _write(folder / RUNS, runs.to_csv(index=False))
    _write(folder / SUMMARY, summary.to_csv(index=False))
    shown = []
    for number, matrix in enumerate(found):
        stem = "matrix" + (f"_{number + 1}" if len(found) > 1 else "")
        _write(folder / f"{stem}.csv", matrix.summary.cells.to_csv(index=False))
        shown.append({"name": matrix.name, "missing": matrix.missing, **_drawn(matrix)})
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("r2l.sweep").joinpath("report.html.j2").read_text("utf-8")
    )
    page = template.render(
        sweep=sweep,
        count=board.count(),
        notes=board.notes,
        matrices=shown,
        summary=summary,
        failed=[_failure(entry, folder) for entry in board.failed],
        entries=[_row(entry, folder) for entry in board.entries],
    )
    _write(folder / REPORT, page)
    return folder / REPORT


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8")


def runs_table(board: Board) -> pd.DataFrame:
    """Return one row a run: its place on the grid, whether it is finished, its scores."""
    return pd.DataFrame(
        {
            "run": entry.job.name,
            **{axis: str(value) for axis, value in entry.job.place.items()},
            "state": _state(entry),
            **(entry.result.scores if entry.result else {}),
        }
        for entry in board.entries
    )


def _state(entry: Entry) -> str:
    return "finished" if entry.status == "kept" else entry.status


def scores_table(board: Board) -> pd.DataFrame:
    """Return mean and spread of the first score by place on the grid, over folds and seeds.

    The spread is the standard deviation of the runs: folds share training images, so that it says less
    about new data than the intervals of a matrix do.
    """
    rows = [
        {**_axes(entry, _REPEATS), "score": next(iter(entry.result.scores))}
        | {"value": next(iter(entry.result.scores.values()))}
        for entry in board.entries
        if entry.result and entry.result.scores
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    keys = [name for name in table if name != "value"]
    found = table.groupby(keys, sort=False, dropna=False)["value"]
    return found.agg(mean="mean", spread="std", lowest="min", runs="count").reset_index()


def _axes(entry: Entry, without: tuple[str, ...]) -> dict[str, str]:
    return {axis: str(value) for axis, value in entry.job.place.items() if axis not in without}


def pipeline_of(entry: Entry) -> str:
    """Return the code of a training's static pipeline, or its processing mode."""
    options = entry.job.options()
    if options.processing_mode != "static":
        return options.processing_mode
    return pipeline_code(options.sp_debayer, options.sp_sharpening, options.sp_denoising)


def matrices(board: Board) -> Iterator[Matrix]:
    """Return the train x test matrix of each place on the grid's other axes than pipeline, fold and seed.

    A training pipeline is in it if all of its folds and seeds are finished: pairs need every image.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
    for entry in board.entries:
        if entry.job.notebook is None and entry.job.options().tested_codes:
            place = tuple(_axes(entry, ("pipeline", *_REPEATS)).items())
            groups.setdefault(place, []).append(entry)
    for place, entries in groups.items():
        pipelines = list(dict.fromkeys(pipeline_of(entry) for entry in entries))
        short = {
            pipeline_of(entry) for entry in entries if entry.result is None or entry.result.error
        }
        tables = [_tested(entry) for entry in entries if pipeline_of(entry) not in short]
        if not tables:
            continue
        table = pd.concat(tables, ignore_index=True)
        # What is trained with learned processing has no diagonal.
        table = table[table["train"].isin(set(table["test"]))]
        if table["test"].nunique() > 1:
            name = ", ".join(f"{axis} {value}" for axis, value in place)
            missing = tuple(code for code in pipelines if code in short)
            yield Matrix(name, summarise(table), missing)


def _tested(entry: Entry) -> pd.DataFrame:
    table = pd.read_csv(entry.folder / TESTED)
    return table.assign(train=pipeline_of(entry), seed=entry.job.options().seed)


def _drawn(matrix: Matrix) -> dict[str, str]:
    from r2l.viz import plot_matrix

    figure = plot_matrix(matrix.summary, title=matrix.name or "train (rows) x test (columns)")
    return {"picture": _png(figure), "text": str(matrix.summary)}


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()


def _failure(entry: Entry, folder: Path) -> dict[str, Any]:
    return {
        "name": entry.job.name,
        "error": entry.result.error,
        "host": entry.host,
        "trace": last_lines(entry.folder / ERROR),
        "files": _files(entry, folder),
    }


def _row(entry: Entry, folder: Path) -> dict[str, Any]:
    result = entry.result
    return {
        "name": entry.job.name,
        "state": "finished before" if entry.status == "kept" else entry.status,
        "seconds": f"{result.seconds:.0f}" if result else "",
        "host": result.host if result else "",
        "scores": ", ".join(f"{k} {v:.3f}" for k, v in list(result.scores.items())[:3])
        if result
        else "",
        "run_id": result.run_id if result else "",
        "files": _files(entry, folder),
    }


def _files(entry: Entry, folder: Path) -> dict[str, str]:
    """Return what a run left that people read, by name, with paths relative to the page."""
    names = [LOG, ERROR, PREDICTIONS, "matrix.png"]
    if entry.job.notebook:
        names.insert(0, Path(entry.job.notebook).name)
    there = [name for name in names if (entry.folder / name).exists()]
    return {name: Path(os.path.relpath(entry.folder / name, folder)).as_posix() for name in there}
