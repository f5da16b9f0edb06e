"""What all figures share: inks, axes, and alternative text.

Neither JupyterLab nor nbconvert gives the ``<img>`` of an ``image/png`` output an ``alt`` attribute,
so a described figure is an HTML output, whose ``alt`` both keep.
"""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#22252a"
SOFT = "#6b7280"
#: Told apart by colour-blind readers too (Okabe and Ito, "Color Universal Design", 2008).
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# How light a colour looks (Rec. 709 luma); above the middle it takes dark letters.
_LUMA = (0.2126, 0.7152, 0.0722)
#: Of every figure: dots an inch, and the points of its smallest letters.
DPI, LETTERS = 100, 9
# Inches. A page shrinks what is wider, letters and all.
_WIDTH = 9.2


def ink(rgba: Sequence[float]) -> str:
    """Return the colour of letters on a ground of this colour."""
    return INK if np.dot(rgba[:3], _LUMA) > 0.5 else "white"


def panels(
    rows: int, columns: int, size: tuple[float, float], layout: str = "constrained", **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure of ``size`` (width, height) in inches and its axes (rows, columns).

    A `Figure` of its own, not pyplot's, so that matplotlib's global state stays as it is; further
    options are those of `Figure.subplots`. No rows or no columns are a ValueError.
    """
    if rows < 1 or columns < 1:
        raise ValueError("nothing to draw")
    figure = Figure(figsize=size, layout=layout, dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        tidy(ax)
    return figure, axes


def galleries(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Return a figure and axes as `panels` does, for pictures: nothing is drawn around them."""
    figure, axes = panels(rows, columns, size)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def side(columns: int, wished: float) -> float:
    """Return how wide each of so many columns may be, in inches, that their letters can be read."""
    return min(wished, _WIDTH / columns)


def tidy(ax: Axes) -> None:
    """Take off the frame above and on the right; short ticks, small letters along the axes."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=LETTERS, labelcolor=INK, length=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(size=LETTERS, color=INK)


def upright_grid(ax: Axes) -> None:
    """Draw pale upright lines behind the values."""
    ax.grid(axis="x", color="#e5e7eb", linewidth=0.6)
    ax.set_axisbelow(True)


def heading(ax: Axes, text: str, size: float = LETTERS) -> None:
    """Write a title in bold, flush left."""
    ax.set_title(text, loc="left", fontsize=size, fontweight="bold", color=INK)


def note(figure: Figure, text: str) -> None:
    """Write below a figure how it is to be read, in lines as wide as it is."""
    figure.supxlabel(textwrap.fill(text, int(12 * figure.get_figwidth())), fontsize=LETTERS, color=SOFT)


def to_png(figure: Figure, **options: Any) -> bytes:
    """Return a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def image_html(png: bytes, alt: str) -> str:
    """Return an ``<img>`` that holds a PNG and is no wider than what it stands in."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{data}">'


@dataclass(frozen=True, repr=False)
class _Described:
    """A picture and its alternative text; a notebook shows it as the last expression of a cell."""

    png: bytes
    alt: str

    def __repr__(self) -> str:
        return f"<figure: {self.alt}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": image_html(self.png, self.alt), "text/plain": repr(self)}


def with_alt(figure: Figure, alt: str) -> _Described:
    """Return a figure, which stays as it is, as a picture with alternative text; none is a ValueError.

    One to three sentences say what there is to see, not what it means: a listener should be able to follow
    the text that comes after.
    """
    if not alt.strip():
        raise ValueError("the alternative text is empty: say what the figure shows")
    return _Described(to_png(figure, bbox_inches="tight"), " ".join(alt.split()))
