"""Tolerances: a model of known thresholds gets its known intervals, and edges hold on fresh images."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from r2l.camera import CFA, DRONE, Camera
from r2l.datasets import Frames
from r2l.drift.forensics import Prober, ToleranceReport, attack_parameters, landscape, scan, tolerance_report
from r2l.drift.forensics.sensitivity import verify_tolerances
from r2l.isp import ParametrizedISP
from r2l.isp.adjustable import AdjustableISP, settings_of
from r2l.sensor import add_line_noise
from r2l.viz import plot_attack, plot_attacks, plot_landscape, plot_scans, plot_tolerances
from r2l.widgets import landscape_explorer
from tests.common import drawn, refused, unchanged
from tests.test_forensics import EYE, PLAIN, Blind, Bright, flat_frames
from tests.test_widgets import pictures

LEVEL, THRESHOLD = 0.4, 0.5
UNIT_GAINS = Camera("unit gains", CFA.RGGB, (0.1,) * 4, 1.0, (1.0, 1.0, 1.0), EYE)
# Linear value at which display brightness is the threshold.
LIMIT = THRESHOLD**2.2


def report_of(frames, settings, **options):
    options = {"points": 21, "refine": 6, "progress": False} | options
    return tolerance_report(Bright(THRESHOLD), frames, settings=settings, **options)


def steps(name, camera, points=21, refine=6):
    """Width of what stays between two values at the edge: the error that is allowed."""
    return np.diff(settings_of("bi,s,ga", camera)[name].grid(points)).max() / 2**refine


# --- known intervals ---
def test_known_thresholds_give_known_intervals():
    """Grey of one value is answered rightly as long as its display value is above the threshold."""
    frames = flat_frames([LEVEL] * 120, UNIT_GAINS, per_group=2)
    raw = 0.1 + 0.9 * LEVEL
    table = report_of(frames, ["exposure", "black_level", "gamma"]).table
    edges = {"exposure": math.log2(LIMIT / LEVEL), "gamma": math.log(LEVEL) / math.log(THRESHOLD)}
    for name, edge in edges.items():
        found = table.loc[name, "low"]
        assert edge <= found <= edge + steps(name, UNIT_GAINS), name
        assert table.loc[name, "safe_low"] == found, "all frames fall at once: no doubt"
        assert not table.loc[name, "low_open"]
    assert table["high_open"].all(), "brighter is always right, and the black level's edge beyond the scan"
    highest = settings_of("bi,s,ga", UNIT_GAINS)["black_level"].high
    assert (raw - LIMIT) / (1 - LIMIT) / UNIT_GAINS.span > highest


def test_a_known_gain_and_level_of_one_colour():
    """By redness: red's gain and red's black level have edges, those of the others have none."""
    frames = flat_frames([LEVEL] * 120, PLAIN)
    names = ["red_gain", "blue_gain", "black_level_red", "black_level_blue"]
    model, options = Bright((LEVEL * 0.97) ** (1 / 2.2), [0]), {"refine": 6, "progress": False}
    found = tolerance_report(model, frames, settings=names, **options).table
    # Red is recorded at half the value, its gain being 2: (raw - b) / (1 - b) * 2 = 0.97 * LEVEL.
    gain = 2 * 0.97
    assert gain <= found.loc["red_gain", "low"] <= gain + steps("red_gain", PLAIN)
    raw, limit = 0.1 + 0.9 * LEVEL / 2, 0.97 * LEVEL / 2
    level = (raw - limit) / (1 - limit) / PLAIN.span
    assert level - steps("black_level_red", PLAIN) <= found.loc["black_level_red", "high"] <= level
    others = found.loc[["blue_gain", "black_level_blue"]]
    assert others[["low_open", "high_open", "safe_low_open", "safe_high_open"]].all(axis=None)


def test_the_estimated_edge_is_the_known_quantile_and_the_safe_one_lies_inside():
    """Frames fall one after the other; a fall of 0.2 is allowed, so the edge is that of the 0.2 quantile."""
    levels = np.linspace(LIMIT * 1.02, LIMIT * 2.5, 100)
    frames = flat_frames(np.random.default_rng(0).permutation(levels))
    row = report_of(frames, ["exposure"], drop=0.2).table.loc["exposure"]
    exact = math.log2(LIMIT / np.sort(levels)[20])
    assert exact <= row["low"] <= exact + steps("exposure", PLAIN)
    assert row["low"] < row["safe_low"] < 0


def test_groups_of_unequal_size_are_told_to_be_few():
    frames = flat_frames([LEVEL] * 60)
    uneven = replace(frames, groups=np.maximum(np.arange(60) - 30, 0))
    reports = [report_of(told, ["exposure"]) for told in (frames, uneven)]
    verdicts = [report.verdict(report.check(report.camera)) for report in reports]
    assert "few groups" not in verdicts[0]
    assert "few groups, worth 2" in verdicts[1], "thirty in one, thirty alone"


def test_a_blind_model_stands_everything():
    options = {"settings": ["gamma", "blur"], "points": 5, "progress": False}
    table = tolerance_report(Blind(), flat_frames([0.3] * 120), **options).table
    for name in ("gamma", "blur"):
        setting = settings_of("bi,s,ga", PLAIN)[name]
        assert table.loc[name, ["safe_low", "safe_high"]].to_list() == [setting.low, setting.high]


def test_the_band_covers_the_truth():
    """Accuracy over frames of random brightness: how often does the band hold the known mean?"""
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(60):
        levels = rng.uniform(LIMIT, 2 * LIMIT, 60)
        prober = Prober(Bright(THRESHOLD), flat_frames(levels, side=4))
        row = prober.measure("exposure", [-0.5]).iloc[0]
        truth = 1 - (2**0.5 - 1)  # share of levels above LIMIT * 2 ** 0.5
        hits.append(row["low"] <= truth <= row["high"])
    assert np.mean(hits) > 0.87


# --- edges on fresh images ---
def test_edges_hold_on_fresh_images_of_the_same_kind_and_not_on_others():
    rng = np.random.default_rng(2)
    draw = lambda n, low: flat_frames(rng.uniform(low, 2 * LIMIT, n), side=4)  # noqa: E731
    report = report_of(draw(200, 1.1 * LIMIT), ["exposure", "gamma"], drop=0.1)
    same = verify_tolerances(report, Bright(THRESHOLD), draw(400, 1.1 * LIMIT))
    assert same[same["edge"].str.startswith("safe")]["holds"].all()
    assert not same["refuted"].any()
    assert verify_tolerances(report, Bright(THRESHOLD), draw(400, 0.5 * LIMIT))["refuted"].any()
    other = flat_frames([0.3] * 4, UNIT_GAINS)
    refused("the report is about plain", verify_tolerances, report, Bright(THRESHOLD), other)


def test_same_seed_same_report_and_nothing_is_changed():
    frames, model = flat_frames(np.linspace(LIMIT, 2 * LIMIT, 20), per_group=2), Bright(THRESHOLD)
    options = {"settings": ["exposure"], "points": 9, "progress": False}
    with unchanged(frames.raw, model):
        first, again = (tolerance_report(model, frames, **options) for _ in "12")
    assert first.table.equals(again.table)


# --- scans and landscapes ---
def test_grids_hold_the_present_value_exactly():
    for setting in settings_of("bi,u,me", DRONE).values():
        for points in (3, 8, 21):
            grid = setting.grid(points)
            assert len(grid) == points
            assert setting.value in grid
            assert (np.diff(grid) > 0).all()
            assert grid[[0, -1]] == pytest.approx([setting.low, setting.high])


def test_a_landscape_agrees_with_scans_and_with_arithmetic():
    frames = flat_frames([LEVEL, 0.3], UNIT_GAINS)
    prober = Prober(Bright(THRESHOLD), frames)
    found = landscape(prober, "exposure", "gamma", points=5)
    assert found.scores.shape == (5, 5)
    for exposure in found.scores.index:
        for gamma in found.scores.columns:
            shown = [min(level * 2**exposure, 1) ** (1 / gamma) for level in (LEVEL, 0.3)]
            expected = np.mean([value > THRESHOLD for value in shown])
            assert found.scores.loc[exposure, gamma] == expected
    assert scan(prober, "exposure", 5).table["score"].to_list() == found.scores[2.2].to_list()
    refused("twice", landscape, prober, "gamma", "gamma")
    refused("choose from exposure", scan, prober, "tint")
    refused("no scan", scan, prober, "gamma", 2)
    refused("no settings given; choose from all, exposure", report_of, frames, [])
    refused("drop is 0", report_of, frames, ["gamma"], drop=0)


def test_any_pipeline_can_be_scanned():
    frames = flat_frames([LEVEL] * 4)
    for pipeline in ("me,u,me", ParametrizedISP(PLAIN)):
        report = tolerance_report(Bright(THRESHOLD), frames, pipeline, settings=["exposure"], progress=False)
        assert report.table.loc["exposure", "low"] == pytest.approx(math.log2(LIMIT / LEVEL), abs=0.02)


def test_a_sensors_defects_have_tolerances_and_a_measured_one_is_judged_by_them():
    """Hot pixels brighten: a dark frame that may gain so much light stands so many of them."""
    frames = flat_frames([0.2] * 120, UNIT_GAINS, side=64, truth=0)
    isp = AdjustableISP("bi,s,ga", UNIT_GAINS, sharpening=0.0, blur=0.0, gamma=1.0)
    limit = 0.2 + 0.02 * 0.8
    options = {"settings": ["defective_pixels", "row_noise"], "refine": 8, "progress": False}
    found = tolerance_report(Bright(limit), frames, isp, **options)
    high = found.table.loc["defective_pixels", "high"]
    assert high == pytest.approx(0.02, rel=0.2)
    assert found.table.loc["defective_pixels", ["low", "safe_low"]].to_list() == [0, 0]
    for share, verdict in ((0.3 * high, "inside"), (2 * high, "outside")):
        checked = found.check(UNIT_GAINS, {"defective pixels": share, "row noise": 0.0})
        assert checked["verdict"].to_list() == [verdict, "inside"]
    assert found.check(UNIT_GAINS)["verdict"].to_list() == ["unknown", "unknown"]
    assert verify_tolerances(found, Bright(limit), frames, isp)["holds"].all()


def test_what_the_reports_own_frames_show_of_defects_is_no_fault_of_a_camera(tmp_path):
    rng = np.random.default_rng(0)
    raw = torch.tensor(0.3 + 0.02 * rng.standard_normal((40, 1, 32, 32)), dtype=torch.float32)
    raw = add_line_noise(raw, 0.02, -2, rng)
    frames = Frames(raw, torch.zeros(40).long(), np.arange(40), UNIT_GAINS)
    options = {"settings": ["row_noise"], "points": 3, "progress": False}
    found = tolerance_report(Bright(0.31), frames, "bi,s,ga", **options)
    found = ToleranceReport.load(found.save(tmp_path / "report.json"))
    edge = found.table.loc["row_noise", "safe_high"]
    own = found.defects["row noise"]
    assert 0.02 < own < 0.06, "the most of forty small frames"
    verdicts = [found.check(UNIT_GAINS, {"row noise": noise})["verdict"].item() for noise in (0.5 * own, own)]
    assert verdicts == ["inside"] * 2
    checked = found.check(UNIT_GAINS, {"row noise": np.hypot(own, 1.5 * edge + 0.01)})
    assert checked["value"].item() == pytest.approx(1.5 * edge + 0.01)
    assert checked["verdict"].item() == "outside"


# --- written down ---
@pytest.fixture(scope="module")
def report():
    frames = flat_frames(np.linspace(LIMIT, 3 * LIMIT, 40), per_group=2)
    names = ["exposure", "black_level", "red_gain", "saturation", "blur", "gamma"]
    return report_of(frames, names, points=7, refine=2, name="brightness")


def test_a_report_comes_back_from_its_file(report, tmp_path):
    path = report.save(tmp_path / "report.json")
    back = ToleranceReport.load(path)
    pd.testing.assert_frame_equal(back.table, report.table, check_dtype=False)
    assert (back.model, back.camera, back.drop, back.images) == ("brightness", PLAIN, 0.05, 40)
    content = json.loads(path.read_text("utf-8"))
    assert content["version"] == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "no tolerance report"),
        ({"version": 99}, "version 99"),
        ({"camera": {}}, "damaged"),
        ({"drop": None}, "damaged"),
        ({"settings": [{"name": "gamma"}]}, "damaged"),
        ({"settings": 3}, "damaged"),
        ({"score": 10**400}, "damaged"),
        ({"images": math.inf}, "damaged"),
        (None, r"report\.json: no JSON"),
    ],
)
def test_damaged_reports_are_told(report, tmp_path, change, message):
    path = report.save(tmp_path / "report.json")
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change) if change else "[" * 100_000)
    refused(message, ToleranceReport.load, path)


def test_cameras_are_placed(report):
    own = report.check(PLAIN)
    inside = dict.fromkeys(("exposure", "black_level", "red_gain", "saturation"), "inside")
    assert own["verdict"].to_dict() == inside | {"blur": "unknown", "gamma": "unknown"}
    assert own.loc["red_gain", "value"] == pytest.approx(2)
    far = report.check(replace(PLAIN, black_level=(0.4,) * 4))
    assert far.loc["black_level", "verdict"] == "outside"
    assert far.loc["red_gain", "verdict"] == "inside"
    assert "in all 4 settings that it tells; of 2 more a camera tells nothing" in report.verdict(own)
    told = report.verdict(far.assign(verdict="outside"))
    assert "settings: exposure; black level; red gain; saturation;" in told, "labels may hold commas"


# --- pictures and the explorer ---
def test_figures_are_drawn(report, tmp_path):
    prober = Prober(Bright(THRESHOLD), flat_frames([LEVEL] * 4))
    assert len(drawn(plot_scans(report)).axes) == 8
    assert len(drawn(plot_tolerances(report, {"drone": DRONE, "own": PLAIN})).axes) == len(report.table)
    assert len(drawn(plot_landscape(landscape(prober, "exposure", "gamma", points=3), (0.0, 2.2))).axes) == 2
    refused("no scans", plot_scans, ToleranceReport.load(report.save(tmp_path / "r.json")))


def test_an_attack_is_drawn():
    frames = flat_frames([0.3] * 4, side=12)
    isp = ParametrizedISP(PLAIN)
    table, attacks = attack_parameters(Bright(0.5), frames, frames, isp, ("gamma",), steps=2, progress=False)
    assert len(drawn(plot_attacks(table)).axes) == 1
    figure = plot_attack(frames.raw[:1], isp, attacks["gamma"].pipeline(), lambda image: image.mean() * 3)
    assert len(drawn(figure).axes) == 30


@pytest.mark.slow
def test_landscape_explorer_at_every_value():
    frames = flat_frames([LEVEL, 0.3])
    prober = Prober(Bright(THRESHOLD), frames)
    pairs = [landscape(prober, *names, points=3) for names in (("exposure", "gamma"), ("blur", "gamma"))]
    explorer = landscape_explorer(pairs, prober, frames.raw[:1])
    assert "r2l-landscape-explorer" in explorer._dom_classes
    top, middle, picture = explorer.children[:3]
    (menu, note), sliders = top.children, middle.children
    for option, item in zip(menu.options, pairs, strict=True):
        menu.value = option
        assert [slider.value for slider in sliders] == [item.first.value, item.second.value]
    seen = set()
    for row in item.scores.index:
        for column in item.scores.columns:
            sliders[0].value, sliders[1].value = row, column
            assert note.value == f"accuracy {item.scores.loc[row, column]:.3f}"
            ((alt, data),) = pictures(picture)
            assert f"blur width {row:.3g}, gamma {column:.3g}," in alt
            seen.add(data)
    assert len(seen) == item.scores.size
    refused("no landscapes", landscape_explorer, [], prober, frames.raw[:1])
