"""Corrections of lens and sensor that a DNG carries: its opcode lists, read and applied on request.

Applied are the opcodes that move no pixel: bad pixels of the stored samples (list 1), and gains of the
linear mosaic (lists 2 and 3: GainMap, FixVignetteRadial). Those of list 3 are meant for the demosaiced
picture; a smooth gain does the same to a mosaic, each site by its own colour. The others (distortion,
tables, polynomials) are named in a warning, not applied.

Names, numbers and layout are those of the DNG specification, version 1.7, chapter 7: big-endian, whatever
the order of the file.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r2l.camera import Camera
from r2l.rawfile.dng_picture import RawPicture
from r2l.rawfile.frame import FETCH_AGAIN, RawFileError, warn_once

_LISTS = {1: 51008, 2: 51009, 3: 51022}
_NAMES = (
    *("NOP", "WarpRectilinear", "WarpFisheye", "FixVignetteRadial", "FixBadPixelsConstant"),
    *("FixBadPixelsList", "TrimBounds", "MapTable", "MapPolynomial", "GainMap", "DeltaPerRow"),
    *("DeltaPerColumn", "ScalePerRow", "ScalePerColumn", "WarpRectilinear2"),
)
_VIGNETTE, _BAD_CONSTANT, _BAD_LIST, _MAP_POLYNOMIAL, _GAIN_MAP = 3, 4, 5, 8, 9
#: In which lists an opcode is applied.
_APPLIED = {_VIGNETTE: (2, 3), _BAD_CONSTANT: (1,), _BAD_LIST: (1,), _GAIN_MAP: (2, 3)}
# Cameras write a handful, and each may go over the whole frame.
_MOST = 32
# A larger part of a frame is no bad pixels, and could not be told from their neighbours.
_MOST_BAD = 0.1


class _Opcode(NamedTuple):
    list: int
    number: int
    parameters: bytes


def apply_gains(picture: RawPicture, mosaic: np.ndarray, camera: Camera) -> np.ndarray:
    """Multiply the light of a mosaic by the gains of lists 2 and 3; what they saturate is clipped.

    ``mosaic``, float32 (H, W), raw domain, is the active area without an odd row or column. Raises a
    RawFileError for damaged opcodes, or gains below 0.
    """
    opcodes = [o for o in _opcodes(picture, 2, 3) if o.number in (_VIGNETTE, _GAIN_MAP)]
    if not opcodes:
        return mosaic
    top, left, bottom, right = picture.area
    full, (height, width) = (bottom - top, right - left), mosaic.shape
    colours = _spread(np.uint8(camera.cfa.value), full)
    gain = np.ones(full, np.float32)
    with np.errstate(all="ignore"):  # what damaged numbers give is refused below
        for opcode in opcodes:
            if opcode.number == _VIGNETTE:
                gain *= _radial_gain(picture, opcode, full)
            else:
                _multiply_gain_map(picture, opcode, gain, None if opcode.list == 2 else colours)
    if not (np.isfinite(gain).all() and gain.min() >= 0):
        raise _damaged(picture, "gains that are negative or no numbers")
    black = _spread(np.float32(camera.black_level), mosaic.shape)
    white = np.maximum(mosaic, np.float32(camera.white_level))  # what was beyond it stays
    return np.clip(black + (mosaic - black) * gain[:height, :width], 0, white)


def _spread(tile: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return four values, by position of the tile, over a mosaic (H, W)."""
    return np.tile(tile.reshape(2, 2), (shape[0] // 2 + 1, shape[1] // 2 + 1))[: shape[0], : shape[1]]


def fix_bad_pixels(picture: RawPicture, samples: np.ndarray) -> np.ndarray:
    """Replace what list 1 calls bad in samples (H, W), as stored, linearized.

    By the mean of good neighbours of the same colour, else the nearest good one. Raises a RawFileError for
    damaged opcodes, pixels outside the picture, or too many of them.
    """
    bad = np.zeros(samples.shape, bool)
    for opcode in _opcodes(picture, 1):
        if opcode.number == _BAD_CONSTANT:
            value, _ = _unpack(picture, ">II", opcode.parameters)
            table = picture.linearization
            bad |= samples == (value if table is None else table[min(value, len(table) - 1)])
        elif opcode.number == _BAD_LIST:
            bad |= _listed(picture, opcode.parameters)
    if not bad.any():
        return samples
    if bad.mean() > _MOST_BAD:
        raise _damaged(picture, f"{bad.mean():.0%} of its pixels called bad")
    fixed = samples.astype(np.float32)
    for row, column in np.ndindex(2, 2):
        _fill(fixed[row::2, column::2], bad[row::2, column::2])
    return fixed


def warn_of_rest(picture: RawPicture) -> None:
    """Warn of corrections that the file carries and nothing here applies, or that it carries none."""
    opcodes = _opcodes(picture, 1, 2, 3)
    # LibRaw applies the polynomials of lossy DNGs, which are part of their decoding.
    decoded = _MAP_POLYNOMIAL if picture.number(259, 1) == 34892 else -1
    rest = [o for o in opcodes if o.list not in _APPLIED.get(o.number, ()) and o.number != decoded]
    names = sorted({_name(o.number) for o in rest if o.number})
    if not opcodes or names:
        warn_of(picture.path, f"not applied: {', '.join(names)}" if names else "the file carries none")


def warn_of(path: Path, what: str) -> None:
    """Warn, once a folder, of what does not become of the lens corrections that were asked for."""
    warn_once(path.parent, what, f"{path}: lens corrections: {what}")


def _name(number: int) -> str:
    return _NAMES[number] if number < len(_NAMES) else f"opcode {number}"


def _damaged(picture: RawPicture, what: str) -> RawFileError:
    remedy = f"{FETCH_AGAIN}, or read it without its lens corrections"
    return picture.unusable(f"damaged lens corrections, {what}", remedy)


def _unpack(picture: RawPicture, form: str, data: bytes, offset: int = 0) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(form, data, offset)
    except struct.error:
        raise _damaged(picture, "which end too early") from None


def _opcodes(picture: RawPicture, *lists: int) -> list[_Opcode]:
    """Return the opcodes of some of the lists, in order."""
    opcodes = []
    for number in lists:
        data = picture.tags.get(_LISTS[number], bytes(4))
        if not isinstance(data, bytes):
            raise _damaged(picture, f"opcode list {number} is no bytes")
        (count,) = _unpack(picture, ">I", data)
        if count > _MOST:
            raise _damaged(picture, f"{count} opcodes in list {number}")
        start = 4
        for _ in range(count):
            code, _version, _flags, size = _unpack(picture, ">4I", data, start)
            start += 16
            if start + size > len(data):
                raise _damaged(picture, f"{_name(code)} of {size} bytes, which end too early")
            opcodes.append(_Opcode(number, code, data[start : start + size]))
            start += size
    return opcodes


def _radial_gain(picture: RawPicture, opcode: _Opcode, shape: tuple[int, int]) -> np.ndarray:
    """Return 1 + k0 r^2 + ... + k4 r^10, r 1 at the corner farthest from the optical centre."""
    *k, x, y = _unpack(picture, ">7d", opcode.parameters)
    if not (np.isfinite(k).all() and 0 <= x <= 1 and 0 <= y <= 1):
        raise _damaged(picture, f"a vignette around ({x:g}, {y:g})")
    squares = [(np.arange(n) - c * (n - 1)) ** 2 for n, c in zip(shape, (y, x), strict=True)]
    squared = (squares[0][:, None] + squares[1]) / max(squares[0].max() + squares[1].max(), 1)
    squared, gain = squared.astype(np.float32), 0.0
    for factor in reversed((1.0, *k)):
        gain = gain * squared + np.float32(factor)
    return gain


def _multiply_gain_map(
    picture: RawPicture, opcode: _Opcode, total: np.ndarray, colours: np.ndarray | None
) -> None:
    """Multiply the gains ``total`` (H, W) by a GainMap, in place; of each site's colour if ``colours``."""
    form = ">10I4dI"
    values = _unpack(picture, form, opcode.parameters)
    top, left, bottom, right, plane, planes, *pitch, rows, columns = values[:10]
    spacing, origin, depth = values[10:12], values[12:14], values[14]
    size = len(opcode.parameters) - struct.calcsize(form)
    if min(rows, columns, depth, *pitch) < 1 or rows * columns * depth * 4 != size:
        raise _damaged(picture, f"a GainMap of {rows} x {columns} x {depth} points in {size} bytes")
    if not (np.isfinite([*spacing, *origin]).all() and top <= bottom and left <= right):
        raise _damaged(picture, "a GainMap without a sensible area")
    points = np.frombuffer(opcode.parameters, ">f4", offset=struct.calcsize(form))
    points = points.reshape(rows, columns, depth).astype(np.float32)
    area = (slice(top, bottom, pitch[0]), slice(left, right, pitch[1]))
    for colour in range(3) if colours is not None else (0,):
        if plane <= colour < plane + planes:
            gain = points[..., min(colour - plane, depth - 1)]
            for axis, n in enumerate(total.shape):
                at = (np.arange(n)[area[axis]] + 0.5) / n - origin[axis]
                gain = _interpolated(gain, axis, at / spacing[axis] if spacing[axis] else 0 * at)
            total[area] *= gain if colours is None else np.where(colours[area] == colour, gain, 1)


def _interpolated(points: np.ndarray, axis: int, at: np.ndarray) -> np.ndarray:
    """Return what lies linearly between points at numbers (N,) along an axis; ends go on."""
    last = points.shape[axis] - 1
    at = np.clip(at, 0, last)
    before = at.astype(int)
    part = (at - before).astype(np.float32).reshape((-1, 1) if axis == 0 else -1)
    low, high = (points.take(np.minimum(before + k, last), axis) for k in (0, 1))
    return low * (1 - part) + high * part


def _listed(picture: RawPicture, data: bytes) -> np.ndarray:
    """Return where the points and rectangles of a FixBadPixelsList lie, (H, W)."""
    _, points, boxes = _unpack(picture, ">3I", data)
    if 12 + 8 * points + 16 * boxes != len(data):
        raise _damaged(picture, f"{points} bad points and {boxes} rectangles in {len(data)} bytes")
    numbers = np.frombuffer(data, ">u4", offset=12).astype(np.int64)
    corners = numbers[: 2 * points].reshape(-1, 2)
    corners = np.concatenate([np.hstack([corners, corners + 1]), numbers[2 * points :].reshape(-1, 4)])
    first, last = corners[:, :2], corners[:, 2:]
    if (first > last).any() or (last > picture.shape).any():
        raise _damaged(picture, "bad pixels outside the picture")
    # Counted by corners: any number of large rectangles takes one pass.
    count = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1), np.int64)
    for (y, x), sign in (((0, 1), 1), ((2, 3), 1), ((0, 3), -1), ((2, 1), -1)):
        np.add.at(count, (corners[:, y], corners[:, x]), sign)
    return count.cumsum(0).cumsum(1)[:-1, :-1] > 0


def _fill(plane: np.ndarray, bad: np.ndarray) -> None:
    """Replace the bad sites of a plane of one position of the tile, in place."""
    rows, columns = np.nonzero(bad)
    padded = np.pad(plane, 1)
    good = np.pad(~bad, 1)
    near = [(rows + y, columns + x) for y, x in np.ndindex(3, 3)]
    count = sum(good[at].astype(int) for at in near)
    mean = sum(np.where(good[at], padded[at], 0) for at in near) / np.maximum(count, 1)
    if not count.all():
        from scipy import ndimage  # slow to import, and hardly ever needed

        nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        mean = np.where(count > 0, mean, plane[tuple(nearest[:, rows, columns])])
    plane[rows, columns] = mean
