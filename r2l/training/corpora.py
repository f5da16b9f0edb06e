"""The data set of an experiment, by its name: what to train on, how to split it, what task it sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, Subset

from r2l.camera import Camera
from r2l.datasets import (
    DatasetError,
    RawDataset,
    RawDrone,
    RawFolder,
    RawMicroscopy,
    SyntheticDrone,
    SyntheticMicroscopy,
)
from r2l.datasets.splits import Fold, group_folds, published_resampling
from r2l.options import Options
from r2l.rawfile import RawLayout, load_camera

#: Images of a test run.
FEW = 32


@dataclass(frozen=True)
class Corpus:
    """A data set with what an experiment has to know about it.

    Attributes:
        data: items ``dict(raw (1, H, W) raw domain, label int | mask (H, W) | target float, meta)``.
        task: "classification", "segmentation" or "regression".
        classes: names of the labels, or of the values in a mask; none for regression.
        labels: (N,) what splits are stratified by.
        groups: (N,) what they keep on one side.
        names: (N,) a name of each image, such as its file's.
        camera: whose frames they are.
    """

    data: Dataset
    task: str
    classes: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    names: np.ndarray
    camera: Camera

    def __len__(self) -> int:
        return len(self.labels)

    def few(self, n: int = FEW) -> Corpus:
        """Return a corpus of n images, from as many groups as possible."""
        rank = pd.Series(self.groups).groupby(self.groups).cumcount().to_numpy()
        chosen = np.sort(np.lexsort((np.arange(len(rank)), rank))[:n])
        parts = (self.labels[chosen], self.groups[chosen], self.names[chosen])
        return Corpus(
            Subset(self.data, chosen.tolist()), self.task, self.classes, *parts, self.camera
        )

    def fingerprint(self) -> str:
        """Return a short hash of names, labels and groups: other data, another hash."""
        parts = [self.names.tolist(), self.labels.tolist(), self.groups.tolist(), self.classes]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class _Targets(Dataset):
    """The items of a data set with a number in the place of the label."""

    def __init__(self, data: RawDataset, values: np.ndarray) -> None:
        self.data, self.values = data, values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.data[index])
        item.pop("label")
        return {**item, "target": torch.tensor(self.values[index], dtype=torch.float32)}


def open_corpus(options: Options) -> Corpus:
    """Return the data set that the options name; its files are found, not yet read.

    Raises:
        DatasetNotFoundError: it is not there; says how to get it.
        DatasetError: labels, masks and images don't fit, or labels are no numbers where they have to be.
        ValueError: an intensity that was not recorded, or an unknown camera.
    """
    data = _open(options)
    task = options.known_task
    if task == "auto":
        task = _task_of_folder(options, data)
    labels, classes = np.asarray(data.labels), tuple(data.classes)
    if task == "regression":
        values = _numbers(options, data)[labels]
        data, labels, classes = _Targets(data, values), _tertiles(values), ()
    groups, camera = _inner(data).groups, _inner(data).camera
    corpus = Corpus(data, task, classes, labels, np.asarray(groups), _names(data), camera)
    return corpus.few() if options.test_run and len(corpus) > FEW else corpus


def _open(options: Options) -> RawDataset:
    name, iso, root = options.dataset, options.iso, options.root
    if name == "RawFolder":
        camera = load_camera(options.camera) if options.camera else None
        layout = RawLayout.from_file(options.layout) if options.layout else None
        given = {"camera": camera, "layout": layout, "crop": options.crop}
        return RawFolder(root, options.labels, options.masks, split="all", **given)
    task = options.known_task
    if name == "Microscopy":
        return RawMicroscopy(root, "all", iso)
    if name in ("Drone", "DroneSegmentation"):
        return RawDrone(root, "all", iso, task=task)
    size = {} if options.image_size is None else {"size": options.image_size}
    number = {} if options.n_images is None else {"n": options.n_images}
    # The twins' own seed is fixed, so that runs of different seeds are about the same images.
    if name == "SyntheticMicroscopy":
        return SyntheticMicroscopy(intensity=iso, **size, **number)
    return SyntheticDrone(task=task, intensity=iso, **size, **number)


def _task_of_folder(options: Options, data: RawDataset) -> str:
    if options.masks:
        return "segmentation"
    # Folders called 0 and 1 are classes; a column of numbers is a measurement.
    numbers = options.labels and all(map(_is_number, data.classes))
    return "regression" if numbers else "classification"


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _numbers(options: Options, data: RawDataset) -> np.ndarray:
    """Return the number that each class is called.

    Raises:
        DatasetError: one is not a number.
    """
    wrong = [name for name in data.classes if not _is_number(name)]
    if wrong:
        place = options.labels or options.root or ""
        reason = f"the label {wrong[0]!r} is not a number, which regression needs"
        raise DatasetError(place, reason, "Correct it, or take --task classification")
    return np.array([float(name) for name in data.classes])


def _tertiles(values: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for low, middle and high values, so that folds get some of each."""
    return np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values)


def _inner(data: Dataset) -> RawDataset:
    return data.data if isinstance(data, _Targets) else data


def _names(data: Dataset) -> np.ndarray:
    inner = _inner(data)
    if isinstance(inner, RawFolder):
        return np.array([str(path.relative_to(inner.root)) for path in inner.paths])
    return np.asarray(getattr(inner, "names", [str(i) for i in range(len(inner))]))


def make_folds(corpus: Corpus, options: Options) -> list[Fold]:
    """Return the folds (train, test indices) of an experiment.

    Of several, each image is tested in one, and none shares a group with those it is trained with. A single
    one trains on ``train_size`` of the images, as nearly as whole groups and 1 / a whole number allow.
    "published" draws at random, as the published study did.

    Raises:
        ValueError: too few groups or images.
    """
    labels, groups, n = corpus.labels, corpus.groups, options.n_splits
    if options.splits == "published":
        stratified = corpus.task == "classification"
        return published_resampling(labels, n, options.train_size, options.seed, stratified)
    if n > 1:
        return group_folds(labels, groups, n, options.seed)
    share = min(options.train_size, 1 - options.train_size)
    available = len(np.unique(groups))
    larger, smaller = group_folds(
        labels, groups, max(2, min(round(1 / share), available)), options.seed
    )[0]
    return [Fold(larger, smaller) if options.train_size >= 0.5 else Fold(smaller, larger)]
