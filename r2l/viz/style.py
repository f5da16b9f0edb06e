"""What all figures share: inks, and how a picture is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INK = "#22252a"
SOFT = "#6b7280"
#: Told apart by colour-blind readers too (Okabe and Ito, "Color Universal Design", 2008).
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# How light a colour looks (Rec. 709 luma); above the middle it takes dark letters.
LUMA = (0.2126, 0.7152, 0.0722)


def ink(rgba: Sequence[float]) -> str:
    """Return the colour of letters on a ground of this colour."""
    return INK if np.dot(rgba[:3], LUMA) > 0.5 else "white"
