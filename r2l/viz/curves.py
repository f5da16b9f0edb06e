"""Figures of lines: levels and noise, losses, learning and tone curves, scans, drops against distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from r2l.isp.learned import apply_tone_curve, control_points
from r2l.viz.pictures import PLANE_STYLES, split_planes
from r2l.viz.style import CYCLE, INK, LETTERS, SOFT, heading, note, panels, upright_grid

if TYPE_CHECKING:
    from r2l.camera import Camera
    from r2l.datasets.frames import Frames
    from r2l.drift.adjustment import Learning
    from r2l.drift.forensics import Scan, ToleranceReport
    from r2l.drift.matrix import MatrixSummary
    from r2l.learn import Learned

_BLUE, _ORANGE, _GREEN = CYCLE[:3]
_KINDS = {"train": ("training", _BLUE), "val": ("validation", _ORANGE)}
_MEASURES = {"val_accuracy": "accuracy on held-out images", "val_iou": "IoU on held-out images"}
# By scale of severity: the mark, and what it is called.
_SCALES = {
    "published": ("s", "corruptions, constants for 32 pixels"),
    "image": ("^", "corruptions, constants for this size"),
    "matched": ("D", "corruptions, matched"),
    "sensor": ("v", "sensor drift"),
}


def plot_curves(curves: Mapping[str, pd.DataFrame], metric: str = "loss") -> Figure:
    """Draw training against validation by epoch: each fold thin, the mean over the folds thick.

    Drawn are, by fold, tables with the columns ``train_METRIC`` and ``val_METRIC`` and an index of epochs
    (`r2l.training.export.curves`, or the ``history`` of what `fit` returns). Where no table has such a
    column, a ValueError lists those that exist.
    """
    figure, ((ax,),) = panels(1, 1, (5.2, 3.4))
    for prefix, (name, colour) in _KINDS.items():
        column = f"{prefix}_{metric}"
        lines = [table[column].dropna() for table in curves.values() if column in table]
        if len(lines) > 1:
            name = f"{name} (mean of {len(lines)})"
            for line in lines:
                ax.plot(line.index, line, color=colour, linewidth=0.8, alpha=0.45)
        if lines:
            mean = pd.concat(lines, axis=1).mean(axis=1)
            marker = "o" if len(mean) == 1 else None
            ax.plot(mean.index, mean, color=colour, linewidth=2, label=name, marker=marker)
    if not ax.lines:
        columns = sorted({column for table in curves.values() for column in table})
        raise ValueError(f"no train_{metric} or val_{metric}; there are {', '.join(columns) or 'none'}")
    ax.set(xlabel="epoch", ylabel=metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(frameon=False, fontsize=LETTERS, labelcolor=INK)
    return figure


def plot_learning_curves(learning: Learning, column: str = "val_accuracy") -> Figure:
    """Draw a learning curve of each arm of `r2l.drift.adjustment.compare_processing`, one panel a domain.

    Thick is the mean over seeds of that column of ``learning.curves``, thin each seed; the band is the 95 %
    interval over seeds, which fewer than three do not have.
    """
    bands = learning.bands(column)
    domains = list(bands["domain"].unique())
    n_seeds = learning.curves["seed"].nunique()
    figure, (axes,) = panels(1, len(domains), (3.1 * len(domains) + 0.4, 3.1), sharey=True)
    for ax, domain in zip(axes, domains, strict=True):
        draw_arms(ax, learning.curves, bands, domain, column)
        heading(ax, domain, 10)
    # Neither a measure nor a loss goes below 0, a band may.
    axes[0].set(ylabel=_MEASURES.get(column, column), ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=LETTERS)
    band = ", band: 95% interval over seeds" if n_seeds > 2 else ""
    note(figure, f"mean of {n_seeds} seeds, thin: each seed{band}" if n_seeds > 1 else "one seed")
    return figure


def draw_arms(ax: Axes, curves: pd.DataFrame, bands: pd.DataFrame, domain: str, column: str) -> None:
    """Draw the learning curves of one domain: mean, band (of three seeds or more) and seeds of each arm."""
    for arm, colour in zip(bands["arm"].unique(), CYCLE, strict=False):
        band, seeds = (
            table[(table["domain"] == domain) & (table["arm"] == arm)] for table in (bands, curves)
        )
        ax.plot(band["epoch"], band["mean"], color=colour, linewidth=1.8, label=arm)
        if seeds["seed"].nunique() > 2:
            ends = band["epoch"], band["low"], band["high"]
            ax.fill_between(*ends, color=colour, alpha=0.18, linewidth=0)
        for _, run in seeds.groupby("seed"):
            line = run.groupby("epoch")[column].mean()
            ax.plot(line.index, line, color=colour, linewidth=0.5, alpha=0.6)
    ax.set_xlabel("epoch")


def plot_scans(report: ToleranceReport) -> Figure:
    """Draw every scan of a report; shaded where the metric stays, by the worst case, above the drop.

    The band is that of the fall from the unchanged pipeline, image by image, below the score there: the one
    that the safe interval is read from, so that shading ends where the band meets the dashed line. A report
    that was read from a file has no scans, which is a ValueError.
    """
    if not report.scans:
        raise ValueError("this report has no scans; a file keeps the intervals alone")
    columns = min(4, len(report.scans))
    rows = -(-len(report.scans) // columns)
    figure, axes = panels(rows, columns, (2.3 * columns, 2.2 * rows), sharey=True)
    for ax, (name, scan) in zip(axes.flat, report.scans.items(), strict=False):
        row = report.table.loc[name]
        ax.axvspan(row["safe_low"], row["safe_high"], color=_GREEN, alpha=0.18, linewidth=0)
        _draw_scan(ax, scan, report.drop)
    for ax in axes.flat[len(report.scans) :]:
        ax.set_axis_off()
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    return figure


def _draw_scan(ax: Axes, scan: Scan, drop: float) -> None:
    table, setting = scan.table, scan.setting
    present = table.loc[(table["value"] - setting.value).abs().idxmin(), "score"]
    band = table["value"], present - table["fall_high"], present - table["fall_low"]
    ax.fill_between(*band, color=_BLUE, alpha=0.25, linewidth=0)
    ax.plot(table["value"], table["score"], color=_BLUE, marker=".", markersize=4, linewidth=1.2)
    ax.axvline(setting.value, color=SOFT, linewidth=0.8)
    ax.axhline(present - drop, color=_ORANGE, linewidth=1, linestyle="--")
    if setting.geometric:
        ax.set_xscale("log", base=2)
        ticks = np.array([setting.value / 2, setting.value, setting.value * 2])
        ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        ax.minorticks_off()
    else:
        ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel=setting.title, ylabel=scan.metric)


def plot_corruptions(
    drops: pd.DataFrame,
    summary: MatrixSummary | None = None,
    views: Frames | None = None,
    *,
    distance: str = "psnr",
) -> Figure:
    """Draw how much is lost against how far the images moved: pipelines, corruptions and sensors.

    The drops are those of `r2l.drift.drop_table`, against the distance that it took: "psnr", "ssim" or "l2".
    Where the summary of a matrix and the developed images are given, cells off the diagonal are drawn too.
    """
    from r2l.drift.corruption_benchmark import distances  # slow to import, and the other curves do without

    figure, ((ax,),) = panels(1, 1, (8.4, 5.0))
    if summary is not None and views is not None:
        cells = summary.cells[summary.cells["train"] != summary.cells["test"]]
        moved = [
            float(distances(views.images[test], views.images[train], distance).mean())
            for train, test in zip(cells["train"], cells["test"], strict=True)
        ]
        style = {"color": CYCLE[0], "markersize": 4, "alpha": 0.55, "linestyle": ""}
        ax.plot(moved, -cells["difference"], "o", label="other pipelines, one dot a cell", **style)
    named: list[tuple[Any, str]] = []
    for number, (scale, part) in enumerate(drops.groupby("scale", sort=False), 1):
        colour = CYCLE[number % len(CYCLE)]
        bars = [part["drop"] - part["low"], part["high"] - part["drop"]]
        mark, label = _SCALES.get(scale, ("s", scale))
        style = {"fmt": mark, "label": label, "color": colour, "markersize": 5, "elinewidth": 0.7}
        part = part.assign(distance=part["distance"].clip(upper=60)) if distance == "psnr" else part
        ax.errorbar(part["distance"], part["drop"], np.clip(bars, 0, None), **style)
        if scale in ("matched", "sensor"):
            furthest = part.loc[part.groupby("kind", sort=False)["severity"].idxmax()]
            named += [(row, colour) for row in furthest.itertuples()]
    label = f"distance to the model's own pipeline, {distance}"
    if distance == "psnr":
        # What has hardly changed stands at the edge.
        ax.set_xlim(min(60.0, ax.get_xlim()[1]), ax.get_xlim()[0])
        label = "PSNR to the model's own pipeline in dB (right: further away)"
    ax.set(xlabel=label, ylabel="loss of score")
    ax.axhline(0, color=SOFT, linewidth=0.8)
    upright_grid(ax)
    ax.legend(frameon=False, fontsize=LETTERS, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    _name_marks(ax, named)
    return figure


def _name_marks(ax: Axes, named: list[tuple[Any, str]]) -> None:
    """Write each mark's kind beside it; names move up, on a line, until none covers another."""
    ax.figure.draw_without_rendering()  # From here on limits and places are those of the picture.
    taken: list[Bbox] = []
    style = {"textcoords": "offset points", "va": "center", "fontsize": LETTERS}
    style["bbox"] = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.6}
    for row, colour in sorted(named, key=lambda pair: pair[0].drop):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        name, at = str(row.kind).replace("_", " "), (row.distance, row.drop)
        text = ax.annotate(name, at, xytext=(7, 0), color=colour, arrowprops=line, **style)
        while any(_extent(text).overlaps(box) for box in taken):
            text.xyann = (12, text.xyann[1] + 2)
        taken.append(_extent(text))


def _extent(text: Annotation) -> Bbox:
    """Return where a name stands, in pixels, without its line."""
    text.get_window_extent()  # brings its place up to date
    return Text.get_window_extent(text).padded(1)


def plot_levels(frames: Mapping[str, tuple[np.ndarray, Camera]]) -> Figure:
    """Draw the histogram of the four planes of each mosaic (H, W), raw domain, by title, with its levels."""
    figure, (axes,) = panels(1, len(frames), (4.4 * len(frames), 2.9))
    for ax, (title, (mosaic, camera)) in zip(axes, frames.items(), strict=True):
        bins = np.linspace(0, 1, 129)
        for name, plane in split_planes(mosaic, camera.cfa).items():
            colour, dashes = PLANE_STYLES[name]
            counts = np.histogram(plane, bins)[0]
            ax.step(bins[:-1], counts, where="post", color=colour, linestyle=dashes, label=name)
        for level in (np.mean(camera.black_level), camera.white_level):
            ax.axvline(level, color=INK, linewidth=0.8, linestyle=":")
        ax.set_yscale("symlog", linthresh=1)
        ax.set(xlabel="raw value (fraction of full scale)", ylabel="sites in a bin of 1/128", ylim=(0, None))
        ax.set_title(title, loc="left", fontsize=10, color=INK)
    axes[0].legend(fontsize=LETTERS, frameon=False)
    return figure


def plot_transfer(measured: Mapping[str, tuple[np.ndarray, np.ndarray, float, float]]) -> Figure:
    """Draw photon transfer curves: the variance of the noise against the signal, with a line.

    Both axes are logarithmic, so that the read noise shows: there the line turns level. By title: mean and
    variance (N,) of positive digital numbers, slope and intercept of the line.
    """
    figure, (axes,) = panels(1, len(measured), (4.4 * len(measured), 3.1))
    for ax, (title, (mean, variance, slope, intercept)) in zip(axes, measured.items(), strict=True):
        ax.plot(mean, variance, "o", color=CYCLE[0], markersize=5, label="measured")
        line = np.geomspace(mean.min(), mean.max(), 100)
        label = f"{slope:.3g} DN x signal + {intercept:.2g} DN²"
        ax.plot(line, slope * line + intercept, color=CYCLE[1], label=label)
        ax.legend(fontsize=LETTERS, frameon=False)
        ax.set(xlabel="signal above black (DN)", ylabel="variance of the noise (DN²)")
        ax.set(xscale="log", yscale="log")
        ax.set_title(title, loc="left", fontsize=10, color=INK)
    return figure


def plot_learned(learned: Learned) -> Figure:
    """Show what `r2l.learn_pipeline` returned: tone curves, and how near each pipeline is to the pictures."""
    figure, ((curves, scores),) = panels(1, 2, (9, 3.6))
    linear = torch.linspace(0, 1, 512)
    points = control_points(learned.isp.tone_curve.detach())
    display = apply_tone_curve(linear.expand(1, 3, 1, -1), points)[0, :, 0]
    for name, colour, values in zip("RGB", (_ORANGE, _GREEN, _BLUE), display, strict=True):
        curves.plot(linear, values, color=colour, label=name)
    curves.plot(linear, linear ** (1 / 2.2), color=SOFT, linewidth=0.8, label="gamma 2.2")
    curves.legend(frameon=False, fontsize=LETTERS)
    curves.set(xlabel="linear", ylabel="display")
    curves.set_title(learned.isp.camera.name, loc="left", fontsize=10, color=INK)
    table = learned.scores.sort_values("psnr")
    own = [CYCLE[1] if name == "learned" else CYCLE[0] for name in table.index]
    bars = scores.barh(list(table.index), table["psnr"], color=own)
    scores.bar_label(bars, [f"{colour:.1f}" for colour in table["ciede2000"]], padding=3, fontsize=LETTERS)
    scores.margins(x=0.1)
    scores.set_title("on blocks not fitted; beside the bars CIEDE2000", loc="left", fontsize=10, color=INK)
    scores.set_xlabel("PSNR in dB")
    return figure
