"""Processor and task model of an experiment: made afresh, or loaded from where they were saved."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from r2l.isp import HalfSizeRGB, NeuralISP, ParametrizedISP, StaticISP, load_isp
from r2l.options import Options
from r2l.training import models
from r2l.training.corpora import Corpus
from r2l.training.models import target_statistics
from r2l.training.saving import DESCRIPTION, NORM, load_model, load_norm, load_state
from r2l.training.seeding import seeded
from r2l.training.tracking import resolve

_MODE_OF = {
    ParametrizedISP: "parametrized",
    StaticISP: "static",
    NeuralISP: "neural_network",
    HalfSizeRGB: "none",
}
#: What a fresh network's images will be like is not known before it is trained.
_UNKNOWN = ((0.5,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class Parts:
    """What is trained in each fold, before it is.

    Attributes:
        processor: raw (B, 1, H, W) to images (B, 3, H, W).
        mode: processing mode of the processor, also where it was loaded.
        fresh: whether the processor was made, not loaded.
        model: a loaded task model; None where each fold makes one.
        description: how a loaded task model was made, for `r2l.training.saving.save_model`.
        norm: a loaded batch normalisation between them; None if there is none, or each fold makes one.
    """

    processor: nn.Module
    mode: str
    fresh: bool
    model: nn.Module | None = None
    description: Mapping[str, Any] | None = None
    norm: nn.BatchNorm2d | None = None


def open_parts(options: Options, corpus: Corpus, say: Callable[[str], None]) -> Parts:
    """Return processor and task model; what has to be fetched or loaded is, and is checked against the data.

    Raises:
        ValueError: nothing there at an address, or what is there does not fit the data.
        OSError: a store that does not answer, or pretrained weights that can't be fetched.
    """
    frame = corpus.data[0]["raw"]
    processor, model, description, norm = None, None, None, None
    processor_uri, classifier_uri = options.processor_uri, options.classifier_uri
    if options.state_dict_uri:
        place = _resolved(options.state_dict_uri, options)
        if place.is_dir():
            processor_uri, classifier_uri = str(place / "processor"), str(place / "model")
        else:
            with seeded(options.seed):
                make, description = fresh_model(options, corpus, *_UNKNOWN)
                model = make()
            processor = make_processor(options, corpus, frame.shape)
            norm = load_state(place, processor, model)
    if processor_uri:
        processor = load_isp(_resolved(processor_uri, options))
        mode = _MODE_OF[type(processor)]
        if mode != options.processing_mode:
            say(f"{processor_uri} holds a {type(processor).__name__}: --processing_mode {mode}")
    if classifier_uri:
        place = _resolved(classifier_uri, options)
        model = load_model(place)
        description = json.loads((place / DESCRIPTION).read_text("utf-8"))
        norm = load_norm(place.parent) if (place.parent / NORM).exists() else None
        network = description["arguments"].get("name", options.classifier_network)
        if network != options.classifier_network:
            say(f"{classifier_uri} holds a {network}: --classifier_network is not used")
    if norm is not None and options.output_norm != "batch":
        # Without it the task model would see other images than those it was trained on.
        place = classifier_uri or options.state_dict_uri
        raise ValueError(f"{place} was trained with --output_norm batch; give that here too")
    if model is not None:
        say(
            "the task model was trained before: scores are of images it has not seen only in the fold that "
            "it was validated in (--fold, with the --n_splits and the --seed of then), or of other data"
        )
    fresh = processor is None
    processor = processor or make_processor(options, corpus, frame.shape)
    if classifier_uri:
        _check_model(model, processor, corpus, frame[None], classifier_uri)
    elif model is None and options.classifier_pretrained:
        # Fetched now, so that what can't be had is noticed before anything is begun.
        fresh_model(options, corpus, *_UNKNOWN)[0]()
    parts = Parts(processor, _MODE_OF[type(processor)], fresh, model, description, norm)
    _check_adversary(options, parts)
    return parts


def _check_adversary(options: Options, parts: Parts) -> None:
    if not options.adv_training:
        return
    if parts.mode != "parametrized":
        raise ValueError(
            f"--adv_training needs a parametrized processor, not one of mode {parts.mode}"
        )
    if parts.processor.additive is None and "additive_layer" in options.adversarial_parameters:
        raise ValueError("the processor that was loaded has no additive layer to be searched")


def _resolved(uri: str, options: Options) -> Path:
    # Without a cache, what is fetched is fetched anew, to a place of its own.
    cache = None if options.cache_downloaded_models else tempfile.mkdtemp(prefix="r2l-")
    return resolve(uri, options.tracking_uri, cache)


def make_processor(options: Options, corpus: Corpus, frame: Sequence[int]) -> nn.Module:
    """Return a fresh processor of the mode asked for, its weights drawn from the seed.

    Args:
        options: mode and its details.
        corpus: whose camera.
        frame: shape of a frame (1, H, W), which an additive layer has too.
    """
    camera, mode = corpus.camera, options.processing_mode
    if mode == "parametrized":
        return ParametrizedISP(camera, (1, 3, *frame[-2:]) if options.adv_noise_layer else None)
    if mode == "static":
        return StaticISP(camera, options.sp_debayer, options.sp_sharpening, options.sp_denoising)
    if mode == "none":
        return HalfSizeRGB(camera)
    with seeded(options.seed):
        return NeuralISP(camera, options.smp_encoder)


def fresh_model(
    options: Options,
    corpus: Corpus,
    mean: Sequence[float],
    std: Sequence[float],
    targets: Tensor | None = None,
) -> tuple[Callable[[], nn.Module], dict[str, Any]]:
    """Return what makes a task model with random or pretrained weights, and how to describe it.

    Args:
        options: network and its details.
        corpus: whose task and classes.
        mean: of the training images, by channel, display units.
        std: as ``mean``.
        targets: for regression, the numbers of the training images (N,).
    """
    arguments: dict[str, Any] = {"mean": list(mean), "std": list(std)}
    if corpus.task == "segmentation":
        maker = "make_segmenter"
        arguments |= {"architecture": options.smp_network, "encoder": options.smp_encoder}
    elif corpus.task == "regression":
        maker = "make_regressor"
        arguments |= {"name": options.classifier_network, "n_targets": 1}
        if targets is not None:
            statistics = target_statistics(targets)
            arguments |= dict(zip(("target_mean", "target_std"), statistics, strict=True))
    else:
        maker = "make_classifier"
        arguments |= {"name": options.classifier_network, "n_classes": len(corpus.classes)}
    pretrained = {"pretrained": True} if options.classifier_pretrained else {}
    make = partial(getattr(models, maker), **arguments, **pretrained)
    return make, {"maker": maker, "arguments": arguments}


@torch.no_grad()
def _check_model(
    model: nn.Module, processor: nn.Module, corpus: Corpus, raw: Tensor, uri: str
) -> None:
    """Raise unless a loaded task model answers in the form of the task.

    Raises:
        ValueError: it doesn't.
    """
    outputs = {"classification": len(corpus.classes)}.get(corpus.task, 1)
    answer = model.eval()(processor.eval()(raw))
    wanted = 4 if corpus.task == "segmentation" else 2
    if answer.ndim != wanted or answer.shape[1] != outputs:
        raise ValueError(
            f"{uri}: a task model that answers with shape {tuple(answer.shape)}, but {corpus.task} of "
            f"this data set needs {outputs} output{'s' if outputs > 1 else ''}"
        )


@torch.no_grad()
def image_statistics(
    data: Dataset, indices: np.ndarray, processor: nn.Module | None, batch_size: int = 64
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of the images ``indices``, display units.

    Args:
        data: items with ``image`` or, where there is a processor, ``raw``.
        indices: of the training images.
        processor: what develops them.
        batch_size: frames developed at once.
    """
    count, total, squares = 0, torch.zeros(3).double(), torch.zeros(3).double()
    for start in range(0, len(indices), batch_size):
        items = [data[int(i)] for i in indices[start : start + batch_size]]
        images = torch.stack([item.get("image", item.get("raw")) for item in items])
        images = (images if processor is None else processor.eval()(images)).double()
        count += images.numel() // 3
        total += images.sum((0, 2, 3))
        squares += images.square().sum((0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
