"""What a sensor is: the layout of its colour filters and the numbers that calibrate it.

This is the only place with camera numbers. The two published cameras come from the raw2logit study
(Oala et al., "Data Models for Dataset Drift Controls in Machine Learning With Optical Images",
TMLR 2023; data: Zenodo, DOI 10.5281/zenodo.5235536).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

RED, GREEN, BLUE = 0, 1, 2

_SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1))
# Levels beyond it are counts, not fractions of full scale; those of floating-point files may pass 1.
_MOST_LEVEL = 2.0


class CFA(Enum):
    """Bayer layout of a colour filter array. The value is the 2x2 tile, row by row, as colours.

    Colours are 0 red, 1 green, 2 blue, so that ``CFA.RGGB.value == (0, 1, 1, 2)``. A *position* is
    an index into the tile: 0 top-left, 1 top-right, 2 bottom-left, 3 bottom-right.

    >>> CFA.RGGB.shifted(rows=0, columns=1)
    <CFA.GRBG: (1, 0, 2, 1)>
    """

    RGGB = (0, 1, 1, 2)
    BGGR = (2, 1, 1, 0)
    GRBG = (1, 0, 2, 1)
    GBRG = (1, 2, 0, 1)

    @classmethod
    def from_name(cls, name: str) -> CFA:
        """Return the layout called ``name`` ("RGGB", any case); a ValueError lists those that exist."""
        try:
            return cls[name.upper()]
        except KeyError:
            options = ", ".join(cls.__members__)
            raise ValueError(f"unknown CFA layout {name!r}; choose from {options}") from None

    def positions(self, colour: int) -> tuple[int, ...]:
        """Return the positions in the tile that carry ``colour`` (one for red and blue, two for green)."""
        return tuple(position for position, c in enumerate(self.value) if c == colour)

    def shifted(self, rows: int, columns: int) -> CFA:
        """Return the layout of a mosaic whose first ``rows`` rows and ``columns`` columns were cut off."""
        return CFA(tuple(self.value[2 * ((y + rows) % 2) + (x + columns) % 2] for y, x in _SHIFTS))

    def shift_to(self, wanted: CFA) -> tuple[int, int]:
        """Return how many rows and columns to cut off a mosaic so that it has the layout ``wanted``."""
        return next(shift for shift in _SHIFTS if self.shifted(*shift) is wanted)


def _floats(values: Iterable[float], count: int, what: str) -> tuple[float, ...]:
    result = tuple(float(v) for v in values)
    if len(result) != count:
        raise ValueError(f"{what} has {len(result)} values, expected {count}")
    if not all(math.isfinite(v) for v in result):
        raise ValueError(f"{what} holds a value that is not finite: {result}")
    return result


@dataclass(frozen=True)
class Camera:
    """A sensor's layout and calibration. Immutable and hashable. `from_counts` takes a data sheet's numbers.

    >>> from dataclasses import replace
    >>> replace(DRONE, cfa=CFA.BGGR).to_dict()["cfa"]
    'BGGR'

    Levels are raw values, as fractions of the container's full scale (65535 for 16 bit is 1.0).

    Raises:
        ValueError: a wrong number of values, a value that is not finite, levels in counts, or a white
            level that is not above every black level.
    """

    name: str
    cfa: CFA  #: top-left of the mosaic first
    black_level: tuple[float, float, float, float]  #: no light, by *position* in the 2x2 tile, not by colour
    white_level: float  #: saturation
    white_balance: tuple[float, float, float]  #: gains of red, green and blue, of linear camera colours
    colour_matrix: tuple[tuple[float, float, float], ...]  #: 3x3 rows, balanced colours to linear sRGB

    def __post_init__(self) -> None:
        if not isinstance(self.cfa, CFA):
            raise ValueError(f"cfa is {self.cfa!r}, expected one of {', '.join(CFA.__members__)}")
        rows = tuple(self.colour_matrix)
        if len(rows) != 3:
            raise ValueError(f"colour_matrix has {len(rows)} rows, expected 3")
        black = _floats(self.black_level, 4, "black_level")
        (white,) = _floats([self.white_level], 1, "white_level")
        gains = _floats(self.white_balance, 3, "white_balance")
        matrix = tuple(_floats(row, 3, "a row of colour_matrix") for row in rows)
        if max(white, *black) > _MOST_LEVEL:
            raise ValueError(
                f"black level {self.black_level}, white level {self.white_level}: these are counts, where "
                "fractions of the container's full scale are expected (65535 of 16 bit is 1.0); "
                "Camera.from_counts(..., bits=12) takes them, and a JSON file with the entry "
                '"bits": 12 (those of the sensor)'
            )
        if white <= max(black):
            raise ValueError(f"white_level {white} is not above the black level {max(black)}")
        vars(self).update(black_level=black, white_level=white, white_balance=gains, colour_matrix=matrix)

    @property
    def span(self) -> float:
        """The range from the mean black level to white, in raw values."""
        return self.white_level - sum(self.black_level) / 4

    @classmethod
    def from_counts(
        cls,
        name: str,
        cfa: CFA,
        black_level: float | Iterable[float],
        white_level: float | None = None,
        *,
        bits: int | None = None,
        full_scale: float | None = None,
        **others: Any,
    ) -> Camera:
        """Return the camera of a data sheet, whose levels are counts.

        >>> gains = {"white_balance": (2, 1, 1.5), "colour_matrix": ((1, 0, 0), (0, 1, 0), (0, 0, 1))}
        >>> Camera.from_counts("mine", CFA.RGGB, 256, 4095, bits=12, **gains).white_level * 65535
        4095.0

        Args:
            name, cfa, others: as of any camera.
            black_level: one count, or four by position.
            white_level: the count of saturation; by default the largest that ``bits`` hold.
            bits: of the sensor, 1 to 16. Its counts lie in a container of 8 bit up to 8, else of 16 bit,
                from its lower end: so files have them, and so `read_raw` reads them.
            full_scale: instead, the count that is 1.0 in your mosaics.

        Raises:
            ValueError: not one of bits and full scale, levels beyond them; or as for any camera.
        """
        if (bits is None) == (full_scale is None):
            raise ValueError("levels in counts need bits, those of the sensor, or full_scale: one of them")
        if bits is not None and bits not in range(1, 17):
            raise ValueError(f"bits is {bits!r}, expected 1 to 16")
        most = full_scale if bits is None else 2**bits - 1
        scale = full_scale if bits is None else 255 if bits <= 8 else 65535
        black = black_level if isinstance(black_level, Iterable) else [black_level] * 4
        black = _floats(black, 4, "black_level")
        white, most, scale = _floats([most if white_level is None else white_level, most, scale], 3, "levels")
        if not 0 < white <= most:
            raise ValueError(f"white_level is {white:g} counts, expected more than 0, at most {most:g}")
        return cls(name, cfa, tuple(level / scale for level in black), white / scale, **others)

    def to_dict(self) -> dict[str, Any]:
        """Return the camera as plain JSON types; `from_dict` is the way back."""
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in vars(self).items()}
        return values | {"cfa": self.cfa.name, "colour_matrix": [list(row) for row in self.colour_matrix]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Camera:
        """Return the camera that `to_dict` wrote, or that was written by hand: the form of a JSON file.

        ::

            {"name": "my camera", "cfa": "RGGB", "bits": 12, "black_level": 256, "white_level": 4095,
             "white_balance": [1.9, 1, 1.6],
             "colour_matrix": [[1.6, -0.4, -0.2], [-0.2, 1.5, -0.3], [0, -0.5, 1.5]]}

        With ``bits`` or ``full_scale`` the levels are counts, see `from_counts`; without, fractions of the
        container's full scale, the black level by position.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of order.
        """
        make, expected = cls, set(cls.__dataclass_fields__)
        if not isinstance(values, dict):
            raise ValueError(f"camera description: expected the keys {', '.join(sorted(expected))}")
        if counted := {"bits", "full_scale"} & set(values):
            make, expected = cls.from_counts, expected | counted
        if set(values) != expected:
            wrong = ", ".join(sorted(set(values) ^ expected))
            raise ValueError(f"camera description: missing or unknown keys: {wrong}")
        for key in ("name", "cfa"):
            if not isinstance(values[key], str):
                raise ValueError(f"camera description: {key} is {values[key]!r}, expected a word")
        try:
            return make(**{**values, "cfa": CFA.from_name(values["cfa"])})
        except (TypeError, OverflowError) as error:
            raise ValueError(f"camera description: {error}") from None


MICROSCOPE = Camera(
    name="PCO edge 5.5 (Raw-Microscopy)",
    cfa=CFA.RGGB,
    black_level=(9.834368023181512e-06,) * 4,
    white_level=1.0,
    # Red has a negative gain and negative entries in the matrix: as published; the two cancel.
    white_balance=(-0.6567, 1.9673, 3.5304),
    colour_matrix=((-2.0338, 0.0933, 0.4157), (-0.0286, 2.6464, -0.0574), (-0.5516, -0.0947, 2.9308)),
)

DRONE = Camera(
    name="Hasselblad L1D-20c (Raw-Drone)",
    cfa=CFA.RGGB,
    black_level=(0.0625, 0.0626, 0.0625, 0.0626),
    white_level=1.0,
    white_balance=(2.86653646, 1.0, 1.73079425),
    colour_matrix=(
        (1.50768983, -0.33571374, -0.17197604),
        (-0.23048614, 1.70698738, -0.47650126),
        (-0.03119153, -0.32803956, 1.35923111),
    ),
)
