"""Figures of the alarm: which cells of a matrix it notices, and with how many images."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2l.drift.alarm import AlarmResult
from r2l.viz.style import CYCLE, INK, SOFT, ink


def plot_alarm(table: pd.DataFrame) -> Figure:
    """Draw how often the alarm is raised in each cell, one panel a length of the stream.

    A frame marks the cells whose score falls significantly: framed and pale is missed, unframed and dark an
    early warning. The diagonal holds the false alarms.

    Args:
        table: what `r2l.drift.alarm_on_matrix` returned.

    Raises:
        ValueError: an empty table.
    """
    if table.empty:
        raise ValueError("no cells to draw")
    lengths = list(dict.fromkeys(table["n_images"]))
    trains, tests = (list(dict.fromkeys(table[c])) for c in ("train", "test"))
    side = max(2.4, 0.34 * len(tests) + 0.9)
    height = max(2.4, 0.34 * len(trains) + 1.3)
    figure = Figure(figsize=(side * len(lengths) + 0.9, height), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for ax, length in zip(panels, lengths, strict=True):
        part = table[table["n_images"] == length].set_index(["train", "test"])
        for row, train in enumerate(trains):
            for column, test in enumerate(tests):
                cell = part.loc[(train, test)]
                _draw_cell(ax, row, column, cell)
        ax.set_xlim(-0.5, len(tests) - 0.5)
        ax.set_ylim(len(trains) - 0.5, -0.5)
        ax.set_aspect("equal")
        ax.set_xticks(range(len(tests)), tests, rotation=90, fontsize=7.5)
        ax.set_yticks(range(len(trains)), trains, fontsize=7.5)
        ax.tick_params(length=0, labelcolor=INK)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{length} images", loc="left", fontsize=9, fontweight="bold", color=INK)
        ax.set_xlabel("stream from", fontsize=8, color=INK)
    panels[0].set_ylabel("trained under, and reference", fontsize=8, color=INK)
    figure.supxlabel(
        "share of streams that raise the alarm; framed: the score falls; diagonal: false alarms",
        fontsize=8,
        color=SOFT,
    )
    return figure


def _draw_cell(ax: Axes, row: int, column: int, cell: pd.Series) -> None:
    known = not np.isnan(cell["raised"])
    colour = colormaps["Blues"](0.85 * cell["raised"]) if known else (0.93, 0.93, 0.93, 1.0)
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
    text = f"{cell['raised']:.1f}".lstrip("0") if known and cell["raised"] < 1 else "1"
    ax.text(
        column, row, text if known else "–", ha="center", va="center", fontsize=6.5,
        color=ink(colour),
    )  # fmt: skip
    if cell["fell"]:
        box = (column - 0.4, row - 0.4)
        ax.add_patch(Rectangle(box, 0.8, 0.8, fill=False, edgecolor=CYCLE[1], linewidth=1.4))


def plot_statistics(result: AlarmResult, *, most: int = 12) -> Figure:
    """Draw which numbers moved, in standard deviations.

    Args:
        result: of `r2l.drift.Alarm.test`.
        most: how many numbers at most, the most telling first.
    """
    table = result.statistics.head(most)
    shift = np.sign(table["stream"] - table["reference"]) * table["shift"]
    figure = Figure(figsize=(6.2, 0.24 * len(table) + 0.9), layout="constrained")
    ax = figure.subplots()
    colours = [CYCLE[1] if p <= 0.05 else "#c7ccd4" for p in table["p_holm"]]
    ax.barh(range(len(table)), shift, color=colours, height=0.65)
    ax.set_yticks(range(len(table)), table.index, fontsize=7.5)
    ax.invert_yaxis()
    ax.axvline(0, color=SOFT, linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7.5, labelcolor=INK)
    ax.set_xlabel("shift of the mean, in standard deviations of both together", fontsize=8)
    word = "alarm" if result.raised else "no alarm"
    title = f"{word}, p = {result.p_value:.3f}; coloured: Kolmogorov-Smirnov, Holm, 5 %"
    ax.set_title(title, loc="left", fontsize=9, color=INK)
    return figure
