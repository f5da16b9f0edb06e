"""Mosaics in formats that say nothing of a camera: PNG, NPY, TIFF, looked at before they take memory."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image

from r2l.rawfile.frame import RawFileError

_USE_GREY = "Give a single-channel mosaic of even height and width, 8 or 16 bit or floats in [0, 1]"
# One is a mosaic, several are told as what they are; more come of damage alone.
_MOST_PAGES = 200
# How much larger pixels can be than their file: uncompressed ones of one bit, and compressed ones.
_MOST_PLAIN, _MOST_COMPRESSED = 8, 10_000


def _unusable(path: Path, reason: str, remedy: str = _USE_GREY) -> RawFileError:
    return RawFileError(path, reason, remedy)


def read_mosaic(path: Path, kind: Literal["PNG", "NPY", "TIFF"]) -> np.ndarray:
    """Return a file's pixels as a mosaic: float32 (H, W), even H and W, in [0, 1], *raw* domain.

    Raises:
        RawFileError: it is a picture, but no mosaic.
        Exception: of many kinds, if it is damaged.
    """
    decoders = {"PNG": _decode_png, "NPY": load_npy, "TIFF": _decode_tiff}
    return _mosaic(path, decoders[kind](path))


def open_png(path: Path) -> Image.Image:
    """Open a PNG, and nothing else that goes by its name.

    Raises:
        Exception: of many kinds, if it is none or damaged.
    """
    # By its content Pillow would choose among dozens of formats, some with decoders seldom looked at.
    return Image.open(path, formats=["PNG"])


def _decode_png(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        depth, colour_type = file.read(26)[24:]
    if depth == 16 and colour_type != 0:
        # Pillow would quietly drop the lower eight bits.
        raise _unusable(path, "a 16-bit PNG with more than one channel")
    with open_png(path) as image:
        values = np.asarray(image.convert("RGB") if image.mode in ("1", "P") else image)
    # Some versions of Pillow open 16-bit grey as 32-bit integers.
    return values.astype(np.uint16) if depth == 16 else values


def load_npy(path: Path) -> np.ndarray:
    """Return the array of an NPY file, read-only.

    Raises:
        Exception: of many kinds, if it is damaged.
    """
    # Mapped, a head that claims more than the file holds is an error, and no memory is taken.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def load_tiff(path: Path) -> np.ndarray:
    """Return the first picture of a TIFF file, unless it claims to be more than the file can hold.

    Raises:
        Exception: of many kinds, if it is damaged.
    """
    with tifffile.TiffFile(path) as tiff:
        # In a damaged file one page can lead to the next for ever, and tifffile's series follow all.
        if len(list(islice(tiff.pages, _MOST_PAGES + 1))) > _MOST_PAGES:
            raise ValueError(f"more than {_MOST_PAGES} pages")
        series = tiff.series[0]
        check_promise(series.keyframe, series.nbytes, tiff.filehandle.size)
        return tiff.asarray()


def check_promise(page: Any, pixels: int, size: int) -> None:
    """Raise a ValueError where a page of tifffile's claims more bytes of pixels than its file can hold."""
    # A tile can be larger than its picture.
    pixels = max(pixels, math.prod(map(int, page.chunks)) * page.dtype.itemsize)
    most = size * (_MOST_PLAIN if page.compression == 1 else _MOST_COMPRESSED)
    if pixels > most or max(page.databytecounts) > size:
        raise ValueError(f"tags that promise {pixels} bytes, in a file of {size}")


def _decode_tiff(path: Path) -> np.ndarray:
    try:
        return load_tiff(path)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise _unusable(
            path,
            "a TIFF compressed in a way that needs the package imagecodecs",
            "Save it without compression, or install it: pip install 'r2l[codecs]'",
        ) from None


def _mosaic(path: Path, values: np.ndarray) -> np.ndarray:
    """Return decoded pixels as a mosaic: float32 (H, W) in [0, 1]."""
    if values.ndim == 3 and values.shape[2] in (2, 3, 4):
        colours = values[..., : 1 if values.shape[2] == 2 else 3]  # without alpha
        if np.any(colours != colours[..., :1]):
            raise _unusable(path, "a colour picture, already developed")
        values = colours[..., 0]
    if values.ndim != 2:
        raise _unusable(path, f"an array of shape {values.shape}, not (height, width)")
    height, width = values.shape
    if min(height, width) < 2 or height % 2 or width % 2:
        raise _unusable(path, f"{height} x {width} pixels, which are not whole 2x2 tiles")
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    if values.dtype.kind != "f":
        raise _unusable(path, f"values of type {values.dtype}")
    if not np.isfinite(values).all():
        raise _unusable(path, "values that are not finite (NaN or infinity)")
    if values.min() < 0 or values.max() > 1:
        raise _unusable(path, f"floats from {values.min():g} to {values.max():g}, beyond [0, 1]")
    return values.astype(np.float32)
