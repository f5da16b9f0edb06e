"""The data of an experiment, by the name of its data set: what to train on, which task, how to split it."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from r2l.datasets import (
    DatasetError,
    Frames,
    RawDataset,
    RawDrone,
    RawFolder,
    RawMicroscopy,
    SyntheticDrone,
    SyntheticMicroscopy,
)
from r2l.datasets.folder import is_number
from r2l.datasets.frames import EXACT, tertiles
from r2l.datasets.splits import Fold, group_folds, published_resampling
from r2l.files import content_hash
from r2l.options import Options
from r2l.rawfile import RawLayout, load_camera
from r2l.training.run_folder import identity

#: Images of a test run.
_FEW = 32


def open_data(options: Options, progress: bool = True) -> Frames:
    """Read the data set that the options name; of a test run few images, from as many groups as possible.

    Args:
        options: name and place of the data set, and the task.
        progress: whether to show a bar.

    Raises:
        DatasetNotFoundError: it is not there; says how to get it.
        DatasetError: labels, masks and images don't fit, or labels are no numbers where they have to be.
        ValueError: an intensity that was not recorded, an unknown camera, or frames of several sizes.
    """
    data = _open(options)
    task = _task(options, data)
    if task == "regression" and (wrong := [name for name in data.classes if not is_number(name)]):
        reason = f"the label {wrong[0]!r} is not a number, which regression needs"
        remedy = "Correct it, or take --task classification"
        raise DatasetError(options.labels or options.root or "", reason, remedy)
    indices = np.arange(len(data))
    if options.test_run and len(data) > _FEW:
        rank = pd.Series(data.groups).groupby(data.groups).cumcount().to_numpy()
        indices = np.sort(np.lexsort((indices, rank))[:_FEW])
    frames = Frames.of(data, indices, progress=progress)
    if task != "regression":
        return frames
    values = np.array([float(name) for name in data.classes])[frames.labels]
    truth = torch.tensor(values, dtype=EXACT)
    return replace(frames, truth=truth, labels=tertiles(values), classes=())


def data_identity(options: Options) -> str:
    """Return a hash of the data that the options name: labels, numbers, camera, and what their files hold.

    "" of data that code makes, and of data that can't be opened (which whoever reads them will tell).
    """
    if options.dataset.startswith("Synthetic"):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told when they are read
            data = _open(options)
        contents = [content_hash(path) for path in data.sources]
    except (OSError, ValueError):
        return ""
    known = data.labels.tolist(), data.groups.tolist(), data.classes, data.camera.to_dict()
    return identity(data.names.tolist(), *known, contents)


def _open(options: Options) -> RawDataset:
    name, iso, root = options.dataset, options.iso, options.root
    if name == "RawFolder":
        camera = load_camera(options.camera) if options.camera else None
        layout = RawLayout.from_file(options.layout) if options.layout else None
        values = [int(value) for value in (options.foreground or "").split(",") if value.strip()]
        names = [name.strip() for name in (options.classes or "").split(",") if name.strip()]
        same = ("labels", "masks", "crop", "own_colours", "skip_broken", "lens_corrections")
        given = {name: getattr(options, name) for name in same}
        given |= {"foreground": values or None, "classes": names or None}
        return RawFolder(root, camera=camera, layout=layout, **given)
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


def _task(options: Options, data: RawDataset) -> str:
    if options.known_task != "auto":
        return options.known_task
    # Folders called 0 and 1 are classes; a column of numbers is a measurement.
    if not options.labels or not all(map(is_number, data.classes)):
        return "classification"
    if all(re.fullmatch(r"[+-]?\d+", name) for name in data.classes):
        reason = "the labels are whole numbers, which can be classes or measurements"
        raise DatasetError(options.labels, reason, "Say which: --task classification or regression")
    return "regression"


def make_folds(data: Frames, options: Options) -> list[Fold]:
    """Return the folds (train, test indices) of an experiment.

    Of several, each image is tested in one, and none shares a group with those it is trained with. A single
    one trains on ``train_size`` of the images, as nearly as whole groups and 1 / a whole number allow.
    "published" draws at random, as the published study did.

    Raises:
        ValueError: too few groups, images or classes.
    """
    labels, groups, n = data.labels, data.groups, options.n_splits
    if data.task == "classification":
        counts = np.bincount(labels)
        if (counts > 0).sum() < 2:
            raise ValueError(
                f"all {len(data)} images are of one class, {data.classes[labels[0]]}: nothing to tell apart"
            )
        if counts.max() < 2:
            raise ValueError(
                f"each of the {len(data)} images has a class of its own: nothing to learn from. If the "
                "labels are measurements, give --task regression"
            )
    if options.splits == "published":
        stratified = data.task == "classification"
        return published_resampling(labels, n, options.train_size, options.seed, stratified)
    if n > 1:
        return group_folds(labels, groups, n, options.seed)
    share = min(options.train_size, 1 - options.train_size)
    parts = max(2, min(round(1 / share), len(np.unique(groups))))
    larger, smaller = group_folds(labels, groups, parts, options.seed)[0]
    return [Fold(larger, smaller) if options.train_size >= 0.5 else Fold(smaller, larger)]
