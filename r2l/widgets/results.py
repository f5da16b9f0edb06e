"""Explorers of what was measured: a matrix, tracked runs, the epochs of a learned ISP, a landscape."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from r2l.datasets.frames import Frames
from r2l.drift.adjustment import Learning
from r2l.drift.forensics import Landscape, Prober
from r2l.drift.matrix import most_changed
from r2l.drift.paired import paired_scores
from r2l.files import to_uint8
from r2l.training.export import SCALE, pictures
from r2l.training.tracking import Records, resolve
from r2l.viz import plot_curves, plot_landscape
from r2l.viz.curves import draw_arms
from r2l.viz.drift import difference_reach, to_diagonal
from r2l.viz.pictures import answers_in_words, draw_image, first_image
from r2l.viz.style import CYCLE, INK, LETTERS, SOFT, image_html, ink, panels, to_png
from r2l.widgets.live import Live, beside, caption_html, explorer, picture_html, scrolled_html, sized

_PICTURE = 600  # pixels
_MOST = 8  # images
_WIDTH, _GAP = 876, 2  # pixels; of the page, and between tiles


def _score_matrix(answers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the scores, trained (rows) by tested (columns), means over seeds, and what they are called."""
    paired = paired_scores(answers, ["train", "test"])
    scores = paired.numerators.sum(axis=(0, 1)) / paired.denominators.sum(axis=(0, 1))
    wide = pd.Series(scores, paired.cells).unstack()
    wide = wide.loc[answers["train"].unique(), answers["test"].unique()]
    return wide, paired.metric


def _two_rows(above: Tensor, below: Tensor, most: int = _MOST) -> np.ndarray:
    """Return images (N, 3, H, W), display domain, in two rows as uint8 (2H, W', 3), small enough to fit."""
    side = min(above.shape[-1], _WIDTH // most - _GAP)
    high = max(1, round(side * above.shape[-2] / above.shape[-1]))
    page = np.full((2 * (high + _GAP), len(above) * (side + _GAP), 3), 255, dtype=np.uint8)
    for row, images in enumerate((above, below)):
        if images.shape[-2:] != (high, side):
            images = torch.nn.functional.interpolate(images, (high, side), mode="area")
        for column, tile in enumerate(to_uint8(images.permute(0, 2, 3, 1).numpy())):
            y, x = row * (high + _GAP), column * (side + _GAP)
            page[y : y + high, x : x + side] = tile
    return page


def _changed_html(views: Frames, answers: pd.DataFrame, train: str, test: str) -> str:
    """Return the images of `most_changed` as HTML: above and below, each with what the model says."""
    table = most_changed(answers, train, test, _MOST)
    images = table["image"].tolist()
    before, after = (answers_in_words(views, table, column) for column in ("before", "after"))
    rows = [(train, before), (test, after)]
    alt = f"{len(table)} images, trained under {train}. " + ". ".join(
        f"{where} developed by {code}: {', '.join(words)}"
        for where, (code, words) in zip(("Above", "Below"), rows, strict=True)
    )
    pictures = _two_rows(*(views.images[code][images] for code, _ in rows))
    text, width = "font-size: 12px; line-height: 1.5", _WIDTH * len(images) // _MOST
    above, below = (caption_html(words, width, text) for words in (before, after))
    return scrolled_html(above + picture_html(pictures, alt, width) + below)


def matrix_explorer(views: Frames, answers: pd.DataFrame) -> widgets.Widget:
    """Return the matrix, each cell a button, above the images that lose most in the chosen cell.

    Rows: trained under; columns: tested under. Colour: difference to the row's diagonal. The answers are
    what `r2l.drift.predict_matrix` returned for the developed images.
    """
    scores, metric = _score_matrix(answers)
    note, picture = widgets.HTML(), widgets.HTML()
    differences = to_diagonal(scores)
    grid, cells = _grid(scores, differences)
    # The first cell to show is the worst.
    shown = [min(cells, key=lambda names: differences.loc[names])]

    def draw() -> None:
        train, test = shown[0]
        for names, cell in cells.items():
            cell.layout.border = f"3px solid {CYCLE[4] if names == shown[0] else 'transparent'}"
        falls = most_changed(answers, train, test, len(views))["fall"]
        lost = int((falls > 0).sum())
        what = "images with a lower IoU" if views.task == "segmentation" else "answers lost"
        which = "all of them" if lost else "the first images"
        which = f"the first {_MOST} of them" if lost > _MOST else which
        note.value = (
            f"<b>trained under {train} (above), tested under {test} (below)</b>: "
            f"{metric} {scores.loc[train, test]:.3f}, {what}: {lost}; below, {which}"
        )
        picture.value = _changed_html(views, answers, train, test)

    live = Live(draw, note)

    def choose(names: tuple[str, str], _button: object) -> None:
        shown[0] = names
        live()

    for names, cell in cells.items():
        cell.on_click(partial(choose, names))
    live.watch()
    return explorer("matrix", grid, note, picture)


def _grid(
    scores: pd.DataFrame, differences: pd.DataFrame
) -> tuple[widgets.GridBox, dict[tuple[str, str], widgets.Button]]:
    """Return the grid, and its buttons by trained and tested pipeline."""

    def name(text: str) -> widgets.HTML:
        style = "font-size: 12px; text-align: center; overflow-wrap: anywhere"
        return widgets.HTML(f'<div style="{style}">{html.escape(text)}</div>', layout={"margin": "0"})

    reach, cells = difference_reach(differences), {}
    children = [name("trained \\ tested"), *map(name, scores)]
    for train in scores.index:
        children.append(name(train))
        for test in scores:
            colour = colormaps["RdBu"](0.5 + 0.5 * differences.loc[train, test] / reach)
            button = widgets.Button(
                description=f"{scores.loc[train, test]:.2f}",
                tooltip=f"trained under {train}, tested under {test}",
                style={"button_color": to_hex(colour), "text_color": to_hex(ink(colour))},
                layout={"width": "auto", "height": "34px", "margin": "1px", "padding": "0"},
            )
            cells[train, test] = button.add_class("r2l-matrix-cell")
            children.append(button)
    columns = f"100px repeat({scores.shape[1]}, minmax(52px, 84px))"
    layout = {"grid_template_columns": columns, "align_items": "center"}
    return widgets.GridBox(children, layout=layout), cells


class Tracked(NamedTuple):
    """A run, or a fold, and its pictures, see `r2l.training.export.pictures`."""

    run_id: str
    pictures: dict[str, dict[int, str]]


def tracked(store: str | Path | None = None) -> dict[str, Tracked]:
    """Return the runs of a store that hold pictures of stages, the newest first, by name and fold."""
    records = Records(store)
    table = records.table()
    names = dict(zip(table["run_id"], table["name"], strict=True)) if len(table) else {}
    runs: dict[str, Tracked] = {}
    for row in table.itertuples():
        if shown := pictures(records, row.run_id):
            above = f"{names[row.parent]}, " if row.parent in names else ""
            name = f"{above}{row.name}"
            name = f"{name} ({row.run_id[:8]})" if name in runs else name
            runs[name] = Tracked(row.run_id, shown)
    return runs


def picture_of(run: Tracked, what: str, epoch: int, store: str | Path | None = None) -> Image.Image:
    """Return what was tracked at an epoch, as it was written; a gradient's ``info`` holds its scale.

    Where there is none, a ValueError says what there is.
    """
    path = run.pictures.get(what, {}).get(epoch)
    if path is None:
        raise ValueError(f"no {what!r} of epoch {epoch}; there are {', '.join(run.pictures)}")
    with Image.open(resolve(f"runs:/{run.run_id}/{path}", store)) as picture:
        picture.load()
        return picture


def lab_explorer(store: str | Path | None = None) -> widgets.Widget:
    """Return menus of runs and stages and a slider over epochs, above the picture and the losses.

    Raises:
        ValueError: no run with tracked stages.
        TrackingError: the store can't be opened, see `r2l.training.tracking.store_address`.
    """
    runs = tracked(store)
    if not runs:
        raise ValueError("no run with tracked stages; train with --track_processing")
    records, style = Records(store), sized(60, 300)
    run = widgets.Dropdown(options=list(runs), description="run", **style)
    what = widgets.Dropdown(description="picture", **style)
    epoch = widgets.SelectionSlider(options=[0], description="epoch", **style)
    picture, note, curves = (widgets.HTML() for _ in range(3))

    def fit(_change: object = None) -> None:
        """Offer what the run holds; keep the choices that it has too."""
        held = runs[run.value].pictures
        kept = next(name for name in (what.value, "gamma", *held) if name in held)
        what.options, what.value = list(held), kept
        epochs = list(held[kept])
        kept_epoch = epoch.value if epoch.value in epochs else epochs[-1]
        epoch.options, epoch.value = epochs, kept_epoch

    def draw() -> None:
        image = picture_of(runs[run.value], what.value, epoch.value, store)
        alt = f"{what.value} of {run.value} after epoch {epoch.value}, a few images side by side"
        picture.value = picture_html(np.asarray(image), alt, _PICTURE)
        scale = image.info.get(SCALE)
        note.value = f"grey is 0, white and black ±{float(scale):.2g}" if scale else "&nbsp;"

    def draw_curves(_change: object = None) -> None:
        png = to_png(plot_curves({run.value: records.history(runs[run.value].run_id)}))
        curves.value = image_html(png, f"Losses of {run.value} by epoch, in training and validation")

    for control in (run, what):
        control.observe(fit, names="value")
    run.observe(draw_curves, names="value")
    fit()
    Live(draw, note).watch(run, what, epoch)
    draw_curves()
    return explorer("lab", beside(run, what, epoch), picture, note, curves)


def _plot_epoch(learning: Learning, raw: Tensor, domain: str, epoch: int) -> Figure:
    """Draw the curves of a domain, the epoch marked, beside a frame by the first ISP and by that epoch's."""
    isps = [learning.processor(domain, e) for e in (0, epoch)]
    with torch.no_grad():
        before, after = (first_image(isp(raw[:1])) for isp in isps)
    figure, ((curve, *pictures),) = panels(1, 4, (9.2, 2.6), width_ratios=[1.35, 1, 1, 1])
    # The measure of the held-out images that is not their loss.
    measure = next(c for c in learning.curves if c.startswith("val_") and c != "val_loss")
    draw_arms(curve, learning.curves, learning.bands(measure), domain, measure)
    curve.axvline(epoch, color=SOFT, linewidth=0.9)
    curve.set_title(f"{domain}: {measure}", fontsize=LETTERS, color=INK)
    curve.legend(frameon=False, fontsize=LETTERS)
    difference = 0.5 + 10 * (after - before)
    shown = {"initial ISP": before, f"after epoch {epoch}": after, "10 x difference": difference}
    for ax, (title, image) in zip(pictures, shown.items(), strict=True):
        draw_image(ax, image, title)
        ax.set_axis_off()
    return figure


def learning_explorer(learning: Learning, frames: dict[str, Tensor]) -> widgets.Widget:
    """Return a menu of domains and a slider over epochs, above what the ISP makes of a frame then.

    The ISP is that of the first seed and fold of `r2l.drift.adjustment.compare_processing`. Each domain
    needs a raw frame (B, 1, H, W) of its name, else a ValueError says so.
    """
    domains = list(learning.initial)
    if missing := set(domains) - set(frames):
        raise ValueError(f"no frames for {sorted(missing)}")
    last = int(learning.curves["epoch"].max())
    domain = widgets.Dropdown(options=domains, value=domains[-1], description="domain")
    epoch = widgets.IntSlider(value=last, min=0, max=last, description="epoch", continuous_update=False)
    picture, note = widgets.HTML(), widgets.HTML()

    def draw() -> None:
        name = domain.value
        png = to_png(_plot_epoch(learning, frames[name], name, epoch.value))
        alt = f"{name}: curves, and a frame by the initial ISP, after epoch {epoch.value}, and the difference"
        picture.value = scrolled_html(image_html(png, alt))

    Live(draw, note).watch(domain, epoch)
    return explorer("learning", beside(domain, epoch), picture, note)


def _plot_spot(landscape: Landscape, prober: Prober, raw: Tensor, point: tuple[float, float]) -> Figure:
    """Draw a landscape with one of its points marked, beside the frame as it is developed there."""
    names = landscape.first.name, landscape.second.name
    isp = prober.pipeline(**dict(zip(names, point, strict=True)))
    figure, ((left, right),) = panels(1, 2, (8.6, 3.6), width_ratios=(1.45, 1))
    plot_landscape(landscape, point, left)
    with torch.inference_mode():
        draw_image(right, first_image(isp(raw)), f"{names[0]} {point[0]:.3g}, {names[1]} {point[1]:.3g}")
    right.set_axis_off()
    return figure


def landscape_explorer(landscapes: Sequence[Landscape], prober: Prober, raw: Tensor) -> widgets.Widget:
    """Return a menu of pairs and a slider for each setting, above the landscape and the picture.

    The landscapes are those that the prober measured, one a pair of settings; none are a ValueError. The
    frame that is developed is (1, 1, H, W), raw domain.
    """
    if not landscapes:
        raise ValueError("no landscapes to explore")
    pairs = {f"{item.first.label} / {item.second.label}": item for item in landscapes}
    pair = widgets.Dropdown(options=list(pairs), description="pair")
    sliders = [widgets.SelectionSlider(options=[("", 0.0)], continuous_update=False) for _ in "12"]
    note, picture = widgets.Label(), widgets.HTML()
    offering = [False]  # while a pair is put up, its sliders move one by one

    def draw() -> None:
        if not offering[0]:
            item, point = pairs[pair.value], tuple(slider.value for slider in sliders)
            note.value = f"{item.metric} {item.scores.loc[point]:.3f}"
            told = ", ".join(f"{s.description} {value:.3g}" for s, value in zip(sliders, point, strict=True))
            alt = f"{item.metric} over {pair.value}, a ring at {told}, and the frame developed there"
            picture.value = scrolled_html(image_html(to_png(_plot_spot(item, prober, raw, point)), alt))

    def offer(_change: object = None) -> None:
        item = pairs[pair.value]
        axes = (item.first, item.scores.index), (item.second, item.scores.columns)
        offering[0] = True
        for slider, (setting, values) in zip(sliders, axes, strict=True):
            slider.options = [(f"{value:.3g}", float(value)) for value in values]
            slider.value = min(values, key=lambda value, s=setting: abs(value - s.value))
            slider.description = setting.label
        offering[0] = False

    pair.observe(offer, names="value")
    offer()
    Live(draw, note).watch(pair, *sliders)
    return explorer("landscape", beside(pair, note), beside(*sliders), picture)
