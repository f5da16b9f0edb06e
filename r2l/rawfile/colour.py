"""What a DNG says about colours: from its tags to gains and a colour matrix.

Source: DNG specification 1.6, chapter "Mapping Camera Color Space to CIE XYZ Space".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1): an output of (1, 1, 1) is the white of D65.
XYZ_FROM_SRGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# Correlated colour temperatures in kelvin of the light sources of Exif.
_KELVIN = {1: 5500, 2: 4150, 3: 2850, 4: 5500, 9: 5500, 10: 6500, 11: 7500, 12: 6430, 13: 5000}
_KELVIN |= {14: 4150, 15: 3450, 17: 2856, 18: 4874, 19: 6774, 20: 5503, 21: 6504, 22: 7504}
_KELVIN |= {23: 5003, 24: 3200}
_D50_XY, _D65_XY = (0.3457, 0.3585), (0.3127, 0.3290)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
# The search for the white that was shot moves less than this, or gives up.
_ENOUGH, _MOST_STEPS = 1e-7, 30

#: A white (x, y) to the matrix that takes CIE XYZ to camera colours under it.
_CameraFromXYZ = Callable[[tuple[float, float]], np.ndarray]


def colours(
    tags: Mapping[int, Any],
) -> tuple[tuple[float, float, float], tuple[tuple[float, ...], ...]]:
    """Work out gains and matrix, as `Camera` has them, from the tags of a DNG's first page.

    >>> gains, matrix = colours({50728: (0.5, 1.0, 0.625)})
    >>> gains
    (2.0, 1.0, 1.6)

    Args:
        tags: by number, rationals as floats.

    Returns:
        Gains relative to green, of the white that was shot, of daylight (D65) where no tag says it; and
        the matrix from balanced camera colours to linear sRGB, rows that sum to 1, the identity where no
        tag says it.
    """
    neutral = _three(tags, 50728)
    # Some files have zeros where nothing was recorded.
    neutral = None if neutral is None or not (neutral > 0).all() else neutral
    camera_from_xyz = _camera_from_xyz(tags)
    if camera_from_xyz is None:
        return _gains(neutral), _IDENTITY
    if neutral is None:
        white = tags.get(50729)
        xy = tuple(map(float, white)) if white is not None and len(white) == 2 else _D65_XY
        neutral = camera_from_xyz(xy) @ _xyz(xy)
    return _gains(neutral), _srgb_matrix(camera_from_xyz(_white_of(neutral, camera_from_xyz)))


def _three(tags: Mapping[int, Any], code: int) -> np.ndarray | None:
    values = np.ravel(np.asarray(tags.get(code, ()), np.float64))
    return values if len(values) == 3 and np.isfinite(values).all() else None


def _matrix(tags: Mapping[int, Any], code: int) -> np.ndarray | None:
    values = np.ravel(np.asarray(tags.get(code, ()), np.float64))
    return values.reshape(3, 3) if len(values) == 9 and np.isfinite(values).all() else None


def _camera_from_xyz(tags: Mapping[int, Any]) -> _CameraFromXYZ | None:
    """Return the matrix as a function of the white: that of one illuminant, or between those of two."""
    balance = _three(tags, 50727)
    analog = np.eye(3) if balance is None else np.diag(balance)
    calibrated = []
    for number, kelvin_code in ((0, 50778), (1, 50779)):
        matrix, calibration = _matrix(tags, 50721 + number), _matrix(tags, 50723 + number)
        if matrix is not None:
            own = np.eye(3) if calibration is None else calibration
            calibrated.append((_KELVIN.get(tags.get(kelvin_code)), analog @ own @ matrix))
    if not calibrated:
        return None
    if len(calibrated) == 1 or None in (calibrated[0][0], calibrated[1][0]):
        return lambda white: calibrated[0][1]
    (first, a), (second, b) = calibrated
    if first == second:
        return lambda white: a

    def between(white: tuple[float, float]) -> np.ndarray:
        # Linear in the reciprocal temperature, and no further than the two.
        share = (1 / _kelvin(white) - 1 / second) / (1 / first - 1 / second)
        share = min(max(share, 0.0), 1.0)
        return share * a + (1 - share) * b

    return between


def _kelvin(white: tuple[float, float]) -> float:
    """Return the correlated colour temperature of a white (x, y) in kelvin.

    >>> round(_kelvin((0.3127, 0.3290)), -2)
    6500.0

    Source: McCamy, "Correlated color temperature as an explicit function of chromaticity coordinates",
    Color Research & Application 17(2), 1992.
    """
    n = (white[0] - 0.3320) / (0.1858 - white[1])
    return float(np.clip(449 * n**3 + 3525 * n**2 + 6823.3 * n + 5520.33, 1000, 25000))


def _xyz(white: tuple[float, float]) -> np.ndarray:
    x, y = white
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _white_of(neutral: np.ndarray, camera_from_xyz: _CameraFromXYZ) -> tuple[float, float]:
    """Return the white (x, y) that a camera sees as ``neutral``; its matrix depends on it in turn."""
    white = _D50_XY
    for _ in range(_MOST_STEPS):
        xyz = np.linalg.lstsq(camera_from_xyz(white), neutral, rcond=None)[0]
        total = xyz.sum()
        if not (np.isfinite(xyz).all() and total > 0 and xyz[1] > 0):
            return _D50_XY
        new = (float(xyz[0] / total), float(xyz[1] / total))
        if abs(new[0] - white[0]) + abs(new[1] - white[1]) < _ENOUGH:
            break
        white = new
    return white


def _gains(neutral: np.ndarray | None) -> tuple[float, float, float]:
    if neutral is None or not (neutral > 0).all():
        return (1.0, 1.0, 1.0)
    return (float(neutral[1] / neutral[0]), 1.0, float(neutral[1] / neutral[2]))


def _srgb_matrix(camera_from_xyz: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Return balanced camera colours to linear sRGB: white stays white, as LibRaw has it too."""
    camera_from_srgb = camera_from_xyz @ XYZ_FROM_SRGB
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = camera_from_srgb / camera_from_srgb.sum(axis=1, keepdims=True)
    if not np.isfinite(balanced).all() or np.linalg.matrix_rank(balanced) < 3:
        return _IDENTITY
    return tuple(map(tuple, np.linalg.inv(balanced).tolist()))
