"""Figures of runs: how the losses went."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2l.viz.style import CYCLE, INK, SOFT

_KINDS = {"train": ("training", CYCLE[0]), "val": ("validation", CYCLE[1])}


def plot_curves(curves: Mapping[str, pd.DataFrame], metric: str = "loss") -> Figure:
    """Draw training against validation by epoch: each fold thin, the mean over the folds thick.

    Args:
        curves: by fold, tables with the columns ``train_METRIC`` and ``val_METRIC`` and an index of epochs
            (`r2l.training.lab.curves`, or the ``history`` of what `fit` returns).
        metric: "loss", "accuracy", ...

    Raises:
        ValueError: no table has such a column; lists those that exist.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    ax = figure.subplots()
    for prefix, (name, colour) in _KINDS.items():
        column = f"{prefix}_{metric}"
        lines = [table[column].dropna() for table in curves.values() if column in table]
        if not lines:
            continue
        several = len(lines) > 1
        mean = pd.concat(lines, axis=1).mean(axis=1)
        if several:
            for line in lines:
                ax.plot(line.index, line, color=colour, linewidth=0.8, alpha=0.45)
        label = f"{name} (mean of {len(lines)})" if several else name
        marker = "o" if len(mean) == 1 else None
        ax.plot(mean.index, mean, color=colour, linewidth=2, label=label, marker=marker)
    if not ax.lines:
        columns = sorted({column for table in curves.values() for column in table})
        raise ValueError(f"no train_{metric} or val_{metric}; there are {', '.join(columns)}")
    ax.set_xlabel("epoch", color=INK)
    ax.set_ylabel(metric, color=INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=SOFT)
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure
