"""Searches for processing that a model cannot stand: along the gradient, at random, and by CMA-ES.

All raise a ValueError where there is nothing to search: no step, no such parameter or setting, no gradient.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.search_space import (
    Evaluator,
    ParameterSpace,
    Searchable,
    SearchSpace,
    SettingSpace,
    once_each,
    own_processor,
)
from r2l.isp.parametrized import ParametrizedISP
from r2l.progress import progress_bar
from r2l.training.adversarial import Adversary
from r2l.training.checkpoints import seeded
from r2l.training.metrics import image_distance

_Visits = Iterator[tuple[np.ndarray, float]]  # points and the margins there


@dataclass(frozen=True, eq=False)
class Attack:
    """What a search found: one setting of the pipeline, the same for all images.

    Attributes:
        method, space: which search, and where.
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


def _worst(method: str, space: SearchSpace, visits: _Visits, total: int, progress: bool) -> Attack:
    """Make the visits of a search, ``total`` at most, and return the worst of them."""
    if total < 1:
        raise ValueError(f"{total} evaluations find nothing")
    bar = progress_bar(iterable=visits, total=total, desc=method, disable=not progress)
    points, margins = zip(*bar, strict=True)
    trace = pd.DataFrame({"margin": margins}).rename_axis("evaluation")
    trace["best"] = trace["margin"].cummin()
    worst = int(np.argmin(margins))
    return Attack(method, space, points[worst], margins[worst], len(trace), trace)


def _visits(evaluator: Evaluator, space: SearchSpace, points: Iterable[np.ndarray]) -> _Visits:
    margin = once_each(lambda point: evaluator.margin(space.pipeline(point)))
    for point in points:
        yield point, margin(point)


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
    "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018), ever less far, and back into
    the box. The best of all points visited is kept, the unchanged pipeline among them.

    >>> import r2l
    >>> frames = r2l.Frames.of(r2l.SyntheticMicroscopy(4, size=32), progress=False)
    >>> model, isp = r2l.make_classifier("SmallResNet", 9), r2l.ParametrizedISP(frames.camera)
    >>> bounded_attack(model, frames, isp, steps=2, restarts=1).evaluations
    2

    Args:
        model: a `RawToLogits`, or any module from display images to logits; stays as it is.
        frames: on whose average the search goes. Judge the result on others.
        isp: the pipeline at the centre of the box, by default the model's own processor; stays as it is.
        parameters, fraction: see `ParameterSpace`.
        steps, restarts: how many starts, of so many steps; the first is the pipeline as it is, the others are
            random (``seed``).
        step: length of the first step, in units of the tolerance; falls to 0 by a cosine.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"nothing to search: {steps} steps, {restarts} starts")
    isp = _searchable(model, isp)
    space = ParameterSpace(copy.deepcopy(isp).to(frames.raw.device), parameters, fraction)
    evaluator, size = Evaluator(model, frames), len(space.coordinates)

    def visits() -> _Visits:
        rng = np.random.default_rng((seed, 2))  # not the signs of `random_search`, which it is compared with
        for start in range(restarts):
            point = np.zeros(size) if start == 0 else rng.uniform(-1, 1, size)
            for number in range(steps):
                margin, gradient = evaluator.margin_gradient(space.develop, point)
                yield point, margin
                length = step * 0.5 * (1 + math.cos(math.pi * number / steps))
                point = np.clip(point - length * np.sign(gradient), -1, 1)

    return _worst("projected gradient", space, visits(), steps * restarts, progress)


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

    Adam minimises the objective of an `Adversary` over batches (Oala et al., TMLR 2023, drift forensics);
    after each pass the mean margin of all frames is noted, and the best pass is kept.

    Args:
        model, frames, isp: as in `bounded_attack`; the search starts at the ISP, and measures from it.
        adversary: weight, distance and parameters, and the bounds in which they stay physical.
        epochs: passes over the frames, in an order by ``seed`` and steps of ``batch_size``.
        lr: of Adam, in the steps of a `ParametrizedISP`, calibrated on the frames.
        fraction: the tolerance in whose units the result tells how far it went; it bounds nothing.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"nothing to search: {epochs} epochs of batches of {batch_size}")
    isp = _searchable(model, isp, ParametrizedISP)
    moved = copy.deepcopy(isp).to(frames.raw.device).calibrate(frames.raw)
    space, evaluator = ParameterSpace(moved, adversary.searched(isp), fraction), Evaluator(model, frames)
    reference = adversary.reference(moved).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in moved.parameters() if p.requires_grad], lr)

    def visits() -> _Visits:
        rng = np.random.default_rng(seed)
        yield space.point(moved.numbers()), evaluator.margin(moved)
        for _ in range(epochs):
            order = rng.permutation(len(frames))
            for start in range(0, len(order), batch_size):
                batch = frames.take(order[start : start + batch_size])
                image = moved(batch.raw)
                distance = image_distance(image, reference(batch.raw), adversary.distance).mean()
                outputs = evaluator.task(image)
                optimizer.zero_grad()
                adversary.objective(batch.task, outputs, batch.targets(), distance).backward()
                optimizer.step()
                adversary.project_(moved)
            yield space.point(moved.numbers()), evaluator.margin(moved)

    return _worst("penalised gradient", space, visits(), epochs + 1, progress)


def _searchable(model: nn.Module, isp: Any, kinds: Any = Searchable) -> Any:
    isp = own_processor(model, isp)
    if isinstance(isp, kinds):
        return isp
    remedy = "give isp=ParametrizedISP(frames.camera), or take static_attack"
    raise ValueError(f"no gradients to search by: {isp} has no parameters of that kind; {remedy}")


def random_points(
    space: SearchSpace, count: int, seed: int | np.random.SeedSequence = 0, size: np.ndarray | None = None
) -> np.ndarray:
    """Draw perturbations (count, d) of a box, none smaller than what a search may use.

    By turns a corner (every number at one end of its tolerance) and a point of the surface (one number at an
    end, the others anywhere between). For a search without bounds ``size`` (d,) tells the magnitudes of every
    draw, and signs alone are random.
    """
    rng, count = np.random.default_rng(seed), max(count, 0)  # of none, the search itself speaks
    dimension = len(space.coordinates)
    points = rng.choice([-1.0, 1.0], (count, dimension))
    inner = rng.uniform(-1, 1, (count, dimension))
    inner /= np.abs(inner).max(axis=1, keepdims=True)
    if size is not None:
        return points * np.abs(size)
    points[1::2] = inner[1::2]
    return points


def random_search(
    model: nn.Module,
    frames: Frames,
    space: SearchSpace,
    *,
    evaluations: int,
    seed: int = 0,
    size: np.ndarray | None = None,
    progress: bool = False,
) -> Attack:
    """Try random perturbations of the same size, and keep the worst: what an attack has to beat.

    Args:
        model, frames: as in `bounded_attack`.
        space, evaluations: the box of the attack, and how many draws: as many as it used.
        seed, size: of the draws, see `random_points`.
    """
    visits = _visits(Evaluator(model, frames), space, random_points(space, evaluations, seed, size))
    return _worst("random", space, visits, evaluations, progress)


def static_attack(
    model: nn.Module,
    frames: Frames,
    pipeline: str | nn.Module | None = None,
    *,
    settings: str | Sequence[str] = "all",
    fraction: float = 0.1,
    evaluations: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> Attack:
    """Search the settings of a static pipeline by CMA-ES with bounds, on the mean margin.

    A quarter of the evaluations goes to random draws, and the evolution starts from the worst of them.
    Neither the model's nor the pipeline's gradient is needed (Hansen, "The CMA Evolution Strategy: A
    Tutorial", 2016; the library pycma). A single setting is tried at evenly spaced values instead.

    Args:
        model, frames: as in `bounded_attack`; the frames of one camera.
        pipeline, settings, fraction: see `SettingSpace`.
        evaluations: how often the frames are shown to the model, at most.
    """
    space = SettingSpace(own_processor(model, pipeline), frames.camera, settings, fraction)
    evaluator, dimension, left = Evaluator(model, frames), len(space.coordinates), max(evaluations - 1, 0)
    # Draws of their own: those of `random_search` with this seed are what it is compared with.
    draws = random_points(space, left // 4, np.random.SeedSequence([seed, 1]))
    points = draws if dimension > 1 else np.linspace(-1, 1, left)[:, None]

    visited: list[tuple[np.ndarray, float]] = []

    def shown(points: Iterable[np.ndarray]) -> _Visits:
        for visit in _visits(evaluator, space, points):
            visited.append(visit)
            yield visit

    def visits() -> _Visits:
        yield from shown([np.zeros(dimension), *points])
        if dimension == 1:
            return
        import cma

        with seeded(seed):  # pycma draws from numpy's global generator
            options = {"bounds": [-1, 1], "seed": seed + 1, "verbose": -9}
            strategy = cma.CMAEvolutionStrategy(min(visited, key=lambda v: v[1])[0], 0.5, options)
            while len(visited) < evaluations and not strategy.stop():
                asked = strategy.ask()
                yield from shown(asked[: evaluations - len(visited)])
                if len(visited) < evaluations:
                    strategy.tell(asked, [margin for _, margin in visited[-len(asked) :]])

    return _worst("CMA-ES", space, visits(), evaluations, progress)
