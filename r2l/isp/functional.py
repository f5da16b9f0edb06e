"""The stages of an ISP as pure functions: tensor in, new tensor out, nothing changed in place.

These are the readable truth; `r2l.isp.fused` computes the same, faster. Shapes are NCHW: a mosaic is
``(B, 1, H, W)``, an image ``(B, 3, H, W)``. Domains: *raw* (fraction of the container's full scale,
black level still in it), *linear* (after `subtract_black_level`), *display* (after `gamma_correct`).

Filters act on luma, Y of YUV (BT.601), and leave U and V alone. Since Y is a weighted mean of R, G and
B with weights of sum 1, that is the same as adding the change of Y to each of the three channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from r2l.camera import CFA
from r2l.isp.filters import Border, blur, correlate, crop, is_recorded, is_traced, kernels, median3x3

#: Kinds of number too short to process a mosaic in: a black level is lost in their rounding.
HALF = (torch.float16, torch.bfloat16)

#: Below one step of a 16-bit container the slope of the gamma curve is held, since it ends infinite.
_GAMMA_SLOPE_FLOOR = 2.0**-16

#: R, G, B weights of luma, ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)

#: 5 in the centre, -1 at the four sides: the identity plus the negative 4-neighbour Laplacian.
SHARPENING_KERNEL = ((0.0, -1.0, 0.0), (-1.0, 5.0, -1.0), (0.0, -1.0, 0.0))


def check_mosaic(raw: Tensor) -> None:
    """Raise unless ``raw`` is a batch of mosaics: floating point, ``(B, 1, H, W)``, H and W even.

    Raises:
        ValueError: says what was given and what is expected.
    """
    if not isinstance(raw, Tensor):
        raise ValueError(f"raw is a {type(raw).__name__}, expected a tensor (B, 1, H, W)")
    if not raw.is_floating_point():
        raise ValueError(f"raw has dtype {raw.dtype}, expected a float: divide by the full scale")
    if raw.ndim != 4 or raw.shape[1] != 1:
        raise ValueError(f"raw has shape {tuple(raw.shape)}, expected (B, 1, H, W)")
    height, width = raw.shape[-2:]
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(
            f"raw is {height}x{width}, expected an even height and width: crop to whole 2x2 tiles"
        )


def check_image(image: Tensor) -> None:
    """Raise `ValueError` unless ``image`` is floating point and ``(B, 3, H, W)``."""
    tensor = isinstance(image, Tensor)
    if not (tensor and image.is_floating_point() and image.ndim == 4 and image.shape[1] == 3):
        given = f"{image.dtype} {tuple(image.shape)}" if tensor else type(image).__name__
        raise ValueError(f"image is {given}, expected a float tensor (B, 3, H, W)")


def on_device(values: float | Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Return a tensor, or plain numbers, in dtype and on the device of ``like``; not to be changed in place.

    Numbers are brought to a GPU once: it would wait for each copy, and a CUDA graph can't hold one.
    """
    if isinstance(values, Tensor) or torch.compiler.is_compiling() or like.device.type == "cpu":
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)
    return _brought(values if isinstance(values, (int, float)) else tuple(values), like.dtype, like.device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve those who want gradients
def _brought(values: float | tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def per_site(values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Spread four values, one a position of the 2x2 tile, over a mosaic: (1, 1, H, W) as ``like``."""
    return on_device(values, like).reshape(1, 1, 2, 2).repeat(1, 1, like.shape[-2] // 2, like.shape[-1] // 2)


def subtract_black_level(
    raw: Tensor, black_level: Sequence[float] | Tensor, white_level: float | None = 1.0
) -> Tensor:
    """Raw to linear: ``(raw - black) / (white - black)``, black by position of the tile.

    Args:
        raw: (B, 1, H, W), raw domain.
        black_level: four values, by position (top-left, top-right, bottom-left, bottom-right).
        white_level: raw value of saturation; ``None`` only subtracts, as the published code did.

    Returns:
        (B, 1, H, W), linear: 0 is no light, 1 saturation. Noise below black stays negative.

    Raises:
        ValueError: wrong shape, dtype or odd size; not four levels; white not above black (levels on a
            GPU are taken as they are).
    """
    check_mosaic(raw)
    levels = torch.as_tensor(black_level, dtype=raw.dtype)
    black = on_device(black_level, raw)
    if black.numel() != 4:
        raise ValueError(f"black_level has {black.numel()} values, expected 4, one a position of the tile")
    if white_level is None:
        return raw - per_site(black, raw)
    # A compiler can't branch on values, and asking a GPU for them would make it wait.
    asked = not torch.compiler.is_compiling() and levels.device.type == "cpu"
    if asked and not bool((white_level - levels > 0).all()):
        raise ValueError(
            f"white_level {white_level} is not above the black level {black.tolist()}; if that was learned, "
            "training ran away: take a lower learning rate (lr) or gradient_clip_val"
        )
    if (quick := kernels(raw)) and not is_recorded(black):
        return quick.subtract_black_level(raw, black, white_level)
    return (raw - per_site(black, raw)) / per_site(white_level - black, raw)


def balance_white(image: Tensor, gains: Sequence[float] | Tensor) -> Tensor:
    """Multiply R, G and B of a linear image (B, 3, H, W) by three gains."""
    check_image(image)
    return image * on_device(gains, image).reshape(1, 3, 1, 1)


def balance_mosaic(mosaic: Tensor, gains: Sequence[float] | Tensor, cfa: CFA) -> Tensor:
    """Multiply each site of a linear mosaic (B, 1, H, W) by the magnitude of its colour's gain.

    The white balance of cameras, which comes before demosaicing: Malvar and Menon take the colours for
    alike but for slow changes, which they are only once white is white. A negative gain's sign is no
    balance; see `signed_columns`.
    """
    sites = [abs(gains[colour]) for colour in cfa.value]
    return mosaic * per_site(torch.stack(sites) if isinstance(gains, Tensor) else sites, mosaic)


def signed_columns(
    matrix: Sequence[Sequence[float]], gains: Sequence[float]
) -> tuple[tuple[float, ...], ...]:
    """Return a colour matrix that takes over the signs of gains of which only magnitudes were applied."""
    return tuple(tuple(math.copysign(1.0, g) * x for g, x in zip(gains, row, strict=True)) for row in matrix)


def apply_colour_matrix(image: Tensor, matrix: Sequence[Sequence[float]] | Tensor) -> Tensor:
    """Map white-balanced camera colours (B, 3, H, W) to linear sRGB: out = matrix @ in, pixel by pixel.

    A matrix of C rows gives (B, C, H, W). One of plain numbers is a sum of scaled channels, quicker on a
    CPU than a matrix product; one that is a tensor can be learned.
    """
    check_image(image)
    if not isinstance(matrix, Tensor):
        return torch.stack([_weighted_sum(image, row) for row in matrix], 1)
    matrix = torch.as_tensor(matrix, dtype=image.dtype, device=image.device)
    # A matrix product would be of low precision, in its gradient too, where autocast is on.
    return (matrix[:, :, None, None] * image[:, None]).sum(2)


def _weighted_sum(image: Tensor, weights: Sequence[float]) -> Tensor:
    total = image[:, 0] * weights[0]
    for channel, weight in enumerate(weights[1:], 1):
        total.add_(image[:, channel], alpha=weight)
    return total


def luma(image: Tensor) -> Tensor:
    """Return Y (B, 1, H, W) of an image (B, 3, H, W), BT.601 weights."""
    return _weighted_sum(image, LUMA)[:, None]


def filter_luma(image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``change`` to Y of an image and keep its chroma; (B, 3, H, W) in and out."""
    check_image(image)
    y = luma(image)
    return image + (change(y) - y)


def sharpen(y: Tensor, border: Border | None = "mirror") -> Tensor:
    """Filter with 5 in the centre and -1 at the four sides; ``border`` as in `correlate`."""
    return correlate(y, SHARPENING_KERNEL, border)


def unsharp(
    y: Tensor,
    radius: float = 1.0,
    amount: float = 1.0,
    border: Border | None = "mirror",
    vertical_only: bool = False,
) -> Tensor:
    """Add ``amount`` times what a Gaussian of sigma ``radius`` takes away; ``border`` as in `correlate`."""
    blurred = blur(y, radius, border, vertical_only)
    if border is None:
        rows, columns = y.shape[-2] - blurred.shape[-2], y.shape[-1] - blurred.shape[-1]
        y = crop(y, rows // 2, columns // 2)
    return blurred.lerp_(y, 1.0 + amount)


def sharpening_filter(image: Tensor, border: Border = "mirror") -> Tensor:
    """Sharpen luma with the 3x3 filter 5 / -1. The published code has ``border="zero"``."""
    return filter_luma(image, lambda y: sharpen(y, border))


def unsharp_masking(
    image: Tensor,
    radius: float = 1.0,
    amount: float = 1.0,
    border: Border = "mirror",
    vertical_only: bool = False,
) -> Tensor:
    """Add to luma ``amount`` times what a Gaussian of sigma ``radius`` (pixels) takes from it.

    ``vertical_only`` with ``border="half"`` is what the published code did: a slip in the channel axis
    made it filter each column by itself.
    """
    return filter_luma(image, lambda y: unsharp(y, radius, amount, border, vertical_only))


def gaussian_denoising(image: Tensor, sigma: float = 0.5, border: Border = "mirror") -> Tensor:
    """Gaussian filter of luma, sigma in pixels."""
    return filter_luma(image, lambda y: blur(y, sigma, border))


def median_denoising(image: Tensor, border: Border = "mirror") -> Tensor:
    """3x3 median of luma."""
    return filter_luma(image, lambda y: median3x3(y, border))


def fft_denoising(image: Tensor, keep_fraction: float = 0.3, paper: bool = False) -> Tensor:
    """Remove the horizontal frequencies at and above ``keep_fraction`` cycles a pixel.

    Corrected: of luma, positive and negative frequencies alike. ``paper``: of all three channels, with
    the published cut of the unsorted spectrum, which is off by one between the two signs. Periodic
    beyond the border by nature.

    Raises:
        ValueError: ``keep_fraction`` outside (0, 0.5].
    """
    check_image(image)
    if not 0 < keep_fraction <= 0.5:
        raise ValueError(f"keep_fraction is {keep_fraction}, expected a value in (0, 0.5]")
    width = image.shape[-1]
    if paper:
        keep = torch.ones(width, device=image.device)
        keep[int(width * keep_fraction) : int(width * (1 - keep_fraction))] = 0
    else:
        keep = (torch.fft.fftfreq(width, device=image.device).abs() < keep_fraction).to(image.dtype)

    def low_pass(x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(x, dim=-1) * keep, dim=-1).real

    return low_pass(image) if paper else filter_luma(image, low_pass)


def clip(image: Tensor, out: Tensor | None = None) -> Tensor:
    """Clip to [0, 1]. The gradient is 1 inside and on the ends, 0 beyond; ``out`` as in `gamma_correct`."""
    return torch.clamp(image, 0.0, 1.0, out=out)


@cache
def _numpy_is_vectorised() -> bool:
    """Tell whether numpy has these two functions for the vector units here: then they take a third."""
    try:
        from numpy.lib.introspect import opt_func_info
    except ImportError:
        return False
    found = opt_func_info(func_name="^(log2|exp2)$", signature="float32")
    ways = [way["current"] for by_type in found.values() for way in by_type.values()]
    return len(ways) == 2 and not any("baseline" in way for way in ways)


def _raise_(y: Tensor, exponent: Tensor) -> Tensor:
    """Replace y, above 0, by y ** exponent; less time than pow."""
    plain = type(y) is Tensor and y.dtype == torch.float32 and y.device.type == "cpu"
    if not plain or is_traced() or not _numpy_is_vectorised():
        return y.log2_().mul_(exponent).exp2_()
    values = y.numpy()
    np.log2(values, out=values)
    y.mul_(exponent)
    np.exp2(values, out=values)
    return y


def _power(x: Tensor, exponent: Tensor, black: Tensor, own: Tensor | None = None) -> Tensor:
    """Return clip(x, 0, 1) ** exponent, in memory that is its own if there is some.

    The logarithm of 0 leaves the quick path of vector units; hence the smallest normal number instead,
    whose own result, ``black``, is taken off again: 0 stays 0, to the bit.
    """
    tiny = torch.finfo(x.dtype).tiny
    return _raise_(torch.clamp(x, tiny, 1.0, out=own), exponent).sub_(black)


def _exponent(gamma: Tensor) -> tuple[Tensor, Tensor]:
    exponent = 1.0 / gamma.detach()
    return exponent, _raise_(torch.full_like(exponent, torch.finfo(gamma.dtype).tiny), exponent)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _known_exponent(gamma: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _exponent(torch.tensor(gamma, dtype=dtype))


class _Gamma(torch.autograd.Function):
    """x ** (1 / gamma) on [0, 1] with an exact value everywhere and a finite slope at black."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, gamma: Tensor) -> Tensor:
        y = _power(x, *_exponent(gamma))
        ctx.save_for_backward(x, gamma, y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, y = ctx.saved_tensors
        grad_x = grad_gamma = None
        if ctx.needs_input_grad[0]:
            lit = y.clamp(min=_GAMMA_SLOPE_FLOOR ** (1.0 / gamma.detach()))
            slope = lit / (x.clamp(min=_GAMMA_SLOPE_FLOOR) * gamma)
            # Zero outside [0, 1], both ends inside; a vectorised mask.
            ends = (-torch.finfo(x.dtype).tiny, 1.0 + torch.finfo(x.dtype).eps)
            grad_x = torch.ops.aten.hardtanh_backward(grad, x, *ends) * slope
        if ctx.needs_input_grad[1]:
            logarithm = y.clamp(min=torch.finfo(y.dtype).tiny).log()
            grad_gamma = -(grad * y * logarithm).sum() / gamma
        return grad_x, grad_gamma


def gamma_correct(image: Tensor, gamma: float | Tensor = 2.2, out: Tensor | None = None) -> Tensor:
    """Linear to display: ``clip(image) ** (1 / gamma)``.

    The value has no floor: 0 stays 0. The gradient has: below 2**-16 the slope is that at 2**-16, since
    the true one grows to infinity. Outside [0, 1] it is 0, as that of `clip`. ``gamma`` may be a scalar
    tensor to be learned. With ``out``, which may be the image, the result is written there and has no
    gradient. Half precision is rounded after the curve, not on the way.
    """
    if out is None and image.dtype in HALF:
        return gamma_correct(image.float(), gamma).to(image.dtype)
    if out is not None and isinstance(gamma, float) and image.device.type == "cpu":
        return _power(image, *_known_exponent(gamma, image.dtype), out)
    gamma = on_device(gamma, image).reshape(())
    return _Gamma.apply(image, gamma) if out is None else _power(image, *_exponent(gamma), out)
