"""The arms of an experiment beside its baseline, over images and training runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from r2l.drift.statistics import crossed_means, crossed_ratios, holm


def paired_summary(
    answers: pd.DataFrame,
    *,
    arm: str,
    baseline: str,
    by: str,
    value: str = "correct",
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare the arms of an experiment with a baseline, image by image and seed by seed.

    Args:
        answers: one row for each image, seed, ``arm`` and ``by``, with ``group`` and ``value``.
        arm: column that tells what was done.
        baseline: the arm that the others are compared with.
        by: column of the domains; comparisons stay within one.
        value: the per-image number, better if higher; True and False count as 1 and 0.
        level: of the intervals; 1 - level is that of the tests.

    Returns:
        One row for each domain and arm: ``score`` with ``low`` and ``high``; ``difference`` to the
        baseline with ``difference_low``, ``difference_high``, ``p`` and ``p_holm`` (Holm's correction
        over all rows that are not the baseline); ``significant``; ``images``, ``groups``, ``seeds``.

    Raises:
        ValueError: no such column or baseline, or an arm that lacks an image.
    """
    if missing := {arm, by, value, "image", "group", "seed"} - set(answers.columns):
        raise ValueError(f"the table lacks {sorted(missing)}; it has {list(answers.columns)}")
    arms = list(answers[arm].unique())
    if baseline not in arms:
        raise ValueError(f"no {baseline!r} among the arms {arms}")
    parts = [
        _summarise_domain(part, arm, arms, baseline, value, level).assign(**{by: name})
        for name, part in answers.groupby(by, sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    compared = table[arm] != baseline
    table["p_holm"] = np.nan
    table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"].to_numpy())
    table["significant"] = table["p_holm"] <= 1 - level
    return table[[by, arm, *[c for c in table.columns if c not in (by, arm)]]]


def _summarise_domain(
    part: pd.DataFrame, arm: str, arms: list[str], baseline: str, value: str, level: float
) -> pd.DataFrame:
    wide = part.astype({value: float}).pivot_table(
        index="image", columns=["seed", arm], values=value, aggfunc="mean", sort=False
    )
    seeds = list(part["seed"].unique())
    present = [a for a in arms if a in set(part[arm])]
    wide = wide.reindex(columns=pd.MultiIndex.from_product([seeds, present]))
    if wide.isna().any(axis=None):
        raise ValueError("some arm lacks some image or seed; pairs need all of them")
    values = wide.to_numpy().reshape(len(wide), len(seeds), len(present)).transpose(1, 0, 2)
    groups = part.drop_duplicates("image").set_index("image").loc[wide.index, "group"].to_numpy()
    score = crossed_ratios(values, np.ones_like(values), groups, level).shares()
    reference = values[..., [present.index(baseline)]]
    paired = crossed_means(values - reference, groups, level)
    table = pd.DataFrame({arm: present})
    table[["score", "low", "high"]] = np.stack(score[:3], axis=1)
    table[["difference", "difference_low", "difference_high", "p"]] = np.stack(paired, axis=1)
    table.loc[table[arm] == baseline, ["difference_low", "difference_high", "p"]] = 0, 0, np.nan
    return table.assign(images=len(wide), groups=len(np.unique(groups)), seeds=len(seeds))
