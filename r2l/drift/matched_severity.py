"""Making changes of equal size: how much of a corruption moves the images as far as a pipeline does."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from r2l.datasets.frames import Frames
from r2l.drift.corruptions import Corruption, corrupt
from r2l.files import choose
from r2l.training.metrics import DISTANCES, image_distance

_LEAST, _MOST = 1e-3, 64.0  # amounts that are tried
_SAME = 100.0  # dB; less than the steps of float32 at white
_BATCH = 64
_MATCH_IMAGES = 64  # of which the matching amount is found


class Match(NamedTuple):
    """How much of a corruption (``amount``, for `corrupt`) has the wanted mean distance, and which it has.

    It is ``reached`` if the two agree to 2 % (PSNR: .1 dB): a corruption can be unable to move images so far,
    or, like JPEG, know only steps.
    """

    amount: float
    distance: float
    reached: bool


def mean_distance(images: Tensor, references: Tensor, kind: str = "psnr") -> float:
    """Return the mean of `distances`."""
    return float(distances(images, references, kind).mean())


def distances(images: Tensor, references: Tensor, kind: str = "psnr") -> Tensor:
    """Return `r2l.training.metrics.image_distance` of images (N, 3, H, W), (N,), in batches; at most 100 dB.

    An image that has not changed would otherwise have hundreds, and lead every mean.
    """
    choose("distance", kind, DISTANCES)
    pairs = zip(images.split(_BATCH), references.split(_BATCH), strict=True)
    with torch.no_grad():
        apart = torch.cat([image_distance(a, b, kind) for a, b in pairs])
    return apart.clamp_max(_SAME) if kind == "psnr" else apart


def pipeline_distance(views: Frames, code: str, kind: str = "psnr") -> float:
    """Return how far the other pipelines of ``views`` lie from ``code``: the mean over images (`spread`)."""
    others = [other for other in views.images if other != code]
    if not others:
        raise ValueError(f"no other pipeline to compare {code} with")
    some = spread(len(views))
    base = views.images[code][some]
    return float(np.mean([mean_distance(views.images[o][some], base, kind) for o in others]))


def spread(total: int, most: int = _MATCH_IMAGES) -> np.ndarray:
    """Return at most so many indices, evenly spread: the images that distances are matched on."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(int))


def match_amount(
    images: Tensor,
    kind: Corruption,
    target: float,
    *,
    distance: str = "psnr",
    severity: int = 3,
    scale: str = "published",
    seed: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
) -> Match:
    """Find how much of a corruption moves images as far as ``target``, on average.

    A root is bracketed (Brent's method) on a logarithmic scale, on which PSNR is nearly a line. Where the
    corruption can't move the images so far, or not so little, the nearest end is returned as not reached.

    Args:
        images, kind, scale, seed, ids: see `corrupt`.
        target: mean distance, positive, such as `pipeline_distance` returns.
        distance: one of "l2", "ssim", "psnr".
        severity: whose change is taken more or less of.
    """
    if not (np.isfinite(target) and target > 0):
        raise ValueError(f"target is {target}; expected a positive distance")
    tried: dict[float, float] = {}

    def excess(log_amount: float) -> float:
        amount = float(np.exp(log_amount))
        changed = corrupt(images, kind, severity, amount=amount, scale=scale, seed=seed, ids=ids)
        tried[amount] = mean_distance(changed, images, distance)
        if distance == "psnr":
            return target - tried[amount]
        return float(np.log(max(tried[amount], 1e-30) / target))

    low, high = np.log(_LEAST), np.log(_MOST)
    if excess(low) < 0 < excess(high):
        brentq(excess, low, high, xtol=1e-3, rtol=1e-6)
    amount, moved = min(tried.items(), key=lambda pair: abs(pair[1] - target))
    near = abs(moved - target) <= (0.1 if distance == "psnr" else 0.02 * target)
    return Match(amount, moved, near)
