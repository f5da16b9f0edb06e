"""Pipelines without parameters: twelve published combinations of three choices, and other programs'."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from r2l.camera import CFA, Camera
from r2l.files import R2LError, choose
from r2l.isp import functional as stage
from r2l.isp.demosaic import DEMOSAIC, MENON_RADIUS, menon_inside
from r2l.isp.filters import Border, blur, crop, is_recorded, median3x3, pad
from r2l.isp.pipeline import Affine, Directional, LinearLuma, Luma, Pipeline, Pointwise, Stage
from r2l.isp.saving import saved_with

Variant = Literal["corrected", "paper", "camera"]

#: Corrected and as published, by the name of the choice.
_Choices = dict[str, dict[str, Stage]]

_SHARPENING: _Choices = {
    "sharpening_filter": {
        "corrected": LinearLuma("sharpening", stage.sharpen, reach=1),
        "paper": Stage("sharpening", stage.sharpening_filter, border="zero"),
    },
    "unsharp_masking": {
        "corrected": LinearLuma("sharpening", stage.unsharp, 1.0, reach=4),
        "paper": Stage("sharpening", stage.unsharp_masking, border="half", vertical_only=True),
    },
}
_DENOISING: _Choices = {
    "median_denoising": {
        "corrected": Luma("denoising", median3x3, reach=1),
        "paper": Stage("denoising", stage.median_denoising, border="half"),
    },
    "gaussian_denoising": {
        "corrected": LinearLuma("denoising", blur, 0.5, reach=2),
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


def levels(camera: Camera) -> Affine:
    """Return the stage from raw to linear."""
    return Affine("black_level", stage.subtract_black_level, camera.black_level, camera.white_level)


#: From linear sRGB to display.
_TO_DISPLAY = (Pointwise("clip", stage.clip), Pointwise("gamma", stage.gamma_correct, 2.2))

#: The parts of a pipeline's code, in order: what is chosen, and the choices by their letters.
_PARTS = {
    "demosaic": {"bi": "bilinear", "ma": "malvar2004", "me": "menon2007"},
    "sharpening": {"s": "sharpening_filter", "u": "unsharp_masking"},
    "denoising": {"me": "median_denoising", "ga": "gaussian_denoising", "fft": "fft_denoising"},
}

#: The twelve published pipelines, demosaic,sharpening,denoising, in the published order.
PIPELINES = tuple(",".join(code) for code in product(("bi", "ma", "me"), ("s", "u"), ("me", "ga")))


def parse_code(code: str) -> tuple[str, str, str]:
    """Spell out a pipeline code, "ma,s,ga": its demosaic, sharpening and denoising, else a ValueError."""
    parts = [part.strip() for part in code.split(",")]
    if len(parts) != 3:
        raise ValueError(
            f"pipeline {code!r} is not of the form demosaic,sharpening,denoising, such as "
            f"{PIPELINES[0]!r}; the published ones: {' '.join(PIPELINES)}"
        )
    return tuple(
        choose(f"{w} in pipeline {code!r}:", p, _PARTS[w]) for w, p in zip(_PARTS, parts, strict=True)
    )


def pipeline_code(demosaic: str, sharpening: str, denoising: str) -> str:
    """Return the pipeline code of three choices: the inverse of `parse_code`."""
    letters = {what: {name: part for part, name in table.items()} for what, table in _PARTS.items()}
    names = {"demosaic": demosaic, "sharpening": sharpening, "denoising": denoising}
    return ",".join(choose(what, name, letters[what]) for what, name in names.items())


@saved_with("demosaic", "sharpening", "denoising", "variant")
class StaticISP(Pipeline):
    """A fixed pipeline: raw mosaic (B, 1, H, W) to display image (B, 3, H, W) in [0, 1].

    Black level, demosaic, white balance, colour matrix, sharpening, denoising, clip, gamma 2.2. It has no
    parameters; gradients pass through to the raw data. A ValueError lists the options that exist.

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
        self.camera = camera
        self.demosaic = choose("demosaic", demosaic, list(DEMOSAIC))
        self.sharpening = choose("sharpening", sharpening, list(_SHARPENING))
        self.denoising = choose("denoising", denoising, list(_DENOISING))
        self.variant = choose("variant", variant, get_args(Variant))
        self._fuse()

    @classmethod
    def from_code(cls, code: str, camera: Camera, variant: Variant = "corrected") -> StaticISP:
        """Return the pipeline of a code such as "ma,s,ga"; a ValueError lists those that exist."""
        return cls(camera, *parse_code(code), variant=variant)

    def extra_repr(self) -> str:
        """Say which pipeline this is."""
        return f"{self.demosaic}, {self.sharpening}, {self.denoising}, {self.variant}, {self.camera.name}"

    def listed(self) -> list[Stage]:
        """Return the stages in order; `paper` differs in levels, borders and filters."""
        camera, paper = self.camera, self.variant == "paper"
        published = Affine("black_level", stage.subtract_black_level, camera.black_level, None)
        demosaic = demosaicing(self.demosaic, camera.cfa, "half" if paper else "mirror")
        filters = "paper" if paper else "corrected"
        return [
            published if paper else levels(camera),
            *colour_stages(camera, demosaic, self.variant == "camera"),
            _SHARPENING[self.sharpening][filters],
            _DENOISING[self.denoising][filters],
            *_TO_DISPLAY,
        ]


#: Stages before a pipeline, from mosaic to mosaic: see `r2l.isp.added_stages`.
MOSAIC = ("defects", "shading", "lines")

#: Programs that demosaic, and their methods.
ENGINES = {"libraw": ("linear", "ppg", "ahd", "dcb", "dht", "vng"), "opencv": ("bilinear", "ea", "vng")}


@saved_with("engine")
class EngineISP(Pipeline):
    """A pipeline whose demosaicing is another program's: levels, balance, LibRaw or OpenCV, matrix, gamma.

    White balance comes first, as in those programs; nothing is sharpened or denoised. Colours are r2l's, to
    the rounding of the program's 16 bit (8 bit for opencv:vng, which takes no more); what lies below black is
    lost in it. No gradients pass: to want them is a ValueError, as is an engine that does not exist.

    >>> from r2l.camera import DRONE
    >>> import torch
    >>> EngineISP(DRONE, "libraw:ahd")(torch.rand(1, 1, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(self, camera: Camera, engine: str) -> None:
        super().__init__()
        program, _, method = engine.partition(":")
        choose(f"method of {program}", method, choose("engine", program, ENGINES))
        self.camera, self.engine = camera, engine

    def extra_repr(self) -> str:
        """Say which this is."""
        return f"{self.engine}, {self.camera.name}"

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        demosaic = Stage("demosaic", _demosaic_by, *self.engine.split(":"), self.camera)
        return [levels(self.camera), *colour_stages(self.camera, demosaic, balance_first=True), *_TO_DISPLAY]


# Whole tiles of the frame's mirror image around it: LibRaw takes no fewer than 22 pixels, and both programs
# do something else within a few pixels of the border.
_MARGIN = 10
_OneFrame = Callable[[np.ndarray], np.ndarray]


def _demosaic_by(mosaic: Tensor, engine: str, method: str, camera: Camera) -> Tensor:
    """Demosaic (B, 1, H, W), linear and balanced, to (B, 3, H, W), balanced camera colours.

    Of the camera count the layout; gains, of which the largest saturates; and the matrix, by which LibRaw's
    ahd judges which of two directions looks smoother. Both programs take and give whole numbers. Both let
    other threads run meanwhile (measured), so a batch is shared among threads.
    """
    if is_recorded(mosaic):
        raise ValueError(
            f"{engine}:{method} passes no gradients, so it can't be attacked or trained through: take one of "
            "r2l's own, such as 'ma,s,ga@camera', or learn_pipeline's copy of it; or torch.no_grad()"
        )
    if not len(mosaic):
        return mosaic.expand(-1, 3, -1, -1)
    frame = (_libraw if engine == "libraw" else _opencv)(method, camera)
    # OpenCV's VNG takes bytes only.
    steps = 255 if (engine, method) == ("opencv", "vng") else 65535
    peak = max(map(abs, camera.white_balance)) / steps
    padded = pad(mosaic.detach(), (_MARGIN,) * 2, (_MARGIN,) * 2, "mirror")[:, 0].cpu().double()
    whole = (padded / peak).round().clamp(0, steps).numpy()
    whole = whole.astype(np.uint8 if steps == 255 else np.uint16)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        images = np.stack(list(threads.map(frame, whole)))
    image = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) * peak
    return crop(image, _MARGIN).to(mosaic).contiguous()


def _libraw(method: str, camera: Camera) -> _OneFrame:
    """Return LibRaw's demosaicing: nothing else that it does to a picture is left on."""
    import rawpy

    from r2l.rawfile.dng_tags import encode_dng

    plain = {"black_level": (0.0,) * 4, "white_level": 1.0, "white_balance": (1.0,) * 3}
    plain["colour_matrix"] = stage.signed_columns(camera.colour_matrix, camera.white_balance)
    settings = {
        "demosaic_algorithm": rawpy.DemosaicAlgorithm[method.upper()],
        "output_color": rawpy.ColorSpace.raw,
        "output_bps": 16,
        "gamma": (1, 1),
        "user_wb": [1.0] * 4,
        "no_auto_bright": True,
        # Otherwise the brightest pixel of a frame would set its white.
        "adjust_maximum_thr": 0.0,
    }

    def frame(steps: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        encode_dng(file, steps, replace(camera, **plain))
        file.seek(0)
        with rawpy.imread(file) as raw:
            return raw.postprocess(**settings)

    return frame


def _opencv(method: str, camera: Camera) -> _OneFrame:
    try:
        import cv2
    except ImportError as error:
        remedy = "pip install opencv-python-headless"
        raise R2LError(f"opencv:{method}", "OpenCV is not installed", remedy) from error
    suffix = {"bilinear": "", "ea": "_EA", "vng": "_VNG"}[method]
    # OpenCV names a layout by the second row: its BG is RGGB.
    second = {"RGGB": "BG", "BGGR": "RG", "GRBG": "GB", "GBRG": "GR"}[camera.cfa.name]
    code = getattr(cv2, f"COLOR_Bayer{second}2RGB{suffix}")
    return lambda steps: cv2.demosaicing(steps, code)
