"""Mosaics written as DNG files. Numbers and names are those of the DNG specification.

DNG can't say everything that a `Camera` can: gains must be positive, levels are whole steps, and
developers scale the colour matrix so that white stays white. So a file holds the camera twice. Its
standard tags hold `standard_form(camera)`, which develops to the same colours in any program. Its
DNGPrivateData tag, the place for a writer's own notes, holds the camera exactly.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from r2l.camera import Camera
from r2l.files import atomic_path
from r2l.rawfile.colour import XYZ_FROM_SRGB

FULL_SCALE = 65535
_DNG_VERSION, _DNG_PRIVATE_DATA = 50706, 50740
_UNIQUE_CAMERA_MODEL = 50708
_NOTE_OWNER = b"r2l\0"
_D65 = 21
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
        path: the file to write; one that exists is replaced.
        mosaic: (H, W), even, at least 22 each (LibRaw's limit), in [0, 1], *raw* domain.
        camera: layout and calibration of ``mosaic``.

    Returns:
        ``path``.

    Raises:
        ValueError: ``mosaic`` is not as described.
        OSError: the file can't be written.
    """
    path, mosaic = Path(path), np.asarray(mosaic)
    if (
        mosaic.ndim != 2
        or min(mosaic.shape) < _MIN_DNG_SIDE
        or mosaic.shape[0] % 2 + mosaic.shape[1] % 2
    ):
        raise ValueError(
            f"mosaic has shape {mosaic.shape}, expected (H, W), even and {_MIN_DNG_SIDE} or more"
        )
    if not (mosaic.min() >= 0 and mosaic.max() <= 1):
        raise ValueError(f"mosaic spans {mosaic.min()} to {mosaic.max()}, expected [0, 1]")
    steps = np.round(mosaic.astype(np.float64) * FULL_SCALE).astype(np.uint16)
    with atomic_path(path) as partial:
        encode_dng(partial, steps, camera)
    return path


def encode_dng(file: Path | BinaryIO, steps: np.ndarray, camera: Camera) -> None:
    """Write the steps (H, W) uint16 of a mosaic as `write_dng` does, to a file that may be open."""
    tags = {"extratags": _cfa_tags(camera), "metadata": None, "software": "r2l"}
    tifffile.imwrite(file, steps, photometric="cfa", **tags)


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

    Levels become whole steps of 1/65535. The factor of each colour channel moves between white
    balance and colour matrix until the matrix keeps white white (rows that sum to 1), and gains are
    given relative to green, so that only the overall brightness differs from ``camera``. The two
    negative reds of the published microscope cancel on the way. Where no positive gains do this
    (or the matrix has no inverse), the result has unit gains and no colour matrix.
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
    tolerances = {
        "black_level": 1e-6,
        "white_level": 1e-6,
        "white_balance": 1e-4,
        "colour_matrix": 1e-4,
    }
    return a.cfa is b.cfa and all(
        np.allclose(getattr(a, field), getattr(b, field), rtol=tolerance, atol=tolerance)
        for field, tolerance in tolerances.items()
    )


def _cfa_tags(camera: Camera) -> list[tuple[int, str, int, Any, bool]]:
    """Return the tags that make a 16-bit single-channel TIFF a DNG of ``camera``.

    As (code, type, count, value, write once), which is how tifffile takes them. Photometric
    interpretation and sample layout are the caller's.
    """
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
    levels = [round(level * FULL_SCALE) for level in standard.black_level]
    return [
        (274, "H", 1, 1, True),  # Orientation: as it lies
        (33421, "H", 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, "B", 4, bytes(camera.cfa.value), True),  # CFAPattern
        (_DNG_VERSION, "B", 4, bytes((1, 4, 0, 0)), True),
        (50707, "B", 4, bytes((1, 1, 0, 0)), True),  # DNGBackwardVersion
        (_UNIQUE_CAMERA_MODEL, "s", 0, model, True),
        (50710, "B", 3, bytes((0, 1, 2)), True),  # CFAPlaneColor: red, green, blue
        (50711, "H", 1, 1, True),  # CFALayout: rectangular
        (50713, "H", 2, (2, 2), True),  # BlackLevelRepeatDim
        (50714, "H", 4, levels, True),  # BlackLevel
        (50717, "H", 1, round(standard.white_level * FULL_SCALE), True),  # WhiteLevel
        (50721, "2i", 9, _rationals(camera_from_xyz), True),  # ColorMatrix1
        (50728, "2I", 3, _rationals(neutral), True),  # AsShotNeutral
        (50730, "2i", 1, _rationals(np.array([math.log2(brightness)])), True),  # BaselineExposure
        (50778, "H", 1, _D65, True),  # CalibrationIlluminant1
        (_DNG_PRIVATE_DATA, "B", len(note), note, True),
    ]


def _rationals(values: np.ndarray, denominator: int = 10**8) -> list[int]:
    """Return numerator, denominator, numerator, ... of values up to 20 in size."""
    return [part for v in values.ravel() for part in (round(float(v) * denominator), denominator)]
