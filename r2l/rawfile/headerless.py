"""Frames without a header, read by their description: numbers as they come from the sensor, packed or not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from r2l.camera import CFA
from r2l.files import choose
from r2l.rawfile.frame import RawFileError

# Frames are unpacked in strips that stay in a processor's cache.
_STRIP_BYTES = 2**18


@dataclass(frozen=True)
class _Packing:
    """How pixels lie in bytes.

    Attributes:
        pixels, bytes: of a group, the smallest run that begins and ends with a byte.
        bits: that a pixel takes; None: as many as the description says, in a container of 8 or 16.
        unpack: groups (N, bytes) uint8 to one array (N,) for each of its pixels.
    """

    pixels: int
    bytes: int
    bits: int | None
    unpack: Callable[[np.ndarray], list[np.ndarray]]


def _wide(groups: np.ndarray, number: int) -> np.ndarray:
    return groups[:, number].astype(np.uint16)


def _mipi(bits: int, pixels: int) -> _Packing:
    """MIPI CSI-2, chapter "RAW image data": the high bytes of a group's pixels, then their low bits."""
    low = bits - 8
    low_bytes = pixels * low // 8

    def unpack(groups: np.ndarray) -> list[np.ndarray]:
        rest = np.zeros(len(groups), np.uint32)
        for number in range(low_bytes):
            rest |= groups[:, pixels + number].astype(np.uint32) << (8 * number)
        lows = (rest >> (low * i) & (2**low - 1) for i in range(pixels))
        return [_wide(groups, i) << low | own for i, own in enumerate(lows)]

    return _Packing(pixels, pixels + low_bytes, bits, unpack)


def _mono12p(groups: np.ndarray) -> list[np.ndarray]:
    """GenICam's Pixel Format Naming Convention: pixel after pixel from the lowest bit on."""
    first, middle, last = (_wide(groups, i) for i in range(3))
    return [first | (middle & 15) << 8, middle >> 4 | last << 4]


def _mono12packed(groups: np.ndarray) -> list[np.ndarray]:
    """GigE Vision: high byte, both low halves (the first pixel's below), high byte."""
    first, middle, last = (_wide(groups, i) for i in range(3))
    return [first << 4 | middle & 15, last << 4 | middle >> 4]


def _words(kind: str) -> _Packing:
    size = np.dtype(kind).itemsize
    return _Packing(1, size, None, lambda g: [np.ascontiguousarray(g).view(kind)[:, 0]])


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
    """How the pixels of a headerless file lie in it.

    >>> RawLayout(768, 512, bits=14, packing="u16le", cfa="RGGB").row_bytes
    1536

    Attributes:
        width, height: of the frame in pixels, even.
        bits: of a pixel, 8 to 16: larger values are an error.
        packing: u8; u16le, u16be (values at the lower end of two bytes); u16le_left, u16be_left (at the
            upper end); mipi10, mipi12, mipi14 (MIPI CSI-2, as Raspberry Pi and phones have it); mono12p,
            mono12packed (machine vision).
        cfa: layout of the colour filters, top-left first; None: as the camera has it.
        offset: bytes before the first pixel.
        stride: bytes from one row to the next; None: rows without a gap.

    Raises:
        ValueError: a value out of order; lists what there is.
    """

    width: int
    height: int
    bits: int
    packing: str = "u16le"
    cfa: CFA | str | None = None
    offset: int = 0
    stride: int | None = None

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
            raise ValueError(
                f"offset {self.offset}, stride {self.stride}: expected 0 or more, and at least the "
                f"{self.row_bytes} bytes of a row"
            )

    @property
    def row_bytes(self) -> int:
        """How many bytes the pixels of a row take."""
        packing = _PACKINGS[self.packing]
        return self.width // packing.pixels * packing.bytes

    @property
    def full_scale(self) -> int:
        """The value that counts as 1.0: 255 for u8, else that of a 16-bit container."""
        return 255 if self.packing == "u8" else 65535

    @property
    def value_bits(self) -> int:
        """The bits of a container that a pixel's value may have, as a mask."""
        mask = 2**self.bits - 1
        return mask << 16 - self.bits if self.packing.endswith("_left") else mask

    def to_json(self) -> str:
        """Return it as `from_file` reads it."""
        return json.dumps(vars(self) | {"cfa": self.cfa and self.cfa.name})

    @classmethod
    def from_file(cls, path: str | Path) -> RawLayout:
        """Return the layout that a JSON file describes, or such JSON itself; the attributes are keys.

        Raises:
            ValueError: no such description; says what is wrong with it.
            OSError: the file can't be read.
        """
        names = [field.name for field in fields(cls)]
        try:
            is_text = str(path).lstrip().startswith("{")
            values: Any = json.loads(path if is_text else Path(path).read_text("utf-8"))
            if not isinstance(values, dict) or set(values) - set(names):
                raise ValueError(f"expected the keys {', '.join(names)}")
            return cls(**values)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: no layout of raw frames ({error})") from None


def read_headerless(path: Path, layout: RawLayout) -> np.ndarray:
    """Return the mosaic of a headerless file: float32 (H, W) in [0, 1] of `RawLayout.full_scale`.

    Raises:
        RawFileError: another size than the layout asks for, or values of more bits.
    """
    stride = layout.stride or layout.row_bytes
    needed = layout.offset + stride * (layout.height - 1) + layout.row_bytes
    try:
        size = path.stat().st_size
        if not needed <= size <= max(needed, layout.offset + stride * layout.height):
            raise RawFileError(
                path,
                f"{size} bytes, and {layout.width} x {layout.height} pixels as {layout.packing} take "
                f"{needed} (offset {layout.offset}, {stride} a row)",
                "Mend width, height, packing, offset or stride",
            )
        data = np.memmap(path, np.uint8, "r", layout.offset, (size - layout.offset,))
    except OSError as error:
        reason = error.strerror or str(error)
        raise RawFileError(path, reason, "Give the path of a readable raw file") from error
    return _unpack(path, data, layout, stride)


def _unpack(path: Path, data: np.ndarray, layout: RawLayout, stride: int) -> np.ndarray:
    packing = _PACKINGS[layout.packing]
    mosaic = np.empty((layout.height, layout.width), np.float32)
    step = max(1, _STRIP_BYTES // stride)

    def unpack(top: int) -> int:
        """Unpack a strip; return the bits in it that no pixel may have."""
        strip = mosaic[top : top + step]
        shape = (len(strip), layout.row_bytes)
        rows = np.lib.stride_tricks.as_strided(data[top * stride :], shape, (stride, 1))
        planes = packing.unpack(rows.reshape(-1, packing.bytes))
        groups = strip.reshape(-1, packing.pixels)
        for pixel, plane in enumerate(planes):
            np.multiply(plane, np.float32(1 / layout.full_scale), out=groups[:, pixel])
        if packing.bits is not None:
            return 0
        # The values' bits in common with those that must be none.
        return int(np.bitwise_or.reduce(planes[0])) & ~layout.value_bits

    # numpy lets other threads work meanwhile.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        wrong = max(pool.map(unpack, range(0, layout.height, step)))
    if wrong:
        reason = f"values of more than {layout.bits} bits: bits {wrong:#x} are set as well"
        raise RawFileError(path, reason, "Mend bits or packing (byte order?)")
    return mosaic
