"""Statistics on simulated data whose answer is known."""

import numpy as np
import pytest

from r2l.drift.statistics import (
    Bootstrap,
    bootstrap_means,
    bootstrap_ratios,
    exchange_test,
    group_totals,
    holm,
    sign_flip_test,
    smallest_p,
)

GROUPS = np.repeat(np.arange(40), 6)


def clustered(rng, columns, mean=0.0, spread=0.5):
    """Normal values with a common shift in each group; (N, columns)."""
    shift = rng.normal(0, spread, (40, columns))
    return mean + shift[GROUPS] + rng.normal(0, 1, (len(GROUPS), columns))


def test_totals_add_up_in_order_of_the_groups():
    sums, counts = group_totals([[1.0, 5], [2, 6], [4, 7]], ["b", "a", "b"])
    np.testing.assert_array_equal(sums, [[2, 6], [5, 12]])
    np.testing.assert_array_equal(counts, [1, 2])


def test_interval_covers_the_true_mean_as_often_as_it_says():
    # 1000 independent data sets are the columns; 2.9 standard errors of a share of .95 are .02.
    result = bootstrap_means(clustered(np.random.default_rng(1), 1000, mean=0.3), GROUPS)
    coverage = np.mean((result.low <= 0.3) & (result.high >= 0.3))
    assert 0.93 <= coverage <= 0.97


def test_coverage_holds_with_ten_groups_of_unequal_size():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(10), [2, 3, 4, 5, 6, 6, 7, 8, 9, 10])
    values = rng.normal(0, 0.5, (10, 1000))[groups] + rng.normal(0, 1, (len(groups), 1000))
    result = bootstrap_means(values, groups)
    # Ten groups are few: the ratio of sums and its percentiles lose a little.
    assert 0.91 <= np.mean((result.low <= 0) & (result.high >= 0)) <= 0.98


def test_ignoring_groups_would_be_too_narrow():
    values = clustered(np.random.default_rng(3), 1000)
    naive = bootstrap_means(values, np.arange(len(GROUPS)), Bootstrap(draws=500))
    assert np.mean((naive.low <= 0) & (naive.high >= 0)) < 0.90


def test_interval_matches_scipy_on_ungrouped_values():
    from scipy import stats

    values = np.random.default_rng(4).exponential(1, 400)
    ours = bootstrap_means(values[:, None], np.arange(400), Bootstrap(draws=9999))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    assert ours.estimate[0] == pytest.approx(values.mean())
    # Few per cent of the width: Monte Carlo error, and the expansion for 400 groups.
    assert ours.low[0] == pytest.approx(theirs.low, abs=0.01)
    assert ours.high[0] == pytest.approx(theirs.high, abs=0.01)


def test_null_effect_is_flagged_in_five_per_cent():
    p = sign_flip_test(clustered(np.random.default_rng(5), 1000), GROUPS, draws=999)
    assert np.mean(p <= 0.05) <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 1000)
    assert np.mean(p <= 0.05) >= 0.03, "a test that never flags would be useless"


def test_null_matrix_is_flagged_in_five_per_cent_after_holm():
    # 400 matrices of 12 cells, all differences accidental, hits as in a real matrix (-1, 0, 1).
    rng = np.random.default_rng(6)
    hits = rng.random((2, len(GROUPS), 400 * 12)) < 0.8
    p = sign_flip_test(hits[0].astype(int) - hits[1], GROUPS, draws=1999).reshape(400, 12)
    flagged = np.mean([holm(row).min() <= 0.05 for row in p])
    assert flagged <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 400)


def test_real_effect_survives_holm_among_eleven_null_cells():
    rng = np.random.default_rng(7)
    found = []
    for _ in range(40):
        differences = clustered(rng, 12)
        differences[:, 3] += 0.6
        found.append(holm(sign_flip_test(differences, GROUPS, draws=999)) <= 0.05)
    found = np.array(found)
    assert found[:, 3].mean() >= 0.9
    assert np.delete(found, 3, axis=1).any(axis=1).mean() <= 0.15


def test_p_values_do_not_depend_on_sign_and_have_a_floor():
    differences = np.full((40, 2), [1.0, -1.0])
    p = sign_flip_test(differences, np.arange(40), draws=99)
    np.testing.assert_array_equal(p, [0.01, 0.01])
    assert sign_flip_test(np.zeros((40, 1)), np.arange(40), draws=99)[0] == 1


# --- ratios of sums -------------------------------------------------------------------------------


def overlaps(rng, columns, found=0.7):
    """Pixels in intersection and union of 240 images whose sizes vary much; IoU is ``found``."""
    union = rng.integers(5, 400, (len(GROUPS), columns)).astype(float)
    share = found + rng.normal(0, 0.08, (40, columns))[GROUPS]
    return rng.binomial(union.astype(int), share.clip(0, 1)).astype(float), union


def test_ratio_is_that_of_the_sums_and_not_the_mean_of_ratios():
    sampled = bootstrap_ratios([[1.0], [90.0]], [[10.0], [100.0]], [0, 1], Bootstrap(draws=50))
    assert sampled.estimate[0] == pytest.approx(91 / 110)
    possible = {91 / 110, 0.1, 0.9}
    assert all(min(abs(v - p) for p in possible) < 1e-12 for v in sampled.samples[:, 0])
    with pytest.raises(ValueError, match="divide"):
        bootstrap_ratios([[0.0], [0.0]], [[0.0], [0.0]], [0, 1])


def test_empty_images_count_nothing_and_an_empty_sample_does_no_harm():
    above, below = np.array([[0.0], [4.0], [0.0]]), np.array([[0.0], [8.0], [0.0]])
    sampled = bootstrap_ratios(above, below, [0, 1, 2], Bootstrap(draws=200))
    assert sampled.estimate[0] == 0.5
    assert np.isfinite(sampled.samples).all()


def test_interval_of_a_ratio_covers_as_often_as_it_says():
    above, below = overlaps(np.random.default_rng(11), 600)
    result = bootstrap_ratios(above, below, GROUPS, Bootstrap(draws=1000)).interval()
    coverage = np.mean((result.low <= 0.7) & (result.high >= 0.7))
    assert 0.92 <= coverage <= 0.98


def test_null_difference_of_ratios_is_flagged_in_five_per_cent():
    rng = np.random.default_rng(12)
    p = exchange_test(overlaps(rng, 400), overlaps(rng, 400), GROUPS, draws=499)
    assert 0.02 <= np.mean(p <= 0.05) <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 400)


def test_real_difference_of_ratios_is_found():
    rng = np.random.default_rng(13)
    p = exchange_test(overlaps(rng, 100), overlaps(rng, 100, found=0.63), GROUPS, draws=499)
    assert np.mean(p <= 0.05) >= 0.9


def test_exchanging_means_is_flipping_signs():
    rng = np.random.default_rng(14)
    one, two = (rng.random((len(GROUPS), 5)) for _ in range(2))
    ones = np.ones_like(one)
    exchanged = exchange_test((one, ones), (two, ones), GROUPS, draws=999, seed=3)
    np.testing.assert_allclose(exchanged, sign_flip_test(one - two, GROUPS, draws=999, seed=3))


def test_few_groups_have_a_floor_that_no_correction_passes():
    assert smallest_p(12) == pytest.approx(2 / 2**12)
    differences = np.ones((12, 1))
    p = sign_flip_test(differences, np.arange(12), draws=40_000)
    assert p[0] == pytest.approx(smallest_p(12), rel=0.5)


def test_ratios_without_a_bound_have_none():
    sampled = bootstrap_ratios(
        np.random.default_rng(15).normal(0, 1, (40, 2)), np.ones((40, 1)), np.arange(40)
    )

    def ratio(means):
        return np.where(means[..., 1:] > 0, 1.0, np.inf)

    assert np.isinf(sampled.interval(ratio).high[0])
    with pytest.raises(ValueError, match="level"):
        Bootstrap(level=95)


def test_holm_on_a_worked_example():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.2, 1.2])


def test_seeded_and_inputs_untouched():
    values = clustered(np.random.default_rng(8), 3)
    before = values.copy()
    first, again = (
        bootstrap_means(values, GROUPS, Bootstrap(draws=1500, seed=9)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first.low, bootstrap_means(values, GROUPS, Bootstrap(seed=10)).low)
    np.testing.assert_array_equal(values, before)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="groups"):
        bootstrap_means(np.zeros((4, 1)), [0, 1])
    with pytest.raises(ValueError, match="2 groups"):
        bootstrap_means(np.zeros((4, 1)), [0] * 4)
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test([[np.nan]], [0])
