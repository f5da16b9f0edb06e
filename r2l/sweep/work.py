"""What a worker does: one job in its folder, whatever happens to it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
from filelock import FileLock

from r2l.files import atomic_path
from r2l.sweep.job import RESULT, Job, code_version
from r2l.training.run_folder import TESTED

LOG, ERROR = "log.txt", "error.txt"
PREDICTIONS, SCORES = "predictions.csv", "scores.csv"


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep share.

    Attributes:
        sweep: its name, also of the mlflow experiment.
        store: address of the mlflow store.
        cwd: folder that runs work in, where they find ``data/``.
        code: version of the code that the sweep began with.
        threads: torch's, of each run; None leaves them alone.
    """

    sweep: str
    store: str
    cwd: str
    code: str
    threads: int | None = None


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        seconds: that it took, of the last attempt.
        host: the machine.
        run_id: of its mlflow record.
        scores: means over its folds; none for notebooks.
        error: one line, if it failed.
    """

    seconds: float
    host: str
    run_id: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None


def read_result(folder: Path) -> Result | None:
    """Return how the run in a folder ended; None if it did not finish."""
    try:
        return Result(**json.loads((folder / RESULT).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def carry_out(job: Job, folder: str, setting: Setting) -> Result:
    """Do a job, unless it is finished, and return how it ended: errors are a result too.

    It may be called for the same job at the same time elsewhere, as after the loss of a scheduler: the
    second waits for the first and takes its result.
    """
    start = time.perf_counter()
    place = Path(folder)
    try:
        _check_code(setting)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            return read_result(place) or _do(job, place, setting, start)
    except Exception as error:
        _keep_trace(place)
        return Result(time.perf_counter() - start, platform.node(), error=describe(error))


def describe(error: BaseException) -> str:
    """Return an error in one line: of a notebook the cell's, of anything else its kind and words."""
    if hasattr(error, "ename"):  # papermill's
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}".strip()
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@cache
def _own_code() -> str:
    return code_version()


def _check_code(setting: Setting) -> None:
    if _own_code() != setting.code:
        raise RuntimeError(
            f"this worker's r2l is of version {_own_code()}, the sweep's of {setting.code}: install the "
            "same code here, or start the workers anew after a change"
        )


def _do(job: Job, place: Path, setting: Setting, start: float) -> Result:
    (place / ERROR).unlink(missing_ok=True)
    with working_in(setting):
        run_id, scores = (_notebook if job.notebook else _train)(job, place, setting)
    result = Result(time.perf_counter() - start, platform.node(), run_id, scores)
    with atomic_path(place / RESULT) as partial:
        partial.write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    return result


@contextmanager
def working_in(setting: Setting) -> Iterator[None]:
    """Work in the sweep's folder with its number of threads: a worker does one run at a time."""
    import torch

    before = Path.cwd(), torch.get_num_threads()
    os.chdir(setting.cwd)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    try:
        yield
    finally:
        os.chdir(before[0])
        torch.set_num_threads(before[1])


def _train(job: Job, place: Path, setting: Setting) -> tuple[str, dict[str, float]]:
    from r2l.training.experiment import experiment

    options = job.options(
        experiment_name=setting.sweep,
        run_name=job.name,
        tracking_uri=setting.store,
        folder=str(place),
    )
    with (place / LOG).open("a", encoding="utf-8") as log:

        def say(text: str) -> None:
            print(text, file=log, flush=True)

        outcome = experiment(options, say=say, progress=False)
    tables = {PREDICTIONS: outcome.predictions, TESTED: outcome.tested, SCORES: outcome.scores}
    for name, table in tables.items():
        if table is not None:
            _write(table, place / name)
    means = outcome.scores.drop(columns=["fold", "processing"], errors="ignore").mean()
    return outcome.run_id, {name: float(value) for name, value in means.items()}


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as partial:
        table.to_csv(partial, index=False)


def _notebook(job: Job, place: Path, setting: Setting) -> tuple[str, dict[str, float]]:
    from r2l.sweep.notebook import run
    from r2l.training.tracking import track

    notebook = Path(job.notebook)
    tags = {"r2l.folder": str(place)}
    with track(setting.sweep, job.name, job.parameters, tags, setting.store) as record:
        try:
            run(notebook, job.parameters, place, Path(setting.cwd), progress=False)
        finally:
            # Of a failed run too: the error stands in it.
            if (place / notebook.name).exists():
                with record.files() as artefacts:
                    shutil.copy(place / notebook.name, artefacts)
    return record.run_id, {}


def _keep_trace(place: Path) -> None:
    """Write the error being handled beside what the run left, if the disk takes it."""
    try:
        (place / ERROR).write_text(traceback.format_exc(), "utf-8")
    except OSError:
        return


def last_lines(path: Path, number: int = 20) -> str:
    """Return the end of a text file; nothing if there is none."""
    try:
        return "\n".join(path.read_text("utf-8", "replace").splitlines()[-number:])
    except OSError:
        return ""


def size_of(folder: Path) -> int:
    """Return how many bytes a folder's files take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
