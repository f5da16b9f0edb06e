"""Moving through what runs have tracked: a stage or its gradient, epoch by epoch, beside the losses."""

from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from PIL import Image

from r2l.training.callbacks import SCALE
from r2l.training.export import pictures
from r2l.training.tracking import Records, resolve
from r2l.viz import plot_curves
from r2l.viz.style import to_png
from r2l.widgets.live import Live, beside, explorer, picture_html, sized

_PICTURE = 600


class Tracked(NamedTuple):
    """The pictures of a run.

    Attributes:
        run_id: of the run, or of the fold.
        pictures: see `r2l.training.export.pictures`.
    """

    run_id: str
    pictures: dict[str, dict[int, str]]


def tracked(store: str | Path | None = None) -> dict[str, Tracked]:
    """Return the runs of a store that hold pictures of stages, the newest first, by name and fold.

    Raises:
        TrackingError: the store can't be opened.
    """
    records = Records(store)
    table = records.table()
    names = dict(zip(table["run_id"], table["name"], strict=True)) if len(table) else {}
    runs: dict[str, Tracked] = {}
    for row in table.itertuples():
        if shown := pictures(records, row.run_id):
            above = f"{names[row.parent]}, " if row.parent in names else ""
            name = f"{above}{row.name}"
            name = f"{name} ({row.run_id[:8]})" if name in runs else name
            runs[name] = Tracked(row.run_id, shown)
    return runs


def picture_of(run: Tracked, what: str, epoch: int, store: str | Path | None = None) -> Image.Image:
    """Return what was tracked at an epoch, as it was written; a gradient's ``info`` holds its scale.

    Raises:
        ValueError: no such picture.
        TrackingError: the store can't be opened.
    """
    path = run.pictures.get(what, {}).get(epoch)
    if path is None:
        raise ValueError(f"no {what!r} of epoch {epoch}; there are {', '.join(run.pictures)}")
    with Image.open(resolve(f"runs:/{run.run_id}/{path}", store)) as picture:
        picture.load()
        return picture


def lab_explorer(store: str | Path | None = None) -> widgets.Widget:
    """Return menus of runs and stages and a slider over epochs, above the picture and the losses.

    Args:
        store: see `r2l.training.tracking.store_address`.

    Raises:
        ValueError: no run with tracked stages.
        TrackingError: the store can't be opened.
    """
    runs = tracked(store)
    if not runs:
        raise ValueError("no run with tracked stages; train with --track_processing")
    records = Records(store)
    style = sized(60, 300)
    run = widgets.Dropdown(options=list(runs), description="run", **style)
    what = widgets.Dropdown(description="picture", **style)
    epoch = widgets.SelectionSlider(options=[0], description="epoch", **style)
    picture, note = widgets.HTML(), widgets.HTML()
    curves = widgets.Image(format="png", layout={"width": "520px", "max_width": "100%"})

    def fit(_change: object = None) -> None:
        """Offer what the run holds; keep the choices that it has too."""
        pictures = runs[run.value].pictures
        wanted = (what.value, "gamma", next(iter(pictures)))
        kept = next(name for name in wanted if name in pictures)
        what.options = list(pictures)
        what.value = kept
        epochs = list(pictures[kept])
        kept_epoch = epoch.value if epoch.value in epochs else epochs[-1]
        epoch.options = epochs
        epoch.value = kept_epoch

    def draw() -> None:
        shown = runs[run.value]
        image = picture_of(shown, what.value, epoch.value, store)
        alt = f"{what.value} of {run.value} after epoch {epoch.value}, a few images side by side"
        picture.value = picture_html(np.asarray(image), alt, _PICTURE)
        scale = image.info.get(SCALE)
        note.value = f"grey is 0, white and black ±{float(scale):.2g}" if scale else "&nbsp;"

    def draw_curves(_change: object = None) -> None:
        history = records.history(runs[run.value].run_id)
        curves.value = to_png(plot_curves({run.value: history}))

    live = Live(draw, note)
    for control in (run, what):
        control.observe(fit, names="value")
    run.observe(draw_curves, names="value")
    fit()
    live.watch(run, what, epoch)
    draw()
    draw_curves()
    return explorer("lab", beside(run, what, epoch), picture, note, curves)
