"""Figures made of pictures: sites of a mosaic, views, stages, gradients, samples, answers that flip."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from r2l.camera import CFA
from r2l.datasets import RawDataset
from r2l.datasets.frames import Frames
from r2l.drift.matrix import most_changed
from r2l.isp import StageGradient, open_pipeline, stage_gradients
from r2l.isp.grammar import PipelineLike, linear_stages
from r2l.sensor import CONTAINER_MAX
from r2l.viz.style import CYCLE, INK, LETTERS, SOFT, galleries, ink, panels, side

# Smooth where it is drawn smaller than it is, so that a mosaic shows no moire; squares where it is larger.
_SMOOTH = "antialiased"
_ATTACKED = ("black_level", "demosaic", "white_balance", "colour_matrix", "denoising", "gamma")
#: Lines of the four planes, told apart by dashes too: red, green beside red, green beside blue, blue.
PLANE_STYLES = {
    "red": (CYCLE[1], "-"),
    "green 1": (CYCLE[2], "-"),
    "green 2": (CYCLE[2], "--"),
    "blue": (CYCLE[0], "-"),
}


def split_planes(mosaic: np.ndarray, cfa: CFA) -> dict[str, np.ndarray]:
    """Return the four planes (H/2, W/2) of a mosaic (H, W), any domain; views, by name."""
    positions = (position for colour in range(3) for position in cfa.positions(colour))
    return {name: mosaic[p // 2 :: 2, p % 2 :: 2] for name, p in zip(PLANE_STYLES, positions, strict=True)}


def colour_sites(mosaic: np.ndarray, cfa: CFA) -> np.ndarray:
    """Return a mosaic (H, W) as (H, W, 3), each site in the colour of its filter; any domain."""
    height, width = mosaic.shape
    colours = np.tile(np.reshape(cfa.value, (2, 2)), ((height + 1) // 2, (width + 1) // 2))
    return mosaic[..., None] * (colours[:height, :width, None] == np.arange(3))


def first_image(images: Tensor) -> np.ndarray:
    """Turn (B, C, H, W) or (C, H, W) to (H, W, C), as numpy draws it."""
    image = images[0] if images.ndim == 4 else images
    return image.detach().cpu().permute(1, 2, 0).numpy()


def draw_image(ax: Axes, image: np.ndarray, title: str = "") -> None:
    """Draw one picture (H, W, C), C 1 or 3; what leaves [0, 1] is drawn as 0 or 1."""
    picture = image.squeeze(2) if image.shape[2] == 1 else image
    ax.imshow(picture.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation=_SMOOTH)
    ax.set_title(title, fontsize=LETTERS, color=INK)


def plot_sites(mosaic: np.ndarray, cfa: CFA, *, title: str = "", gain: float = 1.0) -> Figure:
    """Draw a few sites of a mosaic, each in the colour of its filter and with its number of 16 bits.

    The mosaic is (H, W), raw domain; some 8 x 8 sites can be read. With ``gain`` they are drawn so much
    brighter than they are; the numbers stay.
    """
    height, width = mosaic.shape
    shown = (gain * colour_sites(mosaic, cfa)).clip(0, 1) ** (1 / 2.2)
    figure, ((ax,),) = panels(1, 1, (0.56 * width + 0.3, 0.56 * height + 0.5))
    draw_image(ax, shown)
    for (row, column), value in np.ndenumerate(mosaic):
        number = f"{round(float(value) * CONTAINER_MAX)}"
        colour = ink(shown[row, column])
        ax.text(column, row, number, ha="center", va="center", fontsize=LETTERS, color=colour)
    ax.set_axis_off()
    ax.set_title(title, fontsize=10, color=INK)
    return figure


def plot_views(
    images: Mapping[str, Tensor], *, reference: str | None = None, gain: float = 5.0, columns: int = 4
) -> Figure:
    """Draw one frame as several pipelines develop it, in rows of so many columns.

    The images are display RGB (3, H, W), or (B, 3, H, W) of which the first is drawn, by pipeline. With the
    name of one of them as ``reference`` the others are drawn as their difference to it, ``gain``-fold, around
    mid-grey. No images, or no such reference, are a ValueError.
    """
    if not images or (reference is not None and reference not in images):
        raise ValueError(f"no images, or no {reference!r} among them: {list(images)}")
    base, tiles = None if reference is None else first_image(images[reference]), {}
    for code, image in images.items():
        if base is None or code == reference:
            tiles[code] = first_image(image)
        else:
            tiles[f"{gain:g} x ({code} - {reference})"] = 0.5 + gain * (first_image(image) - base)
    return _gallery(tiles, columns)


def plot_stages(stages: Mapping[str, Tensor], *, columns: int = 5) -> Figure:
    """Draw what an ISP makes of one frame, stage by stage (``isp.stages(raw)``).

    Below each name stands the range of the values; what leaves [0, 1] is drawn as 0 or 1. Of each batch,
    (B, 1, H, W) or (B, 3, H, W), the first is drawn. No stages are a ValueError.
    """
    if not stages:
        raise ValueError("no stages to draw")
    pictures = {name: first_image(stage) for name, stage in stages.items()}
    return _gallery({f"{name}\n{i.min():.2f} to {i.max():.2f}": i for name, i in pictures.items()}, columns)


def _gallery(tiles: Mapping[str, np.ndarray], columns: int) -> Figure:
    """Draw pictures (H, W, C), display domain, side by side, each under its name."""
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height, width = next(iter(tiles.values())).shape[:2]
    tile = side(columns, 2.3)
    # Names break where they have spaces; their own breaks stay.
    wrap = textwrap.TextWrapper(int(13 * tile), break_long_words=False)
    names = ["\n".join(map(wrap.fill, name.splitlines())) for name in tiles]
    above = 0.15 * (1 + max(name.count("\n") for name in names)) + 0.15
    figure, axes = galleries(rows, columns, (tile * columns, (tile * height / width + above) * rows))
    for ax, name, image in zip(axes.flat, names, tiles.values(), strict=False):
        draw_image(ax, image, name)
    return figure


def plot_samples(dataset: RawDataset, *, per_class: int = 3, develop: PipelineLike = "bi,s,ga") -> Figure:
    """Draw the first few images of each class, one class a column.

    Classes of fewer images than ``per_class`` leave gaps; ``develop`` is what `r2l.isp.open_pipeline` takes.
    """
    develop = open_pipeline(develop, dataset.camera)
    count = len(dataset.classes)
    tile = side(count, 1.15)
    figure, axes = galleries(per_class, count, (tile * count + 0.2, tile * per_class + 0.4))
    for column, name in enumerate(dataset.classes):
        members = np.flatnonzero(np.asarray(dataset.labels) == column)
        for ax, index in zip(axes[:, column], members, strict=False):
            with torch.no_grad():
                draw_image(ax, first_image(develop(dataset[int(index)]["raw"][None])))
        axes[0, column].set_title(f"{name} ({len(members)})", fontsize=LETTERS, color=INK)
    return figure


def plot_flips(views: Frames, results: pd.DataFrame, train: str, test: str) -> Figure:
    """Draw the eight images that lose most under another pipeline than the models were trained under.

    What they lose is a right answer, or the overlap of their mask: above seen under the pipeline ``train``,
    below under ``test``, each with the answer. The results are those of `r2l.drift.predict_matrix` for the
    developed images.
    """
    most, tile = 8, side(8, 1.45)
    lost = most_changed(results, train, test, most)
    lost = lost[lost["fall"] > 0]
    size = (tile * most + 0.3, 2 * tile + 1.0)
    if lost.empty:
        figure, ((ax,),) = galleries(1, 1, size)
        ax.text(0.5, 0.5, f"trained under {train}: nothing lost under {test}", ha="center")
        return figure
    figure, axes = galleries(2, most, size)
    for row, code, column in zip(axes, (train, test), ("before", "after"), strict=True):
        for ax, image, text in zip(row, lost["image"], answers_in_words(views, lost, column), strict=False):
            draw_image(ax, first_image(views.images[code][image]), text)
    best, worse = ("right", "lost") if views.task == "classification" else ("better", "worse")
    title = f"{best} under {train} (above), {worse} under {test} (below)"
    figure.suptitle(title, fontsize=LETTERS, color=SOFT)
    return figure


def answers_in_words(views: Frames, changes: pd.DataFrame, column: str) -> list[str]:
    """Return what a model says of the images of `most_changed`, ``column`` "before" or "after"."""
    if views.task == "segmentation":
        return [f"IoU {value:.2f}" for value in changes[column]]
    return [
        f"{'✓' if answer == truth else '✗'} {views.classes[int(answer)]}"
        for answer, truth in zip(changes[column], views.labels[changes["image"]], strict=True)
    ]


def plot_gradients(gradients: Mapping[str, StageGradient], *, reach: float = 99.8) -> Figure:
    """Draw what `r2l.isp.stage_gradients` returned: each stage, and below it the gradient of the loss there.

    Stages before gamma are drawn brightened, with a gamma of 2.2. Gradients are summed over the channels;
    blue where the loss falls if the value rises, red where it rises. Each stage has its own scale, whose
    end stands in its title: the percentile ``reach`` of the magnitude. Of each batch the first is drawn; no
    stages are a ValueError.
    """
    if not gradients:
        raise ValueError("no gradients to draw")
    tile = side(len(gradients), 1.75)
    figure, axes = galleries(2, len(gradients), (tile * len(gradients), 2 * tile + 0.6))
    linear = linear_stages(gradients)
    for (above, below), (name, pair) in zip(axes.T, gradients.items(), strict=True):
        image = first_image(pair.image).clip(0, 1)
        draw_image(above, image ** (1 / 2.2) if name in linear else image, name)
        end = _draw_gradients([below], [pair.gradient], reach)
        below.set_title(f"± {end:.2g}", fontsize=LETTERS, color=INK)
    return figure


def _draw_gradients(axes: Sequence[Axes], gradients: Sequence[Tensor], reach: float) -> float:
    """Draw gradients, summed over channels, on one scale around 0; return where its colours end."""
    slopes = [first_image(gradient).sum(-1) for gradient in gradients]
    end = float(np.percentile(np.abs(slopes), reach)) or float(np.abs(slopes).max()) or 1.0
    for ax, slope in zip(axes, slopes, strict=True):
        ax.imshow(slope, cmap="RdBu_r", vmin=-end, vmax=end, interpolation=_SMOOTH)
    return end


def plot_isp_change(
    before: nn.Module,
    after: nn.Module,
    raw: Tensor,
    *,
    names: tuple[str, str] = ("before", "after"),
    stages: Sequence[str] = ("demosaic", "white_balance", "colour_matrix", "denoising", "gamma"),
) -> Figure:
    """Draw what two ISPs make of one frame, stage by stage, one above the other.

    Linear stages are dark at low light, so each column has one brightness for both rows: the 99th
    percentile of the upper picture is drawn as white, where that is below 1. The range of the values
    stands above each picture.

    Of the raw frames (B, 1, H, W), raw domain, the first is drawn. The names are those of the rows; a stage,
    one a column, that one of the ISPs does not have is a ValueError.
    """
    with torch.no_grad():
        rows = [isp.stages(raw[:1]) for isp in (before, after)]
    if missing := {s for s in stages for row in rows if s not in row}:
        raise ValueError(f"no stages {sorted(missing)}; choose from {', '.join(rows[0])}")
    tile = side(len(stages), 1.75)
    figure, axes = panels(2, len(stages), (tile * len(stages) + 0.3, 2 * tile + 0.7))
    for column, stage in zip(axes.T, stages, strict=True):
        white = min(1.0, max(float(np.quantile(first_image(rows[0][stage]), 0.99)), 1e-6))
        for ax, row in zip(column, rows, strict=True):
            image = first_image(row[stage])
            draw_image(ax, image / white, f"{stage}\n{image.min():.3f} to {image.max():.3f}")
    _name_rows(axes, names)
    return figure


def plot_attack(
    raw: Tensor, before: nn.Module, after: nn.Module, loss: Callable[[Tensor], Tensor], *, gain: float = 5.0
) -> Figure:
    """Draw one frame stage by stage before and after an attack, their difference, and the gradients.

    Gradients are those of ``loss`` with respect to each stage, summed over channels; red where the loss
    rises if the value rises, blue where it falls, both rows of a stage on one scale. The loss makes a scalar,
    such as the margin of a task model, of the pipeline's image (1, 3, H, W).

    The frame is (1, 1, H, W), raw domain, the stages of both pipelines have the same names, and differences
    are drawn ``gain``-fold around mid-grey.
    """
    pairs = [stage_gradients(isp, raw, loss) for isp in (before, after)]
    names = [name for name in _ATTACKED if name in pairs[0] and name in pairs[1]]
    tile = side(len(names), 1.45)
    figure, axes = panels(5, len(names), (tile * len(names) + 0.6, 5 * tile + 0.6))
    for column, name in zip(axes.T, names, strict=True):
        old, new = (first_image(stages[name].image) for stages in pairs)
        for ax, picture in zip(column, (old, new, 0.5 + gain * (new - old)), strict=False):
            draw_image(ax, picture)
        end = _draw_gradients(column[3:], [stages[name].gradient for stages in pairs], 99.5)
        column[0].set_title(name.replace("_", " "), fontsize=LETTERS, color=INK)
        column[3].set_title(f"± {end:.2g}", fontsize=LETTERS, color=SOFT)
    _name_rows(axes, ("before", "after", f"{gain:g} x difference", "gradient before", "gradient after"))
    return figure


def _name_rows(axes: np.ndarray, names: Sequence[str]) -> None:
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name)
