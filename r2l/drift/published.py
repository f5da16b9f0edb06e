"""The published matrices, which the project's own are shown beside."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pandas as pd


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
    return _frame(name, "train_x_test", "pipelines", "test")


def published_corruptions(name: str) -> pd.DataFrame:
    """Return the published scores of models under post-hoc corruptions of severity 3.

    Source and caveats as `published_matrix`; the severities are those made for images of 32 x 32 pixels.

    Args:
        name: "microscopy" or "drone".

    Returns:
        A 12 x 11 frame in [0, 1]: pipeline that a model was trained and tested under (rows) by corruption,
        of which the first is "identity", none.

    Raises:
        ValueError: no such matrix.
    """
    return _frame(name, "pipeline_x_corruption", "corruptions", "corruption")


def _frame(name: str, table: str, columns: str, title: str) -> pd.DataFrame:
    published: dict[str, Any] = json.loads(
        files("r2l").joinpath("data/published_matrices.json").read_text("utf-8")
    )
    names = [key for key, entry in published.items() if isinstance(entry, dict)]
    if name not in names:
        raise ValueError(f"unknown published matrix {name!r}; choose from {', '.join(names)}")
    frame = pd.DataFrame(
        published[name][table],
        index=pd.Index(published["pipelines"], name="train"),
        columns=pd.Index(published[columns], name=title),
    )
    frame.attrs = {"metric": published[name]["metric"], "source": published["source"]}
    return frame
