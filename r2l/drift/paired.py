"""Per-image answers of several cells, or arms of an experiment, side by side: where all comparisons start.

`paired_summary` sets arms against a baseline, `factorial_effects` asks what it is about a pipeline.
The twelve pipelines are all combinations of three factors, demosaicing, sharpening and denoising, so that a
matrix is a factorial experiment, twice: by what models were trained under, and by what they are tested
under. Three questions are asked of the drop (a row's diagonal less the cell):

- ``test``, ``train``: by how much do choices of the tested (or trained) pipeline raise the drop above its
  mean? Effects sum to zero over a factor's levels; the effect of ``ma x s`` is what the two do together
  beyond what each does alone. Variants (``bi,s,me@camera``) and display stages (``bi,s,me+jpeg:75``) are
  factors too, where they differ. ``train and test``: what a trained and a tested choice of one factor do
  together, such as ``bi x me``.
- ``change``: by how much does it raise the drop that the two pipelines *differ* in demosaicing, averaged over
  whether they differ in the others; and that they differ in two factors, beyond the two alone?

Least squares in sum-to-zero coding (for a full cross: differences of marginal means), with intervals as all
else (Montgomery, "Design and Analysis of Experiments", chapter 5).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product

import numpy as np
import pandas as pd

from r2l.drift.statistics import Jackknife, crossed_means, crossed_ratios, holm

_SCORE_NAMES = {"correct": "accuracy", "iou": "IoU"}
_FACTORS = ("demosaic", "sharpening", "denoising", "variant", "display")
_CODE = r"^(\w+),(\w+),(\w+)(?:@(\w+))?(?:\+(.*))?$"
_Term = tuple[tuple[str, str], ...]  # of (side, factor)
_Effects = tuple[list[tuple[str, str, str]], np.ndarray]


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
    parts = ["intersection", "union"] if value == "iou" and "intersection_0" not in results else [value]
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
    if answers.empty:
        raise ValueError("no answers to compare: the table has no rows")
    parts = [
        _compare_arms(part, arm, baseline, value, level).assign(**dict(zip(by, names, strict=True)))
        for names, part in answers.groupby(by, sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    compared = table[arm] != baseline
    table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"])
    table["significant"] = table["p_holm"] <= 1 - level
    return table[[*by, arm, *table.columns.drop([*by, arm])]]


def score_table(
    scores: np.ndarray, moved: np.ndarray, groups: np.ndarray, level: float, name: str
) -> pd.DataFrame:
    """Return the mean of each column of scores and of differences, (N, K) or (S, N, K), with intervals.

    One row a column: ``score``, ``low``, ``high``; of ``moved`` what ``name`` says, its ``_low`` and
    ``_high``, and ``p``.
    """
    score = crossed_ratios(scores, np.ones_like(scores, dtype=float), groups, level).shares()
    names = (name, f"{name}_low", f"{name}_high", "p")
    change = dict(zip(names, crossed_means(moved, groups, level), strict=True))
    return pd.DataFrame({"score": score.estimate, "low": score.low, "high": score.high} | change)


def _compare_arms(answers: pd.DataFrame, arm: str, baseline: str, value: str, level: float) -> pd.DataFrame:
    # By another name an IoU, too, is a number of each image.
    paired = paired_scores(answers.assign(_score=answers[value]), arm, "_score")
    if len(paired.numerators) < answers["seed"].nunique():
        raise ValueError("some arm lacks some image or seed; pairs need all of them")
    if baseline not in paired.cells:
        raise ValueError(f"no {baseline!r} among the arms {list(paired.cells)}")
    scores, groups = paired.numerators, paired.groups
    moved = scores - scores[..., [paired.cells.get_loc(baseline)]]
    table = score_table(scores, moved, groups, level, "difference")
    table.insert(0, arm, paired.cells)
    table.loc[table[arm] == baseline, ["difference_low", "difference_high", "p"]] = 0, 0, np.nan
    seeds, images, _ = scores.shape
    return table.assign(images=images, groups=len(np.unique(groups)), seeds=seeds)


def factorial_effects(
    results: pd.DataFrame, *, value: str | None = None, order: int = 2, level: float = 0.95
) -> pd.DataFrame:
    """Return main effects and interactions of the pipelines' choices on the drop, with intervals.

    At most ``order`` factors interact, 1 to 3; the rest is as in `r2l.drift.summarise`.

    >>> codes = ["bi,s,ga", "ma,s,ga"]
    >>> rows = [(a, b, 0, i, i, a == b) for a in codes for b in codes for i in range(4)]
    >>> table = pd.DataFrame(rows, columns=["train", "test", "seed", "image", "group", "correct"])
    >>> factorial_effects(table, order=1).query("side == 'change'")["estimate"].round(3).tolist()
    [1.0]

    Returns:
        One row an effect: ``side`` ("test", "train", "train and test", "change"), ``term`` (the factors),
        ``level`` (their values, such as "ma x s"), ``estimate``, ``low``, ``high``, in units of the score;
        positive raises the drop. Each interval is for itself, so that of twenty effects that are none one
        leaves out zero: ``p_holm`` is adjusted for all rows, ``significant`` what remains.

    Raises:
        ValueError: as `paired_scores`; codes that are not three choices; or choices that are not crossed
            enough to tell such effects apart.
    """
    paired = paired_scores(results, ["train", "test"], value)
    names, contrasts = _effect_contrasts(paired.cells.to_frame(index=False), order)
    interval = paired.jackknife(level).interval(lambda scores: scores @ contrasts.T)
    table = names.assign(**interval._asdict(), p_holm=holm(interval.p))
    return table.assign(significant=table["p_holm"] <= 1 - level)


def _effect_contrasts(cells: pd.DataFrame, order: int = 2) -> tuple[pd.DataFrame, np.ndarray]:
    """Return ``side``, ``term`` and ``level`` of each of M effects, and its weights of K scores, (M, K)."""
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}, expected 1, 2 or 3")
    own = diagonal_of(pd.MultiIndex.from_frame(cells[["train", "test"]]))
    # Turns scores into drops: the row's diagonal less the cell.
    lost = np.eye(len(cells))[own] - np.eye(len(cells))
    sides = {side: _choices(cells[side]) for side in ("train", "test")}
    tables = [_level_effects(sides, order), _change_effects(sides, order)]
    names = pd.DataFrame([name for rows, _ in tables for name in rows], columns=["side", "term", "level"])
    return names, np.concatenate([matrix for _, matrix in tables]) @ lost


def _choices(codes: Iterable[str]) -> pd.DataFrame:
    parts = pd.Series([str(code) for code in codes]).str.extract(_CODE).fillna("usual")
    if odd := sorted({code for code, known in zip(codes, parts[0] != "usual", strict=True) if not known}):
        raise ValueError(f"expected pipelines such as 'bi,s,me' or 'bi,s,me@camera+jpeg:75', got {odd}")
    return parts.set_axis(_FACTORS, axis=1)


def _level_effects(sides: dict[str, pd.DataFrame], order: int) -> _Effects:
    """Return names and contrasts (effects, K) of the choices on either side."""
    varied = [f for f in _FACTORS if all(side[f].nunique() > 1 for side in sides.values())]
    terms: list[_Term] = []
    for side in ("test", "train"):
        for size in range(1, order + 1):
            terms += [tuple((side, f) for f in some) for some in combinations(varied, size)]
    if order > 1:
        terms += [(("train", factor), ("test", factor)) for factor in varied]
    columns, codings = [np.ones((len(sides["test"]), 1))], []
    for term in terms:
        numbered = [pd.factorize(sides[side][factor]) for side, factor in term]
        # Of each level (levels, levels - 1), whose columns sum to zero.
        codes = [np.vstack([np.eye(n), -np.ones(n)]) for n in (len(levels) - 1 for _, levels in numbered)]
        rows = [code[which] for code, (which, _) in zip(codes, numbered, strict=True)]
        columns.append(reduce(lambda a, b: np.einsum("ki,kj->kij", a, b).reshape(len(a), -1), rows))
        codings.append((codes, [levels for _, levels in numbered]))
    solution = _solve(np.hstack(columns))
    blocks = np.split(solution, np.cumsum([block.shape[1] for block in columns])[:-1])[1:]
    names, contrasts = [], [np.empty((0, len(sides["test"])))]
    for term, (codes, levels), block in zip(terms, codings, blocks, strict=True):
        contrasts.append(reduce(np.kron, codes) @ block)
        label = " and ".join(dict.fromkeys(side for side, _ in term))
        title = " x ".join(dict.fromkeys(factor for _, factor in term))
        names += [(label, title, " x ".join(some)) for some in product(*levels)]
    return names, np.concatenate(contrasts)


def _change_effects(sides: dict[str, pd.DataFrame], order: int) -> _Effects:
    """Return names and contrasts of whether train and test differ in a factor, coded -1/2 and 1/2."""
    differs = {f: (sides["train"][f] != sides["test"][f]).to_numpy() - 0.5 for f in _FACTORS}
    varied = [f for f in _FACTORS if np.ptp(differs[f]) > 0]
    terms = [t for size in range(1, order + 1) for t in combinations(varied, size)]
    # Twice the product: the effect of a change where the other is there, less where it is not, halved.
    columns = [np.prod([differs[f] for f in t], axis=0) * 2 ** (len(t) - 1) for t in terms]
    design = np.stack([np.ones(len(sides["test"])), *columns], axis=1)
    names = [("change", " x ".join(t), "differs" if len(t) == 1 else "all differ") for t in terms]
    return names, _solve(design)[1:]


def _solve(design: np.ndarray) -> np.ndarray:
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            "these pipelines don't cross their choices enough to tell the effects apart; "
            "use all combinations of some choices, or a lower order"
        )
    return np.linalg.pinv(design)
