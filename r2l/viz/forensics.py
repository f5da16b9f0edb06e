"""Figures of drift forensics: an attack stage by stage, scans, intervals, landscapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.drift.forensics import Landscape, Scan, Setting, ToleranceReport
from r2l.isp import stage_gradients
from r2l.viz.pictures import first, show
from r2l.viz.style import CYCLE, INK, SOFT

_BLUE, _ORANGE, _GREEN = CYCLE[:3]
_STAGES = ("black_level", "demosaic", "white_balance", "colour_matrix", "denoising", "gamma")


def plot_attack(
    raw: Tensor,
    before: nn.Module,
    after: nn.Module,
    loss: Callable[[Tensor], Tensor],
    *,
    gain: float = 5.0,
) -> Figure:
    """Draw one frame stage by stage before and after an attack, their difference, and the gradients.

    Gradients are those of ``loss`` with respect to each stage, summed over channels; red where the loss
    rises if the value rises, blue where it falls, both rows of a stage on one scale.

    Args:
        raw: (1, 1, H, W), raw domain.
        before: the unchanged pipeline.
        after: the attacked one, with stages of the same names.
        loss: the pipeline's image (1, 3, H, W) to a scalar, such as the margin of a task model.
        gain: how much differences are amplified, around mid-grey.
    """
    found = [stage_gradients(isp, raw, loss) for isp in (before, after)]
    names = [name for name in _STAGES if all(name in stages for stages in found)]
    figure = Figure(figsize=(1.55 * len(names) + 0.6, 8.2), layout="constrained")
    axes = figure.subplots(5, len(names), squeeze=False)
    rows = ("before", "after", f"{gain:g} x difference", "gradient before", "gradient after")
    for ax, label in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(label, fontsize=9, color=INK)
    for column, name in zip(axes.T, names, strict=True):
        (old, new), slopes = (
            [first(stages[name].image) for stages in found],
            [first(stages[name].gradient).sum(-1) for stages in found],
        )
        for ax, picture in zip(column, (old, new, 0.5 + gain * (new - old)), strict=False):
            show(ax, picture)
        end = float(np.percentile(np.abs(slopes), 99.5)) or float(np.abs(slopes).max()) or 1.0
        for ax, slope in zip(column[3:], slopes, strict=True):
            ax.imshow(slope, cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest")
        column[0].set_title(name.replace("_", " "), fontsize=9, color=INK)
        column[3].set_title(f"± {end:.2g}", fontsize=8, color=SOFT)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure


def plot_attacks(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Draw the table of `attack_parameters`: scores unchanged, under the worst random draw, attacked.

    A star marks attacks that beat random ones significantly.
    """
    figure = Figure(figsize=(6.4, 0.42 * len(table) + 1.1), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(table))[::-1]
    ax.hlines(places, table["attack"], table["unchanged"], color="0.85", linewidth=4, zorder=1)
    marks = (
        ("unchanged", SOFT, "|", 120),
        ("random", _BLUE, "o", 42),
        ("attack", _ORANGE, "D", 42),
    )
    for name, colour, marker, size in marks:
        label = {"random": "worst of as many random"}.get(name, name)
        ax.scatter(table[name], places, s=size, color=colour, marker=marker, label=label, zorder=2)
    stars = ["  *" if beats else "" for beats in table["beats_random"]]
    ax.set_yticks(places, [f"{n}{s}" for n, s in zip(table.index, stars, strict=True)])
    ax.set_xlabel(f"{metric} on fresh images")
    ax.set_title("one search a row; *: beats random (paired, Holm)", fontsize=9, color=SOFT)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _tidy(ax)
    return figure


def plot_scan(scan: Scan, drop: float | None = None) -> Figure:
    """Draw the metric along one setting, with its band; a dashed line where it has fallen by ``drop``."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    _draw_scan(figure.subplots(), scan, drop)
    return figure


def plot_scans(report: ToleranceReport, columns: int = 4) -> Figure:
    """Draw every scan of a report; shaded where the metric stays, by the worst case, above the drop.

    Raises:
        ValueError: a report without scans, such as one read from a file.
    """
    if not report.scans:
        raise ValueError("this report has no scans; a file keeps the intervals alone")
    columns = min(columns, len(report.scans))
    rows = -(-len(report.scans) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax, (name, scan) in zip(axes.flat, report.scans.items(), strict=False):
        row = report.table.loc[name]
        ax.axvspan(row["safe_low"], row["safe_high"], color=_GREEN, alpha=0.18, linewidth=0)
        _draw_scan(ax, scan, report.drop)
    for ax in axes.flat[len(report.scans) :]:
        ax.set_axis_off()
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    return figure


def _draw_scan(ax: Axes, scan: Scan, drop: float | None) -> None:
    table, setting = scan.table, scan.setting
    ax.fill_between(
        table["value"], table["low"], table["high"], color=_BLUE, alpha=0.25, linewidth=0
    )
    ax.plot(table["value"], table["score"], color=_BLUE, marker=".", markersize=4, linewidth=1.2)
    ax.axvline(setting.value, color=SOFT, linewidth=0.8)
    if drop is not None:
        present = table.loc[(table["value"] - setting.value).abs().idxmin(), "score"]
        ax.axhline(present - drop, color=_ORANGE, linewidth=1, linestyle="--")
    if setting.geometric:
        ax.set_xscale("log", base=2)
        ticks = np.array([setting.value / 2, setting.value, setting.value * 2])
        ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        ax.minorticks_off()
    else:
        ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(_title(setting), fontsize=8)
    ax.set_ylabel(scan.metric, fontsize=8)
    _tidy(ax)


def plot_tolerances(report: ToleranceReport, cameras: Mapping[str, Camera] | None = None) -> Figure:
    """Draw the interval of each setting, in its own units: the safe one thick, the estimated one thin.

    Args:
        report: what `tolerance_report` found or `ToleranceReport.load` read.
        cameras: cameras to place beside them, by name. One that lies beyond the axis stands at its edge.
    """
    table, cameras = report.table, dict(cameras or {})
    told = {name: report.check(camera)["value"] for name, camera in cameras.items()}
    figure = Figure(figsize=(7.6, 0.62 * len(table) + 0.9), layout="constrained")
    axes = figure.subplots(len(table), 1, squeeze=False)[:, 0]
    for ax, (name, row) in zip(axes, table.iterrows(), strict=True):
        ax.plot([row["low"], row["high"]], [0, 0], color=_BLUE, linewidth=2)
        ax.plot([row["safe_low"], row["safe_high"]], [0, 0], color=_BLUE, linewidth=7, alpha=0.55)
        ax.plot(row["value"], 0, "|", color=INK, markersize=14)
        reach = 0.12 * (row["high"] - row["low"]) or 0.1 * abs(row["value"]) or 1.0
        left, right = row["low"] - reach, row["high"] + reach
        ax.set_xlim(left, right)
        ax.set_ylim(-1, 1)
        for colour, marker, (camera, values) in zip(
            CYCLE[1:], "DsoP^v", told.items(), strict=False
        ):
            place = np.clip(values[name], left + 0.15 * reach, right - 0.15 * reach)
            ax.plot(place, 0, marker, color=colour, label=camera, clip_on=False, zorder=3)
        ax.set_ylabel(row["label"], rotation=0, ha="right", va="center", fontsize=8, color=INK)
        ax.text(1.01, 0.5, row["unit"], transform=ax.transAxes, fontsize=8, color=SOFT, va="center")
        ax.set_yticks([])
        ax.tick_params(labelsize=7, labelcolor=SOFT, length=2)
        ax.spines[["left", "right", "top"]].set_visible(False)
    if told:
        axes[0].legend(
            fontsize=8, frameon=False, ncols=len(told), loc="lower left", bbox_to_anchor=(0, 1)
        )
    figure.supxlabel(
        f"where {report.metric} ({report.score:.2f}) falls by less than {report.drop:g}: thin, estimated; "
        f"thick, by the {report.level:.0%} band",
        fontsize=8,
        color=SOFT,
    )
    return figure


def plot_landscape(
    landscape: Landscape, point: tuple[float, float] | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the metric over two settings; a cross marks the unchanged pipeline, a ring ``point``."""
    figure = Figure(figsize=(5.0, 4.0), layout="constrained") if figure is None else figure
    ax = figure.subplots()
    scores = landscape.scores
    mesh = ax.imshow(scores, cmap="cividis", origin="lower", aspect="auto")
    figure.colorbar(mesh, ax=ax, label=f"mean {landscape.metric}").outline.set_visible(False)
    for values, setting, ticks in (
        (scores.columns, landscape.second, ax.set_xticks),
        (scores.index, landscape.first, ax.set_yticks),
    ):
        shown = range(0, len(values), max(1, (len(values) - 1) // 4))
        ticks(list(shown), [f"{values[i]:.3g}" for i in shown])
        (ax.set_xlabel if setting is landscape.second else ax.set_ylabel)(_title(setting))
    place = (landscape.first.value, landscape.second.value)
    for marker, spot in (("+", place), ("o", point)):
        if spot is not None:
            row = int(np.abs(scores.index.to_numpy() - spot[0]).argmin())
            column = int(np.abs(scores.columns.to_numpy() - spot[1]).argmin())
            marks = {"markersize": 12, "markeredgewidth": 2, "fillstyle": "none"}
            ax.plot(column, row, marker, color=_ORANGE, **marks)
    _tidy(ax)
    return figure


def _title(setting: Setting) -> str:
    return f"{setting.label} ({setting.unit})" if setting.unit else setting.label


def _tidy(ax: Axes) -> None:
    ax.tick_params(labelsize=8, labelcolor=INK, length=2)
    ax.spines[["top", "right"]].set_visible(False)
