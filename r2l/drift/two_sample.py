"""Numbers that describe images, and a two-sample test on them that keeps groups whole: energy distance."""

from math import comb

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional as F

from r2l.training.predict import on_device

_CHANNELS = ("red", "green", "blue")
_BATCH = 64


def image_features(images: Tensor, model: nn.Module | None = None) -> pd.DataFrame:
    """Return numbers that describe each image: its statistics, or what a model answers to it.

    Args:
        images: (N, 3, H, W), display domain.
        model: from images to logits; None describes the pictures: of each channel mean, standard deviation,
            share of black and of white, and contrast between neighbours (logarithm of the mean absolute
            Laplacian) and between every other pixel, and how channels go together (correlations).

    Returns:
        One row an image; columns are named.

    Raises:
        ValueError: images of another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    with torch.no_grad(), on_device(model or nn.Identity()) as device:
        parts = [
            _picture(batch) if model is None else _answers(model(batch.to(device)))
            for batch in images.split(_BATCH)
        ]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return pd.DataFrame({name: values.cpu().double().numpy() for name, values in columns.items()})


def _picture(images: Tensor) -> dict[str, Tensor]:
    flat = images.flatten(2)
    kernels = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).to(images).expand(3, 1, 3, 3)
    per_channel = {
        "mean": flat.mean(2),
        "deviation": flat.std(2),
        "black": (flat <= 1e-3).float().mean(2),
        "white": (flat >= 1 - 1e-3).float().mean(2),
    }
    for name, step in (("detail", 1), ("coarse detail", 2)):
        edges = F.conv2d(images, kernels, dilation=step, groups=3).abs().flatten(2).mean(2)
        per_channel[name] = edges.clamp_min(1e-6).log()
    columns = {}
    for name, values in per_channel.items():
        columns |= {f"{name}, {channel}": values[:, i] for i, channel in enumerate(_CHANNELS)}
    centred = flat - flat.mean(2, keepdim=True)
    unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-6)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        columns[f"correlation, {_CHANNELS[a]} and {_CHANNELS[b]}"] = (unit[:, a] * unit[:, b]).sum(1)
    return columns


def _answers(logits: Tensor) -> dict[str, Tensor]:
    """What a model answers: log-probabilities of the classes, or of masks shares and sureness."""
    if logits.ndim == 2:
        values = logits.log_softmax(1).clamp_min(-20)
        return {f"class {i}": values[:, i] for i in range(values.shape[1])}
    if logits.shape[1] > 1:
        shares = logits.softmax(1).flatten(2)
        columns = {f"share of class {i}": shares[:, i].mean(1) for i in range(shares.shape[1])}
        return columns | {"unsure": 1 - shares.amax(1).mean(1)}
    shares = logits.flatten(1).sigmoid()
    unsure = (shares * (1 - shares)).mean(1)
    return {"foreground": shares.mean(1), "unsure": unsure, "largest": shares.amax(1)}


def least_p(n_reference: int, n_stream: int, draws: int) -> float:
    """Return the least p-value: of the ways to deal groups out, or as many as are drawn, one was observed."""
    # Of equal numbers another one is its mirror image, as far apart.
    reached = 1 + (n_reference == n_stream)
    return max(reached / comb(n_reference + n_stream, n_stream), 1 / (draws + 1))


def thinned(groups: np.ndarray, stream_groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which images stay if no group may have more than is usual (the median) on the smaller side."""
    sides, rng = (groups, stream_groups), np.random.default_rng((seed, 1))
    cap = min(int(np.median(np.unique(side, return_counts=True)[1])) for side in sides)
    kept = []
    for side in sides:
        order = rng.permutation(len(side))
        rank = pd.Series(side[order]).groupby(side[order]).cumcount().to_numpy()
        kept.append(np.sort(order[rank < cap]))
    return kept[0], kept[1]


def energy_test(
    reference: np.ndarray,
    stream: np.ndarray,
    reference_groups: np.ndarray,
    stream_groups: np.ndarray,
    alpha: float = 0.05,
    draws: int = 999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return energy distance, without bias, and its p-value under permutation of whole groups.

    Under no drift groups of one size are exchangeable, so that the rate of false alarms is what was asked
    for, whatever the numbers, (N, F) and (M, F), are. Groups of other sizes are not: so larger ones are
    thinned to the usual size of the smaller side, all weigh the same, and none is compared with itself.
    Numbers are standardised over both samples together; a group of the stream is another one than that of the
    same name in the reference. (Szekely and Rizzo, "Testing for Equal Distributions in High Dimension",
    InterStat 2004.)

    Raises:
        ValueError: so few groups that no p-value is at most ``alpha``.
    """
    kept, kept_stream = thinned(reference_groups, stream_groups, seed)
    both = np.concatenate([reference[kept], stream[kept_stream]])
    groups = [f"0 {g}" for g in reference_groups[kept]] + [f"1 {g}" for g in stream_groups[kept_stream]]
    names, members = np.unique(groups, return_inverse=True)
    belongs = np.eye(len(names))[members]
    within = np.unique(members[len(kept) :])
    n_stream = len(within)
    least = least_p(len(names) - n_stream, n_stream, draws)
    if least > alpha:
        raise ValueError(
            f"{len(names) - n_stream} and {n_stream} groups with {draws} permutations give no p-value "
            f"below {least:.2g}; more groups, more permutations, or a level above it"
        )
    spread = both.std(axis=0)
    scaled = (both - both.mean(axis=0)) / np.where(spread > 1e-12, spread, 1)
    belongs /= belongs.sum(axis=0)
    means = belongs.T @ cdist(scaled, scaled) @ belongs
    np.fill_diagonal(means, 0)

    def apart(one: np.ndarray, two: np.ndarray, itself: int = 0) -> np.ndarray:
        """Mean distance of the groups marked 1 in ``one`` to (other) ones marked in ``two``, (..., G)."""
        pairs = one.sum(axis=-1) * (two.sum(axis=-1) - itself)
        return np.einsum("...g,...g->...", one @ means, two) / np.maximum(pairs, 1)

    def energy_distance(drawn: np.ndarray, rest: np.ndarray, axis: int = -1) -> np.ndarray:
        inside = np.zeros((*drawn.shape[:-1], len(names)))
        np.put_along_axis(inside, drawn.astype(int), 1.0, axis=-1)
        others = 1 - inside
        return 2 * apart(inside, others) - apart(inside, inside, 1) - apart(others, others, 1)

    outside = np.setdiff1d(np.arange(len(names)), within)
    test = stats.permutation_test(
        (within, outside), energy_distance, alternative="greater", n_resamples=draws, vectorized=True,
        axis=-1, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.statistic), float(test.pvalue)
