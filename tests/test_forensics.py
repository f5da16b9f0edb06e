"""Drift forensics: searches find the worst corner that is known, and only what beats chance counts."""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from r2l.camera import CFA, DRONE, Camera
from r2l.datasets import Frames, SyntheticMicroscopy
from r2l.drift.forensics import Evaluator, ParameterSpace, SettingSpace, attack_parameters, static_attack
from r2l.drift.forensics.attack import bounded_attack, penalised_attack, random_points, random_search
from r2l.drift.forensics.random_baseline import _compare_scores, compare_to_random
from r2l.isp import PIPELINES, LearnedISP, ParametrizedISP, StaticISP
from r2l.isp.adjustable import AdjustableISP, camera_settings, settings_of
from r2l.isp.learned import control_points
from r2l.rawfile.dng_tags import standard_form
from r2l.sensor import apply_levels, mosaic
from r2l.training import RawToLogits, make_classifier, predict, seeded
from r2l.training.adversarial import Adversary
from tests.common import CAMERAS, refused, unchanged

EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
PLAIN = Camera("plain", CFA.RGGB, (0.1,) * 4, 1.0, (2.0, 1.0, 1.5), EYE)


class Bright(nn.Module):
    """Class 1 if the mean of the chosen channels is above a threshold, else class 0."""

    def __init__(self, threshold, channels=(0, 1, 2)):
        super().__init__()
        self.threshold, self.channels = threshold, list(channels)

    def forward(self, image):
        above = 20 * (image[:, self.channels].mean((1, 2, 3)) - self.threshold)
        return torch.stack([-above, above], 1)


class Blind(nn.Module):
    def forward(self, image):
        return torch.tensor([0.0, 1.0]).repeat(len(image), 1)


def flat_frames(levels, camera=PLAIN, side=8, truth=1, per_group=1):
    """Frames of grey: linear value ``levels[i]`` in all three colours after white balance."""
    levels = torch.as_tensor(levels, dtype=torch.float32).reshape(-1, 1, 1, 1)
    light = (levels / torch.tensor(camera.white_balance).reshape(1, 3, 1, 1)).expand(-1, -1, side, side)
    raw, groups = apply_levels(mosaic(light, camera.cfa), camera), np.arange(len(levels)) // per_group
    return Frames(raw, torch.full((len(levels),), truth), groups, camera)


@pytest.fixture(scope="module")
def noisy():
    """Frames with texture, and an untrained classifier: every parameter matters to it."""
    frames = Frames.of(SyntheticMicroscopy(24, seed=3, size=16, crops_per_zone=2), progress=False)
    with seeded(0):
        model = make_classifier("SmallResNet", 9, (0.9, 0.8, 0.9), (0.08, 0.12, 0.05))
    return model.eval(), frames


# --- pipelines turned by settings ---
def mosaics(seed=0, height=24, width=28):
    return 0.07 + 0.5 * torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed))


def same(one, other):
    torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


@CAMERAS
@pytest.mark.parametrize("code", [*PIPELINES, "bi,s,fft"])
def test_untouched_settings_change_nothing(code, camera):
    for variant in ("corrected", "camera"):
        static = StaticISP.from_code(code, camera, variant)
        same(AdjustableISP(static)(mosaics()), static(mosaics()))


@pytest.mark.parametrize("code", ["bi,s,ga", "ma,u,me", "me,u,ga"])
def test_the_quick_way_equals_the_stages_with_everything_turned(code):
    values = {"exposure": 0.4, "black_level": 0.05, "black_level_red": 0.07, "red_gain": 2.5}
    values |= {"blue_gain": 2.0, "saturation": 0.6, "sharpening": 1.7, "blur": 0.9, "gamma": 1.9}
    isp = AdjustableISP(code, DRONE, **values)
    same(isp(mosaics(1)), isp.stages(mosaics(1))["gamma"])
    assert not list(isp.parameters())


def test_settings_are_what_a_camera_of_these_numbers_does():
    red, green, blue = DRONE.white_balance
    levels = tuple(level + 0.002 for level in DRONE.black_level)
    other = replace(DRONE, black_level=levels, white_balance=(1.1 * red, green, 0.8 * blue))
    base = {name: setting.value for name, setting in settings_of("bi,s,ga", DRONE).items()}
    values = {"black_level": base["black_level"] + 0.002 / DRONE.span}
    values |= {"red_gain": 1.1 * base["red_gain"], "blue_gain": 0.8 * base["blue_gain"]}
    turned = AdjustableISP("bi,s,ga", DRONE, **values)
    same(turned(mosaics(2)), StaticISP.from_code("bi,s,ga", other)(mosaics(2)))
    told = camera_settings(other, DRONE)
    for name in values:
        # The matrix's rows do not quite sum to 1, so white is not quite that of the gains.
        assert told[name] == pytest.approx(turned.values[name], rel=1e-6)


def test_saturation_and_exposure_do_what_they_say():
    grey = AdjustableISP("bi,s,ga", DRONE, saturation=0.0)(mosaics(3) / 2.5)
    assert float((grey - grey.mean(1, keepdim=True)).abs().max()) < 1e-5
    isps = [AdjustableISP("bi,s,ga", DRONE, exposure=exposure) for exposure in (0.0, 1.0)]
    linear, doubled = (isp.stages(mosaics(3) / 2.5)["denoising"] for isp in isps)
    torch.testing.assert_close(doubled, 2 * linear)


def test_a_learned_pipeline_can_be_turned_too():
    isp = ParametrizedISP(DRONE)
    for number, (name, value) in enumerate(isp.numbers().items()):
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
        isp.set_(**{name: value * (1 + 0.05 * noise)})
    same(AdjustableISP(isp, DRONE)(mosaics(4)), isp(mosaics(4)).detach())


@CAMERAS
def test_cameras_compare_by_what_they_do_not_by_how_they_write_it(camera):
    factors = np.array([-1.7, 0.5, 3.0])
    matrix = tuple(map(tuple, np.array(camera.colour_matrix) * factors))
    other = replace(camera, white_balance=tuple(camera.white_balance / factors), colour_matrix=matrix)
    assert camera_settings(other, camera) == pytest.approx(camera_settings(camera, camera))
    told = camera_settings(camera, camera)
    gains = standard_form(camera).white_balance  # an independent way to the same
    assert (told["red_gain"], 1.0, told["blue_gain"]) == pytest.approx(gains)
    assert told["exposure"] == 0
    assert told["saturation"] == pytest.approx(1)


def test_black_levels_go_by_colour_whatever_the_layout():
    for cfa in CFA:
        camera = replace(PLAIN, cfa=cfa, black_level=[(0.01, 0.02, 0.03)[c] for c in cfa.value])
        told = camera_settings(camera, PLAIN)
        # A share of the range, which begins at the reference's black level.
        shares = told["black_level_red"], told["black_level_blue"]
        assert shares == pytest.approx((0.01 / PLAIN.span, 0.03 / PLAIN.span))


def test_wrong_settings_are_refused():
    refused(r"no settings \['tint'\]; choose from exposure", AdjustableISP, "bi,s,ga", DRONE, tint=1.0)
    refused("negative", AdjustableISP, "bi,s,ga", DRONE, blur=-1.0)
    refused("settings to turn", AdjustableISP, StaticISP(DRONE, variant="paper"), DRONE)
    refused("no settings", SettingSpace, "bi,s,ga", DRONE, ["tint"])
    refused("choose from all, black_level", ParameterSpace, ParametrizedISP(DRONE), ["tint"])


# --- what is asked ---
class Told(nn.Module):
    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image):
        return self.logits


def test_scores_and_margins_of_known_answers():
    frames, model = flat_frames([0.2, 0.3], side=4), Told([2.0, 1.0, 0.0], [0.0, 5.0, 1.0])
    frames, isp = replace(frames, truth=torch.tensor([0, 2])), ParametrizedISP(PLAIN)
    assert Evaluator(model, frames).scores(isp).tolist() == [1, 0]
    assert Evaluator(model, frames).margin(isp) == 0, "1 and -1: 1 - 5 = -4 is lost like any other"
    p = math.exp(2) / (math.exp(2) + math.e + 1)
    assert Evaluator(model, frames, "p_true").scores(isp)[0] == pytest.approx(p)
    refused("does not fit", Evaluator(model, frames, "iou").scores, isp)
    refused("choose from accuracy", Evaluator(model, frames, "f1").scores, isp)
    top, half = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    top[..., :1, :], half[..., :2, :] = 1, 1
    masked = Frames(frames.raw[:1], half, frames.groups[:1], PLAIN)
    assert Evaluator(Told(*(2 * top - 1).tolist()), masked, "iou").scores(isp) == pytest.approx(0.5)
    nothing = Frames(frames.raw[:1], 0 * half, frames.groups[:1], PLAIN)
    assert Evaluator(Told(*torch.full((1, 1, 4, 4), 3.0).tolist()), nothing).margin(isp) == -1


def test_masks_are_attacked_like_classes():
    """Foreground is what is bright: a darker picture loses it, and the unchanged one has all of it."""

    class BrightPixels(nn.Module):
        def forward(self, image):
            return 20 * (image.mean(1, keepdim=True) - 0.3 ** (1 / 2.2) + 0.02)

    flat = flat_frames([0.3] * 4, side=12)
    frames = Frames(flat.raw, torch.ones(4, 1, 12, 12), flat.groups, flat.camera)
    asked, isp = Evaluator(BrightPixels(), frames, "iou"), ParametrizedISP(PLAIN)
    assert asked.scores(isp).tolist() == [1] * 4
    attack = bounded_attack(BrightPixels(), frames, isp, parameters="white_balance", steps=8)
    assert attack.point == pytest.approx([-1, -1, -1])
    assert asked.scores(attack.pipeline()).max() < 0.5
    assert "mask" in frames[0]


def test_frames_are_a_data_set_and_split_by_groups():
    frames = flat_frames(np.linspace(0.1, 0.5, 20), per_group=2)
    item = frames[-1]
    assert torch.equal(item["raw"], frames.raw[19])
    said = {"image": 19, "group": 9, "intensity": 1.0, "camera": "plain"}
    assert (item["label"], item["meta"]) == (1, said)
    with pytest.raises(IndexError):
        frames[20]
    first, second = frames.split(0.3, seed=1)
    assert (len(first), len(second)) == (6, 14)
    assert not set(first.groups) & set(second.groups)
    refused("can't be parted", frames.split, 0.0)
    table = predict(RawToLogits(Bright(0.4), ParametrizedISP(PLAIN)), {"own": flat_frames([0.1, 0.2, 0.3])})
    # 0.1 ** (1 / 2.2) is 0.35, 0.2 gives 0.48.
    assert table["correct"].to_list() == [False, True, True]


# --- searches ---
DARKER = {"black_level": 1.0, "white_balance": -1.0, "gamma": -1.0}


def test_projected_gradient_finds_the_known_worst_corner():
    """Grey frames answered by brightness: highest black, lowest gains and gamma are worst."""
    frames = flat_frames([0.2, 0.3, 0.4, 0.5])
    isp = ParametrizedISP(PLAIN)
    attack = bounded_attack(Bright(0.2), frames, isp, parameters=list(DARKER), steps=12, restarts=2)
    for name, worst in DARKER.items():
        point = attack.table().filter(like=name)
        assert point.to_list() == pytest.approx([worst] * isp.numbers()[name].numel())
    asked, pipeline = Evaluator(Bright(0.2), frames), attack.space.pipeline
    corners = [asked.margin(pipeline(np.array(corner))) for corner in product([-1.0, 1.0], repeat=8)]
    assert attack.margin == pytest.approx(min(corners), abs=1e-5)
    assert attack.evaluations == 24
    assert (attack.trace["best"].diff().dropna() <= 0).all()


def test_cma_finds_the_known_worst_corner():
    frames = flat_frames([0.2, 0.3, 0.4, 0.5])
    attack = static_attack(Bright(0.2), frames, settings=["exposure", "blue_gain", "gamma"], evaluations=150)
    assert attack.point == pytest.approx([-1, -1, -1], abs=0.05)
    assert attack.evaluations <= 150
    assert static_attack(Bright(0.2), frames, settings="exposure", evaluations=8).point.tolist() == [-1]


def test_the_published_search_pays_for_distance():
    """Without a price the search darkens; a high price keeps it at the reference."""
    frames = flat_frames([0.2, 0.3, 0.4, 0.5])
    isp = ParametrizedISP(PLAIN)
    adversaries = [Adversary(weight, parameters="white_balance") for weight in (0.0, 1e6)]
    free, held = (penalised_attack(Bright(0.2), frames, isp, a, epochs=15, lr=0.02) for a in adversaries)
    assert (free.point < -1).all(), "darker than any tolerance"
    assert np.abs(held.point).max() < 0.21, "no further than the first step of Adam"
    assert free.margin < held.margin


def test_the_gradient_is_that_of_the_margin(noisy):
    model, frames = noisy
    frames = Frames(frames.raw.double(), frames.truth, frames.groups, frames.camera)
    space = ParameterSpace(ParametrizedISP(frames.camera).double(), fraction=0.05)
    asked = Evaluator(model, frames)
    asked.task.double()
    rng = np.random.default_rng(0)
    point = rng.uniform(-0.3, 0.3, len(space.coordinates))
    _, gradient = asked.margin_gradient(space.develop, point)
    way = rng.normal(size=len(point))
    ends = [asked.margin_gradient(space.develop, point + s * 1e-3 * way)[0] for s in (-1, 1)]
    assert (ends[1] - ends[0]) / 2e-3 == pytest.approx(float(gradient @ way), rel=0.05)


def test_the_search_is_bounded_and_beats_its_start(noisy):
    model, frames = noisy
    isp = ParametrizedISP(frames.camera)
    attack = bounded_attack(model, frames, isp, steps=6, restarts=2)
    assert np.abs(attack.point).max() <= 1
    assert attack.margin < attack.trace["margin"].iloc[0]
    assert attack.margin == pytest.approx(Evaluator(model, frames).margin(attack.pipeline()), abs=1e-4)
    for name, (low, high) in isp.tolerance_bounds(0.1).items():
        value, kernel = attack.pipeline().numbers()[name], "kernel" in name
        beyond = (value - value.clamp(low, high)).abs().max()
        assert beyond <= 1e-4 + 0.05 * kernel * (high.max() - low.min()), name
        assert not kernel or float(value.sum()) == pytest.approx(1, abs=1e-5)


def test_points_and_values_are_ways_to_the_same():
    space = ParameterSpace(ParametrizedISP(DRONE), ["gamma", "white_balance"], 0.2)
    assert space.coordinates == ("white_balance[0]", "white_balance[1]", "white_balance[2]", "gamma")
    point = np.array([0.5, -1.0, 1.0, -0.25])
    isp = space.pipeline(point)
    assert float(isp.gamma.detach()) == pytest.approx(2.2 * (1 - 0.2 * 0.25))
    assert space.point(isp.numbers()) == pytest.approx(point, abs=1e-5)


@pytest.mark.parametrize("which", ["gradient", "published", "evolution", "random"])
def test_same_seed_same_result_and_nothing_given_is_changed(noisy, which):
    model, frames = noisy
    model.train()
    isp, chance = ParametrizedISP(frames.camera), np.random.get_state()[1].copy()  # noqa: NPY002
    space = SettingSpace("ma,u,me", frames.camera)
    search = {
        "gradient": partial(bounded_attack, model, frames, isp, steps=3, restarts=2),
        "published": partial(penalised_attack, model, frames, isp, Adversary(1.0), epochs=2, batch_size=8),
        "evolution": partial(static_attack, model, frames, evaluations=20),
        "random": partial(random_search, model, frames, space, evaluations=4),
    }[which]
    with unchanged(model, isp, frames.raw):
        first, again, third = search(seed=5), search(seed=5), search(seed=6)
    assert np.array_equal(first.point, again.point)
    assert first.trace.equals(again.trace)
    assert not first.trace.equals(third.trace)
    assert all(p.requires_grad and p.grad is None for p in [*model.parameters(), *isp.parameters()])
    assert np.array_equal(np.random.get_state()[1], chance)  # noqa: NPY002
    model.eval()


def test_a_whole_model_is_asked_without_its_processor_whatever_frames_are_cut_into(noisy, monkeypatch):
    model, frames = noisy
    isp = ParametrizedISP(frames.camera)
    alone = Evaluator(model, frames, "p_true")
    scores, margin = alone.scores(isp), alone.margin(isp)
    assert Evaluator(RawToLogits(model, isp).eval(), frames).margin(isp) == pytest.approx(margin)
    monkeypatch.setattr("r2l.datasets.frames._STEP_PIXELS", 16 * 16 * 5)
    assert alone.scores(isp) == pytest.approx(scores, abs=1e-5)


# --- against chance ---
def test_random_perturbations_are_as_large_as_the_box_allows():
    space = SettingSpace("bi,s,ga", PLAIN)
    points = random_points(space, 200, seed=1)
    assert np.abs(points).max(axis=1) == pytest.approx(np.ones(200))
    assert (np.abs(points[::2]) == 1).all(), "every other one is a corner"
    size = np.linspace(0, 5, len(space.coordinates))
    assert np.abs(random_points(space, 10, seed=1, size=size)) == pytest.approx(np.tile(size, (10, 1)))
    assert abs(points.mean()) < 0.1, "no direction is preferred"


def test_starts_of_an_attack_owe_nothing_to_the_draws_that_it_is_compared_with(monkeypatch):
    starts, alike = [], []
    flat = lambda _self, _develop, at: (0.0, starts.append(at) or 0 * at)  # noqa: E731
    monkeypatch.setattr(Evaluator, "margin_gradient", flat)
    for seed in range(20):
        attack = bounded_attack(Bright(0.2), flat_frames([0.2]), ParametrizedISP(PLAIN), steps=1, seed=seed)
        draws = random_points(attack.space, 10, seed, np.ones_like(attack.point)).ravel()
        alike += [np.mean(np.sign(starts[-1]) == draws[first::2][: len(attack.point)]) for first in (0, 1)]
    assert max(alike) < 0.9


def test_typical_draws_are_none_that_a_search_picked_from(monkeypatch):
    model, frames, seen = Bright(0.2), flat_frames([0.2, 0.3]), []
    space = ParameterSpace(ParametrizedISP(PLAIN), "all", 0.05)
    searches = [random_search(model, frames, space, evaluations=8, seed=s) for s in range(3)]
    monkeypatch.setattr(space, "pipeline", lambda at, make=space.pipeline: seen.append(at) or make(at))
    compare_to_random(model, frames, searches[0], searches[1:])
    picked = {tuple(point) for seed in range(3) for point in random_points(space, 8, seed)}
    assert sum(tuple(point) in picked for point in seen) == len(searches), "what they found, and no more"


def test_an_attack_on_what_matters_beats_chance():
    """One direction of 25 darkens the picture; random signs hardly ever agree with it."""
    search, fresh = flat_frames([0.3] * 10), flat_frames(np.linspace(0.28, 0.32, 40), per_group=2)
    isp, model = ParametrizedISP(PLAIN), Bright(0.3 ** (1 / 2.2) - 0.04)
    attack = bounded_attack(model, search, isp, steps=10, restarts=1, fraction=0.05)
    budget = attack.evaluations
    randoms = [random_search(model, search, attack.space, evaluations=budget, seed=s) for s in range(8)]
    found = compare_to_random(model, fresh, attack, randoms)
    assert found.table.loc["unchanged", "score"] == 1
    assert found.table.loc["attack", "score"] == 0
    assert found.beats_random
    assert found.table.loc["unchanged", "psnr"] == math.inf
    assert "1 and 8 searches" in str(found)
    assert "it beats random" in str(found)
    once = compare_to_random(model, fresh, attack, randoms[0])
    assert np.isnan(once.p)
    assert not once.beats_random, "one search each can't tell skill from luck"


def test_attacks_of_one_start_end_alike_and_count_as_one_search():
    search, fresh = flat_frames([0.3] * 4), flat_frames(np.linspace(0.2, 0.4, 20), per_group=2)
    isp, model = ParametrizedISP(PLAIN), Bright(0.3 ** (1 / 2.2))
    effort = {"steps": 3, "restarts": 1, "fraction": 0.05}
    attack, again = (bounded_attack(model, search, isp, seed=s, **effort) for s in (0, 9))
    assert np.array_equal(attack.point, again.point)
    randoms = [random_search(model, search, attack.space, evaluations=3, seed=s) for s in range(4)]
    table, _ = attack_parameters(model, search, fresh, isp, ["all"], searches=4, progress=False, **effort)
    for attacks, same in ((attack, True), ([attack] * 4, False)):
        judged = compare_to_random(model, fresh, attacks, randoms, typical=1)
        assert (table.loc["all", "p"] == pytest.approx(judged.p)) == same


def test_a_model_that_ignores_the_image_is_not_attacked():
    frames, isp = flat_frames(np.linspace(0.2, 0.4, 20), side=12), ParametrizedISP(PLAIN)
    few = {"steps": 2, "progress": False}
    table, attacks = attack_parameters(Blind(), frames, frames, isp, ("all", "gamma"), **few)
    assert not table["beats_random"].any()
    assert table["p"].to_list() == [1, 1]
    assert list(attacks) == ["all", "gamma"]
    own = RawToLogits(Blind(), isp)
    space = attack_parameters(own, frames, frames, parameters=["gamma"], **few)[1]["gamma"].space
    assert space.pipeline(np.zeros(1))(frames.raw).equal(own.processor(frames.raw)), "the model's own"


def simulated(rng, effect, n_groups=30, searches=(3, 3), luck=0.03, per_group=5):
    """Scores of images in groups under searches of some luck; attacks lower them by ``effect``."""
    base = np.repeat(rng.uniform(0.3, 0.8, n_groups), per_group)
    groups = np.repeat(np.arange(n_groups), per_group)
    shifts = [np.zeros(1), np.zeros(8), *(rng.normal(0, luck, n) for n in searches)]
    shifts[3] += effect
    columns = [rng.random((len(s), len(base))) < base - s[:, None] for s in shifts]
    return [c.astype(float) for c in columns], groups


def compared(rng, effect, times, **options):
    """Return comparisons of simulated scores."""
    sets = (simulated(rng, effect, **options) for _ in range(times))
    return [_compare_scores(columns, np.ones(4), groups) for columns, groups in sets]


@pytest.mark.slow
@pytest.mark.parametrize("searches", [(3, 3), (5, 1)])
def test_a_second_random_search_is_called_an_attack_in_at_most_5_percent(searches):
    # Of one search each half are called so: images alone tell that two searches differ, as they do.
    found = compared(np.random.default_rng(0), 0.0, 200, n_groups=200, searches=searches)
    assert sum(f.p <= 0.05 for f in found) <= stats.binom.ppf(0.999, 200, 0.05)
    # Two-sided, so that attacks that are better are half of them.
    assert sum(f.beats_random for f in found) <= stats.binom.ppf(0.999, 200, 0.025)


def test_an_attack_of_given_size_is_found():
    found = compared(np.random.default_rng(1), 0.25, 100)
    assert np.mean([f.beats_random for f in found]) > 0.9
    assert np.mean([f.low <= -0.25 <= f.high for f in found]) > 0.88


def test_unequal_effort_is_no_comparison(noisy):
    model, frames = noisy
    space = SettingSpace("bi,s,ga", frames.camera)
    few, many = (random_search(model, frames, space, evaluations=n) for n in (2, 3))
    refused("no fair comparison", compare_to_random, model, frames, many, few)
    refused("typical is 0", compare_to_random, model, frames, few, few, typical=0)
    with pytest.raises(ValueError, match="no parameters to attack by"):
        attack_parameters(model, frames, frames, ParametrizedISP(frames.camera), [])
    for search in (partial(random_search, space=space), static_attack):
        refused("find nothing", search, model, frames, evaluations=0)


# --- pipelines learned from a camera ---
def learned_isp(camera=DRONE):
    """A pipeline whose every number is unlike the start's; its sharpening kernel's sum is not one."""
    isp = LearnedISP(camera, "malvar2004")
    with torch.no_grad():
        isp.white_balance.mul_(torch.tensor([1.1, 1.0, 0.9]))
        isp.tone_curve.mul_(torch.linspace(1.4, 0.6, 34))
        isp.sharpening_kernel[2, 2] += 0.4
        isp.sharpening_kernel[1, 2] -= 0.3
    return isp


def test_a_learned_pipeline_is_searched_within_its_bounds_and_its_curve_rises():
    isp, raw = learned_isp(), 0.3 * torch.rand(2, 1, 16, 16)
    space = ParameterSpace(isp, "all", 0.2)
    assert torch.equal(space.pipeline(np.zeros(len(space.coordinates)))(raw), isp(raw))
    rng = np.random.default_rng(0)
    for point in rng.choice([-1.0, 1.0], (4, len(space.coordinates))):
        moved = space.pipeline(point)
        assert (control_points(moved.tone_curve).diff(dim=-1) > 0).all()
        assert abs(moved.sharpening_kernel.sum() - isp.sharpening_kernel.sum()) < 1e-5
        for name, (low, high) in isp.physical_bounds().items():
            value = getattr(moved, name)
            assert ((low <= value) & (value <= high)).all(), name
        assert not torch.allclose(moved(raw), isp(raw), atol=1e-3)
    for name, (low, high) in isp.tolerance_bounds(0.2).items():
        assert ((low <= getattr(isp, name)) & (getattr(isp, name) <= high)).all()
    refused("between 0 and 1", isp.tolerance_bounds, 1)


def test_its_gradient_is_that_of_differences():
    isp, raw = learned_isp().double(), 0.3 * torch.rand(1, 1, 8, 8, dtype=torch.float64)
    space = ParameterSpace(isp, ["white_balance", "tone_curve", "blur_kernel"], 0.1)
    point = torch.rand(len(space.coordinates), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: space.develop(raw, p).sum(), point, atol=1e-4)


def test_a_learned_pipeline_is_attacked_as_any_other():
    frames, isp = flat_frames(np.linspace(0.25, 0.35, 24)), LearnedISP(PLAIN)
    threshold = isp(frames.raw).mean().item()
    names = ("white_balance", "tone_curve")
    model = Bright(threshold - 0.02)
    table, attacks = attack_parameters(model, frames, frames, isp, names, steps=4, progress=False)
    assert (table["attack"] <= table["random"] + 1e-9).all()
    assert (table["attack"] < table["unchanged"]).all()
    # The worst for a model that asks for light is known: all gains as low as they may be.
    lowest, _ = isp.tolerance_bounds(0.1)["white_balance"]
    torch.testing.assert_close(attacks["white_balance"].pipeline().white_balance.data, lowest)
    refused("no parameters of that kind", penalised_attack, Bright(0.5), frames, isp, Adversary(0.1))


@CAMERAS
def test_a_learned_pipeline_is_turned_by_the_settings_of_others(camera):
    isp = learned_isp(camera)
    raw = torch.tensor(camera.black_level).mean() + 0.3 * camera.span * torch.rand(2, 1, 16, 16)
    untouched = AdjustableISP(isp)
    torch.testing.assert_close(untouched(raw), isp(raw), rtol=0, atol=2e-5)
    redder = AdjustableISP(isp, red_gain=1.2 * settings_of(isp)["red_gain"].value)
    with torch.no_grad():
        isp.white_balance[0] *= 1.2
    torch.testing.assert_close(redder(raw), isp(raw), rtol=0, atol=2e-5)
    for name, setting in settings_of(isp).items():
        turned = AdjustableISP(untouched, **{name: setting.high})
        assert not torch.allclose(turned(raw), untouched(raw), atol=1e-4), name
    plain = AdjustableISP(LearnedISP(camera), gamma=1.8)(raw)
    torch.testing.assert_close(plain, LearnedISP(camera)(raw) ** (2.2 / 1.8), rtol=0, atol=0.02)
