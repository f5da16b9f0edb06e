"""Your own camera: a raw file developed, and its numbers held against what a model tolerates."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from r2l.camera import Camera
from r2l.drift.forensics import ToleranceReport
from r2l.drift.forensics.settings import level_names
from r2l.isp import PIPELINES, StaticISP
from r2l.rawfile import RawFrame
from r2l.widgets.live import Live, picture_html, to_pixels
from r2l.widgets.processing import one_thread
from r2l.widgets.settings import middle_tile
from r2l.widgets.upload import OWN_CAMERA, raw_upload

if TYPE_CHECKING:
    import ipywidgets

PICTURE, SIDE = 420, 256
#: Besides colour, since not everybody tells these apart.
_MARKS = {"inside": ("✓", "#00654a"), "outside": ("✗", "#a33c00"), "unknown": ("?", "#595959")}


def on_layout_of(numbers: Camera, camera: Camera) -> Camera:
    """Return a camera with the levels, gains and matrix of ``numbers`` on the layout of ``camera``.

    Each black level goes with its colour: what a program does that takes one camera's numbers for the
    frames of another.
    """
    levels = dict(zip(level_names(numbers), numbers.black_level, strict=True))
    moved = tuple(levels[name] for name in level_names(camera))
    return replace(numbers, cfa=camera.cfa, black_level=moved)


def verdict(report: ToleranceReport, camera: Camera) -> str:
    """Return in a line whether a camera lies inside what a model tolerates, and where it does not."""
    found = report.check(camera)["verdict"]
    outside = [report.table["label"][name] for name in found.index[found == "outside"]]
    if outside:
        return f"outside: {', '.join(outside)}"
    told = int((found != "unknown").sum())
    return f"inside, in all {told} settings that it tells"


def verdict_table(report: ToleranceReport, camera: Camera) -> str:
    """Return for each setting the camera's value, the safe interval and the verdict, as HTML."""
    rows = []
    for name, row in report.check(camera).iterrows():
        mark, colour = _MARKS[row["verdict"]]
        # Six digits are enough; beyond them an exposure of nought has some rounding left.
        value = "–" if row["value"] != row["value"] else f"{round(row['value'], 6):.3g}"
        cells = (
            html.escape(report.table["label"][name]),
            value,
            f"{row['safe_low']:.3g} to {row['safe_high']:.3g} {html.escape(row['unit'])}",
            f'<span style="color: {colour}">{mark} {row["verdict"]}</span>',
        )
        rows.append("".join(f'<td style="padding: 0 10px 0 0">{cell}</td>' for cell in cells))
    head = "".join(
        f'<th scope="col" style="text-align: left; padding: 0 10px 0 0">{name}</th>'
        for name in ("setting", "camera", "safe", "verdict")
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table style="line-height: 1.5"><tr>{head}</tr>{body}</table>'


def camera_explorer(
    frames: Mapping[str, RawFrame], report: ToleranceReport, uploads: bool = True
) -> ipywidgets.Widget:
    """Return menus beside a developed picture and the verdict on the numbers it was developed with.

    Args:
        frames: what can be developed, by name. Of large ones the middle is taken.
        report: what a model tolerates.
        uploads: whether readers may add raw files of their own.

    Raises:
        ValueError: no frames.
    """
    import ipywidgets as widgets

    if not frames:
        raise ValueError("no frames to explore")
    frames = dict(frames)
    style = {"style": {"description_width": "90px"}, "layout": {"width": "380px"}}
    name = widgets.Dropdown(options=list(frames), description="frame", **style)
    code = widgets.Dropdown(options=PIPELINES, value="bi,s,ga", description="pipeline", **style)
    foreign = f"those of {report.camera.name}"
    numbers = widgets.Dropdown(options=[OWN_CAMERA, foreign], description="numbers", **style)
    picture, table, note = (widgets.HTML() for _ in range(3))

    @one_thread()
    @torch.no_grad()
    def draw() -> None:
        frame = frames[name.value]
        camera = frame.camera
        if numbers.value == foreign:
            camera = on_layout_of(report.camera, camera)
        image = StaticISP.from_code(code.value, camera)(middle_tile(frame.mosaic, SIDE))
        alt = f"{name.value}, pipeline {code.value}, numbers: {numbers.value}"
        pixels = to_pixels(image[0].permute(1, 2, 0).numpy())
        picture.value = picture_html(pixels, alt, PICTURE)
        own = frame.camera
        about = f"{own.name}, {own.cfa.name}, {frame.mosaic.shape[1]} x {frame.mosaic.shape[0]}"
        table.value = verdict_table(report, own)
        note.value = f"{html.escape(about)}<br><b>{html.escape(verdict(report, own))}</b>"

    def receive(file: str, frame: RawFrame) -> None:
        frames[file] = frame
        name.options = list(frames)
        name.value = file
        live()  # another file of the same name changes no control

    live = Live(draw, note)
    live.watch(name, code, numbers)
    draw()
    left = widgets.VBox([name, code, numbers, note, table])
    box = [widgets.HBox([left, picture])] + ([raw_upload(receive)] if uploads else [])
    return widgets.VBox(box).add_class("r2l-camera-explorer")
