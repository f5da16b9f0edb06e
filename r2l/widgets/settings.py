"""A pipeline with a knob on every number: what the explorer of processing draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from r2l.camera import Camera
from r2l.isp.adjustable import AdjustableISP, settings_of
from r2l.isp.settings import level_names


class Knob(NamedTuple):
    """The range of a slider, and what people call it."""

    label: str
    low: float
    high: float
    step: float


#: By the name of the setting.
KNOBS = {
    "exposure": Knob("exposure, EV", -3.0, 3.0, 0.1),
    "black_level": Knob("black level, + %", -10.0, 10.0, 0.25),
    "red": Knob("red gain, ×", 0.25, 4.0, 0.05),
    "blue": Knob("blue gain, ×", 0.25, 4.0, 0.05),
    "matrix": Knob("colour matrix, mix", 0.0, 1.5, 0.05),
    "saturation": Knob("saturation, ×", 0.0, 3.0, 0.05),
    "sharpening": Knob("sharpening, ×", 0.0, 4.0, 0.1),
    "blur": Knob("blur sigma, px", 0.0, 3.0, 0.1),
    "gamma": Knob("gamma", 0.5, 4.0, 0.1),
}


@dataclass(frozen=True)
class Settings:
    """A pipeline and how far each of its numbers is turned away from the camera's.

    Attributes:
        code: demosaicing, sharpening, denoising, such as "ma,s,ga".
        exposure: powers of two by which the light is multiplied.
        black_level: added to the camera's, in per cent of the range from black to white.
        red, blue: factors of the camera's gains.
        matrix: 0 leaves camera colours as they are, 1 applies the camera's matrix, between mixes.
        saturation: distance of colours from their luma, 0 is grey.
        sharpening: how often what the pipeline's sharpening adds is added.
        blur: sigma in pixels of the denoising "ga"; the others have none.
        gamma: exponent of the display.
    """

    code: str = "bi,s,ga"
    exposure: float = 0.0
    black_level: float = 0.0
    red: float = 1.0
    blue: float = 1.0
    matrix: float = 1.0
    saturation: float = 1.0
    sharpening: float = 1.0
    blur: float = 0.5
    gamma: float = 2.2


def develop_with(raw: Tensor, camera: Camera, settings: Settings) -> dict[str, Tensor]:
    """Develop by a pipeline with turned knobs.

    At the default knobs the same as ``StaticISP.from_code(settings.code, camera).stages(raw)``.

    Args:
        raw: (B, 1, H, W), raw domain.
        camera: layout and calibration.
        settings: see `Settings`.

    Returns:
        The stages in order, "raw" to "gamma", (B, 1 or 3, H, W).

    Raises:
        ValueError: a pipeline that does not exist; wrong shape, dtype or odd size.
    """
    levels = {
        name: level + settings.black_level / 100 * (camera.white_level - level)
        for name, level in zip(level_names(camera), camera.black_level, strict=True)
    }
    own = settings_of(settings.code, camera)
    isp = AdjustableISP(
        settings.code,
        camera,
        matrix_mix=settings.matrix,
        exposure=settings.exposure,
        red_gain=own["red_gain"].value * settings.red,
        blue_gain=own["blue_gain"].value * settings.blue,
        saturation=settings.saturation,
        sharpening=settings.sharpening,
        blur=settings.blur if settings.code.endswith("ga") else 0.0,
        gamma=settings.gamma,
        **levels,
    )
    return isp.stages(raw)


def shown(image: Tensor, brighten: bool) -> np.ndarray:
    """Return one stage (1, C, H, W) as the eye should see it: (H, W, 3), *display* domain.

    Args:
        image: mosaic or colours; the first of the batch is taken.
        brighten: apply a gamma of 2.2, for a stage that is linear.
    """
    picture = image[0].expand(3, -1, -1).clamp(0, 1)
    picture = picture ** (1 / 2.2) if brighten else picture
    return picture.permute(1, 2, 0).contiguous().numpy()


def strip(stages: dict[str, Tensor], side: int, brighten: bool = True, gap: int = 4) -> np.ndarray:
    """Put the middle of each stage side by side, one pixel a pixel.

    Args:
        stages: (1, C, H, W) by name; the last one is the display image and never brightened.
        side: of each picture, in pixels, at most H and W.
        brighten: show what is linear with a gamma of 2.2.
        gap: white pixels between two.

    Returns:
        (side, N * side + (N - 1) * gap, 3), *display* domain.
    """
    *_, last = stages
    tiles = []
    for name, image in stages.items():
        # Whole tiles of the mosaic are cut off, so that all stages show the same sites.
        top, left = ((n - side) // 4 * 2 for n in image.shape[-2:])
        middle = image[..., top : top + side, left : left + side]
        tiles += [shown(middle, brighten and name != last), np.ones((side, gap, 3), np.float32)]
    return np.concatenate(tiles[:-1], axis=1)


def clipped_shares(stages: dict[str, Tensor]) -> tuple[float, float]:
    """Return which shares of the values before the clip lie below 0 and above 1."""
    linear = stages["denoising"]
    return float((linear < 0).float().mean()), float((linear > 1).float().mean())


def middle_tile(mosaic: np.ndarray, side: int) -> Tensor:
    """Return the middle of a mosaic (H, W) as (1, 1, side, side) or less, of equal phase."""
    top, left = (max(n - side, 0) // 4 * 2 for n in mosaic.shape)
    return torch.tensor(mosaic[top : top + side, left : left + side])[None, None]
