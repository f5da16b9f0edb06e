"""A pipeline turned by named settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.drift.forensics.settings import (
    Base,
    level_names,
    luma_rows,
    settings_of,
)
from r2l.isp import functional as stage
from r2l.isp.demosaic import DEMOSAIC
from r2l.isp.fused import apply_affine, develop_in_strips, measure_affine
from r2l.isp.menon import menon_inside
from r2l.isp.static import DEMOSAIC_RADIUS


class AdjustedISP(nn.Module):
    """A pipeline with some of its `settings_of` changed: raw (B, 1, H, W) to display (B, 3, H, W).

    The pipeline that was given is not kept and not changed. It has no parameters.

    Args:
        pipeline: a code such as "ma,u,me", a corrected `StaticISP`, or a `ParametrizedISP`.
        camera: layout and calibration; not used where ``pipeline`` is a module and has its own.
        **values: settings by name; the others stay.

    Attributes:
        values: every setting, by name.
        camera: the calibration that results.

    Raises:
        ValueError: an unknown setting (lists those that exist), a value that is not finite, a negative
            blur, gamma or radius, or a black level that reaches white.
    """

    def __init__(self, pipeline: str | nn.Module | Base, camera: Camera, **values: float) -> None:
        super().__init__()
        base = pipeline if isinstance(pipeline, Base) else Base.of(pipeline, camera)
        settings = settings_of(base)
        if unknown := [name for name in values if name not in settings]:
            raise ValueError(f"no settings {unknown}; choose from {', '.join(settings)}")
        self.values = {n: float(values.get(n, s.value)) for n, s in settings.items()}
        positive = [self.values["gamma"], self.values.get("sharpening_radius", 1.0)]
        if not all(map(math.isfinite, self.values.values())) or self.values["blur"] < 0:
            raise ValueError(f"a value is not finite, or the blur negative: {self.values}")
        if min(positive) <= 0:
            raise ValueError(f"gamma and radius have to be positive: {self.values}")
        self.base = base
        neutral = {name: setting.value for name, setting in settings.items()}
        self.camera = _adjusted_camera(base.camera, self.values, neutral)
        self._colours = _colour_rows(self.camera)
        if base.demosaic != "menon2007":
            like = torch.empty(0, dtype=torch.float64)
            weight, bias = measure_affine(self._front_stages, DEMOSAIC_RADIUS[base.demosaic], like)
            self.register_buffer("_weight", weight, persistent=False)
            self.register_buffer("_bias", bias, persistent=False)

    def _front_stages(self, raw: Tensor) -> Tensor:
        linear = stage.subtract_black_level(raw, self.camera.black_level, self.camera.white_level)
        rgb = DEMOSAIC[self.base.demosaic](linear, self.camera.cfa)
        return stage.apply_colour_matrix(rgb, self._colours)

    def _front(self, mosaic: Tensor) -> Tensor:
        """Return linear R, G, B less luma, and luma, (B, 4, h, w); whole tiles smaller."""
        if self.base.demosaic != "menon2007":
            return apply_affine(mosaic, self._weight, self._bias)
        levels = self.camera.black_level, self.camera.white_level
        linear = stage.subtract_black_level(mosaic, *levels)
        return menon_inside(linear, self.camera.cfa, matrix=self._colours)

    def _sharpened(self, y: Tensor, border: stage.Border | None) -> Tensor:
        strength = self.values["sharpening"]
        if self.base.unsharp:
            return stage.unsharp(y, self.values["sharpening_radius"], strength, border)
        sharpened = self.base.sharpen(y, border)
        if strength == 1:
            return sharpened
        y = y if border else stage.crop(y, self.base.sharpen_radius)
        return y + strength * (sharpened - y)

    def _denoised(self, y: Tensor, border: stage.Border | None) -> Tensor:
        y, sigma = self.base.denoise(y, border), self.values["blur"]
        return stage.blur(y, sigma, border) if sigma else y

    def _reach(self) -> int:
        """Pixels around a pixel that sharpening and denoising look at."""
        widths = [self.values["blur"]]
        if self.base.unsharp:
            widths.append(self.values["sharpening_radius"])
        fixed = self.base.denoise_radius + (0 if self.base.unsharp else self.base.sharpen_radius)
        return fixed + sum(len(stage.gaussian_kernel(w)) // 2 for w in widths if w)

    def forward(self, raw: Tensor) -> Tensor:
        """Develop ``raw`` (B, 1, H, W), raw domain, to (B, 3, H, W), display domain.

        Raises:
            ValueError: wrong shape or dtype, odd height or width.
        """
        stage.check_mosaic(raw)
        # The front takes off whole tiles.
        front_margin = (DEMOSAIC_RADIUS[self.base.demosaic] + 1) // 2 * 2
        reach = self._reach()
        excess = reach % 2
        gamma = self.values["gamma"]

        def develop(strip: Tensor, places: Sequence[Tensor | None]) -> list[Tensor]:
            front = self._front(strip)
            y = stage.crop(self._denoised(self._sharpened(front[:, 3:], None), None), excess)
            rgb = torch.add(stage.crop(front[:, :3], reach + excess), y, out=places[0])
            return [stage.gamma_correct(rgb, gamma, None if places[0] is None else rgb)]

        return develop_in_strips(raw, front_margin + reach + excess, 1, develop)[0]

    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order; the first is ``raw``, the last the result."""
        camera = self.camera
        out = {"raw": raw}
        linear = stage.subtract_black_level(raw, camera.black_level, camera.white_level)
        out["black_level"] = linear
        rgb = out["demosaic"] = DEMOSAIC[self.base.demosaic](linear, camera.cfa)
        rgb = out["white_balance"] = stage.balance_white(rgb, camera.white_balance)
        rgb = out["colour_matrix"] = stage.apply_colour_matrix(rgb, camera.colour_matrix)
        rgb = out["sharpening"] = stage.filter_luma(rgb, lambda y: self._sharpened(y, "mirror"))
        rgb = out["denoising"] = stage.filter_luma(rgb, lambda y: self._denoised(y, "mirror"))
        rgb = out["clip"] = stage.clip(rgb)
        out["gamma"] = stage.gamma_correct(rgb, self.values["gamma"])
        return out


def _adjusted_camera(
    camera: Camera, values: Mapping[str, float], neutral: Mapping[str, float]
) -> Camera:
    """Return the calibration after all settings that concern it; neutral ones change nothing."""
    common = values["black_level"] - neutral["black_level"]
    levels = [
        level + common + values[name] - neutral[name]
        for level, name in zip(camera.black_level, level_names(camera), strict=True)
    ]
    factors = [values["red_gain"] / neutral["red_gain"], 1.0]
    factors.append(values["blue_gain"] / neutral["blue_gain"])
    matrix = np.array(camera.colour_matrix)
    if values["saturation"] != 1:
        grey = luma_rows(matrix)
        matrix = grey + values["saturation"] * (matrix - grey)
    return replace(
        camera,
        black_level=tuple(levels),
        white_balance=tuple(np.multiply(camera.white_balance, factors)),
        colour_matrix=tuple(map(tuple, 2.0 ** values["exposure"] * matrix)),
    )


def _colour_rows(camera: Camera) -> list[list[float]]:
    """Return the 4x3 matrix from demosaiced colours to linear R, G, B less luma, and luma."""
    whole = np.array(camera.colour_matrix) @ np.diag(camera.white_balance)
    y = np.array(stage.LUMA) @ whole
    return np.vstack([whole - y, y]).tolist()
