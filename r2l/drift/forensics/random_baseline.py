"""Does an attack beat chance? Fresh images, the same for all, and a paired test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.attack import Attack, bounded_attack, random_points, random_search
from r2l.drift.forensics.search_space import Evaluator, Searchable, once_each
from r2l.drift.paired import score_table
from r2l.drift.statistics import crossed_ratios, effective_groups, few_groups_text, holm, interval_text
from r2l.progress import progress_bar


@dataclass(frozen=True, eq=False)
class Comparison:
    """An attack beside random perturbations of its size, on images that no search has seen.

    Attributes:
        table: rows "unchanged", "random, typical" (mean over several draws), "random, worst of as many" (of
            as many draws as the attack had evaluations, picked on the search's images) and "attack", the last
            two averaged over searches; ``score`` and ``change`` to unchanged with bounds; ``psnr`` (dB) of
            all the pictures beside the unchanged ones.
        difference, low, high: mean of attack less the worst random one (negative: the attack does more harm),
            and its bounds, for other images and other searches, of confidence ``level``.
        p: of the test of that difference; nan of one search a side, which can't tell skill from luck.
        searches: how many attacks and how many random searches.
        effective_groups: of the fresh images, see `r2l.drift.statistics.effective_groups`.
    """

    table: pd.DataFrame
    difference: float
    low: float
    high: float
    p: float
    searches: tuple[int, int]
    effective_groups: float
    level: float

    @property
    def beats_random(self) -> bool:
        """Whether the attack does significantly more harm than the worst of as many random draws."""
        return self.difference < 0 and self.p <= 1 - self.level

    def __str__(self) -> str:
        verdict = f"p = {self.p:.4f}: it {'beats' if self.beats_random else 'does not beat'}"
        if np.isnan(self.p):
            verdict = "of one search each, which can't tell whether it beats"
        searches = f"{self.searches[0]} and {self.searches[1]} searches"
        ahead = interval_text(self.difference, self.low, self.high)
        told = f"attack - worst random, {searches}: {ahead}, {verdict} random perturbations of its size"
        table = self.table.to_string(float_format="{:.3f}".format)
        return f"{table}\n{told}\n{few_groups_text(self.effective_groups)}".rstrip()


def compare_to_random(
    model: nn.Module,
    fresh: Frames,
    attacks: Attack | Sequence[Attack],
    randoms: Attack | Sequence[Attack],
    *,
    metric: str = "accuracy",
    typical: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Show fresh images to the model under attacks and under random perturbations of their size.

    A second random search is often worse than a first, by luck. So searches are a sample as images are: give
    several of both, of different seeds, or at least several random ones.

    Args:
        model: as in `bounded_attack`.
        fresh: frames that neither search nor training has seen.
        attacks: what searches found.
        randoms: what `random_search` found in the same box with as many evaluations.
        typical, seed: how many draws the typical random perturbation is the mean of, and theirs.

    Raises:
        ValueError: the searches had different boxes or unequal numbers of evaluations, or there are none.
    """
    sides = [[side] if isinstance(side, Attack) else list(side) for side in (randoms, attacks)]
    efforts = {(s.space.coordinates, s.evaluations): s.space.names for side in sides for s in side}
    if len(efforts) != 1 or not all(sides):
        told = " against ".join(f"{n} evaluations over {m}" for (_, n), m in efforts.items())
        raise ValueError(f"no fair comparison: {told or 'no searches'}")
    if typical < 1:
        raise ValueError(f"typical is {typical}, expected 1 draw or more")
    evaluator, space, point = Evaluator(model, fresh, metric), sides[1][0].space, sides[1][0].point
    reference = space.pipeline(np.zeros_like(point))
    size = point if np.abs(point).max(initial=0) > 1 + 1e-6 else None
    # Not the draws that were picked from, whose seeds are numbers.
    loose = random_points(space, typical, np.random.SeedSequence([seed, 3]), size)

    def ask(point: np.ndarray) -> tuple[np.ndarray, float]:
        pipeline = space.pipeline(point)
        return evaluator.scores(pipeline), evaluator.difference(pipeline, reference)

    asked, columns, distances = once_each(ask), [evaluator.scores(reference)[None]], [0.0]
    for points in (loose, *([search.point for search in side] for side in sides)):
        scores, apart = zip(*map(asked, points), strict=True)
        columns.append(np.stack(scores))
        distances.append(np.mean(apart))
    return _compare_scores(columns, np.array(distances), fresh.groups, level)


def _compare_scores(
    columns: Sequence[np.ndarray], distances: np.ndarray, groups: np.ndarray, level: float = 0.95
) -> Comparison:
    """Compare scores (searches, N), in the order of the rows; ``distances`` (4,) are mean squares."""
    rows = ["unchanged", "random, typical", "random, worst of as many", "attack"]
    values = np.stack([column.mean(axis=0) for column in columns], axis=1)
    table = score_table(values, values - values[:, :1], groups, level, "change").drop(columns="p")
    table.index = pd.Index(rows, name="pipeline")
    table.loc["unchanged", ["change_low", "change_high"]] = 0
    with np.errstate(divide="ignore"):
        table["psnr"] = -10 * np.log10(distances)
    means = [column.mean(axis=1) for column in columns[2:]]
    randoms, attacks = map(len, means)
    freedom = randoms + attacks - 2
    # If the attack is but another random search, the luck of both is the same: one variance for both.
    squares = sum(((side - side.mean()) ** 2).sum() for side in means)
    luck = np.array([squares / max(freedom, 1) * (1 / randoms + 1 / attacks)]), freedom
    scores = crossed_ratios(values, np.ones_like(values), groups, level)
    ahead = scores.interval(lambda s: s[..., 3:] - s[..., 2:3], luck if freedom else None)
    difference, low, high, p = (float(part[0]) for part in ahead)
    p = p if freedom else np.nan
    return Comparison(table, difference, low, high, p, (attacks, randoms), effective_groups(groups), level)


def attack_parameters(
    model: nn.Module,
    frames: Frames,
    fresh: Frames,
    isp: Searchable | None = None,
    parameters: Sequence[str] = ("all",),
    *,
    fraction: float = 0.1,
    steps: int = 20,
    restarts: int = 2,
    searches: int = 3,
    metric: str = "accuracy",
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Attack]]:
    """Attack by all parameters together or by each alone, several times, beside random ones of their size.

    Args:
        model, frames, isp, fraction, steps, restarts, seed: of the searches, see `bounded_attack`.
        searches: how many on either side, of as many seeds, at least two. With one start all attacks end
            alike, so it is made once, and its luck is taken to be that of a random search: take five or more
            then.
        fresh, metric, level: of the judgement, see `compare_to_random`.
        parameters: names of the ISP's, or "all", one search each.

    Returns:
        One row a name: ``unchanged``, ``random`` (worst of as many) and ``attack`` scores on the fresh
        images, means over searches, ``difference`` of the last two with ``low`` and ``high``, ``p``,
        ``p_holm`` (for the number of names) and ``beats_random``, ``psnr``; and of each name the attack with
        the lowest margin.
    """
    if not parameters:
        raise ValueError("no parameters to attack by; give names, or all")
    if searches < 2:
        raise ValueError(f"searches is {searches}, expected 2 or more: one can't tell luck from skill")
    rows, attacks = {}, {}
    for name in progress_bar(iterable=parameters, desc="attacks", disable=not progress):
        effort = {"parameters": name, "fraction": fraction, "steps": steps, "restarts": restarts}
        seeds = range(seed, seed + searches)
        # One start is the pipeline as it is: a second search would end where the first does.
        starts = seeds if restarts > 1 else seeds[:1]
        tried = [bounded_attack(model, frames, isp, seed=s, **effort) for s in starts]
        attack = attacks[name] = min(tried, key=lambda found: found.margin)
        budget = attack.evaluations
        randoms = [random_search(model, frames, attack.space, evaluations=budget, seed=s) for s in seeds]
        options = {"metric": metric, "typical": 1, "level": level, "seed": seed}
        judged = compare_to_random(model, fresh, tried, randoms, **options)
        scores = judged.table["score"].drop("random, typical").set_axis(["unchanged", "random", "attack"])
        told = {column: getattr(judged, column) for column in ("difference", "low", "high", "p")}
        rows[name] = scores.to_dict() | told | {"psnr": judged.table.loc["attack", "psnr"]}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameters")
    table["p_holm"] = holm(table["p"])
    table["beats_random"] = (table["p_holm"] <= 1 - level) & (table["difference"] < 0)
    return table, attacks
