"""Figures of what makes a matrix: effects of the pipelines' choices, and drops against image distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2l.drift.matching import mean_distance
from r2l.drift.matrix import MatrixSummary
from r2l.drift.views import Views
from r2l.viz.style import CYCLE, INK, SOFT

SIDES = ("test", "train", "train and test", "change")
_TITLES = {
    "test": "choices of the tested pipeline",
    "train": "choices of the trained pipeline",
    "train and test": "one factor on both sides, trained x tested",
    "change": "that the two differ",
}
_MARKS = {"pipelines": "o", "published": "s", "image": "^", "matched": "D", "sensor": "v"}
_LABELS = {
    "pipelines": "other pipelines, one dot a cell",
    "published": "corruptions, constants for 32 pixels",
    "image": "corruptions, constants for this size",
    "matched": "corruptions, matched",
    "sensor": "sensor drift",
}


def plot_effects(table: pd.DataFrame) -> Figure:
    """Draw effects and their intervals, one panel a side; filled where the interval leaves out zero.

    Args:
        table: what `r2l.drift.effects` returned.

    Raises:
        ValueError: no effects.
    """
    sides = [side for side in SIDES if (table["side"] == side).any()]
    if not sides:
        raise ValueError("no effects to draw")
    heights = [int((table["side"] == side).sum()) for side in sides]
    figure = Figure(figsize=(7.2, 0.17 * sum(heights) + 0.62 * len(sides) + 0.4))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(sides), 1, sharex=True, squeeze=False, height_ratios=heights)
    for ax, side in zip(panels[:, 0], sides, strict=True):
        _draw_effects(ax, table[table["side"] == side])
        ax.set_title(_TITLES[side], loc="left", fontsize=9, fontweight="bold", color=INK)
    panels[-1, 0].set_xlabel("effect on the drop (positive: more is lost)", fontsize=8, color=INK)
    return figure


def _draw_effects(ax: Axes, part: pd.DataFrame) -> None:
    terms = list(dict.fromkeys(part["term"]))
    for place, row in enumerate(part.itertuples()):
        colour = CYCLE[terms.index(row.term) % len(CYCLE)]
        clear = row.low > 0 or row.high < 0
        ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4)
        face = colour if clear else "white"
        ax.plot(row.estimate, place, "o", color=colour, markerfacecolor=face, markersize=4.5)
    names = [f"{row.level}   ({row.term})" for row in part.itertuples()]
    ax.set_yticks(range(len(part)), names, fontsize=6.5)
    ax.set_ylim(len(part) - 0.4, -0.6)
    _plain(ax)
    ax.axvline(0, color=SOFT, linewidth=0.8)


def plot_corruptions(
    drops: pd.DataFrame,
    summary: MatrixSummary | None = None,
    views: Views | None = None,
    *,
    distance: str = "psnr",
    names: Sequence[str] = ("matched", "sensor"),
) -> Figure:
    """Draw how much is lost against how far the images moved: pipelines, corruptions and sensors.

    Args:
        drops: what `r2l.drift.drop_table` returned.
        summary: the matrix, whose cells off the diagonal are drawn too; needs ``views``.
        views: developed images, of which the cells' distances are taken.
        distance: in which ``drops`` were measured: "psnr", "ssim" or "l2".
        names: scales whose marks have the name of what was done beside them.
    """
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    ax = figure.subplots()
    if summary is not None and views is not None:
        _draw_cells(ax, summary, views, distance)
    for number, (scale, part) in enumerate(drops.groupby("scale", sort=False)):
        colour = CYCLE[(number + 1) % len(CYCLE)]
        bars = [part["drop"] - part["low"], part["high"] - part["drop"]]
        style = {"fmt": _MARKS.get(scale, "s"), "color": colour, "markersize": 5, "elinewidth": 0.7}
        label = _LABELS.get(scale, scale)
        part = part.assign(distance=part["distance"].clip(upper=60)) if distance == "psnr" else part
        ax.errorbar(part["distance"], part["drop"], np.clip(bars, 0, None), label=label, **style)
        if scale in names:
            _name(ax, part, colour)
    if distance == "psnr":
        # What has hardly changed stands at the edge.
        ax.set_xlim(min(60.0, ax.get_xlim()[1]), ax.get_xlim()[0])
        ax.set_xlabel("PSNR to the model's own pipeline in dB (right: further away)", color=INK)
    else:
        ax.set_xlabel(f"distance to the model's own pipeline, {distance}", color=INK)
    ax.set_ylabel("loss of score", color=INK)
    ax.axhline(0, color=SOFT, linewidth=0.8)
    _plain(ax)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _draw_cells(ax: Axes, summary: MatrixSummary, views: Views, distance: str) -> None:
    cells = summary.cells[summary.cells["train"] != summary.cells["test"]]
    moved = [
        mean_distance(views.images[test], views.images[train], distance)
        for train, test in zip(cells["train"], cells["test"], strict=True)
    ]
    label, style = _LABELS["pipelines"], {"color": CYCLE[0], "markersize": 4, "alpha": 0.55}
    ax.plot(moved, -cells["difference"], "o", label=label, linestyle="", **style)


def _name(ax: Axes, part: pd.DataFrame, colour: str) -> None:
    """Write each kind's name once, at its furthest mark; names move up until none covers another."""
    furthest = part.loc[part.groupby("kind", sort=False)["severity"].idxmax()]
    low, high = ax.get_ylim()
    line, free = 0.025 * (high - low), -np.inf
    for row in furthest.sort_values("drop").itertuples():
        free = max(row.drop, free + line)
        name = str(row.kind).replace("_", " ")
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(name, (row.distance, free), fontsize=6.5, color=colour, **place)


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7.5, labelcolor=INK, color=SOFT)
    ax.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    ax.set_axisbelow(True)
