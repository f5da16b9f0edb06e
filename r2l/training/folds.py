"""Training on one fold of frames in memory: the one loop behind matrix, experiment and adjustment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.datasets.frames import Frames
from r2l.datasets.splits import Fold
from r2l.rawfile.frame import look_at_picture
from r2l.training.fit import Model, fit
from r2l.training.models import ModelFactory, Statistics, channel_statistics, model_factory
from r2l.training.module import RawToLogits


def train_fold(
    data: Frames,
    fold: Fold,
    model: Model,
    seed: int,
    *,
    validate: bool = False,
    **settings: Any,
) -> RawToLogits:
    """Train a task model on the training images of a fold.

    Args:
        data: raw frames where there is a processor, else a `view`.
        fold: indices of training and test images.
        model: see `fit`; `fresh_model` makes one.
        seed: see `fit`; `mixed_seed` makes one of seed and fold.
        validate: whether loss and measure of the test images enter the history; nothing is chosen by them.
        **settings: further arguments of `fit`; the task is that of the data, and no bar is shown, unless
            they say so.
    """
    validation = data.subset(fold.test) if validate else None
    settings = {"task": data.task, "progress": False, **settings}
    return fit(model, data.subset(fold.train), validation=validation, seed=seed, **settings)


def fresh_model(
    model: str | ModelFactory, data: Frames, statistics: Statistics
) -> Callable[[], nn.Module]:
    """Return what makes a task model for these frames, normalised by ``statistics``; see `model_factory`."""
    return partial(model_factory(model, data.task), len(data.classes), *statistics)


def training_statistics(
    data: Frames, indices: np.ndarray, processor: nn.Module | None = None
) -> Statistics:
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
