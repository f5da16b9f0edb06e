"""What costs most in developing on a CPU, compiled by numba: on request, `R2L_KERNELS=1`.

The plain functions stay the definition; each of these is the same to the rounding of float32 (but where
Menon's two directions tie, and of finite numbers only), and called by its plain twin where nobody wants
gradients. A row of a frame stays in the nearest cache while all is done to it that torch would take an
operation, and a way through memory, for. What is compiled is kept beside this file, or in the folder of
NUMBA_CACHE_DIR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from torch import Tensor

from r2l.isp.fused import IN_GREEN


def _compiled(function: Callable) -> Callable:
    how = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **how)
    except RuntimeError:  # no folder that can be written: compiled anew by each process
        return numba.njit(function, **how)


_inlined = numba.njit(inline="always")
_TINY = np.float32(np.finfo(np.float32).tiny)


def _fitted(function: np.ufunc, low: float, high: float, degree: int) -> tuple[np.float32, ...]:
    """Return the coefficients, the highest first, of a polynomial through a function's Chebyshev nodes."""
    fit = np.polynomial.Chebyshev.interpolate(function, degree, [low, high])
    return tuple(fit.convert(kind=np.polynomial.Polynomial).coef[::-1].astype(np.float32))


# log2(1 + m) / m, even so near to 0 as no node lies, and 2 ** t: relative errors near 2e-7 and 2e-8. Of
# x ** p, which is small where the logarithm is large, that leaves an error below 1e-7.
_LOG2 = _fitted(lambda m: np.log2(1 + m) / m, 2**-0.5 - 1, 2**0.5 - 1, 7)
_EXP2 = _fitted(np.exp2, -0.5, 0.5, 6)


@_inlined
def _polynomial(coefficients, x):
    total = np.float32(0.0)
    for c in coefficients:
        total = total * x + c
    return total


@_inlined
def _power(x, exponent):
    """Return x ** exponent of a normal x in (0, 1], by the bits of its exponent and two polynomials."""
    bits = np.float32(x).view(np.int32)
    # Counted from the bits of sqrt(1/2) on, so that m lies within half an octave of 1.
    whole = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = np.int32(bits - np.int32(whole << np.int32(23))).view(np.float32) - np.float32(1.0)
    z = (np.float32(whole) + _polynomial(_LOG2, m) * m) * exponent
    octave = np.rint(z)
    scale = np.int32(np.int32(np.int32(octave) + np.int32(127)) << np.int32(23)).view(np.float32)
    return _polynomial(_EXP2, z - octave) * scale


@_inlined
def _add_taps(values, factors, source, places):
    """Add to ``values`` what starts at places of a flat ``source``, weighted: five a pass, to load less."""
    for t in range(0, factors.size, 5):
        f, g, h, k, m = factors[t : t + 5]
        first, second, third = source[places[t] :], source[places[t + 1] :], source[places[t + 2] :]
        fourth, fifth = source[places[t + 3] :], source[places[t + 4] :]
        for j in range(values.size):
            values[j] += f * first[j] + g * second[j] + h * third[j] + k * fourth[j] + m * fifth[j]


@_compiled
def _taps(kernel, places):
    """Return the weights of a kernel that are not 0 and their places, both filled up to fives."""
    chosen = np.flatnonzero(kernel)
    factors = np.zeros((chosen.size + 4) // 5 * 5, np.float32)
    found = np.zeros(factors.size, np.int64)
    for n, i in enumerate(chosen):
        factors[n], found[n] = kernel.flat[i], places.flat[i]
    return factors, found


@_compiled
def _apply_affine(mosaic, weight, bias, out):
    """Write planes (C, 2 h, 2 w); ``weight`` is (C, 2, 2, k, k), of the positions of a tile."""
    size, width = weight.shape[-1], mosaic.shape[1] // 2
    halves = np.empty((size, 2, width), np.float32)  # the rows that a tile looks at, by parity of the column
    rows, total = halves.reshape(-1), np.empty((2, out.shape[2] // 2), np.float32)
    column = np.arange(size)
    places = 2 * width * column.reshape(-1, 1) + width * (column & 1) + (column >> 1)
    taps = [_taps(kernel, places) for kernel in weight.reshape(-1, size, size)]
    for i in range(0, out.shape[1], 2):
        for a in range(size):
            even, odd, row = halves[a, 0], halves[a, 1], mosaic[i + a]
            for j in range(width):
                even[j], odd[j] = row[2 * j], row[2 * j + 1]
        for c in range(out.shape[0]):
            for y in range(2):
                for x in range(2):
                    values, (factors, places) = total[x], taps[4 * c + 2 * y + x]
                    values[:] = bias[c, y, x]
                    _add_taps(values, factors, rows, places)
                row, even, odd = out[c, i + y], total[0], total[1]
                for j in range(even.size):
                    row[2 * j], row[2 * j + 1] = even[j], odd[j]


@_compiled
def _subtract_black_level(raw, black, scale, out):
    for i in range(raw.shape[0]):
        row, mosaic, p = out[i], raw[i], 2 * (i & 1)
        for j in range(0, raw.shape[1], 2):
            row[j] = (mosaic[j] - black[p]) * scale[p]
            row[j + 1] = (mosaic[j + 1] - black[p + 1]) * scale[p + 1]


@_compiled
def _correlate(x, kernel, out):
    rows, columns = np.arange(kernel.shape[0]), np.arange(kernel.shape[1])
    factors, places = _taps(kernel, x.shape[1] * rows.reshape(-1, 1) + columns)
    for i in range(out.shape[0]):
        out[i] = 0
        _add_taps(out[i], factors, x[i:].reshape(-1), places)


@_inlined
def _median_of_three(a, b, c):
    return max(min(a, b), min(max(a, b), c))


@_compiled
def _median3x3(x, out):
    height, width = out.shape
    low, mid, high = np.empty_like(x[0]), np.empty_like(x[0]), np.empty_like(x[0])
    for i in range(height):
        above, centre, below = x[i], x[i + 1], x[i + 2]
        for j in range(width + 2):
            least, most = min(above[j], centre[j]), max(above[j], centre[j])
            middle = min(most, below[j])
            low[j], mid[j], high[j] = min(least, middle), max(least, middle), max(most, below[j])
        row = out[i]
        for j in range(width):
            row[j] = _median_of_three(
                max(max(low[j], low[j + 1]), low[j + 2]),
                _median_of_three(mid[j], mid[j + 1], mid[j + 2]),
                min(min(high[j], high[j + 1]), high[j + 2]),
            )


@_compiled
def _finish(y, y_row, chroma, chroma_row, chroma_plane, green, exponent, out, row, plane, height, width):
    """Write luma and chroma as R, G and B, to the power ``exponent``; all flat, with steps between rows."""
    black = _power(_TINY, exponent)
    for i in range(height):
        luma, first = y[i * y_row :], chroma[i * chroma_row :]
        second = chroma[i * chroma_row + chroma_plane :]
        r, g, b = out[i * row :], out[i * row + plane :], out[i * row + 2 * plane :]
        for j in range(width):
            value = luma[j] + first[j]
            r[j] = _power(min(max(value, _TINY), np.float32(1)), exponent) - black
        for j in range(width):
            value = luma[j] + green[0] * first[j] + green[1] * second[j]
            g[j] = _power(min(max(value, _TINY), np.float32(1)), exponent) - black
        for j in range(width):
            value = luma[j] + second[j]
            b[j] = _power(min(max(value, _TINY), np.float32(1)), exponent) - black


@_compiled
def _menon(mosaic, phase, matrix, out):
    """Demosaic as `r2l.isp.demosaic._menon`, whose names and equations these are; 8 pixels less on each side.

    Each row has red or blue sites, and greens beside them: both are held at half the width. ``o`` tells how
    far the sites of a row lie to the right of its greens, ``red`` whether they are red. ``phase`` are the
    rows and columns by which the layout is shifted against RGGB. All steps go down the frame together, each
    some rows behind what it needs, and so few rows are kept that a near cache holds them: row i at i & 15.
    """
    two, three, four = np.float32(2), np.float32(3), np.float32(4)
    width = mosaic.shape[1] // 2
    ring = (16, width)
    sites, greens = np.zeros(ring, np.float32), np.zeros(ring, np.float32)
    across, down = np.zeros(ring, np.float32), np.zeros(ring, np.float32)
    steps, falls = np.zeros(ring, np.float32), np.zeros(ring, np.float32)
    xg, along = np.zeros(ring, np.float32), np.zeros(ring, np.float32)
    smooth, rb = np.zeros(ring, np.float32), np.zeros(ring, np.float32)
    green_there, other_there = np.zeros(width, np.float32), np.zeros(width, np.float32)
    own_here, other_here = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for n in range(mosaic.shape[0]):
        o, row, x, green = (n + phase[0] + phase[1]) & 1, mosaic[n], sites[n & 15], greens[n & 15]
        for j in range(width):
            x[j], green[j] = row[2 * j + o], row[2 * j + 1 - o]
        # Red or blue less green, four times, as interpolated along the row and the column; its gradients.
        i = n - 2
        x, green, first, second = sites[i & 15], greens[i & 15], across[i & 15], down[i & 15]
        up, below = sites[(i - 2) & 15], sites[n & 15]
        over, under = greens[(i - 1) & 15], greens[(i + 1) & 15]
        for j in range(1, width - 1):
            own = two * x[j]
            first[j] = x[j - 1] + own + x[j + 1] - two * (green[j - 1 + o] + green[j + o])
            second[j] = up[j] + own + below[j] - two * (over[j] + under[j])
        step, fall, before = steps[i & 15], falls[(i - 2) & 15], down[(i - 2) & 15]
        for j in range(1, width - 2):
            step[j], fall[j] = abs(first[j] - first[j + 1]), abs(before[j] - second[j])
        i = n - 4
        one, two_up, two_down = steps[i & 15], steps[(i - 2) & 15], steps[(i + 2) & 15]
        one_up, one_down = steps[(i - 1) & 15], steps[(i + 1) & 15]
        fall, before, beside = falls[i & 15], falls[(i - 2) & 15], falls[(i - 1) & 15]
        chosen, difference, first, second = along[i & 15], xg[i & 15], across[i & 15], down[i & 15]
        for j in range(2, width - 2):
            in_row = three * (one[j] + one[j - 1]) + (two_up[j] + two_up[j - 1])
            in_row += two_down[j] + two_down[j - 1] + (one_up[j - 1 + o] + one_down[j - 1 + o])
            in_column = three * (fall[j] + before[j]) + (fall[j - 1] + before[j - 1])
            in_column += fall[j + 1] + before[j + 1] + (beside[j - 1 + o] + beside[j + o])
            chosen[j] = np.float32(1) if in_column >= in_row else np.float32(0)
            difference[j] = first[j] if in_column >= in_row else second[j]
        # Smoothed along the direction chosen (24 times), and R - B at the greens, of both (48 and 8 times).
        i = n - 6
        up, one, below = xg[(i - 2) & 15], xg[i & 15], xg[(i + 2) & 15]
        chosen, smoothed = along[i & 15], smooth[i & 15]
        for j in range(3, width - 3):
            smoothed[j] = (one[j - 1] + one[j + 1] if chosen[j] > 0 else up[j] + below[j]) + four * one[j]
        i = n - 7
        o, red = 1 - o, (i + phase[0]) & 1 == 0
        sign = np.float32(1) if red else np.float32(-1)
        up, one, below = xg[(i - 1) & 15], xg[i & 15], xg[(i + 1) & 15]
        over, smoothed, under = smooth[(i - 1) & 15], smooth[i & 15], smooth[(i + 1) & 15]
        difference = rb[i & 15]
        for j in range(3, width - 3):
            total = smoothed[j - o] + smoothed[j + 1 - o] - (over[j] + under[j])
            total += three * (one[j - o] + one[j + 1 - o] - (up[j] + below[j]))
            difference[j] = sign * total
        i = n - 8
        if i < 8:
            continue
        o, red = 1 - o, not red
        sign = np.float32(1 / 144) if red else np.float32(-1 / 144)
        x, green, chosen = sites[i & 15], greens[i & 15], along[i & 15]
        up, difference, below = rb[(i - 1) & 15], rb[i & 15], rb[(i + 1) & 15]
        over, smoothed, under = smooth[(i - 1) & 15], smooth[i & 15], smooth[(i + 1) & 15]
        for j in range(4, width - 4):
            beside = difference[j - 1 + o] + difference[j + o]
            other_there[j] = x[j] - sign * (beside if chosen[j] > 0 else up[j] + below[j])
            green_there[j] = x[j] - smoothed[j] * np.float32(1 / 24)
            own_here[j] = green[j] + (smoothed[j - o] + smoothed[j + 1 - o]) * np.float32(1 / 48)
            other_here[j] = green[j] + (over[j] + under[j]) * np.float32(1 / 48)
        for c in range(out.shape[0]):
            row, middle = out[c, i - 8], matrix[c, 1]
            own, other = (matrix[c, 0], matrix[c, 2]) if red else (matrix[c, 2], matrix[c, 0])
            for j in range(4, width - 4):
                there = own * x[j] + middle * green_there[j] + other * other_there[j]
                here = own * own_here[j] + middle * green[j] + other * other_here[j]
                row[2 * j - 8] = here if o else there
                row[2 * j - 7] = there if o else here


def _span(x: Tensor) -> np.ndarray:
    """Return all numbers from the first to the last of a view in one row."""
    length = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((length,), (1,)).numpy()


def _of_each_plane(kernel: Callable[..., None], x: Tensor, shape: Sequence[int], *values: Any) -> Tensor:
    """Return what a kernel, given some values, makes of each plane of ``x`` (B, C, H, W): (B, C, *shape)."""
    result = x.new_empty(*x.shape[:2], *shape)
    for plane, made in zip(x.flatten(0, 1), result.flatten(0, 1).numpy(), strict=True):
        kernel(plane.contiguous().numpy(), *values, made)
    return result


def apply_affine(mosaic: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`r2l.isp.fused.apply_affine`."""
    size, (height, width) = weight.shape[-1], mosaic.shape[2:]
    weights, biases = weight.view(-1, 2, 2, size, size).numpy(), bias.view(-1, 2, 2).numpy()
    shape = len(weights), height - size + 2, width - size + 2
    return _of_each_plane(_apply_affine, mosaic, shape, weights, biases)[:, 0]


def subtract_black_level(raw: Tensor, black: Tensor, white_level: float) -> Tensor:
    """`r2l.isp.functional.subtract_black_level`, black (4,)."""
    levels = black.detach().numpy()
    scale = 1 / (np.float32(white_level) - levels)
    return _of_each_plane(_subtract_black_level, raw, raw.shape[2:], levels, scale)


def correlate(x: Tensor, kernel: list[list[float]]) -> Tensor:
    """`r2l.isp.filters.correlate` where it fits."""
    weights = np.array(kernel, np.float32)
    shape = [side - reach + 1 for side, reach in zip(x.shape[2:], weights.shape, strict=True)]
    return _of_each_plane(_correlate, x, shape, weights)


def median3x3(x: Tensor) -> Tensor:
    """`r2l.isp.filters.median3x3` where it fits."""
    return _of_each_plane(_median3x3, x, [side - 2 for side in x.shape[2:]])


def menon_inside(mosaic: Tensor, phase: tuple[int, int], matrix: list[list[float]]) -> Tensor:
    """`r2l.isp.demosaic.menon_inside`; ``phase`` are the rows and columns from RGGB to the layout."""
    shape = len(matrix), *(side - 16 for side in mosaic.shape[2:])
    return _of_each_plane(_menon, mosaic, shape, phase, np.array(matrix, np.float32))[:, 0]


def finish(y: Tensor, chroma: Tensor, gamma: float, place: Tensor) -> Tensor:
    """`r2l.isp.fused.together`, clip and gamma, into ``place`` (B, 3, H, W)."""
    weights, exponent = np.array(IN_GREEN, np.float32), np.float32(1 / gamma)
    for luma, colours, image in zip(y[:, 0], chroma, place, strict=True):
        steps = luma.stride(0), _span(colours), colours.stride(1), colours.stride(0), weights, exponent
        _finish(_span(luma), *steps, _span(image), image.stride(1), image.stride(0), *luma.shape)
    return place
