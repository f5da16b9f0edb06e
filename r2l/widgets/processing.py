"""The explorer of processing: a pipeline, a slider for each of its numbers, its stages, live."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from r2l.camera import Camera
from r2l.files import to_uint8
from r2l.isp import PIPELINES
from r2l.isp.adjustable import AdjustableISP, settings_of
from r2l.isp.preparation import clip_highlights
from r2l.rawfile import RawFrame
from r2l.widgets.camera import frame_menu, middle_tile
from r2l.widgets.live import (
    Live,
    beside,
    caption_html,
    explorer,
    one_thread,
    picture_html,
    scrolled_html,
    sized,
    whole_factor,
)

# All fits what JupyterLab leaves of a window of 1280 pixels, 840.
_PICTURE, _STRIP, _STRIP_SIDE, _GAP = 512, 836, 101, 4
# What the strip shows, and what people call it; the clip looks like what is before it.
_EARLY = ("raw", "black_level", "demosaic", "white_balance", "colour_matrix")
_SHOWN = {n: n.replace("_", " ") for n in (*_EARLY, "sharpening", "denoising", "gamma")}


class _Knob(NamedTuple):
    """What people call a slider, where it leaves the pipeline as it is, and its range."""

    label: str
    value: float
    low: float
    high: float
    step: float


# How far numbers are turned away from the camera's.
_KNOBS = {
    "exposure": _Knob("exposure, EV", 0.0, -3.0, 3.0, 0.1),
    "black_level": _Knob("black level, + %", 0.0, -10.0, 10.0, 0.25),  # of the range
    "red": _Knob("red gain, ×", 1.0, 0.25, 4.0, 0.05),
    "blue": _Knob("blue gain, ×", 1.0, 0.25, 4.0, 0.05),
    "matrix": _Knob("colour matrix, mix", 1.0, 0.0, 1.5, 0.05),  # 0: the camera's colours
    "saturation": _Knob("saturation, ×", 1.0, 0.0, 3.0, 0.05),
    "sharpening": _Knob("sharpening, ×", 1.0, 0.0, 4.0, 0.1),
    "blur": _Knob("blur sigma, px", 0.5, 0.0, 3.0, 0.1),  # of the denoising "ga"
    "gamma": _Knob("gamma", 2.2, 0.5, 4.0, 0.1),
}


def _turned(code: str, camera: Camera, **knobs: float) -> AdjustableISP:
    """Return a pipeline ("ma,s,ga") with knobs turned; with none it is `StaticISP.from_code`'s.

    Raises:
        ValueError: a pipeline that does not exist.
    """
    knobs = {name: knob.value for name, knob in _KNOBS.items()} | knobs
    present, shift = settings_of(code, camera), knobs.pop("black_level") / 100
    knobs["black_level"] = present["black_level"].value + shift
    for colour in ("red", "blue"):
        knobs[f"{colour}_gain"] = present[f"{colour}_gain"].value * knobs.pop(colour)
    if not code.endswith("ga"):
        knobs["blur"] = 0.0
    return AdjustableISP(code, camera, matrix_mix=knobs.pop("matrix"), **knobs)


def processing_explorer(frames: Mapping[str, RawFrame], side: int = 256) -> widgets.Widget:
    """Return menus and sliders beside the developed picture, above the strip of its stages.

    Highlights are cut before white balance, by the gains as they are turned (`clip_highlights`): what
    saturates comes out white, not pink, as a camera shows it. The stage "raw" is shown uncut.

    Args:
        frames: what can be developed, by name. Of large ones the middle is taken.
        side: of what is taken, in pixels.

    Raises:
        ValueError: no frames.
    """
    style = sized(120, 316)
    frame = frame_menu(frames, **style)
    tiles = {name: middle_tile(frame.mosaic, side) for name, frame in frames.items()}
    code = widgets.Dropdown(options=PIPELINES, value="bi,s,ga", description="pipeline", **style)
    stage = widgets.Dropdown(
        options=[(label, name) for name, label in _SHOWN.items()],
        value="gamma",
        description="picture after",
        **style,
    )
    knobs = {
        name: widgets.FloatSlider(
            value=knob.value,
            min=knob.low,
            max=knob.high,
            step=knob.step,
            description=knob.label,
            readout_format=".2f",
            **style,
        )
        for name, knob in _KNOBS.items()
    }
    brighten = widgets.Checkbox(value=True, description="brighten what is linear", indent=False)
    reset = widgets.Button(description="back to the camera's values", layout={"width": "220px"})
    picture, row, note = widgets.HTML(), widgets.HTML(), widgets.HTML()

    @one_thread()
    @torch.no_grad()
    def draw() -> None:
        began = time.perf_counter()
        knobs["blur"].disabled = not code.value.endswith("ga")
        values = {name: knob.value for name, knob in knobs.items()}
        tile, camera = tiles[frame.value], frames[frame.value].camera
        red, green, blue = camera.white_balance
        gains = red * values["red"], green, blue * values["blue"]
        cut = clip_highlights(tile, replace(camera, white_balance=gains))
        stages = _turned(code.value, camera, **values).stages(cut) | {"raw": tile}
        bright = brighten.value and stage.value != "gamma"
        alt = f"{frame.value}, pipeline {code.value}, after {_SHOWN[stage.value]}"
        pixels = _as_seen(stages[stage.value], bright)
        picture.value = picture_html(pixels, alt, whole_factor(pixels, _PICTURE))
        row.value = _strip_html(stages, brighten.value)
        below, above = _clipped_shares(stages)
        took = 1000 * (time.perf_counter() - began)
        note.value = f"clipped at 0: {below:.1%}, at 1: {above:.1%} of the values; {took:.0f} ms"

    def set_back(_button: object) -> None:
        for name, knob in knobs.items():
            knob.value = _KNOBS[name].value

    live = Live(draw, note)
    live.watch(frame, code, stage, brighten, *knobs.values())
    reset.on_click(set_back)
    draw()
    knobs_and_menus = [frame, code, stage, *knobs.values(), brighten, reset]
    controls = widgets.VBox(knobs_and_menus)
    above = beside(controls, widgets.VBox([picture, note]))
    return explorer("processing", above, row)


def _as_seen(image: Tensor, brighten: bool) -> np.ndarray:
    """Return one stage (1, C, H, W), or its first, as uint8 (H, W, 3); what is linear can be brightened."""
    picture = image[0].expand(3, -1, -1).clamp(0, 1)
    picture = picture ** (1 / 2.2) if brighten else picture
    return to_uint8(picture.permute(1, 2, 0).contiguous().numpy())


def _strip(stages: Mapping[str, Tensor], side: int, brighten: bool = True) -> np.ndarray:
    """Return the middle of each stage (1, C, H, W) side by side, uint8 (side, N (side + gap) - gap, 3).

    The last stage is the display image and never brightened.
    """
    *_, last = stages
    tiles = []
    for name, image in stages.items():
        # Whole tiles of the mosaic are cut off, so that all stages show the same sites.
        top, left = ((n - side) // 4 * 2 for n in image.shape[-2:])
        middle = image[..., top : top + side, left : left + side]
        gap = np.full((side, _GAP, 3), 255, np.uint8)
        tiles += [_as_seen(middle, brighten and name != last), gap]
    return np.concatenate(tiles[:-1], axis=1)


def _strip_html(stages: Mapping[str, Tensor], brighten: bool) -> str:
    """Return the strip of the stages that `_SHOWN` lists, as HTML, each above its name."""
    stages, names = {name: stages[name] for name in _SHOWN}, list(_SHOWN.values())
    pixels = _strip(stages, min(_STRIP_SIDE, *stages["raw"].shape[-2:]), brighten)
    alt = f"The middle of the frame after each stage: {', '.join(names)}"
    text = f"gap: {_GAP}px; font-size: 11px; line-height: 1.4"
    return scrolled_html(picture_html(pixels, alt, _STRIP) + caption_html(names, _STRIP, text))


def _clipped_shares(stages: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return which shares of the values before the clip lie below 0 and above 1."""
    linear = stages["denoising"]
    return float((linear < 0).float().mean()), float((linear > 1).float().mean())
