"""Training on folds of frames in memory: the one loop behind matrix, experiment and adjustment."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from r2l.datasets import RawDataset
from r2l.datasets.frames import Frames, with_views
from r2l.datasets.splits import Fold, group_folds
from r2l.isp import PIPELINES, name_pipelines
from r2l.isp.grammar import Pipelines
from r2l.progress import progress_bar, usable_cores
from r2l.rawfile.frame import look_at_picture
from r2l.training.checkpoints import mixed_seed
from r2l.training.fit import Model, fit
from r2l.training.models import ModelFactory, Statistics, channel_statistics, describe_model, make_described
from r2l.training.module import RawToLogits
from r2l.training.predict import Trained

_Job = tuple[str, int, int, Fold]
# Options of `fit` that leave nothing behind but the model.
_PLAIN = {"epochs", "batch_size", "lr", "weight_decay", "augmentation", "loss", "gradient_clip_val"}


def train_fold(
    data: Frames, fold: Fold, model: Model, seed: int, *, validate: bool = False, **settings: Any
) -> RawToLogits:
    """Train a task model (`fresh_model`) on the training images of a fold.

    Args:
        data: raw frames where there is a processor, else a `view`.
        validate: whether loss and measure of the test images enter the history; nothing is chosen by them.
        **settings: further arguments of `fit`; the task is that of the data, and no bar is shown, unless
            they say so.
    """
    validation = data.subset(fold.test) if validate else None
    settings = {"task": data.task, "progress": False, **settings}
    return fit(model, data.subset(fold.train), validation=validation, seed=seed, **settings)


def fresh_model(model: str | ModelFactory, data: Frames, statistics: Statistics) -> Callable[[], nn.Module]:
    """Return what makes a task model for these frames; a name is one of `describe_model`."""
    known = len(data.classes), *statistics
    if isinstance(model, str):
        return partial(make_described, describe_model(model, data.task, *known))
    return partial(model, *known)


def training_statistics(data: Frames, indices: np.ndarray, processor: nn.Module | None = None) -> Statistics:
    """Return the `channel_statistics` of some images, as a processor develops them if there is one."""
    size = len(indices) if processor is None else 64
    return channel_statistics(torch.cat([*image_batches(data, indices, processor, size)]))


@torch.no_grad()
def image_batches(
    data: Frames, indices: np.ndarray, processor: nn.Module | None = None, batch_size: int = 64
) -> Iterator[Tensor]:
    """Yield some images (B, 3, H, W) batch by batch, as a processor develops them if there is one."""
    for number, rows in enumerate(torch.as_tensor(np.asarray(indices)).split(batch_size)):
        frames = images = data.batch(rows)["image" if data.raw is None else "raw"]
        if processor is not None:
            images = processor(frames)
            if number == 0:
                look_at_picture(images, frames, data.camera, "training images")
        yield images


def train_models(
    data: RawDataset | Frames,
    pipelines: Pipelines = PIPELINES,
    *,
    model: str | ModelFactory = "SmallResNet",
    n_splits: int = 5,
    seeds: Sequence[int] = (0,),
    variant: str = "corrected",
    progress: bool = True,
    processes: int = 4,
    **settings: Any,
) -> list[Trained]:
    """Train one model for each pipeline, fold and seed, everything else equal, for `predict_matrix`.

    Drift synthesis, the experiment of Oala et al., "Data Models for Dataset Drift Controls in Machine
    Learning With Optical Images", TMLR 2023. Folds keep groups whole, and are the same for every pipeline, as
    initial weights and order of images are. Twelve pipelines and five folds of a ResNet18 take 2.7 GB.

    >>> from r2l.datasets import SyntheticMicroscopy
    >>> from r2l.drift import predict_matrix
    >>> data = SyntheticMicroscopy(40, size=32)
    >>> pipelines = ["bi,s,ga", "ma,u,me"]
    >>> models = train_models(data, pipelines, n_splits=2, epochs=1, progress=False)
    >>> answers = predict_matrix(models, data, pipelines, progress=False)
    >>> len(answers)  # images x training x test pipelines
    160

    Args:
        data: raw frames, or views of them (which then must hold all ``pipelines``). With masks the task is
            segmentation, else classification.
        pipelines: in the order of the matrix, see `develop_all`.
        model: a name for `describe_model` ("unet/resnet18" for masks), or a function of number of classes,
            channel means and channel standard deviations that returns a fresh model.
        n_splits: number of folds; every image is tested in one of them.
        seeds: of folds, initial weights and order; with several, everything is repeated.
        variant: as of `predict_matrix`.
        processes: train up to so many models at once, where torch has one thread (`torch.set_num_threads`)
            and there are the cores. The models are the same to the bit.
        **settings: further arguments of `fit` (``epochs``, ``batch_size``, ``lr``, ...).

    Raises:
        ValueError: as `develop_views` and `group_folds`; or views that lack a pipeline.
    """
    frames = with_views(data, pipelines, variant=variant, progress=progress)
    jobs: list[_Job] = []
    for seed in seeds:
        folds = group_folds(frames.labels, frames.groups, n_splits, seed)
        pairs = product(enumerate(folds), name_pipelines(pipelines))
        jobs += [(name, seed, number, fold) for (number, fold), name in pairs]

    def train(job: _Job, **checkpoint: Any) -> Trained:
        name, seed, number, fold = job
        view = frames.view(name)
        fresh = fresh_model(model, view, training_statistics(view, fold.train))
        module = train_fold(view, fold, fresh, mixed_seed(seed, number), **settings, **checkpoint)
        return Trained(module, name, fold.test, seed, number)

    models: dict[tuple[str, int, int], Trained] = {}
    with progress_bar(total=len(jobs), desc="training", disable=not progress) as bar:
        for one in _side_by_side(train, jobs, _processes(settings, min(processes, len(jobs)))):
            models[one.code, one.seed, one.fold] = one
            bar.set_postfix_str(f"{one.code}, fold {one.fold}, seed {one.seed}", refresh=False)
            bar.update()
    return [models[job[:3]] for job in jobs]


def _processes(settings: Mapping[str, Any], most: int) -> int:
    """Return how many trainings may run at once, one a core.

    1 where more would not come to the same, or would share what can't be shared: on a GPU, where torch uses
    several threads or ``OMP_NUM_THREADS`` is 1, with callbacks and the like, off Linux, in a sweep's worker.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = min(usable_cores(), int(threads) if threads.isdigit() else most)
    forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
    alike = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return max(min(cores, most), 1) if forks and alike and set(settings) <= _PLAIN else 1


def _side_by_side(train: Callable[..., Trained], jobs: Sequence[_Job], processes: int) -> Iterator[Trained]:
    """Yield ``train(job)`` of each job as it is ready, trained by several forked processes at once.

    A process leaves a checkpoint, which is read here. Where it failed or was killed, training goes on from
    there, so that models are the same to the bit, and errors arrive, as if nothing had been forked.
    """
    if processes == 1:
        yield from map(train, jobs)
        return
    fork = multiprocessing.get_context("fork")
    waiting, running, ended = list(enumerate(jobs))[::-1], {}, []
    with TemporaryDirectory(prefix="r2l-") as home:
        try:
            while waiting or running or ended:
                while waiting and len(running) < processes:
                    number, job = waiting.pop()
                    folder = Path(home, str(number))
                    child = fork.Process(target=_train_ahead, args=(train, job, folder))
                    child.start()
                    running[child.sentinel] = child, job, folder
                for child, job, folder in ended:
                    child.join()
                    yield train(job, checkpoint=folder)
                    rmtree(folder)
                ended = [running.pop(one) for one in (wait(running) if running else ())]
        finally:
            for child, *_ in running.values():
                child.kill()
                child.join()


def _train_ahead(train: Callable[..., Trained], job: _Job, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this
    # A bar's thread may have held the lock in the moment of the fork.
    tqdm.set_lock(threading.RLock())
    with suppress(BaseException):  # what fails here, fails again where it is read
        train(job, checkpoint=folder)
