"""Searches without gradients: random draws, and CMA-ES for pipelines whose settings have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.attack import Attack, Search
from r2l.drift.forensics.evaluator import Evaluator, own_processor
from r2l.drift.forensics.search_space import SearchSpace, SettingSpace
from r2l.training.seeding import seeded


def random_points(
    space: SearchSpace,
    count: int,
    seed: int | np.random.SeedSequence = 0,
    size: np.ndarray | None = None,
) -> np.ndarray:
    """Draw perturbations (count, d) of a box, none smaller than what a search may use.

    By turns a corner (every number at one end of its tolerance) and a point of the surface (one number at
    an end, the others anywhere between).

    Args:
        space: the box.
        count: how many.
        seed: equal seeds draw equal points.
        size: (d,) for a search without bounds: every draw then has these magnitudes, with random signs.
    """
    rng = np.random.default_rng(seed)
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
        space: the box of the attack (`Attack.space`).
        evaluations: how many draws; as many as the attack used (`Attack.evaluations`).
        seed, size: of the draws, see `random_points`.
        progress: whether to show a bar.

    Raises:
        ValueError: no evaluations.
    """
    search = Search("random", Evaluator(model, frames), space, evaluations, progress)
    for point in random_points(space, evaluations, seed, size):
        search.ask(point)
    return search.attack()


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
        pipeline: as in `Prober`.
        settings: names, or "all", see `SettingSpace`.
        fraction: of tolerance.
        evaluations: how often the frames are shown to the model, at most.
        seed: equal seeds find equal points.
        progress: whether to show a bar.

    Raises:
        ValueError: no evaluations; or as `SettingSpace`.
    """
    space = SettingSpace(own_processor(model, pipeline), frames.camera, settings, fraction)
    search = Search("CMA-ES", Evaluator(model, frames), space, evaluations, progress)
    dimension = len(space.coordinates)
    search.ask(np.zeros(dimension))
    left = evaluations - 1
    if dimension == 1:
        for value in np.linspace(-1, 1, left):
            search.ask(np.array([value]))
    else:
        # Draws of their own: those of `random_search` with this seed are what it is compared with.
        draws = random_points(space, left // 4, np.random.SeedSequence([seed, 1]))
        for point in draws:
            search.ask(point)
        _evolve(search, left - len(draws), seed)
    return search.attack()


def _evolve(search: Search, evaluations: int, seed: int) -> None:
    import cma

    with seeded(seed):  # pycma draws from numpy's global generator
        options = {"bounds": [-1, 1], "seed": seed + 1, "verbose": -9}
        strategy = cma.CMAEvolutionStrategy(search.point, 0.5, options)
        while evaluations > 0 and not strategy.stop():
            points = strategy.ask()
            margins = [search.ask(point) for point in points[:evaluations]]
            if len(margins) < len(points):
                return
            strategy.tell(points, margins)
            evaluations -= len(points)
