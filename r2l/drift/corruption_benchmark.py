"""Pipelines against corruptions: how much is lost, and how far the images had moved.

The published comparison sets the mean drop under other pipelines against that under corruptions of
severity 3, and finds the latter "ten to four times" as large. How far each change moves the images is left
open there. `benchmark_corruptions` tries three sizes: the published constants, constants for the images'
size, and corruptions that move the images as far as the pipelines do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from r2l.datasets.frames import Frames
from r2l.drift.comparison import MATCHED, corruption_table, spread
from r2l.drift.corruptions import PUBLISHED_CORRUPTIONS, SCALES
from r2l.drift.matched_severity import pipeline_distance
from r2l.drift.paired import paired_scores
from r2l.drift.statistics import Bootstrap, Interval
from r2l.drift.synthesis import Trained, ask_models


@dataclass(frozen=True)
class CorruptionBenchmark:
    """Mean drops under pipelines and under corruptions; `benchmark_corruptions` makes it, ``print`` tells it.

    Attributes:
        table: rows ``pipelines`` and, for each size of corruption, ``published``, ``image``, ``matched``;
            columns: mean ``distance`` of the changed images, ``kinds`` (how many corruptions are in the
            mean), ``drop`` with ``low`` and ``high``, ``ratio`` to the pipelines' with ``ratio_low`` and
            ``ratio_high``. A ratio is unbounded where the pipelines' drop can't be told from none.
        answers: of the models to the corrupted images, as `corruption_table` returns them.
        distance: what images were matched in.
        left_out: corruptions that can't move the images as far (or as little) as the pipelines do, by
            pipeline; they are in the means of the other sizes alone.
        metric: what was lost.
        level: of the intervals.
    """

    table: pd.DataFrame
    answers: pd.DataFrame
    distance: str
    left_out: dict[str, list[str]]
    metric: str
    level: float

    def __str__(self) -> str:
        unit = " dB" if self.distance == "psnr" else ""
        lines = [f"mean loss of {self.metric}, intervals of {self.level:.0%} over groups"]
        for name, row in self.table.iterrows():
            ratio = "no ratio, since the pipelines lose nothing"
            if np.isfinite(row["ratio"]):
                ends = f"{row['ratio_low']:.1f} to {row['ratio_high']:.1f}"
                ratio = f"{row['ratio']:.1f} ({ends}) times that of the pipelines"
            lines.append(
                f"{name:>10}: {row['drop']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), {ratio}; "
                f"{self.distance} {row['distance']:.3g}{unit}"
            )
        for code, kinds in self.left_out.items():
            lines.append(f"{code}: out of reach and not in the matched mean: {', '.join(kinds)}")
        return "\n".join(lines)


def benchmark_corruptions(
    models: Sequence[Trained],
    views: Frames,
    kinds: Sequence[str] = PUBLISHED_CORRUPTIONS,
    *,
    results: pd.DataFrame | None = None,
    severity: int = 3,
    distance: str = "psnr",
    value: str | None = None,
    bootstrap: Bootstrap = Bootstrap(),
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> CorruptionBenchmark:
    """Set the mean drop under other pipelines against that under corruptions of three sizes.

    Models are tested in the pipeline they know, on images that they have not seen.

    Args:
        models: what `train_models` returned.
        views: the developed images, under all pipelines that are compared.
        kinds: of `CORRUPTIONS`; the published ten unless given.
        results: what `ask_models` returned for these models and views; asked for here, if not given.
        severity: of the corruptions, 3 as published.
        distance: what "as far" means: "psnr", "ssim" or "l2".
        value, bootstrap: see `r2l.drift.summarise`.
        seed: of the corruptions.
        device: where to ask, such as "cuda"; by default where each model is.
        progress: whether to show bars.

    Raises:
        ValueError: as `corruption_table` and `ask_models`.
    """
    if results is None:
        results = ask_models(models, views, list(views.images), device=device, progress=progress)
    tables = [
        corruption_table(
            models, views, kinds, (severity,), scale=scale, distance=distance, seed=seed,
            device=device, progress=progress,
        )
        for scale in (*SCALES, MATCHED)
    ]  # fmt: skip
    others = pd.concat(tables, ignore_index=True)
    counted = others["reached"]
    groups = {s: (others["scale"] == s) & counted for s in (*SCALES, MATCHED)}
    groups = {s: rows for s, rows in groups.items() if rows.any()}
    drops, ratios, metric = _mean_drops(results, others, groups, value, bootstrap)
    codes = list(dict.fromkeys(others["train"]))
    some = spread(len(views))
    own = np.mean([pipeline_distance(views, c, kind=distance, indices=some) for c in codes])
    moved = [own, *(others.loc[rows, "distance"].mean() for rows in groups.values())]
    used = [0, *(others.loc[rows, "kind"].nunique() for rows in groups.values())]
    table = pd.DataFrame({"distance": moved, "kinds": used}, index=["pipelines", *groups])
    table[["drop", "low", "high"]] = np.stack(drops, axis=1)
    table[["ratio", "ratio_low", "ratio_high"]] = np.stack(ratios, axis=1)
    missed = others[~counted].drop_duplicates(["train", "kind"]).groupby("train", sort=False)
    left_out = {code: list(part["kind"]) for code, part in missed}
    return CorruptionBenchmark(table, others, distance, left_out, metric, bootstrap.level)


def drop_table(
    results: pd.DataFrame,
    others: pd.DataFrame,
    *,
    value: str | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> pd.DataFrame:
    """Return the mean drop under each corruption or sensor drift, over all models, and its distance.

    Args:
        results: what `ask_models` or `train_test_matrix` returned, for the models in ``others``.
        others: what `corruption_table` or `sensor_table` returned, or several of them together.
        value, bootstrap: see `r2l.drift.summarise`.

    Returns:
        One row a ``scale``, ``kind`` and ``severity``: mean ``distance``, ``drop``, ``low``, ``high``.

    Raises:
        ValueError: a model in ``others`` has no diagonal in ``results``, or as `paired_scores`.
    """
    keys = ["scale", "kind", "severity"]
    rows = others.groupby(["test", *keys], sort=False)["distance"].mean().reset_index()
    groups = {test: others["test"] == test for test in rows["test"]}
    drops = _mean_drops(results, others, groups, value, bootstrap)[0]
    estimate, low, high = (part[1:] for part in drops)
    return rows.drop(columns="test").assign(drop=estimate, low=low, high=high)


def _mean_drops(
    results: pd.DataFrame,
    others: pd.DataFrame,
    groups: dict[str, pd.Series],
    value: str | None,
    bootstrap: Bootstrap,
) -> tuple[Interval, Interval, str]:
    """Return mean drops of the pipelines and of groups of rows, their ratios to the first, the metric."""
    trains = list(dict.fromkeys(others["train"]))
    kept = results[results["train"].isin(trains)]
    paired = paired_scores(pd.concat([kept, others]), ["train", "test"], value)
    place = {cell: i for i, cell in enumerate(paired.cells)}
    if missing := [train for train in trains if (train, train) not in place]:
        raise ValueError(f"no diagonal: trained but not tested under {missing}")

    def contrast(rows: pd.DataFrame) -> np.ndarray:
        cells = set(zip(rows["train"], rows["test"], strict=True))
        weights = np.zeros(len(place))
        for train, test in cells:
            weights[place[train, train]] += 1 / len(cells)
            weights[place[train, test]] -= 1 / len(cells)
        return weights

    chosen = [kept[kept["train"] != kept["test"]], *(others[rows] for rows in groups.values())]
    weights = np.stack([contrast(rows) for rows in chosen])

    def ratios(scores: np.ndarray) -> np.ndarray:
        drops = scores @ weights.T
        # Where the pipelines lose nothing, corruptions that do are beyond all measure.
        base = np.maximum(drops[..., :1], 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(drops / base, nan=0.0, posinf=np.inf, neginf=-np.inf)

    sampled = paired.draws(bootstrap)
    name = paired.metric
    drops = sampled.interval(lambda scores: scores @ weights.T)
    return drops, sampled.interval(ratios), name
