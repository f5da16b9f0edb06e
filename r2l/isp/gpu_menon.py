"""Menon's demosaicing on a GPU in three passes, as kernels of Triton; see `r2l.isp.gpu_kernels`.

The first brings a frame and its mirror image around it into order, levels included: red and blue sites in
one plane, greens in another, each half as wide, so that what a warp reads lies side by side. The second
writes, of each site, the difference to green along the direction chosen, and the direction. The third
computes the colours from that. What neighbours compute alike is computed again by each: a GPU has more time
for that than for memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r2l.isp.functional import on_device
from r2l.isp.gpu_kernels import Weights, as_pairs, block, joined, launch


@triton.jit
def _mirrored(place, length, margin):
    """Return where the sample is that stands at a place, ``margin`` or less beyond the frame."""
    period = 2 * (length - 1)
    place = (place + margin * period) % period
    return tl.minimum(place, period - place)


@triton.jit
def _menon_sites(
    raw, raw_frame, raw_row, raw_height, raw_width, margin, weight, bias, sites, greens, phase, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the planes of frames, with a margin of their mirror image; each row has a site in each pair."""
    frame, row, column = block(height, width, ROWS, COLUMNS)
    line = raw + frame * raw_frame + _mirrored(row - margin, raw_height, margin) * raw_row
    left = tl.load(line + _mirrored(2 * column - margin, raw_width, margin))
    right = tl.load(line + _mirrored(2 * column + 1 - margin, raw_width, margin))
    if weight is not None:
        position = 2 * (row & 1)
        left = left * tl.load(weight + 5 * position) + tl.load(bias + position)
        right = right * tl.load(weight + 5 * position + 5) + tl.load(bias + position + 1)
    o = (row + phase) & 1
    place = (frame * height + row) * width + column
    tl.store(sites + place, tl.where(o == 1, right, left))
    tl.store(greens + place, tl.where(o == 1, left, right))


@triton.jit
def _sample(planes, o, row, line: tl.constexpr, step: tl.constexpr, DOWN: tl.constexpr):
    """Load what is ``step`` samples along and ``line`` lines across from sites: along a row, or down.

    ``planes`` points to their pairs, in that of sites and that of greens; ``o`` tells which are right ones.
    """
    down: tl.constexpr = step if DOWN else line
    right: tl.constexpr = line if DOWN else step
    place = planes[(down + right) % 2] + down * row + right // 2
    if right % 2:
        place += o
    return tl.load(place)


@triton.jit
def _difference(planes, o, row, line: tl.constexpr, step: tl.constexpr, DOWN: tl.constexpr):
    """Return red or blue less green, four times, as interpolated along a line, at a place of `_sample`."""
    # No names for the steps: what has one is no constant any more, and if negative is divided otherwise.
    beside = _sample(planes, o, row, line, step - 1, DOWN) + _sample(planes, o, row, line, step + 1, DOWN)
    next_own = _sample(planes, o, row, line, step - 2, DOWN) + _sample(planes, o, row, line, step + 2, DOWN)
    return next_own + 2 * (_sample(planes, o, row, line, step, DOWN) - beside)


@triton.jit
def _gradient(planes, o, row, line: tl.constexpr, step: tl.constexpr, DOWN: tl.constexpr):
    """Return how much the difference changes to the next one along a line."""
    here = _difference(planes, o, row, line, step, DOWN)
    return tl.abs(here - _difference(planes, o, row, line, step + 2, DOWN))


@triton.jit
def _activity(planes, o, row, DOWN: tl.constexpr):
    """Return the difference of sites along a line, and the sum of the differences' gradients around them."""
    total = 3 * (_gradient(planes, o, row, 0, -2, DOWN) + _gradient(planes, o, row, 0, 0, DOWN))
    for side in tl.static_range(-1, 2, 2):
        total += _gradient(planes, o, row, 2 * side, -2, DOWN)
        total += _gradient(planes, o, row, 2 * side, 0, DOWN)
        total += _gradient(planes, o, row, side, -1, DOWN)
    return _difference(planes, o, row, 0, 0, DOWN), total


@triton.jit
def _menon_directions(
    sites, greens, difference, horizontal, phase, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write of each red or blue site the difference to green, four times, and whether it is along the row.

    ``height`` and ``width`` are those of the planes, but for 4 rows and 2 pairs on each side.
    """
    frame, row, column = block(height, width, ROWS, COLUMNS)
    half = width + 4
    place = (frame * (height + 8) + row + 4) * half + column + 2
    o = (row + phase) & 1
    planes = sites + place, greens + place
    across, in_row = _activity(planes, o, half, DOWN=False)
    down, in_column = _activity(planes, o, half, DOWN=True)
    chosen = in_column >= in_row
    tl.store(difference + place, tl.where(chosen, across, down))
    tl.store(horizontal + place, chosen.to(tl.int8))


@triton.jit
def _smoothed(difference, horizontal, place, row):
    """Return differences smoothed along their directions, 24 times, and with three unsmoothed ones more."""
    step = tl.where(tl.load(horizontal + place) != 0, 1, 2 * row)
    own = tl.load(difference + place)
    smooth = tl.load(difference + place - step) + tl.load(difference + place + step) + 4 * own
    return smooth, smooth + 3 * own


@triton.jit
def _menon_colours(
    sites, greens, difference, horizontal, phase, red_phase, matrix, out, height, width, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Write mixed colours, in pairs, from what `_menon_directions` wrote.

    A pair has a site, red or blue, and a green: ``o`` tells whether the site is the right one. In a colour
    difference at a site, of its own colour and the other one (144 times), the four sites around it
    count, itself, and the next of its colour on both sides along its direction.
    """
    frame, row, column = block(height, width, ROWS, COLUMNS)
    o = (row + phase) & 1
    half = width + 8
    place = (frame * (height + 16) + row + 8) * half + column + 4
    smooth, total = _smoothed(difference, horizontal, place, half)
    over, over_total = _smoothed(difference, horizontal, place - half, half)
    under, under_total = _smoothed(difference, horizontal, place + half, half)
    beyond = place + 2 * o - 1  # of the sites above and below, those that are not beside the green
    total = 2 * total - over_total - under_total
    total -= _smoothed(difference, horizontal, beyond - half, half)[1]
    total -= _smoothed(difference, horizontal, beyond + half, half)[1]
    step = tl.where(tl.load(horizontal + place) != 0, 1, 2 * half)
    total += _smoothed(difference, horizontal, place - step, half)[1]
    total += _smoothed(difference, horizontal, place + step, half)[1]
    beside = _smoothed(difference, horizontal, place + 1 - 2 * o, half)[0]
    x, green = tl.load(sites + place), tl.load(greens + place)
    other, green_there = x - total * (1 / 144), x - smooth * (1 / 24)
    own_here, other_here = green + (smooth + beside) * (1 / 48), green + (over + under) * (1 / 48)
    red_row = (row + red_phase) & 1 == 0
    size = height * width
    for c in tl.static_range(PLANES):
        red, middle, blue = tl.load(matrix + 3 * c), tl.load(matrix + 3 * c + 1), tl.load(matrix + 3 * c + 2)
        first, last = tl.where(red_row, red, blue), tl.where(red_row, blue, red)
        there = first * x + middle * green_there + last * other
        here = first * own_here + middle * green + last * other_here
        value = joined(tl.where(o == 1, here, there), tl.where(o == 1, there, here))
        tl.store(out + (frame * PLANES + c) * size + row * width + column, value)


def menon(
    raw: Tensor, phase: tuple[int, int], matrix: list[list[float]], margin: int, levels: Weights | None
) -> Tensor:
    """Demosaic a frame that goes on beyond its border as its mirror image, where it fits; mix the colours.

    Args:
        raw: (B, 1, H, W).
        phase: the rows and columns from RGGB to the layout.
        matrix: C rows of three weights.
        margin: how many pixels of the mirror image count, even.
        levels: what is done to the raw data first: a scale and an offset of each position of the tile.

    Returns:
        (B, C, H + 2 margin - 16, W + 2 margin - 16).
    """
    raw = raw if raw.stride(-1) == 1 else raw.contiguous()
    batch, _, *sides = raw.shape
    height, width = sides[0] + 2 * margin, sides[1] // 2 + margin
    sites, greens, difference = (raw.new_empty(batch, height, width) for _ in range(3))
    scales = (None, None) if levels is None else (numbers.view(torch.float32) for numbers in levels[:2])
    values = *raw.stride()[:3:2], *sides, margin, *scales, sites, greens, sum(phase)
    launch(_menon_sites, raw, (height, width), raw, *values)
    values = sites, greens, difference, torch.empty_like(difference, dtype=torch.int8), sum(phase)
    launch(_menon_directions, raw, (height - 8, width - 4), *values)
    out = raw.new_empty(batch, len(matrix), height - 16, 2 * width - 16)
    values = *values, phase[0], on_device([w for row in matrix for w in row], raw), as_pairs(out)
    launch(_menon_colours, raw, (height - 16, width - 8), *values, PLANES=len(matrix))
    return out


def menon_inside(mosaic: Tensor, phase: tuple[int, int], matrix: list[list[float]]) -> Tensor:
    """`r2l.isp.demosaic.menon_inside`; ``phase`` are the rows and columns from RGGB to the layout."""
    return menon(mosaic, phase, matrix, 0, None)
