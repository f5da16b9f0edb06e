"""The compiled kernels do what the plain functions do, and only where they are asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numba.core import caching

import r2l.files
from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.isp import ParametrizedISP, StaticISP, develop_all, filters, kernels
from r2l.isp.adjustable import AdjustableISP
from r2l.isp.learned import LearnedISP


@pytest.fixture
def both(monkeypatch):
    """Return what a function gives without the kernels, and with them."""

    def called(function):
        results = []
        for wanted in (False, True):
            monkeypatch.setattr(filters, "USE_KERNELS", wanted)
            with torch.no_grad():
                results.append(function())
        return results

    return called


def mosaic(*shape):
    """Smooth patches with noise, some of it below black and beyond white."""
    rng = np.random.default_rng(0)
    patches = rng.random((*shape[:-2], shape[-2] // 4 + 1, shape[-1] // 4 + 1)).repeat(4, -1).repeat(4, -2)
    raw = 0.05 + 0.9 * patches[..., : shape[-2], : shape[-1]] + 0.03 * rng.standard_normal(shape)
    return torch.from_numpy(raw.astype(np.float32))


def assert_same(plain, quick, ties=0.0):
    """In light: near black the curve makes much of the last digit."""
    assert quick.shape == plain.shape
    assert quick.dtype == torch.float32
    apart = (plain.double() ** 2.2 - quick.double() ** 2.2).abs()
    assert (apart > 1e-5).float().mean() <= ties


@pytest.mark.parametrize(
    "camera", [*(replace(DRONE, cfa=cfa) for cfa in CFA), MICROSCOPE], ids=lambda c: c.cfa.name
)
@pytest.mark.parametrize("shape", [(3, 1, 40, 62), (1, 1, 8, 6), (1, 1, 700, 900)], ids=str)
def test_the_twelve_are_the_same_but_where_directions_tie(both, camera, shape):
    raw = mosaic(*shape)
    plain, quick = both(lambda: develop_all(raw, camera))
    for code, image in plain.items():
        assert_same(image, quick[code], ties=2e-5 if code.startswith("me") else 0)


@pytest.mark.parametrize(
    "isp",
    [
        StaticISP.from_code("ma,u,me", DRONE, "camera"),
        StaticISP.from_code("me,s,ga", DRONE, "paper"),
        AdjustableISP("me,u,ga", DRONE, exposure=0.3, sharpening_radius=0.7, gamma=1.8, blur=0.9),
        AdjustableISP("bi,s,me", DRONE, sharpening=2.0, black_level_red=0.01),
        ParametrizedISP(DRONE).set_(gamma=1.9),
        LearnedISP(DRONE, "menon2007"),
    ],
    ids=lambda isp: f"{type(isp).__name__} {isp.extra_repr()}",
)
def test_other_pipelines_are_the_same(both, isp):
    raw = mosaic(2, 1, 62, 40)
    # A learned one cuts highlights first, so that many directions tie.
    assert_same(*both(lambda: isp(raw)), ties=0.01 if isinstance(isp, LearnedISP) else 1e-3)


def test_black_stays_black_white_white_and_the_curve_is_near(both):
    kernels = pytest.importorskip("r2l.isp.kernels")
    light = torch.linspace(-0.1, 1.1, 300_001).reshape(1, 1, 1, -1)
    image = kernels.finish(
        light, torch.zeros(1, 2, 1, light.shape[-1]), 2.2, torch.empty(1, 3, 1, light.shape[-1])
    )
    wanted = light[0, 0, 0].double().clamp(0, 1) ** (1 / 2.2)
    assert (image[0, :, 0] - wanted).abs().max() < 0.25 / 65535
    assert (image[0, :, 0, light[0, 0, 0] <= 0] == 0).all()
    torch.testing.assert_close(image[0, :, 0, -1], torch.ones(3), rtol=0, atol=2e-7)


def test_gradients_and_doubles_go_the_plain_way(monkeypatch):
    raw, isp = mosaic(1, 1, 16, 20), StaticISP.from_code("me,u,me", DRONE)

    def answers():
        leaf = raw.clone().requires_grad_()
        image = isp(leaf)
        image.square().sum().backward()
        return image.detach(), leaf.grad, isp(raw.double())

    before = answers()
    monkeypatch.setattr(filters, "USE_KERNELS", True)
    for one, other in zip(before, answers(), strict=True):
        assert torch.equal(one, other)


def test_without_numba_the_error_tells_what_to_install(monkeypatch):
    monkeypatch.setattr(filters, "USE_KERNELS", True)
    monkeypatch.setattr(r2l.files, "find_spec", lambda name: None)
    filters._loaded.cache_clear()
    with pytest.raises(r2l.files.MissingExtraError, match=r"r2l\[kernels\]"):
        StaticISP(DRONE)(mosaic(1, 1, 8, 8))
    filters._loaded.cache_clear()


def test_where_no_folder_can_be_written_they_are_compiled_anew(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert kernels._compiled(lambda x: x + 1)(1) == 2
