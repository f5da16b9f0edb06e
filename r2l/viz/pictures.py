"""Figures made of pictures: views, stages, samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from r2l.datasets import RawDataset
from r2l.isp import StaticISP
from r2l.viz.style import INK


def plot_views(
    images: Mapping[str, Tensor],
    *,
    reference: str | None = None,
    gain: float = 5.0,
    columns: int = 4,
) -> Figure:
    """Draw one frame as several pipelines develop it.

    Args:
        images: display RGB (3, H, W), or (B, 3, H, W) of which the first is drawn, by pipeline.
        reference: a pipeline; the others are then drawn as their difference to it, ``gain``-fold,
            around mid-grey.
        gain: how much differences are amplified.
        columns: images in a row.

    Raises:
        ValueError: no images, or ``reference`` is not among them.
    """
    if not images or (reference is not None and reference not in images):
        raise ValueError(f"no images, or no {reference!r} among them: {list(images)}")
    base = None if reference is None else first(images[reference])
    tiles = {}
    for code, image in images.items():
        if base is None or code == reference:
            tiles[code] = first(image)
        else:
            tiles[f"{gain:g} x ({code} - {reference})"] = 0.5 + gain * (first(image) - base)
    return gallery(tiles, columns)


def plot_stages(stages: Mapping[str, Tensor], *, columns: int = 5) -> Figure:
    """Draw what an ISP makes of one frame, stage by stage (``isp.stages(raw)``).

    Below each name stands the range of the values; what leaves [0, 1] is drawn as 0 or 1.

    Args:
        stages: mosaic (B, 1, H, W) or RGB (B, 3, H, W) by name; the first of each batch is drawn.
        columns: images in a row.

    Raises:
        ValueError: no stages.
    """
    if not stages:
        raise ValueError("no stages to draw")
    tiles = {}
    for name, stage in stages.items():
        image = first(stage)
        tiles[f"{name}\n{image.min():.2f} to {image.max():.2f}"] = image
    return gallery(tiles, columns)


def plot_samples(
    dataset: RawDataset,
    *,
    per_class: int = 3,
    develop: Callable[[Tensor], Tensor] | None = None,
) -> Figure:
    """Draw the first few images of each class, one class a column.

    Args:
        dataset: raw frames with ``labels``, ``classes`` and ``camera``.
        per_class: images of each class; classes with fewer leave gaps.
        develop: raw (B, 1, H, W) to display RGB; `StaticISP` "bi,s,ga" unless given.
    """
    develop = develop or StaticISP.from_code("bi,s,ga", dataset.camera)
    count = len(dataset.classes)
    figure = Figure(figsize=(1.15 * count + 0.2, 1.15 * per_class + 0.4), layout="constrained")
    axes = figure.subplots(per_class, count, squeeze=False)
    for column, name in enumerate(dataset.classes):
        members = np.flatnonzero(np.asarray(dataset.labels) == column)
        axes[0, column].set_title(f"{name} ({len(members)})", fontsize=9, color=INK)
        for ax, index in zip(axes[:, column], members, strict=False):
            with torch.no_grad():
                show(ax, first(develop(dataset[int(index)]["raw"][None])))
    for ax in axes.flat:
        ax.set_axis_off()
    return figure


def gallery(tiles: Mapping[str, np.ndarray], columns: int) -> Figure:
    """Draw pictures (H, W, C), display domain, side by side, each under its name."""
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height, width = next(iter(tiles.values())).shape[:2]
    figure = Figure(figsize=(2.3 * columns, (2.3 * height / width + 0.45) * rows))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, image) in zip(axes.flat, tiles.items(), strict=False):
        show(ax, image)
        ax.set_title(name, fontsize=9, color=INK)
    return figure


def first(image: Tensor) -> np.ndarray:
    """Turn (B, C, H, W) or (C, H, W) to (H, W, C), as numpy draws it."""
    image = image[0] if image.ndim == 4 else image
    return image.detach().cpu().permute(1, 2, 0).numpy()


def show(ax: Axes, image: np.ndarray) -> None:
    """Draw one picture (H, W, C); what leaves [0, 1] is drawn as 0 or 1."""
    picture = image.clip(0, 1)
    if picture.shape[2] == 1:
        ax.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(picture, interpolation="nearest")
