"""What a sweep will cost, before it is begun: runs, hours, disk."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r2l.sweep.board import Board, Entry
from r2l.sweep.engine import Engine
from r2l.sweep.job import Job
from r2l.sweep.work import Setting, size_of

if TYPE_CHECKING:
    from r2l.options import Options

#: What the time of a step and the sizes of folds depend on; runs that differ in nothing of it are
#: measured once.
_SAME_COST = (
    *("dataset", "root", "task", "labels", "masks", "camera", "crop", "n_images", "image_size"),
    *("n_splits", "train_size", "splits", "batch_size", "processing_mode", "freeze_processor"),
    *("classifier_network", "smp_network", "smp_encoder", "augmentation", "precision"),
    *("accelerator", "adv_training"),
)
#: A pass without gradients, in steps of training.
_FORWARD = 1 / 3
#: Bytes of a row of predictions as text.
_ROW = 160
_BATCHES = 3


@dataclass(frozen=True)
class Measured:
    """What one kind of run costs on a worker.

    Attributes:
        step: seconds of a training step.
        image: seconds to read and develop one image, once.
        start: seconds until training begins: the data set is found, the first model made.
        weights: bytes of processor and task model.
    """

    step: float
    image: float
    start: float
    weights: int


@dataclass(frozen=True)
class Plan:
    """What a sweep will cost; ``print`` tells it.

    Attributes:
        runs: how many there are.
        finished: of them.
        workers: that share the rest.
        seconds: of the runs that are left, one after the other; None if it can't be known.
        source: what ``seconds`` was reckoned from.
        size: bytes that the runs that are left will take.
        free: bytes of the disk that the folder is on.
    """

    runs: int
    finished: int
    workers: int
    seconds: float | None
    source: str
    size: float
    free: int

    @property
    def hours(self) -> float | None:
        """Expected hours on the engine; runs are whole, so that the last ones may leave workers idle."""
        left = self.runs - self.finished
        if self.seconds is None or not left:
            return None if left else 0.0
        each = self.seconds / left
        return math.ceil(left / self.workers) * each / 3600

    def __str__(self) -> str:
        left = self.runs - self.finished
        lines = [f"runs    {self.runs}, of which {self.finished} are finished and {left} are left"]
        if self.hours is None:
            lines.append(f"time    not known: {self.source}")
        elif left:
            each = self.seconds / left
            lines.append(
                f"time    {_duration(self.hours * 3600)} with {self.workers} worker(s), "
                f"{_duration(each)} a run; {self.source}"
            )
        short = "; THIS IS MORE THAN THERE IS" if self.size > self.free else ""
        lines.append(f"disk    {_bytes(self.size)} more, {_bytes(self.free)} are free{short}")
        return "\n".join(lines)


def make_plan(board: Board, engine: Engine, setting: Setting, folder: Path) -> Plan:
    """Reckon what is left of a sweep, from finished runs if there are some, else from measured steps.

    Steps are measured on a worker of the engine, some seconds for each kind of run.

    Args:
        board: where the runs stand, see `r2l.sweep.driver.open_board`.
        engine: the workers.
        setting: what the runs share.
        folder: of the sweep, on the disk that the runs write to.

    Raises:
        ClusterError: no workers.
        OSError, ValueError: the data are not there, or an option does not fit them.
    """
    done = [entry for entry in board.entries if entry.result and not entry.result.error]
    counts = len(board.entries), len(done), engine.workers
    free = shutil.disk_usage(_existing(folder)).free
    if done:
        seconds = float(np.mean([entry.result.seconds for entry in done])) * len(board.left)
        size = float(np.mean([size_of(entry.folder) for entry in done])) * len(board.left)
        return Plan(*counts, seconds, f"the mean of {len(done)} finished run(s)", size, free)
    if any(entry.job.notebook for entry in board.entries):
        reason = "a notebook's steps can't be timed; let one run finish (--limit 1) and ask again"
        return Plan(*counts, None, reason, 0.0, free)
    kinds = _measure(board.left, engine, setting)
    costs = [_cost(entry.job.options(), *kinds[_kind(entry.job)]) for entry in board.left]
    steps = ", ".join(f"{m.step:.3g}" for m, _ in kinds.values())
    source = f"from measured steps of {steps} s"
    return Plan(*counts, sum(s for s, _ in costs), source, sum(b for _, b in costs), free)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())


def _kind(job: Job) -> tuple[object, ...]:
    options = job.options()
    return tuple(getattr(options, name) for name in _SAME_COST)


def _measure(
    entries: Iterable[Entry], engine: Engine, setting: Setting
) -> dict[tuple[object, ...], tuple[Measured, list[tuple[int, int]]]]:
    """Return what each kind of run costs, and the number of training and test images of each fold."""
    jobs = {_kind(entry.job): entry.job for entry in entries}
    with engine.connect() as client:
        futures = {
            kind: client.submit(measure, job, setting, key=f"measure-{time.time_ns()}", pure=False)
            for kind, job in jobs.items()
        }
        return {kind: future.result() for kind, future in futures.items()}


def measure(job: Job, setting: Setting) -> tuple[Measured, list[tuple[int, int]]]:
    """Train a few steps of a job, keep nothing, and return what was measured.

    Returns:
        The measurement, and the number of training and test images of each fold, whichever is the job's.
    """
    from r2l.datasets.splits import Fold
    from r2l.sweep.work import working_in
    from r2l.training.components import open_components
    from r2l.training.corpora import make_folds, open_corpus
    from r2l.training.crossval import FoldTrainer

    with working_in(setting), tempfile.TemporaryDirectory(prefix="r2l-") as place:
        begin = time.perf_counter()
        options = replace(job.options(), tracking_uri=setting.store)
        corpus = open_corpus(options)
        folds = [(len(fold.train), len(fold.test)) for fold in make_folds(corpus, options)]
        few = corpus.few(_BATCHES * options.batch_size)
        components = open_components(options, few, say=lambda _: None)
        start = time.perf_counter() - begin
        trainer = FoldTrainer(replace(options, epochs=_BATCHES), few, components, progress=False)
        begin = time.perf_counter()
        _ = trainer.images if trainer.fixed else trainer.frames
        image = (time.perf_counter() - begin) / len(few)
        everything = np.arange(len(few))
        step, weights = trainer.measure(Fold(everything, everything[:1]), Path(place))
    return Measured(step, image, start, weights), folds


def _cost(
    options: Options, measured: Measured, folds: list[tuple[int, int]]
) -> tuple[float, float]:
    """Return the seconds and the bytes of one run."""
    seconds, size = measured.start, 0.0
    folds = folds if options.fold is None else [folds[options.fold]]
    images = sum(max(folds, key=sum))
    seconds += images * measured.image
    batch, codes = options.batch_size, len(options.tested_codes)
    for train, test in folds:
        checks = options.epochs // options.check_val_every_n_epoch
        looks = math.ceil(test / batch) * _FORWARD * (checks + 1 + codes)
        seconds += measured.step * (math.ceil(train / batch) * options.epochs + looks)
        seconds += codes * test * measured.image
        copies = options.save_locally + options.log_model
        # Twice: the answers lie in the run's folder and in its record.
        size += copies * measured.weights + 2 * _ROW * test * (1 + codes)
    return seconds, size


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
