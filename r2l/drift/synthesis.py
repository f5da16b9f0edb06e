"""Drift synthesis: train under one pipeline, test under another, everything else equal.

The experiment of Oala et al., "Data Models for Dataset Drift Controls in Machine Learning With
Optical Images", TMLR 2023, with what makes its cells comparable: folds that keep groups whole, the
same folds, initial weights and order of images for every pipeline, and the answer to every image
kept, so that two cells are compared image by image (`r2l.drift.matrix.summarise`).

`train_test_matrix` does all of it; `train_models` and `ask_models` are its halves, for those who want
to test the same models under something else too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from r2l.datasets import RawDataset
from r2l.datasets.frames import Frames, develop_views
from r2l.drift.asking import as_table, ask, ready
from r2l.drift.paired import paired_scores
from r2l.isp import PIPELINES
from r2l.progress import progress_bar
from r2l.training import Fold, RawToLogits, channel_statistics, fit, group_folds

if TYPE_CHECKING:
    from r2l.training.tracking import Run

# (n_classes, mean, std) to a task model; mean and std are those of the images it is trained on.
ModelFactory = Callable[[int, Sequence[float], Sequence[float]], nn.Module]


@dataclass(frozen=True)
class Trained:
    """A trained model, and which images it may be asked about.

    Attributes:
        module: from images to answers, in eval mode.
        code: pipeline that it was trained under.
        test: indices of the images that it has not seen.
        seed: of the repetition.
        fold: number of the fold.
    """

    module: RawToLogits
    code: str
    test: np.ndarray
    seed: int = 0
    fold: int = 0


def train_test_matrix(
    data: RawDataset | Frames,
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
        data: raw frames, or `Frames` of them (which then must hold all ``codes``). With masks the task is
            segmentation, else classification.
        codes: pipelines, in the order of the matrix.
        model: a name for `make_classifier` (for segmentation architecture and encoder for
            `make_segmenter`, such as "unet/resnet18"), or a function of number of classes, channel means
            and channel standard deviations that returns a fresh model.
        n_splits: number of folds; every image is tested in one of them.
        seeds: of folds, initial weights and order; with several, everything is repeated.
        variant: "corrected" or "paper", see `StaticISP`; not used with `Frames`.
        run: a run (`r2l.training.tracking.track`) to log each model below, as a nested run.
        progress: whether to show bars.
        **settings: further arguments of `fit` (``epochs``, ``batch_size``, ``lr``, ...).

    Returns:
        One row for each image, training pipeline, test pipeline and seed: ``train``, ``test``,
        ``seed``, ``fold``, and what `r2l.training.evaluate` tells, for classes: ``image``, ``group``,
        ``label``, ``prediction``, ``correct``, ``p_true``, ``loss``; for masks: ``image``, ``group``,
        ``iou``, ``intersection``, ``union``, ... and ``pixels`` (of the image).

    Raises:
        ValueError: as `develop_views` and `group_folds`; or views that lack a code.
    """
    views = _views(data, codes, variant, progress)
    tables = []
    for trained, nested in _trained(views, codes, model, n_splits, seeds, run, progress, settings):
        tables.append(ask_models([trained], views, codes, progress=False))
        if nested:
            _log(nested, trained.module, tables[-1])
    return pd.concat(tables, ignore_index=True)


def train_models(
    data: RawDataset | Frames,
    codes: Sequence[str] = PIPELINES,
    *,
    model: str | ModelFactory = "SmallResNet",
    n_splits: int = 5,
    seeds: Sequence[int] = (0,),
    variant: str = "corrected",
    progress: bool = True,
    **settings: Any,
) -> list[Trained]:
    """Train one model for each pipeline, fold and seed, and keep them; arguments as `train_test_matrix`.

    Memory: twelve pipelines and five folds of a ResNet18 take 2.7 GB.
    """
    views = _views(data, codes, variant, progress)
    jobs = _trained(views, codes, model, n_splits, seeds, None, progress, settings)
    return [trained for trained, _ in jobs]


def ask_models(
    models: Sequence[Trained],
    data: RawDataset | Frames,
    codes: Sequence[str] = PIPELINES,
    *,
    variant: str = "corrected",
    batch_size: int = 128,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask each model about the images that it has not seen, as each of the pipelines develops them.

    Every frame is developed once by each pipeline, however many models there are, and batches are
    slices of what was developed, so that little is done but ask the models.

    Args:
        models: what `train_models` returned, or `Trained` made by hand.
        data: raw frames, or `Frames` of them.
        codes: pipelines, in the order of the matrix.
        variant: "corrected" or "paper", see `StaticISP`; not used with `Frames`.
        batch_size: images a step.
        device: where to ask, such as "cuda"; by default where each model is.
        progress: whether to show a bar.

    Returns:
        As `train_test_matrix`.

    Raises:
        ValueError: no models, or as `develop_views`.
    """
    if not models:
        raise ValueError("no models to test")
    views = _views(data, codes, variant, progress)
    parts = []
    with progress_bar(total=len(models), desc="testing", disable=not progress) as bar:
        for trained in models:
            with ready(trained.module, device) as place:
                for code in codes:
                    cell = {"train": trained.code, "test": code}
                    cell |= {"seed": trained.seed, "fold": trained.fold}
                    images = views.images[code]
                    answers = ask(trained.module, images, views, trained.test, batch_size, place)
                    parts.append((cell, answers))
            bar.update()
    return as_table(parts)


def _views(data: RawDataset | Frames, codes: Sequence[str], variant: str, progress: bool) -> Frames:
    if not isinstance(data, Frames):
        return develop_views(data, codes, variant=variant, progress=progress)
    if missing := [code for code in codes if code not in data.images]:
        raise ValueError(f"views lack {missing}; they hold {list(data.images)}")
    return data


def _trained(
    views: Frames,
    codes: Sequence[str],
    model: str | ModelFactory,
    n_splits: int,
    seeds: Sequence[int],
    run: Run | None,
    progress: bool,
    settings: dict[str, Any],
) -> Iterator[tuple[Trained, Run | None]]:
    """Train one model after the other; each with the run to log it to, open until the next is asked for."""
    jobs = list(_jobs(views, codes, n_splits, seeds))
    with progress_bar(total=len(jobs), desc="training", disable=not progress) as bar:
        for code, seed, number, fold in jobs:
            name = f"{code}, fold {number}, seed {seed}"
            place = {"pipeline": code, "fold": number, "seed": seed}
            with run.nested(name, place) if run else nullcontext() as nested:
                module = _train(views, code, fold, (seed, number), model, settings)
                yield Trained(module, code, fold.test, seed, number), nested
            bar.set_postfix_str(name, refresh=False)
            bar.update()


def _jobs(
    views: Frames, codes: Sequence[str], n_splits: int, seeds: Sequence[int]
) -> Iterator[tuple[str, int, int, Fold]]:
    for seed in seeds:
        folds = group_folds(views.labels, views.groups, n_splits, seed)
        for (number, fold), code in product(enumerate(folds), codes):
            yield code, seed, number, fold


def _train(
    views: Frames,
    code: str,
    fold: Fold,
    place: tuple[int, int],
    model: str | ModelFactory,
    settings: dict[str, Any],
) -> RawToLogits:
    mean, std = channel_statistics(views.images[code][fold.train])
    task = {} if views.task != "segmentation" else {"task": "segmentation"}
    return fit(
        _factory(model, views, mean, std),
        views.view(code).subset(fold.train),
        # Mixed, so that fold 1 of seed 0 does not share its draws with fold 0 of seed 1.
        seed=int(np.random.SeedSequence(place).generate_state(1)[0]),
        progress=False,
        **{**task, **settings},
    )


def _factory(
    model: str | ModelFactory, views: Frames, mean: Sequence[float], std: Sequence[float]
) -> Callable[[], nn.Module]:
    from r2l.training import models

    if not isinstance(model, str):
        return partial(model, len(views.classes), mean, std)
    if views.task != "segmentation":
        return partial(models.make_classifier, model, len(views.classes), mean, std)
    architecture, _, encoder = model.partition("/")
    return partial(models.make_segmenter, architecture, encoder or "resnet34", mean, std)


def _log(run: Run, trained: RawToLogits, table: pd.DataFrame) -> None:
    for epoch, row in trained.history.iterrows():
        run.metrics(row.to_dict(), step=epoch)
    paired = paired_scores(table, "test")
    name = paired.metric
    shares = paired.numerators.sum(axis=0) / paired.denominators.sum(axis=0)
    run.metrics({f"{name} on {t}": v for t, v in zip(paired.cells, shares, strict=True)})
