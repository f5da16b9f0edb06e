"""A reader's own camera: a raw file through the browser, developed, and held against a tolerance report."""

import html
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from r2l.camera import Camera
from r2l.drift.forensics import ToleranceReport
from r2l.drift.forensics.tolerance_report import as_text
from r2l.files import to_uint8
from r2l.isp import PIPELINES, name_pipelines, open_pipeline
from r2l.isp.adjustable import level_names
from r2l.isp.grammar import Pipelines
from r2l.isp.preparation import clip_highlights
from r2l.rawfile import CAMERAS, RawFileError, RawFrame, read_raw
from r2l.widgets.live import Live, beside, explorer, one_thread, picture_html, sized, whole_factor

_OWN = "the file's own"
_PICTURE = 420
# Besides colour, since not everybody tells these apart; on white, in dark themes too.
_MARKS = {"inside": ("✓", "#00654a"), "outside": ("✗", "#a33c00"), "unknown": ("?", "#595959")}


def frame_menu(frames: Mapping[str, RawFrame], **options: Any) -> widgets.Dropdown:
    """Return a menu of frames.

    Raises:
        ValueError: no frames.
    """
    if not frames:
        raise ValueError("no frames to explore")
    return widgets.Dropdown(options=list(frames), description="frame", **options)


def pipeline_box(pipelines: Mapping[str, Any], **options: Any) -> widgets.Combobox:
    """Return a box that offers pipelines by name and takes whatever `r2l.isp.open_pipeline` does."""
    return widgets.Combobox(
        options=list(pipelines),
        value="bi,s,ga" if "bi,s,ga" in pipelines else next(iter(pipelines)),
        description="pipeline",
        placeholder="ma,s,ga+jpeg:75",
        tooltip="one of the list, or any other, as r2l.isp.open_pipeline names them; then Enter",
        continuous_update=False,
        **options,
    )


def _read_upload(name: str, content: bytes | memoryview, camera: Camera | None = None) -> RawFrame:
    """Read a raw file that came as bytes by `r2l.rawfile.read_raw`; ``name`` is what its reader calls it.

    Raises:
        RawFileError: no usable Bayer frame; names the file as the reader knows it.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Of the name only the ending is used as a path.
        path = Path(folder, "upload" + PurePath(name).suffix)
        path.write_bytes(content)
        try:
            return read_raw(path, camera)
        except RawFileError as error:
            raise RawFileError(name, *error.args[1:]) from None


def upload_to(frames: dict[str, RawFrame], menu: widgets.Dropdown, live: Live) -> widgets.Widget:
    """Return a button that takes a raw file, a menu of cameras, and a line for what is wrong.

    What could be read joins ``frames`` and the menu of them, and is drawn. Servers take messages of up to
    10 MB unless told otherwise: larger files are read by path.
    """
    button = widgets.FileUpload(accept="", multiple=False, description="raw file")
    camera = widgets.Dropdown(
        options=[_OWN, *CAMERAS],
        description="camera",
        tooltip="TIFF, PNG and NPY files say nothing about their camera",
    )
    note = widgets.Label("up to 10 MB; larger: RAW_FILE")

    def take(_change: object = None) -> None:
        for file in button.value:
            name = file["name"]
            try:
                frame = _read_upload(name, file["content"], CAMERAS.get(camera.value))
            except RawFileError as error:
                note.value = str(error)
                continue
            note.value = f"{name}: {frame.mosaic.shape[1]} x {frame.mosaic.shape[0]}"
            frames[name] = frame
            menu.options = list(frames)
            menu.value = name
            live()  # another file of the same name changes no control

    for control in (button, camera):
        control.observe(take, names="value")
    return beside(button, camera, note).add_class("r2l-raw-upload")


def on_layout_of(numbers: Camera, camera: Camera) -> Camera:
    """Return a camera with the levels, gains and matrix of ``numbers`` on the layout of ``camera``.

    Each black level goes with its colour: what a program does that takes one camera's numbers for the
    frames of another.
    """
    levels = dict(zip(level_names(numbers), numbers.black_level, strict=True))
    moved = tuple(levels[name] for name in level_names(camera))
    return replace(numbers, cfa=camera.cfa, black_level=moved)


def middle_tile(mosaic: np.ndarray, side: int) -> Tensor:
    """Return the middle of a mosaic (H, W) as (1, 1, side, side) or less, of equal phase."""
    top, left = (max(n - side, 0) // 4 * 2 for n in mosaic.shape)
    return torch.tensor(mosaic[top : top + side, left : left + side])[None, None]


def _verdict_html(report: ToleranceReport, camera: Camera) -> tuple[str, str]:
    """Return the verdict on a camera, and for each setting its value, the safe interval and the verdict."""
    checked, rows = report.check(camera), []
    for name, value, tolerated, verdict in as_text(checked).itertuples():
        mark, colour = _MARKS[verdict]
        words = [html.escape(text) for text in (report.table["label"][name], value, tolerated)]
        style = f"color: {colour}; background: white; padding: 0 5px; white-space: nowrap"
        words.append(f'<span style="{style}">{mark} {verdict}</span>')
        rows.append("".join(f'<td style="padding: 0 10px 0 0">{word}</td>' for word in words))
    head = "".join(
        f'<th scope="col" style="text-align: left; padding: 0 10px 0 0">{name}</th>'
        for name in ("setting", "camera", "safe", "verdict")
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table style="line-height: 1.5"><tr>{head}</tr>{body}</table>'
    return f"<b>{html.escape(report.verdict(checked))}</b>", table


def camera_explorer(
    frames: Mapping[str, RawFrame],
    report: ToleranceReport,
    uploads: bool = True,
    pipelines: Pipelines = PIPELINES,
) -> widgets.Widget:
    """Return menus beside a developed picture and the verdict on the numbers it was developed with.

    Highlights are cut before white balance (`clip_highlights`), so that what saturates is white, not pink.

    Args:
        frames: what can be developed, by name; large ones are shown whole, smaller (`RawFrame.binned`).
        report: what a model tolerates.
        uploads: whether readers may add raw files of their own.
        pipelines: the menu, see `r2l.isp.open_pipeline`; readers may type others of its texts.

    Raises:
        ValueError: no frames, or a pipeline that does not exist.
    """
    frames, style = dict(frames), sized(90, 380)
    name = frame_menu(frames, **style)
    named = name_pipelines(pipelines)
    code = pipeline_box(named, **style)
    foreign = f"those of {report.camera.name}"
    numbers = widgets.Dropdown(options=[_OWN, foreign], description="numbers", **style)
    picture, table, note = (widgets.HTML() for _ in range(3))

    @one_thread()
    @torch.no_grad()
    def draw() -> None:
        frame = frames[name.value]
        camera = frame.camera
        if numbers.value == foreign:
            camera = on_layout_of(report.camera, camera)
        try:
            isp = open_pipeline(named.get(code.value, code.value), camera)
            # Cut before sites are averaged: a mean of saturated and other ones lies below the cut.
            cut = clip_highlights(frame.tensor(), camera)[0, 0].numpy()
            small = replace(frame, mosaic=cut).binned(_PICTURE)
            image = isp(small.tensor())
        except ValueError as error:
            note.value = html.escape(str(error))
            return
        alt = f"{name.value}, pipeline {code.value}, numbers: {numbers.value}"
        pixels = to_uint8(image[0].permute(1, 2, 0).numpy())
        picture.value = picture_html(pixels, alt, whole_factor(pixels, _PICTURE))
        own = frame.camera
        about = f"{own.name}, {own.cfa.name}, {frame.mosaic.shape[1]} x {frame.mosaic.shape[0]}"
        if small.mosaic.shape != frame.mosaic.shape:
            n = max(frame.mosaic.shape) // max(small.mosaic.shape)
            rest = np.subtract(frame.mosaic.shape, np.multiply(n, small.mosaic.shape))
            about += f"; {n} x {n} sites of a colour shown as one"
            about += ", without {} rows below and {} columns on the right".format(*rest)
        verdict, table.value = _verdict_html(report, own)
        note.value = f"{html.escape(about)}<br>{verdict}"

    live = Live(draw, note)
    live.watch(name, code, numbers)
    draw()
    left = widgets.VBox([name, code, numbers, note, table], layout={"width": "460px"})
    rows = [beside(left, picture)]
    rows += [upload_to(frames, name, live)] if uploads else []
    return explorer("camera", *rows)
