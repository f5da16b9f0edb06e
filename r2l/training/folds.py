"""Training on one fold of frames in memory: the one loop behind matrix, experiment and adjustment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.datasets.frames import Frames
from r2l.datasets.splits import Fold
from r2l.training.fit import fit
from r2l.training.models import ModelFactory, channel_statistics, model_factory
from r2l.training.module import RawToLogits

#: Mean and standard deviation of each channel, display units.
Statistics = tuple[Sequence[float], Sequence[float]]


def train_fold(
    data: Frames,
    fold: Fold,
    model: nn.Module | str | ModelFactory,
    seed: int,
    *,
    processor: nn.Module | None = None,
    statistics: Statistics | None = None,
    validate: bool = False,
    **settings: Any,
) -> RawToLogits:
    """Train a task model on the training images of a fold.

    Args:
        data: raw frames where there is a processor, else a `view`.
        fold: indices of training and test images.
        model: a module to go on from; or what makes one, see `model_factory`.
        seed: see `fit`; `mixed_seed` makes one of seed and fold.
        processor: see `fit`.
        statistics: what a fresh model normalises its input by; by default those of the training images,
            as the processor, untrained, develops them.
        validate: whether loss and measure of the test images enter the history; nothing is chosen by them.
        **settings: further arguments of `fit`; the task is that of the data, and no bar is shown, unless
            they say so.
    """
    settings = {"task": data.task, "progress": False, **settings}
    if not isinstance(model, nn.Module):
        if statistics is None:
            statistics = training_statistics(data, fold.train, processor)
        factory = model_factory(model, settings["task"])
        model = partial(factory, len(data.classes), *statistics)
    return fit(
        model,
        data.subset(fold.train),
        processor=processor,
        validation=data.subset(fold.test) if validate else None,
        seed=seed,
        **settings,
    )


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
    for rows in torch.as_tensor(np.asarray(indices)).split(batch_size):
        frames = data.batch(rows)["image" if data.raw is None else "raw"]
        yield frames if processor is None else processor(frames)
