"""Explorers whose picture is a figure: the epochs of a learned ISP, two settings of a landscape."""

from collections.abc import Sequence

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from r2l.drift.adjustment import Learning
from r2l.drift.forensics import Landscape, Prober
from r2l.viz import plot_landscape
from r2l.viz.curves import draw_arms
from r2l.viz.pictures import draw_image, first_image
from r2l.viz.style import DPI, INK, LETTERS, SOFT, panels, to_png
from r2l.widgets.live import Live, beside, explorer, scrolled


def _plot_epoch(learning: Learning, raw: Tensor, domain: str, epoch: int) -> Figure:
    """Draw the learning curves of a domain, the epoch marked, beside what the ISP then makes of a frame.

    Three pictures: by the initial ISP, by that of the epoch, and ten times their difference around
    mid-grey. The ISP is that of the first seed and fold.

    Args:
        learning: what `r2l.drift.adjustment.compare_processing` returned.
        raw: (B, 1, H, W), raw domain; the first is drawn.
        domain: which.
        epoch: from 0, before the first, to the last.

    Raises:
        ValueError: no such domain or epoch.
    """
    isps = [learning.processor(domain, e) for e in (0, epoch)]
    with torch.no_grad():
        before, after = (first_image(isp(raw[:1])) for isp in isps)
    figure, ((curve, *pictures),) = panels(1, 4, (9.2, 2.6), width_ratios=[1.35, 1, 1, 1])
    # The measure of the held-out images that is not their loss.
    measure = next(c for c in learning.curves if c.startswith("val_") and c != "val_loss")
    draw_arms(curve, learning.curves, learning.bands(measure), domain, measure)
    curve.axvline(epoch, color=SOFT, linewidth=0.9)
    curve.set_title(f"{domain}: {measure}", fontsize=LETTERS, color=INK)
    curve.legend(frameon=False, fontsize=LETTERS)
    shown = {
        "initial ISP": before,
        f"after epoch {epoch}": after,
        "10 x difference": 0.5 + 10 * (after - before),
    }
    for ax, (title, image) in zip(pictures, shown.items(), strict=True):
        draw_image(ax, image)
        ax.set_title(title, fontsize=LETTERS, color=INK)
        ax.set_axis_off()
    return figure


def learning_explorer(learning: Learning, frames: dict[str, Tensor]) -> widgets.Widget:
    """Return a menu of domains and a slider over epochs, above what the ISP makes of a frame then.

    Args:
        learning: what `r2l.drift.adjustment.compare_processing` returned.
        frames: a raw frame (B, 1, H, W) of each domain, by its name.

    Raises:
        ValueError: a domain without a frame.
    """
    domains = list(learning.initial)
    if missing := set(domains) - set(frames):
        raise ValueError(f"no frames for {sorted(missing)}")
    last = int(learning.curves["epoch"].max())
    domain = widgets.Dropdown(options=domains, value=domains[-1], description="domain")
    epoch = widgets.IntSlider(value=last, min=0, max=last, description="epoch", continuous_update=False)
    picture, note = widgets.Image(format="png"), widgets.HTML()

    def draw() -> None:
        name = domain.value
        picture.value = to_png(_plot_epoch(learning, frames[name], name, epoch.value))

    Live(draw, note).watch(domain, epoch)
    draw()
    return explorer("learning", beside(domain, epoch), scrolled(picture), note)


def _plot_spot(landscape: Landscape, prober: Prober, raw: Tensor, point: tuple[float, float]) -> Figure:
    """Draw a landscape with one of its points marked, beside the frame as it is developed there.

    Args:
        landscape: two settings and the metric over them.
        prober: whose pipeline is turned.
        raw: (1, 1, H, W), raw domain.
        point: values of the first and the second setting.
    """
    names = landscape.first.name, landscape.second.name
    isp = prober.pipeline(**dict(zip(names, point, strict=True)))
    figure = Figure(figsize=(8.6, 3.6), layout="constrained", dpi=DPI)
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1))
    plot_landscape(landscape, point, left)
    ax = right.subplots()
    with torch.inference_mode():
        draw_image(ax, first_image(isp(raw)))
    ax.set_axis_off()
    ax.set_title(f"{names[0]} {point[0]:.3g}, {names[1]} {point[1]:.3g}", fontsize=LETTERS)
    return figure


def landscape_explorer(landscapes: Sequence[Landscape], prober: Prober, raw: Tensor) -> widgets.Widget:
    """Return a menu of pairs and a slider for each setting, above the landscape and the picture.

    Args:
        landscapes: what `landscape` measured, one a pair of settings.
        prober: what it was measured with.
        raw: the frame to develop, (1, 1, H, W), raw domain.

    Raises:
        ValueError: no landscapes.
    """
    if not landscapes:
        raise ValueError("no landscapes to explore")
    pairs = {f"{item.first.label} / {item.second.label}": item for item in landscapes}
    pair = widgets.Dropdown(options=list(pairs), description="pair")
    sliders = [widgets.SelectionSlider(options=[("", 0.0)], continuous_update=False) for _ in "12"]
    note, picture = widgets.Label(), widgets.Image(format="png")
    offering = [False]  # while a pair is put up, its sliders move one by one

    def draw() -> None:
        if not offering[0]:
            item, point = pairs[pair.value], tuple(slider.value for slider in sliders)
            note.value = f"{item.metric} {item.scores.loc[point]:.3f}"
            picture.value = to_png(_plot_spot(item, prober, raw, point))

    def offer(_change: object = None) -> None:
        item = pairs[pair.value]
        axes = (item.first, item.scores.index), (item.second, item.scores.columns)
        offering[0] = True
        for slider, (setting, values) in zip(sliders, axes, strict=True):
            slider.options = [(f"{value:.3g}", float(value)) for value in values]
            slider.value = min(values, key=lambda value, s=setting: abs(value - s.value))
            slider.description = setting.label
        offering[0] = False

    pair.observe(offer, names="value")
    offer()
    Live(draw, note).watch(pair, *sliders)
    draw()
    return explorer("landscape", beside(pair, note), beside(*sliders), scrolled(picture))
