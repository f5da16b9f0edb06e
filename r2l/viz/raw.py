"""Figures of raw data: the sites of a mosaic, its levels, its noise."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from r2l.camera import CFA, Camera
from r2l.isp.learned import apply_tone_curve, control_points
from r2l.learn import Learned
from r2l.sensor import CONTAINER_MAX
from r2l.viz.pictures import draw_image
from r2l.viz.style import CYCLE, INK, LETTERS, SOFT, ink, panels, tidy

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


def plot_sites(mosaic: np.ndarray, cfa: CFA, *, title: str = "", gain: float = 1.0) -> Figure:
    """Draw a few sites of a mosaic, each in the colour of its filter and with its number.

    Args:
        mosaic: (H, W), raw domain; some 8x8 sites can be read.
        cfa: layout, top-left of ``mosaic`` first.
        title: above.
        gain: how much brighter to draw than the data are; the numbers stay.
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


def plot_levels(frames: Mapping[str, tuple[np.ndarray, Camera]]) -> Figure:
    """Draw the histogram of the four planes of each mosaic (H, W), raw domain, by title, with its levels."""
    figure, (axes,) = panels(1, len(frames), (4.4 * len(frames), 2.9))
    for ax, (title, (mosaic, camera)) in zip(axes, frames.items(), strict=True):
        bins = np.linspace(0, 1, 129)
        for name, plane in split_planes(mosaic, camera.cfa).items():
            colour, dashes = PLANE_STYLES[name]
            counts = np.histogram(plane, bins)[0]
            ax.step(bins[:-1], counts, where="post", color=colour, linestyle=dashes, label=name)
        for level in (np.mean(camera.black_level), camera.white_level):
            ax.axvline(level, color=INK, linewidth=0.8, linestyle=":")
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=0)
        _label(ax, title, "raw value (fraction of full scale)", "sites in a bin of 1/128")
    axes[0].legend(fontsize=LETTERS, frameon=False)
    return figure


def plot_transfer(measured: Mapping[str, tuple[np.ndarray, np.ndarray, float, float]]) -> Figure:
    """Draw photon transfer curves: the variance of the noise against the signal, with a line.

    Both axes are logarithmic, so that the read noise shows: there the line turns level. By title: mean and
    variance (N,) of positive digital numbers, slope and intercept of the line.
    """
    figure, (axes,) = panels(1, len(measured), (4.4 * len(measured), 3.1))
    for ax, (title, (mean, variance, slope, intercept)) in zip(axes, measured.items(), strict=True):
        ax.plot(mean, variance, "o", color=CYCLE[0], markersize=5, label="measured")
        line = np.geomspace(mean.min(), mean.max(), 100)
        label = f"{slope:.3g} DN x signal + {intercept:.2g} DN²"
        ax.plot(line, slope * line + intercept, color=CYCLE[1], label=label)
        ax.legend(fontsize=LETTERS, frameon=False)
        ax.set_xscale("log")
        ax.set_yscale("log")
        _label(ax, title, "signal above black (DN)", "variance of the noise (DN²)")
    return figure


def plot_learned(learned: Learned) -> Figure:
    """Show what `r2l.learn_pipeline` returned: tone curves, and how near each pipeline is to the pictures."""
    figure, ((curves, scores),) = panels(1, 2, (9, 3.6))
    linear = torch.linspace(0, 1, 512)
    points = control_points(learned.isp.tone_curve.detach())
    display = apply_tone_curve(linear.expand(1, 3, 1, -1), points)[0, :, 0]
    for name, colour, values in zip("RGB", ("#d55e00", "#009e73", "#0072b2"), display, strict=True):
        curves.plot(linear, values, color=colour, label=name)
    curves.plot(linear, linear ** (1 / 2.2), color=SOFT, linewidth=0.8, label="gamma 2.2")
    curves.legend(frameon=False, fontsize=LETTERS)
    _label(curves, learned.isp.camera.name, "linear", "display")
    table = learned.scores.sort_values("psnr")
    own = [CYCLE[1] if name == "learned" else CYCLE[0] for name in table.index]
    bars = scores.barh(list(table.index), table["psnr"], color=own)
    colours = [f"{colour:.1f}" for colour in table["ciede2000"]]
    scores.bar_label(bars, colours, padding=3, fontsize=LETTERS)
    _label(scores, "on blocks not fitted; beside the bars CIEDE2000", "PSNR in dB", "")
    return figure


def _label(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_xlabel(x, fontsize=LETTERS, color=SOFT)
    ax.set_ylabel(y, fontsize=LETTERS, color=SOFT)
    tidy(ax)
