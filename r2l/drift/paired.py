"""Per-image answers of several cells, or arms of an experiment, side by side: where all comparisons start."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from r2l.drift.statistics import Jackknife, crossed_means, crossed_ratios, holm

_SCORE_NAMES = {"correct": "accuracy", "iou": "IoU"}


@dataclass(frozen=True)
class PairedScores:
    """Scores of N images in K cells, by S seeds; a cell's score is the ratio of its sums.

    Attributes:
        cells: what each column is, (K,).
        numerators, denominators: (S, N, K); hits and ones, or pixels in the intersection and in the union.
        groups: group of each row, (N,).
        value: the column that the scores came from.
    """

    cells: pd.Index
    numerators: np.ndarray
    denominators: np.ndarray
    groups: np.ndarray
    value: str

    @property
    def metric(self) -> str:
        """What the score is called."""
        return _SCORE_NAMES.get(self.value, self.value)

    def jackknife(self, level: float) -> Jackknife:
        """Return the scores, and what they are without each group and by each seed."""
        return crossed_ratios(self.numerators, self.denominators, self.groups, level)


def paired_scores(results: pd.DataFrame, by: str | Sequence[str], value: str | None = None) -> PairedScores:
    """Lay the answers of all cells side by side, image by image.

    Seeds that not all images of all cells have are no sample of seeds: such repetitions are averaged.

    Args:
        results: one row an image and cell (and ``seed``), with ``image``, ``group``, ``by`` and ``value``.
        by: column or columns that tell the cell.
        value: "correct" or any number, better if higher, whose mean is the score; "iou", whose score is the
            sum of ``intersection`` by the sum of ``union`` (of several classes of masks the mean of the
            images'); by default "iou" for masks, "correct" for classes.

    Raises:
        ValueError: a cell lacks some image, there are no rows, or no such column.
    """
    value = value or next((name for name in ("iou", "correct") if name in results), None)
    if value is None:
        raise ValueError(f"no score among the columns {list(results.columns)}; name one by value=")
    by = [by] if isinstance(by, str) else list(by)
    ratio = value == "iou" and "intersection_0" not in results
    parts = ["intersection", "union"] if ratio else [value]
    if missing := sorted({*parts, *by, "image", "group"} - set(results.columns)):
        raise ValueError(f"the answers have no column {', '.join(missing)}")
    results = results.astype(dict.fromkeys(parts, float))
    options = {"columns": by, "values": parts, "aggfunc": "mean", "sort": False}
    wide = results.pivot_table(index="image", **options)
    if wide.isna().any(axis=None) or wide.empty:
        raise ValueError("some cell of the matrix lacks some image; pairs need all of them")
    images, cells, n_seeds = wide.index, wide[parts[0]].columns, 1
    if "seed" in results and results["seed"].nunique() > 1:
        each = results.pivot_table(index=["seed", "image"], **options)
        seeds = results["seed"].unique()
        each = each.reindex(pd.MultiIndex.from_product([seeds, images]))
        if not each.isna().any(axis=None):
            wide, n_seeds = each, len(seeds)
    shape = n_seeds, len(images), len(cells)
    above, *rest = (wide[part][cells].to_numpy().reshape(shape) for part in parts)
    below = rest[0] if rest else np.ones(shape)
    groups = results.drop_duplicates("image").set_index("image").loc[images, "group"].to_numpy()
    return PairedScores(cells, above, below, groups, value)


def diagonal_of(cells: pd.MultiIndex) -> np.ndarray:
    """Return of each of K cells (train, test) the number of (train, train), (K,); ValueError: it lacks."""
    trains = cells.get_level_values("train")
    own = cells.get_indexer(pd.MultiIndex.from_arrays([trains, trains]))
    if missing := sorted(set(trains[own < 0])):
        raise ValueError(f"no diagonal: trained but not tested under {missing}")
    return own


def paired_summary(
    answers: pd.DataFrame,
    *,
    arm: str,
    baseline: str,
    by: str | Sequence[str],
    value: str = "correct",
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare the arms of an experiment with a baseline, image by image and seed by seed.

    Args:
        answers: one row for each image, seed, ``arm`` and ``by``, with ``group`` and ``value``.
        arm, baseline: column that tells what was done, and what the others are compared with.
        by: column of the domains, or several; comparisons stay within one.
        value: the per-image number, better if higher; True and False count as 1 and 0.
        level: of the intervals; 1 - level is that of the tests.

    Returns:
        One row for each domain and arm: ``score`` with ``low`` and ``high``; ``difference`` to the baseline
        with ``difference_low``, ``difference_high``, ``p`` and ``p_holm`` (Holm's correction over all rows
        that are not the baseline); ``significant``; ``images``, ``groups``, ``seeds``.

    Raises:
        ValueError: no such column or baseline, or an arm that lacks an image.
    """
    by = [by] if isinstance(by, str) else [*by]
    if missing := {arm, *by, value, "image", "group", "seed"} - set(answers.columns):
        raise ValueError(f"the table lacks {sorted(missing)}; it has {list(answers.columns)}")
    parts = [
        _compare_arms(part, arm, baseline, value, level).assign(**dict(zip(by, names, strict=True)))
        for names, part in answers.groupby(by, sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    compared = table[arm] != baseline
    table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"])
    table["significant"] = table["p_holm"] <= 1 - level
    return table[[*by, arm, *table.columns.drop([*by, arm])]]


def _compare_arms(answers: pd.DataFrame, arm: str, baseline: str, value: str, level: float) -> pd.DataFrame:
    # By another name an IoU, too, is a number of each image.
    paired = paired_scores(answers.assign(_score=answers[value]), arm, "_score")
    if len(paired.numerators) < answers["seed"].nunique():
        raise ValueError("some arm lacks some image or seed; pairs need all of them")
    if baseline not in paired.cells:
        raise ValueError(f"no {baseline!r} among the arms {list(paired.cells)}")
    score = paired.jackknife(level).shares()
    reference = paired.numerators[..., [paired.cells.get_loc(baseline)]]
    difference = crossed_means(paired.numerators - reference, paired.groups, level)
    table = pd.DataFrame({arm: paired.cells})
    table[["score", "low", "high"]] = np.stack(score[:3], axis=1)
    table[["difference", "difference_low", "difference_high", "p"]] = np.stack(difference, axis=1)
    table.loc[table[arm] == baseline, ["difference_low", "difference_high", "p"]] = 0, 0, np.nan
    seeds, images, _ = paired.numerators.shape
    return table.assign(images=images, groups=len(np.unique(paired.groups)), seeds=seeds)
