"""Named scalars that a pipeline can be turned by, in units that people and cameras use.

A camera says nothing of a 3x3 matrix's entry (2, 1); it says a black level, gains of red and blue and how
saturated its colours come out. `AdjustedISP` turns a pipeline by such numbers; untouched, it is the
pipeline itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from r2l.camera import BLUE, GREEN, RED, Camera
from r2l.isp import functional as stage
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.static import DENOISING, SHARPENING, StaticISP, parse_code

_LEVEL_LABELS = {
    "black_level": "black level",
    "black_level_red": "black level, red",
    "black_level_green_red_row": "black level, green in red rows",
    "black_level_green_blue_row": "black level, green in blue rows",
    "black_level_blue": "black level, blue",
}
Border = stage.Border
#: y (B, 1, H, W) and a border (None: where it fits) to filtered y.
Filter = Callable[[Tensor, Border | None], Tensor]


@dataclass(frozen=True)
class Setting:
    """One number that a pipeline can be turned by.

    Attributes:
        name: as in `AdjustedISP`.
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


@dataclass(frozen=True)
class Base:
    """A pipeline as settings see it: calibration, demosaicing, two filters of luma, gamma."""

    name: str
    camera: Camera
    demosaic: str
    sharpen: Filter
    sharpen_radius: int
    unsharp: bool
    denoise: Filter
    denoise_radius: int
    blur: float
    gamma: float

    @classmethod
    def of(cls, pipeline: str | nn.Module, camera: Camera) -> Base:
        """Take a code ("ma,s,ga"), a corrected `StaticISP` or a `ParametrizedISP` apart.

        Raises:
            ValueError: a pipeline that has no such settings.
        """
        if isinstance(pipeline, ParametrizedISP) and pipeline.additive is None:
            return _of_parametrized(pipeline)
        if isinstance(pipeline, StaticISP) and pipeline.variant == "corrected":
            camera = pipeline.camera
            parts = pipeline.demosaic, pipeline.sharpening, pipeline.denoising
        elif isinstance(pipeline, str):
            parts = parse_code(pipeline)
        else:
            raise ValueError(
                f"{type(pipeline).__name__} has no settings to turn; give a code such as 'bi,s,ga', a "
                "StaticISP of the variant corrected, or a ParametrizedISP without additive layer"
            )
        demosaic, sharpening, denoising = parts
        if denoising not in DENOISING:
            raise ValueError(f"{denoising} has no settings; choose from {', '.join(DENOISING)}")
        gaussian = denoising == "gaussian_denoising"
        return cls(
            name=f"{demosaic}, {sharpening}, {denoising}",
            camera=camera,
            demosaic=demosaic,
            sharpen=SHARPENING[sharpening].apply,
            sharpen_radius=SHARPENING[sharpening].radius,
            unsharp=sharpening == "unsharp_masking",
            # The Gaussian is the blur, whose width is a setting; the median has one behind it.
            denoise=_unchanged if gaussian else DENOISING[denoising].apply,
            denoise_radius=0 if gaussian else DENOISING[denoising].radius,
            blur=0.5 if gaussian else 0.0,
            gamma=StaticISP.gamma,
        )


def _unchanged(y: Tensor, border: Border | None) -> Tensor:
    return y


def _of_parametrized(isp: ParametrizedISP) -> Base:
    sharpening, blurring = (
        k.detach().double().tolist() for k in (isp.sharpening_kernel, isp.blur_kernel)
    )
    camera = replace(
        isp.camera,
        black_level=tuple(isp.black_level.detach().double().tolist()),
        white_balance=tuple(isp.white_balance.detach().double().tolist()),
        colour_matrix=tuple(map(tuple, isp.colour_matrix.detach().double().tolist())),
    )
    return Base(
        name="parametrized",
        camera=camera,
        demosaic="bilinear",
        sharpen=lambda y, border: stage.correlate(y, sharpening, border),
        sharpen_radius=1,
        unsharp=False,
        denoise=lambda y, border: stage.correlate(y, blurring, border),
        denoise_radius=2,
        blur=0.0,
        gamma=float(isp.gamma.detach()),
    )


def colour_response(camera: Camera) -> tuple[float, float, float, np.ndarray]:
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
    reference's colour matrix its own has (least squares); the others are its own numbers.
    """
    factor, red, blue, matrix = colour_response(camera)
    base, _, _, base_matrix = colour_response(reference)
    chroma, base_chroma = (m - luma_rows(m) for m in (matrix, base_matrix))
    values = {
        "exposure": float(np.log2(abs(factor / base))),
        "black_level": float(np.mean(camera.black_level)),
        **dict(zip(level_names(camera), camera.black_level, strict=True)),
        "red_gain": red,
        "blue_gain": blue,
    }
    weight = (base_chroma**2).sum()
    if weight > 1e-12:
        values["saturation"] = float((chroma * base_chroma).sum() / weight)
    return values


def luma_rows(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix of a camera whose pictures are grey: three times the row of its luma."""
    return np.tile(np.array(stage.LUMA) @ matrix, (3, 1))


def settings_of(
    pipeline: str | nn.Module | Base, camera: Camera | None = None
) -> dict[str, Setting]:
    """Return the settings of a pipeline by name, in the order of processing.

    ``exposure`` is a digital gain before the clip. Black levels are given common to all positions and for
    each one alone; ``red_gain`` and ``blue_gain`` relative to green; ``saturation`` scales what the
    matrix leaves of colour around luma; ``sharpening`` the change that sharpening makes; ``blur`` is the
    sigma of the last Gaussian of luma. ``sharpening_radius`` is there for unsharp masking.

    Raises:
        ValueError: as `Base.of` and `colour_response`.
    """
    base = pipeline if isinstance(pipeline, Base) else Base.of(pipeline, camera)
    camera = base.camera
    known = camera_settings(camera, camera)
    room = camera.white_level - max(camera.black_level)
    found = [Setting("exposure", "exposure", "stops", 0.0, -1.0, 1.0, 1.0)]
    for name in ("black_level", *level_names(camera)):
        value, label = known[name], _LEVEL_LABELS[name]
        unit, span = "of full scale", 0.03 * room
        found.append(Setting(name, label, unit, value, value - span, value + span, 0.01 * room))
    for name in ("red_gain", "blue_gain"):
        value, label = known[name], name.replace("_", " ")
        ends = sorted((value / 2, value * 2))
        found.append(Setting(name, label, "of green", value, *ends, abs(value), geometric=True))
    found.append(Setting("saturation", "saturation", "", 1.0, 0.0, 2.0, 1.0))
    found.append(Setting("sharpening", "sharpening strength", "", 1.0, 0.0, 3.0, 1.0))
    if base.unsharp:
        found.append(Setting("sharpening_radius", "sharpening radius", "px", 1.0, 0.4, 3.0, 1.0))
    found.append(Setting("blur", "blur width", "px", base.blur, 0.0, 2.0, 1.0))
    gamma = base.gamma
    found.append(Setting("gamma", "gamma", "", gamma, gamma / 2, gamma * 2, gamma, geometric=True))
    return {setting.name: setting for setting in found}
