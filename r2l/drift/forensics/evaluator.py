"""What is asked of a model in forensics: its score on frames, and the margin that an attack lowers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.datasets.frames import Frames
from r2l.files import choose
from r2l.training import RawToLogits
from r2l.training.adversarial import Adversary
from r2l.training.metrics import image_distance
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


def own_processor(model: nn.Module, pipeline: Any = None) -> Any:
    """Return ``pipeline``; where none is given the model's own processor, or "bi,s,ga" if it has none."""
    if pipeline is not None:
        return pipeline
    own = getattr(model, "processor", None)
    return "bi,s,ga" if own is None or isinstance(own, nn.Identity) else own


class Evaluator:
    """A frozen model and frames: asked how it does under one pipeline or another.

    Args:
        model: a `RawToLogits`, or any module from display images to logits; stays as it is.
        frames: raw ones, where the model is to be asked (`Frames.to`).
        metric: of `scores`, one of `METRICS`.

    Raises:
        ValueError: frames without raw data.
    """

    def __init__(self, model: nn.Module, frames: Frames, metric: str = "accuracy") -> None:
        if frames.raw is None:
            raise ValueError("nothing to develop: these frames hold developed images only")
        self.task, self.frames, self.metric = task_model(model, frames.raw.device), frames, metric

    def scores(self, develop: Develop) -> np.ndarray:
        """Return the score (N,) of every frame as ``develop`` renders it.

        Raises:
            ValueError: an unknown metric, or one that does not fit the truth.
        """
        return self._each(develop, lambda outputs, truth: _scores(outputs, truth, self.metric))

    def margin(self, develop: Develop) -> float:
        """Return the mean margin of the frames as ``develop`` renders them: low is good for an attack."""
        return float(self._each(develop, _margins).mean())

    def margin_gradient(
        self, develop_at: Callable[[Tensor, Tensor], Tensor], point: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the mean margin and its gradient (d,) with respect to ``point`` (d,).

        Args:
            develop_at: raw (B, 1, H, W) and a point (d,) to display, differentiable.
            point: where.
        """
        leaf = torch.tensor(point, dtype=torch.float32, requires_grad=True)
        total, gradient = 0.0, np.zeros(len(point))
        for outputs, truth in self._answers(lambda raw: develop_at(raw, leaf)):
            margin = _margins(outputs, truth).sum()
            total += float(margin.detach())
            # A model that ignores its image gives no gradient.
            if margin.requires_grad:
                (part,) = torch.autograd.grad(margin, leaf, allow_unused=True)
                gradient += 0 if part is None else part.double().cpu().numpy()
        return total / len(self.frames), gradient / len(self.frames)

    def image_distances(self, develop: Develop, reference: Develop) -> np.ndarray:
        """Return l2 and 1 - SSIM (nan for images below 11 pixels) between two renderings, means."""
        apart = np.zeros(2)
        with torch.inference_mode():
            for step in self.frames.steps():
                pair = develop(self.frames.raw[step]), reference(self.frames.raw[step])
                kinds = ("l2", "ssim") if min(pair[0].shape[-2:]) >= 11 else ("l2",)
                sums = [float(image_distance(*pair, kind).sum()) for kind in kinds]
                apart += np.array([*sums, np.nan][:2])
        return apart / len(self.frames)

    def _answers(self, develop: Develop) -> Iterator[tuple[Tensor, Tensor]]:
        for step in self.frames.steps():
            image = develop(self.frames.raw[step]).contiguous(memory_format=torch.channels_last)
            yield self.task(image), self.frames.targets(step)

    def _each(self, develop: Develop, measure: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        with torch.inference_mode():
            parts = [measure(*answer).double().cpu().numpy() for answer in self._answers(develop)]
        return np.concatenate(parts)


def _task(truth: Tensor) -> Task:
    return TASKS["segmentation" if truth.ndim == 4 else "classification"]


def _scores(outputs: Tensor, truth: Tensor, metric: str = "accuracy") -> Tensor:
    """Return the score of each image, (B,): of logits (B, n_classes), or (B, 1, H, W) for masks."""
    column, task = choose("metric", metric, METRICS), _task(truth)
    answers = task.answers(task.check(outputs, truth), truth)
    if column not in answers:
        raise ValueError(f"metric {metric!r} does not fit {task.name}")
    return answers[column].float()


def _margins(outputs: Tensor, truth: Tensor) -> Tensor:
    """Return by how much the truth leads, (B,), bounded below: what an attack makes small.

    See `r2l.training.adversarial.Adversary.aims`; an image that is lost by a logit does not draw a search
    away from those that are not.
    """
    return _MARGIN.aims(_task(truth).name, outputs, truth)
