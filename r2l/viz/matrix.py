"""Figures of drift synthesis: the train x test matrix and the images whose answer flips."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2l.drift.matrix import MatrixSummary, flips
from r2l.drift.synthesis import Views
from r2l.viz.pictures import first, show
from r2l.viz.style import INK, SOFT, ink


def plot_matrix(
    matrix: MatrixSummary | pd.DataFrame,
    published: pd.DataFrame | None = None,
    *,
    title: str = "measured here",
    published_title: str = "published",
    colour: str = "difference",
) -> Figure:
    """Draw a train (rows) x test (columns) matrix, on request with a published one beside it.

    Every cell holds its score; with a `MatrixSummary` also half the width of its interval, and a
    frame where the cell differs significantly from its row's diagonal.

    Args:
        matrix: what `r2l.drift.summarise` returns, or a frame of scores.
        published: a frame of scores (`r2l.drift.published_matrix`), drawn on the same colour scale.
        title: above the matrix.
        published_title: above the published one.
        colour: "difference" (to the diagonal of the row; blue better, red worse) or "score".

    Raises:
        ValueError: ``colour`` is neither.
    """
    if colour not in ("difference", "score"):
        raise ValueError(f"unknown colour {colour!r}; choose from difference, score")
    panels = [(matrix, title)] + ([(published, published_title)] if published is not None else [])
    frames = [m.matrix() if isinstance(m, MatrixSummary) else m for m, _ in panels]
    shades = [_to_diagonal(frame) if colour == "difference" else frame for frame in frames]
    scale = _colour_scale(shades, colour)
    widths = [_panel_side(frame.shape[1]) for frame in frames]
    height = max(_panel_side(frame.shape[0]) for frame in frames)
    # "compressed" closes the gaps around squares, but makes panels of unequal size collide.
    layout = "compressed" if len({frame.shape for frame in frames}) == 1 else "constrained"
    figure = Figure(figsize=(sum(widths) + 1.2, height + 0.5), layout=layout)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for ax, frame, shade, width, (source, name) in zip(
        axes, frames, shades, widths, panels, strict=True
    ):
        summary = source if isinstance(source, MatrixSummary) else None
        _draw_cells(ax, frame, shade, scale, summary)
        name = textwrap.fill(name, int(9.5 * width))
        ax.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK)
    name = matrix.metric if isinstance(matrix, MatrixSummary) else "score"
    label = f"difference of {name} to the row's diagonal" if colour == "difference" else name
    # panchor: a colour bar would otherwise move the panels off the upper edge they share.
    bar = figure.colorbar(scale, ax=axes, fraction=0.04, aspect=30, panchor=False, label=label)
    bar.outline.set_visible(False)
    if isinstance(matrix, MatrixSummary):
        note = textwrap.fill(_legend(matrix), int(13 * figure.get_figwidth()))
        figure.supxlabel(note, fontsize=8, color=SOFT)
    return figure


def _legend(summary: MatrixSummary) -> str:
    return (
        f"±: half the {summary.level:.0%} interval over {summary.n_groups} groups. Framed: differs "
        f"from its row's diagonal (paired, Holm, {1 - summary.level:.0%})."
    )


def _to_diagonal(frame: pd.DataFrame) -> pd.DataFrame:
    diagonal = pd.Series({train: frame.loc[train, train] for train in frame.index})
    return frame.sub(diagonal, axis="index")


def _panel_side(cells: int) -> float:
    """Inches: a cell needs room for its digits, a small matrix some presence."""
    return max(3.4, 0.52 * cells + 1.2)


def _colour_scale(shades: Sequence[pd.DataFrame], colour: str) -> ScalarMappable:
    values = np.concatenate([shade.to_numpy().ravel() for shade in shades])
    if colour == "score":
        return ScalarMappable(Normalize(values.min(), values.max()), "cividis")
    # At least a tenth, so that a matrix without drift does not blow its noise up to full colour.
    reach = max(0.1, np.abs(values).max())
    return ScalarMappable(Normalize(-reach, reach), "RdBu")


def _draw_cells(
    ax: Axes,
    frame: pd.DataFrame,
    shade: pd.DataFrame,
    scale: ScalarMappable,
    summary: MatrixSummary | None,
) -> None:
    ax.imshow(shade, cmap=scale.cmap, norm=scale.norm)
    ax.set_anchor("N")
    half = framed = None
    if summary is not None:
        half = (summary.matrix("high") - summary.matrix("low")).to_numpy() / 2
        framed = summary.matrix("significant").to_numpy()
    size = 10 if max(frame.shape) <= 6 else 8
    for (row, column), value in np.ndenumerate(frame.to_numpy()):
        letters = ink(scale.to_rgba(shade.iat[row, column]))
        lift = 0.0 if half is None else 0.1
        text = {"ha": "center", "va": "center", "color": letters}
        ax.text(column, row - lift, f"{value:.2f}", fontsize=size, **text)
        if half is not None:
            ax.text(column, row + 0.22, f"±{half[row, column]:.2f}", fontsize=size - 2.5, **text)
        if framed is not None and framed[row, column]:
            box = (column - 0.42, row - 0.42)
            ax.add_patch(Rectangle(box, 0.84, 0.84, fill=False, edgecolor=letters, linewidth=1.6))
    ax.set_xticks(range(frame.shape[1]), frame.columns, rotation=90 if frame.shape[1] > 6 else 0)
    ax.set_yticks(range(frame.shape[0]), frame.index)
    ax.set_xlabel("tested under")
    ax.set_ylabel("trained under")
    ax.tick_params(length=0, labelcolor=INK, labelsize=8)
    ax.spines[:].set_visible(False)


def plot_flips(
    views: Views, results: pd.DataFrame, train: str, test: str, *, most: int = 8
) -> Figure:
    """Draw images whose right answer is lost under another pipeline: above seen under ``train``,
    below under ``test``, each with the answer.

    Args:
        views: the developed images that ``results`` are about.
        results: what `r2l.drift.train_test_matrix` returned.
        train: pipeline that the models were trained under.
        test: pipeline that they were tested under.
        most: how many images at most.
    """
    table = flips(results, train, test)
    lost = table[table["change"] == "lost"].head(most)
    figure = Figure(figsize=(1.45 * most + 0.3, 3.9), layout="constrained")
    if lost.empty:
        figure.text(0.5, 0.5, f"trained under {train}: nothing lost under {test}", ha="center")
        return figure
    axes = figure.subplots(2, most, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for column, row in enumerate(lost.itertuples()):
        for ax, code, answer in zip(
            axes[:, column], (train, test), (row.before, row.after), strict=True
        ):
            show(ax, first(views.images[code][row.image]))
            mark = "✓" if answer == row.label else "✗"
            ax.set_title(f"{mark} {views.classes[answer]}", fontsize=9, color=INK)
    figure.suptitle(
        f"right under {train} (above), lost under {test} (below)", fontsize=9, color=SOFT
    )
    return figure
