"""ipywidgets over functions that are tested without them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from r2l.drift import Views, flips
from r2l.viz import plot_flips

if TYPE_CHECKING:
    import ipywidgets
    import pandas as pd
    from matplotlib.figure import Figure


def to_png(figure: Figure, dpi: int = 90) -> bytes:
    """Return a figure as the bytes of a PNG, which an image widget shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def matrix_explorer(views: Views, answers: pd.DataFrame) -> ipywidgets.Widget:
    """Return two menus, training and test pipeline, above the images whose answer flips.

    Args:
        views: the developed images.
        answers: what `r2l.drift.train_test_matrix` returned for them.
    """
    import ipywidgets as widgets

    trains, tests = list(answers["train"].unique()), list(answers["test"].unique())
    train = widgets.Dropdown(options=trains, value=trains[0], description="trained")
    test = widgets.Dropdown(options=tests, value=tests[-1], description="tested")
    note = widgets.Label()
    picture = widgets.Image(format="png")

    def show(_change: object = None) -> None:
        changes = flips(answers, train.value, test.value)["change"].value_counts()
        note.value = f"{changes.get('lost', 0)} answers lost, {changes.get('gained', 0)} gained"
        picture.value = to_png(plot_flips(views, answers, train.value, test.value))

    for menu in (train, test):
        menu.observe(show, names="value")
    show()
    box = widgets.VBox([widgets.HBox([train, test, note]), picture])
    return box.add_class("r2l-matrix-explorer")
