"""Uncertainty of scores over images that come in groups and models that come of seeds.

Two things were drawn by chance: the groups (slide zones, photographs; an image is no draw of its own, its
group is) and the training runs. So the variance of a number has two parts, crossed: that between groups, by
leaving out whole groups, corrected for their sizes (CR2), and that between seeds. Their sum slightly
overestimates it where the two interact (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1,
2007). Intervals and tests are Student's t with Satterthwaite's degrees of freedom: few or unequal groups say
little (Bell and McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage
samples", Survey Methodology 28, 2002; Pustejovsky and Tipton, Journal of Business and Economic Statistics 36,
2018), two seeds say little about a third, and the interval shows it. With one seed only the groups count, and
the trained models are taken as given.

What this covers in simulations, and from how many groups on, stands in docs/statistics.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from r2l.files import check_groups

_ENOUGH_GROUPS = 20  # effective ones, from which on intervals cover about what they say (docs/statistics.md)
# Correlation of a group's images that the degrees of freedom are counted for; on it hangs what unequal sizes
# cost. Rather more than usual: the intervals of rare errors in few groups come out too narrow with less.
_ALIKE = 0.5
_TINY = np.finfo(float).tiny
_Of = Callable[[np.ndarray], np.ndarray]  # from ratios (..., K) to quantities (..., M)
_Luck = tuple[np.ndarray, float]  # a variance (M,) and its degrees of freedom


class Interval(NamedTuple):
    """Estimates with the bounds of their confidence intervals and p-values against zero, arrays (K,)."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def interval_text(estimate: float, low: float, high: float, form: str = "+.3f") -> str:
    """Return an estimate and its bounds as they are printed: ``+0.120 (+0.080 to +0.170)``."""
    return f"{estimate:{form}} ({low:{form}} to {high:{form}})"


def effective_groups(groups: ArrayLike) -> float:
    """Return how many groups of equal size would tell as much: as many degrees of freedom, and one.

    >>> effective_groups(["a", "b", "c"] * 2), round(effective_groups(["a"] * 8 + ["b", "c"]), 2)
    (3.0, 2.15)
    """
    _, sizes = np.unique(check_groups(groups), return_counts=True)
    return 1 + _freedom(sizes) if len(sizes) > 1 else 1.0


def _freedom(sizes: np.ndarray) -> float:
    """Return the degrees of freedom of the CR2 variance of a mean over groups of these sizes (G,).

    Bell and McCaffrey's, for a working correlation of `_ALIKE`: of the covariance of the residuals' sums,
    trace squared by the trace of its square, here in closed form (it is diagonal but for rank two).
    """
    part = np.minimum(sizes / sizes.sum(), 1 - 1e-6)
    variance = part * (_ALIKE * sizes + 1 - _ALIKE)
    weight, rank_two = 1 / (1 - part), np.array([[variance.sum(), -1], [-1, 0]])
    both = np.stack([part, variance])
    own = variance + np.einsum("ig,ij,jg->g", both, rank_two, both)
    cross = rank_two @ (weight * both @ both.T)
    square = (weight**2 * variance * (2 * own - variance)).sum() + np.trace(cross @ cross)
    return float(max((weight * own).sum() ** 2 / square, 1))


def few_groups_text(effective: float) -> str:
    """Return a warning if groups are too few for their intervals to be believed, else nothing."""
    told = f"few groups, worth {effective:.0f} of equal size: the intervals are to be believed from"
    return "" if effective >= _ENOUGH_GROUPS else f"{told} {_ENOUGH_GROUPS} on"


@dataclass(frozen=True)
class Jackknife:
    """Ratios of sums: as observed (K,), without each group in turn (G, K), and by each seed alone (S, K).

    Attributes:
        sizes: of the groups, in images of average weight (G,).
        hits: whether images are right or wrong, 0 or 1 (of differences also -1): all or nothing.
        level: coverage of the intervals.
    """

    estimate: np.ndarray
    without_group: np.ndarray
    by_seed: np.ndarray
    sizes: np.ndarray
    hits: bool
    level: float

    @property
    def effective_groups(self) -> float:
        """See the function of that name."""
        return 1 + _freedom(self.sizes)

    def interval(self, of: _Of | None = None, luck: _Luck | None = None) -> Interval:
        """Return estimate and interval of each ratio, or of what ``of`` makes of them.

        Where images are right or wrong, the variance is that with four images more, two won and two lost, so
        that no difference in a handful of images is no proof of none (after Agresti and Min, "Simple improved
        confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005).

        Args:
            of: from ratios (..., K) to quantities (..., M).
            luck: variance (M,) of what else was drawn by chance, and its degrees of freedom; that between
                seeds, unless given.
        """
        estimate, variance, freedom, _ = self._moments(of, luck=luck)
        half = self._quantile(freedom) * np.sqrt(variance)
        # No spread at all and a mean of zero is no evidence; no spread and another mean can't be judged.
        certain = variance <= _TINY
        t = np.abs(estimate) / np.sqrt(np.where(certain, 1, variance))
        p = np.where(certain, 1.0, 2 * stats.t.sf(t, freedom))
        return Interval(estimate, estimate - half, estimate + half, p)

    def shares(self, of: _Of | None = None) -> Interval:
        """Return the same for scores, whose bounds stay in [0, 1] if they do.

        Wilson's interval, on as many images as would have this variance if they were independent: between
        their number and, in groups that are all alike, (sum of sizes)^2 / sum of squares (Korn and Graubard,
        "Confidence intervals for proportions with small expected number of positive counts", Survey
        Methodology 24, 1998).
        """
        usual = self.interval(of)
        estimate = usual.estimate
        if not ((estimate >= 0) & (estimate <= 1)).all():
            return usual
        alone = estimate * (1 - estimate)
        worth = self.sizes.sum() ** 2 / (self.sizes**2).sum()
        within = alone / self.sizes.sum() * self.hits, alone / worth
        _, variance, freedom, _ = self._moments(of, within)
        n = np.where(variance > _TINY, alone / np.maximum(variance, _TINY), worth)
        q = self._quantile(freedom)
        middle = (estimate + q**2 / (2 * n)) / (1 + q**2 / n)
        half = q / (1 + q**2 / n) * np.sqrt(alone / n + (q / (2 * n)) ** 2)
        return Interval(estimate, middle - half, middle + half, usual.p)

    def ratios_to_first(self, of: _Of) -> Interval:
        """Return the quantities that ``of`` makes divided by the first of them, with Fieller's intervals.

        All nan where the first can't be told from zero, or is below it: such a ratio may be anything.
        (Fieller, "Some problems in interval estimation", JRSS B 16, 1954.) ``p`` is nan.
        """
        estimate, variance, freedom, shared = self._moments(of)
        t2 = self._quantile(freedom.min()) ** 2
        a = estimate[0] ** 2 - t2 * variance[0]
        if estimate[0] <= 0 or a <= 0:
            return Interval(*np.full((4, len(estimate)), np.nan))
        b = estimate * estimate[0] - t2 * shared
        root = np.sqrt(np.maximum(b**2 - a * (estimate**2 - t2 * variance), 0))
        bounds = np.stack([(b - root) / a, (b + root) / a])
        bounds[:, 0] = 1  # the first to itself
        return Interval(estimate / estimate[0], *bounds, np.full(len(estimate), np.nan))

    def _moments(
        self, of: _Of | None, within: tuple[np.ndarray, np.ndarray] | None = None, luck: _Luck | None = None
    ) -> tuple[np.ndarray, ...]:
        """Return estimates, variances, degrees of freedom, covariances with the first, each (M,).

        The variance between groups stays ``within`` bounds; without them it is that with four images more.
        """
        parts = (self.estimate, self.without_group, self.by_seed)
        estimate, moved, seeds = parts if of is None else map(of, parts)
        n_groups, n_seeds, part = len(moved), len(seeds), self.sizes / self.sizes.sum()
        # What is left of differences between numbers that are all alike is rounding, and no spread.
        tiny, apart = 1e-12 * np.abs(self.estimate).max(initial=0), seeds - seeds.mean(axis=0)
        moved, apart = (np.where(np.abs(d) > tiny, d, 0) for d in (estimate - moved, apart))
        moved = np.einsum("g,g...->g...", np.sqrt(1 - part), moved)
        squares, fourths = (moved**2).sum(axis=0), (moved**4).sum(axis=0)
        if within is None:
            # What an image counts, squared: 1 in a difference of two cells, less in means of many.
            weight = float(self.hits)
            if of is not None and self.hits:
                weight = np.minimum((of(np.eye(len(self.estimate))) ** 2).sum(axis=0) / 2, 1)
            between = squares + 4 * weight / self.sizes.sum() ** 2
        else:
            between = np.clip(squares, *within)
        # How well a variance is known falls with the kurtosis of what it is made of; of normal parts `most`.
        most, twice = _freedom(self.sizes), 2 * between**2
        unsure = np.maximum(fourths - squares**2 / n_groups, twice / most + _TINY)
        # Bounds of the variance make up for part of that, and where nothing varies they are all there is.
        least = 1 if within is None else min(3, most)
        freedom = np.where(squares > _TINY, np.maximum(twice / unsure, least), most)
        shared = (moved * moved[:, :1]).sum(axis=0)
        if luck is None and n_seeds > 1:
            luck = (apart**2).sum(axis=0) / (scale := (n_seeds - 1) * n_seeds), n_seeds - 1
            shared = shared + (apart * apart[:, :1]).sum(axis=0) / scale
        if luck is not None:
            doubt = between**2 / freedom + luck[0] ** 2 / luck[1]
            between = between + luck[0]
            freedom = np.maximum(between**2 / np.maximum(doubt, _TINY), 1)
        return estimate, between, freedom, shared

    def _quantile(self, freedom: np.ndarray) -> np.ndarray:
        return stats.t.ppf((1 + self.level) / 2, freedom)


def _group_totals(values: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Add up the rows of values (..., N, K) within each group: (..., G, K), and numbers (G,), sorted."""
    values, groups = np.asarray(values, dtype=float), check_groups(groups)
    if values.ndim < 2 or 0 in values.shape[:-1] or groups.shape != values.shape[-2:-1]:
        raise ValueError(f"expected values (N, K) and groups (N,), got {values.shape}, {groups.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values hold a number that is not finite")
    _, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(members, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(values[..., order, :], starts, axis=-2), counts


def crossed_means(values: ArrayLike, groups: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean of each column of values (N, K) or, of S seeds, (S, N, K); else as `crossed_ratios`."""
    return crossed_ratios(values, np.ones_like(values, dtype=float), groups, level).interval()


def crossed_ratios(
    numerators: ArrayLike, denominators: ArrayLike, groups: ArrayLike, level: float = 0.95
) -> Jackknife:
    """Return the ratio of the sums of each column, and what it is without each group and by each seed.

    Args:
        numerators: one row an image, one column a quantity, (N, K); of several seeds (S, N, K).
        denominators: as ``numerators``, or of one column for all; ones for means.
        groups: group of each row, (N,).
        level: coverage of the intervals, between 0 and 1.

    Raises:
        ValueError: another number of groups than of rows, fewer than two groups, a value that is not finite,
            denominators that add up to nothing, or a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share between 0 and 1")
    parts = [np.asarray(part, dtype=float) for part in (numerators, denominators)]
    parts = [part[None] if part.ndim == 2 else part for part in parts]
    (above, counts), (below, _) = (_group_totals(part, groups) for part in parts)
    if len(counts) < 2:
        raise ValueError("an interval needs at least 2 groups")
    seeds = _ratio(above.sum(axis=1), below.sum(axis=1))
    above, below = above.mean(axis=0), below.mean(axis=0)
    tops, bottoms = above.sum(axis=0), below.sum(axis=0)
    if not (bottoms > 0).all():
        raise ValueError("a ratio has nothing to divide by: its denominators add up to 0")
    estimate = tops / bottoms
    # What is without any denominator says nothing; it stands as the estimate.
    without = _ratio(tops - above, bottoms - below, estimate)
    seeds = np.where(np.isfinite(seeds), seeds, estimate)
    hits = bool((parts[1] == 1).all() and np.isin(parts[0], (-1, 0, 1)).all())
    return Jackknife(estimate, without, seeds, (below / bottoms).mean(axis=1) * counts.sum(), hits, level)


def _ratio(above: np.ndarray, below: np.ndarray, instead: ArrayLike = np.nan) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        # What rounding leaves of a sum that was taken off itself is none.
        return np.where(below > 1e-12, above / below, instead)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values (K,) for their number by Holm's step-down rule; same order and shape.

    Calling those at most 0.05 significant keeps the chance of one or more false calls, over all K
    comparisons, at most 5 %, however they depend on each other. (Holm, "A Simple Sequentially Rejective
    Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.) A p-value outside [0, 1] is a
    ValueError.
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("expected a row of p-values between 0 and 1")
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]
