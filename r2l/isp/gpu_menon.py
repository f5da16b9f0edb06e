"""Menon's demosaicing on a GPU in two passes, as kernels of Triton; see `r2l.isp.gpu_kernels`.

The first writes, of each red or blue site, the difference to green along the direction chosen: half a number
a pixel, and a direction. The second computes the colours from that. What neighbours compute alike is
computed again by each: a GPU has more time for that than for memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r2l.isp.functional import on_device
from r2l.isp.gpu_kernels import as_pairs, block, halves, joined, launch


@triton.jit
def _sample(x, row, line: tl.constexpr, step: tl.constexpr, DOWN: tl.constexpr):
    """Load what is ``step`` samples along and ``line`` lines across from ``x``: along a row, or down."""
    if DOWN:
        return tl.load(x + step * row + line)
    else:
        return tl.load(x + line * row + step)


@triton.jit
def _difference(x, row, line: tl.constexpr, step: tl.constexpr, DOWN: tl.constexpr):
    """Return red or blue less green, four times, as interpolated along a line, at a place of `_sample`."""
    beside = _sample(x, row, line, step - 1, DOWN) + _sample(x, row, line, step + 1, DOWN)
    next_own = _sample(x, row, line, step - 2, DOWN) + _sample(x, row, line, step + 2, DOWN)
    return next_own + 2 * (_sample(x, row, line, step, DOWN) - beside)


@triton.jit
def _activity(x, row, DOWN: tl.constexpr):
    """Return the difference of sites along a line, and the sum of the differences' gradients around them."""
    here = _difference(x, row, 0, 0, DOWN)
    total = tl.abs(_difference(x, row, 0, -2, DOWN) - here) + tl.abs(here - _difference(x, row, 0, 2, DOWN))
    total *= 3
    for side in tl.static_range(-1, 2, 2):
        middle = _difference(x, row, 2 * side, 0, DOWN)
        total += tl.abs(_difference(x, row, 2 * side, -2, DOWN) - middle)
        total += tl.abs(middle - _difference(x, row, 2 * side, 2, DOWN))
        total += tl.abs(_difference(x, row, side, -1, DOWN) - _difference(x, row, side, 1, DOWN))
    return here, total


@triton.jit
def _menon_directions(
    mosaic, mosaic_frame, mosaic_row, difference, horizontal, phase, height, width, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write of each red or blue site the difference to green, four times, and whether it is along the row.

    ``height`` and ``width`` are those of the planes that are written, but 4 sites, 2 in a row, of a margin.
    """
    frame, row, column = block(height, width, ROWS, COLUMNS)
    row, column = row + 4, column + 2
    site = mosaic + frame * mosaic_frame + row * mosaic_row + 2 * column + ((row + phase) & 1)
    across, in_row = _activity(site, mosaic_row, DOWN=False)
    down, in_column = _activity(site, mosaic_row, DOWN=True)
    place = (frame * (height + 8) + row) * (width + 4) + column
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
    mosaic, mosaic_frame, mosaic_row, difference, horizontal, phase, red_phase, matrix, out, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Write three mixed colours, in pairs, from what `_menon_directions` wrote.

    A pair has a site, red or blue, and a green: ``o`` tells whether the site is the right one. In a colour
    difference at a site, of its own colour and the other one (144 times), the four sites around it
    count, itself, and the next of its colour on both sides along its direction.
    """
    frame, row, column = block(height, width, ROWS, COLUMNS)
    pair = mosaic + frame * mosaic_frame + (row + 8) * mosaic_row + column + 4
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
    left, right = halves(tl.load(pair))
    x, green = tl.where(o == 1, right, left), tl.where(o == 1, left, right)
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


def menon_inside(mosaic: Tensor, phase: tuple[int, int], matrix: list[list[float]]) -> Tensor:
    """`r2l.isp.demosaic.menon_inside`; ``phase`` are the rows and columns from RGGB to the layout."""
    batch, _, height, width = mosaic.shape
    pairs = as_pairs(mosaic)
    samples = pairs.view(torch.float32)
    difference = samples.new_empty(batch, height, width // 2)
    between = difference, torch.empty_like(difference, dtype=torch.int8), sum(phase)
    size = height - 8, width // 2 - 4
    launch(_menon_directions, samples, size, samples, *samples.stride()[:3:2], *between)
    out = samples.new_empty(batch, len(matrix), height - 16, width - 16)
    values = phase[0], on_device([w for row in matrix for w in row], samples), as_pairs(out)
    size = height - 16, width // 2 - 8
    launch(_menon_colours, pairs, size, pairs, *pairs.stride()[:3:2], *between, *values, PLANES=len(matrix))
    return out
