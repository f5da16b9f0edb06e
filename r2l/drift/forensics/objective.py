"""What is asked of a model in forensics: its score on frames, and what an attack lowers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from r2l.datasets.frames import Frames
from r2l.training import RawToLogits
from r2l.training.adversarial import Adversary
from r2l.training.tasks import TASKS, Task

#: Raw (B, 1, H, W) to display (B, 3, H, W).
Develop = Callable[[Tensor], Tensor]

#: accuracy: whether the answer is right; p_true: probability given to the true class; iou: of each image's
#: foreground, 1 where there is none and none was found. All in [0, 1], better if higher.
METRICS = {"accuracy": "correct", "p_true": "p_true", "iou": "iou"}
_MARGIN = Adversary(weight=0.0, confidence=1.0)


def task_model(model: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """Return a frozen copy, in eval mode, of what takes display images to logits.

    Of a `RawToLogits` that is what follows the processor. The model that was given stays as it was.
    """
    parts = [model]
    if isinstance(model, RawToLogits):
        between = getattr(model, "norm", None)
        parts = [part for part in (between, model.model) if isinstance(part, nn.Module)]
    frozen = copy.deepcopy(nn.Sequential(*parts)).eval().requires_grad_(False)
    return frozen.to(device, memory_format=torch.channels_last)


def scores(outputs: Tensor, truth: Tensor, metric: str = "accuracy") -> Tensor:
    """Return the score of each image, (B,), in [0, 1].

    Args:
        outputs: logits (B, n_classes), or (B, 1, H, W) for masks.
        truth: (B,), or (B, 1, H, W).
        metric: one of `METRICS`.

    Raises:
        ValueError: an unknown metric, or one that does not fit the truth.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    task = _task(truth)
    answers = task.answers(task.check(outputs, truth), truth)
    column = METRICS[metric]
    if column not in answers:
        raise ValueError(f"metric {metric!r} does not fit {task.name}")
    return answers[column].float()


def _task(truth: Tensor) -> Task:
    return TASKS["segmentation" if truth.ndim == 4 else "classification"]


def margins(outputs: Tensor, truth: Tensor) -> Tensor:
    """Return by how much the truth leads, (B,), bounded below: what an attack makes small.

    See `r2l.training.adversarial.Adversary.aims`; an image that is lost by a logit does not draw a search
    away from those that are not.
    """
    return _MARGIN.aims(_task(truth).name, outputs, truth)


def score_images(task: nn.Module, frames: Frames, develop: Develop, metric: str) -> np.ndarray:
    """Return the score (N,) of every frame as ``develop`` renders it; ``task`` is from `task_model`."""
    return _each(task, frames, develop, lambda logits, truth: scores(logits, truth, metric))


def mean_margin(task: nn.Module, frames: Frames, develop: Develop) -> float:
    """Return the mean margin of the frames as ``develop`` renders them: low is good for an attack."""
    return float(_each(task, frames, develop, margins).mean())


def _each(
    task: nn.Module, frames: Frames, develop: Develop, measure: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    found = []
    with torch.inference_mode():
        for step in frames.steps():
            image = develop(frames.raw[step]).contiguous(memory_format=torch.channels_last)
            found.append(measure(task(image), frames.targets(step)).double().cpu().numpy())
    return np.concatenate(found)
