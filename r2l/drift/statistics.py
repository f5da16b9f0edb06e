"""Uncertainty of means over images that come in groups, and correction for many tests.

The unit that was sampled is the group (slide zone, photograph), not the image, so groups are what
is resampled. All quantities of a drift matrix are means of per-image numbers (an accuracy is a mean
of hits, a paired difference a mean of differences of hits), so one matrix product serves all cells.

Intervals and tests take the trained models as given: they say how far another sample of groups
could move a number, not how far another training run could. For that, train with several seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

# Draws handled at once; keeps the memory at (_BATCH x number of means) numbers.
_BATCH = 1000


class Interval(NamedTuple):
    """Estimates with the bounds of their confidence intervals, each an array (K,)."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interval_text(estimate: float, low: float, high: float, form: str = "+.3f") -> str:
    """Return an estimate and its bounds as they are printed: ``+0.120 (+0.080 to +0.170)``."""
    return f"{estimate:{form}} ({low:{form}} to {high:{form}})"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    >>> Bootstrap(draws=500).level
    0.95

    Attributes:
        level: their coverage, between 0 and 1; 1 - level is that of the tests beside them.
        draws: number of bootstrap samples.
        seed: of the samples, and of the tests beside them; equal seeds give equal numbers.

    Raises:
        ValueError: a level that is not between 0 and 1.
    """

    level: float = 0.95
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}, expected a share between 0 and 1")


@dataclass(frozen=True)
class Draws:
    """Ratios of sums as observed, and as they came out in bootstrap samples of the groups.

    Attributes:
        estimate: observed, (K,).
        samples: one row a bootstrap sample, (draws, K).
        n_groups: how many groups there were.
        level: coverage of the intervals.
    """

    estimate: np.ndarray
    samples: np.ndarray
    n_groups: int
    level: float

    def interval(self, of: Callable[[np.ndarray], np.ndarray] | None = None) -> Interval:
        """Return estimate and interval of each ratio, or of what ``of`` makes of them.

        Bounds are percentiles of the samples, moved outwards for the number of groups, since plain
        percentiles are too narrow when groups are few (Hesterberg, "What Teachers Should Know About the
        Bootstrap", The American Statistician 69, 2015: the "expanded percentile" interval).

        Args:
            of: from ratios (..., K) to quantities (..., M).
        """
        estimate, samples = self.estimate, self.samples
        if of is not None:
            estimate, samples = of(estimate), of(samples)
        quantile = stats.t.ppf((1 - self.level) / 2, self.n_groups - 1)
        tail = stats.norm.cdf(quantile * np.sqrt(self.n_groups / (self.n_groups - 1)))
        # "higher" and "lower" would not mix an unbounded ratio with its finite neighbour.
        exact = np.isfinite(samples).all()
        low, high = np.quantile(
            samples, [tail, 1 - tail], axis=0, method="linear" if exact else "nearest"
        )
        return Interval(estimate, low, high)


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
    values: ArrayLike, groups: ArrayLike, bootstrap: Bootstrap = Bootstrap()
) -> Interval:
    """Return the mean of each column of values (N, K), with its interval; else as `bootstrap_ratios`."""
    ones = np.ones((len(np.asarray(values)), 1))
    return bootstrap_ratios(values, ones, groups, bootstrap).interval()


def bootstrap_ratios(
    numerators: ArrayLike,
    denominators: ArrayLike,
    groups: ArrayLike,
    bootstrap: Bootstrap = Bootstrap(),
) -> Draws:
    """Return the ratio of the sums of each column, and what it is in bootstrap samples of the groups.

    Whole groups are drawn with replacement, the same ones for every column.

    Args:
        numerators: one row an image, one column a quantity, (N, K).
        denominators: as ``numerators``, or (N, 1) for all columns; ones for means.
        groups: group of each row, (N,).
        bootstrap: coverage of the intervals, number of samples, seed.

    Raises:
        ValueError: fewer than two groups, denominators that add up to nothing, or as `group_totals`.
    """
    above, counts = group_totals(numerators, groups)
    below, _ = group_totals(denominators, groups)
    n_groups = len(counts)
    if n_groups < 2:
        raise ValueError("an interval needs at least 2 groups")
    if not (below.sum(axis=0) > 0).all():
        raise ValueError("a ratio has nothing to divide by: its denominators add up to 0")
    rng = np.random.default_rng(bootstrap.seed)
    samples = []
    for size in _batches(bootstrap.draws):
        drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size)
        # A sample without any denominator says nothing; as rare as it is, it stands as the estimate.
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = (drawn @ above) / (drawn @ below)
        samples.append(ratios)
    estimate = above.sum(axis=0) / below.sum(axis=0)
    together = np.concatenate(samples)
    finite = np.where(np.isfinite(together), together, estimate)
    return Draws(estimate, finite, n_groups, bootstrap.level)


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
    return _share_reached(
        lambda drawn: np.abs((2 * drawn - 1) @ sums), observed, len(sums), draws, seed
    )


def exchange_test(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    groups: ArrayLike,
    *,
    draws: int = 9999,
    seed: int = 0,
) -> np.ndarray:
    """Return the two-sided p-value of each pair of ratios of sums: is their difference an accident?

    What `sign_flip_test` is for means: if the pipeline makes no difference, a group's sums under the one
    could as well have been those under the other. The p-value is the share of random exchanges, group by
    group, that move the two ratios at least as far apart as observed (itself included).

    Args:
        first: numerators and denominators of the one ratio of each comparison, each (N, K).
        second: of the other.
        groups, draws, seed: as in `sign_flip_test`.

    Returns:
        p-values (K,) in (0, 1].

    Raises:
        ValueError: as `group_totals`.
    """
    sums = [group_totals(part, groups)[0] for part in (*first, *second)]
    above, below, other_above, other_below = (part.sum(axis=0) for part in sums)
    moves = sums[2] - sums[0], sums[3] - sums[1]

    def distance(above_moved: np.ndarray, below_moved: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            one = (above + above_moved) / (below + below_moved)
            two = (other_above - above_moved) / (other_below - below_moved)
        return np.nan_to_num(np.abs(one - two), nan=np.inf)

    observed = distance(np.zeros_like(above), np.zeros_like(below)) - 1e-12
    exchanged = lambda drawn: distance(drawn @ moves[0], drawn @ moves[1])  # noqa: E731
    return _share_reached(exchanged, observed, len(sums[0]), draws, seed)


def _share_reached(
    distance: Callable[[np.ndarray], np.ndarray],
    observed: np.ndarray,
    n_groups: int,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Return how often groups drawn at random (0 or 1 each) reach what was observed, itself included."""
    rng = np.random.default_rng(seed)
    reached = np.ones(len(observed))
    for size in _batches(draws):
        drawn = rng.integers(0, 2, (size, n_groups)).astype(float)
        reached += (distance(drawn) >= observed).sum(axis=0)
    return reached / (draws + 1)


def smallest_p(n_groups: int) -> float:
    """Return the least p-value that flipping or exchanging ``n_groups`` groups can give.

    There are ``2 ** n_groups`` ways, and the opposite of each is as far from zero. Twelve photographs give
    no less than .0005, which no correction for 100 tests lets pass.
    """
    return float(2.0 ** (1 - n_groups))


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
    whole, rest = divmod(total, _BATCH)
    return [_BATCH] * whole + [rest] * (rest > 0)
