"""The explorer of processing: a pipeline, a slider for each of its numbers, its stages, live."""

import html
import time
from collections.abc import Mapping
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import to_uint8
from r2l.isp import PIPELINES, open_pipeline
from r2l.isp.added_stages import Displayed, clip_highlights
from r2l.isp.adjustable import AdjustableISP, settings_of
from r2l.isp.grammar import PipelineLike, Pipelines, linear_stages
from r2l.rawfile import RawFrame
from r2l.widgets.camera import frame_menu, middle_tile, pipeline_box
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


class _Knob(NamedTuple):
    """A slider, by the names that ipywidgets has; ``value`` leaves the pipeline as it is."""

    description: str
    value: float
    min: float
    max: float
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


def _turned(spec: PipelineLike, camera: Camera, **knobs: float) -> nn.Module:
    """Return a pipeline with knobs turned; untouched, or where it has none, it is `open_pipeline`'s."""
    isp = open_pipeline(spec, camera)
    if isinstance(isp, Displayed):
        return Displayed(camera, _turned(isp.base, camera, **knobs), isp.steps)
    try:
        present = {name: setting.value for name, setting in settings_of(isp, camera).items()}
    except ValueError:
        return isp
    knobs = {name: knob.value for name, knob in _KNOBS.items()} | knobs
    knobs["black_level"] = present["black_level"] + knobs["black_level"] / 100
    for colour in ("red", "blue"):
        knobs[f"{colour}_gain"] = present[f"{colour}_gain"] * knobs.pop(colour)
    knobs["gamma"] *= present["gamma"] / _KNOBS["gamma"].value
    if not present["blur"]:
        knobs["blur"] = 0.0
    return AdjustableISP(isp, camera, matrix_mix=knobs.pop("matrix"), **knobs)


def processing_explorer(
    frames: Mapping[str, RawFrame], side: int = 256, pipelines: Pipelines = PIPELINES
) -> widgets.Widget:
    """Return menus and sliders beside the developed picture, above the strip of its stages.

    Highlights are cut before white balance, by the gains as they are turned (`clip_highlights`): what
    saturates comes out white, not pink, as a camera shows it. The stage "raw" is shown uncut.

    Args:
        frames: what can be developed, by name. Of large ones the middle is taken.
        side: of what is taken, in pixels.
        pipelines: the menu, see `r2l.isp.open_pipeline`; readers may type others of its texts. The sliders
            of what a pipeline does not have stand still.

    Raises:
        ValueError: no frames, no pipelines, or one that does not exist.
    """
    style = sized(120, 316)
    frame = frame_menu(frames, **style)
    tiles = {name: middle_tile(frame.mosaic, side) for name, frame in frames.items()}
    code, named = pipeline_box(pipelines, frames[frame.value].camera, **style)
    stage = widgets.Dropdown(description="picture after", **style)
    style_of_knobs = {"readout_format": ".2f", **style}
    knobs = {n: widgets.FloatSlider(**knob._asdict(), **style_of_knobs) for n, knob in _KNOBS.items()}
    brighten = widgets.Checkbox(value=True, description="brighten what is linear", indent=False)
    reset = widgets.Button(description="back to the camera's values", layout={"width": "220px"})
    picture, row, note = widgets.HTML(), widgets.HTML(), widgets.HTML()

    @one_thread()
    @torch.no_grad()
    def draw() -> None:
        began = time.perf_counter()
        values = {name: knob.value for name, knob in knobs.items()}
        tile, camera = tiles[frame.value], frames[frame.value].camera
        try:
            isp = _turned(named.get(code.value, code.value), camera, **values)
            turned = next((m for m in isp.modules() if isinstance(m, AdjustableISP)), None)
            stages = isp.stages(clip_highlights(tile, turned.camera if turned else camera)) | {"raw": tile}
        except ValueError as error:
            note.value = html.escape(str(error))
            return
        for name, knob in knobs.items():
            knob.disabled = turned is None or (name == "blur" and not turned.base.blur)
        offer(names := [name for name in stages if name != "clip"])
        bright = brighten.value and stage.value in linear_stages(stages)
        alt = f"{frame.value}, pipeline {code.value}, after {_worded(stage.value)}"
        pixels = _as_seen(stages[stage.value], bright)
        picture.value = picture_html(pixels, alt, whole_factor(pixels, _PICTURE))
        row.value = _strip_html({name: stages[name] for name in names}, brighten.value)
        below, above = _clipped_shares(stages)
        took = 1000 * (time.perf_counter() - began)
        note.value = f"clipped at 0: {below:.1%}, at 1: {above:.1%} of the values; {took:.0f} ms"

    def offer(names: list[str]) -> None:
        """Let the menu hold the stages there are; it stays where it is, the last at the last."""
        options = [(_worded(name), name) for name in names]
        if list(stage.options) != options:
            at_last = stage.index in (None, len(stage.options) - 1)
            kept = names[-1] if at_last or stage.value not in names else stage.value
            stage.options, stage.value = options, kept

    def set_back(_button: object) -> None:
        for name, knob in knobs.items():
            knob.value = _KNOBS[name].value

    reset.on_click(set_back)
    Live(draw, note).watch(frame, code, stage, brighten, *knobs.values())
    controls = widgets.VBox([frame, code, stage, *knobs.values(), brighten, reset])
    return explorer("processing", beside(controls, widgets.VBox([picture, note])), row)


def _worded(stage: str) -> str:
    return stage.replace("_", " ")


def _as_seen(image: Tensor, brighten: bool) -> np.ndarray:
    """Return one stage (1, C, H, W), or its first, as uint8 (H, W, 3); what is linear can be brightened."""
    picture = image[0].expand(3, -1, -1).clamp(0, 1)
    picture = picture ** (1 / 2.2) if brighten else picture
    return to_uint8(picture.permute(1, 2, 0).contiguous().numpy())


def _strip(stages: Mapping[str, Tensor], side: int, brighten: bool = True) -> np.ndarray:
    """Return the middle of each stage (1, C, H, W) side by side, uint8 (side, N (side + gap) - gap, 3)."""
    linear, tiles = linear_stages(stages), []
    for name, image in stages.items():
        # Whole tiles of the mosaic are cut off, so that all stages show the same sites.
        top, left = ((n - side) // 4 * 2 for n in image.shape[-2:])
        middle = image[..., top : top + side, left : left + side]
        tiles += [_as_seen(middle, brighten and name in linear), np.full((side, _GAP, 3), 255, np.uint8)]
    return np.concatenate(tiles[:-1], axis=1)


def _strip_html(stages: Mapping[str, Tensor], brighten: bool) -> str:
    """Return the strip of stages as HTML, each above its name."""
    names = list(map(_worded, stages))
    room = (_STRIP + _GAP) // len(names) - _GAP
    sides = [n for image in stages.values() for n in image.shape[-2:]]
    pixels = _strip(stages, min(_STRIP_SIDE, room, *sides), brighten)
    width = whole_factor(pixels, _STRIP)
    alt = f"The middle of the frame after each stage: {', '.join(names)}"
    text = f"gap: {_GAP}px; font-size: 11px; line-height: 1.4"
    return scrolled_html(picture_html(pixels, alt, width) + caption_html(names, width, text))


def _clipped_shares(stages: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return which shares of the values before the clip, or the curve, lie below 0 and above 1."""
    *_, last = (name for name in linear_stages(stages) if name != "clip")
    linear = stages[last]
    return float((linear < 0).float().mean()), float((linear > 1).float().mean())
