"""Scores of the folds of an experiment, and their mean and spread."""

from __future__ import annotations

import pandas as pd

from r2l.training.corpora import Corpus
from r2l.training.metrics import scores


def table_scores(corpus: Corpus, table: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of a table of answers, one row; one for each ``processing`` where it has that."""
    by = "processing" if "processing" in table else "pipeline"
    found = scores(table, len(corpus.classes) or None, by=by)
    found["loss"] = table.groupby(by, sort=False)["loss"].mean()
    return found.reset_index(drop=by == "pipeline")


def describe_scores(corpus: Corpus, table: pd.DataFrame) -> str:
    """Return the first scores of a fold in a line."""
    parts = []
    for row in table_scores(corpus, table).to_dict("records"):
        before = f"{row.pop('processing')} processing, " if "processing" in row else ""
        name, value = next(iter(row.items()))
        parts.append(f"{before}{name} {value:.3f}, loss {row['loss']:.3f}")
    return "; ".join(parts)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread (standard deviation, n - 1) of each score over the folds."""
    keys = ["processing"] if "processing" in scores else []
    long = scores.drop(columns=["fold", "images"]).melt(id_vars=keys, var_name="score")
    found = long.groupby([*keys, "score"], sort=False)["value"]
    table = found.agg(mean="mean", spread="std", lowest="min", highest="max", folds="count")
    return table.reset_index()
