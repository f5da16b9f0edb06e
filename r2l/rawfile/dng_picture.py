"""One raw picture of a DNG: its layout, its levels and its bytes, as its tags have them.

Numbers and names are those of the DNG specification, version 1.6.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from r2l.camera import CFA
from r2l.rawfile.dng_tags import FULL_SCALE
from r2l.rawfile.frame import FETCH_AGAIN, USE_BAYER, RawFileError

CFA_PHOTOMETRIC, LINEAR_RAW = 32803, 34892
# What LibRaw decodes itself and in full: none, (lossless) JPEG, lossy JPEG.
_LIBRAW_DECODES = (1, 7, 34892)
_COMPRESSIONS = {1: "none", 5: "LZW", 7: "lossless JPEG", 8: "Deflate", 32946: "Deflate"}
_COMPRESSIONS |= {34892: "lossy JPEG", 50002: "JPEG XL", 52546: "JPEG XL"}
_COLOURS = ("R", "G", "B", "cyan", "magenta", "yellow", "white")
# Deltas of the black level that a sensor's rows and columns have, as a part of the range; more is a mistake.
_LARGEST_DELTA = 0.125
#: A black level by position (2, 2), and what rows and columns add to it (H, W), None where nothing.
_Black = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class RawPicture:
    """One raw picture of a DNG, as its tags describe it; what asks for more raises a RawFileError."""

    path: Path
    index: int  # of its page among all pages of the file, thumbnails and previews too
    shape: tuple[int, int]  # height and width as stored
    area: tuple[int, int, int, int]  # the active one: top, left, bottom, right
    tags: dict[int, Any]  # of the page, by number, rationals as floats

    def unusable(self, reason: str, remedy: str = USE_BAYER) -> RawFileError:
        """Return the error that says why this can't serve as a mosaic."""
        return RawFileError(self.path, reason, remedy)

    def _values(self, code: int, default: Any = ()) -> np.ndarray:
        """Return a tag's values, or ``default``, as float64 (N,)."""
        value = self.tags.get(code, default)
        value = list(value) if isinstance(value, bytes) else value
        try:
            return np.atleast_1d(np.asarray(value, np.float64)).ravel()
        except (ValueError, TypeError):
            raise self.unusable(f"a tag {code} that holds no numbers", FETCH_AGAIN) from None

    def _finite(self, code: int, default: Any, least: int = 1) -> np.ndarray:
        values = self._values(code, default)
        if len(values) < least or not np.isfinite(values).all():
            raise self.unusable(f"a tag {code} of {len(values)} values", FETCH_AGAIN)
        return values

    def number(self, code: int, default: int) -> int:
        """Return a tag's first value, or ``default``."""
        return int(self._finite(code, default)[0])

    @property
    def _is_float(self) -> bool:
        return self.number(339, 1) == 3

    @property
    def compression(self) -> str:
        """In words."""
        number = self.number(259, 1)
        return _COMPRESSIONS.get(number, f"number {number}")

    @property
    def libraw_decodes(self) -> bool:
        """Whether LibRaw's decoder gives the samples as they were written."""
        return self.number(259, 1) in _LIBRAW_DECODES and not self._is_float

    @property
    def _white(self) -> float:
        """The white level, in steps."""
        return float(self._finite(50717, 1.0 if self._is_float else 2 ** self.number(258, 16) - 1)[0])

    @property
    def linearization(self) -> np.ndarray | None:
        """The table that takes stored samples to linear ones, if there is one."""
        table = self._values(50712)
        return table if len(table) else None

    def layout(self) -> CFA:
        """Return the layout of the active area, top-left first; the error says what is no Bayer mosaic."""
        if self.number(262, 0) == LINEAR_RAW:
            raise self.unusable(
                "a monochrome sensor's picture, without a mosaic of colours"
                if self.number(277, 1) == 1
                else "already demosaiced (LinearRaw, as many phones' raw files are), so that what "
                "the sensor saw at each pixel is gone",
                "Give a raw file with a mosaic: of phones, apps that save plain (Bayer) DNG",
            )
        top, left, bottom, right = self.area
        if min(bottom - top, right - left) < 2:
            raise self.unusable(f"an active area of {bottom - top} x {right - left} pixels", FETCH_AGAIN)
        rows, columns = map(int, self._finite(33421, (2, 2), 2)[:2])
        if (rows, columns) == (6, 6):
            raise self.unusable("the mosaic of an X-Trans sensor, not Bayer")
        planes = self._values(50710, (0, 1, 2)).astype(int)
        names = [_colour_name(planes, value) for value in self._values(33422).astype(int)]
        if (rows, columns) != (2, 2) or "".join(names) not in CFA.__members__:
            what = f"the layout {' '.join(names)} in {columns} columns" if names else "no known layout"
            raise self.unusable(f"a sensor with {what}, not Bayer")
        if self.number(50711, 1) != 1:
            raise self.unusable("a sensor with staggered rows or columns, not Bayer")
        return CFA["".join(names)]

    def black(self) -> _Black:
        """Return the black level of the active area, in steps, the mean of its deltas included."""
        rows, columns = map(int, self._finite(50713, (1, 1), 2)[:2])
        values = self._values(50714, 0)
        if min(rows, columns) < 1 or len(values) != rows * columns:
            raise self.unusable(f"{len(values)} black levels for a tile of {rows} x {columns}")
        tile = np.tile(values.reshape(rows, columns), (2 // math.gcd(2, rows), 2 // math.gcd(2, columns)))
        base = tile[:2, :2].copy()
        if (tile != np.tile(base, (tile.shape[0] // 2, tile.shape[1] // 2))).any():
            raise self.unusable(
                f"a black level that repeats every {rows} x {columns} pixels and not every 2 x 2",
                "Subtract it with the camera's own software, or give camera= with levels that fit",
            )
        if not {50715, 50716} & set(self.tags):
            return base, None
        top, left, bottom, right = self.area
        rest = np.zeros((bottom - top, right - left))
        rest += self._deltas(50716, bottom - top)[:, None]
        rest += self._deltas(50715, right - left)
        for row, column in product((0, 1), repeat=2):
            mean = rest[row::2, column::2].mean()
            base[row, column] += mean
            rest[row::2, column::2] -= mean
        largest = float(np.abs(rest).max())
        if largest > _LARGEST_DELTA * (self._white - base.max()):
            raise self.unusable(
                f"a black level that differs by {largest:g} steps between rows or columns, a large part "
                f"of the range up to {self._white:g}",
                "Subtract it with the camera's own software first",
            )
        return base, rest

    def _deltas(self, code: int, length: int) -> np.ndarray:
        values = self._values(code, np.zeros(length))
        if len(values) != length:
            raise self.unusable(f"{len(values)} black level deltas for {length} rows or columns")
        return values

    def levelled(self, samples: np.ndarray, black: _Black | None) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the active area of samples, cut to even size, and its levels.

        Where rows or columns have black levels of their own, each sample moves to where it would be with
        the level of its position: the same part of the way from black to white.

        Args:
            samples: (H, W) as stored, linearized.
            black: see `black`; None where another camera's levels are taken: samples then stay as they are.

        Returns:
            float32 (H, W) in [0, 1], *raw* domain; black level by position (2, 2) and white level, as
            fractions of the same scale.
        """
        top, left, bottom, right = self.area
        height, width = (bottom - top) // 2 * 2, (right - left) // 2 * 2
        area = samples[top : top + height, left : left + width]
        base, rest = (np.zeros((2, 2)), None) if black is None else black
        if rest is not None:
            rest = rest[:height, :width]
            level = np.tile(base, (height // 2, width // 2))
            area = level + (area - level - rest) * ((self._white - level) / (self._white - level - rest))
        if self._is_float and not (np.isfinite(area).all() and area.min() >= 0):
            raise self.unusable("floating-point samples below 0 or not finite, which are no light")
        # What counts as 1.0: a full container of 16 bit; of floats the largest, 1.0 at the least.
        scale = max(1.0, self._white, float(area.max())) if self._is_float else FULL_SCALE
        mosaic = area.astype(np.float32) / np.float32(scale)
        return np.clip(mosaic, 0, 1, out=mosaic), base / scale, self._white / scale

    def check_bytes(self) -> None:
        """Raise a RawFileError where the picture's bytes are not all there, or not those its tags promise."""
        offsets = self._values(324 if 324 in self.tags else 273)
        counts = self._values(325 if 325 in self.tags else 279)
        if not len(counts) or len(counts) != len(offsets):
            raise self.unusable("tags that don't say where the picture lies")
        missing = int(max((offsets + counts).max() - self.path.stat().st_size, 0))
        if missing:
            raise self.unusable(f"truncated, {missing} bytes of the picture are missing", FETCH_AGAIN)
        (height, width), have, compression = self.shape, int(counts.sum()), self.number(259, 1)
        if compression == 1 and 324 not in self.tags:
            bits = self.number(258, 16)
            promised = height * -(-width * bits // 8) * self.number(277, 1)
            # Strips may be padded, but not by as much again.
            if not promised <= have < 1.5 * promised:
                raise self.unusable(
                    f"{have} bytes for {width} x {height} pixels of {bits} bits, which are {promised}",
                    "What wrote it contradicts itself: read it by its description, see RawLayout",
                )
        elif compression == 7:
            # Each difference of lossless JPEG takes a bit at least.
            if have < height * width // 8:
                reason = f"truncated, {have} bytes can't hold {height * width} pixels of {self.compression}"
                raise self.unusable(reason, FETCH_AGAIN)
            if not _is_lossless(self.path, int(offsets[0])):
                raise self.unusable("an ordinary JPEG where its tags promise a lossless one: no sensor data")


def _colour_name(planes: np.ndarray, value: int) -> str:
    if value not in planes:
        return f"unknown colour {value}"
    return _COLOURS[value] if value < len(_COLOURS) else f"colour {value}"


def _is_lossless(path: Path, offset: int) -> bool:
    """Look at the frame header of a JPEG stream: SOF3 is lossless, what cameras call compressed raw."""
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(4096)
    position = 2
    while head[:2] == b"\xff\xd8" and position + 4 <= len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker == 0xC3
        position += 2 + int.from_bytes(head[position + 2 : position + 4], "big")
    return True
