"""What a train x test matrix says, and how surely; and the published ones, to show it beside."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from r2l.drift.paired import PairedScores, diagonal_of, paired_scores
from r2l.drift.statistics import Interval, Jackknife, few_groups_text, holm, interval_text
from r2l.files import choose


@dataclass(frozen=True)
class MatrixSummary:
    """A train x test matrix with its uncertainty; `summarise` makes it, ``print`` tells it.

    Intervals are of confidence ``level``, for other groups and, of several seeds, other training runs.

    Attributes:
        cells: one row for each cell: ``train``, ``test``, ``score`` with ``low`` and ``high``; ``difference``
            to the diagonal of the same row, image by image (negative: worse), with ``difference_low`` and
            ``difference_high``; off the diagonal ``p`` and ``p_holm`` (adjusted for the number of
            off-diagonal cells); ``significant``.
        totals: rows ``diagonal`` (mean score), ``drop`` (mean of the diagonal less the cell, over all
            off-diagonal cells) and ``drop without worst column``; columns ``estimate``, ``low``, ``high``.
        columns: mean ``drop`` of each test pipeline's off-diagonal cells, with ``low``, ``high``. The worst
            is picked by looking, which its interval does not account for.
        chance: score of blind answers: ``majority`` (always the most frequent class) and ``uniform`` (any
            class equally likely); for masks ``all foreground``.
        n_images, n_groups: how many.
        n_seeds: training runs a cell; of one, the intervals don't hold the luck of training.
        effective_groups: how many groups of equal size would tell as much.
        level, metric: of the intervals, also 1 - level for ``significant``; and what the score is called.
    """

    cells: pd.DataFrame
    totals: pd.DataFrame
    columns: pd.DataFrame
    chance: dict[str, float]
    n_images: int
    n_groups: int
    n_seeds: int
    effective_groups: float
    level: float
    metric: str = "score"

    def matrix(self, column: str = "score") -> pd.DataFrame:
        """Return one column of ``cells`` as a matrix, training (rows) by test pipeline."""
        wide = self.cells.pivot(index="train", columns="test", values=column)
        return wide.loc[self.cells["train"].unique(), self.cells["test"].unique()]

    @property
    def worst_column(self) -> str:
        """Test pipeline under which the models of the others lose most."""
        return self.columns["drop"].idxmax()

    @property
    def caveats(self) -> list[str]:
        """What the intervals don't hold, in sentences."""
        luck = (
            "one training run a cell: its luck is not in the intervals; runs of small networks typically "
            "differ by .02 to .04 a cell, and several seeds tell"
        )
        told = [luck if self.n_seeds == 1 else "", few_groups_text(self.effective_groups)]
        return [text for text in told if text]

    def __str__(self) -> str:
        half = (self.matrix("high") - self.matrix("low")) / 2
        marks = self.matrix("significant").map({True: "*", False: " "}.get)
        cells = self.matrix().map("{:.2f}".format) + " ±" + half.map("{:.2f}".format) + marks
        lines = [
            f"{self.metric}, rows: trained under, columns: tested under ({self.n_images} images, "
            f"{self.n_groups} groups, {self.n_seeds} seed(s))",
            cells.to_string(index_names=False),
            f"* differs from its row's diagonal (Holm, {1 - self.level:.0%})",
            *(f"{name}: {interval_text(*bounds)}" for name, *bounds in self.totals.itertuples()),
            *self.caveats,
            f"worst column: {self.worst_column}",
            "chance: " + ", ".join(f"{name} {value:.3f}" for name, value in self.chance.items()),
        ]
        return "\n".join(lines)


def summarise(
    results: pd.DataFrame, *, value: str | None = None, n_classes: int | None = None, level: float = 0.95
) -> MatrixSummary:
    """Average the results of `predict_matrix` by cell and say how sure each number is.

    >>> rows = [(a, b, 0, i, i, a == b) for a in "xy" for b in "xy" for i in range(4)]
    >>> table = pd.DataFrame(rows, columns=["train", "test", "seed", "image", "group", "correct"])
    >>> summarise(table).cells["score"].tolist()
    [1.0, 0.0, 0.0, 1.0]

    Args:
        results: one row for each image, ``train``, ``test`` and ``seed``, with ``group`` and ``value``.
        value: what is scored, see `r2l.drift.paired.paired_scores`.
        n_classes: for the uniform chance level; the number of labels that occur, if not given.
        level: of the intervals; 1 - level is that of the tests.

    Raises:
        ValueError: a cell lacks some image, a training pipeline is not among the tests, or there is but one
            test pipeline.
    """
    tests = results["test"].unique()
    if len(tests) < 2:
        raise ValueError(f"nothing to compare: tested under {list(tests)} only")
    paired = _square(paired_scores(results, ["train", "test"], value), results["train"].unique(), tests)
    diagonal = diagonal_of(paired.cells)
    sampled = paired.jackknife(level)
    columns, totals = _drops(paired.cells, diagonal, sampled)
    images = results.drop_duplicates("image")
    cells, chance = _cells(paired.cells, diagonal, sampled), _chance(images, n_classes)
    counts = len(images), len(sampled.without_group), len(sampled.by_seed), sampled.effective_groups
    return MatrixSummary(cells, totals, columns, chance, *counts, level, paired.metric)


def _square(paired: PairedScores, *axes: np.ndarray) -> PairedScores:
    """Put the cells in the order of the matrix, row by row."""
    order = pd.MultiIndex.from_product([axis.astype(object) for axis in axes], names=["train", "test"])
    columns = paired.cells.get_indexer(order)
    if (columns < 0).any():
        raise ValueError("some cell of the matrix lacks some image; pairs need all of them")
    sums = (part[..., columns] for part in (paired.numerators, paired.denominators))
    return PairedScores(order, *sums, paired.groups, paired.value)


def _chance(images: pd.DataFrame, n_classes: int | None) -> dict[str, float]:
    if "label" in images:
        shares = images["label"].value_counts(normalize=True)
        return {"majority": float(shares.max()), "uniform": 1 / (n_classes or len(shares))}
    if {"union", "false_positives", "pixels"} <= set(images.columns):
        # All that is not falsely found is foreground: found or missed.
        foreground = (images["union"] - images["false_positives"]).sum()
        return {"all foreground": float(foreground / images["pixels"].sum())}
    return {}


def _cells(index: pd.MultiIndex, diagonal: np.ndarray, sampled: Jackknife) -> pd.DataFrame:
    cells = index.to_frame(index=False)
    off = diagonal != np.arange(len(cells))
    difference = sampled.interval(lambda scores: scores - scores[..., diagonal])
    cells[["score", "low", "high"]] = np.stack(sampled.shares()[:3], axis=1)
    paired = np.stack(difference[:3], axis=1) * off[:, None]
    cells[["difference", "difference_low", "difference_high"]] = paired
    cells.loc[off, "p"] = difference.p[off]
    cells.loc[off, "p_holm"] = holm(difference.p[off])
    cells["significant"] = cells["p_holm"] <= 1 - sampled.level
    return cells


def _drops(
    cells: pd.MultiIndex, diagonal: np.ndarray, sampled: Jackknife
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean drops of each column that has cells off the diagonal, and of all."""
    off, under = diagonal != np.arange(len(cells)), cells.get_level_values("test")

    def mean_drops(scores: np.ndarray, parts: Iterable[np.ndarray]) -> list[np.ndarray]:
        moved = -(scores - scores[..., diagonal])
        return [moved[..., part].mean(axis=-1) for part in parts]

    by_column = {test: off & (under == test) for test in dict.fromkeys(under)}
    by_column = {test: part for test, part in by_column.items() if part.any()}
    interval = sampled.interval(lambda s: np.stack(mean_drops(s, by_column.values()), axis=-1))
    columns = pd.DataFrame(interval._asdict(), pd.Index(by_column, name="test"))
    columns = columns.drop(columns="p").rename(columns={"estimate": "drop"})
    spared = off & (under != columns["drop"].idxmax())
    parts = {"drop": off} | ({"drop without worst column": spared} if spared.any() else {})

    def totals(scores: np.ndarray) -> np.ndarray:
        return np.stack([scores[..., ~off].mean(axis=-1), *mean_drops(scores, parts.values())], axis=-1)

    table = pd.DataFrame(sampled.interval(totals)._asdict(), ["diagonal", *parts]).drop(columns="p")
    own = sampled.shares(lambda scores: scores[..., ~off].mean(axis=-1, keepdims=True))
    table.loc["diagonal", ["low", "high"]] = own.low[0], own.high[0]
    return columns, table


def drop_table(
    results: pd.DataFrame, others: pd.DataFrame, *, value: str | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Return the mean drop under each corruption or sensor drift, over all models, and its distance.

    One row a ``scale``, ``kind`` and ``severity``: mean ``distance``, ``drop``, ``low``, ``high``.

    Args:
        results: what `predict_matrix` returned, for the models in ``others``.
        others: what `corruption_table` or `sensor_table` returned, or several of them together.
        value, level: see `r2l.drift.summarise`.
    """
    rows = others.groupby(["test", "scale", "kind", "severity"], sort=False)["distance"].mean().reset_index()
    parts = [others[others["test"] == test] for test in rows["test"]]
    estimate, low, high = (part[1:] for part in mean_drops(results, others, parts, value, level)[0][:3])
    return rows.drop(columns="test").assign(drop=estimate, low=low, high=high)


def mean_drops(
    results: pd.DataFrame,
    others: pd.DataFrame,
    parts: Iterable[pd.DataFrame],
    value: str | None,
    level: float,
) -> tuple[Interval, Interval, str]:
    """Return mean drops of the pipelines and of parts of the rows, their ratios to the first, the metric."""
    kept = results[results["train"].isin(others["train"].unique())]
    paired = paired_scores(pd.concat([kept, others]), ["train", "test"], value)
    diagonal = diagonal_of(paired.cells)

    def contrast(rows: pd.DataFrame) -> np.ndarray:
        cells = pd.MultiIndex.from_frame(rows[["train", "test"]].drop_duplicates())
        columns, weights = paired.cells.get_indexer(cells), np.zeros(len(diagonal))
        np.add.at(weights, diagonal[columns], 1 / len(cells))
        weights[columns] -= 1 / len(cells)
        return weights

    pipelines = kept[kept["train"] != kept["test"]]
    weights = np.stack([contrast(part) for part in (pipelines, *parts)])

    def of(scores: np.ndarray) -> np.ndarray:
        return scores @ weights.T

    sampled = paired.jackknife(level)
    return sampled.interval(of), sampled.ratios_to_first(of), paired.metric


def flips(results: pd.DataFrame, train: str, test: str) -> pd.DataFrame:
    """Return the images whose answers are better under one pipeline than under the other.

    Of several seeds the first is used. One row for each such image: ``image``, ``label`` (of classes),
    ``before`` (the answer under ``train``: the number of the class; for masks its IoU), ``after`` (under
    ``test``), the ``fall`` of the score (1: a right answer is lost; for masks of the IoU), and ``change``:
    "lost" or "gained".
    """
    table = _compare_answers(results, train, test)
    table["change"] = np.where(table["fall"] > 0, "lost", "gained")
    return table[table["fall"] != 0].reset_index()


def _compare_answers(results: pd.DataFrame, train: str, test: str) -> pd.DataFrame:
    rows = results[(results["train"] == train) & (results["seed"] == results["seed"].min())]
    tests = set(rows["test"])
    if not {train, test} <= tests:
        raise ValueError(f"no answers for {train!r} under {test!r}; tested under {sorted(tests)}")
    before, after = (rows[rows["test"] == code].set_index("image").sort_index() for code in (train, test))
    score, answer = ("correct", "prediction") if "correct" in results else ("iou", "iou")
    table = before[["label"] if "label" in before else []]
    fall = before[score].astype(float) - after[score].astype(float)
    return table.assign(before=before[answer], after=after[answer], fall=fall.fillna(0))


def most_changed(results: pd.DataFrame, train: str, test: str, most: int) -> pd.DataFrame:
    """Return those of `flips` that lose most, ``most`` at most; where none does, the first images."""
    table = _compare_answers(results, train, test)
    if (table["fall"] > 0).any():
        table = table[table["fall"] > 0].sort_values("fall", ascending=False, kind="stable")
    return table.head(most).reset_index()


def published_matrix(name: str) -> pd.DataFrame:
    """Return a published train (rows) x test (columns) matrix of the twelve static pipelines, in [0, 1].

    Source: project page of "From Lens to Logit", the 2021 submission of Oala et al., "Data Models for Dataset
    Drift Controls in Machine Learning With Optical Images", TMLR 2023; means of 5 folds read off the figure,
    2 decimals. It came without intervals; the standard error of one accuracy is about .028.

    Its ``attrs`` hold ``metric`` and ``source``.

    Args:
        name: "microscopy" (accuracy on Raw-Microscopy) or "drone" (IoU on Raw-Drone); else a ValueError.
    """
    return _published(name, "train_x_test", "pipelines", "test")


def published_corruptions(name: str) -> pd.DataFrame:
    """Return the published scores of models under post-hoc corruptions of severity 3.

    As `published_matrix`, a 12 x 11 frame in [0, 1]: pipeline that a model was trained and tested under
    (rows) by corruption, of which the first is "identity", none. Severities are those made for images of 32 x
    32 pixels.
    """
    return _published(name, "pipeline_x_corruption", "corruptions", "corruption")


def _published(name: str, table: str, columns: str, title: str) -> pd.DataFrame:
    file = files("r2l").joinpath("data/published_matrices.json")
    published: dict[str, Any] = json.loads(file.read_text("utf-8"))
    entries = {key: entry for key, entry in published.items() if isinstance(entry, dict)}
    entry = choose("published matrix", name, entries)
    frame = pd.DataFrame(entry[table], published["pipelines"], published[columns])
    frame = frame.rename_axis("train").rename_axis(title, axis=1)
    frame.attrs = {"metric": entry["metric"], "source": published["source"]}
    return frame
