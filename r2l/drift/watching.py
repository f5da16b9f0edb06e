"""The alarm on the matrix: which changes of pipeline would have been noticed before the score fell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import nn

from r2l.drift.features import image_features
from r2l.drift.matrix import MatrixSummary
from r2l.drift.shift_detector import energy_test, least_p
from r2l.drift.synthesis import Trained
from r2l.drift.views import Views
from r2l.training.quiet import progress_bar


def detection_rates(
    views: Views,
    summary: MatrixSummary,
    n_images: Sequence[int] = (10, 20, 50, 100),
    *,
    models: Sequence[Trained] | None = None,
    repeats: int = 20,
    alpha: float = 0.05,
    draws: int = 199,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Send streams of other pipelines to an alarm that knows a model's own, and say what it notices.

    Each time the groups are dealt out anew: half of them are the reference, as the model's own pipeline
    develops them; ``n_images`` of the others (whole groups, as far as they go) are the stream, developed by
    another pipeline, or by the same, which gives the rate of false alarms.

    Args:
        views: developed images.
        summary: what `summarise` returned for the same pipelines; tells where the score fell.
        n_images: lengths of the streams.
        models: whose answers are watched, one for each pipeline (the first is taken) on the images that it
            has not seen; without, statistics of the pictures are watched.
        repeats: streams a cell and length.
        alpha: rate of false alarms that is accepted.
        draws: permutations of each test.
        seed: of dealing and permutations.
        progress: whether to show a bar.

    Returns:
        One row a cell and length: ``train``, ``test``, ``n_images``, ``raised`` (share of streams that
        raised the alarm), ``streams`` (how many were long enough), ``drop`` (loss of score), ``fell``
        (whether it is significantly below the row's diagonal), ``verdict``: "noticed" or "missed" where
        the score fell (half of the streams decide), else "early warning" or "quiet".

    Raises:
        ValueError: no length, a pipeline that ``views`` or ``models`` lack, or too few groups.
    """
    if not n_images or min(n_images) < 2 or repeats < 1:
        raise ValueError("expected lengths of 2 images or more, and a repeat")
    cells = summary.cells
    codes = dict.fromkeys([*cells["train"], *cells["test"]])
    if missing := [code for code in codes if code not in views.images]:
        raise ValueError(f"views lack {missing}; they hold {list(views.images)}")
    rows = []
    with progress_bar(total=len(cells), desc="watching", disable=not progress) as bar:
        for train, part in cells.groupby("train", sort=False):
            model, pool = _watched(train, views, models)
            seen = {
                test: image_features(views.images[test][pool], model).to_numpy()
                for test in part["test"]
            }
            for cell in part.itertuples():
                for length in n_images:
                    raised = _streams(
                        seen[train], seen[cell.test], views.groups[pool], length, repeats, alpha,
                        draws, seed,
                    )  # fmt: skip
                    rows.append(_row(cell, length, raised))
                bar.update()
    return pd.DataFrame(rows)


def _watched(
    code: str, views: Views, models: Sequence[Trained] | None
) -> tuple[nn.Module | None, np.ndarray]:
    """Return the model whose answers are watched, if any, and the images that it has not seen."""
    if models is None:
        return None, np.arange(len(views))
    found = next((trained for trained in models if trained.code == code), None)
    if found is None:
        raise ValueError(f"no model of {code!r} among {sorted({t.code for t in models})}")
    return found.module, np.asarray(found.test)


def _streams(
    own: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray,
    length: int,
    repeats: int,
    alpha: float,
    draws: int,
    seed: int,
) -> list[bool]:
    """Return of each stream that is long enough, in images and groups, whether the alarm was raised."""
    raised = []
    names = np.unique(groups)
    for repeat in range(repeats):
        # The same deals in every cell, so that cells are compared on the same streams.
        rng = np.random.default_rng((seed, repeat))
        dealt = rng.permutation(names)
        kept = np.flatnonzero(np.isin(groups, dealt[: len(dealt) // 2]))
        order = [np.flatnonzero(groups == name) for name in dealt[len(dealt) // 2 :]]
        stream = np.concatenate(order)[:length]
        known, new = (len(np.unique(groups[which])) for which in (kept, stream))
        if len(stream) < length or least_p(known, new, draws) > alpha:
            continue
        _, p_value = energy_test(
            own[kept], other[stream], groups[kept], groups[stream], alpha, draws, seed + repeat
        )
        raised.append(p_value <= alpha + 1e-12)
    return raised


def _row(cell: object, length: int, raised: list[bool]) -> dict[str, object]:
    share = float(np.mean(raised)) if raised else np.nan
    fell = bool(cell.significant and cell.difference < 0)
    noticed = share >= 0.5
    words = ("noticed", "missed") if fell else ("early warning", "quiet")
    return {
        "train": cell.train,
        "test": cell.test,
        "n_images": length,
        "raised": share,
        "streams": len(raised),
        "drop": -cell.difference,
        "fell": fell,
        "verdict": (words[0] if noticed else words[1]) if raised else "stream too short",
    }
