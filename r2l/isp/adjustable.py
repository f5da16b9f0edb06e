"""A pipeline that is turned by named numbers, in units that people and cameras use.

A camera says nothing of a 3x3 matrix's entry (2, 1); it says a black level, gains of red and blue and how
saturated its colours come out. `AdjustableISP` turns a pipeline by such numbers; untouched, it is the
pipeline itself.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from r2l.camera import BLUE, GREEN, RED, Camera
from r2l.isp import functional as stage
from r2l.isp.filters import Border, blur, correlate, crop, gaussian_kernel
from r2l.isp.grammar import PipelineLike, open_pipeline
from r2l.isp.learned import LearnedISP
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.pipeline import Affine, LinearLuma, Luma, Pipeline, Pointwise, Stage
from r2l.isp.static import StaticISP, colour_stages, demosaicing, levels

_LEVEL_LABELS = {
    "black_level": "black level",
    "black_level_red": "black level, red",
    "black_level_green_red_row": "black level, green in red rows",
    "black_level_green_blue_row": "black level, green in blue rows",
    "black_level_blue": "black level, blue",
}


@dataclass(frozen=True)
class Setting:
    """One number that a pipeline can be turned by."""

    name: str
    label: str  # for figures
    unit: str  # of the values; empty for a plain factor
    value: float  # what leaves the pipeline as it is
    low: float  # with `high` the range that is scanned unless another is asked for
    high: float
    reach: float  # deviation from `value` that stands for 100 % tolerance
    geometric: bool = False  # whether steps are factors and not differences

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
    in units of the reference's range, with the containers scaled to one white level.
    """
    black = reference.white_level / camera.white_level / reference.span * np.array(camera.black_level)
    factor, red, blue, matrix = _colour_response(camera)
    base, _, _, base_matrix = _colour_response(reference)
    chroma, base_chroma = (m - _luma_rows(m) for m in (matrix, base_matrix))
    values = {"exposure": float(np.log2(abs(factor / base))), "black_level": float(np.mean(black))}
    values |= dict(zip(level_names(camera), black.tolist(), strict=True))
    values |= {"red_gain": red, "blue_gain": blue}
    weight = (base_chroma**2).sum()
    if weight > 1e-12:
        values["saturation"] = float((chroma * base_chroma).sum() / weight)
    return values


def _luma_rows(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix of a camera whose pictures are grey: three times the row of its luma."""
    return np.tile(np.array(stage.LUMA) @ matrix, (3, 1))


@dataclass(frozen=True)
class _Base:
    """A pipeline as settings see it."""

    name: str
    camera: Camera
    demosaic: Stage
    sharpening: Luma
    denoising: tuple[Stage, ...]  # without the last Gaussian, whose width is a setting
    blur: float = 0.0
    gamma: float = StaticISP.gamma
    balance_first: bool = False
    learned: LearnedISP | None = None

    @property
    def settings(self) -> dict[str, Setting]:
        own, gamma = camera_settings(self.camera, self.camera), self.gamma
        settings = [Setting("exposure", "exposure", "stops", 0.0, -1.0, 1.0, 1.0)]
        for name in ("black_level", *level_names(self.camera)):
            value = own[name]
            ends = value - 0.03, value + 0.03
            settings.append(Setting(name, _LEVEL_LABELS[name], "of the range", value, *ends, 0.01))
        for name in ("red_gain", "blue_gain"):
            value, label = own[name], name.replace("_", " ")
            ends = sorted((value / 2, value * 2))
            settings.append(Setting(name, label, "of green", value, *ends, abs(value), geometric=True))
        settings.append(Setting("saturation", "saturation", "", 1.0, 0.0, 2.0, 1.0))
        settings.append(Setting("sharpening", "sharpening strength", "", 1.0, 0.0, 3.0, 1.0))
        if self.sharpening.function is stage.unsharp:
            settings.append(Setting("sharpening_radius", "sharpening radius", "px", 1.0, 0.4, 3.0, 1.0))
        settings.append(Setting("blur", "blur width", "px", self.blur, 0.0, 2.0, 1.0))
        settings.append(Setting("gamma", "gamma", "", gamma, gamma / 2, gamma * 2, gamma, geometric=True))
        return {setting.name: setting for setting in settings}


def _base_of(pipeline: PipelineLike, camera: Camera | None) -> _Base:
    isp = open_pipeline(pipeline, camera)
    if isinstance(isp, AdjustableISP):
        return isp.base
    if isinstance(isp, LearnedISP) or (isinstance(isp, ParametrizedISP) and isp.additive is None):
        return _base_of_numbers(isp)
    if not isinstance(isp, StaticISP) or isp.variant == "paper":
        raise ValueError(
            f"{type(isp).__name__} has no settings to turn; give a code such as 'bi,s,ga', a "
            "StaticISP of the variant corrected or camera, a LearnedISP, or a ParametrizedISP without "
            "additive layer"
        )
    name = f"{isp.demosaic}, {isp.sharpening}, {isp.denoising}"
    demosaic, sharpening, denoising = _filters(isp)
    balance_first = isp.variant == "camera"
    base = _Base(name, isp.camera, demosaic, sharpening, (denoising,), balance_first=balance_first)
    is_gaussian = isp.denoising == "gaussian_denoising"
    return replace(base, denoising=(), blur=denoising.values[0]) if is_gaussian else base


def _filters(isp: Pipeline) -> list[Stage]:
    return [step for step in isp.listed() if step.name in ("demosaic", "sharpening", "denoising")]


def _base_of_numbers(isp: ParametrizedISP | LearnedISP) -> _Base:
    """Return the base of what a pipeline has learned, with the camera of which that is the calibration."""
    numbers = {name: value.detach().double().tolist() for name, value in isp.numbers().items()}
    calibration = {n: numbers[n] for n in ("black_level", "white_balance", "colour_matrix")}
    camera = replace(isp.camera, **calibration)
    sharp, blurring = (tuple(map(tuple, numbers[name])) for name in ("sharpening_kernel", "blur_kernel"))
    sharpening = LinearLuma("sharpening", correlate, sharp, reach=len(sharp) // 2)
    if isinstance(isp, ParametrizedISP):
        demosaic = demosaicing("bilinear", camera.cfa)
        denoising = LinearLuma("denoising", correlate, blurring, reach=2)
        return _Base("parametrized", camera, demosaic, sharpening, (denoising,), gamma=numbers["gamma"])
    own = copy.deepcopy(isp).requires_grad_(False)
    demosaic, _, denoising = _filters(own)
    return _Base(f"learned, {isp.demosaic}", camera, demosaic, sharpening, (denoising,), learned=own)


class AdjustableISP(Pipeline):
    """A pipeline with some of its `settings_of` changed: raw (B, 1, H, W) to display (B, 3, H, W).

    The pipeline that was given is not kept and not changed. It has no parameters.

    >>> from r2l.camera import DRONE
    >>> brighter = AdjustableISP("ma,u,me", DRONE, exposure=1.0, saturation=0.5)
    >>> brighter.values["exposure"], brighter.values["sharpening_radius"]
    (1.0, 1.0)

    Args:
        pipeline: what `open_pipeline` takes, if it is a `StaticISP` not of the variant paper, a
            `ParametrizedISP` without additive layer, a `LearnedISP` (blur is then of its display image,
            and gamma what leads to its tone curve), or an `AdjustableISP`.
        camera: layout and calibration; not used where ``pipeline`` is a module and has its own.
        matrix_mix: 0 leaves camera colours as they are, 1 applies the camera's matrix, between mixes. No
            setting, since cameras don't differ by it.
        **values: settings by name; the others stay.

    Attributes:
        values: every setting, by name.
        camera: the calibration that results, without exposure.

    Raises:
        ValueError: an unknown setting (lists those that exist), a value that is not finite, a negative
            blur, gamma or radius, or a black level that reaches white.
    """

    def __init__(
        self,
        pipeline: PipelineLike,
        camera: Camera | None = None,
        *,
        matrix_mix: float = 1.0,
        **values: float,
    ) -> None:
        super().__init__()
        self.base = _base_of(pipeline, camera)
        self.name = self.base.name
        neutral = {name: setting.value for name, setting in self.base.settings.items()}
        if unknown := [name for name in values if name not in neutral]:
            raise ValueError(f"no settings {unknown}; choose from {', '.join(neutral)}")
        present = pipeline.values if isinstance(pipeline, AdjustableISP) else neutral
        self.values = present | {name: float(value) for name, value in values.items()}
        if not all(map(math.isfinite, self.values.values())) or self.values["blur"] < 0:
            raise ValueError(f"a value is not finite, or the blur negative: {self.values}")
        if min(self.values["gamma"], self.values.get("sharpening_radius", 1.0)) <= 0:
            raise ValueError(f"gamma and radius have to be positive: {self.values}")
        self.camera = _adjusted_camera(self.base.camera, self.values, neutral, matrix_mix)
        self._fuse()

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        camera, gain = self.camera, 2.0 ** self.values["exposure"]
        linear = [levels(camera), *([Affine("black_level", torch.mul, gain)] if gain != 1 else ())]
        if (learned := self.base.learned) is not None:
            calibration = {n: torch.tensor(getattr(camera, n)) for n in ("white_balance", "colour_matrix")}
            _, *steps = learned.listed(learned.numbers() | calibration, self.values["gamma"])
            return [*linear, *steps[:-3], self._sharpening(), *self._denoising(), steps[-1]]
        return [
            *linear,
            *colour_stages(camera, self.base.demosaic, self.base.balance_first),
            self._sharpening(),
            *self._denoising(),
            Pointwise("clip", stage.clip),
            Pointwise("gamma", stage.gamma_correct, self.values["gamma"]),
        ]

    def _sharpening(self) -> Luma:
        base, strength = self.base.sharpening, self.values["sharpening"]
        if "sharpening_radius" in self.values:
            sigma = self.values["sharpening_radius"]
            return LinearLuma("sharpening", stage.unsharp, sigma, strength, reach=_reach(sigma))
        if strength == 1:
            return base
        return LinearLuma("sharpening", _strengthened, base, strength, reach=base.reach)

    def _denoising(self) -> list[Stage]:
        steps, sigma = list(self.base.denoising), self.values["blur"]
        if sigma:
            steps.append(LinearLuma("denoising", blur, sigma, reach=_reach(sigma)))
        return steps or [LinearLuma("denoising", _unchanged)]


def settings_of(pipeline: PipelineLike, camera: Camera | None = None) -> dict[str, Setting]:
    """Return the settings of a pipeline, as `AdjustableISP` takes it, by name, in the order of processing.

    ``exposure`` is a digital gain before the clip. Black levels are in units of the range from the camera's
    black to white, and are given common to all positions and for each one alone; ``red_gain`` and
    ``blue_gain`` relative to green; ``saturation`` scales what the matrix leaves of colour around luma;
    ``sharpening`` the change that sharpening makes; ``blur`` is the sigma of the last Gaussian of luma.
    ``sharpening_radius`` is there for unsharp masking.

    >>> from r2l.camera import DRONE
    >>> settings_of("bi,u,ga", DRONE)["sharpening_radius"].unit
    'px'

    Raises:
        ValueError: a pipeline that has no such settings, or a camera without a colour that becomes white.
    """
    return _base_of(pipeline, camera).settings


def _strengthened(y: Tensor, sharpening: Luma, strength: float, border: Border | None) -> Tensor:
    sharpened = sharpening.filter(y, border)
    y = y if border else crop(y, sharpening.reach)
    return y + strength * (sharpened - y)


def _unchanged(y: Tensor, border: Border | None) -> Tensor:
    return y


def _reach(sigma: float) -> int:
    return len(gaussian_kernel(sigma)) // 2


def _adjusted_camera(
    camera: Camera, values: Mapping[str, float], neutral: Mapping[str, float], matrix_mix: float
) -> Camera:
    """Return the calibration after all settings that concern it; neutral ones change nothing."""
    common = values["black_level"] - neutral["black_level"]
    black = [
        level + camera.span * (common + values[name] - neutral[name])
        for level, name in zip(camera.black_level, level_names(camera), strict=True)
    ]
    red, blue = (values[name] / neutral[name] for name in ("red_gain", "blue_gain"))
    matrix = np.array(camera.colour_matrix)
    if matrix_mix != 1:
        # A gain that is negative, as the published microscope's red, is turned back by the identity's sign.
        plain = np.diag(np.where(np.array(camera.white_balance) < 0, -1.0, 1.0))
        matrix = (1 - matrix_mix) * plain + matrix_mix * matrix
    if values["saturation"] != 1:
        grey = _luma_rows(matrix)
        matrix = grey + values["saturation"] * (matrix - grey)
    return replace(
        camera,
        black_level=tuple(black),
        white_balance=tuple(np.multiply(camera.white_balance, (red, 1.0, blue))),
        colour_matrix=tuple(map(tuple, matrix)),
    )
