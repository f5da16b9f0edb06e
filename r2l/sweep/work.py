"""What a worker does: one run in its folder, whatever happens to it."""

from __future__ import annotations

import json
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from r2l.files import atomic_path, write_csv
from r2l.sweep.jobs import RESULT, Job, defaults
from r2l.training.run_folder import TESTED, code_version

LOG, ERROR = "log.txt", "error.txt"
PREDICTIONS, SCORES = "predictions.csv", "scores.csv"


@dataclass(frozen=True)
class Setting:
    """What all runs of a sweep share."""

    sweep: str  # its name, also of the mlflow experiment
    store: str  # address of the mlflow store
    cwd: str  # folder that runs work in, where they find ``data/``
    code: str  # version of the code that the sweep began with
    threads: int | None = None  # torch's, of each run; None leaves them alone


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


def carry_out(run: Outcome, setting: Setting) -> Outcome:
    """Do a run, unless it is finished, and return how it ended: errors are an outcome too.

    It may be called for the same run at the same time elsewhere, as after the loss of a scheduler: the
    second waits for the first and takes its outcome.
    """
    start = time.perf_counter()

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
        say = partial(print, file=log, flush=True)
        outcome = experiment(options, say=say, progress=False)
    tables = {PREDICTIONS: outcome.predictions, TESTED: outcome.tested, SCORES: outcome.scores}
    for name, table in tables.items():
        if table is not None:
            write_csv(table, folder / name)
    means = outcome.scores.drop(columns=["fold", "processing"], errors="ignore").mean()
    return outcome.run_id, {name: float(value) for name, value in means.items()}


def _notebook(job: Job, folder: Path, setting: Setting) -> tuple[str, dict[str, float]]:
    from r2l.training.tracking import track

    tags = {"r2l.folder": str(folder)}
    with track(setting.sweep, job.name, job.parameters, tags, setting.store) as record:
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
