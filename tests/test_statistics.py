"""Statistics on simulated data whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from r2l.drift.statistics import crossed_means, crossed_ratios, effective_groups, few_groups_text, holm
from tests.common import refused

GROUPS = np.repeat(np.arange(40), 6)
TWO, ONE_LARGE = np.repeat([0, 1], 6), np.repeat(np.arange(5), [18, 3, 3, 3, 3])
UNEQUAL = np.repeat(np.arange(10), [2, 3, 4, 5, 6, 6, 7, 8, 9, 10])


def clustered(rng, columns, groups=GROUPS):
    """Normal values with a common shift in each group; (N, columns)."""
    return rng.normal(0, 0.5, (groups.max() + 1, columns))[groups] + rng.normal(0, 1, (len(groups), columns))


def covers(interval, truth):
    return np.mean((interval.low <= truth) & (interval.high >= truth))


@pytest.mark.parametrize(
    ("groups", "told", "least", "most"),
    [
        (GROUPS, GROUPS, 0.93, 0.97),
        (UNEQUAL, UNEQUAL, 0.93, 0.98),
        (TWO, TWO, 0.93, 0.97),
        (ONE_LARGE, ONE_LARGE, 0.93, 1),
        (GROUPS, np.arange(240), 0, 0.9),
    ],
    ids=["forty groups", "ten unequal groups", "two groups", "one group of three fifths", "groups ignored"],
)
def test_interval_covers_the_true_mean_as_often_as_it_says_unless_groups_are_ignored(
    groups, told, least, most
):
    # 1000 independent data sets are the columns; 2.9 standard errors of a share of .95 are .02.
    result = crossed_means(0.3 + clustered(np.random.default_rng(1), 1000, groups), told)
    assert least <= covers(result, 0.3) <= most


def test_interval_matches_scipy_on_ungrouped_values():
    values = np.random.default_rng(4).normal(3, 1, (400, 1))
    ours = crossed_means(values, np.arange(400))
    theirs = stats.ttest_1samp(values[:, 0], 0).confidence_interval()
    assert ours.estimate[0] == pytest.approx(values.mean())
    assert ours.low[0] == pytest.approx(theirs.low, abs=1e-3)
    assert ours.high[0] == pytest.approx(theirs.high, abs=1e-3)


def test_null_matrix_is_flagged_in_five_per_cent_after_holm():
    # 400 matrices of 12 cells, all differences accidental, hits as in a real matrix (-1, 0, 1).
    hits = np.random.default_rng(6).random((2, len(GROUPS), 400 * 12)) < 0.8
    p = crossed_means(hits[0].astype(int) - hits[1], GROUPS).p.reshape(400, 12)
    assert 0.005 <= np.mean([holm(row).min() <= 0.05 for row in p]) <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("groups", [TWO, np.repeat([0, 1, 2], 5), ONE_LARGE], ids=["two", "three", "uneven"])
def test_few_groups_of_hits_raise_no_false_alarm(groups):
    rng = np.random.default_rng(16)
    hits = rng.beta(8, 2, (2, groups.max() + 1, 1000))[:, groups] > rng.random((2, len(groups), 1000))
    assert np.mean(crossed_means(hits[0].astype(int) - hits[1], groups).p <= 0.05) <= 0.05


def test_real_effect_survives_holm_among_eleven_null_cells():
    rng = np.random.default_rng(7)
    effects = 0.6 * (np.arange(12) == 3)
    found = np.array([holm(crossed_means(clustered(rng, 12) + effects, GROUPS).p) <= 0.05 for _ in range(40)])
    assert found[:, 3].mean() >= 0.9
    assert np.delete(found, 3, axis=1).any(axis=1).mean() <= 0.15


def test_interval_and_test_agree_and_inputs_stay():
    values = clustered(np.random.default_rng(5), 1000)
    before, result = values.copy(), crossed_means(values, GROUPS)
    np.testing.assert_array_equal((result.low > 0) | (result.high < 0), result.p < 0.05)
    np.testing.assert_allclose(crossed_means(-values, GROUPS).p, result.p)
    np.testing.assert_array_equal(values, before)


def test_values_that_say_nothing():
    nothing = crossed_means(np.zeros((2, 10, 1)), np.repeat(np.arange(5), 2))
    assert nothing.p[0] == 1
    assert nothing.low[0] == -nothing.high[0] < -0.2, "ten images can't tell none from a fifth"
    groups = np.repeat(np.arange(7), [2, 3, 3, 4, 5, 6, 8])
    for alike in (0.1, 1 / 3, 0.7):  # of which rounding leaves a spread of 1e-17
        sampled = crossed_ratios(np.full((2, 31, 1), alike), np.ones((2, 31, 1)), groups)
        assert sampled.interval().p[0] == 1, "no spread is no evidence"
        assert sampled.shares().high[0] - sampled.shares().low[0] > 0.3, "nor does it make a score sure"


# --- ratios of sums ---
def overlaps(rng, columns, found=0.7):
    """Pixels in intersection and union of 240 images whose sizes vary much; IoU is ``found``."""
    union = rng.integers(5, 400, (len(GROUPS), columns)).astype(float)
    share = found + rng.normal(0, 0.08, (40, columns))[GROUPS]
    return rng.binomial(union.astype(int), share.clip(0, 1)).astype(float), union


def test_ratio_is_that_of_the_sums_and_not_the_mean_of_ratios():
    sampled = crossed_ratios([[45.0], [1.0], [45.0]], [[50.0], [10.0], [50.0]], ["b", "a", "b"])
    assert sampled.estimate[0] == pytest.approx(91 / 110)
    np.testing.assert_allclose(sampled.without_group[:, 0], [0.9, 0.1], err_msg="in order of the groups")
    refused("divide", crossed_ratios, [[0.0], [0.0]], [[0.0], [0.0]], [0, 1])


def test_empty_images_count_nothing_and_do_no_harm():
    above, below = np.array([[0.0], [4.0], [0.0]]), np.array([[0.0], [8.0], [0.0]])
    sampled = crossed_ratios(above, below, [0, 1, 2])
    assert sampled.estimate[0] == 0.5
    assert np.isfinite(sampled.without_group).all()


def compared(rng, columns, found):
    """Compare IoUs of .7 with others, image by image."""
    parts = zip(overlaps(rng, columns), overlaps(rng, columns, found), strict=True)
    above, below = (np.hstack(part) for part in parts)
    sampled = crossed_ratios(above, below, GROUPS)
    assert 0.92 <= covers(sampled.shares(), np.repeat([0.7, found], columns)) <= 0.99
    return sampled.interval(lambda s: s[..., :columns] - s[..., columns:])


def test_differences_of_ratios_are_flagged_where_they_are_real_and_in_five_per_cent_else():
    null = compared(np.random.default_rng(12), 400, 0.7)
    assert 0.02 <= np.mean(null.p <= 0.05) <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(compared(np.random.default_rng(13), 100, 0.63).p <= 0.05) >= 0.9


def test_scores_stay_between_nought_and_one_and_others_are_left_alone():
    values = np.ones((60, 2))
    values[:2, 1] = 0
    bounds = crossed_ratios(values, np.ones((60, 1)), np.arange(60) // 3).shares()
    np.testing.assert_allclose(bounds.high[0], 1)
    assert ((bounds.low > 0.65) & (bounds.low < bounds.estimate) & (bounds.high <= 1)).all()
    # Independent images: scipy's interval by Wilson, with Student's quantile a little wider.
    alone = crossed_ratios(np.arange(300)[:, None] % 10 > 0, np.ones((300, 1)), np.arange(300)).shares()
    theirs = stats.binomtest(270, 300).proportion_ci(method="wilson")
    assert alone.low[0] == pytest.approx(theirs.low, abs=0.003)
    assert alone.high[0] == pytest.approx(theirs.high, abs=0.003)
    lengths = crossed_ratios(values * 7, np.ones((60, 1)), np.arange(60))
    np.testing.assert_array_equal(lengths.shares(), lengths.interval())


def test_ratios_of_what_may_be_none_are_undefined():
    values = np.random.default_rng(15).normal([0.0, 1.0], 0.5, (200, 2))
    sampled = crossed_ratios(values, np.ones((200, 1)), np.arange(200))
    assert np.isnan(sampled.ratios_to_first(lambda s: s)).all()
    ratios = sampled.ratios_to_first(lambda s: s + np.array([0.5, 0.0]))
    assert ratios.low[1] < 2 < ratios.high[1]
    assert (ratios.low[0], ratios.high[0]) == (1, 1)
    refused("level", crossed_means, values, np.arange(200), 95)


def test_groups_of_unequal_size_are_worth_fewer():
    assert effective_groups(np.arange(30)) == pytest.approx(30)
    assert effective_groups([4, 4, 4]) == 1
    assert 2 < effective_groups([0] * 99 + [1, 2]) < 2.03
    # Written out: trace squared by trace of the square, of the adjusted residuals' covariance.
    sizes = np.array([1, 2, 3, 9, 40])
    residual = np.eye(5) - np.outer(sizes / 55, np.ones(5))
    adjusted = residual / np.sqrt(1 - sizes / 55)[:, None]
    square = adjusted @ np.diag(sizes * (0.5 * sizes + 0.5)) @ adjusted.T
    expected = 1 + np.trace(square) ** 2 / np.trace(square @ square)
    assert effective_groups(np.repeat(np.arange(5), sizes)) == pytest.approx(expected)


def test_variance_is_that_of_a_regression_on_a_constant_with_cr2():
    rng, groups = np.random.default_rng(9), np.repeat(np.arange(4), [2, 3, 5, 9])
    values = rng.normal(0, 1, (19, 1))
    ours = crossed_means(values, groups)
    residuals, variance = values[:, 0] - values.mean(), 0.0
    for group in range(4):  # (I - H)^(-1/2) of each group, H = 1/N
        n = (groups == group).sum()
        roots, vectors = np.linalg.eigh(np.eye(n) - np.full((n, n), 1 / 19))
        adjust = vectors @ np.diag(roots**-0.5) @ vectors.T
        variance += (adjust @ residuals[groups == group]).sum() ** 2 / 19**2
    t = abs(ours.estimate[0]) / np.sqrt(variance)
    freedom = effective_groups(groups) - 1
    assert ours.p[0] >= 2 * stats.t.sf(t, freedom) - 1e-9
    half = (ours.high - ours.low)[0] / 2
    possible = stats.t.ppf(0.975, np.linspace(1, freedom, 400)) * np.sqrt(variance)
    assert possible.min() - 1e-6 <= half <= possible.max() + 1e-6
    assert few_groups_text(30) == ""
    assert "from 20 on" in few_groups_text(8)


def test_holm_on_a_worked_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    refused("between 0 and 1", holm, [0.2, 1.2])


def test_bad_input_is_named():
    refused("groups", crossed_means, np.zeros((4, 1)), [0, 1])
    refused("2 groups", crossed_means, np.zeros((4, 1)), [0] * 4)
    refused("1 of 4 images have none", crossed_means, np.zeros((4, 1)), [0, 1, np.nan, 1])
    refused("2 of 3 images have none", effective_groups, ["a", None, np.nan])
    refused("finite", crossed_means, [[np.nan]], [0])
