"""Drift adjustment: learned against frozen, adaptations with known answers, and their statistics."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import Frames, SyntheticDrone, SyntheticMicroscopy
from r2l.datasets.splits import group_folds
from r2l.drift import adjustment
from r2l.drift.adjustment import Domain, adapt
from r2l.drift.adjustment.methods import LABELLED, PhysicalAdjustment, describe_isp
from r2l.drift.adjustment.objectives import batch_norms, entropies, forward_features
from r2l.isp import PIPELINES, HalfSizeRGB, ParametrizedISP, StaticISP
from r2l.training import RawToLogits, fit, make_classifier
from r2l.training.models import _Normalize, describe_model, make_described
from r2l.viz import plot_adaptations, plot_isp_change, plot_learning_curves
from r2l.widgets import learning_explorer
from tests.common import CAMERAS, drawn, refused, unchanged
from tests.test_widgets import pictures

pytestmark = pytest.mark.slow  # it trains

SETTINGS = {"epochs": 2, "batch_size": 8, "progress": False}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def frames():
    return Frames.of(SyntheticMicroscopy(45, 0, size=32), progress=False)


@pytest.fixture(scope="module")
def domain(frames):
    return Domain(frames, ParametrizedISP(frames.camera))


@pytest.fixture(scope="module")
def trained(domain):
    numbers = domain.statistics(np.arange(45))
    settings = {"processor": domain.processor, "freeze_processor": True, "epochs": 4, "lr": 3e-3}
    model = lambda: make_classifier("SmallResNet", 9, *numbers)  # noqa: E731
    return fit(model, domain.frames, progress=False, **settings)


@pytest.fixture(scope="module")
def statistics(trained, frames):
    return adjustment.source_statistics(trained, frames)


@pytest.fixture(scope="module")
def start(trained, frames):
    return adapt("bn_statistics", trained, frames)


@pytest.fixture(scope="module")
def learning(frames, domain):
    dim = Frames.of(SyntheticMicroscopy(45, 0, size=32, intensity=0.05), progress=False)
    domains = {"base": domain, "dim": Domain(dim, domain.processor)}
    return adjustment.compare_processing(domains, n_splits=2, seeds=(0, 1), **SETTINGS)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def with_processor(trained, processor):
    moved = copy.deepcopy(trained)
    moved.processor = processor
    return moved


# --- learned against frozen ---
def test_frozen_stays_frozen_to_the_bit_and_learned_moves_and_stays_a_camera(learning, domain):
    initial = domain.processor.numbers()
    for (name, arm, _seed, _fold), states in learning.states.items():
        assert len(states) == 3, name
        assert not changed(initial, states[0])
        assert bool(changed(initial, states[-1])) == (arm == "learned")
        assert states[-1]["sharpening_kernel"].sum() == pytest.approx(1, abs=1e-5)
        # A level of nearly nothing has a tenth of its room above it below it too.
        assert (states[-1]["black_level"] > -0.1 * learning.initial["base"].camera.white_level).all()
        assert 0.2 <= states[-1]["gamma"] <= 5
    assert not changed(initial, learning.initial["base"].numbers())


def test_arms_share_folds_and_answers_are_complete(learning):
    answers = learning.answers
    assert len(answers) == 45 * 2 * 2 * 2
    assert not answers.duplicated(["domain", "arm", "seed", "image"]).any()
    folds = answers.pivot(index=["domain", "image"], columns=["seed", "arm"], values="fold")
    for seed in (0, 1):
        np.testing.assert_array_equal(folds[seed, "frozen"], folds[seed, "learned"])
    assert set(learning.curves["epoch"]) == {1, 2}
    fold = "domain == 'dim' and arm == 'learned' and seed == 1 and fold == 0"
    last, hits = learning.curves.query(fold), answers.query(fold)
    assert last["val_accuracy"].iloc[-1] == pytest.approx(hits["correct"].mean())


def test_arms_start_from_the_same_weights_and_normalisation(domain):
    starts = []

    def factory(n_classes, mean, std):
        model = make_classifier("SmallResNet", n_classes, mean, std)
        starts.append(weights(model))
        return model

    half = Domain(domain.frames, HalfSizeRGB(MICROSCOPE))
    options = {"model": factory, "n_splits": 2, **SETTINGS}
    result = adjustment.compare_processing({"half": half}, arms=["frozen"], **options)
    assert len(result.answers) == 45, "other ISPs can be frozen"
    starts.clear()
    adjustment.compare_processing({"base": domain}, **options)
    assert not changed(starts[0], starts[1]), "two arms, one fold"
    assert changed(starts[0], starts[2]), "two folds"


def test_same_seed_same_learning(domain):
    one, two = (adjustment.compare_processing({"base": domain}, n_splits=2, **SETTINGS) for _ in range(2))
    pd.testing.assert_frame_equal(one.curves, two.curves)
    pd.testing.assert_frame_equal(one.answers, two.answers)
    assert not changed(one.processor("base").state_dict(), two.processor("base").state_dict())


def test_parameters_and_bands_are_means_over_seeds(learning):
    table = learning.parameters("dim")
    assert table.loc["gamma", "initial"] == pytest.approx(2.2)
    assert (table["lowest"] <= table["mean"]).all()
    assert table.loc["gamma", "lowest"] < table.loc["gamma", "highest"]
    row = learning.bands("val_loss").set_index(["domain", "arm", "epoch"]).loc[("dim", "learned", 2)]
    part = learning.curves.query("domain == 'dim' and arm == 'learned' and epoch == 2")
    means = part.groupby("seed")["val_loss"].mean()
    assert row["mean"] == pytest.approx(means.mean())
    half = 12.706205 * means.std() / np.sqrt(2)  # Student's t, 1 degree of freedom
    assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-5)


def test_normalisation_can_be_given_and_is_fixed(frames, domain):
    given = Domain(frames, domain.processor, ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)))
    assert given.statistics(np.arange(5)) == given.normalisation
    images = domain.processor(frames.raw[:5]).detach()
    mean, std = domain.statistics(np.arange(5))
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, images.std((0, 2, 3), correction=0), rtol=1e-4)


@pytest.fixture(scope="module")
def drone():
    tiles = Frames.of(SyntheticDrone(12, 0, size=32, tiles_per_photo=2), progress=False)
    return Domain(tiles, ParametrizedISP(DRONE))


def small_segmenter(_classes, mean, std):
    return nn.Sequential(_Normalize(mean, std), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4),
                         nn.Conv2d(4, 1, 1))  # fmt: skip


def test_segmentation_learns_and_adapts_too(drone):
    settings = {"task": "segmentation", "epochs": 1, "progress": False, "model": small_segmenter}
    summary = adjustment.compare_processing({"drone": drone}, n_splits=2, **settings).summary(value="iou")
    assert summary["score"].between(0, 1).all()
    assert summary["images"].tolist() == [12, 12]
    methods = ("none", "tent", "isp", "fine_tune", "all_pipelines")
    options = {"methods": methods, "n_splits": 3, "codes": PIPELINES[:2], **settings}
    adaptation = {"steps": 1, "batch_size": 4}
    table = adjustment.adaptation_experiment(drone, {"same": drone}, adaptation=adaptation, **options)
    assert table.groupby("method")["iou"].count().to_dict() == dict.fromkeys(methods, 12)
    assert adjustment.summarise_adaptations(table, value="iou")["score"].between(0, 1).all()
    # A name is an encoder where masks are asked for.
    segmenter = make_described(describe_model("resnet18", "segmentation", 2, (0.5,) * 3, (0.1,) * 3))
    assert segmenter(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)


def test_wrong_experiments_are_refused(domain, learning):
    static = Domain(domain.frames, StaticISP(MICROSCOPE))
    other = Domain(Frames.of(SyntheticMicroscopy(45, 1, size=32), progress=False), domain.processor)
    refused("frozen, learned", adjustment.compare_processing, {"base": domain}, arms=["thawed"])
    refused("nothing to compare", adjustment.compare_processing, {"base": domain}, arms=[])
    refused("nothing to compare", adjustment.compare_processing, {})
    refused("nothing to learn", adjustment.compare_processing, {"static": static})
    refused("different scenes", adjustment.compare_processing, {"a": domain, "b": other})
    refused("0 to 2", learning.processor, "base", 3)
    refused("no training", learning.processor, "bright")
    refused("bright", learning.parameters, "bright")
    refused("val_accuracy", learning.bands, "val_iou")


# --- the five numbers ---
def mosaics():
    return 0.1 + 0.3 * torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def adjusted_by(isp, *values):
    adjusted = PhysicalAdjustment(isp)
    with torch.no_grad():
        for name, value in zip(adjusted.settings(), values, strict=True):
            adjusted.get_parameter(name).fill_(value)
    return adjusted


@pytest.mark.parametrize("make", [ParametrizedISP, StaticISP], ids=["parametrized", "static"])
@CAMERAS
def test_no_adjustment_changes_nothing(make, camera):
    raw, isp = mosaics(), make(camera)
    adjusted = PhysicalAdjustment(isp)
    torch.testing.assert_close(adjusted(raw), isp(raw), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close([*adjusted.stages(raw).values()][-1], adjusted(raw))


@CAMERAS
def test_baked_isp_is_the_adjusted_one(camera):
    adjusted = adjusted_by(ParametrizedISP(camera), 0.3, -0.2, 0.4, 0.2, 1.5)
    baked = adjusted.baked()
    assert isinstance(baked, ParametrizedISP)
    torch.testing.assert_close(baked(mosaics()), adjusted(mosaics()), atol=1e-5, rtol=1e-4)
    assert baked.gamma.item() == pytest.approx(2.2 * 2**0.2)
    ratio = baked.white_balance / torch.tensor(camera.white_balance)
    np.testing.assert_allclose(ratio.detach().log2(), (0.1, 0.3, 0.7), atol=1e-5)


def test_adjustment_is_brought_back_into_physical_bounds():
    isp = adjusted_by(ParametrizedISP(DRONE), 50, 50, 50, 50, -50).project_().baked()
    for name, (low, high) in isp.physical_bounds().items():
        value, slack = isp.numbers()[name], 1e-4 * high.abs()
        assert ((low - slack <= value) & (value <= high + slack)).all(), name


def test_gradients_reach_all_five_numbers():
    adjusted = PhysicalAdjustment(StaticISP.from_code("ma,u,me", DRONE))
    adjusted(mosaics()).square().mean().backward()
    for name in adjusted.settings():
        assert adjusted.get_parameter(name).grad.abs() > 0, name


def test_description_tells_what_was_done_to_an_isp():
    isp = ParametrizedISP(DRONE)
    before = describe_isp(isp)
    assert before["luma gain"] == pytest.approx(1)
    assert before["exposure (stops)"] == pytest.approx(0, abs=1e-6)
    isp.set_(white_balance=isp.white_balance * torch.tensor([2.4, 2.0, 2.0]))
    after = describe_isp(isp)
    assert after["exposure (stops)"] == pytest.approx(1)
    assert after["red / green"] == pytest.approx(1.2 * before["red / green"])
    # White noise through both filters, measured on luma itself.
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    kernels = [k.detach()[None, None] for k in (isp.sharpening_kernel, isp.blur_kernel)]
    filtered = nn.functional.conv2d(nn.functional.conv2d(noise, kernels[0]), kernels[1])
    assert filtered.std() / noise.std() == pytest.approx(before["luma noise gain"], rel=0.02)


# Adaptation: known answers


@pytest.mark.parametrize("method", adjustment.METHODS)
def test_given_model_is_left_alone_and_same_seed_gives_the_same(method, trained, frames, statistics):
    asked = [p.requires_grad for p in trained.parameters()]
    options = {"statistics": statistics, "generalist": trained, "steps": 2, "batch_size": 16}
    shuffled = replace(frames, truth=frames.truth.flip(0))
    with unchanged(trained):
        one, two, other = (adapt(method, trained, data, **options) for data in (frames, frames, shuffled))
    assert asked == [p.requires_grad for p in trained.parameters()]
    assert [n for n, _ in one.named_parameters()] == [n for n, _ in trained.named_parameters()]
    assert not changed(one.state_dict(), two.state_dict())
    by_labels = bool(changed(one.state_dict(), other.state_dict()))
    assert by_labels == (method in LABELLED), "alone looks at labels"
    assert bool(changed(weights(trained), one.state_dict())) == (method not in ("none", "all_pipelines"))
    assert not any(m.training for m in one.modules())
    assert one.adaptation["method"] == method
    assert one.adaptation["seconds"] > 0
    assert one.adaptation["steps"] == (0 if method in {"none", "bn_statistics", "all_pipelines"} else 2)


def test_statistics_of_batch_normalisation_become_those_of_the_target(trained, frames):
    adapted = adapt("bn_statistics", trained, frames)
    # Computed directly: what reaches each layer when those before it go by the statistics of the target.
    direct = copy.deepcopy(trained)
    for norm in batch_norms(direct).values():
        norm.train()
    with torch.no_grad():
        _, features = forward_features(direct, frames.raw)
    for name, norm in batch_norms(adapted).items():
        inputs = features[name].transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, inputs.mean(1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(norm.running_var, inputs.var(1), atol=1e-5, rtol=1e-4)
        assert norm.momentum == 0.1
    moved = changed(weights(trained), adapted.state_dict())
    assert moved <= {f"{n}.{b}" for n in batch_norms(adapted) for b in BUFFERS}


@pytest.fixture
def no_filter(monkeypatch):
    """All answers are reliable and new."""
    monkeypatch.setattr(adjustment.self_training, "_REDUNDANT", 2.0)
    monkeypatch.setattr(adjustment.self_training, "_RELIABLE", 2.0)
    return monkeypatch


@pytest.mark.parametrize("method", ["tent", "eata", "sar"])
def test_entropy_is_lowered_by_affine_parameters_alone(method, trained, frames, start, no_filter):
    options = {"steps": 12, "batch_size": 45, "lr": 5e-2, "reset_below": 0.0}
    adapted = adapt(method, trained, frames, **options)
    moved = changed(start.state_dict(), adapted.state_dict())
    affine = {f"{n}.{p}" for n in batch_norms(adapted) for p in ("weight", "bias")}
    assert {n for n, _ in adapted.named_parameters()} & moved == affine
    assert moved - affine <= {f"{n}.{p}" for n in batch_norms(adapted) for p in BUFFERS}
    losses = adapted.adaptation["losses"]
    assert method != "tent" or losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        after, before = (entropies(module(frames.raw)).mean() for module in (adapted, start))
    assert after < before


def test_answers_that_are_not_reliable_or_not_new_are_left_out(trained, frames, start, no_filter):
    no_filter.setattr(adjustment.self_training, "_REDUNDANT", -1.0)
    losses = adapt("eata", trained, frames, steps=4).adaptation["losses"]
    assert np.isfinite(losses).tolist() == [True, False, False, False], "all like the first batch"
    no_filter.setattr(adjustment.self_training, "_RELIABLE", 0.0)
    for method in ("eata", "sar"):
        adapted = adapt(method, trained, frames, steps=4)
        assert np.isnan(adapted.adaptation["losses"]).all()
        assert not changed(weights(start), weights(adapted))


def test_fisher_information_is_that_of_single_images_and_holds_the_parameters(
    trained, frames, statistics, no_filter
):
    names = [f"{n}.{p}" for n in batch_norms(trained) for p in ("weight", "bias")]
    fixed = {k: v.detach() for k, v in trained.state_dict().items()}
    images = trained.processor(frames.raw).detach()
    developed = with_processor(trained, nn.Identity())

    def surprise(affine, image):
        logits = torch.func.functional_call(developed, affine, image[None])
        return -logits.log_softmax(1).amax()

    slopes = [torch.func.grad(surprise)({name: fixed[name] for name in names}, image) for image in images]
    for name in names:
        mean = torch.stack([slope[name].square() for slope in slopes]).mean(0)
        torch.testing.assert_close(statistics.fisher[name], mean, atol=1e-6, rtol=1e-3)

    def moved(source):
        adapted = adapt("eata", trained, frames, statistics=source, steps=20, lr=1e-2)
        return sum((adapted.state_dict()[n] - fixed[n]).square().sum() for n in names)

    assert 0 < moved(statistics) < 0.7 * moved(None)


def test_sar_steps_from_where_it_was_and_is_tent_without_filter_and_radius(trained, frames, start, no_filter):
    assert not changed(weights(start), weights(adapt("sar", trained, frames, steps=3, lr=1e-30)))
    options = {"steps": 3, "lr": 1e-2, "reset_below": 0.0}
    plain = adapt("tent", trained, frames, **options)
    assert changed(weights(plain), weights(adapt("sar", trained, frames, **options)))
    no_filter.setattr(adjustment.self_training, "_RADIUS", 0.0)
    for name, value in weights(adapt("sar", trained, frames, **options)).items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, weights(plain)[name], atol=1e-5, rtol=1e-4)


def test_sar_counts_after_its_step_aside_only_what_was_reliable_before(trained, frames, monkeypatch):
    told = iter([[0.1, 9.0], [0.3, 0.1]])
    monkeypatch.setattr(
        adjustment.self_training, "entropies", lambda out: 0 * out.sum(1) + torch.tensor(next(told))
    )
    batch = {"raw": torch.stack([frames[i]["raw"] for i in (0, 1)])}
    record = adjustment.self_training.sar(copy.deepcopy(trained), [batch], 1e-3, source=None)
    assert record["losses"] == [pytest.approx(0.3)]


def test_a_collapse_is_noticed_and_undone(trained, frames, start):
    options = {"steps": 40, "batch_size": 16}
    collapsed = adapt("tent", trained, frames, **options, lr=0.3)
    assert collapsed.adaptation["losses"][-1] < 0.2
    guarded = adapt("tent", trained, frames, **options, lr=0.3, reset_below=0.2)
    assert guarded.adaptation["resets"] >= 1 > collapsed.adaptation["resets"]
    held = adapt("tent", trained, frames, **options, reset_below=99.0)
    assert held.adaptation["resets"] == 40
    assert not changed(weights(start), weights(held))


class Counted(torch.utils.data.Subset):
    """Counts how often its items are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)

    __getitems__ = None


def test_a_collapse_in_batches_of_one_is_undone(trained, frames, start):
    options = {"steps": 100, "batch_size": 1, "lr": 0.03}
    target = Counted(frames, range(45))
    collapsed = adapt("tent", trained, target, **options, undo_below=0)
    assert target.reads == 100 + 45, "where nothing is undone, the start is not measured"
    with torch.no_grad():
        assert len(collapsed(frames.raw).argmax(1).unique()) == 1, "one answer to everything"
    guarded = adapt("tent", trained, frames, **options)
    assert guarded.adaptation["undone"]
    assert not collapsed.adaptation["undone"]
    assert not changed(weights(start), weights(guarded))
    assert not adapt("tent", trained, frames, steps=4).adaptation["undone"]


def test_cotta_teaches_all_weights_and_restores_them(trained, frames, start, monkeypatch):
    options = {"steps": 4, "lr": 1e-2}
    adapted = adapt("cotta", trained, frames, **options)
    moved = changed(start.state_dict(), adapted.state_dict())
    assert {f"model.{n}" for n, _ in trained.model.named_parameters()} <= moved
    assert not any(name.startswith("processor") for name in moved)

    def apart(module):
        return (module.model.network[-1].weight - start.model.network[-1].weight).norm()

    monkeypatch.setattr(adjustment.self_training, "_RESTORED", 1.1)
    assert apart(adapt("cotta", trained, frames, **options)) < apart(adapted)


@pytest.mark.parametrize("method", [*adjustment.self_training.SELF_TRAINING, "isp_labels"])
def test_one_image_at_a_time_works_too(method, trained, frames):
    adapted = adapt(method, trained, frames, steps=3, batch_size=1)
    with torch.no_grad():
        assert torch.isfinite(adapted(frames.raw)).all()
    assert len(adapted.adaptation["losses"]) == 3


def test_entropy_of_known_answers():
    assert entropies(torch.zeros(3, 4)).tolist() == pytest.approx([np.log(4)] * 3)
    assert entropies(torch.zeros(1, 1, 5, 5)) == pytest.approx(np.log(2)), "one logit: two classes"
    assert entropies(torch.tensor([[100.0, 0.0]])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("exposure", (0.5, 0.5, 0.5), 1.0),
        ("red", (1.2, 1.0, 1.0), -np.log2(1.2)),
        ("blue", (1.0, 1.0, 0.8), -np.log2(0.8)),
    ],
)
def test_isp_adjustment_recovers_a_known_change(trained, frames, statistics, name, change, expected):
    """A sensor whose gains are off by 20 %, or by half: the settings found are those that undo it."""
    isp = copy.deepcopy(trained.processor)
    isp.set_(white_balance=isp.white_balance.detach() * torch.tensor(change))
    off = with_processor(trained, isp)
    options = {"statistics": statistics, "steps": 40, "batch_size": 45}
    adapted = adapt("isp_alignment", off, frames, **options)
    settings = adapted.adaptation["settings"]
    gains = [settings["exposure"] + settings.get(colour, 0.0) for colour in ("red", "green", "blue")]
    np.testing.assert_allclose(gains, -np.log2(change), atol=0.2)
    assert settings[name] == pytest.approx(expected, abs=0.2)
    with torch.no_grad():
        right, apart, close = (module.processor(frames.raw) for module in (trained, off, adapted))
    assert (close - right).square().mean() < 0.1 * (apart - right).square().mean()
    assert all(name.startswith("processor.steps.") for name in changed(weights(off), adapted.state_dict()))
    numbers = (module.processor.numbers() for module in (off, adapted))
    assert changed(*numbers) <= {"white_balance", "gamma", "black_level"}


def test_static_isp_can_be_adjusted_too(trained, frames, statistics):
    static = with_processor(trained, StaticISP.from_code("ma,u,me", frames.camera))
    adapted = adapt("isp", static, frames, statistics=statistics, steps=2)
    assert isinstance(adapted.processor, PhysicalAdjustment)
    assert adapted(frames.raw[:2]).shape == (2, 9)


def test_fine_tuning_learns_labels_with_the_isp_held_fast(trained, frames):
    adapted = adapt("fine_tune", trained, frames, steps=25, batch_size=45, lr=3e-3)
    losses = adapted.adaptation["losses"]
    assert losses[-1] < 0.5 * losses[0]
    assert not any(n.startswith("processor") for n in changed(weights(trained), weights(adapted)))


def test_statistics_do_not_depend_on_batches(trained, frames, statistics):
    other = adjustment.source_statistics(trained, frames, batch_size=7)
    assert "image" in statistics.layers
    for name, (mean, variance) in statistics.layers.items():
        torch.testing.assert_close(other.layers[name][0], mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other.layers[name][1], variance, atol=1e-5, rtol=1e-4)


def test_missing_things_are_named(trained, frames):
    plain = RawToLogits(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)))
    refused("bn_statistics", adapt, "magic", trained, frames)
    refused("source_statistics", adapt, "isp", trained, frames)
    refused("train_on_pipelines", adapt, "all_pipelines", trained, frames)
    refused("0 frames", adapt, "none", trained, frames.subset([]))
    refused("no batch normalisation", adapt, "bn_statistics", plain, frames)
    refused("camera", adapt, "isp_entropy", with_processor(trained, nn.Identity()), frames)


def test_generalist_stands_behind_the_targets_isp(trained, frames, domain):
    generalist = adjustment.train_on_pipelines(domain, np.arange(20), epochs=1)
    adapted = adapt("all_pipelines", trained, frames, generalist=generalist)
    assert not changed(weights(generalist.model), weights(adapted.model))
    assert not changed(weights(trained.processor), weights(adapted.processor))


# --- the comparison ---
@pytest.fixture(scope="module")
def experiment(frames, domain):
    isp = copy.deepcopy(domain.processor)
    isp.set_(white_balance=isp.white_balance.detach() * torch.tensor([1.2, 1.0, 0.8]))
    targets = {"same": domain, "gains": Domain(frames, isp)}
    steps = {"none": 1, "bn_statistics": 1, "isp": 2, "fine_tune": 3}
    adaptation = {"steps": steps, "batch_size": 8}
    options = {"methods": tuple(steps), "n_splits": 3, **SETTINGS}
    return adjustment.adaptation_experiment(domain, targets, adaptation=adaptation, **options)


def test_every_image_is_tested_once_by_every_method_and_paired_with_none(experiment):
    assert len(experiment) == 45 * 2 * 4
    assert not experiment.duplicated(["target", "method", "seed", "image"]).any()
    steps = experiment.groupby("method")["steps"].first()
    assert steps.to_dict() == {"none": 0, "bn_statistics": 0, "isp": 2, "fine_tune": 3}
    assert experiment.groupby("method")["labelled"].all().to_dict()["fine_tune"]
    summary = adjustment.summarise_adaptations(experiment).set_index(["target", "method"])
    hits = experiment.groupby(["target", "method"])["correct"].mean()
    for key in summary.index:
        assert summary.loc[key, "score"] == pytest.approx(hits[key])
        assert summary.loc[key, "difference"] == pytest.approx(hits[key] - hits[key[0], "none"])
    assert not summary.xs("none", level="method")["significant"].any()
    assert summary["p_holm"].notna().sum() == 6
    refused("no 'none'", adjustment.summarise_adaptations, experiment[experiment["method"] != "none"])
    refused("lacks some image", adjustment.summarise_adaptations, experiment.drop(index=3))
    refused("no answers to compare", adjustment.summarise_adaptations, experiment[:0])


def test_sizes_of_batches_and_equal_times_stand_beside_one_another(trained, domain):
    options = {"methods": ["none", "tent", "eata"], "batch_size": [1, 16], "steps": 6, "equal_time": True}
    parts = [fold.test for fold in group_folds(domain.frames.labels, domain.frames.groups, 3, 0)[:2]]
    table = adjustment.compare_adaptations(trained, {"same": domain}, *parts, **options)
    runs = table.groupby(["batch_size", "equal", "method"])[["steps", "skipped"]].first()
    assert (runs.xs(("steps", "eata"), level=("equal", "method"))["steps"] == 6).all()
    assert runs.xs(("time", "tent"), level=("equal", "method"))["steps"].tolist() == [6, 6]
    assert runs.loc[(1, "steps", "eata"), "skipped"] == 6, "two epochs of training: nothing is sure"
    summary = adjustment.summarise_adaptations(table.assign(seed=0), baseline="tent")
    assert len(summary) == 2 * 2 * 3
    assert summary["p_holm"].notna().sum() == 8
    refused("one at a time", plot_adaptations, summary)


def test_adaptation_and_test_share_no_group(trained, domain):
    compare = partial(adjustment.compare_adaptations, trained, {"same": domain}, range(12))
    refused("groups", compare, range(2, 45))
    refused("unknown methods", compare, range(12, 45), methods=["x"])
    refused("add tent", compare, [44], equal_time=True, methods=["none", "eata"])
    refused("3 or more", adjustment.adaptation_experiment, domain, {"same": domain}, n_splits=2)


# --- figures and widget ---
def test_figures_show_what_they_were_given(learning, experiment, frames):
    figure = drawn(plot_learning_curves(learning))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["base", "dim"]
    mean = learning.bands().query("domain == 'base' and arm == 'learned'")["mean"]
    lines = {tuple(np.round(line.get_ydata(), 6)) for line in figure.axes[0].lines}
    assert tuple(np.round(mean, 6)) in lines
    summary = adjustment.summarise_adaptations(experiment)
    figure = drawn(plot_adaptations(summary, reference="same"))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()][-1] == "fine_tune*"
    refused("same, gains", plot_adaptations, summary, reference="moon")
    isps = [learning.processor("dim", e) for e in (0, -1)]
    assert len(drawn(plot_isp_change(*isps, frames.raw, stages=("demosaic", "gamma"))).axes) == 4
    refused("no stages", plot_isp_change, *isps, frames.raw, stages=("flip",))


def test_explorer_at_every_value(learning, frames):
    explorer = learning_explorer(learning, dict.fromkeys(("base", "dim"), frames.raw[:1]))
    (menu, slider), picture = explorer.children[0].children, explorer.children[1]
    assert (slider.min, slider.max) == (0, 2)
    seen = set()
    for domain in menu.options:
        for epoch in range(slider.min, slider.max + 1):
            menu.value, slider.value = domain, epoch
            ((alt, data),) = pictures(picture)
            assert alt.startswith(f"{domain}: curves")
            assert f"after epoch {epoch}," in alt
            seen.add(data)
    assert len(seen) == 6
    refused("no frames", learning_explorer, learning, {})
