"""Asking a model about images that lie in memory, with nothing between the two.

`r2l.training.evaluate` does the same through loaders, item by item, which costs more than a small model
itself does. The answers are equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from r2l.datasets.frames import Frames
from r2l.training import RawToLogits


@contextmanager
def ready(module: RawToLogits, device: str | None = None) -> Iterator[torch.device]:
    """Put a model into eval mode and onto a device, by default where it is; and back at the end."""
    home = next((p.device for p in module.parameters()), torch.device("cpu"))
    place = torch.device(device) if device else home
    training = module.training
    try:
        module.to(place).eval()
        yield place
    finally:
        module.to(home).train(training)


def ask(
    module: RawToLogits,
    images: Tensor,
    views: Frames,
    indices: np.ndarray,
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> dict[str, np.ndarray]:
    """Return a model's answers to ``images[indices]``, a column for each kind of number.

    Args:
        module: what `fit` returned, made `ready`.
        images: display RGB of all images of ``views`` (N, 3, H, W), developed or changed in any way.
        views: whose labels or masks and groups they have.
        indices: which images, (M,).
        batch_size: images a step.
        device: where the model is.

    Returns:
        ``image``, ``group``, and what the task tells of each image, as `r2l.training.evaluate` does; for
        masks also ``pixels``. Each (M,).

    Raises:
        ValueError: no indices, or another number of images than of views.
    """
    indices = np.asarray(indices)
    if len(images) != len(views) or len(indices) == 0:
        raise ValueError(
            f"{len(indices)} of {len(images)} images to ask about, {len(views)} labelled"
        )
    place = torch.device(device or "cpu")
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    with torch.inference_mode():
        answers = [module.predict_step(_batch(images, views, b, place)) for b in batches]
    columns = {"image": indices, "group": np.asarray(views.groups)[indices]}
    columns |= {
        name: torch.cat([answer[name] for answer in answers]).cpu().numpy()
        for name in answers[0]
        if name != "meta"
    }
    if views.task == "segmentation":
        columns["pixels"] = np.full(len(indices), views.truth[0].numel())
        return columns
    columns["correct"] = columns["prediction"] == columns["label"]
    order = ("image", "group", "label", "prediction", "correct", "p_true", "loss")
    return {name: columns[name] for name in order}


def as_table(parts: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """Lay parts below one another: of each what is the same in all its rows, and its columns.

    At once, since a frame for each cell of a matrix costs more than a small model's answers.
    """
    lengths = [len(next(iter(columns.values()))) for _, columns in parts]
    head = {name: np.repeat([place[name] for place, _ in parts], lengths) for name in parts[0][0]}
    body = {name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]}
    return pd.DataFrame({**head, **body})


def _batch(
    images: Tensor, views: Frames, chosen: np.ndarray, device: torch.device
) -> dict[str, Any]:
    # Neighbours are a slice, which is not copied.
    together = len(chosen) == chosen[-1] - chosen[0] + 1 and (np.diff(chosen) == 1).all()
    where = slice(int(chosen[0]), int(chosen[-1]) + 1) if together else torch.from_numpy(chosen)
    if views.task != "segmentation":
        answer = {"label": views.truth[where].to(device)}
    else:
        answer = {"mask": views.truth[where].to(device)}
    return {"image": images[where].to(device), **answer, "meta": {}}
