"""The alarm: rate of false alarms over groups, power, agreement with scipy, and what it says."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist

from r2l.datasets import SyntheticMicroscopy, develop_views
from r2l.drift import ShiftDetector, Trained, detection_rates, energy_test, image_features
from r2l.drift.matrix import summarise
from r2l.files import R2LError
from r2l.training import RawToLogits, make_classifier, seeded
from r2l.viz import plot_detection_rates, plot_shift
from tests.common import drawn, refused, unchanged
from tests.test_synthesis_drift import simulated

CODES = ("bi,s,me", "me,u,ga")


@pytest.fixture(scope="module")
def views():
    return develop_views(SyntheticMicroscopy(80, 0, size=32), CODES, progress=False)


def grouped(rng, groups, columns=3, spread=1.0):
    """Numbers that share most of their spread within a group."""
    names = np.unique(groups)
    shift = rng.normal(0, spread, (len(names), columns))
    return shift[np.searchsorted(names, groups)] + rng.normal(0, 0.3, (len(groups), columns))


def found(*sample, **options):
    return energy_test(*sample, draws=99, **options)[1] <= 0.05


def test_false_alarms_are_as_rare_as_asked_for_although_images_hang_together():
    groups, images = np.repeat(np.arange(30), 4), np.arange(120)

    def raised(told, times):
        samples = (np.split(grouped(np.random.default_rng(seed), groups), [80]) for seed in range(times))
        return np.mean([found(*s, told[:80], told[80:], seed=seed) for seed, s in enumerate(samples)])

    assert 0.02 <= raised(groups, 400) <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 400)
    assert raised(images, 100) > 0.2, "taking images for independent would cry wolf"


def test_a_shift_and_a_change_of_spread_are_found():
    groups = np.repeat(np.arange(40), 3)
    alarms = {"shift": [], "spread": []}
    for seed in range(40):
        numbers = grouped(np.random.default_rng(seed), groups, spread=0.5)
        for name, changed in (("shift", numbers[60:] + 0.6), ("spread", numbers[60:] * 3)):
            alarms[name].append(found(numbers[:60], changed, groups[:60], groups[60:], seed=seed))
    assert min(np.mean(alarms["shift"]), np.mean(alarms["spread"])) >= 0.8


def test_energy_distance_is_that_of_scipy_in_one_dimension():
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=40), rng.normal(0.5, 1.5, 30)
    distance, _ = energy_test(one[:, None], two[:, None], np.arange(40), np.arange(30), draws=19)
    scale = np.concatenate([one, two]).std()
    # scipy's is the root of half of it, and compares each image with itself too.
    itself = [pdist(part[:, None] / scale).mean() / len(part) for part in (one, two)]
    assert distance == pytest.approx(stats.energy_distance(one / scale, two / scale) ** 2 - sum(itself))
    scaled = energy_test(7 + 90 * one[:, None], 7 + 90 * two[:, None], np.arange(40), np.arange(30), draws=19)
    assert scaled[0] == pytest.approx(distance), "numbers are standardised"


def test_the_least_p_is_reached_and_equal_numbers_have_a_mirror_image():
    numbers = np.array([0.0, 0.1, 0.2, 9.0, 9.1, 9.2])[:, None]
    refused(r"below 0\.1;", energy_test, numbers[:3], numbers[3:], np.arange(3), np.arange(3))
    three = energy_test(numbers[:3], numbers[3:], np.arange(3), np.arange(3), alpha=0.1)[1]
    two = energy_test(numbers[:4], 9 + numbers[4:], np.arange(4), np.arange(2), alpha=0.1)[1]
    assert (three, two) == pytest.approx((2 / 20, 1 / 15))
    line = np.arange(20.0)[:, None]
    p = [energy_test(np.delete(line, i, 0), line[[i]], np.arange(19), np.zeros(1))[1] for i in range(20)]
    assert sorted(p) == pytest.approx(np.repeat(np.arange(2, 21, 2) / 20, 2)), "of one group, by its rank"


SIZES = {
    "one size": ([5] * 20, [5] * 10),
    "one image a zone against five": ([5] * 20, [1] * 10),
    "one image a zone against five of many": ([5] * 40, [1] * 10),
    "uneven zones": ([1, 2, 8, 3, 5] * 5, [1, 19, 4, 9, 1, 14, 2, 7]),
    "two large zones": ([2] * 20, [1, 1, 1, 1, 1, 1, 20, 20]),
    "five images a zone against one": ([1] * 30, [5] * 8),
}


def false_alarms(sizes, noise, times=300):
    """Return the share of quiet streams that raise the alarm, zones being of these sizes."""
    groups, streams = (np.repeat(np.arange(len(s)), s) for s in sizes)
    raised = 0
    for seed in range(times):
        rng = np.random.default_rng((seed, 5))  # not the generator of the permutations
        parts = [grouped(rng, g) + rng.normal(0, noise, (len(g), 3)) for g in (groups, streams)]
        raised += found(*parts, groups, streams, seed=seed)
    return raised / times


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize("case", SIZES)
def test_zones_of_any_size_raise_no_more_false_alarms(case, noise):
    # 300 streams have a Monte Carlo error of .013; without thinning and equal weights some reach .6.
    assert false_alarms(SIZES[case], noise) < 0.07


def test_groups_have_to_be_told_and_neighbours_can_be_one(views):
    images = views.images[CODES[0]]
    refused("groups: not told", ShiftDetector.fit, images, error=R2LError)
    alarm = ShiftDetector.fit(images[:40], groups=5)
    np.testing.assert_array_equal(alarm.groups, np.arange(40) // 5)
    refused("not told", alarm.test, images[40:], error=R2LError)
    assert alarm.test(images[40:], 5).n_groups == 8


def test_another_pipeline_is_noticed_and_the_same_is_not(views):
    first, rest = views.groups < np.median(views.groups), views.groups >= np.median(views.groups)
    own, other = (views.images[code] for code in CODES)
    alarm = ShiftDetector.fit(own[first], groups=views.groups[first])
    same, moved, again = (alarm.test(x[rest], views.groups[rest], seed=1) for x in (own, other, other))
    assert (same.raised, moved.raised) == (False, True)
    assert moved.p_value <= 0.05 < same.p_value
    assert moved.distance > same.distance
    assert moved.statistics["p_holm"].iloc[0] < 0.05
    assert "ALARM" in str(moved)
    assert "no alarm" in str(same)
    assert again.p_value == moved.p_value
    drawn(plot_shift(moved))


def test_statistics_of_known_pictures():
    grey = torch.full((1, 3, 16, 16), 0.5)
    grey[:, 1] = torch.linspace(0, 1, 16)
    grey[:, 2] = 1 - grey[:, 1]
    row = image_features(grey).iloc[0]
    assert row["mean, red"] == pytest.approx(0.5)
    assert row["deviation, red"] == pytest.approx(0, abs=1e-6)
    assert row["white, green"] == pytest.approx(1 / 16)
    assert row["black, blue"] == pytest.approx(1 / 16)
    assert row["correlation, green and blue"] == pytest.approx(-1, abs=1e-5)
    assert row["detail, green"] < np.log(1e-4), "a ramp has no Laplacian"
    flat = torch.tensor([0.3, 0.15, 0.1]).view(1, 3, 1, 1) * torch.ones(1, 3, 64, 64)
    correlations = image_features(flat).iloc[0].filter(like="correlation")
    assert correlations.abs().max() < 1e-3, "rounding goes together with nothing"


def model():
    with seeded(0):
        return RawToLogits(make_classifier("SmallResNet", 9)).eval()


def test_answers_of_a_model_can_be_watched_and_the_model_stays(views):
    network = model().train()
    with unchanged(network):
        table = image_features(views.images[CODES[0]][:5], network)
    assert list(table) == [f"class {i}" for i in range(9)]
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, rtol=1e-5)
    masks = torch.nn.Conv2d(3, 1, 1)
    assert list(image_features(views.images[CODES[0]][:5], masks)) == ["foreground", "unsure", "largest"]


@pytest.fixture(scope="module")
def summary():
    return summarise(simulated({(a, b): 0.9 if a == b else 0.5 for a in CODES for b in CODES}))


def test_matrix_tells_what_is_noticed_before_the_score_falls(views, summary):
    options = {"repeats": 6, "draws": 59, "progress": False}
    table, again = (detection_rates(views, summary, (8, 24, 500), **options) for _ in range(2))
    pd.testing.assert_frame_equal(table, again)
    assert set(table["verdict"]) <= {"noticed", "missed", "early warning", "quiet", "stream too short"}
    long, own = table["n_images"] == 24, table["train"] == table["test"]
    assert (table[long & ~own]["raised"] == 1).all()
    assert (table[long & own]["raised"] <= 0.5).all()
    assert (table[long & ~own]["verdict"] == "noticed").all()
    assert table[table["n_images"] == 500]["raised"].isna().all()
    drawn(plot_detection_rates(table))
    watched = [Trained(model(), code, np.arange(len(views))) for code in CODES]
    by_model = detection_rates(views, summary, (24,), models=watched, repeats=2, draws=59, progress=False)
    assert len(by_model) == 4


def test_mistakes_are_named(views, summary):
    images = views.images[CODES[0]]
    refused("groups", ShiftDetector.fit, images, groups=np.zeros(len(images)))
    refused("images have none", ShiftDetector.fit, images, groups=[0, 1, *[np.nan] * (len(images) - 2)])
    refused(r"5 x 5 .* got \(\d+, 3, 4, 8\): enlarge", ShiftDetector.fit, images[..., :4, :8], groups=1)
    refused("N, 3, H, W", ShiftDetector.fit, images[:, :1], groups=1)
    refused("finite", ShiftDetector.fit, images * np.nan, groups=1)
    refused("more groups", ShiftDetector.fit(images[:4], groups=1).test, images[:1], 1)
    refused("unknown model of", detection_rates, views, summary, (8,), models=[], progress=False)
    refused("2 images", detection_rates, views, summary, (), progress=False)
    refused("no cells", plot_detection_rates, pd.DataFrame())
