"""The quick way through the linear stages, and the strip by strip way through a large frame.

Levels, a linear demosaic, white balance and colour matrix are together one affine map that repeats with
the 2x2 tile. Seen on the four *planes* of a mosaic (one a position of the tile, half as high and wide) it
is a single small convolution, 4 planes in, one plane a colour and position out. Its weights are measured:
the plain stages are shown an impulse at each position of the tile and answer with the kernel. So the plain
stages stay the only definition, and gradients with respect to their parameters pass through the weights.

Past that a frame is developed strip by strip into one result, so a frame of any size needs little more
memory than its picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from r2l.isp.filters import pad
from r2l.isp.packing import is_recorded, pack, unpack

#: Pixels of a strip, found by trial: small enough for caches to help, and large enough that the start of
#: each operation on several threads, dear where waiting threads sleep, does not count.
_STRIP_PIXELS = 524_288


def measure_affine(
    stages: Callable[[Tensor], Tensor], radius: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias of the convolution that equals affine ``stages``.

    Args:
        stages: mosaic (B, 1, H, W) to image (B, C, H, W), affine, the same at each tile.
        radius: how many pixels away a sample may still count.
        like: gives dtype and device.

    Returns:
        weight (4 C, 4, k, k) and bias (4 C,) for `torch.nn.functional.conv2d` over a packed mosaic, with
        k = 2 * ceil(radius / 2) + 1. Differentiable in whatever ``stages`` depends on.
    """
    reach = (radius + 1) // 2  # in tiles
    # The answer, and room around it for the border to be out of reach.
    size = 4 * reach + 1
    impulses = torch.zeros(5, 1, 2 * size, 2 * size, dtype=like.dtype, device=like.device)
    centre = 2 * (size // 2)
    for position in range(4):
        impulses[position, 0, centre + position // 2, centre + position % 2] = 1.0
    answers = F.pixel_unshuffle(stages(impulses), 2)
    dark = answers[4:]
    kernels = (answers[:4] - dark)[..., reach : size - reach, reach : size - reach]
    # Where an impulse goes to is the mirror image of where a value comes from.
    weight = kernels.flip(-1, -2).transpose(0, 1)
    return weight, dark[0, :, size // 2, size // 2]


def apply_affine(mosaic: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run a convolution of `measure_affine` where it fits: H and W shrink by k - 1 tiles."""
    weight = weight.to(mosaic).contiguous(memory_format=torch.channels_last)
    return unpack(F.conv2d(pack(mosaic), weight, bias.to(mosaic)))


def _strips(batch: int, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Cut a batch of frames into (images, rows) of about `_STRIP_PIXELS`; rows begin at even numbers."""
    images = max(1, _STRIP_PIXELS // (height * width))
    rows = height if images > 1 else max(2, _STRIP_PIXELS // width // 2 * 2)
    for i in range(0, batch, images):
        for y in range(0, height, rows):
            yield slice(i, min(i + images, batch)), slice(y, min(y + rows, height))


def _strip_with_surroundings(mosaic: Tensor, images: slice, rows: slice, margin: int) -> Tensor:
    """Take a strip with ``margin`` pixels around it; beyond the frame its mirror image."""
    height, width = mosaic.shape[-2:]
    if min(height, width) <= margin:
        return pad(mosaic[images], (margin, margin), (margin, margin), "mirror")[
            ..., rows.start : rows.stop + 2 * margin, :
        ]
    top, bottom = rows.start - margin, rows.stop + margin
    first, last = max(top, 0), min(bottom, height)
    return pad(
        mosaic[images, :, first:last], (first - top, bottom - last), (margin, margin), "mirror"
    )


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Allocate a result. numpy asks the kernel for huge pages, which saves most of the page faults."""
    if like.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.empty(shape, dtype=str(like.dtype).removeprefix("torch.")))
    return like.new_empty(shape)


@cache
def _let_malloc_keep_memory() -> None:
    """Have glibc reuse the memory of freed intermediates instead of returning it to the system.

    It decides by the largest block, up to 32 MiB, that was freed so far; this one is never touched and
    costs nothing. Without it most of the time goes into page faults.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


#: A strip (b, 1, h + 2 margin, w + 2 margin) to images (b, 3, h, w), each written into its place, if one is
#: given, and returned.
Develop = Callable[[Tensor, Sequence[Tensor | None]], list[Tensor]]


def develop_in_strips(mosaic: Tensor, margin: int, count: int, develop: Develop) -> list[Tensor]:
    """Develop a batch of mosaics into ``count`` pictures each, strip by strip.

    Args:
        mosaic: (B, 1, H, W).
        margin: how many pixels around a strip ``develop`` needs, even.
        develop: see `Develop`.

    Returns:
        ``count`` images (B, 3, H, W). All is one strip where autograd follows ``mosaic``, under a
        compiler, and off the CPU.
    """
    if is_recorded(mosaic) or mosaic.device.type != "cpu":
        whole = pad(mosaic, (margin, margin), (margin, margin), "mirror")
        return develop(whole, [None] * count)
    _let_malloc_keep_memory()
    batch, _, height, width = mosaic.shape
    results = [_empty((batch, 3, height, width), mosaic) for _ in range(count)]
    for images, rows in _strips(batch, height, width):
        strip = _strip_with_surroundings(mosaic, images, rows, margin)
        develop(strip, [result[images, :, rows] for result in results])
    return results


class _Strips(torch.autograd.Function):
    """`develop_in_strips` with gradients for parameters; each strip is developed again for them.

    That costs a second forward pass and saves far more: nothing but the mosaic is kept, and the memory of
    one strip serves all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mosaic: Tensor,
        margin: int,
        develop: Callable[..., list[Tensor]],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.margin, ctx.develop = margin, develop
        ctx.save_for_backward(mosaic, *parameters)
        return _develop_with(mosaic, margin, develop, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mosaic, *parameters = ctx.saved_tensors
        leaves = [p.detach().requires_grad_() for p in parameters]
        totals = [torch.zeros_like(p) for p in parameters]
        for images, rows in _strips(mosaic.shape[0], *mosaic.shape[-2:]):
            strip = _strip_with_surroundings(mosaic, images, rows, ctx.margin)
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                (image,) = ctx.develop(strip, [None], *leaves)
            parts = torch.autograd.grad(image, leaves, grad[images, :, rows])
            for total, part in zip(totals, parts, strict=True):
                total.add_(part)
        return None, None, None, *totals


def develop_with_parameters(
    mosaic: Tensor, margin: int, develop: Callable[..., list[Tensor]], *parameters: Tensor
) -> Tensor:
    """Develop a batch of mosaics by parameters that may be learned; gradients are of first order.

    Args:
        mosaic: (B, 1, H, W).
        margin: see `develop_in_strips`.
        develop: as `Develop`, for one picture; ``parameters`` follow its arguments.
        *parameters: tensors; all that ``develop`` depends on besides the mosaic.
    """
    learned = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    if learned and not is_recorded(mosaic) and mosaic.device.type == "cpu":
        return _Strips.apply(mosaic, margin, develop, *parameters)
    return _develop_with(mosaic, margin, develop, parameters)


def _develop_with(
    mosaic: Tensor, margin: int, develop: Callable[..., list[Tensor]], parameters: Sequence[Tensor]
) -> Tensor:
    return develop_in_strips(mosaic, margin, 1, lambda *strip: develop(*strip, *parameters))[0]
