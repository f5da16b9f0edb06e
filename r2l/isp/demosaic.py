"""Demosaicing: from one colour sample a site to three. All four Bayer layouts, batched, differentiable.

Input is a mosaic (B, 1, H, W), output an image (B, 3, H, W) of the same size, dtype and device, in the
domain of the input. Borders are "mirror" (about the edge samples, which keeps the phase of the layout) or
"half" (repeats the edge samples, which breaks it: as the colour-demosaicing library, and so the published
pipelines, do for bilinear and malvar2004).
"""

from __future__ import annotations

import torch
from torch import Tensor

from r2l.camera import BLUE, CFA, GREEN, RED
from r2l.isp.filters import Border, correlate
from r2l.isp.functional import check_mosaic, per_site
from r2l.isp.menon import menon2007
from r2l.isp.packing import pack_planes

#: Bilinear interpolation: the mean of the nearest samples of a colour (Losson et al. 2010).
_GREEN_CROSS = ((0.0, 0.25, 0.0), (0.25, 1.0, 0.25), (0.0, 0.25, 0.0))
_RED_BLUE_SQUARE = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))


def _eighths(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(v / 8 for v in row) for row in rows)


# Malvar, He & Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color
# images", ICASSP 2004, figure 2.
_GREEN_AT_RED_BLUE = _eighths(
    (0, 0, -1, 0, 0),
    (0, 0, 2, 0, 0),
    (-1, 2, 4, 2, -1),
    (0, 0, 2, 0, 0),
    (0, 0, -1, 0, 0),
)
_AT_GREEN_SAME_ROW = _eighths(
    (0, 0, 0.5, 0, 0),
    (0, -1, 0, -1, 0),
    (-1, 4, 5, 4, -1),
    (0, -1, 0, -1, 0),
    (0, 0, 0.5, 0, 0),
)
_AT_GREEN_SAME_COLUMN = tuple(zip(*_AT_GREEN_SAME_ROW, strict=True))
_AT_OPPOSITE = _eighths(
    (0, 0, -1.5, 0, 0),
    (0, 2, 0, 2, 0),
    (-1.5, 0, 6, 0, -1.5),
    (0, 2, 0, 2, 0),
    (0, 0, -1.5, 0, 0),
)
_MALVAR = (_GREEN_AT_RED_BLUE, _AT_GREEN_SAME_ROW, _AT_GREEN_SAME_COLUMN, _AT_OPPOSITE)


def bilinear(raw: Tensor, cfa: CFA, border: Border = "mirror") -> Tensor:
    """Interpolate each colour from its nearest samples (Losson et al. 2010).

    Raises:
        ValueError: wrong shape or dtype, odd height or width.
    """
    check_mosaic(raw)
    kernels = (_RED_BLUE_SQUARE, _GREEN_CROSS, _RED_BLUE_SQUARE)
    colours = []
    for colour, kernel in enumerate(kernels):
        here = per_site([float(c == colour) for c in cfa.value], raw)
        colours.append(correlate(raw * here, kernel, border))
    return torch.cat(colours, dim=1)


def _malvar_choice(cfa: CFA, colour: int, position: int) -> int:
    """Return which of (sample, *_MALVAR) gives ``colour`` at a position of the tile."""
    own = cfa.value[position]
    if own == colour:
        return 0
    if colour == GREEN:
        return 1
    if own == GREEN:
        beside = cfa.value[position ^ 1]
        return 2 if beside == colour else 3
    return 4


def malvar2004(raw: Tensor, cfa: CFA, border: Border = "mirror") -> Tensor:
    """Bilinear interpolation corrected by the gradient of the colour that is there (Malvar et al. 2004).

    Raises:
        ValueError: wrong shape or dtype, odd height or width.
    """
    check_mosaic(raw)
    candidates = [raw, *(correlate(raw, kernel, border) for kernel in _MALVAR)]
    colours = []
    for colour in (RED, GREEN, BLUE):
        choice = [_malvar_choice(cfa, colour, position) for position in range(4)]
        colours.append(
            sum(
                candidates[k] * per_site([float(c == k) for c in choice], raw)
                for k in sorted(set(choice))
            )
        )
    return torch.cat(colours, dim=1)


#: The demosaicing methods by name.
DEMOSAIC = {"bilinear": bilinear, "malvar2004": malvar2004, "menon2007": menon2007}


def half_size(raw: Tensor, cfa: CFA) -> Tensor:
    """One pixel a tile, nothing interpolated: red, the mean of both greens, blue; (B, 3, H/2, W/2).

    Raises:
        ValueError: wrong shape or dtype, odd height or width.
    """
    check_mosaic(raw)
    planes = pack_planes(raw)
    colours = ([planes[p] for p in cfa.positions(c)] for c in (RED, GREEN, BLUE))
    return torch.stack([sum(samples) / len(samples) for samples in colours], 1)
