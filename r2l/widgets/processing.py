"""The explorer of processing: a pipeline, a slider for each of its numbers, its stages, live."""

from __future__ import annotations

import time
from collections.abc import Mapping

import ipywidgets as widgets
import torch

from r2l.files import to_uint8
from r2l.isp import PIPELINES
from r2l.rawfile import RawFrame
from r2l.widgets.camera import frame_menu
from r2l.widgets.live import Live, caption_html, explorer, one_thread, picture_html, sized
from r2l.widgets.settings import (
    KNOBS,
    Settings,
    clipped_shares,
    develop_with,
    middle_tile,
    shown,
    strip,
)

# All fits what JupyterLab leaves of a window of 1280 pixels, 840.
_PICTURE, _STRIP, _STRIP_SIDE = 440, 836, 101
#: What the strip shows, and what people call it; the clip looks like what is before it.
_SHOWN = {
    "raw": "raw",
    "black_level": "black level",
    "demosaic": "demosaic",
    "white_balance": "white balance",
    "colour_matrix": "colour matrix",
    "sharpening": "sharpening",
    "denoising": "denoising",
    "gamma": "gamma",
}


def processing_explorer(frames: Mapping[str, RawFrame], side: int = 256) -> widgets.Widget:
    """Return menus and sliders beside the developed picture, above the strip of its stages.

    Args:
        frames: what can be developed, by name. Of large ones the middle is taken.
        side: of what is taken, in pixels.

    Raises:
        ValueError: no frames.
    """
    style = sized(120, 360)
    frame = frame_menu(frames, **style)
    tiles = {name: middle_tile(frame.mosaic, side) for name, frame in frames.items()}
    code = widgets.Dropdown(options=PIPELINES, value=Settings.code, description="pipeline", **style)
    stage = widgets.Dropdown(
        options=[(label, name) for name, label in _SHOWN.items()],
        value="gamma",
        description="picture after",
        **style,
    )
    knobs = {name: _slider(name, **style) for name in KNOBS}
    brighten = widgets.Checkbox(value=True, description="brighten what is linear", indent=False)
    reset = widgets.Button(description="back to the camera's values", layout={"width": "220px"})
    picture, row, note = widgets.HTML(), widgets.HTML(), widgets.HTML()

    @one_thread()
    @torch.no_grad()
    def draw() -> None:
        began = time.perf_counter()
        knobs["blur"].disabled = not code.value.endswith("ga")
        values = {name: knob.value for name, knob in knobs.items()}
        settings = Settings(code.value, **values)
        stages = develop_with(tiles[frame.value], frames[frame.value].camera, settings)
        bright = brighten.value and stage.value != "gamma"
        alt = f"{frame.value}, pipeline {code.value}, after {_SHOWN[stage.value]}"
        pixels = to_uint8(shown(stages[stage.value], bright))
        picture.value = picture_html(pixels, alt, _PICTURE)
        row.value = _strip_html(stages, brighten.value)
        below, above = clipped_shares(stages)
        took = 1000 * (time.perf_counter() - began)
        note.value = f"clipped at 0: {below:.1%}, at 1: {above:.1%} of the values; {took:.0f} ms"

    live = Live(draw, note)
    live.watch(frame, code, stage, brighten, *knobs.values())
    reset.on_click(lambda _button: _set_back(knobs))
    draw()
    knobs_and_menus = [frame, code, stage, *knobs.values(), brighten, reset]
    # Not to be squeezed by the picture where the page is narrow.
    controls = widgets.VBox(knobs_and_menus, layout={"flex": "0 0 auto"})
    above = widgets.HBox([controls, widgets.VBox([picture, note])])
    return explorer("processing", above, row)


def _strip_html(stages: Mapping[str, torch.Tensor], brighten: bool) -> str:
    """Return the strip of the stages that `_SHOWN` lists, as HTML, each above its name."""
    chosen = {name: stages[name] for name in _SHOWN}
    side = min(_STRIP_SIDE, *chosen["raw"].shape[-2:])
    pixels = to_uint8(strip(chosen, side, brighten))
    alt = f"The middle of the frame after each stage: {', '.join(_SHOWN.values())}"
    names = caption_html(
        list(_SHOWN.values()), _STRIP, "gap: 4px; font-size: 11px; line-height: 1.4"
    )
    return picture_html(pixels, alt, _STRIP) + names


def _slider(name: str, **style: dict[str, str]) -> widgets.FloatSlider:
    knob = KNOBS[name]
    return widgets.FloatSlider(
        value=getattr(Settings, name),
        min=knob.low,
        max=knob.high,
        step=knob.step,
        description=knob.label,
        readout_format=".2f",
        **style,
    )


def _set_back(knobs: Mapping[str, widgets.FloatSlider]) -> None:
    for name, knob in knobs.items():
        knob.value = getattr(Settings, name)
