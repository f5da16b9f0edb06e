"""Named scalars that a pipeline can be turned by, in units that people and cameras use.

A camera says nothing of a 3x3 matrix's entry (2, 1); it says a black level, gains of red and blue and how
saturated its colours come out. `AdjustableISP` turns a pipeline by such numbers; untouched, it is the
pipeline itself.
"""

from dataclasses import dataclass

import numpy as np

from r2l.camera import BLUE, GREEN, RED, Camera
from r2l.isp.functional import LUMA

_LEVEL_LABELS = {
    "black_level": "black level",
    "black_level_red": "black level, red",
    "black_level_green_red_row": "black level, green in red rows",
    "black_level_green_blue_row": "black level, green in blue rows",
    "black_level_blue": "black level, blue",
}


@dataclass(frozen=True)
class Setting:
    """One number that a pipeline can be turned by.

    Attributes:
        name: as in `AdjustableISP`.
        label: for figures.
        unit: of the values; empty for a plain factor.
        value: what leaves the pipeline as it is.
        low, high: ends of the range that is scanned unless another is asked for.
        reach: deviation from ``value`` that stands for 100 % tolerance.
        geometric: whether steps are factors and not differences.
    """

    name: str
    label: str
    unit: str
    value: float
    low: float
    high: float
    reach: float
    geometric: bool = False

    @property
    def title(self) -> str:
        """What an axis of its values is called."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def grid(self, points: int = 21) -> np.ndarray:
        """Return ``points`` rising values from ``low`` to ``high``, one of them exactly ``value``.

        Raises:
            ValueError: fewer than 3 points.
        """
        if points < 3:
            raise ValueError(f"{points} points are no scan; take 3 or more")
        space = np.geomspace if self.geometric else np.linspace
        below = (points - 1) // 2
        below = 0 if self.value <= self.low else points - 1 if self.value >= self.high else below
        left = space(self.low, self.value, below + 1)
        right = space(self.value, self.high, points - below)
        values = np.concatenate([left[:-1], right])
        values[below] = self.value
        return values


def _colour_response(camera: Camera) -> tuple[float, float, float, np.ndarray]:
    """Take what a camera does to linear colour apart: exposure, gains of red and blue, matrix.

    White balance and colour matrix share a factor a channel; here the matrix keeps white white (rows of
    sum 1) and green has gain 1, so that cameras can be compared whose makers divide it otherwise.

    Returns:
        The overall factor, the gains of red and blue relative to green, and the matrix (3, 3).

    Raises:
        ValueError: no colour of the camera becomes white.
    """
    whole = np.array(camera.colour_matrix) @ np.diag(camera.white_balance)
    if np.linalg.cond(whole) > 1e6:
        raise ValueError(f"camera {camera.name!r}: its colour matrix and gains have no inverse")
    neutral = np.linalg.solve(whole, np.ones(3))
    if np.any(np.abs(neutral) < 1e-9):
        raise ValueError(f"camera {camera.name!r}: a channel takes no part in its white")
    red, green, blue = 1 / neutral
    return float(green), float(red / green), float(blue / green), whole * neutral


def level_names(camera: Camera) -> tuple[str, ...]:
    """Return the name of each position's black level: by colour, so that layouts can be compared."""
    red_row = camera.cfa.positions(RED)[0] // 2
    names = {RED: "black_level_red", BLUE: "black_level_blue"}
    green = ("black_level_green_blue_row", "black_level_green_red_row")
    return tuple(
        green[position // 2 == red_row] if colour == GREEN else names[colour]
        for position, colour in enumerate(camera.cfa.value)
    )


def camera_settings(camera: Camera, reference: Camera) -> dict[str, float]:
    """Return the settings that a camera's calibration tells, beside a reference camera.

    ``exposure`` (stops) is relative to the reference, ``saturation`` is how much of the chroma of the
    reference's colour matrix its own has (least squares); the others are its own numbers. Black levels are
    in units of the reference's range from black to white, with the containers scaled to one white level:
    the same for a sensor's data of 12 and of 14 bit.
    """
    scale = reference.white_level / camera.white_level / reference.span
    levels = scale * np.array(camera.black_level)
    factor, red, blue, matrix = _colour_response(camera)
    base, _, _, base_matrix = _colour_response(reference)
    chroma, base_chroma = (m - luma_rows(m) for m in (matrix, base_matrix))
    values = {
        "exposure": float(np.log2(abs(factor / base))),
        "black_level": float(np.mean(levels)),
        **dict(zip(level_names(camera), levels.tolist(), strict=True)),
        "red_gain": red,
        "blue_gain": blue,
    }
    weight = (base_chroma**2).sum()
    if weight > 1e-12:
        values["saturation"] = float((chroma * base_chroma).sum() / weight)
    return values


def luma_rows(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix of a camera whose pictures are grey: three times the row of its luma."""
    return np.tile(np.array(LUMA) @ matrix, (3, 1))


def settings_for(camera: Camera, unsharp: bool, blur: float, gamma: float) -> dict[str, Setting]:
    """Return what `r2l.isp.adjustable.settings_of` does, for a pipeline of these numbers."""
    own = camera_settings(camera, camera)
    settings = [Setting("exposure", "exposure", "stops", 0.0, -1.0, 1.0, 1.0)]
    for name in ("black_level", *level_names(camera)):
        value, label = own[name], _LEVEL_LABELS[name]
        ends = value - 0.03, value + 0.03
        settings.append(Setting(name, label, "of the range", value, *ends, 0.01))
    for name in ("red_gain", "blue_gain"):
        value, label = own[name], name.replace("_", " ")
        ends = sorted((value / 2, value * 2))
        settings.append(Setting(name, label, "of green", value, *ends, abs(value), geometric=True))
    settings.append(Setting("saturation", "saturation", "", 1.0, 0.0, 2.0, 1.0))
    settings.append(Setting("sharpening", "sharpening strength", "", 1.0, 0.0, 3.0, 1.0))
    if unsharp:
        settings.append(Setting("sharpening_radius", "sharpening radius", "px", 1.0, 0.4, 3.0, 1.0))
    settings.append(Setting("blur", "blur width", "px", blur, 0.0, 2.0, 1.0))
    settings.append(Setting("gamma", "gamma", "", gamma, gamma / 2, gamma * 2, gamma, geometric=True))
    return {setting.name: setting for setting in settings}
