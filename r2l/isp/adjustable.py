"""A pipeline that is turned by named numbers, in units that people and cameras use."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from r2l.camera import Camera
from r2l.isp import functional as stage
from r2l.isp.filters import Border, blur, correlate, crop, gaussian_kernel
from r2l.isp.grammar import PipelineLike, open_pipeline
from r2l.isp.learned import LearnedISP
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.pipeline import Affine, Luma, Pipeline, Pointwise, Stage
from r2l.isp.settings import Setting, level_names, luma_rows, settings_for
from r2l.isp.static import StaticISP, colour_stages, demosaicing


@dataclass(frozen=True)
class _Base:
    """A pipeline as settings see it. Of denoising the last Gaussian is left out: its width is a setting."""

    name: str
    camera: Camera
    demosaic: Stage
    sharpening: Luma
    denoising: tuple[Stage, ...]
    blur: float
    gamma: float
    balance_first: bool = False
    learned: LearnedISP | None = None

    @property
    def settings(self) -> dict[str, Setting]:
        unsharp = self.sharpening.function is stage.unsharp
        return settings_for(self.camera, unsharp, self.blur, self.gamma)


def _base_of(pipeline: PipelineLike, camera: Camera | None) -> _Base:
    isp = open_pipeline(pipeline, camera)
    if isinstance(isp, AdjustableISP):
        return isp.base
    if isinstance(isp, ParametrizedISP) and isp.additive is None:
        return _base_of_parametrized(isp)
    if isinstance(isp, LearnedISP):
        return _base_of_learned(isp)
    if not isinstance(isp, StaticISP) or isp.variant == "paper":
        raise ValueError(
            f"{type(isp).__name__} has no settings to turn; give a code such as 'bi,s,ga', a "
            "StaticISP of the variant corrected or camera, a LearnedISP, or a ParametrizedISP without "
            "additive layer"
        )
    steps = {step.name: step for step in isp.listed()}
    gaussian = isp.denoising == "gaussian_denoising"
    return _Base(
        name=f"{isp.demosaic}, {isp.sharpening}, {isp.denoising}",
        camera=isp.camera,
        demosaic=steps["demosaic"],
        sharpening=steps["sharpening"],
        denoising=() if gaussian else (steps["denoising"],),
        blur=steps["denoising"].values[0] if gaussian else 0.0,
        gamma=isp.gamma,
        balance_first=isp.variant == "camera",
    )


def _base_of_parametrized(isp: ParametrizedISP) -> _Base:
    numbers, camera = _in_numbers(isp)
    sharpening, blurring = (tuple(map(tuple, numbers[name])) for name in ("sharpening_kernel", "blur_kernel"))
    return _Base(
        name="parametrized",
        camera=camera,
        demosaic=demosaicing("bilinear", isp.camera.cfa),
        sharpening=Luma("sharpening", correlate, sharpening, reach=1),
        denoising=(Luma("denoising", correlate, blurring, reach=2),),
        blur=0.0,
        gamma=numbers["gamma"],
    )


def _in_numbers(isp: ParametrizedISP | LearnedISP) -> tuple[dict[str, list], Camera]:
    """Return what a pipeline has learned, and the camera of which that is the calibration."""
    numbers = {name: value.detach().double().tolist() for name, value in isp.numbers().items()}
    calibration = {n: numbers[n] for n in ("black_level", "white_balance", "colour_matrix")}
    return numbers, replace(isp.camera, **calibration)


def _base_of_learned(isp: LearnedISP) -> _Base:
    numbers, camera = _in_numbers(isp)
    kernel = tuple(map(tuple, numbers["sharpening_kernel"]))
    isp = copy.deepcopy(isp).requires_grad_(False)
    steps = {step.name: step for step in isp.listed()}
    return _Base(
        name=f"learned, {isp.demosaic}",
        camera=camera,
        demosaic=steps["demosaic"],
        sharpening=Luma("sharpening", correlate, kernel, reach=len(kernel) // 2),
        denoising=(steps["denoising"],),
        blur=0.0,
        gamma=StaticISP.gamma,
        learned=isp,
    )


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
        name: of the pipeline that was given.

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
        positive = [self.values["gamma"], self.values.get("sharpening_radius", 1.0)]
        if not all(map(math.isfinite, self.values.values())) or self.values["blur"] < 0:
            raise ValueError(f"a value is not finite, or the blur negative: {self.values}")
        if min(positive) <= 0:
            raise ValueError(f"gamma and radius have to be positive: {self.values}")
        self.camera = _adjusted_camera(self.base.camera, self.values, neutral, matrix_mix)
        self._fuse()

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        camera, gain = self.camera, 2.0 ** self.values["exposure"]
        levels = Affine("black_level", _exposed, camera.black_level, camera.white_level, gain)
        if (learned := self.base.learned) is not None:
            calibration = {n: torch.tensor(getattr(camera, n)) for n in ("white_balance", "colour_matrix")}
            _, *steps = learned.listed(learned.numbers() | calibration, self.values["gamma"])
            return [levels, *steps[:-3], self._sharpening(), *self._denoising(), steps[-1]]
        return [
            levels,
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
            return Luma("sharpening", stage.unsharp, sigma, strength, reach=_reach(sigma))
        if strength == 1:
            return base
        return Luma("sharpening", _strengthened, base, strength, reach=base.reach)

    def _denoising(self) -> list[Stage]:
        steps, sigma = list(self.base.denoising), self.values["blur"]
        if sigma:
            steps.append(Luma("denoising", blur, sigma, reach=_reach(sigma)))
        return steps or [Luma("denoising", _unchanged)]


def settings_of(pipeline: PipelineLike, camera: Camera | None = None) -> dict[str, Setting]:
    """Return the settings of a pipeline by name, in the order of processing.

    ``exposure`` is a digital gain before the clip. Black levels are in units of the range from the camera's
    black to white, and are given common to all positions and for each one alone; ``red_gain`` and
    ``blue_gain`` relative to green; ``saturation`` scales what the matrix leaves of colour around luma;
    ``sharpening`` the change that sharpening makes; ``blur`` is the sigma of the last Gaussian of luma.
    ``sharpening_radius`` is there for unsharp masking.

    >>> from r2l.camera import DRONE
    >>> settings_of("bi,u,ga", DRONE)["sharpening_radius"].unit
    'px'

    Args:
        pipeline: as in `AdjustableISP`.
        camera: likewise.

    Raises:
        ValueError: a pipeline that has no such settings, or a camera without a colour that becomes white.
    """
    return _base_of(pipeline, camera).settings


def _exposed(raw: Tensor, black: tuple[float, ...], white: float, gain: float) -> Tensor:
    linear = stage.subtract_black_level(raw, black, white)
    return linear if gain == 1 else linear * gain


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
    levels = [
        level + camera.span * (common + values[name] - neutral[name])
        for level, name in zip(camera.black_level, level_names(camera), strict=True)
    ]
    factors = [values["red_gain"] / neutral["red_gain"], 1.0]
    factors.append(values["blue_gain"] / neutral["blue_gain"])
    matrix = np.array(camera.colour_matrix)
    if matrix_mix != 1:
        # A gain that is negative, as the published microscope's red, is turned back by the identity's sign.
        plain = np.diag(np.where(np.array(camera.white_balance) < 0, -1.0, 1.0))
        matrix = (1 - matrix_mix) * plain + matrix_mix * matrix
    if values["saturation"] != 1:
        grey = luma_rows(matrix)
        matrix = grey + values["saturation"] * (matrix - grey)
    return replace(
        camera,
        black_level=tuple(levels),
        white_balance=tuple(np.multiply(camera.white_balance, factors)),
        colour_matrix=tuple(map(tuple, matrix)),
    )
