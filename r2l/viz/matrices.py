"""Figures of cells: the train x test matrix, detection rates of a shift, a landscape of two settings."""

import re
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from r2l.drift.forensics import Landscape
from r2l.drift.matrix import MatrixSummary
from r2l.files import choose
from r2l.viz.style import CYCLE, INK, LETTERS, heading, ink, note, panels, tidy


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
    choose("colour", colour, ("difference", "score"))
    sources = [(matrix, title)] + ([(published, published_title)] if published is not None else [])
    frames = [m.matrix() if isinstance(m, MatrixSummary) else m for m, _ in sources]
    shades = [to_diagonal(frame) if colour == "difference" else frame for frame in frames]
    scale = _colour_scale(shades, colour)
    widths = [_panel_side(frame.shape[1]) for frame in frames]
    height = max(_panel_side(frame.shape[0]) for frame in frames)
    # "compressed" closes the gaps around squares, but makes panels of unequal size collide.
    layout = "compressed" if len({frame.shape for frame in frames}) == 1 else "constrained"
    below = _legend(matrix) if isinstance(matrix, MatrixSummary) else ""
    width = max(sum(widths) + 1.2, 6.4)
    size = (width, height + 0.5 + 0.16 * len(below) / (12 * width))
    figure, axes = panels(1, len(sources), size, layout, width_ratios=widths)
    for ax, frame, shade, width, (source, name) in zip(axes[0], frames, shades, widths, sources, strict=True):
        summary = source if isinstance(source, MatrixSummary) else None
        _draw_scores(ax, frame, shade, scale, summary)
        heading(ax, textwrap.fill(name, int(9.5 * width)), 10)
    name = matrix.metric if isinstance(matrix, MatrixSummary) else "score"
    label = f"{name}, less the row's diagonal" if colour == "difference" else name
    # panchor: a colour bar would otherwise move the panels off the upper edge they share.
    bar = figure.colorbar(scale, ax=axes[0], fraction=0.04, aspect=30, panchor=False, label=label)
    bar.outline.set_visible(False)
    note(figure, below)
    return figure


def _legend(summary: MatrixSummary) -> str:
    about = [
        f"±: half the {summary.level:.0%} interval over {summary.n_groups} groups",
        f"framed: differs from its row's diagonal (paired, Holm, {1 - summary.level:.0%})",
    ]
    return "; ".join([*about, *summary.caveats]) + "."


def to_diagonal(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the difference of each score to that of its row's own pipeline."""
    return scores.sub([scores.loc[train, train] for train in scores.index], axis="index")


def difference_reach(*differences: pd.DataFrame) -> float:
    """Return where the colours of differences end.

    At a tenth at least, so that a matrix without drift does not blow its noise up to full colour.
    """
    return max(0.1, *(float(part.abs().to_numpy().max()) for part in differences))


def _panel_side(cells: int) -> float:
    """Inches: a cell needs room for its digits, a small matrix some presence."""
    return max(3.4, 0.4 * cells + 1.0)


def _colour_scale(shades: Sequence[pd.DataFrame], colour: str) -> ScalarMappable:
    if colour == "score":
        values = np.concatenate([shade.to_numpy().ravel() for shade in shades])
        return ScalarMappable(Normalize(values.min(), values.max()), "cividis")
    reach = difference_reach(*shades)
    return ScalarMappable(Normalize(-reach, reach), "RdBu")


def _draw_scores(
    ax: Axes, frame: pd.DataFrame, shade: pd.DataFrame, scale: ScalarMappable, summary: MatrixSummary | None
) -> None:
    ax.imshow(shade, cmap=scale.cmap, norm=scale.norm)
    ax.set_anchor("N")
    half = framed = None
    if summary is not None:
        half = (summary.matrix("high") - summary.matrix("low")).to_numpy() / 2
        framed = summary.matrix("significant").to_numpy()
    for (row, column), value in np.ndenumerate(frame.to_numpy()):
        letters = ink(scale.to_rgba(shade.iat[row, column]))
        lift = 0.0 if half is None else 0.1
        text = {"ha": "center", "va": "center", "color": letters, "fontsize": LETTERS}
        ax.text(column, row - lift, f"{value:.2f}", **text)
        if half is not None:
            ax.text(column, row + 0.22, f"±{half[row, column]:.2f}", **text)
        if framed is not None and framed[row, column]:
            _frame(ax, row, column, 0.42, letters, 1.6)
    _name_cells(ax, frame.index, frame.columns, frame.shape[1] > 6)
    ax.set_xlabel("tested under")
    ax.set_ylabel("trained under")


def _frame(ax: Axes, row: int, column: int, half: float, colour: str, width: float) -> None:
    box = (column - half, row - half), 2 * half, 2 * half
    ax.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=width))


def _name_cells(ax: Axes, rows: Sequence[str], columns: Sequence[str], upright: bool) -> None:
    # Names such as "libraw:ahd+jpeg:75" break where their parts meet; upright where they would touch.
    across, down = (
        ["\n".join(re.findall(r".{1,12}(?:[+: ]|$)|.{1,12}", str(name))) for name in names]
        for names in (columns, rows)
    )
    upright |= max(map(len, across)) > 8
    ax.set_xticks(range(len(columns)), across, rotation=90 if upright else 0)
    ax.set_yticks(range(len(rows)), down)
    ax.tick_params(length=0, labelcolor=INK, labelsize=LETTERS)
    ax.spines[:].set_visible(False)


def plot_detection_rates(table: pd.DataFrame) -> Figure:
    """Draw how often a shift is detected in each cell, one panel a length of the stream.

    A frame marks the cells whose score falls significantly: framed and pale is missed, unframed and dark an
    early warning. The diagonal holds the false alarms.

    Args:
        table: what `r2l.drift.detection_rates` returned.

    Raises:
        ValueError: an empty table.
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
        ax.set_xlabel("stream from", fontsize=LETTERS, color=INK)
    axes[0, 0].set_ylabel("trained under,\nreference", fontsize=LETTERS, color=INK)
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
    landscape: Landscape, point: tuple[float, float] | None = None, figure: Figure | None = None
) -> Figure:
    """Draw the metric over two settings; a cross marks the unchanged pipeline, a ring ``point``."""
    ax = panels(1, 1, (5.0, 4.0))[1][0, 0] if figure is None else figure.subplots()
    figure = ax.figure
    scores = landscape.scores
    mesh = ax.imshow(scores, cmap="cividis", origin="lower", aspect="auto")
    figure.colorbar(mesh, ax=ax, label=f"mean {landscape.metric}").outline.set_visible(False)
    for values, ticks in ((scores.columns, ax.set_xticks), (scores.index, ax.set_yticks)):
        shown = range(0, len(values), max(1, (len(values) - 1) // 4))
        ticks(list(shown), [f"{values[i]:.3g}" for i in shown])
    ax.set_xlabel(landscape.second.title)
    ax.set_ylabel(landscape.first.title)
    present = (landscape.first.value, landscape.second.value)
    for marker, spot in (("+", present), ("o", point)):
        if spot is not None:
            row = int(np.abs(scores.index.to_numpy() - spot[0]).argmin())
            column = int(np.abs(scores.columns.to_numpy() - spot[1]).argmin())
            marks = {"markersize": 12, "markeredgewidth": 2, "fillstyle": "none"}
            ax.plot(column, row, marker, color=CYCLE[1], **marks)
    tidy(ax)
    ax.tick_params(length=2)
    return figure
