"""Mosaics in files that say nothing of a camera: PNG, NPY, TIFF, and frames without a header."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from r2l.camera import CFA
from r2l.files import choose
from r2l.progress import usable_cores
from r2l.rawfile.frame import RawFileError

_USE_GREY = "Give a single-channel mosaic of even height and width, 8 or 16 bit or floats in [0, 1]"
# One is a mosaic, several are told as what they are; more come of damage alone.
_MOST_PAGES = 200
# How much larger pixels can be than their file: uncompressed ones of one bit, and compressed ones.
_MOST_PLAIN, _MOST_COMPRESSED = 8, 10_000


def read_mosaic(path: Path, kind: Literal["PNG", "NPY", "TIFF"]) -> np.ndarray:
    """Return a file's pixels as a mosaic: float32 (H, W), even H and W, in [0, 1], *raw* domain.

    Raises a RawFileError for a picture that is no mosaic, any Exception if it is damaged.
    """
    values = {"PNG": _decode_png, "NPY": load_npy, "TIFF": _decode_tiff}[kind](path)
    is_colour = False
    if values.ndim == 3 and values.shape[2] in (2, 3, 4):
        colours = values[..., : 1 if values.shape[2] == 2 else 3]  # without alpha
        is_colour, values = np.any(colours != colours[..., :1]), colours[..., 0]
    if is_colour:
        reason = "a colour picture, already developed"
    elif values.ndim != 2:
        reason = f"an array of shape {values.shape}, not (height, width)"
    elif min(values.shape) < 2 or any(side % 2 for side in values.shape):
        reason = f"{values.shape[0]} x {values.shape[1]} pixels, which are not whole 2x2 tiles"
    elif values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    elif values.dtype.kind != "f":
        reason = f"values of type {values.dtype}"
    elif not np.isfinite(values).all():
        reason = "values that are not finite (NaN or infinity)"
    elif values.min() < 0 or values.max() > 1:
        reason = f"floats from {values.min():g} to {values.max():g}, beyond [0, 1]"
    else:
        return values.astype(np.float32)
    raise RawFileError(path, reason, _USE_GREY)


def open_png(path: Path) -> Image.Image:
    """Open a PNG, and nothing else that goes by its name. Raises an Exception, of many kinds."""
    # By its content Pillow would choose among dozens of formats, some with decoders seldom looked at.
    return Image.open(path, formats=["PNG"])


def _decode_png(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        depth, colour_type = file.read(26)[24:]
    if depth == 16 and colour_type != 0:
        # Pillow would quietly drop the lower eight bits.
        raise RawFileError(path, "a 16-bit PNG with more than one channel", _USE_GREY)
    with open_png(path) as image:
        values = np.asarray(image.convert("RGB") if image.mode in ("1", "P") else image)
    # Some versions of Pillow open 16-bit grey as 32-bit integers.
    return values.astype(np.uint16) if depth == 16 else values


def load_npy(path: Path) -> np.ndarray:
    """Return the array of an NPY file, read-only. Raises an Exception, of many kinds, if it is damaged."""
    # Mapped, a head that claims more than the file holds is an error, and no memory is taken.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def load_tiff(path: Path) -> np.ndarray:
    """Return the first picture of a TIFF file, unless it claims to be more than the file can hold.

    Raises an Exception, of many kinds, if it is damaged.
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
        reason = "a TIFF compressed in a way that needs the package imagecodecs"
        remedy = "Save it without compression, or install it: pip install 'r2l[codecs]'"
        raise RawFileError(path, reason, remedy) from None


# Frames are unpacked in strips that stay in a processor's cache.
_STRIP_BYTES = 2**18


class _Packing(NamedTuple):
    """How pixels lie in bytes."""

    pixels: int  # of a group, the smallest run that begins and ends with a byte
    bytes: int  # of such a group
    bits: int | None  # of a pixel; None: as many as the description says, in a container of 8 or 16
    unpack: Callable[[np.ndarray], list[np.ndarray]]  # (N, bytes) uint8 to (N,) for each pixel


def _mipi(bits: int, pixels: int) -> _Packing:
    """MIPI CSI-2, chapter "RAW image data": the high bytes of a group's pixels, then their low bits."""
    low = bits - 8
    low_bytes = pixels * low // 8

    def unpack(groups: np.ndarray) -> list[np.ndarray]:
        *highs, rest = *groups[:, :pixels].T.astype(np.uint16, "C"), np.zeros(len(groups), np.uint32)
        for number in range(low_bytes):
            rest |= groups[:, pixels + number].astype(np.uint32) << (8 * number)
        return [high << low | rest >> (low * i) & (2**low - 1) for i, high in enumerate(highs)]

    return _Packing(pixels, pixels + low_bytes, bits, unpack)


def _mono12p(groups: np.ndarray) -> list[np.ndarray]:
    """GenICam's Pixel Format Naming Convention: pixel after pixel from the lowest bit on."""
    first, middle, last = groups.T.astype(np.uint16, "C")
    return [first | (middle & 15) << 8, middle >> 4 | last << 4]


def _mono12packed(groups: np.ndarray) -> list[np.ndarray]:
    """GigE Vision: high byte, both low halves (the first pixel's below), high byte."""
    first, middle, last = groups.T.astype(np.uint16, "C")
    return [first << 4 | middle & 15, last << 4 | middle >> 4]


def _words(kind: str) -> _Packing:
    return _Packing(1, np.dtype(kind).itemsize, None, lambda g: [np.ascontiguousarray(g).view(kind)[:, 0]])


#: By name; "left" has the bits of a pixel at the upper end of its two bytes.
_PACKINGS = {
    "u8": _words("u1"),
    "u16le": _words("<u2"),
    "u16be": _words(">u2"),
    "u16le_left": _words("<u2"),
    "u16be_left": _words(">u2"),
    "mipi10": _mipi(10, 4),
    "mipi12": _mipi(12, 2),
    "mipi14": _mipi(14, 4),
    "mono12p": _Packing(2, 3, 12, _mono12p),
    "mono12packed": _Packing(2, 3, 12, _mono12packed),
}


@dataclass(frozen=True)
class RawLayout:
    """How the pixels of a headerless file lie in it; a ValueError for any value out of order.

    Packings are u8; u16le, u16be (values at the lower end of two bytes); u16le_left, u16be_left (at the upper
    end); mipi10, mipi12, mipi14 (MIPI CSI-2, as Raspberry Pi and phones have it); mono12p, mono12packed
    (machine vision).

    >>> RawLayout(768, 512, bits=14, packing="u16le", cfa="RGGB").row_bytes
    1536
    """

    width: int  #: in pixels, even, as is the height
    height: int
    bits: int  #: of a pixel: larger values are an error
    packing: str = "u16le"
    cfa: CFA | str | None = None  #: of the colour filters, top-left first; None: as the camera has it
    offset: int = 0  #: bytes before the first pixel
    stride: int | None = None  #: bytes from one row to the next; None: rows without a gap

    def __post_init__(self) -> None:
        packing = choose("packing", self.packing, _PACKINGS)
        if isinstance(self.cfa, str):
            object.__setattr__(self, "cfa", CFA.from_name(self.cfa))
        for name in ("width", "height", "bits", "offset", "stride"):
            value = getattr(self, name)
            if not (isinstance(value, int) or (name == "stride" and value is None)):
                raise ValueError(f"{name} is {value!r}, expected a whole number")
        if min(self.width, self.height) < 2 or self.width % 2 or self.height % 2:
            raise ValueError(f"{self.width} x {self.height} pixels, expected even numbers")
        if self.width % packing.pixels:
            raise ValueError(f"{self.packing} packs {packing.pixels} pixels; width is {self.width}")
        most = 8 if self.packing == "u8" else 16
        if packing.bits not in (None, self.bits) or not 1 <= self.bits <= most:
            wanted = packing.bits or f"1 to {most}"
            raise ValueError(f"bits is {self.bits}; {self.packing} has {wanted}")
        if self.offset < 0 or (self.stride is not None and self.stride < self.row_bytes):
            wanted = f"0 or more, and at least the {self.row_bytes} bytes of a row"
            raise ValueError(f"offset {self.offset}, stride {self.stride}: expected {wanted}")

    @property
    def row_bytes(self) -> int:
        """How many bytes the pixels of a row take."""
        return self.width // _PACKINGS[self.packing].pixels * _PACKINGS[self.packing].bytes

    @property
    def full_scale(self) -> int:
        """The value that counts as 1.0: 255 for u8, else that of a 16-bit container."""
        return 255 if self.packing == "u8" else 65535

    def to_json(self) -> str:
        """Return it as `from_file` reads it."""
        return json.dumps(vars(self) | {"cfa": self.cfa and self.cfa.name})

    @classmethod
    def from_file(cls, path: str | Path) -> RawLayout:
        """Return the layout that a JSON file describes, or such JSON itself; the attributes are keys.

        Raises a ValueError for what is no such description, an OSError for what can't be read.
        """
        names = cls.__dataclass_fields__
        try:
            is_text = str(path).lstrip().startswith("{")
            values: Any = json.loads(path if is_text else Path(path).read_text("utf-8"))
            if not isinstance(values, dict) or set(values) - set(names):
                raise ValueError(f"expected the keys {', '.join(names)}")
            return cls(**values)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: no layout of raw frames ({error})") from None


def read_headerless(path: Path, layout: RawLayout) -> np.ndarray:
    """Return the mosaic of a headerless file: float32 (H, W) in [0, 1] of `RawLayout.full_scale`."""
    stride = layout.stride or layout.row_bytes
    needed = layout.offset + stride * (layout.height - 1) + layout.row_bytes
    try:
        size = path.stat().st_size
        if not needed <= size <= max(needed, layout.offset + stride * layout.height):
            frame = f"{layout.width} x {layout.height} pixels as {layout.packing}"
            reason = f"{size} bytes, and {frame} take {needed} (offset {layout.offset}, {stride} a row)"
            raise RawFileError(path, reason, "Mend width, height, packing, offset or stride")
        data = np.memmap(path, np.uint8, "r", layout.offset, (size - layout.offset,))
    except OSError as error:
        reason = error.strerror or str(error)
        raise RawFileError(path, reason, "Give the path of a readable raw file") from error
    packing = _PACKINGS[layout.packing]
    mosaic = np.empty((layout.height, layout.width), np.float32)
    step = max(1, _STRIP_BYTES // stride)
    allowed = 2**layout.bits - 1 << (16 - layout.bits if layout.packing.endswith("_left") else 0)

    def unpack(top: int) -> int:
        """Unpack a strip; return the bits in it that no pixel may have."""
        strip = mosaic[top : top + step]
        shape = (len(strip), layout.row_bytes)
        rows = np.lib.stride_tricks.as_strided(data[top * stride :], shape, (stride, 1))
        planes = packing.unpack(rows.reshape(-1, packing.bytes))
        groups = strip.reshape(-1, packing.pixels)
        for pixel, plane in enumerate(planes):
            np.multiply(plane, np.float32(1 / layout.full_scale), out=groups[:, pixel])
        return 0 if packing.bits else int(np.bitwise_or.reduce(planes[0])) & ~allowed

    # numpy lets other threads work meanwhile.
    with ThreadPoolExecutor(min(usable_cores(), 4)) as pool:
        wrong = max(pool.map(unpack, range(0, layout.height, step)))
    if wrong:
        reason = f"values of more than {layout.bits} bits: bits {wrong:#x} are set as well"
        raise RawFileError(path, reason, "Mend bits or packing (byte order?)")
    return mosaic
