"""The explorer of a matrix: its cells are buttons, and a cell shows the images that it costs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex

from r2l.datasets.frames import Frames
from r2l.drift.paired import SCORE_NAMES, paired_scores
from r2l.viz.matrices import difference_reach, to_diagonal
from r2l.viz.style import INK, ink
from r2l.widgets.live import Live, picture_html, to_pixels

if TYPE_CHECKING:
    import ipywidgets
    from torch import Tensor

MOST = 8  # images
WIDTH, GAP = 876, 2  # pixels; of the page, and between tiles


def score_matrix(answers: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the scores, trained (rows) by tested (columns), and what they are called.

    Args:
        answers: what `r2l.drift.train_test_matrix` returned; seeds are averaged.
    """
    paired = paired_scores(answers, ["train", "test"])
    scores = paired.numerators.sum(axis=0) / paired.denominators.sum(axis=0)
    wide = pd.Series(scores, paired.cells).unstack()
    wide = wide.loc[answers["train"].unique(), answers["test"].unique()]
    return wide, SCORE_NAMES.get(paired.value, paired.value)


def most_changed(answers: pd.DataFrame, train: str, test: str, most: int = MOST) -> pd.DataFrame:
    """Return the images that a change of pipeline costs most; where it costs none, the first ones.

    Args:
        answers: what `r2l.drift.train_test_matrix` returned. Of several seeds the first is used.
        train: pipeline that the models were trained under, and compared with.
        test: the other pipeline.
        most: how many images at most.

    Returns:
        One row an image: ``image``, ``fall`` of its score (1: a right answer is lost; for masks of its
        IoU), and what is said ``before`` and ``after``: the number of the class, or the IoU.
    """
    kept = answers[(answers["train"] == train) & (answers["seed"] == answers["seed"].min())]
    own, other = (
        kept[kept["test"] == code].set_index("image").sort_index() for code in (train, test)
    )
    score, said = ("correct", "prediction") if "correct" in answers else ("iou", "iou")
    fall = own[score].astype(float) - other[score].astype(float)
    table = pd.DataFrame({"fall": fall.fillna(0), "before": own[said], "after": other[said]})
    if (table["fall"] > 0).any():
        table = table[table["fall"] > 0].sort_values("fall", ascending=False, kind="stable")
    return table.head(most).reset_index()


def two_rows(above: Tensor, below: Tensor, most: int = MOST) -> np.ndarray:
    """Return images (N, 3, H, W), display domain, in two rows of ``most`` places as uint8 (2H, W', 3).

    Large ones are made smaller; places that stay empty are white.
    """
    side = min(above.shape[-1], WIDTH // most - GAP)
    high = max(1, round(side * above.shape[-2] / above.shape[-1]))
    page = np.full((2 * (high + GAP), most * (side + GAP), 3), 255, dtype=np.uint8)
    for row, images in enumerate((above, below)):
        small = images
        if images.shape[-2:] != (high, side):
            small = torch.nn.functional.interpolate(images, (high, side), mode="area")
        for column, tile in enumerate(to_pixels(small.permute(0, 2, 3, 1).numpy())):
            y, x = row * (high + GAP), column * (side + GAP)
            page[y : y + high, x : x + side] = tile
    return page


def changed_html(views: Frames, answers: pd.DataFrame, train: str, test: str) -> str:
    """Return the images of `most_changed` as HTML: above and below, each with what the model says."""
    table = most_changed(answers, train, test)
    images = table["image"].tolist()
    before, after = (_said(views, table, column) for column in ("before", "after"))
    rows = [(train, before), (test, after)]
    alt = f"{len(table)} images, trained under {train}. " + ". ".join(
        f"{where} developed by {code}: {', '.join(words)}"
        for where, (code, words) in zip(("Above", "Below"), rows, strict=True)
    )
    pictures = two_rows(*(views.images[code][images] for code, _ in rows))
    return _captions(before) + picture_html(pictures, alt, WIDTH) + _captions(after)


def _said(views: Frames, table: pd.DataFrame, column: str) -> list[str]:
    """Return what the model says of each image, in words."""
    if views.task == "segmentation":
        return [f"IoU {value:.2f}" for value in table[column]]
    truths = views.labels[table["image"]]
    return [
        f"{'✓' if answer == truth else '✗'} {views.classes[int(answer)]}"
        for answer, truth in zip(table[column], truths, strict=True)
    ]


def _captions(words: Sequence[str]) -> str:
    columns = f"grid-template-columns: repeat({MOST}, 1fr); width: {WIDTH}px"
    spans = "".join(f"<span>{html.escape(word)}</span>" for word in words)
    text = "font-size: 12px; line-height: 1.5; text-align: center"
    return f'<div style="display: grid; {columns}; {text}">{spans}</div>'


def matrix_explorer(views: Frames, answers: pd.DataFrame) -> ipywidgets.Widget:
    """Return the matrix, each cell a button, above the images that lose most in the chosen cell.

    Rows: trained under; columns: tested under. Colour: difference to the row's diagonal.

    Args:
        views: the developed images.
        answers: what `r2l.drift.train_test_matrix` returned for them.
    """
    import ipywidgets as widgets

    scores, metric = score_matrix(answers)
    note, picture = widgets.HTML(), widgets.HTML()
    cells = {(train, test): _cell(scores, train, test) for train in scores.index for test in scores}
    # The first cell to show is the worst.
    falls = {(a, b): scores.loc[a, b] - scores.loc[a, a] for a, b in cells}
    chosen = [min(falls, key=falls.get)]

    def draw() -> None:
        train, test = chosen[0]
        for place, cell in cells.items():
            cell.layout.border = f"3px solid {INK}" if place == chosen[0] else "3px solid white"
        falls = most_changed(answers, train, test, len(views))["fall"]
        lost = int((falls > 0).sum())
        what = "answers lost" if views.task != "segmentation" else "images with a lower IoU"
        shown = (
            f"the first {MOST} of them"
            if lost > MOST
            else "all of them"
            if lost
            else "the first images"
        )
        note.value = (
            f"<b>trained under {train} (above), tested under {test} (below)</b>: "
            f"{metric} {scores.loc[train, test]:.3f}, {what}: {lost}; below, {shown}"
        )
        picture.value = changed_html(views, answers, train, test)

    live = Live(draw, note)

    def choose(place: tuple[str, str], _button: object) -> None:
        chosen[0] = place
        live()

    for place, cell in cells.items():
        cell.on_click(partial(choose, place))
    draw()
    box = widgets.VBox([_grid(scores, cells), note, picture])
    return box.add_class("r2l-matrix-explorer")


def _cell(scores: pd.DataFrame, train: str, test: str) -> ipywidgets.Button:
    import ipywidgets as widgets

    fall = to_diagonal(scores)
    colour = colormaps["RdBu"](0.5 + 0.5 * fall.loc[train, test] / difference_reach(fall))
    button = widgets.Button(
        description=f"{scores.loc[train, test]:.2f}",
        tooltip=f"trained under {train}, tested under {test}",
        style={"button_color": to_hex(colour), "text_color": to_hex(ink(colour))},
        layout={"width": "auto", "height": "34px", "margin": "1px", "padding": "0"},
    )
    return button.add_class("r2l-matrix-cell")


def _grid(
    scores: pd.DataFrame, cells: dict[tuple[str, str], ipywidgets.Button]
) -> ipywidgets.GridBox:
    """Lay the buttons out below the tested and beside the trained pipelines' names."""
    import ipywidgets as widgets

    def name(text: str) -> ipywidgets.HTML:
        words = f'<div style="font-size: 12px; text-align: center">{html.escape(text)}</div>'
        return widgets.HTML(words, layout={"margin": "0"})

    children = [name("trained \\ tested"), *(name(code) for code in scores)]
    for train in scores.index:
        children += [name(train), *(cells[train, test] for test in scores)]
    columns = f"100px repeat({scores.shape[1]}, minmax(52px, 84px))"
    return widgets.GridBox(
        children, layout={"grid_template_columns": columns, "align_items": "center"}
    )
