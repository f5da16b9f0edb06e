"""The explorer of a matrix: its cells are buttons, and a cell shows the images that it costs."""

from __future__ import annotations

import html
from functools import partial

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor

from r2l.datasets.frames import Frames
from r2l.drift.matrix import most_changed
from r2l.drift.paired import paired_scores
from r2l.files import to_uint8
from r2l.viz.drift import difference_reach, to_diagonal
from r2l.viz.pictures import answers_in_words
from r2l.viz.style import CYCLE, ink
from r2l.widgets.live import Live, caption_html, explorer, picture_html, scrolled_html

_MOST = 8  # images
_WIDTH, _GAP = 876, 2  # pixels; of the page, and between tiles


def _score_matrix(answers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the scores, trained (rows) by tested (columns), means over seeds, and what they are called."""
    paired = paired_scores(answers, ["train", "test"])
    scores = paired.numerators.sum(axis=(0, 1)) / paired.denominators.sum(axis=(0, 1))
    wide = pd.Series(scores, paired.cells).unstack()
    wide = wide.loc[answers["train"].unique(), answers["test"].unique()]
    return wide, paired.metric


def _two_rows(above: Tensor, below: Tensor, most: int = _MOST) -> np.ndarray:
    """Return images (N, 3, H, W), display domain, in two rows as uint8 (2H, W', 3), small enough to fit."""
    side = min(above.shape[-1], _WIDTH // most - _GAP)
    high = max(1, round(side * above.shape[-2] / above.shape[-1]))
    page = np.full((2 * (high + _GAP), len(above) * (side + _GAP), 3), 255, dtype=np.uint8)
    for row, images in enumerate((above, below)):
        if images.shape[-2:] != (high, side):
            images = torch.nn.functional.interpolate(images, (high, side), mode="area")
        for column, tile in enumerate(to_uint8(images.permute(0, 2, 3, 1).numpy())):
            y, x = row * (high + _GAP), column * (side + _GAP)
            page[y : y + high, x : x + side] = tile
    return page


def _changed_html(views: Frames, answers: pd.DataFrame, train: str, test: str) -> str:
    """Return the images of `most_changed` as HTML: above and below, each with what the model says."""
    table = most_changed(answers, train, test, _MOST)
    images = table["image"].tolist()
    before, after = (answers_in_words(views, table, column) for column in ("before", "after"))
    rows = [(train, before), (test, after)]
    alt = f"{len(table)} images, trained under {train}. " + ". ".join(
        f"{where} developed by {code}: {', '.join(words)}"
        for where, (code, words) in zip(("Above", "Below"), rows, strict=True)
    )
    pictures = _two_rows(*(views.images[code][images] for code, _ in rows))
    text, width = "font-size: 12px; line-height: 1.5", _WIDTH * len(images) // _MOST
    above, below = (caption_html(words, width, text) for words in (before, after))
    return scrolled_html(above + picture_html(pictures, alt, width) + below)


def matrix_explorer(views: Frames, answers: pd.DataFrame) -> widgets.Widget:
    """Return the matrix, each cell a button, above the images that lose most in the chosen cell.

    Rows: trained under; columns: tested under. Colour: difference to the row's diagonal. The answers are
    what `r2l.drift.predict_matrix` returned for the developed images.
    """
    scores, metric = _score_matrix(answers)
    note, picture = widgets.HTML(), widgets.HTML()
    differences = to_diagonal(scores)
    grid, cells = _grid(scores, differences)
    # The first cell to show is the worst.
    shown = [min(cells, key=lambda names: differences.loc[names])]

    def draw() -> None:
        train, test = shown[0]
        for names, cell in cells.items():
            cell.layout.border = f"3px solid {CYCLE[4] if names == shown[0] else 'transparent'}"
        falls = most_changed(answers, train, test, len(views))["fall"]
        lost = int((falls > 0).sum())
        masks = views.task == "segmentation"
        what = "images with a lower IoU" if masks else "answers lost"
        which = "all of them" if lost else "the first images"
        which = f"the first {_MOST} of them" if lost > _MOST else which
        note.value = (
            f"<b>trained under {train} (above), tested under {test} (below)</b>: "
            f"{metric} {scores.loc[train, test]:.3f}, {what}: {lost}; below, {which}"
        )
        picture.value = _changed_html(views, answers, train, test)

    live = Live(draw, note)

    def choose(names: tuple[str, str], _button: object) -> None:
        shown[0] = names
        live()

    for names, cell in cells.items():
        cell.on_click(partial(choose, names))
    live.watch()
    return explorer("matrix", grid, note, picture)


def _grid(
    scores: pd.DataFrame, differences: pd.DataFrame
) -> tuple[widgets.GridBox, dict[tuple[str, str], widgets.Button]]:
    """Return the grid, and its buttons by trained and tested pipeline."""

    def name(text: str) -> widgets.HTML:
        style = "font-size: 12px; text-align: center; overflow-wrap: anywhere"
        words = f'<div style="{style}">{html.escape(text)}</div>'
        return widgets.HTML(words, layout={"margin": "0"})

    reach, cells = difference_reach(differences), {}
    children = [name("trained \\ tested"), *map(name, scores)]
    for train in scores.index:
        children.append(name(train))
        for test in scores:
            colour = colormaps["RdBu"](0.5 + 0.5 * differences.loc[train, test] / reach)
            button = widgets.Button(
                description=f"{scores.loc[train, test]:.2f}",
                tooltip=f"trained under {train}, tested under {test}",
                style={"button_color": to_hex(colour), "text_color": to_hex(ink(colour))},
                layout={"width": "auto", "height": "34px", "margin": "1px", "padding": "0"},
            )
            cells[train, test] = button.add_class("r2l-matrix-cell")
            children.append(button)
    columns = f"100px repeat({scores.shape[1]}, minmax(52px, 84px))"
    layout = {"grid_template_columns": columns, "align_items": "center"}
    return widgets.GridBox(children, layout=layout), cells
