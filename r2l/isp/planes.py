"""A mosaic as four planes, one a position of the 2x2 tile, half as high and wide; and the way back.

The two forms hold the same numbers. Each function has a plain form, which autograd and compilers follow,
and a quick form for a CPU: torch's own pixel_shuffle moves single numbers and is several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def is_recorded(x: Tensor) -> bool:
    """Tell whether autograd or a compiler looks on, so that only plain operations are allowed."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad)


def _may_move_pairs(x: Tensor) -> bool:
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and not is_recorded(x)
    return plain and x.storage_offset() % 2 == 0


def split(mosaic: Tensor) -> list[Tensor]:
    """Return the four planes (B, H/2, W/2) of a mosaic (B, 1, H, W), by position of the tile."""
    return [mosaic[:, 0, y::2, x::2].contiguous() for y in (0, 1) for x in (0, 1)]


def join(planes: Sequence[Tensor]) -> Tensor:
    """Return the image (B, C, H, W) of 4 C planes (B, H/2, W/2), colour by colour."""
    if is_recorded(planes[0]):
        return F.pixel_shuffle(torch.stack(list(planes), 1), 2)
    b, h, w = planes[0].shape
    image = planes[0].new_empty(b, len(planes) // 4, 2 * h, 2 * w)
    for i, plane in enumerate(planes):
        image[:, i // 4, i % 4 // 2 :: 2, i % 2 :: 2] = plane
    return image


def to_planes(mosaic: Tensor) -> Tensor:
    """Return the planes of a mosaic in one tensor: (B, 1, H, W) to (B, 4, H/2, W/2)."""
    if not _may_move_pairs(mosaic):
        return F.pixel_unshuffle(mosaic, 2)
    # Two neighbours travel as one float64, channels last, which is what a convolution wants.
    b, _, h, w = mosaic.shape
    pairs = mosaic.contiguous().view(torch.float64).reshape(b, h // 2, 2, w // 2)
    return pairs.transpose(2, 3).contiguous().view(torch.float32).permute(0, 3, 1, 2)


def from_planes(planes: Tensor) -> Tensor:
    """Return the image of its planes: (B, 4 C, H/2, W/2) to (B, C, H, W), colour by colour."""
    channels_last = planes.permute(0, 2, 3, 1)
    if not _may_move_pairs(planes) or not channels_last.is_contiguous():
        return F.pixel_shuffle(planes, 2)
    b, c, h, w = planes.shape
    pairs = channels_last.view(torch.float64).reshape(b, h, w, c // 4, 2)
    image = pairs.permute(0, 3, 1, 4, 2).contiguous().view(torch.float32)
    return image.reshape(b, c // 4, 2 * h, 2 * w)
