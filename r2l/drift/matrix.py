"""What a train x test matrix says, and how surely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from r2l.drift.paired import SCORE_NAMES, PairedScores, paired_scores
from r2l.drift.statistics import (
    Bootstrap,
    Draws,
    Interval,
    exchange_test,
    holm,
    sign_flip_test,
    smallest_p,
)


@dataclass(frozen=True)
class MatrixSummary:
    """A train x test matrix with its uncertainty; `summarise` makes it, ``print`` tells it.

    Intervals are of confidence ``level``, from a bootstrap over groups.

    Attributes:
        cells: one row for each cell: ``train``, ``test``, ``score`` with ``low`` and ``high``;
            ``difference`` to the diagonal of the same row, image by image (negative: worse), with
            ``difference_low`` and ``difference_high``; off the diagonal ``p`` (sign-flip test) and
            ``p_holm`` (adjusted for the number of off-diagonal cells); ``significant``.
        totals: rows ``diagonal`` (mean score), ``drop`` (mean of the diagonal less the cell, over
            all off-diagonal cells) and ``drop without worst column``; columns ``estimate``,
            ``low``, ``high``.
        columns: mean ``drop`` of each test pipeline's off-diagonal cells, with ``low``, ``high``.
            The worst is picked by looking, which its interval does not account for.
        chance: score of blind answers: ``majority`` (always the most frequent class) and
            ``uniform`` (any class equally likely); for masks ``all foreground``.
        n_images: number of images.
        n_groups: number of groups.
        n_seeds: number of repetitions that the scores are averaged over.
        level: of the intervals, also 1 - level for ``significant``.
        metric: what the score is called.
    """

    cells: pd.DataFrame
    totals: pd.DataFrame
    columns: pd.DataFrame
    chance: dict[str, float]
    n_images: int
    n_groups: int
    n_seeds: int
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
    def testable(self) -> bool:
        """Whether there are groups enough for any cell to pass the correction for many tests."""
        n_tests = int(self.cells["p"].notna().sum())
        return smallest_p(self.n_groups) * n_tests <= 1 - self.level

    def __str__(self) -> str:
        half = (self.matrix("high") - self.matrix("low")) / 2
        marks = self.matrix("significant").map({True: "*", False: " "}.get)
        cells = self.matrix().map("{:.2f}".format) + " ±" + half.map("{:.2f}".format) + marks
        totals = self.totals.map("{:+.3f}".format)
        lines = [f"{name}: {e} ({low} to {high})" for name, e, low, high in totals.itertuples()]
        if not self.testable:
            lines.append(f"{self.n_groups} groups are too few for any cell to pass the correction")
        return "\n".join(
            [
                f"{self.metric}, rows: trained under, columns: tested under ({self.n_images} images, "
                f"{self.n_groups} groups, {self.n_seeds} seed(s))",
                cells.to_string(index_names=False),
                f"* differs from its row's diagonal (Holm, {1 - self.level:.0%})",
                *lines,
                f"worst column: {self.worst_column}",
                "chance: "
                + ", ".join(f"{name} {value:.3f}" for name, value in self.chance.items()),
            ]
        )


def summarise(
    results: pd.DataFrame,
    *,
    value: str | None = None,
    n_classes: int | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> MatrixSummary:
    """Average the results of `train_test_matrix` by cell and say how sure each number is.

    Args:
        results: one row for each image, ``train``, ``test`` and ``seed``, with ``group`` and what the
            score is made of. Seeds are averaged image by image before anything else.
        value: what is scored, better if higher: "correct", "iou" (its cells are data-set IoUs, the sum of
            intersections by the sum of unions) or any column of numbers; by default what is there.
        n_classes: for the uniform chance level; the number of labels that occur, if not given.
        bootstrap: of the intervals; its seed is also that of the tests.

    Raises:
        ValueError: a cell lacks some image, a training pipeline is not among the tests, or there
            is but one test pipeline.
    """
    trains, tests = (np.asarray(results[c].unique(), dtype=object) for c in ("train", "test"))
    if len(tests) < 2:
        raise ValueError(f"nothing to compare: tested under {list(tests)} only")
    if missing := set(trains) - set(tests):
        raise ValueError(f"no diagonal: trained but not tested under {sorted(missing)}")
    paired = _square(paired_scores(results, ["train", "test"], value), trains, tests)
    own = np.array([list(tests).index(train) for train in trains])
    off = trains[:, None] != tests[None, :]
    sampled = paired.draws(bootstrap)
    columns, totals = _drops(tests, own, off, sampled)
    images = results.drop_duplicates("image")
    return MatrixSummary(
        cells=_cells(trains, tests, own, off, sampled, paired, bootstrap.seed),
        totals=totals,
        columns=columns,
        chance=_chance(images, n_classes),
        n_images=len(images),
        n_groups=sampled.n_groups,
        n_seeds=results["seed"].nunique(),
        level=bootstrap.level,
        metric=SCORE_NAMES.get(paired.value, paired.value),
    )


def _square(paired: PairedScores, trains: np.ndarray, tests: np.ndarray) -> PairedScores:
    """Put the cells in the order of the matrix, row by row."""
    order = pd.MultiIndex.from_product([trains, tests], names=["train", "test"])
    places = paired.cells.get_indexer(order)
    if (places < 0).any():
        raise ValueError("some cell of the matrix lacks some image; pairs need all of them")
    return replace(
        paired,
        cells=order,
        numerators=paired.numerators[:, places],
        denominators=paired.denominators[:, places],
    )


def _chance(images: pd.DataFrame, n_classes: int | None) -> dict[str, float]:
    if "label" in images:
        shares = images["label"].value_counts(normalize=True)
        return {"majority": float(shares.max()), "uniform": 1 / (n_classes or len(shares))}
    if {"union", "false_positives", "pixels"} <= set(images.columns):
        # All that is not falsely found is foreground: found or missed.
        foreground = (images["union"] - images["false_positives"]).sum()
        return {"all foreground": float(foreground / images["pixels"].sum())}
    return {}


def to_diagonal(own: np.ndarray, n_tests: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what turns the scores of a matrix, (..., rows x tests), into differences to the diagonal.

    Args:
        own: column of each row's own pipeline.
        n_tests: number of columns.
    """

    def differences(scores: np.ndarray) -> np.ndarray:
        square = scores.reshape(*scores.shape[:-1], len(own), n_tests)
        diagonal = np.take_along_axis(square, own.reshape(*[1] * (square.ndim - 2), -1, 1), axis=-1)
        return (square - diagonal).reshape(scores.shape)

    return differences


def _cells(
    trains: np.ndarray,
    tests: np.ndarray,
    own: np.ndarray,
    off: np.ndarray,
    sampled: Draws,
    paired: PairedScores,
    seed: int,
) -> pd.DataFrame:
    cells = pd.MultiIndex.from_product([trains, tests], names=["train", "test"]).to_frame(False)
    score = sampled.interval()
    difference = sampled.interval(to_diagonal(own, len(tests)))
    cells[["score", "low", "high"]] = np.stack(score, axis=1)
    cells[["difference", "difference_low", "difference_high"]] = np.stack(difference, axis=1)
    flat = off.ravel()
    # 20 draws for each test and more, or Holm's correction could never be passed.
    draws = max(9999, 100 * int(flat.sum()) - 1)
    diagonal = np.repeat(np.arange(len(trains)) * len(tests) + own, len(tests))[flat]
    above, below = paired.numerators, paired.denominators
    if (below == 1).all():
        flips = above[:, flat] - above[:, diagonal]
        p = sign_flip_test(flips, paired.groups, draws=draws, seed=seed)
    else:
        cell, base = ((above[:, k], below[:, k]) for k in (flat, diagonal))
        p = exchange_test(cell, base, paired.groups, draws=draws, seed=seed)
    cells.loc[flat, "p"] = p
    cells.loc[flat, "p_holm"] = holm(p)
    cells["significant"] = cells["p_holm"] <= 1 - sampled.level + 1e-12
    return cells


def _drops(
    tests: np.ndarray, own: np.ndarray, off: np.ndarray, sampled: Draws
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean drops of each column that has cells off the diagonal, and of all."""
    shown = off.any(axis=0)
    differences = to_diagonal(own, len(tests))

    def mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return values[..., chosen.ravel()].mean(axis=-1)

    def by_column(scores: np.ndarray) -> np.ndarray:
        moved = -differences(scores)
        alone = [off & (np.arange(len(tests)) == k) for k in np.flatnonzero(shown)]
        return np.stack([mean(moved, chosen) for chosen in alone], axis=-1)

    columns = _frame(sampled.interval(by_column), tests[shown])
    columns = columns.rename(columns={"estimate": "drop"}).rename_axis("test")
    spared = off & (tests != columns["drop"].idxmax())
    chosen = {"drop": off} | ({"drop without worst column": spared} if spared.any() else {})

    def totals(scores: np.ndarray) -> np.ndarray:
        moved = -differences(scores)
        diagonal = mean(scores, own[:, None] == np.arange(len(tests)))
        return np.stack([diagonal, *(mean(moved, cells) for cells in chosen.values())], axis=-1)

    return columns, _frame(sampled.interval(totals), ["diagonal", *chosen])


def _frame(interval: Interval, index: list[str] | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(interval._asdict(), index=pd.Index(index))


def flips(results: pd.DataFrame, train: str, test: str) -> pd.DataFrame:
    """Return the images whose answer is right under one pipeline and wrong under the other.

    Args:
        results: what `train_test_matrix` returned. Of several seeds the first is used.
        train: pipeline that the models were trained under, and compared with.
        test: the other pipeline.

    Returns:
        One row for each such image: ``image``, ``label``, ``before`` (the answer under ``train``),
        ``after`` (under ``test``) and ``change``: "lost" or "gained".

    Raises:
        ValueError: a pipeline that ``results`` do not hold.
    """
    chosen = results[(results["train"] == train) & (results["seed"] == results["seed"].min())]
    known = set(chosen["test"])
    if not {train, test} <= known:
        raise ValueError(f"no answers for {train!r} under {test!r}; tested under {sorted(known)}")
    before, after = (
        chosen[chosen["test"] == code].set_index("image").sort_index() for code in (train, test)
    )
    table = before[["label"]].assign(before=before["prediction"], after=after["prediction"])
    table["change"] = np.where(before["correct"], "lost", "gained")
    return table[before["correct"] != after["correct"]].reset_index()
