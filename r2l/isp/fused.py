"""The quick way through the linear stages, and the tile by tile way through a large frame.

Levels, a linear demosaic, white balance and colour matrix are together one affine map that repeats with
the 2x2 tile: a single small convolution of the mosaic, of stride 2, with one plane a colour and position
of the tile out. Its weights are measured: the plain stages are shown an impulse at each position of the
tile and answer with the kernel. So the plain stages stay the only definition, and gradients with respect to
their parameters pass through the weights.

Past that a frame is developed tile by tile into one result, so a frame of any size needs little more
memory than its picture. Tiles, not the operations in them, are what several threads share: an operation is
too short to wake threads for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from r2l.isp.filters import crop, is_recorded, kernels, pack, pad, unpack
from r2l.isp.functional import LUMA, luma

#: Pixels of a tile and of its rows, by trial: few enough for caches, enough for the start of operations and
#: the margins not to count. Whole rows of most frames: to write parts of them takes three times as long.
_TILE_PIXELS, _TILE_WIDTH = 262_144, 2048

_HUGE_PAGE = 2**21  # bytes

_Result = TypeVar("_Result")
#: Images of a batch, and rows and columns of each.
_Tile = tuple[slice, slice, slice]


def whole_tiles(reach: int) -> int:
    """Round a reach in pixels up to whole tiles: what a convolution over packed planes takes off."""
    return (reach + 1) // 2 * 2


def measure_affine(stages: Callable[[Tensor], Tensor], radius: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias of the convolution that equals affine ``stages``.

    Args:
        stages: mosaic (B, 1, H, W) to image (B, C, H, W), affine, the same at each tile.
        radius: how many pixels away a sample may still count.
        like: gives dtype and device.

    Returns:
        weight (4 C, 1, k, k) and bias (4 C,) for `apply_affine`, with k = 2 * radius + 2: what the values of
        a tile look at. Differentiable in whatever ``stages`` depends on.
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
    weight = F.pixel_shuffle(kernels.flip(-1, -2).transpose(0, 1), 2)
    return crop(weight, radius % 2), dark[0, :, size // 2, size // 2]


def apply_affine(mosaic: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run a convolution of `measure_affine` where it fits: H and W shrink by its radius, in whole tiles."""
    weight, bias = weight.to(mosaic), bias.to(mosaic)
    mosaic = crop(mosaic, (weight.shape[-1] // 2 + 1) % 2)
    # Of larger kernels, as of a parametrized pipeline, torch's convolution is quicker.
    if (quick := kernels(mosaic)) and weight.shape[-1] <= 6 and not is_recorded(weight):
        return quick.apply_affine(mosaic, weight, bias)
    if mosaic.device.type == "cpu" and not is_recorded(mosaic):
        # So the strides say that numbers are in the order of channels_last, which one channel leaves open.
        return unpack(F.conv2d(mosaic, weight[:, 0, ..., None].movedim(-1, 1), bias, stride=2))
    # The same on four planes: the gradient with respect to them takes half the time.
    weight = pack(weight).contiguous(memory_format=torch.channels_last)
    return unpack(F.conv2d(pack(mosaic), weight, bias))


#: What red and blue, less luma, count in green less luma.
IN_GREEN = tuple(-LUMA[c] / LUMA[1] for c in (0, 2))


def apart(rgb: Tensor) -> Tensor:
    """Take linear R, G and B (B, 3, H, W) to luma, and red and blue less luma."""
    y = luma(rgb)
    return torch.cat([y, rgb[:, ::2] - y], 1)


def together(y: Tensor, chroma: Tensor, place: Tensor | None = None) -> Tensor:
    """Return R, G and B, of which `apart` made luma and chroma; in ``place`` if there is one."""
    recorded = is_recorded(y)
    image = y.new_empty(y.shape[0], 3, *y.shape[2:]) if place is None and not recorded else place
    red_blue = torch.add(y, chroma, out=None if recorded else image[:, ::2])
    green = torch.add(y, chroma[:, :1], alpha=IN_GREEN[0], out=None if recorded else image[:, 1:2])
    green.add_(chroma[:, 1:], alpha=IN_GREEN[1])
    return torch.cat([red_blue[:, :1], green, red_blue[:, 1:]], 1) if recorded else image


def _tiles(batch: int, height: int, width: int) -> Iterator[_Tile]:
    """Cut a batch of frames into tiles of about `_TILE_PIXELS`, which begin at even numbers."""
    images = max(1, _TILE_PIXELS // (height * width))
    columns = width if images > 1 else _even_part(width, _TILE_WIDTH)
    rows = height if images > 1 else _even_part(height, max(1, _TILE_PIXELS // columns))
    for i in range(0, batch, images):
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                ends = min(i + images, batch), min(y + rows, height), min(x + columns, width)
                yield slice(i, ends[0]), slice(y, ends[1]), slice(x, ends[2])


def _even_part(side: int, most: int) -> int:
    """Return the even length of the parts, alike, that a side is cut into."""
    parts = -(-side // most)
    return -(-side // (2 * parts)) * 2


def _with_surroundings(mosaic: Tensor, tile: _Tile, margin: int) -> Tensor:
    """Take a tile with ``margin`` pixels around it; beyond the frame its mirror image."""
    images, *sides = tile
    mosaic = mosaic[images]
    if min(mosaic.shape[-2:]) <= margin:
        whole = pad(mosaic, (margin, margin), (margin, margin), "mirror")
        rows, columns = (slice(side.start, side.stop + 2 * margin) for side in sides)
        return whole[..., rows, columns]
    inside, beyond = [], []
    for side, length in zip(sides, mosaic.shape[-2:], strict=True):
        first, last = side.start - margin, side.stop + margin
        inside.append(slice(max(first, 0), min(last, length)))
        beyond.append((max(-first, 0), max(last - length, 0)))
    return pad(mosaic[..., *inside], *beyond, "mirror")


def _work_alone() -> None:
    """Have the operations of this thread wake no others."""
    torch.get_num_threads()  # A thread takes the common number at its first question, not before.
    torch.set_num_threads(1)


@cache
def _workers(count: int, process: int) -> ThreadPoolExecutor:
    """Return ``count`` threads that each `_work_alone`; a forked process needs its own."""
    pool = ThreadPoolExecutor(count, "r2l", _work_alone)
    everyone = Barrier(count)
    list(pool.map(lambda _: everyone.wait(), range(count)))
    # What a thread sets for itself is the common number too, that of threads to come.
    torch.set_num_threads(torch.get_num_threads())
    return pool


def _for_each(develop: Callable[[_Tile], _Result], mosaic: Tensor) -> list[_Result]:
    """Return ``develop(tile)`` of each tile of a batch, in order; at work on as many threads as torch has."""
    tiles = list(_tiles(mosaic.shape[0], *mosaic.shape[-2:]))
    count = torch.get_num_threads() if torch.backends.openmp.is_available() else 1
    if min(count, len(tiles)) < 2:
        return [develop(tile) for tile in tiles]
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def developed(tile: _Tile) -> _Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return develop(tile)

    return list(_workers(count, os.getpid()).map(developed, tiles))


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Allocate a result. numpy asks the kernel for huge pages, which saves most of the page faults."""
    if like.dtype not in (torch.float32, torch.float64):
        return like.new_empty(shape)
    length = math.prod(shape) * like.element_size()
    # Where they make a difference, from the first byte of one to the last.
    spare = 2 * _HUGE_PAGE if length >= 2 * _HUGE_PAGE else 0
    memory = np.empty(length + spare, np.uint8)
    start = -memory.ctypes.data % _HUGE_PAGE if spare else 0
    numbers = memory[start : start + length].view(str(like.dtype).removeprefix("torch."))
    return torch.from_numpy(numbers.reshape(shape))


@cache
def _let_malloc_keep_memory() -> None:
    """Have glibc reuse the memory of freed intermediates instead of returning it to the system.

    It decides by the largest block, up to 32 MiB, that was freed so far; this one is never touched and
    costs nothing. Without it most of the time goes into page faults.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


#: A tile (b, 1, h + 2 margin, w + 2 margin) and for each picture a place (b, 3, h, w) or None: to pictures.
Develop = Callable[..., list[Tensor]]


def develop_in_tiles(mosaic: Tensor, margin: int, count: int, develop: Develop) -> list[Tensor]:
    """Develop a batch of mosaics into ``count`` pictures each, tile by tile.

    Args:
        mosaic: (B, 1, H, W).
        margin: how many pixels around a tile ``develop`` needs, even.
        develop: see `Develop`.

    Returns:
        ``count`` images (B, 3, H, W). All is one tile where autograd follows ``mosaic``, under a
        compiler, and off the CPU.
    """
    if is_recorded(mosaic) or mosaic.device.type != "cpu":
        whole = pad(mosaic, (margin, margin), (margin, margin), "mirror")
        return develop(whole, *[None] * count)
    _let_malloc_keep_memory()
    batch, _, height, width = mosaic.shape
    results = [_empty((batch, 3, height, width), mosaic) for _ in range(count)]

    def into_place(tile: _Tile) -> None:
        images, rows, columns = tile
        places = [result[images, :, rows, columns] for result in results]
        develop(_with_surroundings(mosaic, tile, margin), *places)

    _for_each(into_place, mosaic)
    return results


class _Tiled(torch.autograd.Function):
    """`develop_in_tiles` with gradients for parameters; each tile is developed again for them.

    That costs a second forward pass and saves far more: nothing but the mosaic is kept, and the memory of
    one tile serves all.
    """

    @staticmethod
    def forward(
        ctx: Any, mosaic: Tensor, margin: int, develop: Callable[..., list[Tensor]], *parameters: Tensor
    ) -> Tensor:
        ctx.margin, ctx.develop = margin, develop
        ctx.save_for_backward(mosaic, *parameters)
        return _develop_with(mosaic, margin, develop, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mosaic, *parameters = ctx.saved_tensors

        def backward(tile: _Tile) -> Sequence[Tensor]:
            images, rows, columns = tile
            around = _with_surroundings(mosaic, tile, ctx.margin)
            leaves = [p.detach().requires_grad_() for p in parameters]
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                (image,) = ctx.develop(around, None, *leaves)
            return torch.autograd.grad(image, leaves, grad[images, :, rows, columns])

        totals = [torch.zeros_like(p) for p in parameters]
        for parts in _for_each(backward, mosaic):
            for total, part in zip(totals, parts, strict=True):
                total.add_(part)
        return None, None, None, *totals


def develop_with_parameters(
    mosaic: Tensor, margin: int, develop: Callable[..., list[Tensor]], *parameters: Tensor
) -> Tensor:
    """Develop a batch of mosaics by parameters that may be learned; gradients are of first order.

    Args:
        mosaic: (B, 1, H, W).
        margin: see `develop_in_tiles`.
        develop: as `Develop`, for one picture; ``parameters`` follow its place.
        *parameters: tensors; all that ``develop`` depends on besides the mosaic.
    """
    learned = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    if learned and not is_recorded(mosaic) and mosaic.device.type == "cpu":
        return _Tiled.apply(mosaic, margin, develop, *parameters)
    return _develop_with(mosaic, margin, develop, parameters)


def _develop_with(
    mosaic: Tensor, margin: int, develop: Callable[..., list[Tensor]], parameters: Sequence[Tensor]
) -> Tensor:
    return develop_in_tiles(mosaic, margin, 1, lambda *tile: develop(*tile, *parameters))[0]
