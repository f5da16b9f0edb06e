"""What is asked of a model in forensics: frames with their truth, its score, and what an attack lowers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets import RawDataset
from r2l.training import RawToLogits
from r2l.training.adversarial import Adversary
from r2l.training.tasks import TASKS, Task

#: Raw (B, 1, H, W) to display (B, 3, H, W).
Develop = Callable[[Tensor], Tensor]

#: accuracy: whether the answer is right; p_true: probability given to the true class; iou: of each image's
#: foreground, 1 where there is none and none was found. All in [0, 1], better if higher.
METRICS = {"accuracy": "correct", "p_true": "p_true", "iou": "iou"}
# Frames of a step hold about this many pixels: small enough for the caches of a small machine.
_STEP_PIXELS = 400_000
_MARGIN = Adversary(weight=0.0, confidence=1.0)


@dataclass(frozen=True, eq=False)
class Frames:
    """Raw frames in memory, with what is true of them; also a data set, as `fit` and `evaluate` take it.

    Items are ``dict(raw=(1, H, W), label=int or mask=(1, H, W), meta=dict(image, group))``.

    Attributes:
        raw: (N, 1, H, W), raw domain.
        truth: (N,) class of each frame, or (N, 1, H, W) masks of 0.0 and 1.0.
        groups: (N,) which share something; what a bootstrap draws.
        camera: whose they are.
    """

    raw: Tensor = field(repr=False)
    truth: Tensor = field(repr=False)
    groups: np.ndarray = field(repr=False)
    camera: Camera

    @classmethod
    def of(cls, dataset: RawDataset, indices: Sequence[int] | np.ndarray | None = None) -> Frames:
        """Read frames of a data set, all or those of ``indices``.

        Raises:
            ValueError: no frames.
        """
        indices = range(len(dataset)) if indices is None else [int(i) for i in indices]
        if not len(indices):
            raise ValueError("no frames to ask about")
        items = [dataset[i] for i in indices]
        task = TASKS["segmentation" if "mask" in items[0] else "classification"]
        truth = torch.stack([torch.as_tensor(item[task.key]) for item in items])
        raw = torch.stack([item["raw"] for item in items])
        groups = np.asarray(dataset.groups)[list(indices)]
        return cls(raw, task.targets({task.key: truth}), groups, dataset.camera)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        masks = self.truth.ndim == 4
        truth = {"mask": self.truth[index]} if masks else {"label": int(self.truth[index])}
        meta = {"image": index, "group": int(self.groups[index])}
        return {"raw": self.raw[index], **truth, "meta": meta}

    def to(self, device: str | torch.device) -> Frames:
        """Return the frames on a device, where searches and scans then run."""
        return Frames(self.raw.to(device), self.truth.to(device), self.groups, self.camera)

    def take(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Return some of the frames."""
        chosen = np.asarray(indices)
        kept = torch.as_tensor(chosen, device=self.raw.device)
        return Frames(self.raw[kept], self.truth[kept], self.groups[chosen], self.camera)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Frames, Frames]:
        """Part the frames in two with whole groups on either side: ``share`` of them, and the rest.

        Raises:
            ValueError: one part would be empty.
        """
        names = np.unique(self.groups)
        count = round(share * len(names))
        if not 0 < count < len(names):
            raise ValueError(f"{len(names)} groups can't be parted {share:g} to {1 - share:g}")
        drawn = np.random.default_rng(seed).permutation(names)[:count]
        inside = np.isin(self.groups, drawn)
        return self.take(np.flatnonzero(inside)), self.take(np.flatnonzero(~inside))

    def steps(self) -> Iterator[slice]:
        """Cut the frames into steps that suit a small machine."""
        size = max(1, _STEP_PIXELS // (self.raw.shape[-1] * self.raw.shape[-2]))
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


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
            found.append(measure(task(image), frames.truth[step]).double().cpu().numpy())
    return np.concatenate(found)
