"""What a train x test matrix says, and how surely; and the published matrices beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd

from r2l.drift.statistics import Interval, bootstrap_means, holm, sign_flip_test


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
            ``uniform`` (any class equally likely).
        n_images: number of images.
        n_groups: number of groups.
        n_seeds: number of repetitions that the scores are averaged over.
        level: of the intervals, also 1 - level for ``significant``.
    """

    cells: pd.DataFrame
    totals: pd.DataFrame
    columns: pd.DataFrame
    chance: dict[str, float]
    n_images: int
    n_groups: int
    n_seeds: int
    level: float

    def matrix(self, column: str = "score") -> pd.DataFrame:
        """Return one column of ``cells`` as a matrix, training (rows) by test pipeline."""
        wide = self.cells.pivot(index="train", columns="test", values=column)
        return wide.loc[self.cells["train"].unique(), self.cells["test"].unique()]

    @property
    def worst_column(self) -> str:
        """Test pipeline under which the models of the others lose most."""
        return self.columns["drop"].idxmax()

    def __str__(self) -> str:
        half = (self.matrix("high") - self.matrix("low")) / 2
        marks = self.matrix("significant").map({True: "*", False: " "}.get)
        cells = self.matrix().map("{:.2f}".format) + " ±" + half.map("{:.2f}".format) + marks
        totals = self.totals.map("{:+.3f}".format)
        lines = [f"{name}: {e} ({low} to {high})" for name, e, low, high in totals.itertuples()]
        return "\n".join(
            [
                f"score, rows: trained under, columns: tested under ({self.n_images} images, "
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
    value: str = "correct",
    n_classes: int | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> MatrixSummary:
    """Average the results of `train_test_matrix` by cell and say how sure each number is.

    Args:
        results: one row for each image, ``train``, ``test`` and ``seed``, with ``group``,
            ``label`` and ``value``. Seeds are averaged image by image before anything else.
        value: the per-image number that is averaged, better if higher.
        n_classes: for the uniform chance level; the number of labels that occur, if not given.
        level: of the intervals.
        draws: bootstrap samples.
        seed: of bootstrap and test; equal seeds give equal numbers.

    Raises:
        ValueError: a cell lacks some image, a training pipeline is not among the tests, or there
            is but one test pipeline.
    """
    trains, tests = (np.asarray(results[c].unique(), dtype=object) for c in ("train", "test"))
    if len(tests) < 2:
        raise ValueError(f"nothing to compare: tested under {list(tests)} only")
    if missing := set(trains) - set(tests):
        raise ValueError(f"no diagonal: trained but not tested under {sorted(missing)}")
    wide = results.astype({value: float}).pivot_table(
        index="image", columns=["train", "test"], values=value, aggfunc="mean", sort=False
    )
    wide = wide.reindex(columns=pd.MultiIndex.from_product([trains, tests]))
    if wide.isna().any(axis=None):
        raise ValueError("some cell of the matrix lacks some image; pairs need all of them")
    images = results.drop_duplicates("image").set_index("image").loc[wide.index]
    groups, shares = images["group"].to_numpy(), images["label"].value_counts(normalize=True)
    scores = wide.to_numpy().reshape(len(wide), len(trains), len(tests))
    diagonal = scores[:, np.arange(len(trains)), [list(tests).index(t) for t in trains]]
    differences = scores - diagonal[:, :, None]
    off = trains[:, None] != tests[None, :]

    kwargs = {"level": level, "draws": draws, "seed": seed}
    cells = _cells(trains, tests, scores, differences, off, groups, kwargs)
    columns, totals = _drops(tests, diagonal, differences, off, groups, kwargs)
    return MatrixSummary(
        cells=cells,
        totals=totals,
        columns=columns,
        chance={
            "majority": float(shares.max()),
            "uniform": 1 / (n_classes or len(shares)),
        },
        n_images=len(images),
        n_groups=len(np.unique(groups)),
        n_seeds=results["seed"].nunique(),
        level=level,
    )


def _cells(
    trains: np.ndarray,
    tests: np.ndarray,
    scores: np.ndarray,
    differences: np.ndarray,
    off: np.ndarray,
    groups: np.ndarray,
    kwargs: dict[str, float],
) -> pd.DataFrame:
    n = len(scores)
    cells = pd.MultiIndex.from_product([trains, tests], names=["train", "test"]).to_frame(False)
    score = bootstrap_means(scores.reshape(n, -1), groups, **kwargs)
    paired = bootstrap_means(differences.reshape(n, -1), groups, **kwargs)
    cells[["score", "low", "high"]] = np.stack(score, axis=1)
    cells[["difference", "difference_low", "difference_high"]] = np.stack(paired, axis=1)
    flat = off.ravel()
    # 20 draws for each test and more, or Holm's correction could never be passed.
    draws = max(9999, 100 * flat.sum() - 1)
    p = sign_flip_test(differences[:, off], groups, draws=draws, seed=kwargs["seed"])
    cells.loc[flat, "p"] = p
    cells.loc[flat, "p_holm"] = holm(p)
    cells["significant"] = cells["p_holm"] <= 1 - kwargs["level"] + 1e-12
    return cells


def _drops(
    tests: np.ndarray,
    diagonal: np.ndarray,
    differences: np.ndarray,
    off: np.ndarray,
    groups: np.ndarray,
    kwargs: dict[str, float],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean drops of each column that has cells off the diagonal, and of all."""
    shown = off.any(axis=0)
    by_column = -(differences * off).sum(axis=1)[:, shown] / off.sum(axis=0)[shown]
    columns = _frame(bootstrap_means(by_column, groups, **kwargs), tests[shown])
    columns = columns.rename(columns={"estimate": "drop"}).rename_axis("test")
    spared = off & (tests != columns["drop"].idxmax())
    means = {"diagonal": diagonal.mean(axis=1)}
    for name, chosen in (("drop", off), ("drop without worst column", spared)):
        if chosen.any():
            means[name] = -differences[:, chosen].mean(axis=1)
    values = np.stack([*means.values()], axis=1)
    return columns, _frame(bootstrap_means(values, groups, **kwargs), [*means])


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


def published_matrix(name: str) -> pd.DataFrame:
    """Return a published train (rows) x test (columns) matrix of the twelve static pipelines.

    Source: project page of "From Lens to Logit", the 2021 submission of Oala et al., "Data Models
    for Dataset Drift Controls in Machine Learning With Optical Images", TMLR 2023; means of 5 folds
    read off the figure, 2 decimals. It came without intervals; the standard error of one accuracy
    is about .028.

    Args:
        name: "microscopy" (accuracy on Raw-Microscopy) or "drone" (IoU on Raw-Drone).

    Returns:
        A 12 x 12 frame in [0, 1] whose ``attrs`` hold ``metric`` and ``source``.

    Raises:
        ValueError: no such matrix.
    """
    published = json.loads(files("r2l").joinpath("data/published_matrices.json").read_text("utf-8"))
    names = [key for key, entry in published.items() if isinstance(entry, dict)]
    if name not in names:
        raise ValueError(f"unknown published matrix {name!r}; choose from {', '.join(names)}")
    codes = published["pipelines"]
    frame = pd.DataFrame(
        published[name]["train_x_test"],
        index=pd.Index(codes, name="train"),
        columns=pd.Index(codes, name="test"),
    )
    frame.attrs = {"metric": published[name]["metric"], "source": published["source"]}
    return frame
