"""The quick way through whole frames on a GPU, in as few passes through its memory as can be.

There a pipeline takes as long as what it reads and writes; what it computes counts little. So filters of luma
that are linear join what is affine before them, and are measured with it: all of "bi,s,ga" is one affine map
and a curve, one pass that reads the mosaic and writes the picture. A median is another pass, and Menon's
demosaicing is three. Pipelines developed together share only those three: anything else is computed again in
the time that it would take to read it. Each pass takes whole tiles off a frame's sides, as
`r2l.isp.gpu_kernels` need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from r2l.camera import CFA
from r2l.isp import demosaic
from r2l.isp.filters import crop, median3x3, pad
from r2l.isp.fused import apart, measure_affine, whole_tiles
from r2l.isp.gpu_kernels import Weights, affine, median
from r2l.isp.gpu_menon import menon, menon_inside
from r2l.isp.pipeline import LinearLuma, Luma, Plan, Stage, curve, finish, mixed, run

__all__ = ["develop_together", "menon_inside"]

# How far, in pixels, filters that share a pass may look; those that look farther are quicker by themselves.
_FARTHEST = 8


class _Pass(NamedTuple):
    """What is done between reading and writing: affine stages from the mosaic on, if any, filters of luma."""

    steps: tuple[Stage, ...]
    filters: tuple[Luma, ...]

    @property
    def reach(self) -> int:
        """How many pixels it takes off each side."""
        return whole_tiles(sum(step.reach for step in self.steps + self.filters))

    @property
    def linear(self) -> bool:
        """Whether one affine map does it, of few enough weights."""
        return self.reach <= _FARTHEST and all(isinstance(step, LinearLuma) for step in self.filters)


@lru_cache(maxsize=256)
def _passes(plan: Plan) -> list[_Pass]:
    """Return the passes of a plan, but for a directional demosaicing and what is before it."""
    passes = [_Pass(() if plan.directional else plan.before, ())]
    for step in plan.luma:
        joined = passes[-1]._replace(filters=(*passes[-1].filters, step))
        passes = [*passes[:-1], joined] if joined.linear else [*passes, _Pass((), (step,))]
    return passes[1:] if len(passes) > 1 and passes[0] == _Pass((), ()) else passes


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve those who want gradients
def _measured(work: _Pass, device: torch.device) -> Weights:
    """Return a pass that is linear as weights: of a mosaic, or of luma."""

    def planes(source: Tensor) -> Tensor:
        image = run(work.steps, source)
        y, *chroma = (apart(image) if image.shape[1] == 3 else image).split((1, image.shape[1] - 1), 1)
        for step in work.filters:
            y = step.filter(y, "mirror")
        return torch.cat([y, *chroma], 1)

    weight, bias = measure_affine(planes, work.reach, torch.empty(0, dtype=torch.float64))
    return Weights.of(weight, bias, work.reach - _Pass(work.steps, ()).reach, device)


def _front(plan: Plan, raw: Tensor, margin: int) -> Tensor:
    """Return luma and chroma by a directional demosaicing of a frame and its mirror image around it."""
    (demosaicing,) = plan.directional
    levels = _measured(_Pass(plan.before, ()), raw.device)
    if demosaicing.inside is demosaic.menon_inside:
        (cfa,) = demosaicing.values
        return menon(raw, CFA.RGGB.shift_to(cfa), mixed(plan.after), margin, levels)
    mosaic = affine(pad(raw, (margin, margin), (margin, margin), "mirror"), levels)
    return demosaicing.inside(mosaic, *demosaicing.values, matrix=mixed(plan.after))


def _developed(plan: Plan, source: Tensor, chroma: Tensor | None = None) -> Tensor:
    """Return the picture of a mosaic, or of luma and chroma."""
    passes = _passes(plan)
    for work in passes:
        gamma = curve(plan.last) if work is passes[-1] else None
        chroma = None if chroma is None else crop(chroma, work.reach)
        if work.linear or work.steps:
            image = affine(source, _measured(work, source.device), chroma, gamma)
        elif [step.function for step in work.filters] == [median3x3]:
            image = median(crop(source, work.reach - 1), chroma, gamma)
        else:
            (step,) = work.filters
            gamma, image = None, step.filter(crop(source, work.reach - step.reach), None)
        if gamma is not None:
            return image
        source, chroma = image[:, :1], image[:, 1:] if image.shape[1] > 1 else chroma
    return finish(source, chroma, plan.last, None)


def develop_together(plans: Sequence[Plan], raw: Tensor) -> list[Tensor]:
    """`r2l.isp.pipeline.develop_together`, of plans."""
    starts = [whole_tiles(sum(step.reach for step in plan.directional)) for plan in plans]
    margins = [n + sum(work.reach for work in _passes(p)) for n, p in zip(starts, plans, strict=True)]
    margin = max(margins, default=0)
    known: dict[tuple[Stage, ...], Tensor] = {}
    pictures = []
    for plan, own in zip(plans, margins, strict=True):
        front = plan.before + plan.directional + plan.after if plan.directional else ()
        if front not in known:
            around = (margin, margin)
            known[front] = _front(plan, raw, margin) if front else pad(raw, around, around, "mirror")
        source, *chroma = crop(known[front], margin - own).split((1, 2) if front else 1, 1)
        pictures.append(_developed(plan, source, *chroma))
    return pictures
