"""What the statistics say of themselves against what they do: data sets with a known answer, many of each.

Each test holds a rate against its bound; `python -m tests.test_simulations` prints all of them, with their
Monte Carlo errors, as the table in docs/statistics.md. One zone's images hang together throughout.
"""

import numpy as np
import pandas as pd
import pytest

from r2l.drift.forensics import Prober, scan
from r2l.drift.forensics.sensitivity import tolerated
from r2l.drift.paired import _effect_contrasts
from r2l.drift.statistics import crossed_means, crossed_ratios, effective_groups, few_groups_text, holm
from r2l.isp import PIPELINES
from r2l.isp.adjustable import Setting
from tests.test_forensics import compared
from tests.test_shift_detector import SIZES, false_alarms


def zone_sizes(rng, n_groups, *, unequal):
    sizes = np.maximum(1, np.round(rng.lognormal(np.log(4), 0.9, n_groups))).astype(int)
    return sizes if unequal else np.full(n_groups, 5)


def hits(rng, sizes, rate, together, columns):
    """Return hits (N, columns) at a rate, correlated by ``together`` within a zone, and the zones."""
    zones = np.repeat(np.arange(len(sizes)), sizes)
    odds = (1 - together) / together
    rates = rng.beta(rate * odds, (1 - rate) * odds, (len(sizes), columns))[zones]
    return (rng.random(rates.shape) < rates).astype(float), zones


def covered(interval, truth):
    return (interval.low <= truth) & (interval.high >= truth)


def rate_of(simulate, times=25, seed=0):
    """Return the mean of what a simulation returns, an array of trials each time."""
    rng = np.random.default_rng(seed)
    return float(np.mean([simulate(rng) for _ in range(times)]))


def cover_scores(n_groups, rate, *, unequal=False, together=0.2):
    def simulate(rng):
        values, zones = hits(rng, zone_sizes(rng, n_groups, unequal=unequal), rate, together, 40)
        return covered(crossed_ratios(values, np.ones_like(values), zones).shares(), rate)

    return rate_of(simulate)


def cover_overlaps(n_groups, rate=0.97):
    """Return how often the interval of an IoU of foregrounds of unequal size covers it."""

    def simulate(rng):
        zones = np.repeat(np.arange(n_groups), 3)
        union = rng.integers(20, 400, (len(zones), 40)).astype(float)
        share = rng.beta(20 * rate, 20 * (1 - rate), (n_groups, 40))[zones]
        overlap = union * rng.beta(10 * share, 10 * (1 - share) + 1e-9)
        return covered(crossed_ratios(overlap, union, zones).shares(), rate)

    return rate_of(simulate)


def cover_diagonal(n_groups, rate=0.97):
    """Return how often the interval of a mean of four cells, of the same images, covers it."""

    def simulate(rng):
        values, zones = hits(rng, np.full(n_groups, 5), rate, 0.2, 40)
        cells = np.repeat(values, 4, axis=1) * (rng.random((len(zones), 160)) < 0.99)
        mean = crossed_ratios(cells, np.ones_like(cells), zones).shares(
            lambda s: s.reshape(*s.shape[:-1], 40, 4).mean(axis=-1)
        )
        return covered(mean, 0.99 * rate)

    return rate_of(simulate)


def cover_rare(n_groups, *, unequal=True, times=50):
    """Return how often a difference covers 0: a tenth of images is bad, here by chance, there by zone."""

    def simulate(rng):
        sizes = zone_sizes(rng, n_groups, unequal=unequal)
        values, zones = hits(rng, sizes, 0.1, 0.5, 20)
        return covered(crossed_means(values - (rng.random(values.shape) < 0.1), zones), 0.0)

    return rate_of(simulate, times)


def cover_seeds(n_seeds, luck=0.03, n_groups=40):
    """Return how often a difference of .1 is covered where training runs differ by ``luck``."""

    def simulate(rng):
        zones = np.repeat(np.arange(n_groups), 5)
        rates = np.array([0.8, 0.7]) + rng.normal(0, luck, (n_seeds, 1, 2))
        hard = rng.normal(0, 0.1, (n_groups, 1))[zones]
        values = (rng.random((n_seeds, len(zones), 2)) < rates + hard).astype(float)
        return covered(crossed_means(values[..., :1] - values[..., 1:], zones), 0.1)

    return rate_of(simulate, 500)


def mark_null_effects(n_groups, holms=True, main=False):
    """Return how often some effect is marked in a matrix of twelve pipelines without any."""
    cells = pd.MultiIndex.from_product([PIPELINES, PIPELINES], names=["train", "test"])
    names, contrasts = _effect_contrasts(cells.to_frame(index=False))
    rows = ~names["term"].str.contains(" x ") & ~names["level"].str.contains(" x ") | (not main)

    def simulate(rng):
        zones = np.repeat(np.arange(n_groups), 5)
        shape = (len(PIPELINES), len(PIPELINES))
        hard = rng.normal(0.75, 0.15, len(zones))[:, None, None]
        lucks = [rng.normal(0, 0.15, (n_groups, *part))[zones] for part in (shape, (1, shape[1]))]
        values = (rng.random((len(zones), *shape)) < hard + sum(lucks)).astype(float)
        sampled = crossed_ratios(values.reshape(len(zones), -1), np.ones((len(zones), 1)), zones)
        p = sampled.interval(lambda scores: scores @ contrasts.T).p[rows]
        return [(holm(p) if holms else p).min() <= 0.05]

    return rate_of(simulate, 300)


def miss_ratio(drops, n_groups=60):
    """Return how often a ratio of two drops is said and wrong, and how often nothing is said."""

    def simulate(rng):
        zones = np.repeat(np.arange(n_groups), 5)
        both = rng.normal(0, 0.05, (n_groups, 1))[zones]
        values = rng.normal(drops + both, 0.3, (len(zones), 2))
        ratio = crossed_ratios(values, np.ones_like(values), zones).ratios_to_first(lambda s: s)
        said = not np.isnan(ratio.low[1])
        return [said and not covered(ratio, drops[1] / drops[0])[1], not said]

    rng = np.random.default_rng(0)
    return np.mean([simulate(rng) for _ in range(1000)], axis=0)


def beat_chance(n_groups, searches=(3, 3)):
    """Return how often a second random search of the same size is called another one."""
    found = compared(np.random.default_rng(3), 0.0, 400, n_groups=n_groups, searches=searches)
    return np.mean([f.p <= 0.05 for f in found])


class Simulated(Prober):
    """A model whose frames fail where their setting leaves their own tolerance; it asks no model.

    With ``hole``, more than the accepted drop also fails between two values, and not beyond.
    """

    def __init__(self, rng, n_groups, per_group, hole=None):
        self.zones, self.level = np.repeat(np.arange(n_groups), per_group), 0.95
        self.settings = {"x": Setting("x", "x", "", 0.0, 0.0, 4.0, 1.0)}
        luck = rng.normal(0, 0.4, n_groups)[self.zones]
        self.limits = 2 + luck + rng.normal(0, 0.6, len(self.zones))
        self.right, self.unlucky = rng.random((2, len(self.zones))) < [[0.9], [0.25]]
        self.hole, self.evaluator = hole, self
        self.frames, self.groups, self.metric = self, self.zones, "accuracy"

    def scores(self, x=0.0):
        hit = self.right & (self.limits > x)
        if self.hole and self.hole[0] < x < self.hole[1]:
            hit = hit & ~self.unlucky
        return hit.astype(float)


def exceeding_edges(n_groups, per_group, times=300, column="safe_high"):
    """Return how often the true fall at an edge exceeds the accepted .05."""
    whole = Simulated(np.random.default_rng(99), 20_000, 5)
    values = np.linspace(0, 4, 401)
    falls = [whole.scores().mean() - whole.scores(x=v).mean() for v in values]
    rng, over = np.random.default_rng(n_groups), []
    for _ in range(times):
        prober = Simulated(rng, n_groups, per_group)
        edge = tolerated(prober, scan(prober, "x", 15), 0.05)[column]
        over.append(np.interp(edge, values, falls) > 0.05 + 1e-3)
    return np.mean(over)


def holes(width, n_groups=60, times=60):
    """Return how often a safe interval reaches across a hole in which more than .05 is lost."""
    rng = np.random.default_rng(5)
    probers = [Simulated(rng, n_groups, 5, hole=(0.32, 0.32 + width)) for _ in range(times)]
    edges = [tolerated(p, scan(p, "x", 15), 0.05, refine=2)["safe_high"] for p in probers]
    return np.mean(np.array(edges) > 0.32)


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("n_groups", [10, 30])
def test_scores_near_one_are_covered(n_groups, unequal):
    assert cover_scores(n_groups, 0.97, unequal=unequal) >= 0.93  # 1000 trials: +- .007


@pytest.mark.parametrize(("n_groups", "least"), [(10, 0.88), (30, 0.92)])
def test_overlaps_near_one_and_the_mean_of_the_diagonal_are_covered(n_groups, least):
    assert cover_overlaps(n_groups) >= least
    assert cover_diagonal(n_groups) >= 0.93


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("n_groups", [30, 80])
def test_rare_errors_are_covered_and_too_few_groups_are_told(n_groups, unequal):
    # 1000 trials: +- .008. With the sizes not counted in the degrees of freedom .90 to .92.
    assert cover_rare(n_groups, unequal=unequal) >= 0.915
    sizes = zone_sizes(np.random.default_rng(0), n_groups, unequal=unequal)
    told = few_groups_text(effective_groups(np.repeat(np.arange(n_groups), sizes)))
    assert bool(told) == (unequal and n_groups < 80)


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_training_luck_is_in_intervals_from_two_seeds_on(n_seeds):
    assert cover_seeds(n_seeds) >= 0.93  # 500 trials: +- .010
    assert cover_seeds(1) <= 0.88, "one seed can't tell, which the text under a matrix says"


@pytest.mark.slow
def test_no_effect_is_marked_after_holm_though_many_leave_out_zero_by_themselves():
    assert mark_null_effects(40) <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 300)
    assert mark_null_effects(40, holms=False, main=True) >= 0.2


@pytest.mark.parametrize("drops", [(0.01, 0.01), (0.02, 0.03), (0.15, 0.3)])
def test_a_ratio_is_hardly_ever_said_and_wrong(drops):
    wrong, silent = miss_ratio(drops)
    assert wrong <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 1000)
    assert silent > 0.5 if drops[0] < 0.05 else silent < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("n_groups", "per_group"), [(10, 3), (30, 5)])
def test_safe_edges_hold_even_with_few_groups(n_groups, per_group):
    # 60 reports: +- .028; by percentiles of a bootstrap a fifth of ten groups of three fail.
    assert exceeding_edges(n_groups, per_group, 60) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("width", [0.2, 0.6])
def test_a_safe_interval_has_no_hole(width):
    # The scan's step is .29, so that the narrower hole lies between two of its values.
    assert holes(width) <= 0.05


def _table():
    """Yield statistic, case, nominal, measured now and how many trials."""
    for n_groups, unequal in ((10, False), (30, False), (80, False), (10, True), (30, True)):
        case = f"{n_groups} {'unequal ' if unequal else ''}groups, score .97"
        yield "score", case, 0.95, cover_scores(n_groups, 0.97, unequal=unequal), 1000
    for n_groups in (10, 30):
        yield "IoU", f"{n_groups} groups, IoU .97", 0.95, cover_overlaps(n_groups), 1000
        yield "diagonal", f"{n_groups} groups, .96", 0.95, cover_diagonal(n_groups), 1000
    for unequal in (False, True):
        for n_groups in (10, 30, 80):
            case = f"{n_groups} {'unequal ' if unequal else ''}groups, rare errors"
            yield "difference", case, 0.95, cover_rare(n_groups, unequal=unequal, times=200), 4000
    for n_seeds in (1, 2, 3, 5):
        yield "difference", f"luck .03, {n_seeds} seeds", 0.95, cover_seeds(n_seeds), 500
    for n_groups in (30, 80):
        marked = mark_null_effects(n_groups)
        yield "effects", f"{n_groups} groups, any of 69 marked (Holm)", 0.05, marked, 300
        plain = mark_null_effects(n_groups, holms=False, main=True)
        yield "effects", f"{n_groups} groups, any main effect's own interval", None, plain, 300
    for drops in ((0.01, 0.01), (0.02, 0.03), (0.15, 0.3)):
        wrong, silent = miss_ratio(drops)
        case = f"drops {drops[1]} by {drops[0]}: said and wrong ({silent:.2f} undefined)"
        yield "ratio", case, 0.05, wrong, 1000
    for n_groups, searches in ((30, (3, 3)), (80, (3, 3)), (200, (3, 3)), (200, (5, 1))):
        case = f"{n_groups} groups, {searches[1]} and {searches[0]} searches, no attack"
        yield "beats random", case, 0.05, beat_chance(n_groups, searches), 400
    for name, sizes in SIZES.items():
        for noise in (0.0, 2.0):
            case = f"{name}, images {'alone' if noise else 'alike'} within zones"
            yield "alarm", case, 0.05, false_alarms(sizes, noise), 300
    for n_groups, per_group in ((10, 3), (30, 5), (60, 5)):
        case = f"safe edge, {n_groups} groups of {per_group}"
        yield "tolerance", case, 0.025, exceeding_edges(n_groups, per_group, 200), 200
    yield "tolerance", "hole of .2, steps of .29", 0.0, holes(0.2, times=100), 100


if __name__ == "__main__":
    print("| statistic | case | nominal | now | Monte Carlo error |\n|---|---|---|---|---|")
    for statistic, case, nominal, now, trials in _table():
        error = np.sqrt(max(now * (1 - now), 0.01) / trials)
        told = "" if nominal is None else f"{nominal:.3f}"
        print(f"| {statistic} | {case} | {told} | {now:.3f} | {error:.3f} |", flush=True)
