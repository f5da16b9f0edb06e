"""Drift synthesis: train under one pipeline, test under another, everything else equal.

The experiment of Oala et al., "Data Models for Dataset Drift Controls in Machine Learning With
Optical Images", TMLR 2023, with what makes its cells comparable: folds that keep groups whole, the
same folds, initial weights and order of images for every pipeline, and the answer to every image
kept, so that two cells are compared image by image (`r2l.drift.matrix.summarise`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from r2l.camera import Camera
from r2l.datasets import RawDataset
from r2l.isp import PIPELINES, develop_all
from r2l.training import (
    Fold,
    RawToLogits,
    channel_statistics,
    evaluate,
    fit,
    group_folds,
    make_classifier,
)
from r2l.training.quiet import progress_bar
from r2l.training.tracking import Run

# (n_classes, mean, std) to a task model; mean and std are those of the images it is trained on.
ModelFactory = Callable[[int, Sequence[float], Sequence[float]], nn.Module]


@dataclass(frozen=True)
class Views:
    """A whole data set developed by several pipelines, in memory.

    Attributes:
        images: display RGB (N, 3, H, W) float32 of each pipeline, by its code, in one order.
        labels: class of each image (N,).
        groups: group of each image (N,).
        classes: names of the classes.
        camera: whose frames they were.
    """

    images: dict[str, Tensor]
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    camera: Camera

    def __len__(self) -> int:
        return len(self.labels)

    def dataset(self, code: str, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return the images ``indices`` as pipeline ``code`` develops them, as a data set."""
        return _View(self, code, np.asarray(indices))


class _View(Dataset):
    """Items ``dict(image=(3, H, W), label=int, meta=dict(image, group, pipeline))``."""

    def __init__(self, views: Views, code: str, indices: np.ndarray) -> None:
        self.views, self.code, self.indices = views, code, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self.indices[position])
        return {
            "image": self.views.images[self.code][index],
            "label": int(self.views.labels[index]),
            "meta": {
                "image": index,
                "group": int(self.views.groups[index]),
                "pipeline": self.code,
            },
        }


def develop_views(
    dataset: RawDataset,
    codes: Sequence[str] = PIPELINES,
    *,
    variant: str = "corrected",
    batch_size: int = 64,
    progress: bool = True,
) -> Views:
    """Develop every frame of ``dataset`` once by each of the pipelines ``codes``.

    Memory: 12 bytes a pixel and pipeline (300 tiles of 64x64 by 4 pipelines: 59 MB).

    Args:
        dataset: frames of one size, with ``camera``, ``labels``, ``groups`` and ``classes``.
        codes: pipelines such as "ma,s,ga".
        variant: "corrected" or "paper", see `StaticISP`.
        batch_size: frames developed at once.
        progress: whether to show a bar.

    Raises:
        ValueError: no frames, no codes, a code named twice, or one that does not exist.
    """
    codes = list(codes)
    if not codes or len(set(codes)) < len(codes) or len(dataset) == 0:
        raise ValueError(f"nothing to develop, or twice: {len(dataset)} frames by {codes}")
    images: dict[str, Tensor] = {}
    with progress_bar(total=len(dataset), desc="developing", disable=not progress) as bar:
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            raw = torch.stack([dataset[i]["raw"] for i in indices])
            for code, view in develop_all(raw, dataset.camera, codes, variant).items():
                if code not in images:
                    images[code] = view.new_empty(len(dataset), *view.shape[1:])
                images[code][indices.start : indices.stop] = view
            bar.update(len(indices))
    return Views(images, dataset.labels, dataset.groups, tuple(dataset.classes), dataset.camera)


def train_test_matrix(
    data: RawDataset | Views,
    codes: Sequence[str] = PIPELINES,
    *,
    model: str | ModelFactory = "SmallResNet",
    n_splits: int = 5,
    seeds: Sequence[int] = (0,),
    variant: str = "corrected",
    run: Run | None = None,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Train one model for each pipeline, fold and seed; test each under all pipelines.

    Within a fold and seed the models of all pipelines start from the same weights and see the
    images in the same order, so that the pipeline is all that differs.

    Args:
        data: raw frames, or `Views` of them (which then must hold all ``codes``).
        codes: pipelines, in the order of the matrix.
        model: a name for `make_classifier`, or a function of number of classes, channel means and
            channel standard deviations that returns a fresh model.
        n_splits: number of folds; every image is tested in one of them.
        seeds: of folds, initial weights and order; with several, everything is repeated.
        variant: "corrected" or "paper", see `StaticISP`; not used with `Views`.
        run: a run (`r2l.training.tracking.track`) to log each model below, as a nested run.
        progress: whether to show bars.
        **settings: further arguments of `fit` (``epochs``, ``batch_size``, ``lr``, ...).

    Returns:
        One row for each image, training pipeline, test pipeline and seed: ``train``, ``test``,
        ``seed``, ``fold``, and what `evaluate` tells: ``image``, ``group``, ``label``,
        ``prediction``, ``correct``, ``p_true``, ``loss``.

    Raises:
        ValueError: as `develop_views` and `group_folds`; or views that lack a code.
    """
    codes = list(codes)
    views = (
        data
        if isinstance(data, Views)
        else develop_views(data, codes, variant=variant, progress=progress)
    )
    if missing := [code for code in codes if code not in views.images]:
        raise ValueError(f"views lack {missing}; they hold {list(views.images)}")
    jobs = list(_jobs(views, codes, n_splits, seeds))
    tables = []
    with progress_bar(total=len(jobs), desc="training", disable=not progress) as bar:
        for code, seed, number, fold in jobs:
            name = f"{code}, fold {number}, seed {seed}"
            place = {"pipeline": code, "fold": number, "seed": seed}
            with run.nested(name, place) if run else nullcontext() as nested:
                trained = _train(views, code, fold, (seed, number), model, settings)
                held_out = {test: views.dataset(test, fold.test) for test in codes}
                table = evaluate(trained, held_out, by="test").assign(
                    train=code, fold=number, seed=seed
                )
                if nested:
                    _log(nested, trained, table)
            tables.append(table)
            bar.set_postfix_str(name, refresh=False)
            bar.update()
    first = ["train", "test", "seed", "fold"]
    results = pd.concat(tables, ignore_index=True)
    return results[first + [c for c in results.columns if c not in first]]


def _jobs(
    views: Views, codes: Sequence[str], n_splits: int, seeds: Sequence[int]
) -> Iterator[tuple[str, int, int, Fold]]:
    for seed in seeds:
        folds = group_folds(views.labels, views.groups, n_splits, seed)
        for (number, fold), code in product(enumerate(folds), codes):
            yield code, seed, number, fold


def _train(
    views: Views,
    code: str,
    fold: Fold,
    place: tuple[int, int],
    model: str | ModelFactory,
    settings: dict[str, Any],
) -> RawToLogits:
    factory = partial(make_classifier, model) if isinstance(model, str) else model
    mean, std = channel_statistics(views.images[code][fold.train])
    return fit(
        partial(factory, len(views.classes), mean, std),
        views.dataset(code, fold.train),
        # Mixed, so that fold 1 of seed 0 does not share its draws with fold 0 of seed 1.
        seed=int(np.random.SeedSequence(place).generate_state(1)[0]),
        progress=False,
        **settings,
    )


def _log(run: Run, trained: RawToLogits, table: pd.DataFrame) -> None:
    for epoch, row in trained.history.iterrows():
        run.metrics(row.to_dict(), step=epoch)
    run.metrics({f"accuracy on {t}": v for t, v in table.groupby("test")["correct"].mean().items()})
