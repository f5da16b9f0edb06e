"""What developing on a GPU costs most, as kernels of Triton: on request, `R2L_KERNELS=1`.

The plain functions stay the definition, and these are the same to the rounding of float32 (but where Menon's
two directions tie, and of finite numbers only). A GPU waits for memory: so each kernel reads a frame once,
does all that a pass can, and writes once. Two neighbours of a row travel as one number of 64 bits, a *pair*,
which a tile has one of in each of its rows; so sizes and offsets are even, and no access of a warp has gaps.
Weights lie on the device, as numbers that a kernel reads: another camera compiles nothing anew, and a CUDA
graph can hold all of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r2l.isp.filters import crop
from r2l.isp.fused import IN_GREEN

# Rows and columns of a block, of tiles or pixels, and the warps that share it: four values a thread. Products
# and sums may be fused, which is said since Triton's default is about to change.
_LAUNCH = {"ROWS": 4, "COLUMNS": 128, "num_warps": 4, "enable_fp_fusion": True}

_RED_IN_GREEN, _BLUE_IN_GREEN = (tl.constexpr(weight) for weight in IN_GREEN)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def halves(pair):
    """Return the left and the right number of pairs."""
    left = pair.to(tl.int32).to(tl.float32, bitcast=True)
    return left, (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def joined(left, right):
    """Return the pairs of two numbers each."""
    low, high = left.to(tl.uint32, bitcast=True), right.to(tl.uint32, bitcast=True)
    return ((high.to(tl.uint64) << 32) | low.to(tl.uint64)).to(tl.int64, bitcast=True)


@triton.jit
def block(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return frame, rows and columns of this program's block.

    Beyond the end rows and columns stay at the last, whose result is then written again.
    """
    across, down = (width + COLUMNS - 1) // COLUMNS, (height + ROWS - 1) // ROWS
    number = tl.program_id(0)
    row = (number // across % down) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (number % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    frame = (number // (across * down)).to(tl.int64)
    return frame, tl.minimum(row, height - 1), tl.minimum(column, width - 1)


@triton.jit
def _curve(x, exponent):
    """Return clip(x, 0, 1) ** exponent; 0 stays 0."""
    lit = tl.minimum(tl.maximum(x, _TINY), 1.0)
    return tl.where(x > _TINY, tl.exp2(tl.log2(lit) * exponent), 0.0)


@triton.jit
def _displayed(y, red, blue, exponent):
    """Bring luma and chroma together and raise R, G and B; or return all as it is, without an exponent."""
    if exponent is not None:
        green = _curve(y + _RED_IN_GREEN * red + _BLUE_IN_GREEN * blue, exponent)
        red, blue = _curve(y + red, exponent), _curve(y + blue, exponent)
        return red, green, blue
    else:
        return y, red, blue


@triton.jit
def _convolved(source, row, weight, bias, SIDE: tl.constexpr):
    """Return one plane of an affine map at the four positions of tiles.

    Args:
        source: where the first pair is that a tile looks at.
        row: pairs from one row to the next.
        weight: (SIDE, SIDE, 4), as pairs.
        bias: (4,), as pairs.
    """
    zero = tl.full(source.shape, 0.0, tl.float32)
    p, q = halves(tl.load(bias))
    r, s = halves(tl.load(bias + 1))
    first, second, third, fourth = zero + p, zero + q, zero + r, zero + s
    for i in range(SIDE):
        for j in tl.static_range(SIDE // 2):
            samples = halves(tl.load(source + i * row + j))
            for k in tl.static_range(2):
                tap = weight + (i * SIDE + 2 * j + k) * 2
                p, q = halves(tl.load(tap))
                r, s = halves(tl.load(tap + 1))
                first += p * samples[k]
                second += q * samples[k]
                third += r * samples[k]
                fourth += s * samples[k]
    return first, second, third, fourth


@triton.jit
def _affine(
    source, source_frame, source_row, chroma, chroma_frame, chroma_plane, chroma_row, weight, bias, exponent,
    out, height, width, SIDE: tl.constexpr, NEAR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write an affine map of tiles, all in pairs: of a mosaic, luma and two of chroma; of luma, luma.

    ``SIDE`` is what luma looks at, ``NEAR`` what chroma does, 0 where it is there already, or not wanted.
    """
    frame, row, column = block(height, width, ROWS, COLUMNS)
    looked = source + frame * source_frame + 2 * row * source_row + column
    y = _convolved(looked, source_row, weight, bias, SIDE)
    red, blue = y, y
    if NEAR > 0:
        looked += (SIDE - NEAR) // 2 * source_row + (SIDE - NEAR) // 4
        weight += 2 * SIDE * SIDE
        red = _convolved(looked, source_row, weight, bias + 2, NEAR)
        blue = _convolved(looked, source_row, weight + 2 * NEAR * NEAR, bias + 4, NEAR)
    elif chroma is not None:
        place = chroma + frame * chroma_frame + 2 * row * chroma_row + column
        upper, lower = halves(tl.load(place)), halves(tl.load(place + chroma_row))
        red = upper[0], upper[1], lower[0], lower[1]
        place += chroma_plane
        upper, lower = halves(tl.load(place)), halves(tl.load(place + chroma_row))
        blue = upper[0], upper[1], lower[0], lower[1]
    planes: tl.constexpr = 1 if NEAR == 0 and chroma is None else 3
    size = 2 * height * width
    place = out + frame * planes * size + 2 * row * width + column
    for i in tl.static_range(2):
        left = _displayed(y[2 * i], red[2 * i], blue[2 * i], exponent)
        right = _displayed(y[2 * i + 1], red[2 * i + 1], blue[2 * i + 1], exponent)
        for c in tl.static_range(planes):
            tl.store(place + c * size + i * width, joined(left[c], right[c]))


@triton.jit
def _median_of_three(a, b, c):
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))


@triton.jit
def _sorted_column(x, row):
    """Return the smallest, the middle and the largest of three samples below each other."""
    above, centre, below = tl.load(x), tl.load(x + row), tl.load(x + 2 * row)
    most = tl.maximum(above, centre)
    least, middle = tl.minimum(above, centre), tl.minimum(most, below)
    return tl.minimum(least, middle), tl.maximum(least, middle), tl.maximum(most, below)


@triton.jit
def _median(
    y, y_frame, y_row, chroma, chroma_frame, chroma_plane, chroma_row, exponent, out, height, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the median of 3 x 3 pixels of luma, with chroma if there is an exponent, for display."""
    frame, row, column = block(height, width, ROWS, COLUMNS)
    corner = y + frame * y_frame + row * y_row + column
    low, mid, high = _sorted_column(corner, y_row)
    more_low, more_mid, more_high = _sorted_column(corner + 1, y_row)
    last_low, last_mid, last_high = _sorted_column(corner + 2, y_row)
    median = _median_of_three(
        tl.maximum(tl.maximum(low, more_low), last_low),
        _median_of_three(mid, more_mid, last_mid),
        tl.minimum(tl.minimum(high, more_high), last_high),
    )
    size = height * width
    if exponent is None:
        tl.store(out + frame * size + row * width + column, median)
    else:
        place = chroma + frame * chroma_frame + row * chroma_row + column
        image = _displayed(median, tl.load(place), tl.load(place + chroma_plane), exponent)
        for c in tl.static_range(3):
            tl.store(out + (3 * frame + c) * size + row * width + column, image[c])


def launch(
    kernel: triton.JITFunction, like: Tensor, size: tuple[int, int], *values: Any, **sides: int
) -> None:
    """Launch a kernel where a batch lies, with values, and the size of what each frame's blocks cover."""
    height, width = size
    blocks = triton.cdiv(height, _LAUNCH["ROWS"]) * triton.cdiv(width, _LAUNCH["COLUMNS"])
    with torch.cuda.device_of(like):
        kernel[(like.shape[0] * blocks,)](*values, height, width, **sides, **_LAUNCH)


def as_pairs(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as pairs (B, C, H, W/2); copied where a row begins in the middle of one."""
    whole = x.stride(-1) == 1 and x.data_ptr() % 8 == 0 and not any(step % 2 for step in x.stride()[:-1])
    return (x if whole else x.clone(memory_format=torch.contiguous_format)).view(torch.int64)


class Weights(NamedTuple):
    """An affine map of tiles, on a GPU: what a kernel reads, and how wide luma and chroma look at it."""

    weight: Tensor
    bias: Tensor
    side: int
    near: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, farther: int, device: torch.device) -> Weights:
        """Arrange what `r2l.isp.fused.measure_affine` returns, of one plane or of luma and two of chroma.

        Args:
            weight: (4 C, 1, k, k), of an even radius.
            bias: (4 C,).
            farther: how many pixels farther luma looks than chroma, even.
            device: where to.
        """
        y, *chroma = weight[:, 0].unflatten(0, (-1, 4))
        taps = [plane.permute(1, 2, 0).flatten() for plane in (y, *(crop(c, farther) for c in chroma))]
        weights, biases = (numbers.to(device, torch.float32) for numbers in (torch.cat(taps), bias))
        side = weight.shape[-1]
        near = side - 2 * farther if chroma else 0
        return cls(weights.view(torch.int64), biases.view(torch.int64), side, near)


def affine(
    source: Tensor, weights: Weights, chroma: Tensor | None = None, gamma: float | None = None
) -> Tensor:
    """Apply an affine map where it fits, with a gamma for display.

    Args:
        source: (B, 1, H, W), a mosaic, or luma.
        weights: of luma and chroma, from a mosaic, or of luma alone.
        chroma: (B, 2, h, w), of the result's size: where weights are of luma, and there is a gamma.
        gamma: of the curve.

    Returns:
        (B, 3, h, w), linear luma and chroma, or in display domain; or (B, 1, h, w), luma without gamma.
    """
    batch, _, *sides = source.shape
    height, width = (side - weights.side + 2 for side in sides)
    chroma = as_pairs(chroma) if chroma is not None and gamma is not None else None
    out = source.new_empty(batch, 1 if chroma is None and not weights.near else 3, height, width)
    pairs, exponent = as_pairs(source), gamma and 1 / gamma
    steps = (0, 0, 0) if chroma is None else chroma.stride()[:3]  # from a frame, plane and row to the next
    values = *steps, weights.weight, weights.bias, exponent, as_pairs(out)
    looked = {"SIDE": weights.side, "NEAR": weights.near}
    launch(_affine, out, (height // 2, width // 2), pairs, *pairs.stride()[:3:2], chroma, *values, **looked)
    return out


def median(y: Tensor, chroma: Tensor, gamma: float | None = None) -> Tensor:
    """`r2l.isp.filters.median3x3` where it fits, (B, 1, h, w); or with a gamma (B, 3, h, w), for display."""
    size = y.shape[2] - 2, y.shape[3] - 2
    out = y.new_empty(y.shape[0], 1 if gamma is None else 3, *size)
    values = y, *y.stride()[:3:2], chroma, *chroma.stride()[:3], gamma and 1 / gamma, out
    launch(_median, out, size, *values)
    return out
