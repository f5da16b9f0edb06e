"""The explorer of processing: a pipeline, a slider for each of its numbers, its stages, live."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from r2l.isp import PIPELINES
from r2l.rawfile import RawFrame
from r2l.widgets.live import Live, picture_html, to_pixels
from r2l.widgets.settings import (
    KNOBS,
    Settings,
    clipped_shares,
    develop_with,
    middle_tile,
    shown,
    strip,
)

if TYPE_CHECKING:
    import ipywidgets

# All fits what JupyterLab leaves of a window of 1280 pixels, 840.
PICTURE, STRIP, STRIP_SIDE = 440, 836, 101
#: What the strip shows, and what people call it; the clip looks like what is before it.
SHOWN = {
    "raw": "raw",
    "black_level": "black level",
    "demosaic": "demosaic",
    "white_balance": "white balance",
    "colour_matrix": "colour matrix",
    "sharpening": "sharpening",
    "denoising": "denoising",
    "gamma": "gamma",
}


def processing_explorer(frames: Mapping[str, RawFrame], side: int = 256) -> ipywidgets.Widget:
    """Return menus and sliders beside the developed picture, above the strip of its stages.

    Args:
        frames: what can be developed, by name. Of large ones the middle is taken.
        side: of what is taken, in pixels.

    Raises:
        ValueError: no frames.
    """
    import ipywidgets as widgets

    if not frames:
        raise ValueError("no frames to explore")
    tiles = {name: middle_tile(frame.mosaic, side) for name, frame in frames.items()}
    style = {"style": {"description_width": "120px"}, "layout": {"width": "360px"}}
    frame = widgets.Dropdown(options=list(frames), description="frame", **style)
    code = widgets.Dropdown(options=PIPELINES, value=Settings.code, description="pipeline", **style)
    stage = widgets.Dropdown(
        options=[(label, name) for name, label in SHOWN.items()],
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
        alt = f"{frame.value}, pipeline {code.value}, after {SHOWN[stage.value]}"
        pixels = to_pixels(shown(stages[stage.value], bright))
        picture.value = picture_html(pixels, alt, PICTURE)
        row.value = strip_html(stages, brighten.value)
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
    box = widgets.VBox([widgets.HBox([controls, widgets.VBox([picture, note])]), row])
    return box.add_class("r2l-processing-explorer")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: a tile takes milliseconds, and threads that wait for each other more.

    Most of all where other work runs, or where a container sees more cores than it may use.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def strip_html(stages: Mapping[str, torch.Tensor], brighten: bool) -> str:
    """Return the strip of the stages that `SHOWN` lists, as HTML, each above its name."""
    chosen = {name: stages[name] for name in SHOWN}
    side = min(STRIP_SIDE, *chosen["raw"].shape[-2:])
    pixels = to_pixels(strip(chosen, side, brighten))
    alt = f"The middle of the frame after each stage: {', '.join(SHOWN.values())}"
    names = "".join(f"<span>{label}</span>" for label in SHOWN.values())
    columns = f"grid-template-columns: repeat({len(SHOWN)}, 1fr); gap: 4px; width: {STRIP}px"
    text = "font-size: 11px; line-height: 1.4; text-align: center"
    return (
        picture_html(pixels, alt, STRIP)
        + f'<div style="display: grid; {columns}; {text}">{names}</div>'
    )


def _slider(name: str, **style: dict[str, str]) -> ipywidgets.FloatSlider:
    import ipywidgets as widgets

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


def _set_back(knobs: Mapping[str, ipywidgets.FloatSlider]) -> None:
    for name, knob in knobs.items():
        knob.value = getattr(Settings, name)
