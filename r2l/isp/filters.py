"""What stages are built of: a mosaic's four planes, what lies beyond a frame's border, filters.

The planes, one a position of the 2x2 tile, are half as high and wide, and hold the numbers of the mosaic.
What packs and unpacks them has a plain form, which autograd and compilers follow, and a quick form for a CPU:
torch's own pixel_shuffle moves single numbers and is several times slower.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from r2l.files import need_extra

#: Whether kernels are asked for, by the variable R2L_KERNELS: compiled at their first use, by numba on a CPU
#: (`r2l.isp.kernels`), by Triton on a GPU (`r2l.isp.gpu`).
USE_KERNELS = os.environ.get("R2L_KERNELS", "0") not in ("", "0")


def is_recorded(x: Tensor) -> bool:
    """Tell whether autograd, a tracer or a compiler looks on, so that only plain operations are allowed."""
    return is_traced() or (torch.is_grad_enabled() and x.requires_grad)


def is_traced() -> bool:
    """Tell whether a tracer or a compiler looks on."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _asked_for(x: Tensor, device: str) -> bool:
    return USE_KERNELS and x.dtype == torch.float32 and x.device.type == device and not is_recorded(x)


@cache
def _loaded() -> ModuleType:
    need_extra("kernels", "numba")
    return import_module("r2l.isp.kernels")


def kernels(x: Tensor) -> ModuleType | None:
    """Return `r2l.isp.kernels` if it is asked for and can do it: float32 on a CPU, without gradients."""
    return _loaded() if _asked_for(x, "cpu") else None


@cache
def _loaded_for_gpus() -> ModuleType | None:
    # It comes with torch, on Linux; only from 3.3 on, torch 2.7, do its kernels know tuples.
    if find_spec("triton") is None:
        return None
    version = import_module("triton").__version__
    return import_module("r2l.isp.gpu") if tuple(map(int, version.split(".")[:2])) >= (3, 3) else None


def gpu_kernels(x: Tensor) -> ModuleType | None:
    """Return `r2l.isp.gpu` if it is asked for and can do it: float32 on a GPU, without gradients.

    Where there is no Triton, or an old one, the plain functions serve.
    """
    return _loaded_for_gpus() if _asked_for(x, "cuda") else None


def _flat(x: Tensor) -> Tensor:
    """Return contiguous numbers in one row; `view` and dtypes trip over the strides of sides of length 1."""
    return x.contiguous().as_strided((x.numel(),), (1,))


def pack_planes(mosaic: Tensor) -> list[Tensor]:
    """Return the four planes (B, H/2, W/2) of a mosaic (B, 1, H, W), by position of the tile."""
    return [mosaic[:, 0, y::2, x::2].contiguous() for y in (0, 1) for x in (0, 1)]


def unpack_planes(planes: Sequence[Tensor]) -> Tensor:
    """Return the image (B, C, H, W) of what stands at the four positions of the tile, (B, C, H/2, W/2)."""
    if is_recorded(planes[0]) or planes[0].dtype not in (torch.float32, torch.float64):
        return F.pixel_shuffle(torch.stack(list(planes), 2).flatten(1, 2), 2)
    b, c, h, w = planes[0].shape
    image = planes[0].new_empty(b, c, 2 * h, 2 * w)
    # A complex number is two neighbours of a row: so they are written without gaps.
    neighbours = torch.view_as_complex(image.view(b, c, 2 * h, w, 2))
    for y in (0, 1):
        torch.complex(planes[2 * y], planes[2 * y + 1], out=neighbours[:, :, y::2])
    return image


def _pack_pairs(image: Tensor) -> Tensor:
    """(B, C, H, W) float32 to (B, 4 C, H/2, W/2): neighbours travel as one float64, channels last."""
    b, c, h, w = image.shape
    pairs = _flat(image).view(torch.float64).view(b, c, h // 2, 2, w // 2)
    planes = _flat(pairs.permute(0, 2, 4, 1, 3)).view(torch.float32)
    return planes.reshape(b, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)


def _unpack_pairs(planes: Tensor) -> Tensor:
    """The inverse of `_pack_pairs`."""
    b, c, h, w = planes.shape
    pairs = _flat(planes.permute(0, 2, 3, 1)).view(torch.float64).view(b, h, w, c // 4, 2)
    return _flat(pairs.permute(0, 3, 1, 4, 2)).view(torch.float32).reshape(b, c // 4, 2 * h, 2 * w)


class _UnpackPairs(torch.autograd.Function):
    """`_unpack_pairs` for autograd: its gradient is the inverse rearrangement."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, planes: Tensor) -> Tensor:
        return _unpack_pairs(planes)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return F.pixel_unshuffle(grad, 2) if is_recorded(grad) else _pack_pairs(grad)


def _may_move_pairs(x: Tensor) -> bool:
    plain = not is_traced() and x.dtype == torch.float32 and x.device.type == "cpu"
    return plain and x.storage_offset() % 2 == 0  # a number that a compiler can't follow: asked last


def pack(mosaic: Tensor) -> Tensor:
    """Return the planes of a mosaic in one tensor: (B, 1, H, W) to (B, 4, H/2, W/2)."""
    if _may_move_pairs(mosaic) and not is_recorded(mosaic):
        return _pack_pairs(mosaic)
    return F.pixel_unshuffle(mosaic, 2)


def unpack(planes: Tensor) -> Tensor:
    """Return the image of its planes: (B, 4 C, H/2, W/2) to (B, C, H, W), colour by colour."""
    return _UnpackPairs.apply(planes) if _may_move_pairs(planes) else F.pixel_shuffle(planes, 2)


#: How a frame goes on beyond its edge: "mirror" about the edge samples (keeps the phase of the mosaic),
#: "half" repeats the edge samples (scipy calls that reflect), "zero".
Border = Literal["mirror", "half", "zero"]


def _beyond(n: int, before: int, after: int, border: Border, device: torch.device) -> Tensor:
    """Return for each of ``before + n + after`` places the index of the sample that stands there."""
    index = torch.arange(-before, n + after, device=device)
    if border == "half":
        index = index.remainder(2 * n)
        return torch.minimum(index, 2 * n - 1 - index)
    period = max(2 * (n - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


def pad(x: Tensor, rows: tuple[int, int], columns: tuple[int, int], border: Border) -> Tensor:
    """Continue ``x`` (B, C, H, W) beyond its edges by ``rows`` (top, bottom), ``columns`` (left, right).

    Any amount can be asked for, also more than the frame is large.
    """
    if not any(rows + columns):
        return x
    if border == "zero":
        return F.pad(x, (*columns, *rows))
    if border == "mirror" and max(rows) < x.shape[-2] and max(columns) < x.shape[-1]:
        return F.pad(x, (*columns, *rows), mode="reflect")
    x = x.index_select(-2, _beyond(x.shape[-2], *rows, border, x.device))
    return x.index_select(-1, _beyond(x.shape[-1], *columns, border, x.device))


def crop(x: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Take ``rows`` off the top and the bottom and ``columns`` (default: as many) off the sides; a view."""
    columns = rows if columns is None else columns
    if not rows and not columns:
        return x
    return x[..., rows : x.shape[-2] - rows, columns : x.shape[-1] - columns]


def correlate(
    x: Tensor, kernel: Sequence[Sequence[float]] | Tensor, border: Border | None = "mirror"
) -> Tensor:
    """Filter each channel of ``x`` (B, C, H, W) with one kernel (odd, odd), which is not flipped.

    A kernel of plain numbers is a sum of shifted frames: far quicker on a CPU than a convolution of one
    channel. A tensor is a convolution, differentiable in the kernel.

    Args:
        border: how the frame goes on; the size stays. ``None`` computes only where the kernel fits, so
            that the result is smaller by the kernel's radius on each side.
    """
    height, width = len(kernel), len(kernel[0])
    if border is not None:
        x = pad(x, (height // 2,) * 2, (width // 2,) * 2, border)
    h, w = x.shape[-2] - height + 1, x.shape[-1] - width + 1
    if isinstance(kernel, Tensor):
        return F.conv2d(x.flatten(0, -3)[:, None], kernel.to(x)[None, None]).reshape(*x.shape[:-2], h, w)
    if quick := kernels(x):
        return quick.correlate(x, kernel)
    taps = [(i, j, k) for i, row in enumerate(kernel) for j, k in enumerate(row) if k]
    (i, j, k), *others = taps
    total = x[..., i : i + h, j : j + w] * k
    for i, j, k in others:
        total.add_(x[..., i : i + h, j : j + w], alpha=k)
    return total


def gaussian_kernel(sigma: float) -> list[float]:
    """Return the weights of a Gaussian, of unit sum, cut at four sigma as scipy and scikit-image do."""
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    return [w / sum(weights) for w in weights]


def blur(x: Tensor, sigma: float, border: Border | None = "mirror", vertical_only: bool = False) -> Tensor:
    """Gaussian filter of each channel (B, C, H, W), sigma in pixels; ``border`` as in `correlate`."""
    kernel = gaussian_kernel(sigma)
    x = correlate(x, [[k] for k in kernel], border)
    return x if vertical_only else correlate(x, [kernel], border)


def median3x3(x: Tensor, border: Border | None = "mirror") -> Tensor:
    """Median of each 3x3 neighbourhood (B, C, H, W); ``border`` as in `correlate`.

    Sorts the columns first and shares that among three windows: the median of nine is the median of the
    largest low, the median middle and the smallest high (Smith, "Implementing median filters in XC4000E
    FPGAs", 1996). 18 comparisons a pixel; the gradient goes to the sample chosen.
    """
    # On the quick way into memory of what is not needed any more, which is in the caches: a third less time.
    plain = border is not None or is_recorded(x)
    if border is not None:
        x = pad(x, (1, 1), (1, 1), border)
    if quick := kernels(x):
        return quick.median3x3(x)

    def least(a: Tensor, b: Tensor, into: Tensor | None = None) -> Tensor:
        return torch.minimum(a, b, out=None if plain else into)

    def most(a: Tensor, b: Tensor, into: Tensor | None = None) -> Tensor:
        return torch.maximum(a, b, out=None if plain else into)

    def median(a: Tensor, b: Tensor, c: Tensor, *free: Tensor) -> Tensor:
        more, less = most(a, b, free[0]), least(a, b, free[1])  # which may be b's own memory
        return most(less, least(more, c, more), less)

    top, middle, bottom = x[..., :-2, :], x[..., 1:-1, :], x[..., 2:, :]
    low, high = least(top, middle), most(top, middle)
    free = least(high, bottom)
    high = most(high, bottom, high)
    rows = least(low, free), most(low, free), high
    sides = slice(None, -2), slice(1, -1), slice(2, None)
    low, mid, high, free = ([row[..., side] for side in sides] for row in (*rows, free))
    lows = most(low[0], low[1], free[0])
    lows = most(lows, low[2], lows)
    highs = least(high[0], high[1])
    highs = least(highs, high[2], highs)
    mids = median(*mid, high[0], low[0])
    return median(lows, highs, mids, high[0], highs)


def split_margin(image: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Return an image without its margin, and whole again, put together from both.

    So that a gradient with respect to what lies inside the frame can be taken on the way.
    """
    inside = crop(image, margin)
    frame = F.pad(torch.ones_like(inside), (margin,) * 4)
    return inside, F.pad(inside, (margin,) * 4) + image * (1 - frame)
