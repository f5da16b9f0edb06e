"""Figures of drift adjustment: learning curves, adaptations, and what a learned ISP has become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from r2l.drift.adjustment import Learning
from r2l.viz.pictures import first, show
from r2l.viz.style import CYCLE, INK, SOFT

NAMES = {"val_accuracy": "accuracy on held-out images", "val_iou": "IoU on held-out images"}


def plot_learning_curves(
    learning: Learning, column: str = "val_accuracy", *, level: float = 0.95
) -> Figure:
    """Draw a learning curve of each arm, one panel a condition: mean over seeds, thin lines the seeds.

    The band is the interval over seeds; with fewer than three seeds none is drawn, since it would tell
    nothing.

    Args:
        learning: what `r2l.drift.compare_processing` returned.
        column: of ``learning.curves``.
        level: of the band.
    """
    bands = learning.bands(column, level)
    conditions = list(bands["condition"].unique())
    n_seeds = learning.curves["seed"].nunique()
    figure = Figure(figsize=(3.1 * len(conditions) + 0.4, 3.1), layout="constrained")
    axes = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
    arms = list(bands["arm"].unique())
    for ax, condition in zip(axes, conditions, strict=True):
        for arm, colour in zip(arms, CYCLE, strict=False):
            of = (bands["condition"] == condition) & (bands["arm"] == arm)
            part = bands[of]
            ax.plot(part["epoch"], part["mean"], color=colour, linewidth=1.8, label=arm)
            if n_seeds > 2:
                ends = part["epoch"], part["low"], part["high"]
                ax.fill_between(*ends, color=colour, alpha=0.18, linewidth=0)
            _draw_seeds(ax, learning.curves, condition, arm, column, colour)
        _name(ax, condition)
        ax.set_xlabel("epoch")
    axes[0].set_ylabel(NAMES.get(column, column))
    axes[0].set_ylim(bottom=0)  # neither a measure nor a loss goes below, a band may
    axes[0].legend(frameon=False, fontsize=8)
    band = f", band: {level:.0%} interval over seeds" if n_seeds > 2 else ""
    note = f"mean of {n_seeds} seeds, thin: each seed{band}" if n_seeds > 1 else "one seed"
    figure.supxlabel(note, fontsize=8, color=SOFT)
    return figure


def _draw_seeds(
    ax: Axes, curves: pd.DataFrame, condition: str, arm: str, column: str, colour: str
) -> None:
    part = curves[(curves["condition"] == condition) & (curves["arm"] == arm)]
    for _, run in part.groupby("seed"):
        line = run.groupby("epoch")[column].mean()
        ax.plot(line.index, line, color=colour, linewidth=0.5, alpha=0.6)


def _name(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, labelcolor=INK)


def plot_adaptations(summary: pd.DataFrame, *, reference: str | None = None) -> Figure:
    """Draw the score of each method with its interval, one panel a target.

    Filled dots differ from "none" significantly (after Holm's correction), hollow ones don't; the
    dashed line is "none". Methods that saw labels carry a star.

    Args:
        summary: what `r2l.drift.summarise_adaptations` returned.
        reference: a target, usually the source itself, whose "none" is drawn as a dotted line in all.

    Raises:
        ValueError: no such target.
    """
    targets, methods = (list(summary[c].unique()) for c in ("target", "method"))
    if reference is not None and reference not in targets:
        raise ValueError(f"no target {reference!r}; choose from {', '.join(targets)}")
    rows = summary.set_index(["target", "method"])
    size = (2.6 * len(targets) + 1.3, 0.3 * len(methods) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(targets), sharex=True, sharey=True, squeeze=False)[0]
    for ax, target in zip(axes, targets, strict=True):
        for place, method in enumerate(methods):
            if (target, method) in rows.index:
                _draw_dot(ax, place, rows.loc[(target, method)])
        ax.axvline(rows.loc[(target, "none"), "score"], color=SOFT, linewidth=0.9, linestyle="--")
        if reference is not None:
            aim = rows.loc[(reference, "none"), "score"]
            ax.axvline(aim, color=CYCLE[2], linewidth=1.1, linestyle=":")
        _name(ax, target)
    labelled = set(summary.loc[summary["labelled"], "method"])
    names = [f"{m}*" if m in labelled else m for m in methods]
    axes[0].set_yticks(range(len(methods)), names)
    axes[0].invert_yaxis()
    aim = f"; dotted: none under {reference}" if reference is not None else ""
    figure.supxlabel(
        f"score; dashed: none{aim}; filled: differs from none (Holm); *: with labels",
        fontsize=8,
        color=SOFT,
    )
    return figure


def _draw_dot(ax: Axes, place: int, row: pd.Series) -> None:
    colour = SOFT if not row["significant"] else CYCLE[0] if row["difference"] > 0 else CYCLE[1]
    ax.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.4)
    face = colour if row["significant"] else "white"
    ax.plot(row["score"], place, "o", color=colour, markerfacecolor=face, markersize=6)


def plot_isp_change(
    before: nn.Module,
    after: nn.Module,
    raw: Tensor,
    *,
    names: tuple[str, str] = ("before", "after"),
    stages: Sequence[str] = ("demosaic", "white_balance", "colour_matrix", "denoising", "gamma"),
) -> Figure:
    """Draw what two ISPs make of one frame, stage by stage, one above the other.

    Linear stages are dark at low light, so each column has one brightness for both rows: the 99th
    percentile of the upper picture is drawn as white, where that is below 1. The range of the values
    stands above each picture.

    Args:
        before: the upper ISP.
        after: the lower ISP.
        raw: (B, 1, H, W), raw domain; the first is drawn.
        names: of the rows.
        stages: of ``isp.stages``.

    Raises:
        ValueError: a stage that one of them does not have.
    """
    with torch.no_grad():
        rows = [isp.stages(raw[:1]) for isp in (before, after)]
    if missing := {s for s in stages for row in rows if s not in row}:
        raise ValueError(f"no stages {sorted(missing)}; choose from {', '.join(rows[0])}")
    figure = Figure(figsize=(1.75 * len(stages) + 0.3, 4.2), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False)
    for column, stage in enumerate(stages):
        white = min(1.0, max(float(np.quantile(first(rows[0][stage]), 0.99)), 1e-6))
        for ax, row in zip(axes[:, column], rows, strict=True):
            image = first(row[stage])
            show(ax, image / white)
            ax.set_title(f"{stage}\n{image.min():.3f} to {image.max():.3f}", fontsize=8, color=INK)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name, color=INK)
    return figure
