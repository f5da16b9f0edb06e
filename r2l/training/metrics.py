"""Scores of a table of predictions, computed by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.functional.classification import multiclass_confusion_matrix


def classification_metrics(n_classes: int) -> MetricCollection:
    """Return accuracy, balanced accuracy (mean recall of the classes) and macro F1, each in [0, 1].

    Call it with predictions and labels (N,). Classes that occur in neither do not count.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(n_classes, average="micro"),
            "balanced_accuracy": MulticlassRecall(n_classes, average="macro"),
            "macro_f1": MulticlassF1Score(n_classes, average="macro"),
        }
    )


def _columns(table: pd.DataFrame) -> tuple[Tensor, Tensor]:
    return (torch.from_numpy(table[c].to_numpy(copy=True)) for c in ("prediction", "label"))


def scores(table: pd.DataFrame, n_classes: int, by: str | list[str] = "pipeline") -> pd.DataFrame:
    """Return one row of scores for each value of the column(s) ``by``.

    Args:
        table: what `evaluate` returns; columns ``label``, ``prediction`` and ``by`` are used.
        n_classes: number of classes.
        by: column, or columns, that name the domain.

    Returns:
        A frame indexed by the domain, in order of first appearance, with ``accuracy``,
        ``balanced_accuracy``, ``macro_f1`` (all in [0, 1]) and ``images`` (how many).
    """
    metrics = classification_metrics(n_classes)
    rows = {}
    for domain, part in table.groupby(by, sort=False):
        values = metrics(*_columns(part))
        rows[domain] = {name: value.item() for name, value in values.items()}
        rows[domain]["images"] = len(part)
        metrics.reset()
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.names = [by] if isinstance(by, str) else by
    return frame


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Count the images of each true class (rows) by the class that was answered (columns)."""
    counts = multiclass_confusion_matrix(*_columns(table), num_classes=len(classes))
    return pd.DataFrame(
        counts.numpy(),
        index=pd.Index(classes, name="label"),
        columns=pd.Index(classes, name="prediction"),
    )
