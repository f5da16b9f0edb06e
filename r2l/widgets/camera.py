"""Explorers of raw files, a reader's own too: their sites, and how they are developed and tolerated."""

from __future__ import annotations

import html
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from r2l.camera import Camera
from r2l.files import to_uint8
from r2l.isp import PIPELINES, name_pipelines, open_pipeline
from r2l.isp.added_stages import clip_highlights
from r2l.isp.adjustable import level_names
from r2l.isp.grammar import PipelineLike, Pipelines, open_pipelines
from r2l.rawfile import CAMERAS, RawFileError, RawFrame, read_raw
from r2l.sensor import CONTAINER_MAX
from r2l.viz.pictures import PLANE_STYLES, colour_sites, split_planes
from r2l.widgets.live import Live, beside, explorer, one_thread, picture_html, sized, whole_factor

if TYPE_CHECKING:
    from r2l.drift.forensics import ToleranceReport

_OWN = "the file's own"
_SITES, _GREY = "all sites, in their filter's colour", "all sites, grey"
_VIEWS = (_SITES, _GREY, *PLANE_STYLES)
_SIDES = (8, 16, 32, 64, 128, 256)
_PART, _OVERVIEW, _CHART, _PICTURE = 512, 200, 330, 420
_COLUMNS = "setting", "camera", "safe", "verdict"
# Besides colour, since not everybody tells these apart; on white, in dark themes too.
_MARKS = {"inside": ("✓", "#00654a"), "outside": ("✗", "#a33c00"), "unknown": ("?", "#595959")}


def frame_menu(frames: Mapping[str, RawFrame], **options: Any) -> widgets.Dropdown:
    """Return a menu of frames; a ValueError where there are none."""
    if not frames:
        raise ValueError("no frames to explore")
    return widgets.Dropdown(options=list(frames), description="frame", **options)


def pipeline_box(
    pipelines: Pipelines, camera: Camera, **options: Any
) -> tuple[widgets.Combobox, dict[str, PipelineLike]]:
    """Return a box that offers pipelines and takes whatever `r2l.isp.open_pipeline` does, and them by name.

    None, or one that does not open for a camera, is a ValueError.
    """
    named = name_pipelines(pipelines)
    if not open_pipelines(named, camera):
        raise ValueError("no pipelines to choose from")
    box = widgets.Combobox(
        options=list(named),
        value="bi,s,ga" if "bi,s,ga" in named else next(iter(named)),
        description="pipeline",
        placeholder="ma,s,ga+jpeg:75",
        tooltip="one of the list, or any other, as r2l.isp.open_pipeline names them; then Enter",
        continuous_update=False,
        **options,
    )
    return box, named


def _read_upload(name: str, content: bytes | memoryview, camera: Camera | None = None) -> RawFrame:
    """Read a raw file that came as bytes; an error names it as its reader does."""
    with tempfile.TemporaryDirectory() as folder:
        # Of the name only the ending is used as a path.
        path = Path(folder, "upload" + PurePath(name).suffix)
        path.write_bytes(content)
        try:
            return read_raw(path, camera)
        except RawFileError as error:
            raise RawFileError(name, *error.args[1:]) from None


def _upload_to(frames: dict[str, RawFrame], menu: widgets.Dropdown, live: Live) -> widgets.Widget:
    """Return a button for a raw file, which joins the frames and their menu, and a line for what is wrong."""
    button = widgets.FileUpload(accept="", multiple=False, description="raw file")
    camera = widgets.Dropdown(
        options=[_OWN, *CAMERAS],
        description="camera",
        tooltip="TIFF, PNG and NPY files say nothing about their camera",
    )
    # Servers take messages of up to 10 MB unless told otherwise.
    note = widgets.Label("up to 10 MB; larger: RAW_FILE")

    def take(_change: object = None) -> None:
        for file in button.value:
            name = file["name"]
            try:
                with warnings.catch_warnings(record=True) as doubts:
                    warnings.simplefilter("always")
                    frame = _read_upload(name, file["content"], CAMERAS.get(camera.value))
            except RawFileError as error:
                note.value = str(error)
                continue
            size = f"{name}: {frame.mosaic.shape[1]} x {frame.mosaic.shape[0]}"
            note.value = "; ".join([size, *(str(doubt.message) for doubt in doubts)])
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
    return replace(numbers, cfa=camera.cfa, black_level=tuple(levels[n] for n in level_names(camera)))


def middle_tile(mosaic: np.ndarray, side: int) -> Tensor:
    """Return the middle of a mosaic (H, W) as (1, 1, side, side) or less, of equal phase."""
    top, left = (max(n - side, 0) // 4 * 2 for n in mosaic.shape)
    return torch.tensor(mosaic[top : top + side, left : left + side])[None, None]


def _verdict_html(report: ToleranceReport, camera: Camera) -> tuple[str, str]:
    """Return the verdict on a camera, and for each setting its value, the safe interval and the verdict."""
    from r2l.drift.forensics.sensitivity import as_text  # imports all that trains; who has a report has that

    checked, right = report.check(camera), "padding: 0 10px 0 0"
    head = (f'<th scope="col" style="text-align: left; {right}">{name}</th>' for name in _COLUMNS)
    rows = ["".join(head)]
    for name, value, tolerated, verdict in as_text(checked).itertuples():
        mark, colour = _MARKS[verdict]
        words = [html.escape(text) for text in (report.table["label"][name], value, tolerated)]
        style = f"color: {colour}; background: white; padding: 0 5px; white-space: nowrap"
        words.append(f'<span style="{style}">{mark} {verdict}</span>')
        rows.append("".join(f'<td style="{right}">{word}</td>' for word in words))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    verdict = f"<b>{html.escape(report.verdict(checked))}</b>"
    return verdict, f'<table style="line-height: 1.5">{table}</table>'


def camera_explorer(
    frames: Mapping[str, RawFrame], report: ToleranceReport, pipelines: Pipelines = PIPELINES
) -> widgets.Widget:
    """Return menus beside a developed picture and the verdict on the numbers of the frame's own camera.

    Highlights are cut before white balance (`clip_highlights`), so that what saturates is white, not pink.
    Readers may add raw files of their own.

    Args:
        frames: what can be developed, by name; large ones are shown whole, smaller (`RawFrame.binned`).
        report: what a model tolerates.
        pipelines: the menu, see `r2l.isp.open_pipeline`; readers may type others of its texts.

    Raises:
        ValueError: no frames, no pipelines, or one that does not exist.
    """
    frames, style = dict(frames), sized(90, 380)
    name = frame_menu(frames, **style)
    code, named = pipeline_box(pipelines, frames[name.value].camera, **style)
    foreign = f"those of {report.camera.name}"
    numbers = widgets.Dropdown(options=[_OWN, foreign], description="numbers", **style)
    picture, table, note = (widgets.HTML() for _ in range(3))

    @lru_cache(maxsize=2)  # by either camera's numbers, until the frame changes
    def whole(frame: RawFrame, camera: Camera) -> RawFrame:
        # Cut before sites are averaged: a mean of saturated and other ones lies below the cut.
        return replace(frame, mosaic=clip_highlights(frame.tensor(), camera)[0, 0].numpy()).binned(_PICTURE)

    @one_thread()
    @torch.no_grad()
    def draw() -> None:
        frame = frames[name.value]
        camera = frame.camera
        if numbers.value == foreign:
            camera = on_layout_of(report.camera, camera)
        try:
            isp = open_pipeline(named.get(code.value, code.value), camera)
            small = whole(frame, camera)
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
    left = widgets.VBox([name, code, numbers, note, table], layout={"width": "460px"})
    return explorer("camera", beside(left, picture), _upload_to(frames, name, live))


@dataclass(frozen=True)
class _Look:
    """Which part of a frame to look at, and how."""

    row: int = 0  # the first; odd ones are taken back by one, so that the layout stays
    column: int = 0
    side: int = 64  # in sites
    view: str = _SITES
    levels: tuple[float, float] = (0.0, 1.0)  # which raw value is drawn black and which white


def _cut(mosaic: np.ndarray, look: _Look) -> np.ndarray:
    """Return the part of a mosaic (H, W) that is looked at, moved inside if it reaches beyond."""
    row, column = (start // 2 * 2 for start in _start(look, mosaic.shape))
    return mosaic[row : row + look.side, column : column + look.side]


def _start(look: _Look, shape: Sequence[int]) -> list[int]:
    places = zip((look.row, look.column), shape, strict=True)
    return [max(0, min(start, n - look.side)) for start, n in places]


def _used_range(mosaic: np.ndarray) -> tuple[float, float]:
    """Return the 0.1 and the 99.9 percentile of a mosaic, from every so many sites of a large one."""
    step = max(1, max(mosaic.shape) // 512) | 1  # odd, so that all four positions are met
    low, high = np.percentile(mosaic[::step, ::step], (0.1, 99.9))
    return float(low), float(max(high, low + 1 / CONTAINER_MAX))


def _paint(frame: RawFrame, look: _Look) -> np.ndarray:
    """Return what is looked at as a picture (h, w) or (h, w, 3), *display* domain."""
    low, high = look.levels
    part = ((_cut(frame.mosaic, look) - low) / (high - low)).clip(0, 1)
    if look.view == _SITES:
        return colour_sites(part, frame.camera.cfa)
    return part if look.view == _GREY else split_planes(part, frame.camera.cfa)[look.view]


def _overview(frame: RawFrame, levels: tuple[float, float]) -> np.ndarray:
    """Return a whole frame in green, means of so many sites, as uint8 (h, w, 3) of at most `_OVERVIEW`."""
    green = split_planes(frame.binned(2 * _OVERVIEW).mosaic, frame.camera.cfa)["green 1"]
    step = -(-max(green.shape) // _OVERVIEW)
    low, high = levels
    return np.repeat(to_uint8((green[::step, ::step] - low) / (high - low))[..., None], 3, axis=2)


def _mark(small: np.ndarray, look: _Look, shape: tuple[int, int]) -> np.ndarray:
    """Return an overview (uint8) with a frame around what is looked at in a mosaic of ``shape``."""
    small, spans = small.copy(), []
    for start, n, pixels in zip(_start(look, shape), shape, small.shape[:2], strict=True):
        first = start * pixels // n
        last = max(first + 1, min((start + look.side) * pixels // n, pixels) - 1)
        spans.append(slice(first, min(last, pixels - 1) + 1))
    part = small[tuple(spans)]
    part[[0, -1]] = part[:, [0, -1]] = (255, 160, 0)
    return small


def _histogram_svg(frame: RawFrame, look: _Look) -> str:
    """Return the histogram of the four planes of what is looked at, as an SVG with a legend."""
    planes = split_planes(_cut(frame.mosaic, look), frame.camera.cfa)
    low, high = look.levels
    bins = np.linspace(low, high, 65)
    # Square roots, so that rare values show.
    counts = {n: np.sqrt(np.histogram(p.clip(low, high), bins)[0]) for n, p in planes.items()}
    top = max(1.0, max(c.max() for c in counts.values()))
    lines, legend = [], []
    for number, (name, heights) in enumerate(counts.items()):
        colour, dashes = PLANE_STYLES[name]
        look_of_line = f'stroke="{colour}" stroke-width="1.5" fill="none"'
        look_of_line += ' stroke-dasharray="4 3"' if dashes == "--" else ""
        y = 130 - 98 * heights / top  # below the legend
        x = np.linspace(10, _CHART - 10, len(y))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append(f'<polyline points="{points}" {look_of_line}/>')
        at = 4 + 78 * number
        legend.append(f'<line x1="{at}" x2="{at + 22}" y1="9" y2="9" {look_of_line}/>')
        mean = planes[name].mean() * CONTAINER_MAX
        legend.append(f'<text x="{at + 26}" y="13">{name}</text>')
        legend.append(f'<text x="{at + 26}" y="26" opacity=".7">mean {mean:.0f}</text>')
    ends = [f"{end * CONTAINER_MAX:.0f}" for end in (low, high)]
    label = f"Histogram of the four planes from {ends[0]} to {ends[1]} digital numbers"
    return (
        f'<svg role="img" aria-label="{label}" width="{_CHART}" height="165" font-size="11" '
        f'style="max-width: 100%" viewBox="0 0 {_CHART} 165" '
        f'fill="currentColor">{"".join(lines)}{"".join(legend)}'
        f'<line x1="10" x2="{_CHART - 10}" y1="131" y2="131" stroke="currentColor"/>'
        f'<text x="10" y="146">{ends[0]}</text>'
        f'<text x="{_CHART - 10}" y="146" text-anchor="end">{ends[1]}</text>'
        f'<text x="{_CHART / 2}" y="160" text-anchor="middle">raw value (DN of 16 bits); height: '
        "square root of the count</text></svg>"
    )


def raw_explorer(frames: Mapping[str, RawFrame]) -> widgets.Widget:
    """Return menus and sliders beside a part of a mosaic, an overview and a histogram.

    Readers may add raw files of their own to the frames. No frames are a ValueError.
    """
    frames, style = dict(frames), sized(90, 330)
    name = frame_menu(frames, **style)
    view = widgets.Dropdown(options=_VIEWS, description="show", **style)
    side = widgets.SelectionSlider(options=_SIDES, value=64, description="zoom, sites", **style)
    row = widgets.IntSlider(0, 0, 2, 2, description="row", **style)
    column = widgets.IntSlider(0, 0, 2, 2, description="column", **style)
    stretch = widgets.Checkbox(value=True, description="stretch to the range used", indent=False)
    picture, small, chart, note = (widgets.HTML() for _ in range(4))

    def fit(_change: object = None) -> None:
        """Let the sliders reach to the edge of the frame, at any zoom."""
        height, width = frames[name.value].mosaic.shape
        row.max, column.max = max(2, height - side.value), max(2, width - side.value)

    @lru_cache(maxsize=1)
    def whole(frame: RawFrame) -> tuple[tuple[float, float], np.ndarray]:
        levels = _used_range(frame.mosaic)
        return levels, _overview(frame, levels)

    def draw() -> None:
        frame = frames[name.value]
        used, overview = whole(frame)
        look = _Look(row.value, column.value, side.value, view.value, used if stretch.value else (0.0, 1.0))
        alt = f"{name.value}: {look.side} sites from row {look.row}, column {look.column}"
        pixels = to_uint8(_paint(frame, look))
        picture.value = picture_html(pixels, f"{alt}; {look.view}", whole_factor(pixels, _PART))
        marked = _mark(overview, look, frame.mosaic.shape)
        alt = "The whole frame, with a frame around the part"
        small.value = picture_html(marked, alt, whole_factor(marked, _OVERVIEW))
        chart.value = _histogram_svg(frame, look)
        note.value = f"{html.escape(frame.camera.name)}, layout {frame.camera.cfa.name}"

    for control in (name, side):
        control.observe(fit, names="value")
    fit()
    row.value, column.value = row.max // 4 * 2, column.max // 4 * 2
    live = Live(draw, note)
    live.watch(name, view, side, row, column, stretch)
    left = widgets.VBox([name, view, side, row, column, stretch, chart, small])
    return explorer("raw", beside(left, widgets.VBox([picture, note])), _upload_to(frames, name, live))
