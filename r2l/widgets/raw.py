"""The explorer of raw data: any part of a mosaic, at any zoom, its planes and its histogram."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np

from r2l.files import to_uint8
from r2l.rawfile import RawFrame
from r2l.sensor import CONTAINER_MAX
from r2l.viz.raw import PLANE_STYLES, colour_sites, split_planes
from r2l.widgets.camera import frame_menu, upload_to
from r2l.widgets.live import Live, beside, explorer, picture_html, sized, whole_factor

_SITES, _GREY = "all sites, in their filter's colour", "all sites, grey"
_VIEWS = (_SITES, _GREY, *PLANE_STYLES)
_SIDES = (8, 16, 32, 64, 128, 256)
_PICTURE, _OVERVIEW, _CHART = 512, 200, 330


@dataclass(frozen=True)
class _Look:
    """Which part of a frame to look at, and how.

    Attributes:
        row, column: first site; odd ones are taken back by one, so that the layout stays.
        side: how many sites, along both sides.
        view: one of `_VIEWS`.
        levels: of the raw values, which is drawn black and which white.
    """

    row: int = 0
    column: int = 0
    side: int = 64
    view: str = _SITES
    levels: tuple[float, float] = (0.0, 1.0)


def _cut(mosaic: np.ndarray, look: _Look) -> np.ndarray:
    """Return the part of a mosaic (H, W) that is looked at, moved inside if it reaches beyond."""
    rows, columns = (
        max(0, min(start, n - look.side)) // 2 * 2
        for start, n in zip((look.row, look.column), mosaic.shape, strict=True)
    )
    return mosaic[rows : rows + look.side, columns : columns + look.side]


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


def _overview(frame: RawFrame, levels: tuple[float, float], side: int = _OVERVIEW) -> np.ndarray:
    """Return a whole frame in green, means of so many sites, as uint8 (h, w, 3) of at most ``side``."""
    green = split_planes(frame.binned(2 * side).mosaic, frame.camera.cfa)["green 1"]
    step = -(-max(green.shape) // side)
    low, high = levels
    pixels = to_uint8((green[::step, ::step] - low) / (high - low))
    return np.repeat(pixels[..., None], 3, axis=2)


def _mark(small: np.ndarray, look: _Look, shape: tuple[int, int]) -> np.ndarray:
    """Return an overview (uint8) with a frame around what is looked at in a mosaic of ``shape``."""
    small, spans = small.copy(), []
    for start, n, pixels in zip((look.row, look.column), shape, small.shape[:2], strict=True):
        start = max(0, min(start, n - look.side))
        first = start * pixels // n
        last = max(first + 1, min((start + look.side) * pixels // n, pixels) - 1)
        spans.append(slice(first, min(last, pixels - 1) + 1))
    part = small[tuple(spans)]
    part[[0, -1]] = part[:, [0, -1]] = (255, 160, 0)
    return small


def _histogram_svg(frame: RawFrame, look: _Look) -> str:
    """Return the histogram of the four planes of what is looked at, as an SVG with a legend.

    Square roots of counts, so that rare values show; the axis is digital numbers of 16 bits.
    """
    planes = split_planes(_cut(frame.mosaic, look), frame.camera.cfa)
    low, high = look.levels
    bins = np.linspace(low, high, 65)
    counts = {n: np.sqrt(np.histogram(p.clip(low, high), bins)[0]) for n, p in planes.items()}
    top = max(1.0, max(c.max() for c in counts.values()))
    lines, legend = [], []
    for number, (name, heights) in enumerate(counts.items()):
        colour, dashes = PLANE_STYLES[name]
        look_of_line = f'stroke="{colour}" stroke-width="1.5" fill="none"'
        look_of_line += ' stroke-dasharray="4 3"' if dashes == "--" else ""
        y = 130 - 110 * heights / top
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


def raw_explorer(frames: Mapping[str, RawFrame], uploads: bool = True) -> widgets.Widget:
    """Return menus and sliders beside a part of a mosaic, an overview and a histogram.

    Args:
        frames: what can be looked at, by name.
        uploads: whether readers may add raw files of their own.

    Raises:
        ValueError: no frames.
    """
    frames, style = dict(frames), sized(90, 330)
    name = frame_menu(frames, **style)
    last: dict[str, Any] = {}  # the frame that was drawn, its range and its overview
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

    def draw() -> None:
        frame = frames[name.value]
        if last.get("frame") is not frame:
            levels = _used_range(frame.mosaic)
            last.update(frame=frame, levels=levels, overview=_overview(frame, levels))
        levels = last["levels"] if stretch.value else (0.0, 1.0)
        look = _Look(row.value, column.value, side.value, view.value, levels)
        alt = f"{name.value}: {look.side} sites from row {look.row}, column {look.column}"
        pixels = to_uint8(_paint(frame, look))
        picture.value = picture_html(pixels, f"{alt}; {look.view}", whole_factor(pixels, _PICTURE))
        marked = _mark(last["overview"], look, frame.mosaic.shape)
        alt = "The whole frame, with a frame around the part"
        small.value = picture_html(marked, alt, whole_factor(marked, _OVERVIEW))
        chart.value = _histogram_svg(frame, look)
        note.value = f"{html.escape(frame.camera.name)}, layout {frame.camera.cfa.name}"

    live = Live(draw, note)
    for control in (name, side):
        control.observe(fit, names="value")
    live.watch(name, view, side, row, column, stretch)
    fit()
    row.value, column.value = row.max // 4 * 2, column.max // 4 * 2
    draw()
    left = widgets.VBox([name, view, side, row, column, stretch, chart, small])
    rows = [beside(left, widgets.VBox([picture, note]))]
    rows += [upload_to(frames, name, live)] if uploads else []
    return explorer("raw", *rows)
