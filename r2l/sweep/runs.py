"""The runs of a sweep: how a worker does one, whatever happens to it, and how all are seen to.

What isn't finished goes to the workers, until nothing is left.
"""

from __future__ import annotations

import gc
import json
import logging
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from r2l.files import atomic_path, write_csv
from r2l.sweep.engine import ClusterError, Engine
from r2l.sweep.jobs import Job, ParameterError, Sweep, defaults
from r2l.sweep.report import ERROR, LOG, PREDICTIONS, SCORES, Outcome, read_outcomes, write_report
from r2l.training.run_folder import TESTED, code_version
from r2l.training.tracking import open_client, sqlite_path, store_address

if TYPE_CHECKING:
    from distributed import Client, Future

#: Losses of the scheduler in a row, with no run finished between, after which a sweep gives up.
_LOSSES = 5


class _LostError(Exception):
    """The scheduler does not know of our runs any more."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep share."""

    sweep: str  # its name, also of the mlflow experiment
    store: str  # address of the mlflow store
    cwd: str  # folder that runs work in, where they find ``data/``
    code: str  # version of the code that the sweep began with
    threads: int | None = None  # torch's, of each run; None leaves them alone


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    engine: Engine,
    *,
    store: str | None = None,
    any_code: bool = False,
    limit: int | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Carry out the runs of a sweep that aren't finished, write its report, and return how each ended.

    A run that fails leaves its log and its error, and does not stop the others. One whose worker dies is
    given to another one. When the scheduler is lost, a new connection is made and what is left is sent again.
    Everything that is finished is on disk, so that a sweep that was stopped in whatever way goes on when
    it is called again.

    Each run has a folder in that of the sweep, which all workers must see under the same path; ``store``,
    ``any_code`` and ``limit`` are as `r2l sweep` has them. How each run ended is told on the console.

    Raises:
        ParameterError: another process is at work in the folder, or it holds the sweep of another file.
        ClusterError: no workers, or they were lost again and again.
        OSError: folder or store can't be written.
    """
    from distributed.utils import silence_logging_cmgr

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _claimed(sweep, folder):
        setting = _setting(sweep, engine, store)
        outcomes = read_outcomes(sweep, folder, any_code=any_code)
        if limit is not None:
            beyond = {run.folder for run in _left(outcomes)[limit:]}
            outcomes = [run for run in outcomes if run.folder not in beyond]
        if _left(outcomes):
            engine.prepare()
            import_module("r2l.viz.drift")  # of the report: now, when there is nothing to wait for
        open_client(setting.store)  # Noticed now, and made once, not by all workers together.
        # What a loss means for the runs is told; Dask's tracebacks would go right through it.
        with silence_logging_cmgr(logging.CRITICAL), _bar(console or Console()) as bar:
            notes = _until_done(outcomes, engine, setting, bar)
        write_report(sweep, outcomes, folder, notes)
    return outcomes


def _left(outcomes: list[Outcome]) -> list[Outcome]:
    return [run for run in outcomes if run.state == "waiting"]


@contextmanager
def _claimed(sweep: Sweep, folder: Path) -> Iterator[None]:
    """Keep a folder for this process, and for the sweep's file: another's report is not written over."""
    note, source = folder / "sweep.json", str(sweep.path.resolve())
    try:
        with FileLock(folder / ".lock", timeout=0):
            other = json.loads(note.read_text("utf-8"))["file"] if note.exists() else source
            # One that is not there any more has moved.
            if other != source and Path(other).exists():
                remedy = "Give another --folder, or rename one of the two"
                raise ParameterError(folder, f"it holds the sweep of {other}", remedy)
            with atomic_path(note) as part:
                part.write_text(json.dumps({"file": source}) + "\n", "utf-8")
            yield
    except Timeout:
        raise ParameterError(
            folder, "another process is at work on this sweep", "Wait for it, or give another --folder"
        ) from None


def _setting(sweep: Sweep, engine: Engine, store: str | None) -> Setting:
    store = store_address(store)
    if path := sqlite_path(store):
        # Means the same on a worker, whatever folder that is in.
        store = f"sqlite:///{path.resolve()}"
    return Setting(sweep.name, store, str(Path.cwd()), code_version(), engine.threads)


def _bar(console: Console) -> Progress:
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _until_done(outcomes: list[Outcome], engine: Engine, setting: Setting, bar: Progress) -> list[str]:
    """Carry out what is left, put how each run ended into ``outcomes``, and tell it; return the losses."""
    places = {run.folder: place for place, run in enumerate(outcomes)}
    task = bar.add_task("runs", total=len(outcomes))
    tell = partial(bar.console.print, markup=False, highlight=False, soft_wrap=True)
    notes, losses = [], 0
    while left := _left(outcomes):
        bar.update(task, completed=len(outcomes) - len(left))
        try:
            with engine.connect() as client:
                for done in _ended(client, left, setting):
                    outcomes[places[done.folder]] = done
                    bar.advance(task)
                    tell(f"[{len(outcomes) - len(_left(outcomes))}/{len(outcomes)}] {done}")
        except _LostError as error:
            losses = 0 if len(_left(outcomes)) < len(left) else losses + 1
            if losses == _LOSSES:
                raise ClusterError(
                    engine.about,
                    f"the scheduler was lost {losses} times in a row and no run finished between",
                    "What is finished is kept: look at the scheduler's log, then give the same command again",
                ) from error
            notes.append(f"the scheduler was lost ({error}): connecting again")
            tell(notes[-1])
            time.sleep(min(losses, 5))
    bar.update(task, completed=len(outcomes))
    return notes


def _ended(client: Client, waiting: list[Outcome], setting: Setting) -> Iterator[Outcome]:
    """Send runs to the workers of one scheduler, and yield each when it has ended; or raise `_LostError`."""
    from distributed import as_completed

    # Dask queues what is of one group, and given to it at once: a worker has one run at a time, and its
    # death is counted against no other. The time makes it another group than that of a round before.
    group = f"runs-{time.time_ns()}"
    keys = [(group, run.folder.name) for run in waiting]
    futures = client.map(_carry_out, waiting, setting=setting, key=keys, pure=False)
    sent = dict(zip(futures, waiting, strict=True))
    try:
        for future in as_completed(futures):
            ended = _outcome(future, sent[future])
            # A worker that holds nothing can leave at the end of its time without that being a death.
            future.release()
            yield ended
    except (OSError, TimeoutError, CancelledError) as error:
        raise _LostError(str(error) or type(error).__name__) from error


def _outcome(future: Future, run: Outcome) -> Outcome:
    """Return what a worker returned, or what became of it; `_LostError` where the scheduler forgot it."""
    from distributed import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise _LostError("it has forgotten the runs")
    try:
        return future.result()
    except KilledWorker as error:
        host = getattr(error.last_worker, "address", "")
        error = f"its worker died {error.allowed_failures + 1} times: out of memory, or of time in a queue?"
        return replace(run, state="failed", host=host, error=error)
    except (OSError, CancelledError, TimeoutError):
        raise
    except Exception as error:
        return replace(run, state="failed", error=f"{type(error).__name__}: {error}")


def _carry_out(run: Outcome, setting: Setting) -> Outcome:
    """Do a run, unless it is finished, and return how it ended: errors are an outcome too.

    It may be called for the same run at the same time elsewhere, as after the loss of a scheduler: the
    second waits for the first and takes its outcome.
    """
    start = time.perf_counter()
    if not gc.isenabled():  # as in the process that this one was forked from
        gc.freeze()
        gc.enable()

    def ended(**how: Any) -> Outcome:
        return replace(run, seconds=time.perf_counter() - start, host=platform.node(), **how)

    try:
        if setting.code != _OWN_CODE:
            raise RuntimeError(
                f"this worker's r2l is of version {_OWN_CODE}, the sweep's of {setting.code}: install the "
                "same code here, or start the workers anew after a change"
            )
        run.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(run.folder / ".lock"):
            if done := run.read():
                return replace(done, state="finished")
            (run.folder / ERROR).unlink(missing_ok=True)
            with _working_in(setting):
                work = _notebook if run.job.notebook else _train
                run_id, scores = work(run.job, run.folder, setting)
            done = ended(state="finished", run_id=run_id, scores=scores)
            done.keep()
        return done
    except Exception as error:
        with suppress(OSError):  # The disk may be full.
            (run.folder / ERROR).write_text(traceback.format_exc(), "utf-8")
        return ended(state="failed", error=_in_a_line(error))


def _in_a_line(error: BaseException) -> str:
    """Return an error in one line: of a notebook the cell's, of anything else its kind and words."""
    if hasattr(error, "ename"):  # papermill's
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}".strip()
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


# Folder, number of threads and generators are the process's, and a worker can have several threads.
_ALONE = threading.Lock()
# Of what is imported: the file may have been changed since.
_OWN_CODE = code_version()


@contextmanager
def _working_in(setting: Setting) -> Iterator[None]:
    """Work in the sweep's folder with its number of threads; other threads of this process wait."""
    import torch

    with _ALONE:
        before = torch.get_num_threads()
        torch.set_num_threads(setting.threads or before)
        try:
            with chdir(setting.cwd):
                yield
        finally:
            torch.set_num_threads(before)


def _train(job: Job, folder: Path, setting: Setting) -> tuple[str, dict[str, float]]:
    from r2l.training.experiment import experiment

    options = job.options(
        experiment_name=setting.sweep, run_name=job.name, tracking_uri=setting.store, folder=str(folder)
    )
    with (folder / LOG).open("a", encoding="utf-8") as log:
        outcome = experiment(options, say=partial(print, file=log, flush=True), progress=False)
    tables = {PREDICTIONS: outcome.predictions, TESTED: outcome.tested, SCORES: outcome.scores}
    for name, table in tables.items():
        if table is not None:
            write_csv(table, folder / name)
    means = outcome.scores.drop(columns=["fold", "processing"], errors="ignore").mean()
    return outcome.run_id, {name: float(value) for name, value in means.items()}


def _notebook(job: Job, folder: Path, setting: Setting) -> tuple[str, dict[str, float]]:
    from r2l.training.tracking import track

    with track(setting.sweep, job.name, job.parameters, store=setting.store, folder=folder) as record:
        try:
            _run_notebook(job.notebook, job.parameters, folder)
        finally:
            # Of a failed run too: the error stands in it.
            if (folder / job.notebook.name).exists():
                with record.files() as artefacts:
                    shutil.copy(folder / job.notebook.name, artefacts)
    return record.run_id, {}


def _run_notebook(notebook: Path, parameters: dict[str, Any], folder: Path) -> Path:
    """Run a notebook here, which stays as it is; return the executed one. Its ``OUTPUT`` is ``folder``."""
    import papermill

    if "OUTPUT" in defaults(notebook):
        parameters = {**parameters, "OUTPUT": str(folder.resolve())}
    done, cwd = folder / notebook.name, str(Path.cwd())
    # Where a cell fails it raises, and what was executed is kept, the error in it.
    papermill.execute_notebook(str(notebook), str(done), parameters, cwd=cwd, progress_bar=False)
    return done
