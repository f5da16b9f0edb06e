"""The static pipelines: fixed processing, twelve published combinations of three choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from r2l.camera import CFA, Camera
from r2l.files import choose
from r2l.isp import functional as stage
from r2l.isp.demosaic import DEMOSAIC
from r2l.isp.filters import Border, blur, median3x3
from r2l.isp.menon import MENON_RADIUS, menon_inside
from r2l.isp.pipeline import (
    Affine,
    Directional,
    Luma,
    Pipeline,
    Pointwise,
    Stage,
    develop_together,
)
from r2l.isp.saving import DESCRIPTION, load_isp, saved_with

Variant = Literal["corrected", "paper", "camera"]

#: Corrected and as published, by the name of the choice.
_Choices = dict[str, dict[str, Stage]]

_SHARPENING: _Choices = {
    "sharpening_filter": {
        "corrected": Luma("sharpening", stage.sharpen, reach=1),
        "paper": Stage("sharpening", stage.sharpening_filter, border="zero"),
    },
    "unsharp_masking": {
        "corrected": Luma("sharpening", stage.unsharp, 1.0, reach=4),
        "paper": Stage("sharpening", stage.unsharp_masking, border="half", vertical_only=True),
    },
}
_DENOISING: _Choices = {
    "median_denoising": {
        "corrected": Luma("denoising", median3x3, reach=1),
        "paper": Stage("denoising", stage.median_denoising, border="half"),
    },
    "gaussian_denoising": {
        "corrected": Luma("denoising", blur, 0.5, reach=2),
        "paper": Stage("denoising", stage.gaussian_denoising, border="half"),
    },
    # Sees all of a row; not among the twelve.
    "fft_denoising": {
        "corrected": Stage("denoising", stage.fft_denoising),
        "paper": Stage("denoising", stage.fft_denoising, paper=True),
    },
}

_DEMOSAIC_REACH = {"bilinear": 1, "malvar2004": 2, "menon2007": MENON_RADIUS}


def demosaicing(method: str, cfa: CFA, border: Border = "mirror") -> Stage:
    """Return a method of `DEMOSAIC` as a stage; with the published borders it has no quick way."""
    function, reach = DEMOSAIC[method], _DEMOSAIC_REACH[method]
    if border != "mirror":
        return Stage("demosaic", function, cfa, border)
    if method == "menon2007":
        return Directional("demosaic", function, cfa, inside=menon_inside, reach=reach)
    return Affine("demosaic", function, cfa, reach=reach)


def colour_stages(camera: Camera, demosaic: Stage, balance_first: bool) -> list[Stage]:
    """Return linear mosaic to linear sRGB: white balance behind ``demosaic``, or before it, as in cameras."""
    gains, matrix = camera.white_balance, camera.colour_matrix
    balance = Affine("white_balance", stage.balance_white, gains)
    if balance_first:
        balance = Affine("white_balance", stage.balance_mosaic, gains, camera.cfa)
        matrix = stage.signed_columns(matrix, gains)
    first = [balance, demosaic] if balance_first else [demosaic, balance]
    return [*first, Affine("colour_matrix", stage.apply_colour_matrix, matrix)]


#: The parts of a pipeline's code, in order: what is chosen, and the choices by their letters.
_PARTS = {
    "demosaic": {"bi": "bilinear", "ma": "malvar2004", "me": "menon2007"},
    "sharpening": {"s": "sharpening_filter", "u": "unsharp_masking"},
    "denoising": {"me": "median_denoising", "ga": "gaussian_denoising", "fft": "fft_denoising"},
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
    chosen = zip((demosaic, sharpening, denoising), _PARTS.items(), strict=True)
    return ",".join(
        choose(what, name, {value: part for part, value in table.items()})
        for name, (what, table) in chosen
    )


@saved_with("demosaic", "sharpening", "denoising", "variant")
class StaticISP(Pipeline):
    """A fixed pipeline: raw mosaic (B, 1, H, W) to display image (B, 3, H, W) in [0, 1].

    Black level, demosaic, white balance, colour matrix, sharpening, denoising, clip, gamma 2.2.
    It has no parameters; gradients pass through to the raw data.

    >>> import torch
    >>> from r2l.camera import DRONE
    >>> isp = StaticISP.from_code("ma,s,ga", DRONE)
    >>> list(isp.stages(torch.rand(1, 1, 8, 8)))[2:5]
    ['demosaic', 'white_balance', 'colour_matrix']

    Args:
        camera: layout and calibration.
        demosaic: bilinear, malvar2004 or menon2007.
        sharpening: sharpening_filter or unsharp_masking.
        denoising: gaussian_denoising, median_denoising or fft_denoising.
        variant: "corrected" (levels to the white level, isotropic filters, mirrored borders); "paper",
            which reproduces what the published numbers were made with, to the border; or "camera", which
            is corrected with white balance before demosaicing, as cameras do it and the published code
            does not. Bilinear demosaicing gives the same either way; Malvar and Menon do not.

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
        choose("sharpening", sharpening, _SHARPENING)
        choose("denoising", denoising, _DENOISING)
        choose("variant", variant, get_args(Variant))
        self.camera = camera
        self.demosaic, self.sharpening, self.denoising = demosaic, sharpening, denoising
        self.variant: Variant = variant
        self._fuse()

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

    def listed(self) -> list[Stage]:
        """Return the stages in order; `paper` differs in levels, borders and filters."""
        camera, paper = self.camera, self.variant == "paper"
        white_level, filters = (None, "paper") if paper else (camera.white_level, "corrected")
        demosaic = demosaicing(self.demosaic, camera.cfa, "half" if paper else "mirror")
        return [
            Affine("black_level", stage.subtract_black_level, camera.black_level, white_level),
            *colour_stages(camera, demosaic, self.variant == "camera"),
            _SHARPENING[self.sharpening][filters],
            _DENOISING[self.denoising][filters],
            Pointwise("clip", stage.clip),
            Pointwise("gamma", stage.gamma_correct, self.gamma),
        ]


#: What names a pipeline: a code, a saved ISP's folder, a module or function from raw to display.
PipelineLike = str | Path | nn.Module | Callable[[Tensor], Tensor]


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


def open_pipeline(spec: PipelineLike, camera: Camera, variant: Variant = "corrected") -> nn.Module:
    """Return what ``spec`` names as a module from raw (B, 1, H, W) to display (B, 3, H, W).

    >>> import torch
    >>> from r2l.camera import DRONE
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


def name_pipelines(
    pipelines: Sequence[str | Path] | Mapping[str, PipelineLike],
) -> dict[str, PipelineLike]:
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
    pipelines: Sequence[str | Path] | Mapping[str, PipelineLike] = PIPELINES,
    variant: Variant = "corrected",
) -> dict[str, Tensor]:
    """Develop ``raw`` (B, 1, H, W) by several pipelines: {name: (B, 3, H, W) in display domain}.

    The same as ``open_pipeline(spec, camera, variant)(raw)`` for each; what static pipelines share,
    demosaicing and sharpening, is done once.

    >>> import torch
    >>> from r2l.camera import DRONE
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
    quick = {name: isp for name, isp in isps.items() if isinstance(isp, Pipeline) and isp.quick}
    views = dict(zip(quick, develop_together(list(quick.values()), raw), strict=True))
    return {name: views[name] if name in views else isp(raw) for name, isp in isps.items()}
