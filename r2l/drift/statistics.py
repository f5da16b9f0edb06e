"""Uncertainty of means over images that come in groups, and correction for many tests.

The unit that was sampled is the group (slide zone, photograph), not the image, so groups are what
is resampled. All quantities of a drift matrix are means of per-image numbers (an accuracy is a mean
of hits, a paired difference a mean of differences of hits), so one matrix product serves all cells.

Intervals and tests take the trained models as given: they say how far another sample of groups
could move a number, not how far another training run could. For that, train with several seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

# Draws handled at once; keeps the memory at (BATCH x number of means) numbers.
BATCH = 1000


class Interval(NamedTuple):
    """Estimates with the bounds of their confidence intervals, each an array (K,)."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def group_totals(values: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows of ``values`` (N, K) within each group.

    Returns:
        Sums (G, K) and numbers of rows (G,), in sorted order of the groups.

    Raises:
        ValueError: no rows, another number of groups than of rows, or a value that is not finite.
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    if values.ndim != 2 or len(values) == 0 or groups.shape != values.shape[:1]:
        raise ValueError(
            f"expected values (N, K) and groups (N,), got {values.shape}, {groups.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError("values hold a number that is not finite")
    _, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, members, values)
    return sums, counts


def bootstrap_means(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of each column with an interval from a bootstrap over groups.

    Whole groups are drawn with replacement, the same ones for every column. Bounds are percentiles
    of the drawn means, moved outwards for the number of groups, since plain percentiles are too
    narrow when groups are few (Hesterberg, "What Teachers Should Know About the Bootstrap", The
    American Statistician 69, 2015: the "expanded percentile" interval).

    Args:
        values: one row an image, one column a quantity, (N, K).
        groups: group of each row, (N,).
        level: coverage of the interval, between 0 and 1.
        draws: number of bootstrap samples.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: fewer than two groups, or as `group_totals`.
    """
    sums, counts = group_totals(values, groups)
    n_groups = len(counts)
    if n_groups < 2:
        raise ValueError("an interval needs at least 2 groups")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            (drawn @ sums) / (drawn @ counts)[:, None]
            for drawn in (
                rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size)
                for size in _batches(draws)
            )
        ]
    )
    quantile = stats.t.ppf((1 - level) / 2, n_groups - 1) * np.sqrt(n_groups / (n_groups - 1))
    tail = stats.norm.cdf(quantile)
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return Interval(sums.sum(axis=0) / counts.sum(), low, high)


def sign_flip_test(
    differences: ArrayLike, groups: ArrayLike, *, draws: int = 9999, seed: int = 0
) -> np.ndarray:
    """Return the two-sided p-value of each column: could its mean difference be an accident?

    If it makes no difference which of two pipelines an image went through, the paired differences
    of a whole group are as likely to have come out with the opposite sign. The p-value is the share
    of random sign changes, group by group, that give a mean at least as far from zero as the one
    observed (itself included, so that it is at least 1 / (draws + 1)).

    Args:
        differences: paired differences, one row an image, one column a comparison, (N, K).
        groups: group of each row, (N,).
        draws: number of random sign changes; a correction for K tests needs about 20 K or more.
        seed: equal seeds give equal p-values.

    Returns:
        p-values (K,) in (0, 1].

    Raises:
        ValueError: as `group_totals`.
    """
    sums, _ = group_totals(differences, groups)
    # Differences of hits are whole numbers: the tolerance only forgives the order of adding.
    observed = np.abs(sums.sum(axis=0)) - 1e-9
    rng = np.random.default_rng(seed)
    reached = np.ones(sums.shape[1])
    for size in _batches(draws):
        signs = rng.integers(0, 2, (size, len(sums))) * 2.0 - 1.0
        reached += (np.abs(signs @ sums) >= observed).sum(axis=0)
    return reached / (draws + 1)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values (K,) for their number by Holm's step-down rule; same order and shape.

    Calling those at most 0.05 significant keeps the chance of one or more false calls, over all K
    comparisons, at most 5 %, however they depend on each other. (Holm, "A Simple Sequentially
    Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.)

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("expected a row of p-values between 0 and 1")
    order = np.argsort(p)
    remaining = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * remaining), 1.0)
    return adjusted


def _batches(total: int) -> list[int]:
    whole, rest = divmod(total, BATCH)
    return [BATCH] * whole + [rest] * (rest > 0)
