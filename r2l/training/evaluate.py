"""Asking a trained model, image by image and domain by domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from r2l.progress import quiet_lightning
from r2l.training.fit import make_trainer
from r2l.training.module import RawToLogits


def evaluate(
    model: nn.Module,
    data: Dataset | DataLoader | Mapping[str, Dataset],
    by: str = "pipeline",
    *,
    task: str = "classification",
    batch_size: int = 128,
    num_workers: int = 0,
    **trainer: Any,
) -> pd.DataFrame:
    """Ask a model for its answer to every image, in every domain.

    Args:
        model: what `fit` returned, or any module from ``raw`` (or ``image``) to logits.
        data: a data set (or a loader, of which only data set and batch size are used: the order is
            always that of the data set), or a mapping from the name of a domain to its data set.
            ``meta`` of an item may hold ``image`` (its identity over all domains; otherwise its
            index) and ``group`` (otherwise every image is its own).
        by: name of the column that tells the domain. Without a mapping it is read from ``meta``.
        task: "classification", "regression" or "segmentation", for a model that `fit` did not return;
            one that it did knows its own.
        batch_size: images a step; not used with a loader.
        num_workers: processes that load data.
        **trainer: further arguments of `lightning.Trainer`.

    Returns:
        One row for each image and domain, so that every comparison can be paired: ``image``, ``group``,
        the answers, ``loss`` (as the model's loss is, of the image), and the column ``by``. Answers are

        - classification: ``label``, ``prediction``, ``correct`` (bool), ``p_true`` (probability of the
          true class, [0, 1]);
        - regression: ``target``, ``prediction``; of several numbers ``target_0``, ..., ``prediction_0``, ...;
        - segmentation (foreground where the logit is positive): ``iou`` ([0, 1]; 1 where nothing is there
          and nothing was found), ``intersection`` and ``union`` (pixels), ``empty`` (bool: the mask has no
          foreground), ``false_positives`` (pixels found that are not there).

    Raises:
        ValueError: no domains, no images, ``meta`` without ``by``, or items that don't fit the task.
    """
    domains = data if isinstance(data, Mapping) else {None: data}
    if not domains or any(len(getattr(d, "dataset", d)) == 0 for d in domains.values()):
        raise ValueError("nothing to evaluate: no domains, or a domain without images")
    module = model if isinstance(model, RawToLogits) else RawToLogits(model, task=task)
    loaders = [_ordered(d, batch_size, num_workers) for d in domains.values()]
    with quiet_lightning():
        outputs = make_trainer(**trainer).predict(module, loaders)
    module.trainer = None
    outputs = outputs if len(loaders) > 1 else [outputs]
    tables = [
        _table(batches, _image_ids(loader.dataset), by, domain)
        for domain, loader, batches in zip(domains, loaders, outputs, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def _ordered(data: Dataset | DataLoader, batch_size: int, num_workers: int) -> DataLoader:
    # A generator of its own, since a loader draws from torch's otherwise, shuffling or not.
    options = {"num_workers": num_workers, "generator": torch.Generator()}
    if isinstance(data, DataLoader):
        batch_size = data.batch_size or batch_size
        options |= {"num_workers": data.num_workers, "collate_fn": data.collate_fn}
        data = data.dataset
    return DataLoader(data, batch_size, **options)


def _image_ids(data: Dataset) -> list[int]:
    """Indices into the data set underneath, so that subsets of one data set can be paired."""
    if isinstance(data, Subset):
        below = _image_ids(data.dataset)
        return [below[i] for i in data.indices]
    return list(range(len(data)))


def _table(
    batches: list[dict[str, Any]], ids: list[int], by: str, domain: str | None
) -> pd.DataFrame:
    """Lay the batches of one domain below one another, one row an image."""
    meta = [batch.pop("meta") for batch in batches]
    columns = {name: torch.cat([b[name] for b in batches]).cpu().numpy() for name in batches[0]}
    answers = list(columns)
    for name, default in (("image", ids), ("group", ids), (by, domain)):
        known = name in meta[0] and not (name == by and domain is not None)
        values = [v for m in meta for v in _plain(m[name])] if known else default
        if values is None:
            raise ValueError(f"items carry no meta[{by!r}]; pass a mapping from {by} to data set")
        columns[name] = values
    return pd.DataFrame(columns)[["image", "group", *answers, by]]


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor) else list(values)
