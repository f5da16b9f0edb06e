"""What it is about a pipeline: main effects and interactions of its choices on the drop.

The twelve pipelines are all combinations of three factors, demosaicing, sharpening and denoising, so that a
matrix is a factorial experiment, twice: by what models were trained under, and by what they are tested under.
Three questions are asked of the drop (a row's diagonal less the cell):

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

from collections.abc import Iterable
from functools import reduce
from itertools import combinations, product

import numpy as np
import pandas as pd

from r2l.drift.paired import diagonal_of, paired_scores
from r2l.drift.statistics import holm

_FACTORS = ("demosaic", "sharpening", "denoising", "variant", "display")
_CODE = r"^(\w+),(\w+),(\w+)(?:@(\w+))?(?:\+(.*))?$"
_Term = tuple[tuple[str, str], ...]  # of (side, factor)
_Effects = tuple[list[tuple[str, str, str]], np.ndarray]


def factorial_effects(
    results: pd.DataFrame, *, value: str | None = None, order: int = 2, level: float = 0.95
) -> pd.DataFrame:
    """Return main effects and interactions of the pipelines' choices on the drop, with intervals.

    At most ``order`` factors interact, 1 to 3; the rest is as in `r2l.drift.summarise`.

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
