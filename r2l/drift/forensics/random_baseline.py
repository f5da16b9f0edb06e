"""Does an attack beat chance? Fresh images, the same for all, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.attack import Attack, bounded_attack
from r2l.drift.forensics.black_box import random_points, random_search
from r2l.drift.forensics.evaluator import Evaluator
from r2l.drift.statistics import (
    Bootstrap,
    bootstrap_means,
    holm,
    interval_text,
    sign_flip_test,
)
from r2l.isp.parametrized import ParametrizedISP
from r2l.progress import progress_bar

_ROWS = ("unchanged", "random, typical", "random, worst of as many", "attack")


@dataclass(frozen=True, eq=False)
class Comparison:
    """An attack beside random perturbations of its size, on images that no search has seen.

    Attributes:
        table: rows "unchanged", "random, typical" (mean over several draws), "random, worst of as many"
            (of as many draws as the attack had evaluations, picked on the search's images) and "attack";
            ``score`` with ``low`` and ``high``; ``change`` to unchanged with ``change_low``,
            ``change_high``; ``psnr`` (dB) and ``ssim`` of the pictures beside the unchanged ones, means.
        scores: (N, 4) of each image, in the order of the rows.
        difference: mean of attack less the worst random one (negative: the attack does more harm).
        low, high: bounds of it.
        p: of the sign-flip test of that difference over groups.
        p_typical: the same against typical draws.
        level: confidence of the bounds.
    """

    table: pd.DataFrame
    scores: np.ndarray
    difference: float
    low: float
    high: float
    p: float
    p_typical: float
    level: float

    @property
    def beats_random(self) -> bool:
        """Whether the attack does significantly more harm than the worst of as many random draws."""
        return self.difference < 0 and self.p <= 1 - self.level + 1e-12

    def __str__(self) -> str:
        verdict = "beats" if self.beats_random else "does not beat"
        return (
            f"{self.table.to_string(float_format='{:.3f}'.format)}\n"
            f"attack - worst random: {interval_text(self.difference, self.low, self.high)}, "
            f"p = {self.p:.4f}: it {verdict} random perturbations of its size"
        )


def compare_to_random(
    model: nn.Module,
    fresh: Frames,
    attack: Attack,
    random: Attack,
    *,
    metric: str = "accuracy",
    typical: int = 8,
    bootstrap: Bootstrap = Bootstrap(),
) -> Comparison:
    """Show fresh images to the model under an attack and under random perturbations of its size.

    Args:
        model: as in `bounded_attack`.
        fresh: frames that neither search nor training has seen.
        attack: what a search found.
        random: what `random_search` found in the same box with as many evaluations.
        metric: one of `METRICS`.
        typical: over how many draws the typical random perturbation is averaged.
        bootstrap: of the intervals; its seed is also that of the test and of the typical draws.

    Raises:
        ValueError: the two searched different boxes or had unequal numbers of evaluations.
    """
    efforts = [(search.space.coordinates, search.evaluations) for search in (attack, random)]
    if efforts[0] != efforts[1]:
        raise ValueError(
            f"no fair comparison: {attack.evaluations} evaluations over {attack.space.names} against "
            f"{random.evaluations} over {random.space.names}"
        )
    evaluator = Evaluator(model, fresh, metric)
    space, reference = attack.space, attack.space.reference()
    size = attack.point if np.abs(attack.point).max(initial=0) > 1 + 1e-6 else None
    # Not the draws that were picked from.
    loose = random_points(space, typical, bootstrap.seed + 1, size)
    columns, distances = [evaluator.scores(reference)], [np.zeros(2)]
    for points in (loose, [random.point], [attack.point]):
        pipelines = [space.pipeline(point) for point in points]
        apart = [evaluator.image_distances(pipeline, reference) for pipeline in pipelines]
        columns.append(np.mean([evaluator.scores(pipeline) for pipeline in pipelines], axis=0))
        distances.append(np.mean(apart, axis=0))
    return _compare_scores(np.stack(columns, 1), np.array(distances), fresh.groups, bootstrap)


def _compare_scores(
    values: np.ndarray,
    distances: np.ndarray,
    groups: np.ndarray,
    bootstrap: Bootstrap = Bootstrap(),
) -> Comparison:
    """Compare scores (N, 4), in the order of the rows; ``distances`` (4, 2) are l2 and 1 - SSIM."""
    table = pd.DataFrame(index=pd.Index(_ROWS, name="pipeline"))
    table[["score", "low", "high"]] = np.stack(bootstrap_means(values, groups, bootstrap), 1)
    changes = bootstrap_means(values - values[:, :1], groups, bootstrap)
    table[["change", "change_low", "change_high"]] = np.stack(changes, 1)
    with np.errstate(divide="ignore"):
        table["psnr"] = -10 * np.log10(distances[:, 0])
    table["ssim"] = 1 - distances[:, 1]
    # Against the worst random draw, and against a typical one.
    ahead = values[:, 3:] - values[:, [2, 1]]
    bounds = bootstrap_means(ahead[:, :1], groups, bootstrap)
    p = sign_flip_test(ahead, groups, seed=bootstrap.seed)
    difference, low, high = (float(b[0]) for b in bounds)
    return Comparison(
        table, values, difference, low, high, float(p[0]), float(p[1]), bootstrap.level
    )


def attack_parameters(
    model: nn.Module,
    frames: Frames,
    fresh: Frames,
    isp: ParametrizedISP,
    parameters: Sequence[str] = ("all",),
    *,
    fraction: float = 0.1,
    steps: int = 20,
    restarts: int = 2,
    metric: str = "accuracy",
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Attack]]:
    """Attack by all parameters together or by each alone, each beside random ones of its size.

    Args:
        model, frames, isp, fraction, steps, restarts, seed: of the searches, see `bounded_attack`.
        fresh, metric: of the judgement, see `compare_to_random`.
        parameters: names of `ParametrizedISP`, or "all", one search each.
        level: confidence of the intervals.
        progress: whether to show a bar.

    Returns:
        One row a search: ``unchanged``, ``random`` (worst of as many) and ``attack`` scores on the fresh
        images, ``difference`` of the last two with ``low`` and ``high``, ``p``, ``p_holm`` (for the number
        of searches) and ``beats_random``, ``psnr``; and the attacks by name.
    """
    rows, attacks = {}, {}
    for name in progress_bar(iterable=parameters, desc="attacks", disable=not progress):
        effort = {"fraction": fraction, "steps": steps, "restarts": restarts, "seed": seed}
        attack = attacks[name] = bounded_attack(model, frames, isp, parameters=name, **effort)
        random = random_search(
            model, frames, attack.space, evaluations=attack.evaluations, seed=seed
        )
        intervals = Bootstrap(level, seed=seed)
        judged = compare_to_random(
            model, fresh, attack, random, metric=metric, typical=1, bootstrap=intervals
        )
        rows[name] = {
            "unchanged": judged.table.loc["unchanged", "score"],
            "random": judged.table.loc["random, worst of as many", "score"],
            "attack": judged.table.loc["attack", "score"],
            **{column: getattr(judged, column) for column in ("difference", "low", "high", "p")},
            "psnr": judged.table.loc["attack", "psnr"],
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameters")
    table["p_holm"] = holm(table["p"])
    table["beats_random"] = (table["p_holm"] <= 1 - level + 1e-12) & (table["difference"] < 0)
    return table, attacks
