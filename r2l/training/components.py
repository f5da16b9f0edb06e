"""The parts of an experiment, by its options: data and folds, processor and task model, made or loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from r2l.datasets import DatasetError, Frames
from r2l.datasets.folder import is_number
from r2l.datasets.frames import EXACT, tertiles
from r2l.datasets.from_options import open_dataset, task_of
from r2l.datasets.splits import Fold, group_folds, published_resampling
from r2l.isp import HalfSizeRGB, NeuralISP, ParametrizedISP, StaticISP, load_isp, open_pipeline
from r2l.isp.saving import can_be_saved
from r2l.options import Options
from r2l.training.checkpoints import seeded
from r2l.training.models import describe_model, make_described, n_outputs
from r2l.training.saving import NORM, load_described, load_norm, load_state
from r2l.training.tracking import resolve

Say = Callable[[str], None]
#: What a fresh network's images will be like is not known before it is trained.
UNKNOWN = ((0.5,) * 3, (0.25,) * 3)
# Images of a test run.
_FEW = 32
# All else is fixed: another program, what stands before display stages, code of one's own.
_MODE_OF = {ParametrizedISP: "parametrized", NeuralISP: "neural_network", HalfSizeRGB: "none"}


def open_data(options: Options, progress: bool = True) -> Frames:
    """Read the data set that the options name; of a test run few images, from as many groups as possible.

    Raises:
        DatasetNotFoundError: it is not there; says how to get it.
        DatasetError: labels, masks and images don't fit, or labels are no numbers where they have to be.
        ValueError: an intensity that was not recorded, an unknown camera, or frames of several sizes.
    """
    data = open_dataset(options)
    task = task_of(options, data)
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
    return replace(frames, truth=torch.tensor(values, dtype=EXACT), labels=tertiles(values), classes=())


def make_folds(data: Frames, options: Options) -> list[Fold]:
    """Return the folds (train, test indices) of an experiment; a ValueError of too few groups or classes.

    Of several, each image is tested in one, and none shares a group with those it is trained with. A single
    one trains on ``train_size`` of the images, as nearly as whole groups and 1 / a whole number allow.
    "published" draws at random, as the published study did.
    """
    labels, groups, n = data.labels, data.groups, options.n_splits
    if data.task == "classification":
        counts = np.bincount(labels)
        if (counts > 0).sum() < 2:
            only = data.classes[labels[0]]
            raise ValueError(f"all {len(data)} images are of one class, {only}: nothing to tell apart")
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


def about_data(data: Frames, folds: list[Fold], options: Options) -> Iterator[str]:
    """Yield in lines what there is to train on."""
    camera, (height, width) = data.camera, data.shape
    classes = f", {len(data.classes)} classes" if data.classes else ""
    number = "1 split" if len(folds) == 1 else f"{len(folds)} folds"
    number += "" if options.fold is None else f", number {options.fold} alone"
    yield (
        f"{options.dataset}: {len(data)} images of {height} x {width}, {data.task}{classes}; {number} "
        f"({len(folds[0].train)} to train, {len(folds[0].test)} to validate)"
    )
    balance = " ".join(f"{gain:.4g}" for gain in camera.white_balance)
    whose = "each file's own scaled to its" if options.own_colours else "its"
    yield f"camera {camera.name}, {camera.cfa.name}, {whose} white balance {balance}"
    if data.skipped:
        yield f"{len(data.skipped)} left out as broken: {'; '.join(data.skipped)}"
    if data.task == "classification" and len(folds) > 1:
        counts = np.bincount(data.labels, minlength=len(data.classes)).tolist()
        few = [f"{c} ({n})" for c, n in zip(data.classes, counts, strict=True) if n < len(folds)]
        if few:
            yield f"fewer images than folds, so that some folds don't test them: {', '.join(few)}"


@dataclass(frozen=True)
class Components:
    """What is trained in each fold, before it is.

    Attributes:
        processor: raw (B, 1, H, W) to images (B, 3, H, W).
        model, description: a loaded task model, and how it was made; None where each fold makes one.
        norm: a loaded batch normalisation between them; None if there is none, or each fold makes one.
    """

    processor: nn.Module
    model: nn.Module | None = None
    description: Mapping[str, Any] | None = None
    norm: nn.BatchNorm2d | None = None

    @property
    def mode(self) -> str:
        """Processing mode of the processor, also where it was loaded."""
        return _MODE_OF.get(type(self.processor), "static")


def open_components(options: Options, data: Frames, say: Say) -> Components:
    """Return processor and task model, made or fetched and loaded, and checked against the data."""
    with TemporaryDirectory(prefix="r2l-") as folder:
        # Without a cache, what was fetched is gone when all is loaded.
        cache = None if options.cache_downloaded_models else folder
        fetch = partial(resolve, store=options.tracking_uri, cache=cache)
        components = _load_components(options, data, fetch, say)
    if components.norm is not None and options.output_norm != "batch":
        # Without it the task model would see other images than those it was trained on.
        uri = options.state_dict_uri or options.classifier_uri
        raise ValueError(f"{uri} was trained with --output_norm batch; give that here too")
    if components.model is not None:
        say(
            "the task model was trained before: scores are of images it has not seen only in the fold that "
            "it was validated in (--fold, with the --n_splits and the --seed of then), or of other data"
        )
    elif options.classifier_pretrained:
        # Fetched now, so that what can't be had is noticed before anything is begun.
        build_model(options, data, *UNKNOWN)[0]()
    if not can_be_saved(components.processor):
        say(f"{options.pipeline} is code of your own: the run keeps its name, not the code")
    if options.adv_training and components.mode != "parametrized":
        raise ValueError(f"--adv_training needs a parametrized processor, not one of mode {components.mode}")
    layer = options.adv_training and "additive_layer" in options.adversarial_parameters
    if layer and components.processor.additive is None:
        raise ValueError("the processor that was loaded has no additive layer to be searched")
    return components


def _load_components(options: Options, data: Frames, fetch: Callable[[str], Path], say: Say) -> Components:
    processor_uri, classifier_uri = options.processor_uri, options.classifier_uri
    if options.state_dict_uri:
        both = fetch(options.state_dict_uri)
        if not both.is_dir():
            processor = _build_processor(options, data, fetch)
            with seeded(options.seed):
                make, description = build_model(options, data, *UNKNOWN)
                model = make()
            norm = load_state(both, processor, model)
            return Components(processor, model, description, norm)
        processor_uri, classifier_uri = str(both / "processor"), str(both / "model")
    processor = load_isp(fetch(processor_uri)) if processor_uri else None
    components = Components(processor or _build_processor(options, data, fetch))
    if processor and components.mode != options.processing_mode:
        say(f"{processor_uri} holds a {type(processor).__name__}: --processing_mode {components.mode}")
    if not classifier_uri:
        return components
    folder = fetch(classifier_uri)
    model, description = load_described(folder, trusted={options.classifier_network})
    norm = load_norm(folder.parent) if (folder.parent / NORM).exists() else None
    network = description["arguments"].get("name", options.classifier_network)
    if network != options.classifier_network:
        say(f"{classifier_uri} holds a {network}: --classifier_network is not used")
    with torch.no_grad():
        answer = model.eval()(components.processor.eval()(data.raw[:1]))
    outputs, wanted = n_outputs(data.task, len(data.classes)), 4 if data.task == "segmentation" else 2
    if answer.ndim != wanted or answer.shape[1] != outputs:
        raise ValueError(
            f"{classifier_uri}: a task model that answers with shape {tuple(answer.shape)}, but {data.task} "
            f"of this data set needs {outputs} output{'s' if outputs > 1 else ''}"
        )
    return replace(components, model=model, description=description, norm=norm)


def _build_processor(options: Options, data: Frames, fetch: Callable[[str], Path]) -> nn.Module:
    """Return a fresh processor of the mode asked for, its weights drawn from the seed."""
    camera, mode = data.camera, options.processing_mode
    if options.pipeline:
        return open_pipeline(options.pipeline, camera, fetch=fetch)
    if mode == "static":
        return StaticISP(camera, options.sp_debayer, options.sp_sharpening, options.sp_denoising)
    if mode == "none":
        return HalfSizeRGB(camera)
    if mode == "neural_network":
        with seeded(options.seed):
            return NeuralISP(camera, options.smp_encoder)
    size = data.shape if options.adv_noise_layer else ()
    return ParametrizedISP(camera, (1, 3, *size) if size else None)


def build_model(
    options: Options, data: Frames, mean: Sequence[float], std: Sequence[float], targets: Tensor | None = None
) -> tuple[Callable[[], nn.Module], dict[str, Any]]:
    """Return what makes a task model with random or pretrained weights, and how to describe it.

    Args as of `describe_model`; network and its details are the options', task and classes those of the data.
    """
    segmenter = f"{options.smp_network}/{options.smp_encoder}"
    name = segmenter if data.task == "segmentation" else options.classifier_network
    description = describe_model(name, data.task, len(data.classes), mean, std, targets)
    return partial(make_described, description, options.classifier_pretrained), description
