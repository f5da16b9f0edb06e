"""The static pipelines: fixed processing, twelve published combinations of three choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import choose
from r2l.isp import functional as stage
from r2l.isp.demosaic import DEMOSAIC
from r2l.isp.functional import crop
from r2l.isp.fused import apply_affine, develop_in_strips, measure_affine
from r2l.isp.menon import MENON_RADIUS, menon_inside
from r2l.isp.saving import DESCRIPTION, load_isp, saved_with

Variant = Literal["corrected", "paper"]


@dataclass(frozen=True)
class LumaFilter:
    """A filter of luma: how it computes, and how many pixels around a pixel it looks at.

    ``apply(y, border)`` filters (B, 1, H, W); border ``None`` computes only where it fits.
    ``paper(y)`` is what the published code did, to the border.
    """

    radius: int
    apply: Callable[[Tensor, stage.Border | None], Tensor]
    paper: Callable[[Tensor], Tensor]


SHARPENING = {
    "sharpening_filter": LumaFilter(1, stage.sharpen, partial(stage.sharpen, border="zero")),
    "unsharp_masking": LumaFilter(
        4,
        lambda y, border: stage.unsharp(y, border=border),
        partial(stage.unsharp, border="half", vertical_only=True),
    ),
}
DENOISING = {
    "median_denoising": LumaFilter(1, stage.median3x3, partial(stage.median3x3, border="half")),
    "gaussian_denoising": LumaFilter(
        2,
        lambda y, border: stage.blur(y, 0.5, border),
        partial(stage.blur, sigma=0.5, border="half"),
    ),
}
#: Works on the whole frame at once, so it is no `LumaFilter`; not among the twelve.
FFT = "fft_denoising"
DEMOSAIC_RADIUS = {"bilinear": 1, "malvar2004": 2, "menon2007": MENON_RADIUS}

_DEMOSAIC_CODES = {"bi": "bilinear", "ma": "malvar2004", "me": "menon2007"}
_SHARPENING_CODES = {"s": "sharpening_filter", "u": "unsharp_masking"}
_DENOISING_CODES = {"me": "median_denoising", "ga": "gaussian_denoising", "fft": FFT}
#: The parts of a pipeline's code, in order: what is chosen, and the choices by their letters.
_PARTS = {
    "demosaic": _DEMOSAIC_CODES,
    "sharpening": _SHARPENING_CODES,
    "denoising": _DENOISING_CODES,
}

#: The twelve published pipelines, demosaic,sharpening,denoising, in the published order.
PIPELINES: tuple[str, ...] = tuple(
    ",".join(code) for code in product(("bi", "ma", "me"), ("s", "u"), ("me", "ga"))
)


def parse_code(code: str) -> tuple[str, str, str]:
    """Spell out a pipeline code: "ma,s,ga" to its demosaic, sharpening and denoising.

    Raises:
        ValueError: not three parts, or a part that does not exist; lists those that do.
    """
    parts = [part.strip() for part in code.split(",")]
    if len(parts) != 3:
        raise ValueError(
            f"pipeline {code!r} is not of the form demosaic,sharpening,denoising, such as "
            f"{PIPELINES[0]!r}; the published ones: {' '.join(PIPELINES)}"
        )
    return tuple(
        choose(f"{what} in pipeline {code!r}:", part, table)
        for part, (what, table) in zip(parts, _PARTS.items(), strict=True)
    )


def pipeline_code(demosaic: str, sharpening: str, denoising: str) -> str:
    """Return the pipeline code of three choices: the inverse of `parse_code`.

    Raises:
        ValueError: a choice that does not exist; lists those that do.
    """
    parts = []
    for name, (what, table) in zip((demosaic, sharpening, denoising), _PARTS.items(), strict=True):
        parts.append(choose(what, name, {value: part for part, value in table.items()}))
    return ",".join(parts)


@saved_with("demosaic", "sharpening", "denoising", "variant")
class StaticISP(nn.Module):
    """A fixed pipeline: raw mosaic (B, 1, H, W) to display image (B, 3, H, W) in [0, 1].

    Black level, demosaic, white balance, colour matrix, sharpening, denoising, clip, gamma 2.2.
    It has no parameters; gradients pass through to the raw data.

    Args:
        camera: layout and calibration.
        demosaic: bilinear, malvar2004 or menon2007.
        sharpening: sharpening_filter or unsharp_masking.
        denoising: gaussian_denoising, median_denoising or fft_denoising.
        variant: "corrected" (levels to the white level, isotropic filters, mirrored borders) or "paper",
            which reproduces what the published numbers were made with, to the border.

    Raises:
        ValueError: an option that does not exist; lists those that do.

    Source: Oala et al., TMLR 2023, and its code.
    """

    gamma = 2.2

    def __init__(
        self,
        camera: Camera,
        demosaic: str = "bilinear",
        sharpening: str = "sharpening_filter",
        denoising: str = "gaussian_denoising",
        variant: Variant = "corrected",
    ) -> None:
        super().__init__()
        choose("demosaic", demosaic, DEMOSAIC)
        choose("sharpening", sharpening, SHARPENING)
        choose("denoising", denoising, [*DENOISING, FFT])
        choose("variant", variant, ["corrected", "paper"])
        self.camera = camera
        self.demosaic, self.sharpening, self.denoising = demosaic, sharpening, denoising
        self.variant: Variant = variant
        if demosaic == "menon2007":
            self._colours = _fold_colours(camera)
        else:
            weight, bias = _fold_front(camera, demosaic)
            self.register_buffer("_weight", weight, persistent=False)
            self.register_buffer("_bias", bias, persistent=False)

    @classmethod
    def from_code(cls, code: str, camera: Camera, variant: Variant = "corrected") -> StaticISP:
        """Return the pipeline of a code such as "ma,s,ga".

        Raises:
            ValueError: a code that does not exist; lists those that do.
        """
        return cls(camera, *parse_code(code), variant=variant)

    def extra_repr(self) -> str:
        """Say which pipeline this is."""
        return f"{self.demosaic}, {self.sharpening}, {self.denoising}, {self.variant}, {self.camera.name}"

    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order; the first is ``raw``, the last the result."""
        paper = self.variant == "paper"
        white_level = None if paper else self.camera.white_level
        out = {"raw": raw}
        out["black_level"] = stage.subtract_black_level(raw, self.camera.black_level, white_level)
        border = "half" if paper else "mirror"
        rgb = out["demosaic"] = DEMOSAIC[self.demosaic](out["black_level"], self.camera.cfa, border)
        rgb = out["white_balance"] = stage.balance_white(rgb, self.camera.white_balance)
        rgb = out["colour_matrix"] = stage.apply_colour_matrix(rgb, self.camera.colour_matrix)
        rgb = out["sharpening"] = self._filter(rgb, SHARPENING[self.sharpening])
        if self.denoising == FFT:
            rgb = out["denoising"] = stage.fft_denoising(rgb, paper=paper)
        else:
            rgb = out["denoising"] = self._filter(rgb, DENOISING[self.denoising])
        rgb = out["clip"] = stage.clip(rgb)
        out["gamma"] = stage.gamma_correct(rgb, self.gamma)
        return out

    def _filter(self, rgb: Tensor, luma_filter: LumaFilter) -> Tensor:
        if self.variant == "paper":
            return stage.filter_luma(rgb, luma_filter.paper)
        return stage.filter_luma(rgb, lambda y: luma_filter.apply(y, "mirror"))

    def forward(self, raw: Tensor) -> Tensor:
        """Develop ``raw`` (B, 1, H, W), raw domain, to (B, 3, H, W), display domain.

        Raises:
            ValueError: wrong shape or dtype, odd height or width.
        """
        stage.check_mosaic(raw)
        if self.variant == "paper" or self.denoising == FFT:
            return self.stages(raw)["gamma"]
        return _develop(raw, [self])[0]

    def _linear_front(self, mosaic: Tensor) -> Tensor:
        """Return `_colours` (B, 4, h, w) of a mosaic, smaller by `_front_margin`."""
        if self.demosaic == "menon2007":
            linear = stage.subtract_black_level(
                mosaic, self.camera.black_level, self.camera.white_level
            )
            return menon_inside(linear, self.camera.cfa, matrix=self._colours)
        return apply_affine(mosaic, self._weight, self._bias)


def _front_margin(demosaic: str) -> int:
    """Return how many pixels the front takes off each side: whole tiles."""
    return (DEMOSAIC_RADIUS[demosaic] + 1) // 2 * 2


def _colours(rgb: Tensor, camera: Camera) -> Tensor:
    """Take camera colours to what luma leaves of linear R, G and B, and luma (B, 4, H, W)."""
    rgb = stage.balance_white(rgb, camera.white_balance)
    rgb = stage.apply_colour_matrix(rgb, camera.colour_matrix)
    y = stage.luma(rgb)
    return torch.cat([rgb - y, y], dim=1)


def _fold_colours(camera: Camera) -> list[list[float]]:
    """Return `_colours` as one 4x3 matrix."""
    basis = torch.eye(3, dtype=torch.float64).reshape(3, 3, 1, 1)
    return _colours(basis, camera).reshape(3, 4).T.tolist()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve those who want gradients
def _fold_front(camera: Camera, demosaic: str) -> tuple[Tensor, Tensor]:
    """Return the convolution that takes a mosaic to `_colours`."""

    def front(raw: Tensor) -> Tensor:
        linear = stage.subtract_black_level(raw, camera.black_level, camera.white_level)
        return _colours(DEMOSAIC[demosaic](linear, camera.cfa), camera)

    like = torch.empty(0, dtype=torch.float64)
    return measure_affine(front, DEMOSAIC_RADIUS[demosaic], like)


def _develop(raw: Tensor, isps: Sequence[StaticISP]) -> list[Tensor]:
    """Develop by several corrected pipelines of one camera; what they share is done once a strip."""
    tails = [(SHARPENING[isp.sharpening], DENOISING[isp.denoising]) for isp in isps]
    needed = [
        _front_margin(i.demosaic) + s.radius + d.radius
        for i, (s, d) in zip(isps, tails, strict=True)
    ]
    margin = (max(needed) + 1) // 2 * 2

    def develop(strip: Tensor, places: Sequence[Tensor | None]) -> list[Tensor]:
        fronts: dict[str, Tensor] = {}
        sharpened: dict[tuple[str, str], Tensor] = {}
        pictures = []
        for isp, (sharpening, denoising), place in zip(isps, tails, places, strict=True):
            if isp.demosaic not in fronts:
                fronts[isp.demosaic] = isp._linear_front(strip)
            front = fronts[isp.demosaic]
            key = (isp.demosaic, isp.sharpening)
            if key not in sharpened:
                sharpened[key] = sharpening.apply(front[:, 3:], None)
            excess = margin - _front_margin(isp.demosaic) - sharpening.radius - denoising.radius
            y = crop(denoising.apply(sharpened[key], None), excess)
            front = crop(front, margin - _front_margin(isp.demosaic))
            rgb = torch.add(front[:, :3], y, out=place)
            out = None if place is None else rgb
            pictures.append(stage.gamma_correct(rgb, isp.gamma, out))  # clips first
        return pictures

    return develop_in_strips(raw, margin, len(isps), develop)


#: What names a pipeline: a code, a saved ISP's folder, a module or function from raw to display.
Pipeline = str | Path | nn.Module | Callable[[Tensor], Tensor]


class _Function(nn.Module):
    """A function as a module, its ends watched."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, raw: Tensor) -> Tensor:
        stage.check_mosaic(raw)
        image = self.function(raw)
        stage.check_image(image)
        return image


def open_pipeline(spec: Pipeline, camera: Camera, variant: Variant = "corrected") -> nn.Module:
    """Return what ``spec`` names as a module from raw (B, 1, H, W) to display (B, 3, H, W).

    >>> from r2l import DRONE
    >>> open_pipeline("ma,s,ga", DRONE)
    StaticISP(malvar2004, sharpening_filter, gaussian_denoising, corrected, Hasselblad L1D-20c (Raw-Drone))
    >>> grey = open_pipeline(lambda raw: raw.expand(-1, 3, -1, -1), DRONE)
    >>> grey(torch.rand(1, 1, 4, 6)).shape
    torch.Size([1, 3, 4, 6])

    Args:
        spec: a code; the folder of a saved ISP (which has its own camera); a module, which is returned as
            it is; or any function of a raw batch.
        camera: of a pipeline that is given by its code.
        variant: likewise; see `StaticISP`.

    Raises:
        ValueError: none of these, a code that does not exist (lists those that do), a damaged folder.
    """
    if isinstance(spec, nn.Module):
        return spec
    if isinstance(spec, Path) or (isinstance(spec, str) and (Path(spec) / DESCRIPTION).is_file()):
        return load_isp(spec)
    if isinstance(spec, str) and "," in spec:
        return StaticISP.from_code(spec, camera, variant)
    if callable(spec):
        return _Function(spec)
    raise ValueError(
        f"{spec!r} is no pipeline; give a code (the published ones: {' '.join(PIPELINES)}), the folder that "
        "save_isp wrote an ISP to, or a module or function from raw (B, 1, H, W) to display (B, 3, H, W)"
    )


def name_pipelines(pipelines: Sequence[str | Path] | Mapping[str, Pipeline]) -> dict[str, Pipeline]:
    """Return pipelines by name: a mapping as it is, codes and folders by themselves.

    Raises:
        ValueError: a module or function without a name.
    """
    if isinstance(pipelines, Mapping):
        return dict(pipelines)
    if nameless := [spec for spec in pipelines if not isinstance(spec, str | Path)]:
        raise ValueError(
            f"{type(nameless[0]).__name__} has no name; give modules and functions as {{name: pipeline}}"
        )
    return {str(spec): spec for spec in pipelines}


def develop_all(
    raw: Tensor,
    camera: Camera,
    pipelines: Sequence[str | Path] | Mapping[str, Pipeline] = PIPELINES,
    variant: Variant = "corrected",
) -> dict[str, Tensor]:
    """Develop ``raw`` (B, 1, H, W) by several pipelines: {name: (B, 3, H, W) in display domain}.

    The same as ``open_pipeline(spec, camera, variant)(raw)`` for each; what static pipelines share,
    demosaicing and sharpening, is done once.

    >>> from r2l import DRONE
    >>> views = develop_all(torch.rand(2, 1, 8, 8), DRONE, ["bi,s,ga", "bi,s,me"])
    >>> {code: tuple(view.shape) for code, view in views.items()}
    {'bi,s,ga': (2, 3, 8, 8), 'bi,s,me': (2, 3, 8, 8)}

    Args:
        raw: raw domain.
        camera: whose frames they are.
        pipelines: codes and folders, or a mapping of names to whatever `open_pipeline` takes.
        variant: of pipelines that are given by their codes.

    Raises:
        ValueError: as `open_pipeline` and `name_pipelines`; wrong shape or dtype, odd height or width.
    """
    stage.check_mosaic(raw)
    isps = {n: open_pipeline(p, camera, variant) for n, p in name_pipelines(pipelines).items()}
    quick = [
        name
        for name, isp in isps.items()
        if isinstance(isp, StaticISP)
        and (isp.variant, isp.camera) == ("corrected", camera)
        and isp.denoising != FFT
    ]
    views = dict(zip(quick, _develop(raw, [isps[n] for n in quick]), strict=True)) if quick else {}
    return {name: views[name] if name in views else isp(raw) for name, isp in isps.items()}
