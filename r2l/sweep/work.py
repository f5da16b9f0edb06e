"""What a worker does: one run in its folder, whatever happens to it."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import FileLock

from r2l.files import atomic_path, write_csv
from r2l.sweep.jobs import RESULT, Job
from r2l.sweep.notebook import run as run_notebook
from r2l.training.run_folder import TESTED, code_version

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
class Outcome:
    """One run, and how it ended if it has.

    Attributes:
        job: what it is.
        folder: where it lies.
        state: "finished before" is by an earlier sweep.
        seconds: that it took, of the last attempt.
        host: the machine.
        run_id: of its mlflow record.
        scores: means over its folds; none for notebooks.
        error: one line, if it failed.
    """

    job: Job
    folder: Path
    state: Literal["waiting", "finished", "finished before", "failed"] = "waiting"
    seconds: float = 0.0
    host: str = ""
    run_id: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None

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
    try:
        _check_code(setting)
        run.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(run.folder / ".lock"):
            done = run.read() or _do(run, setting, start)
        return replace(done, state="finished")
    except Exception as error:
        with suppress(OSError):  # The disk may be full.
            (run.folder / ERROR).write_text(traceback.format_exc(), "utf-8")
        seconds, host = time.perf_counter() - start, platform.node()
        return replace(run, state="failed", seconds=seconds, host=host, error=_in_a_line(error))


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


def _check_code(setting: Setting) -> None:
    if setting.code != _OWN_CODE:
        raise RuntimeError(
            f"this worker's r2l is of version {_OWN_CODE}, the sweep's of {setting.code}: install the "
            "same code here, or start the workers anew after a change"
        )


def _do(run: Outcome, setting: Setting, start: float) -> Outcome:
    (run.folder / ERROR).unlink(missing_ok=True)
    with _working_in(setting):
        run_id, scores = (_notebook if run.job.notebook else _train)(run.job, run.folder, setting)
    seconds, host = time.perf_counter() - start, platform.node()
    done = replace(run, seconds=seconds, host=host, run_id=run_id, scores=scores)
    done.keep()
    return done


@contextmanager
def _working_in(setting: Setting) -> Iterator[None]:
    """Work in the sweep's folder with its number of threads; other threads of this process wait."""
    import torch

    with _ALONE:
        before = torch.get_num_threads()
        torch.set_num_threads(setting.threads or before)
        try:
            with contextlib.chdir(setting.cwd):
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
            run_notebook(job.notebook, job.parameters, folder, Path(setting.cwd), progress=False)
        finally:
            # Of a failed run too: the error stands in it.
            if (folder / job.notebook.name).exists():
                with record.files() as artefacts:
                    shutil.copy(folder / job.notebook.name, artefacts)
    return record.run_id, {}
