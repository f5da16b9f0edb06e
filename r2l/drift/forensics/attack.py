"""Searches along the gradient for processing that a model cannot stand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.objective import margins, mean_margin, task_model
from r2l.drift.forensics.space import ParameterSpace, Space
from r2l.isp.parametrized import ParametrizedISP
from r2l.progress import progress_bar
from r2l.training.adversarial import Adversary


@dataclass(frozen=True, eq=False)
class Attack:
    """What a search found: one setting of the pipeline, the same for all images.

    Attributes:
        method: which search.
        space: where it searched.
        point: (d,) the worst that it found; within [-1, 1] if the search was bounded.
        margin: mean margin of the search's images there; low is bad for the model.
        evaluations: how often the search's images were shown to the model.
        trace: one row an evaluation: ``margin`` there and ``best`` so far.
    """

    method: str
    space: Space
    point: np.ndarray
    margin: float
    evaluations: int
    trace: pd.DataFrame = field(repr=False)

    def pipeline(self) -> nn.Module:
        """Return the pipeline at the worst point, a new module."""
        return self.space.pipeline(self.point)

    def table(self) -> pd.Series:
        """Return the point, coordinate by coordinate, in units of the tolerance."""
        return pd.Series(self.point, index=list(self.space.coordinates), name=self.method)


class Tracker:
    """Remembers each evaluation of a search, and the best point."""

    def __init__(self, method: str, space: Space, total: int, progress: bool) -> None:
        self.method, self.space = method, space
        self.margins: list[float] = []
        self.best, self.point = math.inf, np.zeros(len(space.coordinates))
        self.bar = progress_bar(total=total, desc=method, disable=not progress)

    def add(self, point: np.ndarray, margin: float) -> None:
        """Count an evaluation."""
        self.margins.append(margin)
        if margin < self.best:
            self.best, self.point = margin, np.array(point, dtype=float)
        self.bar.update()

    def attack(self) -> Attack:
        """Close the bar and return what was found."""
        self.bar.close()
        trace = pd.DataFrame({"margin": self.margins})
        trace["best"] = trace["margin"].cummin()
        trace.index.name = "evaluation"
        return Attack(self.method, self.space, self.point, self.best, len(trace), trace)


def bounded_attack(
    model: nn.Module,
    frames: Frames,
    isp: ParametrizedISP,
    *,
    parameters: str | Sequence[str] = "all",
    fraction: float = 0.1,
    steps: int = 20,
    restarts: int = 2,
    step: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> Attack:
    """Search the box of tolerances by projected gradient descent on the mean margin.

    Each step moves every number by the sign of its gradient, in units of its tolerance (Madry et al.,
    "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018), ever less far, and back
    into the box. The best of all points visited is kept, the unchanged pipeline among them.

    Args:
        model: a `RawToLogits`, or any module from display images to logits; stays as it is.
        frames: on whose average the search goes. Judge the result on others.
        isp: the pipeline at the centre of the box; stays as it is.
        parameters: names, or "all", see `ParameterSpace`.
        fraction: of tolerance.
        steps: of each start.
        restarts: how many starts; the first is the pipeline as it is, the others are random.
        step: length of the first step, in units of the tolerance; falls to 0 by a cosine.
        seed: of the random starts.
        progress: whether to show a bar.

    Raises:
        ValueError: fewer than one step or start; or as `ParameterSpace`.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"nothing to search: {steps} steps, {restarts} starts")
    space = ParameterSpace(copy.deepcopy(isp).to(frames.raw.device), parameters, fraction)
    task = task_model(model, frames.raw.device)
    rng = np.random.default_rng(seed)
    tracker = Tracker("projected gradient", space, steps * restarts, progress)
    for start in range(restarts):
        size = len(space.coordinates)
        point = np.zeros(size) if start == 0 else rng.uniform(-1, 1, size)
        for number in range(steps):
            margin, gradient = margin_gradient(task, frames, space, point)
            tracker.add(point, margin)
            length = step * 0.5 * (1 + math.cos(math.pi * number / steps))
            point = np.clip(point - length * np.sign(gradient), -1, 1)
    return tracker.attack()


def margin_gradient(
    task: nn.Module, frames: Frames, space: ParameterSpace, point: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the mean margin at ``point`` (d,) and its gradient (d,)."""
    leaf = torch.tensor(point, dtype=torch.float32, requires_grad=True)
    total, gradient = 0.0, np.zeros(len(point))
    for chosen in frames.steps():
        image = space.develop(frames.raw[chosen], leaf)
        image = image.contiguous(memory_format=torch.channels_last)
        loss = margins(task(image), frames.targets(chosen)).sum()
        total += float(loss.detach())
        # A model that ignores its image gives no gradient.
        if loss.requires_grad:
            (part,) = torch.autograd.grad(loss, leaf, allow_unused=True)
            gradient += 0 if part is None else part.double().cpu().numpy()
    return total / len(frames), gradient / len(frames)


def penalised_attack(
    model: nn.Module,
    frames: Frames,
    isp: ParametrizedISP,
    adversary: Adversary,
    *,
    epochs: int = 20,
    batch_size: int = 32,
    lr: float = 1e-3,
    fraction: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> Attack:
    """Search the published way: no box, but a price on the distance to the unchanged picture.

    Adam minimises the objective of an `Adversary` over batches (Oala et al., TMLR 2023, drift
    forensics); after each pass the mean margin of all frames is noted, and the best pass is kept.

    Args:
        model: as in `bounded_attack`.
        frames: as in `bounded_attack`.
        isp: where the search starts, and the reference; stays as it is.
        adversary: weight, distance and parameters, and the bounds in which they stay physical.
        epochs: passes over the frames.
        batch_size: frames a step.
        lr: of Adam, in the parameters' own units.
        fraction: the tolerance in whose units the result tells how far it went; it bounds nothing.
        seed: of the order of the frames.
        progress: whether to show a bar.

    Raises:
        ValueError: no epochs, or as `Adversary.chosen`.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"nothing to search: {epochs} epochs of batches of {batch_size}")
    moved = copy.deepcopy(isp).to(frames.raw.device)
    space = ParameterSpace(moved, adversary.chosen(isp), fraction)
    task = task_model(model, frames.raw.device)
    reference = adversary.reference(moved).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in moved.parameters() if p.requires_grad], lr)
    rng = np.random.default_rng(seed)
    tracker = Tracker("penalised gradient", space, epochs + 1, progress)
    for epoch in range(epochs + 1):
        point = space.point(dict(moved.named_parameters()))
        tracker.add(point, mean_margin(task, frames, moved))
        order = rng.permutation(len(frames)) if epoch < epochs else []
        for start in range(0, len(order), batch_size):
            batch = frames.take(order[start : start + batch_size])
            image = moved(batch.raw)
            distance = adversary.distances(image, reference(batch.raw)).mean()
            optimizer.zero_grad()
            adversary.objective(batch.task, task(image), batch.targets(), distance).backward()
            optimizer.step()
            adversary.project_(moved)
    return tracker.attack()
