"""What a DNG file says about its camera: the tags that r2l writes, and those it looks at itself.

LibRaw reads raw files (see `r2l.rawfile`); this module knows the tags behind one kind of them.
Numbers and names are those of the DNG specification.

DNG can't say everything that a `Camera` can: gains must be positive, levels are whole steps, and
developers scale the colour matrix so that white stays white. So a file holds the camera twice. Its
standard tags hold `standard_form(camera)`, which develops to the same colours in any program. Its
DNGPrivateData tag, the place for a writer's own notes, holds the camera exactly.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from r2l.camera import Camera

FULL_SCALE = 65535
# Linear sRGB to CIE XYZ under D65 (IEC 61966-2-1): an output of (1, 1, 1) is the white of D65.
XYZ_FROM_SRGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
CFA_PHOTOMETRIC = 32803
_DNG_VERSION, _DNG_PRIVATE_DATA = 50706, 50740
_UNIQUE_CAMERA_MODEL, _MODEL = 50708, 272
_NOTE_OWNER = b"r2l\0"
_D65 = 21
# Cameras write a handful; in a damaged file the last can lead back to the first.
_MOST_PAGES = 50
# Beyond this condition number, the inverse of a colour matrix is not worth writing.
_MAX_CONDITION = 1e4


@dataclass(frozen=True)
class TiffFacts:
    """What the tags of a TIFF-like file (DNG, and most cameras' formats) say beyond LibRaw.

    Attributes:
        is_dng: it declares a DNG version.
        has_mosaic: one of its pictures is a colour filter array.
        model: the camera's model, "" where the file doesn't say.
        missing_bytes: how far the picture data of a DNG reach beyond the end of the file.
        exact_camera: the camera that `write_dng` was given, for its files.
    """

    is_dng: bool
    has_mosaic: bool
    model: str
    missing_bytes: int
    exact_camera: Camera | None


def tiff_facts(path: Path) -> TiffFacts | None:
    """Read the tags of ``path``; None if it is no TIFF-like file or its tags are broken."""
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first.tags
            # The mosaic of a DNG often sits below a thumbnail.
            tops = islice(tiff.pages, _MOST_PAGES)
            pages = [page for top in tops for page in (top, *islice(top.pages or (), _MOST_PAGES))]
            is_dng = _DNG_VERSION in first
            return TiffFacts(
                is_dng=is_dng,
                has_mosaic=any(int(page.photometric or 0) == CFA_PHOTOMETRIC for page in pages),
                model=_text(first.valueof(_MODEL) or first.valueof(_UNIQUE_CAMERA_MODEL)),
                missing_bytes=_missing_bytes(pages, path.stat().st_size) if is_dng else 0,
                exact_camera=_exact_camera(first.valueof(_DNG_PRIVATE_DATA)),
            )
    except Exception:
        # Broken tags fail in many ways; what is wrong with the file is then LibRaw's to say.
        return None


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip("\0 ")


def _missing_bytes(pages: list[Any], size: int) -> int:
    ends = [
        offset + count
        for page in pages
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ]
    return max(0, max(ends, default=0) - size)


def _exact_camera(note: Any) -> Camera | None:
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


def cfa_tags(camera: Camera) -> list[tuple[int, str, int, Any, bool]]:
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
