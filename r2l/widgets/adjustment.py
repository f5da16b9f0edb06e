"""Moving through the epochs of a learned ISP: a thin skin over `plot_epoch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from r2l.drift.adjustment import Learning
from r2l.viz.pictures import draw_image, first_image
from r2l.viz.style import CYCLE, INK, SOFT, to_png

if TYPE_CHECKING:
    import ipywidgets


def plot_epoch(learning: Learning, raw: Tensor, domain: str, epoch: int) -> Figure:
    """Draw the learning curves of a domain, the epoch marked, beside what the ISP then makes of a frame.

    Three pictures: by the initial ISP, by that of the epoch, and ten times their difference around
    mid-grey. The ISP is that of the first seed and fold.

    Args:
        learning: what `r2l.drift.compare_processing` returned.
        raw: (B, 1, H, W), raw domain; the first is drawn.
        domain: which.
        epoch: from 0, before the first, to the last.

    Raises:
        ValueError: no such domain or epoch.
    """
    isps = [learning.processor(domain, e) for e in (0, epoch)]
    with torch.no_grad():
        before, after = (first_image(isp(raw[:1])) for isp in isps)
    figure = Figure(figsize=(9.2, 2.6), layout="constrained")
    curve, *pictures = figure.subplots(1, 4, width_ratios=[1.35, 1, 1, 1])
    bands = learning.bands(_measure(learning))
    for arm, colour in zip(bands["arm"].unique(), CYCLE, strict=False):
        part = bands[(bands["domain"] == domain) & (bands["arm"] == arm)]
        curve.plot(part["epoch"], part["mean"], color=colour, label=arm)
    curve.axvline(epoch, color=SOFT, linewidth=0.9)
    curve.set_xlabel("epoch")
    curve.set_title(f"{domain}: {_measure(learning)}", fontsize=9, color=INK)
    curve.legend(frameon=False, fontsize=8)
    curve.spines[["top", "right"]].set_visible(False)
    titles = ("initial ISP", f"after epoch {epoch}", "10 x difference")
    for ax, image, title in zip(
        pictures, (before, after, 0.5 + 10 * (after - before)), titles, strict=True
    ):
        draw_image(ax, image)
        ax.set_title(title, fontsize=9, color=INK)
        ax.set_axis_off()
    return figure


def _measure(learning: Learning) -> str:
    """The measure of the held-out images that is not their loss."""
    return next(c for c in learning.curves if c.startswith("val_") and c != "val_loss")


def learning_explorer(learning: Learning, frames: dict[str, Tensor]) -> ipywidgets.Widget:
    """Return a menu of domains and a slider over epochs, above what the ISP makes of a frame then.

    Args:
        learning: what `r2l.drift.compare_processing` returned.
        frames: a raw frame (B, 1, H, W) of each domain, by its name.

    Raises:
        ValueError: a domain without a frame.
    """
    import ipywidgets as widgets

    domains = list(learning.initial)
    if missing := set(domains) - set(frames):
        raise ValueError(f"no frames for {sorted(missing)}")
    last = int(learning.curves["epoch"].max())
    domain = widgets.Dropdown(options=domains, value=domains[-1], description="domain")
    epoch = widgets.IntSlider(
        value=last, min=0, max=last, description="epoch", continuous_update=False
    )
    picture = widgets.Image(format="png")

    def draw(_change: object = None) -> None:
        name = domain.value
        picture.value = to_png(plot_epoch(learning, frames[name], name, epoch.value), dpi=90)

    for control in (domain, epoch):
        control.observe(draw, names="value")
    draw()
    box = widgets.VBox([widgets.HBox([domain, epoch]), picture])
    return box.add_class("r2l-learning-explorer")
