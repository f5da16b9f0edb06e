"""Adversarial search of processing: what moves, what stays, and which way."""

import copy
import math

import pytest
import torch
from pytorch_msssim import ssim
from torch import nn

from r2l.datasets import SyntheticMicroscopy
from r2l.isp import ParametrizedISP, StaticISP
from r2l.training import Adversary, channel_statistics, fit, make_classifier, predict
from r2l.training.metrics import image_distance

pytestmark = pytest.mark.slow  # it trains

SEARCH = {"epochs": 4, "batch_size": 12, "lr": 0.05, "progress": False}


@pytest.fixture(scope="module")
def data():
    return SyntheticMicroscopy(24, 0, size=32)


@pytest.fixture(scope="module")
def trained(data):
    """A model that has learned the images by heart, and its ISP."""
    isp = ParametrizedISP(data.camera)
    with torch.no_grad():
        images = isp(torch.stack([data[i]["raw"] for i in range(len(data))]))
    network = make_classifier("SmallResNet", len(data.classes), *channel_statistics(images))
    settings = {"processor": isp, "freeze_processor": True, "progress": False}
    return fit(network, data, epochs=12, batch_size=12, lr=5e-3, **settings)


def search(trained, data, adversary, **settings):
    settings = {"processor": trained.processor, **SEARCH, **settings}
    return fit(trained.model, data, adversary=adversary, **settings)


def accuracy(model, data):
    return predict(model, {"a": data})["correct"].mean()


def test_a_free_search_makes_the_model_fail_and_touches_nothing_but_the_processor(trained, data):
    before = copy.deepcopy(trained.state_dict())
    found = search(trained, data, Adversary(0.0))
    assert accuracy(trained, data) > 0.9
    assert accuracy(found, data) < 0.5
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, before[f"model.{name}"]), f"{name} of the frozen model"
    for name, value in found.reference.state_dict().items():
        assert torch.equal(value, before[f"processor.{name}"]), f"{name} of the frozen reference"
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert found.history["train_loss"].iloc[-1] > found.history["train_loss"].iloc[0]


def test_a_heavier_penalty_keeps_the_image_nearer(trained, data):
    raw = torch.stack([data[i]["raw"] for i in range(16)])

    def distance(weight, kind):
        found = search(trained, data, Adversary(weight, kind))
        with torch.no_grad():
            images = found.processor(raw), found.reference(raw)
        return image_distance(*images, kind=kind).mean()

    for kind in ("l2", "ssim"):
        assert distance(1e4, kind) < 0.5 * distance(0.0, kind)


def test_the_penalty_has_the_right_sign_and_does_not_depend_on_size():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator)
    noisy = (image + 0.2 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    adversary = Adversary(2.0, "ssim")
    same, other = (image_distance(one, image, adversary.distance) for one in (image, noisy))
    torch.testing.assert_close(same, torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(other, 1 - ssim(noisy, image, data_range=1.0, size_average=False))
    assert (other > 0.1).all()
    large = image_distance(noisy.repeat(1, 1, 2, 2), image.repeat(1, 1, 2, 2), Adversary(1.0).distance)
    torch.testing.assert_close(large, (noisy - image).square().mean((1, 2, 3)))
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    assert adversary.objective("classification", logits, labels, torch.tensor(0.25)) == 0.5


def test_aims_have_known_values_and_a_bound():
    adversary = Adversary(0.0, confidence=2.0)
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 100.0, 0.0]])
    assert adversary.aims("classification", logits, torch.zeros(3, dtype=torch.long)).tolist() == [2, -1, -2]
    pixels = torch.tensor([[1.0, -1.0], [-50.0, 4.0]])[None, None]
    masks = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
    assert adversary.aims("segmentation", pixels, masks).tolist() == [(1 + 1 - 2 - 2) / 4]
    several = logits[:2].T[None, :, :, None]  # two pixels of three classes
    labels = torch.tensor([0.0, 1.0])[None, None, :, None]
    assert adversary.aims("segmentation", several, labels).tolist() == [(2 + 1) / 2]
    assert adversary.aims("regression", torch.tensor([[1.0], [9.0]]), torch.zeros(2, 1)).tolist() == [-1, -2]


@pytest.mark.parametrize(
    ("names", "moved"),
    [
        (("black_level",), {"black_level"}),
        (("white_balance", "colour_correction"), {"white_balance", "colour_matrix"}),
        ("gamma_correct", {"gamma"}),
        (("sharpening_filter", "gaussian_blur"), {"sharpening_kernel", "blur_kernel"}),
        (("additive_layer",), {"additive"}),
    ],
)
def test_only_the_chosen_parameters_move(trained, data, names, moved):
    isp = ParametrizedISP(data.camera, additive_shape=(1, 3, 32, 32))
    adversary = Adversary(1.0, parameters=names)
    found = fit(trained.model, data, processor=isp, adversary=adversary, **{**SEARCH, "epochs": 1})
    now = found.processor.numbers()
    assert {name for name, v in isp.numbers().items() if not torch.equal(v, now[name])} == moved
    assert set(adversary.searched(isp)) == moved
    assert set(Adversary(1.0).searched(isp)) == set(now)


def test_parameters_stay_within_bounds(trained, data):
    wild = {"lr": 20.0, "epochs": 1}
    found = search(trained, data, Adversary(0.0), **wild).processor
    for name, (low, high) in found.physical_bounds().items():
        value = found.numbers()[name].detach()
        if "kernel" in name:  # which keep unit sum
            assert value.sum().item() == pytest.approx(1, abs=1e-3)
        elif name in ("white_balance", "gamma"):
            assert ((value >= low - 1e-3) & (value <= high + 1e-3)).all(), name
    assert found.black_level.max() < torch.stack([data[i]["raw"] for i in range(len(data))]).max()
    near = search(trained, data, Adversary(0.0, tolerance=0.05), **wild).processor
    low, high = ParametrizedISP(data.camera).tolerance_bounds(0.05)["gamma"]
    assert low * (1 - 1e-6) <= near.gamma <= high * (1 + 1e-6)


def test_history_tells_task_loss_distance_and_objective(trained, data):
    found = search(trained, data, Adversary(3.0), validation=data, epochs=1, lr=1e-9)
    row = found.history.iloc[0]
    assert row["val_distance"] == pytest.approx(0, abs=1e-9)
    assert row["val_loss"] == pytest.approx(predict(trained, {"a": data})["loss"].mean(), rel=1e-3, abs=1e-4)
    assert row["val_objective"] > 0, "a margin: the model is right"


def test_what_does_not_fit_is_said(trained, data):
    static = StaticISP.from_code("bi,s,ga", data.camera)
    for wrong, settings, word in (
        ({"parameters": ("hue",)}, {}, r"\['hue'\]; choose from all, black_level"),
        ({"parameters": ()}, {}, "unknown parameters"),
        ({"distance": "psnr"}, {}, "choose from l2, ssim"),
        ({"weight": -1.0}, {}, "weight -1.0"),
        ({"weight": math.nan}, {}, "weight nan"),
        ({"parameters": ("additive_layer",)}, {}, "no additive layer"),
        ({}, {"processor": static}, "ParametrizedISP as processor, got StaticISP"),
        ({}, {"output_norm": "batch"}, "output_norm='none'"),
        ({}, {"freeze_processor": True}, "freeze_processor has to be False"),
    ):
        with pytest.raises(ValueError, match=word):
            search(trained, data, Adversary(**{"weight": 1.0, **wrong}), **settings)
    normed = nn.Sequential(nn.BatchNorm2d(3).eval(), trained.model)
    assert fit(normed, data, processor=trained.processor, adversary=Adversary(1.0), **SEARCH | {"epochs": 1})
