"""The explorer of landscapes: two settings, two sliders, what the model scores and what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from r2l.drift.forensics import AdjustedISP, Landscape, Prober
from r2l.viz import plot_landscape
from r2l.viz.pictures import draw_image, first_image
from r2l.viz.style import to_png

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


def plot_spot(
    landscape: Landscape, prober: Prober, raw: Tensor, point: tuple[float, float]
) -> Figure:
    """Draw a landscape with one of its points marked, beside the frame as it is developed there.

    Args:
        landscape: two settings and the metric over them.
        prober: whose pipeline is turned.
        raw: (1, 1, H, W), raw domain.
        point: values of the first and the second setting.
    """
    from matplotlib.figure import Figure

    names = landscape.first.name, landscape.second.name
    isp = AdjustedISP(prober.base, prober.base.camera, **dict(zip(names, point, strict=True)))
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
    plot_landscape(landscape, point, left)
    ax = right.subplots()
    with torch.inference_mode():
        draw_image(ax, first_image(isp(raw)))
    ax.set_axis_off()
    ax.set_title(f"{names[0]} {point[0]:.3g}, {names[1]} {point[1]:.3g}", fontsize=9)
    return figure


def landscape_explorer(
    landscapes: Sequence[Landscape], prober: Prober, raw: Tensor
) -> ipywidgets.Widget:
    """Return a menu of pairs and a slider for each setting, above the landscape and the picture.

    Args:
        landscapes: what `landscape` measured, one a pair of settings.
        prober: what it was measured with.
        raw: the frame to develop, (1, 1, H, W), raw domain.

    Raises:
        ValueError: no landscapes.
    """
    import ipywidgets as widgets

    if not landscapes:
        raise ValueError("no landscapes to explore")
    pairs = {f"{item.first.label} / {item.second.label}": item for item in landscapes}
    pair = widgets.Dropdown(options=list(pairs), description="pair")
    sliders = [widgets.SelectionSlider(options=[("", 0.0)], continuous_update=False) for _ in "12"]
    note, picture = widgets.Label(), widgets.Image(format="png")

    choosing = [True]  # while a pair is put up, its sliders move one by one

    def show_spot(_change: object = None) -> None:
        if choosing[0]:
            return
        item, point = pairs[pair.value], tuple(slider.value for slider in sliders)
        note.value = f"{item.metric} {item.scores.loc[point]:.3f}"
        picture.value = to_png(plot_spot(item, prober, raw, point), dpi=90)

    def choose(_change: object = None) -> None:
        item = pairs[pair.value]
        axes = (item.first, item.scores.index), (item.second, item.scores.columns)
        choosing[0] = True
        for slider, (setting, values) in zip(sliders, axes, strict=True):
            slider.options = [(f"{value:.3g}", float(value)) for value in values]
            slider.value = min(values, key=lambda value, s=setting: abs(value - s.value))
            slider.description = setting.label
        choosing[0] = False
        show_spot()

    pair.observe(choose, names="value")
    for slider in sliders:
        slider.observe(show_spot, names="value")
    choose()
    box = widgets.VBox([widgets.HBox([pair, note]), widgets.HBox(sliders), picture])
    return box.add_class("r2l-landscape-explorer")
