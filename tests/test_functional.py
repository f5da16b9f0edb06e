"""The stages one by one, against colour-demosaicing, kornia, scikit-image and scipy."""

import dataclasses
from functools import partial

import kornia
import numpy as np
import pytest
import skimage
import torch
from scipy import ndimage

from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.isp import StaticISP, demosaic, filters, functional
from r2l.isp.added_stages import clip_highlights
from r2l.sensor import mosaic
from tests import reference
from tests.common import LAYOUTS, refused, unchanged

PEERS = dict(zip(("bilinear", "malvar2004", "menon2007"), reference.DEMOSAIC.values(), strict=True))
METHODS = pytest.mark.parametrize("method", PEERS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def as_image(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]


@METHODS
@LAYOUTS
def test_demosaic_equals_colour_demosaicing(cfa, method):
    raw = noise(1, 1, 38, 46)
    want = as_image(PEERS[method](raw[0, 0].numpy(), cfa.name))
    torch.testing.assert_close(demosaic.DEMOSAIC[method](raw, cfa, "half"), want, rtol=0, atol=1e-12)
    mirrored = demosaic.DEMOSAIC[method](raw, cfa, "mirror")
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(mirrored[inner], want[inner], rtol=0, atol=1e-12)


def test_bilinear_equals_kornia_inside():
    raw = noise(2, 1, 20, 24)
    # kornia names the tile by its second row and column.
    for cfa, peer in ((CFA.RGGB, kornia.color.CFA.BG), (CFA.BGGR, kornia.color.CFA.RG)):
        want = kornia.color.raw_to_rgb(raw, peer)
        torch.testing.assert_close(demosaic.bilinear(raw, cfa)[..., 2:-2, 2:-2], want[..., 2:-2, 2:-2])


@METHODS
@LAYOUTS
def test_demosaic_gives_back_its_samples(cfa, method):
    raw = noise(2, 1, 12, 14)
    torch.testing.assert_close(mosaic(demosaic.DEMOSAIC[method](raw, cfa), cfa), raw)


@METHODS
@LAYOUTS
def test_demosaic_gradcheck(cfa, method):
    # Menon's decisions are piecewise constant: noise keeps away from ties.
    raw = noise(1, 1, 6, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: demosaic.DEMOSAIC[method](x, cfa), (raw,), eps=1e-7)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_demosaic_keeps_dtype_and_batch(method, dtype):
    raw = noise(3, 1, 8, 10).to(dtype)
    image = demosaic.DEMOSAIC[method](raw, CFA.GRBG)
    assert image.dtype == dtype
    assert image.shape == (3, 3, 8, 10)
    torch.testing.assert_close(image[1:2], demosaic.DEMOSAIC[method](raw[1:2], CFA.GRBG))


@pytest.mark.parametrize("method", ["bilinear", "malvar2004"])
def test_linear_methods_are_linear(method):
    a, b = noise(1, 1, 10, 12), noise(1, 1, 10, 12, seed=1)
    f = demosaic.DEMOSAIC[method]
    torch.testing.assert_close(f(2 * a - 3 * b, CFA.GBRG), 2 * f(a, CFA.GBRG) - 3 * f(b, CFA.GBRG))


def test_levels():
    raw = noise(2, 1, 6, 8)
    black = [0.1, 0.2, 0.3, 0.4]
    linear = functional.subtract_black_level(raw, black, 0.9)
    for i, b in enumerate(black):
        site = (..., slice(i // 2, None, 2), slice(i % 2, None, 2))
        torch.testing.assert_close(linear[site], (raw[site] - b) / (0.9 - b))
    only = functional.subtract_black_level(raw, black, None)
    torch.testing.assert_close(only[..., 1::2, 1::2], raw[..., 1::2, 1::2] - 0.4)
    refused("expected 4", functional.subtract_black_level, raw, [0.1] * 3)
    refused("not above", functional.subtract_black_level, raw, [0.5] * 4, 0.5)
    refused("not above", functional.subtract_black_level, raw, [float("nan")] * 4)


def test_luma_is_that_of_scikit_image():
    image = noise(1, 3, 9, 11)
    want = skimage.color.rgb2yuv(image[0].permute(1, 2, 0).numpy())[..., 0]
    torch.testing.assert_close(functional.luma(image)[0, 0], torch.from_numpy(want))


KERNEL = np.array(functional.SHARPENING_KERNEL)
FILTERS = {
    "gaussian": (partial(ndimage.gaussian_filter, sigma=0.5), functional.gaussian_denoising),
    "median": (partial(ndimage.median_filter, size=3), functional.median_denoising),
    "unsharp": (
        lambda y, mode: 2.5 * y - 1.5 * ndimage.gaussian_filter(y, 2.0, mode=mode),
        partial(functional.unsharp_masking, radius=2.0, amount=1.5),
    ),
    "sharpening": (partial(ndimage.correlate, weights=KERNEL), functional.sharpening_filter),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("border", "mode"), [("mirror", "mirror"), ("half", "reflect")])
def test_luma_filters_equal_scipy(name, border, mode):
    peer, ours = FILTERS[name]
    image = noise(1, 3, 13, 16)
    want = reference._on_luma(image[0].permute(1, 2, 0).numpy(), lambda y: peer(y, mode=mode))
    torch.testing.assert_close(ours(image, border=border), as_image(want), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_luma_filters_gradcheck(name):
    assert torch.autograd.gradcheck(FILTERS[name][1], (noise(1, 3, 5, 6).requires_grad_(),), eps=1e-7)


def test_correlate_with_a_tensor_equals_correlate_with_numbers():
    x, kernel = noise(2, 3, 9, 8), noise(3, 5, seed=3)
    for border in ("mirror", "half", "zero", None):
        got = filters.correlate(x, kernel, border)
        torch.testing.assert_close(got, filters.correlate(x, kernel.tolist(), border))


@pytest.mark.parametrize(("border", "mode"), [("mirror", "reflect"), ("half", "symmetric")])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pad_equals_numpy_for_any_amount(border, mode, size):
    x = noise(1, 1, size, size + 1)
    want = np.pad(x[0, 0].numpy(), ((9, 4), (5, 11)), mode=mode)
    torch.testing.assert_close(filters.pad(x, (9, 4), (5, 11), border)[0, 0], torch.from_numpy(want))


def test_fft_keeps_low_and_removes_high_frequencies():
    x = torch.arange(80, dtype=torch.float64)
    for cycles, kept in ((4, 1.0), (20, 1.0), (28, 0.0), (39, 0.0)):
        wave = torch.cos(2 * torch.pi * cycles * x / 80).expand(1, 3, 6, 80)
        torch.testing.assert_close(functional.fft_denoising(wave, 0.3), kept * wave, rtol=0, atol=1e-9)


def test_fft_of_the_paper_equals_its_recipe():
    image = noise(1, 3, 10, 32)
    spectrum = np.fft.fft2(image[0].permute(1, 2, 0).numpy(), axes=(-2, -1))
    spectrum[:, int(32 * 0.3) : int(32 * 0.7)] = 0
    want = np.fft.ifft2(spectrum, axes=(-2, -1)).real
    got = functional.fft_denoising(image, 0.3, paper=True)
    torch.testing.assert_close(got, as_image(want), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 2.2, 3.0])
def test_gamma_is_the_power_and_keeps_black_black(dtype, gamma):
    x = torch.cat([torch.linspace(0, 1, 1001), torch.logspace(-12, 0, 200)]).to(dtype)
    y = functional.gamma_correct(x, gamma)
    torch.testing.assert_close(y, x ** (1 / gamma), rtol=1e-6, atol=1e-9)
    assert y[0] == 0
    assert functional.gamma_correct(torch.tensor(1.0, dtype=dtype), gamma) == 1


def test_gamma_gradients():
    x = (0.05 + 0.9 * noise(2, 3, 4, 5)).requires_grad_()
    gamma = torch.tensor(2.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functional.gamma_correct, (x, gamma))
    ends = torch.tensor([-0.5, 0.0, 1e-9, 1.0, 1.5], requires_grad=True)
    learned = torch.tensor(2.2, requires_grad=True)
    functional.gamma_correct(ends, learned).sum().backward()
    assert torch.isfinite(ends.grad).all()
    assert torch.isfinite(learned.grad)
    assert ends.grad[0] == ends.grad[4] == 0
    assert ends.grad[1] > 0


def test_nothing_changes_its_input():
    raw, image = noise(1, 1, 8, 8), noise(1, 3, 8, 8)
    with unchanged(raw, image):
        functional.subtract_black_level(raw, [0.1] * 4)
        for method in demosaic.DEMOSAIC.values():
            method(raw, CFA.GBRG)
        functional.balance_white(image, [1, 2, 3])
        functional.apply_colour_matrix(image, np.eye(3).tolist())
        for _, ours in FILTERS.values():
            ours(image, border="mirror")
        for stage in (functional.fft_denoising, functional.clip, functional.gamma_correct):
            stage(image)
        mosaic(image, CFA.RGGB)


@LAYOUTS
def test_clipped_highlights_are_neutral(cfa):
    camera = dataclasses.replace(DRONE, cfa=cfa, white_level=0.9)
    saturated = torch.full((1, 1, 8, 8), 0.9, dtype=torch.float64)
    isp = StaticISP(camera)
    white = isp(clip_highlights(saturated, camera))
    torch.testing.assert_close(white, torch.ones_like(white), rtol=0, atol=1e-6)
    pink = isp(saturated)
    assert pink[:, 1].max() < pink[:, 0].min() - 0.05
    dark = functional.per_site(camera.black_level, saturated) + 0.2
    torch.testing.assert_close(clip_highlights(dark, camera), dark, rtol=0, atol=0)
    assert clip_highlights(saturated, MICROSCOPE) is saturated
