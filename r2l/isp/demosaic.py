"""Demosaicing: from one colour sample a site to three. All four Bayer layouts, batched, differentiable.

Input is a mosaic (B, 1, H, W), output an image (B, 3, H, W) of the same size, dtype and device, in the
domain of the input. Borders are "mirror" (about the edge samples, which keeps the phase of the layout) or
"half" (repeats the edge samples, which breaks it: as the colour-demosaicing library, and so the published
pipelines, do for bilinear and malvar2004).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r2l.camera import BLUE, CFA, GREEN, RED
from r2l.isp.filters import Border, correlate, crop, gpu_kernels, kernels, pack_planes, pad, unpack_planes
from r2l.isp.functional import check_mosaic, on_device, per_site

#: Bilinear interpolation: the mean of the nearest samples of a colour (Losson et al. 2010).
_GREEN_CROSS = ((0.0, 0.25, 0.0), (0.25, 1.0, 0.25), (0.0, 0.25, 0.0))
_RED_BLUE_SQUARE = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))


def _eighths(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(v / 8 for v in row) for row in rows)


# Malvar, He & Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color
# images", ICASSP 2004, figure 2.
_GREEN_AT_RED_BLUE = _eighths((0, 0, -1, 0, 0),
                              (0, 0, 2, 0, 0),
                              (-1, 2, 4, 2, -1),
                              (0, 0, 2, 0, 0),
                              (0, 0, -1, 0, 0))  # fmt: skip
_AT_GREEN_SAME_ROW = _eighths((0, 0, 0.5, 0, 0),
                              (0, -1, 0, -1, 0),
                              (-1, 4, 5, 4, -1),
                              (0, -1, 0, -1, 0),
                              (0, 0, 0.5, 0, 0))  # fmt: skip
_AT_GREEN_SAME_COLUMN = tuple(zip(*_AT_GREEN_SAME_ROW, strict=True))
_AT_OPPOSITE = _eighths((0, 0, -1.5, 0, 0),
                        (0, 2, 0, 2, 0),
                        (-1.5, 0, 6, 0, -1.5),
                        (0, 2, 0, 2, 0),
                        (0, 0, -1.5, 0, 0))  # fmt: skip
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
        return 2 if cfa.value[position ^ 1] == colour else 3
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
            sum(candidates[k] * per_site([float(c == k) for c in choice], raw) for k in sorted(set(choice)))
        )
    return torch.cat(colours, dim=1)


#: How far, in pixels, a value of `menon2007` looks: what a frame must be continued by (even).
MENON_RADIUS = 8


class _Row(NamedTuple):
    """Planes one after the other as one row of numbers: a neighbour is a step away, and a sum is one loop.

    What a sum misses at the ends, and what it wraps around, lies in margins that nobody looks at.
    """

    values: Tensor
    start: int = 0

    def at(self, step: int) -> _Row:
        """Return the neighbours ``step`` places on."""
        return _Row(self.values, self.start - step)

    def halves(self, length: int) -> tuple[_Row, _Row]:
        """Return what belongs to the first ``length`` places, and what to those behind them."""
        cut = length - self.start
        return _Row(self.values[:cut], self.start), _Row(self.values[cut:])


def _apply(function: Callable[..., Tensor], *rows: _Row, **options: float) -> _Row:
    """Return ``function`` of rows where there are values of all."""
    start = max(row.start for row in rows)
    stop = min(row.start + len(row.values) for row in rows)
    parts = (row.values[start - row.start : stop - row.start] for row in rows)
    return _Row(function(*parts, **options), start)


def _on(row: _Row, step: int) -> _Row:
    """Return the sums of each value and the one ``step`` places on."""
    return _apply(torch.add, row, row.at(step))


def _beside(row: _Row, step: int) -> _Row:
    """Return the sums of each value and the one ``step`` places back."""
    return _on(row, step).at(-step)


_Margins = tuple[tuple[int, int], tuple[int, int]]


def _sites(mosaic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an RGGB mosaic (B, 1, H, W) as (2, B, H/2 + 1, W/2 + 1), three of them.

    The first holds red and, half a tile up and left of it, blue. At the same index the second holds the
    green to the right of each, the third the green below: so both colours are treated as one.
    """
    height, width = (side // 2 + 1 for side in mosaic.shape[-2:])
    m = pad(mosaic, (1, 2), (1, 2), "mirror")[:, 0]

    def planes(*corners: tuple[int, int]) -> Tensor:
        return torch.stack([m[:, y::2, x::2][:, :height, :width] for y, x in corners])

    return planes((1, 1), (0, 0)), planes((1, 2), (0, 1)), planes((2, 1), (1, 0))


def _at_positions(planes: Sequence[Tensor]) -> list[Tensor]:
    """Return planes (..., h + 1, w + 1) by the position of the tile, blue as in `_sites`, as (..., h, w)."""
    *others, blue = planes
    return [*(plane[..., :-1, :-1] for plane in others), blue[..., 1:, 1:]]


def _activity(difference: _Row, along: int, across: int, half: int) -> _Row:
    """Sum the gradients of colour differences around each site (equation 8 and the text after it)."""
    pair = _beside(difference, along)
    total = _beside(_on(pair, across), across)
    _apply(Tensor.add_, total, pair)
    first, last = total.halves(half)
    other = _on(difference, across).halves(half)
    _apply(Tensor.add_, first, other[1])
    _apply(Tensor.add_, last, other[0].at(-along - across))
    return total


@torch.no_grad()
def _directions(
    differences: tuple[_Row, _Row], steps: tuple[int, int], shape: torch.Size, silent: _Margins | None
) -> _Row:
    """Return for each red and blue site 1 where it is interpolated along the row, 0 along the column.

    Args:
        differences: red or blue less green, as interpolated along the row and the column.
        steps: to the next neighbour in a row and a column.
        shape: of the planes.
        silent: see `_menon`.
    """
    activities = []
    for number, row in enumerate(differences):
        gradient = _apply(torch.sub, row, row.at(steps[number]))
        gradient.values.abs_()
        if silent is not None:
            _apply(Tensor.mul_, gradient, _Row(_inside(gradient.values, shape, silent)))
        activities.append(_activity(gradient, *steps[:: 1 - 2 * number], shape[1:].numel()))
    # Numbers, 0 or 1, for lerp: exact at both ends, and twenty times quicker than torch.where.
    horizontal = _apply(Tensor.ge_, *activities[::-1])
    return horizontal if silent is None else _mirrored(horizontal, shape, silent)


def _inside(like: Tensor, shape: torch.Size, margins: _Margins) -> Tensor:
    """Return for red and blue sites 1 within the frame and 0 in the margins."""
    rows, columns = margins
    height, width = (2 * (side - 1) for side in shape[-2:])
    frame = like.new_ones(1, 1, height - sum(rows), width - sum(columns))
    return _sites(pad(frame, rows, columns, "zero"))[0].expand(shape).reshape(-1)


def _mirrored(decisions: _Row, shape: torch.Size, margins: _Margins) -> _Row:
    """Replace decisions in the margins by the mirror image of those within the frame."""
    (top, bottom), (left, right) = margins
    whole = F.pad(decisions.values, (decisions.start, shape.numel()))[: shape.numel()].view(shape)
    at_r, at_b = whole.unsqueeze(2)
    full = unpack_planes(_at_positions([at_r, at_r, at_b, at_b]))
    frame = full[..., top : full.shape[-2] - bottom, left : full.shape[-1] - right]
    return _Row(_sites(pad(frame, *margins, "mirror"))[0].view(-1))


def _menon(mosaic: Tensor, matrix: Sequence[Sequence[float]], silent: _Margins | None = None) -> Tensor:
    """Demosaic an RGGB mosaic (B, 1, H, W), with refinement, and mix the colours: (B, C, H, W).

    Past green everything is a colour difference, R - G, B - G or R - B, averaged along the direction
    chosen for its site. They are summed on the way; the end divides.

    Args:
        matrix: C rows of three weights.
        silent: margins around the frame, in pixels, where no activity counts: the published borders.
    """
    sites, right, below = _sites(mosaic)
    shape, half, steps = sites.shape, sites[0].numel(), (1, sites.shape[-1])
    column, row = steps
    sums = []
    for step, green in zip(steps, (right, below), strict=True):
        # Red or blue less green, four times (equation 1).
        second = _beside(_on(_Row(sites.view(-1)), step), step)
        sums.append(_apply(torch.sub, second, _beside(_Row(green.view(-1)), step), alpha=2))
    horizontal = _directions((sums[0], sums[1]), steps, shape, silent)
    horizontal_r, horizontal_b = horizontal.halves(half)

    def at_greens(xg: _Row) -> tuple[_Row, ...]:
        """Sum R - G at both greens, then B - G, between the two sites where they are known."""
        (r_g1, b_g2), (r_g2, b_g1) = (_on(xg, step).halves(half) for step in steps)
        return r_g1, r_g2, b_g1.at(column), b_g2.at(row)

    def at_sites(r_g1: _Row, r_g2: _Row, b_g1: _Row, b_g2: _Row) -> tuple[_Row, _Row]:
        """Sum R - B, of the greens beside it along its direction, at red and at blue."""
        g1, g2 = _apply(torch.sub, r_g1, b_g1), _apply(torch.sub, r_g2, b_g2)
        at_r = _apply(torch.lerp, _beside(g2, row), _beside(g1, column), horizontal_r)
        down, across = _beside(g1, row).at(-column), _beside(g2, column).at(-row)
        return at_r, _apply(torch.lerp, down, across, horizontal_b)

    xg = _apply(torch.lerp, sums[1], sums[0], horizontal)
    first = at_sites(*at_greens(xg))
    # Refinement (section III): the differences are smoothed along the direction chosen.
    across, down = (_beside(_on(xg, step), step) for step in steps)
    xg = _apply(torch.add, _apply(torch.lerp, down, across, horizontal), xg, alpha=2)
    greens = at_greens(xg)
    rb = [_apply(torch.add, *pair, alpha=3) for pair in zip(at_sites(*greens), first, strict=True)]
    (rg, bg), (r_g1, r_g2, b_g1, b_g2) = xg.halves(half), greens
    positions = (
        (sites[0], {GREEN: (rg, -1 / 24), BLUE: (rb[0], -1 / 144)}),
        (right[0], {RED: (r_g1, 1 / 48), BLUE: (b_g1, 1 / 48)}),
        (below[0], {RED: (r_g2, 1 / 48), BLUE: (b_g2, 1 / 48)}),
        (sites[1], {RED: (rb[1], 1 / 144), GREEN: (bg, -1 / 24)}),
    )
    weights = on_device([w for row in matrix for w in row], sites).view(-1, 3)
    return unpack_planes(_at_positions([_mix(*position, weights) for position in positions]))


def _mix(sample: Tensor, differences: dict[int, tuple[_Row, float]], weights: Tensor) -> Tensor:
    """Return weighted sums of three colours: the sample, (B, h, w), and what the others differ from it."""
    total = weights.sum(1)[:, None] * sample.view(-1)
    for colour, ((values, start), scale) in differences.items():
        values, start = values[max(-start, 0) :], max(start, 0)
        total[:, start : start + len(values)].addcmul_(values, weights[:, colour, None], value=scale)
    return total.view(len(total), *sample.shape).transpose(0, 1)


_PLAIN = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def menon_inside(
    raw: Tensor, cfa: CFA, silent: bool = False, matrix: Sequence[Sequence[float]] = _PLAIN
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
    if (quick := kernels(raw) or gpu_kernels(raw)) and not silent:
        return quick.menon_inside(raw, (dy, dx), matrix)
    rows, columns = (MENON_RADIUS + dy,) * 2, (MENON_RADIUS + dx,) * 2
    mosaic = pad(raw, (dy, dy), (dx, dx), "mirror")
    return crop(_menon(mosaic, matrix, (rows, columns) if silent else None), rows[0], columns[0])


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
