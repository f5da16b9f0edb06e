"""A camera as the tags of a DNG have it: colours of any, and files that hold a `Camera` exactly.

DNG can't say everything that a `Camera` can: gains must be positive, levels are whole steps, and
developers scale the colour matrix so that white stays white. So a written file holds the camera twice. Its
standard tags hold `standard_form(camera)`, which develops to the same colours in any program. Its
DNGPrivateData tag, the place for a writer's own notes, holds the camera exactly.

Source: DNG specification 1.6; of colours its chapter "Mapping Camera Color Space to CIE XYZ Space".
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from r2l.camera import Camera
from r2l.files import atomic_path

# Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1): an output of (1, 1, 1) is the white of D65.
XYZ_FROM_SRGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# Correlated colour temperatures in kelvin of the light sources of Exif.
_KELVIN = {1: 5500, 2: 4150, 3: 2850, 4: 5500, 9: 5500, 10: 6500, 11: 7500, 12: 6430, 13: 5000, 14: 4150}
_KELVIN |= {15: 3450, 17: 2856, 18: 4874, 19: 6774, 20: 5503, 21: 6504, 22: 7504, 23: 5003, 24: 3200}
_D50_XY, _D65_XY = (0.3457, 0.3585), (0.3127, 0.3290)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
# The search for the white that was shot moves less than this, or gives up.
_ENOUGH, _MOST_STEPS = 1e-7, 30

#: A white (x, y) to the matrix that takes CIE XYZ to camera colours under it.
_CameraFromXYZ = Callable[[tuple[float, float]], np.ndarray]


def colours(tags: Mapping[int, Any]) -> tuple[tuple[float, float, float], tuple[tuple[float, ...], ...]]:
    """Work out gains and matrix, as `Camera` has them, from the tags of a DNG's first page.

    Gains are relative to green, of the white that was shot, of daylight (D65) where no tag says it. The
    matrix takes balanced camera colours to linear sRGB, rows sum to 1; the identity where no tag says it.

    >>> gains, matrix = colours({50728: (0.5, 1.0, 0.625)})
    >>> gains
    (2.0, 1.0, 1.6)
    """
    neutral = _array(tags, 50728, (3,))
    # Some files have zeros where nothing was recorded.
    neutral = None if neutral is None or not (neutral > 0).all() else neutral
    camera_from_xyz = _camera_from_xyz(tags)
    if camera_from_xyz is None:
        return _gains(neutral), _IDENTITY
    if neutral is None:
        white = tags.get(50729)
        x, y = map(float, white) if white is not None and len(white) == 2 else _D65_XY
        neutral = camera_from_xyz((x, y)) @ np.array([x / y, 1.0, (1 - x - y) / y])
    return _gains(neutral), _srgb_matrix(camera_from_xyz(_white_of(neutral, camera_from_xyz)))


def _array(tags: Mapping[int, Any], code: int, shape: tuple[int, ...]) -> np.ndarray | None:
    values = np.asarray(tags.get(code, ()), np.float64)
    return values.reshape(shape) if values.size == math.prod(shape) and np.isfinite(values).all() else None


def _camera_from_xyz(tags: Mapping[int, Any]) -> _CameraFromXYZ | None:
    """Return the matrix as a function of the white: that of one illuminant, or between those of two."""
    balance = _array(tags, 50727, (3,))
    analog = np.eye(3) if balance is None else np.diag(balance)
    # The calibration of this very camera belongs to a profile of equal signature alone, none being one too.
    signatures = {_signature(tags.get(code, "")) for code in (50931, 50932)}
    calibrated = []
    for number in (0, 1):
        matrix, calibration = (_array(tags, code + number, (3, 3)) for code in (50721, 50723))
        if matrix is not None:
            own = np.eye(3) if calibration is None or len(signatures) > 1 else calibration
            calibrated.append((_KELVIN.get(tags.get(50778 + number)), analog @ own @ matrix))
    if not calibrated:
        return None
    (first, a), (second, b) = calibrated[0], calibrated[-1]
    if None in (first, second) or first == second:
        return lambda white: a

    def between(white: tuple[float, float]) -> np.ndarray:
        # Linear in the reciprocal temperature, and no further than the two.
        share = np.clip((1 / _kelvin(white) - 1 / second) / (1 / first - 1 / second), 0, 1)
        return share * a + (1 - share) * b

    return between


def _signature(value: Any) -> bytes:
    """Return a text of a DNG, of letters or bytes, without the zeros at its end."""
    text = value.encode() if isinstance(value, str) else value
    return text.rstrip(b"\0") if isinstance(text, bytes) else repr(text).encode()


def _kelvin(white: tuple[float, float]) -> float:
    """Return the correlated colour temperature of a white (x, y) in kelvin.

    Source: McCamy, "Correlated color temperature as an explicit function of chromaticity coordinates",
    Color Research & Application 17(2), 1992.
    """
    n = (white[0] - 0.3320) / (0.1858 - white[1])
    return float(np.clip(449 * n**3 + 3525 * n**2 + 6823.3 * n + 5520.33, 1000, 25000))


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
        return 1.0, 1.0, 1.0
    return float(neutral[1] / neutral[0]), 1.0, float(neutral[1] / neutral[2])


def _srgb_matrix(camera_from_xyz: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Return balanced camera colours to linear sRGB: white stays white, as LibRaw has it too."""
    camera_from_srgb = camera_from_xyz @ XYZ_FROM_SRGB
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = camera_from_srgb / camera_from_srgb.sum(axis=1, keepdims=True)
    if not np.isfinite(balanced).all() or np.linalg.matrix_rank(balanced) < 3:
        return _IDENTITY
    return tuple(map(tuple, np.linalg.inv(balanced).tolist()))


FULL_SCALE = 65535
_DNG_PRIVATE_DATA = 50740
_NOTE_OWNER = b"r2l\0"
# LibRaw takes a smaller DNG for a thumbnail and refuses it.
_MIN_DNG_SIDE = 22
# Beyond this condition number, the inverse of a colour matrix is not worth writing.
_MAX_CONDITION = 1e4


def write_dng(path: str | Path, mosaic: np.ndarray, camera: Camera) -> Path:
    """Write a mosaic as a 16-bit uncompressed CFA DNG, whole or not at all.

    `read_raw` gives back ``mosaic`` rounded to 16 bit and exactly ``camera``. Other programs find
    `standard_form` of it, which develops to the same colours.

    >>> import tempfile
    >>> from r2l.camera import DRONE
    >>> write_dng(Path(tempfile.mkdtemp()) / "photo.dng", np.full((24, 32), 0.25), DRONE).name
    'photo.dng'

    Args:
        path: the file to write, and what is returned; one that exists is replaced.
        mosaic: (H, W), even, at least 22 each (LibRaw's limit), in [0, 1], *raw* domain.
        camera: layout and calibration of ``mosaic``.

    Raises:
        ValueError: ``mosaic`` is not as described.
        OSError: the file can't be written.
    """
    path, mosaic = Path(path), np.asarray(mosaic)
    if mosaic.ndim != 2 or min(mosaic.shape) < _MIN_DNG_SIDE or any(side % 2 for side in mosaic.shape):
        wanted = f"(H, W), even and {_MIN_DNG_SIDE} or more"
        raise ValueError(f"mosaic has shape {mosaic.shape}, expected {wanted}")
    if not (mosaic.min() >= 0 and mosaic.max() <= 1):
        raise ValueError(f"mosaic spans {mosaic.min()} to {mosaic.max()}, expected [0, 1]")
    steps = np.round(mosaic.astype(np.float64) * FULL_SCALE).astype(np.uint16)
    with atomic_path(path) as partial:
        encode_dng(partial, steps, camera)
    return path


def exact_camera(tags: Any) -> Camera | None:
    """Return the camera that `write_dng` was given, from the tags of a file's first page."""
    note = tags.valueof(_DNG_PRIVATE_DATA)
    if not isinstance(note, bytes) or not note.startswith(_NOTE_OWNER):
        return None
    try:
        return Camera.from_dict(json.loads(note[len(_NOTE_OWNER) :]))
    except (ValueError, TypeError, AttributeError):
        return None


def standard_form(camera: Camera) -> Camera:
    """Return the camera as the standard tags of a 16-bit DNG can say it.

    Levels become whole steps of 1/65535. The factor of each colour channel moves between white balance and
    colour matrix until the matrix keeps white white (rows that sum to 1), and gains are given relative to
    green, so that only the overall brightness differs from ``camera``. The two negative reds of the published
    microscope cancel on the way. Where no positive gains do this (or the matrix has no inverse), the result
    has unit gains and no colour matrix.
    """
    steps = np.clip(np.round(np.multiply(camera.black_level, FULL_SCALE)), 0, FULL_SCALE - 1)
    white = np.clip(round(camera.white_level * FULL_SCALE), steps.max() + 1, FULL_SCALE)
    gains, matrix = _white_preserving(camera)
    return replace(
        camera,
        black_level=tuple(steps / FULL_SCALE),
        white_level=white / FULL_SCALE,
        white_balance=tuple(gains / gains[1]),
        colour_matrix=tuple(map(tuple, matrix)),
    )


def _white_preserving(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return gains and matrix with the camera's product, such that the matrix's rows sum to 1."""
    matrix = np.array(camera.colour_matrix)
    if np.linalg.cond(matrix) < _MAX_CONDITION:
        # The balanced camera colour that the matrix turns into white.
        white = np.linalg.inv(matrix).sum(axis=1)
        if np.all(white != 0):
            gains = np.array(camera.white_balance) / white
            if np.all(gains > 0):
                return gains, matrix * white
    return np.ones(3), np.eye(3)


def same_calibration(a: Camera, b: Camera) -> bool:
    """Say whether two cameras are the same but for their names and the rounding of DNG's tags."""
    tolerances = {"black_level": 1e-6, "white_level": 1e-6, "white_balance": 1e-4, "colour_matrix": 1e-4}
    pairs = [(getattr(a, field), getattr(b, field), tol, tol) for field, tol in tolerances.items()]
    return a.cfa is b.cfa and all(np.allclose(*pair) for pair in pairs)


def encode_dng(file: Path | BinaryIO, steps: np.ndarray, camera: Camera) -> None:
    """Write the steps (H, W) uint16 of a mosaic as `write_dng` does, to a file that may be open."""
    standard = standard_form(camera)
    neutral = 1 / np.array(standard.white_balance)
    neutral /= neutral.max()
    balanced_from_srgb = np.linalg.inv(np.array(standard.colour_matrix))
    # The unbalanced camera sees white as `neutral`: then D65 is the white that was shot.
    camera_from_xyz = neutral[:, None] * balanced_from_srgb @ np.linalg.inv(XYZ_FROM_SRGB)
    camera_from_xyz /= np.abs(camera_from_xyz).max()
    # Relative gains lost the overall brightness.
    brightness = _white_preserving(camera)[0].min()
    note = _NOTE_OWNER + json.dumps(camera.to_dict()).encode("ascii")
    # The type is ASCII, and an empty model would be no model.
    model = camera.name.encode("ascii", "replace").decode("ascii") or "unknown"
    *black, white = (round(level * FULL_SCALE) for level in (*standard.black_level, standard.white_level))
    tags = [
        (274, "H", 1, 1),  # Orientation: as it lies
        (33421, "H", 2, (2, 2)),  # CFARepeatPatternDim
        (33422, "B", 4, bytes(camera.cfa.value)),  # CFAPattern
        (50706, "B", 4, bytes((1, 4, 0, 0))),  # DNGVersion
        (50707, "B", 4, bytes((1, 1, 0, 0))),  # DNGBackwardVersion
        (50708, "s", 0, model),  # UniqueCameraModel
        (50710, "B", 3, bytes((0, 1, 2))),  # CFAPlaneColor: red, green, blue
        (50711, "H", 1, 1),  # CFALayout: rectangular
        (50713, "H", 2, (2, 2)),  # BlackLevelRepeatDim
        (50714, "H", 4, black),  # BlackLevel
        (50717, "H", 1, white),  # WhiteLevel
        (50721, "2i", 9, _rationals(camera_from_xyz)),  # ColorMatrix1
        (50728, "2I", 3, _rationals(neutral)),  # AsShotNeutral
        (50730, "2i", 1, _rationals(np.array([math.log2(brightness)]))),  # BaselineExposure
        (50778, "H", 1, 21),  # CalibrationIlluminant1: D65
        (_DNG_PRIVATE_DATA, "B", len(note), note),
    ]
    extra = [(*tag, True) for tag in tags]
    tifffile.imwrite(file, steps, photometric="cfa", extratags=extra, metadata=None, software="r2l")


def _rationals(values: np.ndarray, denominator: int = 10**8) -> list[int]:
    """Return numerator, denominator, numerator, ... of values up to 20 in size."""
    return [part for v in values.ravel() for part in (round(float(v) * denominator), denominator)]
