"""Alternative text: what a figure shows, in words, for those who listen to a page.

Neither JupyterLab nor nbconvert gives the ``<img>`` of an ``image/png`` output an ``alt`` attribute,
so a described figure is an HTML output, whose ``alt`` both keep.
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.figure import Figure


class Described:
    """A picture and its alternative text; a notebook shows it as the last expression of a cell.

    Attributes:
        png: the picture's file.
        alt: what it shows.
    """

    def __init__(self, png: bytes, alt: str) -> None:
        self.png, self.alt = png, alt

    def __repr__(self) -> str:
        return f"<figure: {self.alt}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        data = base64.b64encode(self.png).decode()
        image = f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'
        return {"text/html": image, "text/plain": repr(self)}


def with_alt(figure: Figure, alt: str) -> Described:
    """Return a figure as a picture with alternative text, at the resolution of the figure.

    Args:
        figure: left as it is; ``figure.savefig`` still writes it to a file.
        alt: one to three sentences that say what there is to see, not what it means: a listener
            should be able to follow the text that comes after.

    Raises:
        ValueError: the text is empty.
    """
    if not alt.strip():
        raise ValueError("the alternative text is empty: say what the figure shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure", bbox_inches="tight")
    return Described(buffer.getvalue(), " ".join(alt.split()))
