"""Effects on designs with known answers, against least squares done another way, and their error rates."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from r2l.drift import factorial_effects
from r2l.drift.paired import _FACTORS, _effect_contrasts
from r2l.drift.statistics import crossed_ratios
from r2l.isp import PIPELINES
from r2l.viz import plot_effects

GROUPS = np.arange(120) // 4


def answers(score, codes=PIPELINES, noise=0.0, seed=0):
    """Per-image numbers whose mean in each cell is ``score(train, test)``, plus noise shared by groups."""
    rng, rows = np.random.default_rng(seed), []
    frame = pd.DataFrame({"image": np.arange(len(GROUPS)), "group": GROUPS, "seed": 0})
    for train, test in product(codes, codes):
        shift = rng.normal(0, noise, GROUPS.max() + 1)[GROUPS]
        rows.append(frame.assign(train=train, test=test, correct=score(train, test) + shift))
    return pd.concat(rows, ignore_index=True)


def pick(table, side, term, level):
    (estimate,) = table.query("side == @side and term == @term and level == @level")["estimate"]
    return estimate


def test_a_tested_choice_that_costs_is_found_and_nothing_else():
    table = factorial_effects(answers(lambda a, b: 0.9 - 0.12 * b.startswith("ma")))
    # The diagonal of a row under ma is low already: the drop is measured from there.
    assert pick(table, "test", "demosaic", "ma") == pytest.approx(0.08)
    assert pick(table, "test", "demosaic", "bi") == pytest.approx(-0.04)
    assert pick(table, "train", "demosaic", "ma") == pytest.approx(-0.08)
    rest = table[~((table["side"] != "change") & (table["term"] == "demosaic"))]
    np.testing.assert_allclose(rest["estimate"], 0, atol=1e-10)


def test_an_interaction_is_told_from_its_main_effects():
    table = factorial_effects(answers(lambda a, b: 0.9 - 0.2 * (b.split(",")[1:] == ["s", "me"])))
    assert pick(table, "test", "sharpening x denoising", "s x me") == pytest.approx(0.05)
    assert pick(table, "test", "sharpening", "s") == pytest.approx(0.05)
    assert pick(table, "test", "denoising", "ga") == pytest.approx(-0.05)


def test_a_loss_by_changing_is_an_effect_of_change():
    def score(train, test):
        one, two = train.split(","), test.split(",")
        return 0.9 - 0.1 * (one[0] != two[0]) - 0.03 * (one[1] != two[1])

    table = factorial_effects(answers(score))
    assert pick(table, "change", "demosaic", "differs") == pytest.approx(0.1)
    assert pick(table, "change", "sharpening", "differs") == pytest.approx(0.03)
    assert pick(table, "change", "denoising", "differs") == pytest.approx(0, abs=1e-10)
    assert pick(table, "change", "demosaic x sharpening", "all differ") == pytest.approx(0, abs=1e-10)
    assert pick(table, "train and test", "demosaic", "ma x ma") == pytest.approx(-0.1 * (1 - 1 / 3), abs=1e-9)


def test_effects_agree_with_marginal_means_and_with_least_squares_on_dummies():
    results = answers(lambda a, b: 0.8, noise=0.2, seed=3)
    cells = results.groupby(["train", "test"], sort=False)["correct"].mean().unstack()
    cells = cells.loc[list(PIPELINES), list(PIPELINES)]
    drop = np.diag(cells)[:, None] - cells.to_numpy()
    table = factorial_effects(results)
    choices = np.array([code.split(",") for code in PIPELINES])
    for place, factor in enumerate(_FACTORS[:3]):
        for level in np.unique(choices[:, place]):
            want = drop[:, choices[:, place] == level].mean() - drop.mean()
            assert pick(table, "test", factor, level) == pytest.approx(want)
    # Treatment dummies of all cells of the tested 3 x 2 x 2 cross, by lstsq.
    design = np.array([[1.0] + [float(b == code) for code in PIPELINES[1:]] for b in PIPELINES])
    fitted, *_ = np.linalg.lstsq(np.tile(design, (12, 1)), drop.ravel(), rcond=None)
    means = np.array([fitted[0], *(fitted[0] + fitted[1:])])
    pair = (choices[:, 0] == "me") & (choices[:, 1] == "u")
    one, two = (choices[:, 0] == "me"), (choices[:, 1] == "u")
    want = means[pair].mean() - means[one].mean() - means[two].mean() + means.mean()
    assert pick(table, "test", "demosaic x sharpening", "me x u") == pytest.approx(want)
    assert ((table["low"] <= table["estimate"]) & (table["estimate"] <= table["high"])).all()


def test_a_null_effect_is_flagged_in_five_per_cent_and_a_real_one_found():
    # 400 matrices at once, their cells side by side: 80 images in 40 groups that share some luck.
    codes = ["bi,s,me", "bi,u,me", "ma,s,me", "ma,u,me"]
    cells = pd.MultiIndex.from_product([codes, codes], names=["train", "test"]).to_frame(False)
    rng, groups = np.random.default_rng(8), np.arange(80) // 2
    luck = rng.normal(0, 0.1, (40, 400 * 16))[groups] + rng.normal(0, 0.2, (80, 400 * 16))
    base = np.where(cells["test"].str.startswith("ma"), 0.7, 0.8)
    sampled = crossed_ratios(luck + np.tile(base, 400), np.ones((80, 1)), groups)
    names, contrasts = _effect_contrasts(cells, order=1)
    by_matrix = sampled.interval(lambda s: s.reshape(*s.shape[:-1], 400, 16) @ contrasts.T)
    clear = (by_matrix.low > 0) | (by_matrix.high < 0)
    null = names.query("side == 'test' and term == 'sharpening'").index[0]
    real = names.query("side == 'test' and term == 'demosaic'").index[0]
    assert clear[:, null].mean() <= 0.05 + 2.9 * np.sqrt(0.05 * 0.95 / 400)
    assert clear[:, null].mean() >= 0.02
    assert clear[:, real].mean() >= 0.9


def test_designs_that_can_not_tell_are_refused():
    for codes, order, message in (
        (["bi,s,me", "ma,u,me", "me,s,ga"], 2, "cross"),
        (["x", "y"], 2, "bi,s,me"),
        (["bi,s,me", "ma,s,me"], 0, "order"),
    ):
        with pytest.raises(ValueError, match=message):
            factorial_effects(answers(lambda a, b: 0.8, codes), order=order)
    one = factorial_effects(answers(lambda a, b: 0.8 - 0.1 * (a != b), ["bi,s,me", "ma,s,me"]))
    assert pick(one, "change", "demosaic", "differs") == pytest.approx(0.1)


def test_variants_and_display_stages_are_factors_where_they_differ():
    codes = [f"{d},s,me{v}{j}" for d in ("bi", "ma") for v in ("", "@camera") for j in ("", "+jpeg:9")]
    costs = lambda a, b: 0.9 - 0.2 * ("@" in a) * ("@" not in b) - 0.1 * ("+" in b)  # noqa: E731
    table = factorial_effects(answers(costs, codes))
    assert set(table["term"]) >= {"demosaic", "variant", "display"}
    assert not table["term"].str.contains("sharpening").any()
    change = table.query("side == 'change'").set_index("term")["estimate"]
    assert change["variant"] == pytest.approx(0.1)
    # Lost on the way to a JPEG, won on the way back.
    assert change["display"] == pytest.approx(0.0, abs=1e-9)
    assert pick(table, "test", "display", "jpeg:9") == pytest.approx(0.05)
    assert pick(table, "test", "variant", "camera") == pytest.approx(-0.05)


def test_figure_has_a_panel_for_each_side():
    figure = plot_effects(factorial_effects(answers(lambda a, b: 0.8, noise=0.1)))
    figure.canvas.draw()
    assert len(figure.axes) == 4
    with pytest.raises(ValueError, match="no effects"):
        plot_effects(pd.DataFrame({"side": []}))
