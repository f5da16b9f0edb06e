"""Fit what a camera does to a pixel's colours, by a matrix and curves, and judge it: PSNR, CIEDE2000."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.linalg import block_diag
from scipy.optimize import least_squares, lsq_linear
from torch import Tensor, nn

from r2l.isp.filters import crop
from r2l.isp.learned import SPANS, spline_weights
from r2l.learn.alignment import MARGIN
from r2l.rawfile.dng_tags import XYZ_FROM_SRGB

_STEPS, _ROBUST = 12, 0.03  # of a fit at most; deviation from which on a pixel counts less, display domain
# What is known before the first pixel: how firmly the row of a matrix and its offset stay where they start,
# and how straight a curve is.
_ANCHOR = np.array([1.0, 1.0, 1.0, 10.0])
_STRAIGHT = 0.3 * SPANS * np.diff(np.eye(SPANS + 2)[1:], axis=0)
_LOWEST = np.array([-np.inf] + [0.0] * (SPANS + 1))


def _curve_weights(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what each step of a curve adds to the display value (n, SPANS + 2), and the slope of that."""
    x = linear.clip(0, 1)
    u = x ** (1 / 2.2)
    first, weights = spline_weights(torch.from_numpy(u))
    t = u * SPANS - first.numpy()
    inside = (linear > 0) & (linear < 1)
    slopes = np.stack([t - 1, 1 - 2 * t, t]) * SPANS * inside * u / (2.2 * x.clip(1e-5))
    dense = np.zeros((2, len(x), SPANS + 2))
    for k, parts in enumerate((torch.stack(weights).numpy(), slopes)):
        np.put_along_axis(dense[k], first.numpy()[:, None] + np.arange(3), parts.T, axis=1)
    # A control point is the sum of the steps up to it.
    steps, slopes = dense[..., ::-1].cumsum(-1)[..., ::-1]
    return steps, slopes


def fit_curve(linear: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return first point and steps, which are not negative, that bring linear values (n,) to display ones."""
    weights, _ = _curve_weights(linear)
    system = np.vstack([weights, _STRAIGHT])
    wanted = np.concatenate([target, np.zeros(len(_STRAIGHT))])
    return lsq_linear(system, wanted, (_LOWEST, np.inf)).x


def fit_channel(
    values: np.ndarray, target: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Fit a row of the matrix, an offset and a curve to a channel; robust least squares, exact derivatives.

    Args:
        values: (n, 3) balanced camera colours, linear.
        target: (n,) what the camera made of them, display domain.
        row: where the row starts.

    Returns:
        The row, the offset, the curve's control points.
    """
    known = np.array([*row, 0])

    def residual(numbers: np.ndarray) -> np.ndarray:
        weights, _ = _curve_weights(values @ numbers[:3] + numbers[3])
        pulled, _ = _pull_in((weights @ numbers[4:]).clip(0, 1) - target)
        return np.concatenate([pulled, _ANCHOR * (numbers[:4] - known), _STRAIGHT @ numbers[4:]])

    def jacobian(numbers: np.ndarray) -> np.ndarray:
        weights, slopes = _curve_weights(values @ numbers[:3] + numbers[3])
        image = weights @ numbers[4:]
        inside = ((image > 0) & (image < 1)) * _pull_in(image.clip(0, 1) - target)[1]
        by_input = (slopes @ numbers[4:] * inside)[:, None]
        data = np.hstack([values * by_input, by_input, weights * inside[:, None]])
        return np.vstack([data, block_diag(np.diag(_ANCHOR), _STRAIGHT)])

    start = np.concatenate([known, fit_curve(values @ row, target)])
    bounds = np.concatenate([np.full(4, -np.inf), _LOWEST]), np.inf
    fit = least_squares(residual, start, jacobian, bounds, x_scale="jac", max_nfev=_STEPS, ftol=1e-4)
    return fit.x[:3], fit.x[3], fit.x[4:].cumsum()


def _pull_in(error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return errors whose square grows like a line where they are large (pseudo-Huber), and their slope."""
    root = np.sqrt(1 + (error / _ROBUST) ** 2)
    return error * np.sqrt(2 / (root + 1)), np.sqrt((root + 1) / 2) / root


@torch.inference_mode()
def develop_blocks(isp: nn.Module, raw: Tensor) -> Tensor:
    """Develop blocks (N, 1, ...) with what lies around and cut that off: (N, 3, BLOCK, BLOCK)."""
    return torch.cat([crop(isp(part), MARGIN) for part in raw.split(32)]).clamp(0, 1)


def psnr(image: Tensor, target: Tensor, seen: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB over the pixels (N, 1, H, W) that count."""
    error = ((image - target) ** 2).mean(1, keepdim=True)[seen]
    return float(-10 * torch.log10(error.double().mean().clamp(min=1e-12)))


def lab(srgb: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* (..., 3) under D65 of sRGB display values (..., 3) in [0, 1]."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ XYZ_FROM_SRGB.T / XYZ_FROM_SRGB.sum(axis=1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the difference of colours (..., 3) in L*a*b*: 1 is about what people can just see.

    Source: Sharma, Wu & Dalal, "The CIEDE2000 color-difference formula", Color Research & Application
    30(1), 2005.
    """
    (l1, a1, b1), (l2, a2, b2) = (np.moveaxis(colour, -1, 0) for colour in (first, second))

    def share(c: np.ndarray) -> np.ndarray:
        return np.sqrt(c**7 / (c**7 + 25.0**7))

    g = 1.5 - 0.5 * share((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = (np.arctan2(b, g * a) % (2 * np.pi) for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    hue_step = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = np.where(c1 * c2 == 0, h1 + h2, h1 + turn / 2)
    t = 1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
    t += 0.32 * np.cos(3 * hue + np.pi / 30) - 0.2 * np.cos(4 * hue - np.radians(63))
    off = (lightness - 50) ** 2
    dl = (l2 - l1) / (1 + 0.015 * off / np.sqrt(20 + off))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = hue_step / (1 + 0.015 * chroma * t)
    bend = np.radians(60) * np.exp(-((((np.degrees(hue) % 360) - 275) / 25) ** 2))
    return np.sqrt(dl**2 + dc**2 + dh**2 - np.sin(bend) * 2 * share(chroma) * dc * dh)


def score(views: Mapping[str, Tensor], target: Tensor, seen: Tensor) -> pd.DataFrame:
    """Return PSNR in dB and mean CIEDE2000 of developed blocks, by pipeline."""
    wanted = lab(_pixels(target, seen))
    rows = {
        name: (psnr(view, target, seen), ciede2000(lab(_pixels(view, seen)), wanted).mean())
        for name, view in views.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["psnr", "ciede2000"])


def _pixels(image: Tensor, seen: Tensor) -> np.ndarray:
    """Return the colours (n, 3) of a quarter of the pixels that count: enough for a mean."""
    return image[..., ::2, ::2].movedim(1, -1)[seen[:, 0, ::2, ::2]].double().numpy()
