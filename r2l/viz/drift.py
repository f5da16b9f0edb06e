"""Figures of what drift is measured to be: matrices, effects, adaptations, attacks, tolerances, shifts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2l.camera import Camera
from r2l.drift.matrix import MatrixSummary
from r2l.drift.statistics import few_groups_text
from r2l.files import choose
from r2l.viz.style import CYCLE, INK, LETTERS, SOFT, heading, ink, note, panels, tidy, upright_grid

if TYPE_CHECKING:
    from r2l.drift.forensics import Landscape, ToleranceReport
    from r2l.drift.shift_detector import ShiftTest

_BLUE, _ORANGE, _GREEN = CYCLE[:3]
_SIDES = {
    "test": "choices of the tested pipeline",
    "train": "choices of the trained pipeline",
    "train and test": "one factor on both sides, trained x tested",
    "change": "that the two differ",
}


def plot_matrix(
    matrix: MatrixSummary | pd.DataFrame,
    published: pd.DataFrame | None = None,
    *,
    title: str = "measured here",
    published_title: str = "published",
) -> Figure:
    """Draw a train (rows) x test (columns) matrix, on request with a published one beside it.

    Every cell holds its score, on a colour for its difference to the diagonal of its row (blue better, red
    worse); both matrices, frames of scores such as `r2l.drift.published_matrix`, share one scale. With a
    `MatrixSummary` (`r2l.drift.summarise`) a cell also holds half the width of its interval, and has a frame
    where it differs significantly from its row's diagonal.
    """
    sources = [(m, name) for m, name in ((matrix, title), (published, published_title)) if m is not None]
    frames = [m.matrix() if isinstance(m, MatrixSummary) else m for m, _ in sources]
    reach = difference_reach(*map(to_diagonal, frames))
    scale = ScalarMappable(Normalize(-reach, reach), "RdBu")
    # Inches: a cell needs room for its digits, a small matrix some presence.
    heights, widths = np.maximum(3.4, 0.4 * np.array([frame.shape for frame in frames]) + 1.0).T
    # "compressed" closes the gaps around squares, but makes panels of unequal size collide.
    layout = "compressed" if len({frame.shape for frame in frames}) == 1 else "constrained"
    metric, below = "score", ""
    if isinstance(matrix, MatrixSummary):
        metric = matrix.metric
        half = f"±: half the {matrix.level:.0%} interval over {matrix.n_groups} groups"
        framed = f"framed: differs from its row's diagonal (paired, Holm, {1 - matrix.level:.0%})"
        below = "; ".join([half, framed, *matrix.caveats]) + "."
    width = max(sum(widths) + 1.2, 6.4)
    size = (width, max(heights) + 0.5 + 0.16 * len(below) / (12 * width))
    figure, axes = panels(1, len(sources), size, layout, width_ratios=widths)
    for ax, frame, (source, name), width in zip(axes[0], frames, sources, widths, strict=True):
        _draw_scores(ax, frame, scale, source if isinstance(source, MatrixSummary) else None)
        heading(ax, textwrap.fill(name, int(9.5 * width)), 10)
    label = f"{metric}, less the row's diagonal"
    # panchor: a colour bar would otherwise move the panels off the upper edge they share.
    bar = figure.colorbar(scale, ax=axes[0], fraction=0.04, aspect=30, panchor=False, label=label)
    bar.outline.set_visible(False)
    tidy(bar.ax)
    note(figure, below)
    return figure


def to_diagonal(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the difference of each score to that of its row's own pipeline; without it a ValueError."""
    if missing := [train for train in scores.index if train not in scores]:
        remedy = "colours are differences to it, so ask the model there too"
        raise ValueError(f"no scores under the own pipeline of the row {missing[0]!r}; {remedy}")
    return scores.sub([scores.loc[train, train] for train in scores.index], axis="index")


def difference_reach(*differences: pd.DataFrame) -> float:
    """Return where the colours of differences end: at a tenth at least, else noise alone had full colour."""
    return max(0.1, *(float(part.abs().to_numpy().max()) for part in differences))


def _draw_scores(ax: Axes, frame: pd.DataFrame, scale: ScalarMappable, summary: MatrixSummary | None) -> None:
    shade = to_diagonal(frame)
    ax.imshow(shade, cmap=scale.cmap, norm=scale.norm)
    ax.set_anchor("N")
    if summary is not None:
        half = (summary.matrix("high") - summary.matrix("low")) / 2
        framed = summary.matrix("significant")
    for (row, column), value in np.ndenumerate(frame.to_numpy()):
        letters = ink(scale.to_rgba(shade.iat[row, column]))
        text = {"ha": "center", "va": "center", "color": letters, "fontsize": LETTERS}
        ax.text(column, row - (0.0 if summary is None else 0.1), f"{value:.2f}", **text)
        if summary is not None:
            ax.text(column, row + 0.22, f"±{half.iat[row, column]:.2f}", **text)
            if framed.iat[row, column]:
                _frame(ax, row, column, 0.42, letters, 1.6)
    _name_cells(ax, frame.index, frame.columns, frame.shape[1] > 6)
    ax.set(xlabel="tested under", ylabel="trained under")


def _frame(ax: Axes, row: int, column: int, half: float, colour: str, width: float) -> None:
    box = (column - half, row - half), 2 * half, 2 * half
    ax.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=width))


def _name_cells(ax: Axes, rows: Sequence[str], columns: Sequence[str], upright: bool) -> None:
    # Names such as "libraw:ahd+jpeg:75" break where their parts meet; upright where they would touch.
    across, down = (
        ["\n".join(re.findall(r".{1,12}(?:[+ ]|$)|.{1,12}(?::|$)|.{1,12}", str(name))) for name in names]
        for names in (columns, rows)
    )
    upright |= max(map(len, across)) > 8
    ax.set_xticks(range(len(columns)), across, rotation=90 if upright else 0)
    ax.set_yticks(range(len(rows)), down)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def plot_detection_rates(table: pd.DataFrame) -> Figure:
    """Draw the table of `r2l.drift.detection_rates`, one panel a length of the stream.

    A frame marks the cells whose score falls significantly: framed and pale is missed, unframed and dark an
    early warning. The diagonal holds the false alarms. An empty table is a ValueError.
    """
    if table.empty:
        raise ValueError("no cells to draw")
    lengths = list(dict.fromkeys(table["n_images"]))
    trains, tests = (list(dict.fromkeys(table[c])) for c in ("train", "test"))
    side = max(2.8, 0.34 * len(tests) + 0.9)
    size = (side * len(lengths) + 0.9, max(2.9, 0.34 * len(trains) + 1.6))
    figure, axes = panels(1, len(lengths), size, sharey=True)
    for ax, length in zip(axes[0], lengths, strict=True):
        part = table[table["n_images"] == length].set_index(["train", "test"])
        for row, train in enumerate(trains):
            for column, test in enumerate(tests):
                _draw_rate(ax, row, column, part.loc[(train, test)])
        ax.set_xlim(-0.5, len(tests) - 0.5)
        ax.set_ylim(len(trains) - 0.5, -0.5)
        ax.set_aspect("equal")
        _name_cells(ax, trains, tests, True)
        heading(ax, f"{length} images")
        ax.set_xlabel("stream from")
    axes[0, 0].set_ylabel("trained under,\nreference")
    note(figure, "share of streams that raise the alarm; framed: the score falls; diagonal: false alarms")
    return figure


def _draw_rate(ax: Axes, row: int, column: int, cell: pd.Series) -> None:
    measured = not np.isnan(cell["raised"])
    colour = colormaps["Blues"](0.85 * cell["raised"]) if measured else (0.93, 0.93, 0.93, 1.0)
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
    rate = f"{cell['raised']:.1f}".lstrip("0") if measured and cell["raised"] < 1 else "1"
    text = {"ha": "center", "va": "center", "fontsize": LETTERS, "color": ink(colour)}
    ax.text(column, row, rate if measured else "–", **text)
    if cell["fell"]:
        _frame(ax, row, column, 0.4, CYCLE[1], 1.4)


def plot_landscape(
    landscape: Landscape, point: tuple[float, float] | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the metric over two settings; a cross marks the unchanged pipeline, a ring ``point``."""
    ax = panels(1, 1, (5.0, 4.0))[1][0, 0] if ax is None else ax
    figure = ax.figure
    scores = landscape.scores
    mesh = ax.imshow(scores, cmap="cividis", origin="lower", aspect="auto")
    bar = figure.colorbar(mesh, ax=ax, label=f"mean {landscape.metric}")
    bar.outline.set_visible(False)
    tidy(bar.ax)
    for values, ticks in ((scores.columns, ax.set_xticks), (scores.index, ax.set_yticks)):
        shown = range(0, len(values), max(1, (len(values) - 1) // 4))
        ticks(list(shown), [f"{values[i]:.3g}" for i in shown])
    ax.set(xlabel=landscape.second.title, ylabel=landscape.first.title)
    present = (landscape.first.value, landscape.second.value)
    for marker, spot in (("+", present), ("o", point)):
        if spot is not None:
            row = int(np.abs(scores.index.to_numpy() - spot[0]).argmin())
            column = int(np.abs(scores.columns.to_numpy() - spot[1]).argmin())
            marks = {"markersize": 12, "markeredgewidth": 2, "fillstyle": "none"}
            ax.plot(column, row, marker, color=CYCLE[1], **marks)
    return figure


def _draw_interval(ax: Axes, number: int, row: pd.Series, value: float, colour: str, size: float) -> None:
    """Draw a dot and its interval; filled where it is significant."""
    ax.plot([row["low"], row["high"]], [number, number], color=colour, linewidth=1.4)
    face = colour if row["significant"] else "white"
    ax.plot(value, number, "o", color=colour, markerfacecolor=face, markersize=size)


def plot_effects(table: pd.DataFrame) -> Figure:
    """Draw the table of `r2l.drift.factorial_effects`: effects and their intervals, one panel a side.

    Filled is what is there after Holm's correction for all of them; a ValueError where there are none.
    """
    parts = {side: table[table["side"] == side] for side in _SIDES if side in set(table["side"])}
    if not parts:
        raise ValueError("no effects to draw")
    heights = [len(part) for part in parts.values()]
    size = (7.2, 0.2 * sum(heights) + 0.62 * len(parts) + 0.4)
    figure, axes = panels(len(parts), 1, size, sharex=True, height_ratios=heights)
    for ax, (side, part) in zip(axes[:, 0], parts.items(), strict=True):
        terms = list(part["term"].unique())
        for number, (_, row) in enumerate(part.iterrows()):
            colour = CYCLE[terms.index(row["term"]) % len(CYCLE)]
            _draw_interval(ax, number, row, row["estimate"], colour, 4.5)
        ax.set_yticks(range(len(part)), part["level"] + "   (" + part["term"] + ")")
        ax.set_ylim(len(part) - 0.4, -0.6)
        upright_grid(ax)
        ax.axvline(0, color=SOFT, linewidth=0.8)
        heading(ax, _SIDES[side])
    axes[-1, 0].set_xlabel("effect on the drop (positive: more is lost; filled: significant after Holm)")
    return figure


def plot_adaptations(summary: pd.DataFrame, *, reference: str | None = None) -> Figure:
    """Draw the score of each method with its interval, one panel a target.

    The summary is that of `r2l.drift.adjustment.summarise_adaptations`. Filled dots differ from "none"
    significantly (after Holm's correction), hollow ones don't; the dashed line is "none", and a dotted one in
    all panels that of the target ``reference``, usually the source. Methods that saw labels carry a star. A
    target that is not there, or several batch sizes or budgets in one table, is a ValueError.
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
                _draw_interval(ax, number, row, row["score"], colour, 6)
        ax.axvline(rows.loc[(target, "none"), "score"], color=SOFT, linewidth=0.9, linestyle="--")
        if reference is not None:
            aim = rows.loc[(reference, "none"), "score"]
            ax.axvline(aim, color=_GREEN, linewidth=1.1, linestyle=":")
        heading(ax, target, 10)
    labelled = set(summary.loc[summary["labelled"], "method"])
    axes[0].set_yticks(range(len(methods)), [f"{m}*" if m in labelled else m for m in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    axes[0].locator_params(axis="x", nbins=4)
    aim = f"; dotted: none under {reference}" if reference is not None else ""
    note(figure, f"score; dashed: none{aim}; filled: differs from none (Holm); *: with labels")
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
        ax.scatter(table[column], rows, size, colour, marker=marker, label=label, zorder=2)
    stars = ["  *" if beats else "" for beats in table["beats_random"]]
    ax.set_yticks(rows, [f"{n}{s}" for n, s in zip(table.index, stars, strict=True)])
    ax.set(xlabel=f"{metric} on fresh images", ylim=(-0.5, len(table) - 0.5))
    ax.set_title("*: beats random (paired, Holm)", fontsize=LETTERS, color=SOFT)
    ax.legend(fontsize=LETTERS, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_tolerances(report: ToleranceReport, cameras: Mapping[str, Camera] | None = None) -> Figure:
    """Draw the interval of each setting, in its own units: the safe one thick, the estimated one thin.

    Cameras, by name, are placed beside them; one that lies beyond the axis stands at its edge.
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
        ax.set_ylabel(row["label"], rotation=0, ha="right", va="center")
        ax.text(1.01, 0.5, row["unit"], transform=ax.transAxes, fontsize=LETTERS, color=SOFT, va="center")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    if told:
        above = {"ncols": len(told), "loc": "lower left", "bbox_to_anchor": (0, 1)}
        axes[0, 0].legend(fontsize=LETTERS, frameon=False, **above)
    text = f"where {report.metric} ({report.score:.2f}) falls by less than {report.drop:g}: thin, estimated; "
    text += f"thick, by the {report.level:.0%} band"
    few = few_groups_text(report.groups)
    note(figure, f"{text}; {few}" if few else text)
    return figure


def plot_shift(result: ShiftTest) -> Figure:
    """Draw which numbers moved by `r2l.drift.ShiftDetector.test`, in standard deviations: the first 12."""
    table = result.statistics.head(12)
    shift = np.sign(table["stream"] - table["reference"]) * table["shift"]
    figure, ((ax,),) = panels(1, 1, (6.2, 0.24 * len(table) + 0.9))
    colours = [_ORANGE if p <= 0.05 else "#c7ccd4" for p in table["p_holm"]]
    ax.barh(range(len(table)), shift, color=colours, height=0.65)
    ax.set_yticks(range(len(table)), table.index)
    ax.invert_yaxis()
    ax.axvline(0, color=SOFT, linewidth=0.8)
    ax.set_xlabel("shift of the mean, in standard deviations of both together")
    title = f"{'alarm' if result.raised else 'no alarm'}, p = {result.p_value:.3f}"
    title += "; coloured: Kolmogorov-Smirnov, Holm, 5 %"
    ax.set_title(title, loc="left", fontsize=LETTERS, color=INK)
    return figure
