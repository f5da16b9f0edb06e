"""A mosaic as four planes, one a position of the 2x2 tile, half as high and wide; and the way back.

The two forms hold the same numbers. Each function has a plain form, which autograd and compilers follow,
and a quick form for a CPU: torch's own pixel_shuffle moves single numbers and is several times slower.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from r2l.files import need_extra

#: Whether `r2l.isp.kernels` are asked for, by the variable R2L_KERNELS: compiled by numba at their first use.
WANTED = os.environ.get("R2L_KERNELS", "0") not in ("", "0")


def is_recorded(x: Tensor) -> bool:
    """Tell whether autograd, a tracer or a compiler looks on, so that only plain operations are allowed."""
    return is_traced() or (torch.is_grad_enabled() and x.requires_grad)


def is_traced() -> bool:
    """Tell whether a tracer or a compiler looks on."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@cache
def _loaded() -> ModuleType:
    need_extra("kernels", "numba")
    return import_module("r2l.isp.kernels")


def kernels(x: Tensor) -> ModuleType | None:
    """Return `r2l.isp.kernels` if it is asked for and can do it: float32 on a CPU, without gradients."""
    asked = WANTED and x.dtype == torch.float32 and x.device.type == "cpu"
    return _loaded() if asked and not is_recorded(x) else None


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
    image = _flat(pairs.permute(0, 3, 1, 4, 2)).view(torch.float32)
    return image.reshape(b, c // 4, 2 * h, 2 * w)


class _UnpackPairs(torch.autograd.Function):
    """`_unpack_pairs` for autograd: its gradient is the inverse rearrangement."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, planes: Tensor) -> Tensor:
        return _unpack_pairs(planes)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return F.pixel_unshuffle(grad, 2) if is_recorded(grad) else _pack_pairs(grad)


def _may_move_pairs(x: Tensor) -> bool:
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.storage_offset() % 2 == 0
    return plain and not is_traced()


def pack(mosaic: Tensor) -> Tensor:
    """Return the planes of a mosaic in one tensor: (B, 1, H, W) to (B, 4, H/2, W/2)."""
    if _may_move_pairs(mosaic) and not is_recorded(mosaic):
        return _pack_pairs(mosaic)
    return F.pixel_unshuffle(mosaic, 2)


def unpack(planes: Tensor) -> Tensor:
    """Return the image of its planes: (B, 4 C, H/2, W/2) to (B, C, H, W), colour by colour."""
    return _UnpackPairs.apply(planes) if _may_move_pairs(planes) else F.pixel_shuffle(planes, 2)
