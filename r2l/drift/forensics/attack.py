"""Searches along the gradient for processing that a model cannot stand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.evaluator import Evaluator, own_processor
from r2l.drift.forensics.search_space import ParameterSpace, Searchable, SearchSpace
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
    space: SearchSpace
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


class Search:
    """A search under way: asks for the margin at points, and remembers all of them and the worst.

    Raises:
        ValueError: no evaluations.
    """

    def __init__(
        self, method: str, asked: Evaluator, space: SearchSpace, total: int, progress: bool
    ) -> None:
        if total < 1:
            raise ValueError(f"{total} evaluations find nothing")
        self.method, self.evaluator, self.space = method, asked, space
        self.margins: list[float] = []
        self.best, self.point = math.inf, np.zeros(len(space.coordinates))
        self.bar = progress_bar(total=total, desc=method, disable=not progress)

    def ask(self, point: np.ndarray) -> float:
        """Return the mean margin of the frames at ``point``."""
        return self.add(point, self.evaluator.margin(self.space.pipeline(point)))

    def add(self, point: np.ndarray, margin: float) -> float:
        """Count an evaluation."""
        self.margins.append(margin)
        if margin < self.best:
            self.best, self.point = margin, np.array(point, dtype=float)
        self.bar.update()
        return margin

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
    isp: Searchable | None = None,
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
        isp: the pipeline at the centre of the box, by default the model's own processor; stays as it is.
        parameters: names, or "all", see `ParameterSpace`.
        fraction: of tolerance.
        steps: of each start.
        restarts: how many starts; the first is the pipeline as it is, the others are random.
        step: length of the first step, in units of the tolerance; falls to 0 by a cosine.
        seed: of the random starts.
        progress: whether to show a bar.

    Raises:
        ValueError: fewer than one step or start; no parametrized pipeline; or as `ParameterSpace`.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"nothing to search: {steps} steps, {restarts} starts")
    isp = _searchable(model, isp)
    space = ParameterSpace(copy.deepcopy(isp).to(frames.raw.device), parameters, fraction)
    search = Search(
        "projected gradient", Evaluator(model, frames), space, steps * restarts, progress
    )
    rng = np.random.default_rng(seed)
    for start in range(restarts):
        size = len(space.coordinates)
        point = np.zeros(size) if start == 0 else rng.uniform(-1, 1, size)
        for number in range(steps):
            margin, gradient = search.evaluator.margin_gradient(space.develop, point)
            search.add(point, margin)
            length = step * 0.5 * (1 + math.cos(math.pi * number / steps))
            point = np.clip(point - length * np.sign(gradient), -1, 1)
    return search.attack()


def penalised_attack(
    model: nn.Module,
    frames: Frames,
    isp: ParametrizedISP | None,
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
        model, frames, isp: as in `bounded_attack`; the search starts at the ISP, and measures from it.
        adversary: weight, distance and parameters, and the bounds in which they stay physical.
        epochs: passes over the frames.
        batch_size: frames a step.
        lr: of Adam, in the steps of a `ParametrizedISP`, calibrated on the frames.
        fraction: the tolerance in whose units the result tells how far it went; it bounds nothing.
        seed: of the order of the frames.
        progress: whether to show a bar.

    Raises:
        ValueError: no epochs, or as `Adversary.searched`.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"nothing to search: {epochs} epochs of batches of {batch_size}")
    isp = _searchable(model, isp, ParametrizedISP)
    moved = copy.deepcopy(isp).to(frames.raw.device).calibrate(frames.raw)
    space = ParameterSpace(moved, adversary.searched(isp), fraction)
    search = Search("penalised gradient", Evaluator(model, frames), space, epochs + 1, progress)
    reference = adversary.reference(moved).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in moved.parameters() if p.requires_grad], lr)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs + 1):
        point = space.point(moved.numbers())
        search.add(point, search.evaluator.margin(moved))
        order = rng.permutation(len(frames)) if epoch < epochs else []
        for start in range(0, len(order), batch_size):
            batch = frames.take(order[start : start + batch_size])
            image = moved(batch.raw)
            distance = adversary.distances(image, reference(batch.raw)).mean()
            outputs = search.evaluator.task(image)
            optimizer.zero_grad()
            adversary.objective(batch.task, outputs, batch.targets(), distance).backward()
            optimizer.step()
            adversary.project_(moved)
    return search.attack()


def _searchable(model: nn.Module, isp: Any, kinds: Any = Searchable) -> Any:
    isp = own_processor(model, isp)
    if isinstance(isp, kinds):
        return isp
    raise ValueError(
        f"no gradients to search by: {isp} has no parameters of that kind; give "
        "isp=ParametrizedISP(frames.camera), or take static_attack"
    )
