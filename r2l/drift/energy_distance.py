"""Do two samples of grouped images come from one source? Their energy distance, and its p-value."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
from scipy import stats
from scipy.spatial.distance import cdist


def least_p(n_reference: int, n_stream: int, draws: int) -> float:
    """Of all ways to deal the groups out, or as many as are drawn, one is what was observed.

    Of equal numbers another one is its mirror image, as far apart.
    """
    reached = 1 + (n_reference == n_stream)
    return max(reached / comb(n_reference + n_stream, n_stream), 1 / (draws + 1))


def thinned(
    groups: np.ndarray, stream_groups: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
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
    """Return energy distance and its p-value under permutation of whole groups.

    Numbers, (N, F) and (M, F), are thinned, and standardised over both samples together, so that the test
    stays exact. All groups weigh the same; a group of the stream is another one than that of the same name
    in the reference.

    Raises:
        ValueError: so few groups that no p-value is at most ``alpha``.
    """
    kept, kept_stream = thinned(reference_groups, stream_groups, seed)
    reference, reference_groups = reference[kept], reference_groups[kept]
    stream, stream_groups = stream[kept_stream], stream_groups[kept_stream]
    names, members = np.unique(
        np.concatenate([[f"0 {g}" for g in reference_groups], [f"1 {g}" for g in stream_groups]]),
        return_inverse=True,
    )
    belongs = np.eye(len(names))[members]
    within = np.unique(members[len(reference) :])
    n_stream = len(within)
    least = least_p(len(names) - n_stream, n_stream, draws)
    if least > alpha:
        raise ValueError(
            f"{len(names) - n_stream} and {n_stream} groups with {draws} permutations give no p-value "
            f"below {least:.2g}; more groups, more permutations, or a level above it"
        )
    both = np.concatenate([reference, stream])
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
        (within, outside),
        energy_distance,
        permutation_type="independent",
        alternative="greater",
        n_resamples=draws,
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(test.statistic), float(test.pvalue)
