"""Demosaicing: from one colour sample a site to three. All four Bayer layouts, batched, differentiable.

Input is a mosaic (B, 1, H, W), output an image (B, 3, H, W) of the same size, dtype and device, in the
domain of the input. Borders are "mirror" (about the edge samples, which keeps the phase of the layout) or
"half" (repeats the edge samples, which breaks it: as the colour-demosaicing library, and so the published
pipelines, do for bilinear and malvar2004).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r2l.camera import BLUE, CFA, GREEN, RED
from r2l.isp.filters import Border, correlate, crop, pad
from r2l.isp.functional import check_mosaic, per_site
from r2l.isp.packing import pack_planes, unpack_planes

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


#: How far, in pixels, a value of `menon2007` looks: what a frame must be continued by (even).
MENON_RADIUS = 8


def _next(x: Tensor, dim: int) -> Tensor:
    """Return x shifted so that each place holds its right (dim -1) or lower (-2) neighbour, cyclic."""
    return x.roll(-1, dim)


def _last(x: Tensor, dim: int) -> Tensor:
    return x.roll(1, dim)


def _green_along(colour: Tensor, before: Tensor, after: Tensor, dim: int) -> Tensor:
    """Green at red or blue sites, from one direction (Menon et al. 2007, equation 1)."""
    second = _last(colour, dim) + _next(colour, dim)
    return 0.5 * (before + after + colour) - 0.25 * second


def _activity(own: Tensor, other: Tensor, dim: int, first: bool) -> Tensor:
    """Sum the colour-difference gradients around red or blue sites (equation 8 and the text after it).

    Args:
        own: gradients of the colour difference at sites of this colour, along ``dim``.
        other: the same at sites of the other of red and blue.
        first: whether this colour comes first in the tile (red) or last (blue).
    """
    across = -2 if dim == -1 else -1
    pair = own + _last(own, dim)
    total = 3 * pair + _last(pair, across) + _next(pair, across)
    if first:
        diagonal = _last(other, dim)
        return total + diagonal + _last(diagonal, across)
    return total + other + _next(other, across)


_Margins = tuple[tuple[int, int], tuple[int, int]]


def _menon_green(
    r: Tensor, g1: Tensor, g2: Tensor, b: Tensor, silent: _Margins | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return green at red and at blue, and for each the decision: 1 horizontal, 0 vertical (section II).

    Along a row g1 stands beside red and g2 beside blue; down a column they change places.
    """
    green, activity = [], []
    for dim, (beside_r, beside_b) in ((-1, (g1, g2)), (-2, (g2, g1))):
        g_r = _green_along(r, _last(beside_r, dim), beside_r, dim)
        g_b = _green_along(b, beside_b, _next(beside_b, dim), dim)
        d_r, d_b = ((c - _next(c, dim)).abs() for c in (r - g_r, b - g_b))
        if silent is not None:
            inside_r, inside_b = _inside(d_r, silent)
            d_r, d_b = d_r * inside_r, d_b * inside_b
        green.append((g_r, g_b))
        activity.append((_activity(d_r, d_b, dim, True), _activity(d_b, d_r, dim, False)))
    (across_r, across_b), (down_r, down_b) = activity
    # As numbers, 0 or 1, for lerp: exact at both ends, and twenty times quicker than torch.where.
    horizontal_r, horizontal_b = (down_r >= across_r).to(r), (down_b >= across_b).to(r)
    if silent is not None:
        horizontal_r, horizontal_b = _mirrored(horizontal_r, horizontal_b, silent)
    (across_r, across_b), (down_r, down_b) = green
    g_r = torch.lerp(down_r, across_r, horizontal_r)
    g_b = torch.lerp(down_b, across_b, horizontal_b)
    return g_r, g_b, horizontal_r, horizontal_b


def _inside(plane: Tensor, margins: _Margins) -> tuple[Tensor, Tensor]:
    """Return for red and blue sites 1 within the frame and 0 in the margins."""
    rows, columns = margins
    height, width = 2 * plane.shape[-2], 2 * plane.shape[-1]
    frame = plane.new_ones(1, 1, height - sum(rows), width - sum(columns))
    at_r, _, _, at_b = pack_planes(pad(frame, rows, columns, "zero"))
    return at_r, at_b


def _mirrored(at_r: Tensor, at_b: Tensor, margins: _Margins) -> tuple[Tensor, Tensor]:
    """Replace decisions in the margins by the mirror image of those within the frame."""
    (top, bottom), (left, right) = margins
    full = unpack_planes([at_r, at_r, at_b, at_b])
    frame = full[..., top : full.shape[-2] - bottom, left : full.shape[-1] - right]
    at_r, _, _, at_b = pack_planes(pad(frame, *margins, "mirror"))
    return at_r, at_b


def _menon_planes(
    r: Tensor, g1: Tensor, g2: Tensor, b: Tensor, silent: _Margins | None = None
) -> list[Tensor]:
    """Demosaic the four planes (B, h, w) of an RGGB mosaic (Menon et al. 2007, with refinement).

    Past green everything is a colour difference, R - G or B - G, averaged along the direction chosen
    for its site. Values within `MENON_RADIUS` pixels of the edge are not valid.

    Args:
        silent: margins around the frame, in pixels, where no activity counts: the published borders.

    Returns:
        R at the four positions of the tile, then G, then B.
    """
    rows, columns = -2, -1
    g_r, g_b, horizontal_r, horizontal_b = _menon_green(r, g1, g2, b, silent)

    def around_r(at_g1: Tensor, at_g2: Tensor) -> Tensor:
        """Sum the two neighbours of each red site along its direction."""
        across, down = at_g1 + _last(at_g1, columns), at_g2 + _last(at_g2, rows)
        return torch.lerp(down, across, horizontal_r)

    def around_b(at_g1: Tensor, at_g2: Tensor) -> Tensor:
        across, down = at_g2 + _next(at_g2, columns), at_g1 + _next(at_g1, rows)
        return torch.lerp(down, across, horizontal_b)

    def at_greens(rg: Tensor, bg: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Average R - G, known at red, and B - G, known at blue, at the two greens between them."""
        rg_g1, rg_g2 = 0.5 * (rg + _next(rg, columns)), 0.5 * (rg + _next(rg, rows))
        bg_g1, bg_g2 = 0.5 * (bg + _last(bg, rows)), 0.5 * (bg + _last(bg, columns))
        return rg_g1, rg_g2, bg_g1, bg_g2

    # First pass: R - G and B - G at green, then R - B at red and at blue.
    rg_g1, rg_g2, bg_g1, bg_g2 = at_greens(r - g_r, b - g_b)
    rb_r = 0.5 * around_r(rg_g1 - bg_g1, rg_g2 - bg_g2)
    rb_b = 0.5 * around_b(rg_g1 - bg_g1, rg_g2 - bg_g2)
    # Refinement (section III): the differences are smoothed along the direction chosen.
    g_r = r - ((r - g_r) + around_r(rg_g1, rg_g2)) / 3
    g_b = b - ((b - g_b) + around_b(bg_g1, bg_g2)) / 3
    rg_g1, rg_g2, bg_g1, bg_g2 = at_greens(r - g_r, b - g_b)
    b_r = r - (rb_r + around_r(rg_g1 - bg_g1, rg_g2 - bg_g2)) / 3
    r_b = b + (rb_b + around_b(rg_g1 - bg_g1, rg_g2 - bg_g2)) / 3
    red = [r, g1 + rg_g1, g2 + rg_g2, r_b]
    green = [g_r, g1, g2, g_b]
    blue = [b_r, g1 + bg_g1, g2 + bg_g2, b]
    return red + green + blue


def menon_inside(
    raw: Tensor,
    cfa: CFA,
    silent: bool = False,
    matrix: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """`menon2007` where it fits: (B, 3, H - 16, W - 16), `MENON_RADIUS` pixels less on each side.

    Args:
        raw: (B, 1, H, W), a frame and its surroundings.
        cfa: layout of ``raw``.
        silent: whether the surroundings count in no decision: the published borders.
        matrix: C rows of three weights, to mix the colours by: (B, C, H - 16, W - 16).
    """
    # How many rows and columns to put before the mosaic so that it begins with an RGGB tile.
    dy, dx = CFA.RGGB.shift_to(cfa)
    rows, columns = (MENON_RADIUS + dy,) * 2, (MENON_RADIUS + dx,) * 2
    planes = pack_planes(pad(raw, (dy, dy), (dx, dx), "mirror"))
    colours = _menon_planes(*planes, silent=(rows, columns) if silent else None)
    if matrix is not None:
        colours = _mix(colours, matrix)
    return crop(unpack_planes(colours), rows[0], columns[0])


def _mix(planes: list[Tensor], matrix: Sequence[Sequence[float]]) -> list[Tensor]:
    """Mix the colours of an image that is still in planes, which are small enough for caches."""
    return [
        (r * row[0]).add_(g, alpha=row[1]).add_(b, alpha=row[2])
        for row in matrix
        for r, g, b in zip(planes[:4], planes[4:8], planes[8:], strict=True)
    ]


def menon2007(raw: Tensor, cfa: CFA, border: Border = "mirror") -> Tensor:
    """Directional filtering with a posteriori decision and refinement.

    D. Menon, S. Andriani, G. Calvagno, "Demosaicing With Directional Filtering and a posteriori
    Decision", IEEE Transactions on Image Processing 16(1), 2007. The gradient goes through the
    interpolation; the decisions are held fixed.

    Args:
        border: "mirror", or "half" for the borders of the published pipelines: mirrored samples too, but
            nothing beyond the frame counts in the decisions.

    Raises:
        ValueError: wrong shape or dtype, odd height or width.
    """
    check_mosaic(raw)
    margin = (MENON_RADIUS, MENON_RADIUS)
    return menon_inside(pad(raw, margin, margin, "mirror"), cfa, silent=border != "mirror")


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
