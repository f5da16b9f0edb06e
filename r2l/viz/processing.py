"""Figures of processing: gradients through the stages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from r2l.isp import StageGradient
from r2l.viz.pictures import first, show
from r2l.viz.style import INK

#: The stages that are meant for a display already.
DISPLAY = {"gamma", "additive"}


def plot_gradients(gradients: Mapping[str, StageGradient], *, reach: float = 99.8) -> Figure:
    """Draw what each stage made, and below it the gradient of a loss with respect to that.

    Stages before gamma are drawn brightened, with a gamma of 2.2. Gradients are summed over the
    channels; blue where the loss falls if the value rises, red where it
    rises. Each stage has its own scale, whose end stands in its title.

    Args:
        gradients: what `r2l.isp.stage_gradients` returned; the first of each batch is drawn.
        reach: percentile of the magnitude at which the colours end.

    Raises:
        ValueError: no stages.
    """
    if not gradients:
        raise ValueError("no gradients to draw")
    count = len(gradients)
    figure = Figure(figsize=(1.75 * count, 4.1), layout="constrained")
    above, below = figure.subplots(2, count, squeeze=False)
    for ax, ground, (name, pair) in zip(above, below, gradients.items(), strict=True):
        image = first(pair.image).clip(0, 1)
        show(ax, image if name in DISPLAY else image ** (1 / 2.2))
        ax.set_title(name, fontsize=9, color=INK)
        slope = first(pair.gradient).sum(-1)
        end = float(np.percentile(np.abs(slope), reach)) or float(np.abs(slope).max()) or 1.0
        ground.imshow(slope, cmap="RdBu_r", vmin=-end, vmax=end, interpolation="nearest")
        ground.set_title(f"± {end:.2g}", fontsize=9, color=INK)
    for ax in (*above, *below):
        ax.set_axis_off()
    return figure
