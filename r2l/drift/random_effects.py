"""How sure a difference is when both the images and the training runs could have been others.

`r2l.drift.statistics` takes trained models as given. Here several seeds train several models, and the
question is about the method, not about those models: groups of images and seeds are two samples at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from r2l.drift.statistics import group_totals, holm


class CrossedMeans(NamedTuple):
    """Means with confidence bounds and two-sided p-values against zero, each an array (K,)."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def crossed_means(values: ArrayLike, groups: ArrayLike, *, level: float = 0.95) -> CrossedMeans:
    """Return means over seeds and images, with intervals for both having been drawn by chance.

    The variance of a mean is that between groups (of the values averaged over seeds) plus that between
    seeds (of the means over images), which slightly overestimates it where the two interact (Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1, 2007, whose bootstrap has the same variance).
    Interval and test are Student's t, with Welch and Satterthwaite's degrees of freedom: two seeds say
    little about a third, and the interval shows it. With one seed only the groups count, and the trained
    models are taken as given.

    Args:
        values: one number for each seed, image and quantity, (S, N, K).
        groups: group of each image, (N,).
        level: coverage of the intervals.

    Raises:
        ValueError: other shapes, values that are not finite, or fewer than two groups.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"expected values (seeds, images, quantities), got {values.shape}")
    sums, counts = group_totals(values.mean(axis=0), groups)
    n_groups, n_seeds = len(counts), len(values)
    if n_groups < 2:
        raise ValueError("an interval needs at least 2 groups")
    estimate = sums.sum(axis=0) / counts.sum()
    # A mean over groups of unequal size is a ratio; its variance by linearisation.
    residuals = sums - counts[:, None] * estimate
    parts = [residuals.var(axis=0, ddof=1) * n_groups / counts.sum() ** 2]
    freedoms = [n_groups - 1]
    if n_seeds > 1:
        parts.append(values.mean(axis=1).var(axis=0, ddof=1) / n_seeds)
        freedoms.append(n_seeds - 1)
    variance = sum(parts)
    tiny = np.finfo(float).tiny
    freedom = variance**2 / np.maximum(
        sum(part**2 / f for part, f in zip(parts, freedoms, strict=True)), tiny
    )
    freedom = np.clip(freedom, 1, None)
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
    # No spread at all and a mean of zero is no evidence; no spread and another mean can't be judged.
    t = np.divide(estimate, np.sqrt(variance), out=np.zeros_like(estimate), where=variance > tiny)
    p = np.where(variance > tiny, 2 * stats.t.sf(np.abs(t), freedom), 1.0)
    return CrossedMeans(estimate, estimate - half, estimate + half, p)


def paired_summary(
    answers: pd.DataFrame,
    *,
    arm: str,
    baseline: str,
    by: str,
    value: str = "correct",
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare the arms of an experiment with a baseline, image by image and seed by seed.

    Args:
        answers: one row for each image, seed, ``arm`` and ``by``, with ``group`` and ``value``.
        arm: column that tells what was done.
        baseline: the arm that the others are compared with.
        by: column of the domains; comparisons stay within one.
        value: the per-image number, better if higher; True and False count as 1 and 0.
        level: of the intervals; 1 - level is that of the tests.

    Returns:
        One row for each domain and arm: ``score`` with ``low`` and ``high``; ``difference`` to the
        baseline with ``difference_low``, ``difference_high``, ``p`` and ``p_holm`` (Holm's correction
        over all rows that are not the baseline); ``significant``; ``images``, ``groups``, ``seeds``.

    Raises:
        ValueError: no such column or baseline, or an arm that lacks an image.
    """
    if missing := {arm, by, value, "image", "group", "seed"} - set(answers.columns):
        raise ValueError(f"the table lacks {sorted(missing)}; it has {list(answers.columns)}")
    arms = list(answers[arm].unique())
    if baseline not in arms:
        raise ValueError(f"no {baseline!r} among the arms {arms}")
    parts = [
        _summarise_domain(part, arm, arms, baseline, value, level).assign(**{by: name})
        for name, part in answers.groupby(by, sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    compared = table[arm] != baseline
    table["p_holm"] = np.nan
    table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"].to_numpy())
    table["significant"] = table["p_holm"] <= 1 - level
    return table[[by, arm, *[c for c in table.columns if c not in (by, arm)]]]


def _summarise_domain(
    part: pd.DataFrame, arm: str, arms: list[str], baseline: str, value: str, level: float
) -> pd.DataFrame:
    wide = part.astype({value: float}).pivot_table(
        index="image", columns=["seed", arm], values=value, aggfunc="mean", sort=False
    )
    seeds = list(part["seed"].unique())
    present = [a for a in arms if a in set(part[arm])]
    wide = wide.reindex(columns=pd.MultiIndex.from_product([seeds, present]))
    if wide.isna().any(axis=None):
        raise ValueError("some arm lacks some image or seed; pairs need all of them")
    values = wide.to_numpy().reshape(len(wide), len(seeds), len(present)).transpose(1, 0, 2)
    groups = part.drop_duplicates("image").set_index("image").loc[wide.index, "group"].to_numpy()
    score = crossed_means(values, groups, level=level)
    reference = values[..., [present.index(baseline)]]
    paired = crossed_means(values - reference, groups, level=level)
    table = pd.DataFrame({arm: present})
    table[["score", "low", "high"]] = np.stack(score[:3], axis=1)
    table[["difference", "difference_low", "difference_high", "p"]] = np.stack(paired, axis=1)
    table.loc[table[arm] == baseline, "p"] = np.nan
    return table.assign(images=len(wide), groups=len(np.unique(groups)), seeds=len(seeds))
