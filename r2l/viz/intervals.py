"""Figures of estimates with their intervals, one a row: effects, adaptations, attacks, tolerances, shifts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2l.camera import Camera
from r2l.drift.forensics import ToleranceReport
from r2l.drift.shift_detector import ShiftTest
from r2l.drift.statistics import few_groups_text
from r2l.files import choose
from r2l.viz.style import CYCLE, INK, LETTERS, SOFT, heading, note, panels, tidy, upright_grid

_BLUE, _ORANGE, _GREEN = CYCLE[:3]
_SIDES = {
    "test": "choices of the tested pipeline",
    "train": "choices of the trained pipeline",
    "train and test": "one factor on both sides, trained x tested",
    "change": "that the two differ",
}


def _draw_interval(
    ax: Axes, row: int, low: float, high: float, value: float, colour: str, clear: bool, size: float
) -> None:
    """Draw a dot and its interval; filled where it is clear that there is something."""
    ax.plot([low, high], [row, row], color=colour, linewidth=1.4)
    face = colour if clear else "white"
    ax.plot(value, row, "o", color=colour, markerfacecolor=face, markersize=size)


def plot_effects(table: pd.DataFrame) -> Figure:
    """Draw effects and their intervals, one panel a side; filled where the effect is there after Holm's
    correction for all of them.

    Args:
        table: what `r2l.drift.factorial_effects` returned.

    Raises:
        ValueError: no effects.
    """
    parts = {side: table[table["side"] == side] for side in _SIDES}
    parts = {side: part for side, part in parts.items() if len(part)}
    if not parts:
        raise ValueError("no effects to draw")
    heights = [len(part) for part in parts.values()]
    size = (7.2, 0.2 * sum(heights) + 0.62 * len(parts) + 0.4)
    figure, axes = panels(len(parts), 1, size, sharex=True, height_ratios=heights)
    for ax, (side, part) in zip(axes[:, 0], parts.items(), strict=True):
        _draw_effects(ax, part)
        heading(ax, _SIDES[side])
    text = "effect on the drop (positive: more is lost; filled: significant after Holm)"
    axes[-1, 0].set_xlabel(text, fontsize=LETTERS, color=INK)
    return figure


def _draw_effects(ax: Axes, part: pd.DataFrame) -> None:
    terms = list(dict.fromkeys(part["term"]))
    for number, row in enumerate(part.itertuples()):
        colour = CYCLE[terms.index(row.term) % len(CYCLE)]
        _draw_interval(ax, number, row.low, row.high, row.estimate, colour, row.significant, 4.5)
    names = [f"{row.level}   ({row.term})" for row in part.itertuples()]
    ax.set_yticks(range(len(part)), names, fontsize=LETTERS)
    ax.set_ylim(len(part) - 0.4, -0.6)
    tidy(ax)
    upright_grid(ax)
    ax.axvline(0, color=SOFT, linewidth=0.8)


def plot_adaptations(summary: pd.DataFrame, *, reference: str | None = None) -> Figure:
    """Draw the score of each method with its interval, one panel a target.

    Filled dots differ from "none" significantly (after Holm's correction), hollow ones don't; the
    dashed line is "none". Methods that saw labels carry a star.

    Args:
        summary: what `r2l.drift.adjustment.summarise_adaptations` returned.
        reference: a target, usually the source itself, whose "none" is drawn as a dotted line in all.

    Raises:
        ValueError: no such target, or several batch sizes or budgets in one table.
    """
    targets, methods = (list(summary[c].unique()) for c in ("target", "method"))
    if reference is not None:
        choose("target", reference, targets)
    rows = summary.set_index(["target", "method"])
    if rows.index.has_duplicates:
        raise ValueError("the table holds several sizes of batches or budgets; draw one at a time")
    size = (2.6 * len(targets) + 1.3, 0.3 * len(methods) + 1.2)
    figure, (axes,) = panels(1, len(targets), size, sharex=True, sharey=True)
    for ax, target in zip(axes, targets, strict=True):
        for number, method in enumerate(methods):
            if (target, method) in rows.index:
                row = rows.loc[(target, method)]
                colour = _BLUE if row["difference"] > 0 else _ORANGE
                colour = colour if row["significant"] else SOFT
                ends = row["low"], row["high"], row["score"]
                _draw_interval(ax, number, *ends, colour, row["significant"], 6)
        ax.axvline(rows.loc[(target, "none"), "score"], color=SOFT, linewidth=0.9, linestyle="--")
        if reference is not None:
            aim = rows.loc[(reference, "none"), "score"]
            ax.axvline(aim, color=_GREEN, linewidth=1.1, linestyle=":")
        heading(ax, target, 10)
        tidy(ax)
    labelled = set(summary.loc[summary["labelled"], "method"])
    axes[0].set_yticks(range(len(methods)), [f"{m}*" if m in labelled else m for m in methods])
    axes[0].invert_yaxis()
    aim = f"; dotted: none under {reference}" if reference is not None else ""
    text = f"score; dashed: none{aim}; filled: differs from none (Holm); *: with labels"
    note(figure, text)
    return figure


def plot_attacks(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Draw the table of `attack_parameters`: scores unchanged, under the worst random draw, attacked.

    A star marks attacks that beat random ones significantly.
    """
    figure, ((ax,),) = panels(1, 1, (7.6, 0.42 * len(table) + 1.1))
    rows = np.arange(len(table))[::-1]
    ax.hlines(rows, table["attack"], table["unchanged"], color="0.85", linewidth=4, zorder=1)
    for column, label, colour, marker, size in (
        ("unchanged", "unchanged", SOFT, "|", 120),
        ("random", "worst of as many random", _BLUE, "o", 42),
        ("attack", "attack", _ORANGE, "D", 42),
    ):
        style = {"s": size, "color": colour, "marker": marker, "zorder": 2}
        ax.scatter(table[column], rows, label=label, **style)
    stars = ["  *" if beats else "" for beats in table["beats_random"]]
    ax.set_yticks(rows, [f"{n}{s}" for n, s in zip(table.index, stars, strict=True)])
    ax.set_xlabel(f"{metric} on fresh images")
    ax.set_title("*: beats random (paired, Holm)", fontsize=LETTERS, color=SOFT)
    ax.legend(fontsize=LETTERS, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(ax)
    ax.tick_params(length=2)
    return figure


def plot_tolerances(report: ToleranceReport, cameras: Mapping[str, Camera] | None = None) -> Figure:
    """Draw the interval of each setting, in its own units: the safe one thick, the estimated one thin.

    Args:
        report: what `tolerance_report` found or `ToleranceReport.load` read.
        cameras: cameras to place beside them, by name. One that lies beyond the axis stands at its edge.
    """
    table, cameras = report.table, dict(cameras or {})
    told = {name: report.check(camera)["value"] for name, camera in cameras.items()}
    figure, axes = panels(len(table), 1, (7.6, 0.62 * len(table) + 0.9))
    for ax, (name, row) in zip(axes[:, 0], table.iterrows(), strict=True):
        ax.plot([row["low"], row["high"]], [0, 0], color=_BLUE, linewidth=2)
        ax.plot([row["safe_low"], row["safe_high"]], [0, 0], color=_BLUE, linewidth=7, alpha=0.55)
        ax.plot(row["value"], 0, "|", color=INK, markersize=14)
        reach = 0.12 * (row["high"] - row["low"]) or 0.1 * abs(row["value"]) or 1.0
        left, right = row["low"] - reach, row["high"] + reach
        ax.set_xlim(left, right)
        ax.set_ylim(-1, 1)
        for colour, marker, (camera, values) in zip(CYCLE[1:], "DsoP^v", told.items(), strict=False):
            spot = np.clip(values[name], left + 0.15 * reach, right - 0.15 * reach)
            ax.plot(spot, 0, marker, color=colour, label=camera, clip_on=False, zorder=3)
        ax.set_ylabel(row["label"], rotation=0, ha="right", va="center", fontsize=LETTERS, color=INK)
        ax.text(1.01, 0.5, row["unit"], transform=ax.transAxes, fontsize=LETTERS, color=SOFT, va="center")
        ax.set_yticks([])
        ax.tick_params(labelsize=LETTERS, labelcolor=SOFT, length=2)
        ax.spines[["left", "right", "top"]].set_visible(False)
    if told:
        above = {"ncols": len(told), "loc": "lower left", "bbox_to_anchor": (0, 1)}
        axes[0, 0].legend(fontsize=LETTERS, frameon=False, **above)
    few = filter(None, [few_groups_text(report.groups)])
    note(
        figure,
        f"where {report.metric} ({report.score:.2f}) falls by less than {report.drop:g}: thin, estimated; "
        f"thick, by the {report.level:.0%} band" + "".join(f"; {t}" for t in few),
    )
    return figure


def plot_shift(result: ShiftTest, *, most: int = 12) -> Figure:
    """Draw which numbers moved, in standard deviations.

    Args:
        result: of `r2l.drift.ShiftDetector.test`.
        most: how many numbers at most, the most telling first.
    """
    table = result.statistics.head(most)
    shift = np.sign(table["stream"] - table["reference"]) * table["shift"]
    figure, ((ax,),) = panels(1, 1, (6.2, 0.24 * len(table) + 0.9))
    colours = [_ORANGE if p <= 0.05 else "#c7ccd4" for p in table["p_holm"]]
    ax.barh(range(len(table)), shift, color=colours, height=0.65)
    ax.set_yticks(range(len(table)), table.index, fontsize=LETTERS)
    ax.invert_yaxis()
    ax.axvline(0, color=SOFT, linewidth=0.8)
    tidy(ax)
    ax.set_xlabel("shift of the mean, in standard deviations of both together", fontsize=LETTERS)
    word = "alarm" if result.raised else "no alarm"
    title = f"{word}, p = {result.p_value:.3f}; coloured: Kolmogorov-Smirnov, Holm, 5 %"
    ax.set_title(title, loc="left", fontsize=LETTERS, color=INK)
    return figure
