"""Camera raw files through LibRaw: the mosaic, and the `Camera` that their metadata describe.

The raw pixels come as LibRaw decodes them. What it says about colours and levels of files that are no
DNG is brought into the form of `Camera` here. Users call `r2l.rawfile.read_raw`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rawpy

from r2l.camera import CFA, Camera
from r2l.rawfile.dng_tags import FULL_SCALE, XYZ_FROM_SRGB
from r2l.rawfile.frame import FETCH_AGAIN, RawFileError, RawFrame, check_layout


def samples(path: Path) -> np.ndarray | None:
    """Return all samples of a raw picture as LibRaw decodes them, (H, W) uint16; None if it can't."""
    try:
        with _opened(path) as raw:
            return raw.raw_image.copy() if raw.raw_type == rawpy.RawType.Flat else None
    except (rawpy.LibRawError, NotImplementedError, OSError, MemoryError):
        return None


def _opened(path: Path) -> rawpy.RawPy:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # LibRaw takes names as UTF-8 only; with the content it does without a name.
        with path.open("rb") as file:
            return rawpy.imread(file)
    return rawpy.imread(str(path))


def decode(path: Path, model: str, camera: Camera | None, allow_damaged: bool) -> RawFrame:
    """Return the visible mosaic of a camera raw file that is no DNG, and its camera, both upright.

    Args:
        path: the file.
        model: the camera's, "" where the file doesn't say.
        camera: calibration to use instead of the file's, for the mosaic as the file stores it.
        allow_damaged: take a file that is too short for its picture.

    Raises:
        RawFileError: too few bytes, or another layout than ``camera`` has.
        ValueError: no Bayer mosaic, levels that contradict each other.
        rawpy.LibRawError, NotImplementedError, OSError, MemoryError: LibRaw can't decode the file.
    """
    with _opened(path) as raw:
        cfa = _layout(raw)
        steps = raw.raw_image_visible
        if steps.size > 8 * path.stat().st_size and not allow_damaged:
            # No camera's encoding needs less than a bit a pixel.
            reason = f"truncated, {path.stat().st_size} bytes can't hold {steps.size} pixels"
            raise RawFileError(path, reason, FETCH_AGAIN)
        if camera is None:
            camera = _camera(raw, cfa, model or f"camera of {path.name}")
        else:
            check_layout(path, cfa, camera)
        # Cut where it leaves the phase of the layout alone.
        height, width = (side // 2 * 2 for side in steps.shape)
        mosaic = steps[:height, :width].astype(np.float32) / np.float32(FULL_SCALE)
        return upright_frame(mosaic, camera, raw.sizes.flip)


def upright_frame(mosaic: np.ndarray, camera: Camera, flip: int) -> RawFrame:
    """Return a frame turned by LibRaw's code: see `upright`."""
    return RawFrame(np.ascontiguousarray(upright(mosaic, flip)), _upright_camera(camera, flip))


def upright(mosaic: np.ndarray, flip: int) -> np.ndarray:
    """Turn an (H, W) array by LibRaw's code: 1 mirrors columns, 2 rows, and 4 then transposes."""
    rows, columns = (-1 if flip & 2 else 1), (-1 if flip & 1 else 1)
    turned = mosaic[::rows, ::columns]
    return turned.T if flip & 4 else turned


def _upright_camera(camera: Camera, flip: int) -> Camera:
    """Return the camera of a mosaic of even size after `upright`."""
    order = upright(np.arange(4).reshape(2, 2), flip).ravel()

    def turned(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[position] for position in order)

    cfa = CFA(turned(camera.cfa.value))
    return replace(camera, cfa=cfa, black_level=turned(camera.black_level))


def _layout(raw: rawpy.RawPy) -> CFA:
    """Return the layout of the visible area."""
    if raw.raw_type != rawpy.RawType.Flat:
        raise ValueError("several values at each pixel: already demosaiced, or no Bayer sensor")
    pattern, names = raw.raw_pattern, raw.color_desc.decode()
    if pattern.size == 1:
        raise ValueError("a monochrome picture, without a mosaic of colours")
    if pattern.shape == (6, 6):
        raise ValueError("the mosaic of an X-Trans sensor, not Bayer")
    colours = "".join(names[index] for index in pattern.ravel())
    if colours not in CFA.__members__:
        raise ValueError(f"a sensor with the layout {colours}, not Bayer")
    return CFA[colours]


def _camera(raw: rawpy.RawPy, cfa: CFA, name: str) -> Camera:
    """Return the calibration of a file, for the visible area before it is turned upright."""
    # LibRaw keeps black levels by colour index, and gives the second green an index of its own.
    black = [raw.black_level_per_channel[index] for index in raw.raw_pattern.ravel()]
    return Camera(
        name=name,
        cfa=cfa,
        black_level=tuple(level / FULL_SCALE for level in black),
        white_level=_white_level(raw, max(black)) / FULL_SCALE,
        white_balance=_white_balance(raw),
        colour_matrix=_colour_matrix(raw),
    )


def _white_level(raw: rawpy.RawPy, black: int) -> int:
    """Return the step of saturation.

    LibRaw's level is often the container's, and the sensor saturates below: then the lowest of the levels
    that the maker notes give keeps highlights neutral.
    """
    levels = raw.camera_white_level_per_channel
    if levels and black < min(levels) < raw.white_level:
        return min(levels)
    return raw.white_level


def _white_balance(raw: rawpy.RawPy) -> tuple[float, float, float]:
    """Return gains relative to green: as shot, else for daylight, else none."""
    for gains in (raw.camera_whitebalance, raw.daylight_whitebalance):
        red, green, blue, second_green = gains
        if min(red, green, blue) > 0 and np.isfinite(gains).all():
            # 0 says that the second green is like the first.
            green = (green + second_green) / 2 if second_green > 0 else green
            return red / green, 1.0, blue / green
    return 1.0, 1.0, 1.0


def _colour_matrix(raw: rawpy.RawPy) -> tuple[tuple[float, ...], ...]:
    """Return white-balanced camera colours to linear sRGB, with rows that sum to 1; else identity."""
    matrix = raw.color_matrix[:, :3].astype(np.float64)
    if not matrix.any() and raw.rgb_xyz_matrix[:3].any():
        camera_from_srgb = raw.rgb_xyz_matrix[:3].astype(np.float64) @ XYZ_FROM_SRGB
        matrix = np.linalg.inv(camera_from_srgb / camera_from_srgb.sum(axis=1, keepdims=True))
    sums = matrix.sum(axis=1, keepdims=True)
    usable = np.isfinite(matrix).all() and (sums > 0).all()
    return tuple(map(tuple, matrix / sums if usable else np.eye(3)))
