"""What every data set of raw frames looks like, and its splits, in which no group stands on two sides.

And, under its own name, the published split, in which some do.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import Dataset

from r2l.camera import Camera
from r2l.files import check_groups, choose, need_extra

Item = dict[str, Any]
Transform = Callable[[Item], Item]


class RawDataset(Dataset[Item], ABC):
    """The contract: a data set of raw frames has these attributes and makes items like these::

        {"raw":   (1, H, W) float32 tensor, raw domain (black level still in it),
         "label": int                       for classification, or "mask":  (H, W) int64 tensor       for
         segmentation, "meta":  {"group": int, "intensity": float, "camera": str}}

    Attributes:
        camera: layout and calibration of every frame.
        classes: names; a label, or a value in a mask, is an index into them.
        labels: (N,) int64, the label of each item, known without reading it (for segmentation: the
            highest class in the mask), so that splits can be stratified.
        groups: (N,) int64, which items share something that a split must not tear apart (a slide's
            zone, a photo), known without reading.
        intensity: exposure of the frames relative to the base exposure.
        transform: called on each item as the last step.
    """

    camera: Camera
    classes: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    intensity: float = 1.0
    transform: Transform | None = None

    @property
    def sources(self) -> list[Path]:
        """The files that the items are read from; none of sets that code makes."""
        return []

    @abstractmethod
    def read(self, index: int) -> Item:
        """Return the item at ``0 <= index < len(self)`` without its ``meta``."""

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Item:
        """Return item ``index``, counted from the end if negative. Raises an IndexError: no such item."""
        index = range(len(self))[index]
        meta = {"group": int(self.groups[index]), "intensity": self.intensity, "camera": self.camera.name}
        item = {**self.read(index), "meta": meta}
        return self.transform(item) if self.transform else item


class Fold(NamedTuple):
    """One way to cut a data set in two: sorted indices of the training and of the test images."""

    train: np.ndarray
    test: np.ndarray


def group_folds(
    labels: ArrayLike, groups: ArrayLike | None = None, n_splits: int = 5, seed: int = 0
) -> list[Fold]:
    """Cut a data set into ``n_splits`` folds; each image is tested once, and no group is cut.

    Images of one group (crops of one slide, tiles of one photograph) resemble each other; a group
    on both sides would let a model recognise the group instead of the class. Class shares are kept
    as equal between folds as whole groups allow (scikit-learn's StratifiedGroupKFold), unless every
    class has fewer images than there are folds.

    >>> [fold.test.tolist() for fold in group_folds([0, 1, 0, 1], ["a", "a", "b", "b"], 2)]
    [[2, 3], [0, 1]]

    Args:
        labels: class of each image, (N,).
        groups: group of each image, (N,); None makes every image its own group.
        n_splits: how many folds.
        seed: equal seeds give equal folds; no global generator is touched.

    Raises:
        ValueError: lengths differ, an image without a group, fewer than two folds, or more folds than
            groups; numbers that repeat in the place of classes.
    """
    labels = np.asarray(labels)
    groups = np.arange(len(labels)) if groups is None else check_groups(groups)
    if labels.ndim != 1 or labels.shape != groups.shape:
        raise ValueError(f"one label and one group an image: got {labels.shape}, {groups.shape}")
    n_groups = len(np.unique(groups))
    if not 2 <= n_splits <= n_groups:
        choice = f"choose 2 to {n_groups}" if n_groups > 1 else "nothing can be held out: use more images"
        raise ValueError(f"n_splits is {n_splits}; with {n_groups} group{'s' * (n_groups > 1)} {choice}")
    if np.unique(labels, return_counts=True)[1].max() < n_splits:
        labels = np.zeros_like(labels)  # no class can be in every fold, so shares mean nothing
    elif labels.dtype.kind == "f" and len(numbers := labels[labels % 1 != 0]):
        told = f"labels such as {numbers[0]:g} are numbers, no classes to keep the shares of"
        raise ValueError(f"{told}; give classes, such as the thirds of r2l.datasets.frames.tertiles(labels)")
    need_extra("train", "sklearn")
    from sklearn.model_selection import StratifiedGroupKFold  # takes seconds: only to split

    splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Classes with fewer images than folds are ordinary here (Raw-Microscopy: NGB has 8).
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = [Fold(*pair) for pair in splitter.split(labels, labels, groups)]
    if any(len(side) == 0 for fold in folds for side in fold):
        raise ValueError(f"{n_groups} groups do not fill {n_splits} folds; choose fewer folds")
    return folds


def published_resampling(
    labels: ArrayLike, n_splits: int = 5, train_share: float = 0.8, seed: int = 0, stratified: bool = True
) -> list[Fold]:
    """Cut as the published study did: 80/20 at random, ``n_splits`` times over. For comparison only.

    The drawings overlap, know nothing of groups and keep no test set aside, so scores on them are
    too good. The study stratified by class for classification and did not for segmentation. Arguments
    as of `group_folds`; ``train_share`` is that of the training images.

    Raises:
        ValueError: a class of one image where stratified, or a share outside 0 to 1.
    """
    labels = np.asarray(labels)
    need_extra("train", "sklearn")
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    kind = StratifiedShuffleSplit if stratified else ShuffleSplit
    splitter = kind(n_splits=n_splits, train_size=train_share, random_state=seed)
    return [Fold(*map(np.sort, pair)) for pair in splitter.split(labels, labels)]


def split_indices(
    split: str,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    scheme: str = "groups",
    fold: int = 0,
    seed: int = 0,
    stratified: bool = True,
) -> np.ndarray:
    """Return the sorted indices of one part of a data set.

    Args:
        split: "train", "val", "test" or "all".
        labels, groups: of each image, (N,).
        scheme: "groups" for whole groups (a fifth to test, five folds of the rest, by `group_folds`), or
            "published" for `published_resampling`, which has no test set.
        fold: which of the five folds or drawings; "test" is the same for all.
        seed: which cut.
        stratified: whether "published" keeps the shares of the classes.

    Raises:
        ValueError: an unknown split, scheme or fold, or too few groups to cut.
    """
    choose("split", split, ("train", "val", "test", "all"))
    choose("scheme", scheme, ("groups", "published"))
    if fold not in range(5):
        raise ValueError(f"unknown fold {fold}; choose from 0 to 4")
    if split == "all":
        return np.arange(len(labels))
    if scheme == "published":
        if split == "test":
            raise ValueError('scheme="published" has no test set; choose train, val or all')
        return published_resampling(labels, seed=seed, stratified=stratified)[fold][split == "val"]
    # A handful of groups (a few photos of one's own) makes fewer folds.
    n_groups = len(np.unique(groups))
    if n_groups < 3:
        raise ValueError(f'{n_groups} groups are too few for three parts; take split="all"')
    rest, test = group_folds(labels, groups, min(5, n_groups), seed)[0]
    if split == "test":
        return test
    n_folds = min(5, len(np.unique(groups[rest])))
    if fold >= n_folds:
        raise ValueError(f"unknown fold {fold}; with these groups choose from 0 to {n_folds - 1}")
    return rest[group_folds(labels[rest], groups[rest], n_folds, seed)[fold][split == "val"]]


def spread(total: int, most: int) -> np.ndarray:
    """Return at most so many indices, evenly spread: images that stand for all."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(int))
