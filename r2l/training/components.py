"""Processor and task model of an experiment: made afresh, or loaded from where they were saved."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from r2l.datasets import Frames
from r2l.isp import HalfSizeRGB, NeuralISP, ParametrizedISP, StaticISP, load_isp, open_pipeline
from r2l.isp.saving import can_be_saved
from r2l.options import Options
from r2l.training.checkpoints import seeded
from r2l.training.models import describe_model, make_described, n_outputs
from r2l.training.saving import NORM, load_described, load_norm, load_state
from r2l.training.tracking import resolve

_MODE_OF = {
    ParametrizedISP: "parametrized",
    StaticISP: "static",
    NeuralISP: "neural_network",
    HalfSizeRGB: "none",
}


Say = Callable[[str], None]
#: What a fresh network's images will be like is not known before it is trained.
UNKNOWN = ((0.5,) * 3, (0.25,) * 3)


@dataclass(frozen=True)
class Components:
    """What is trained in each fold, before it is.

    Attributes:
        processor: raw (B, 1, H, W) to images (B, 3, H, W).
        fresh: whether the processor was made, not loaded.
        model: a loaded task model; None where each fold makes one.
        description: how a loaded task model was made, for `r2l.training.saving.save_model`.
        norm: a loaded batch normalisation between them; None if there is none, or each fold makes one.
    """

    processor: nn.Module
    fresh: bool
    model: nn.Module | None = None
    description: Mapping[str, Any] | None = None
    norm: nn.BatchNorm2d | None = None

    @property
    def mode(self) -> str:
        """Processing mode of the processor, also where it was loaded."""
        # All else is fixed: another program, what stands before display stages, code of one's own.
        return _MODE_OF.get(type(self.processor), "static")


def open_components(options: Options, data: Frames, say: Say) -> Components:
    """Return processor and task model; what has to be fetched or loaded is, and is checked against the data.

    Raises:
        ValueError: nothing there at an address, or what is there does not fit the data.
        OSError: a store that does not answer, or pretrained weights that can't be fetched.
    """
    with ExitStack() as stack:
        cache = None  # without one, what was fetched is gone when all is loaded
        if not options.cache_downloaded_models:
            cache = stack.enter_context(TemporaryDirectory(prefix="r2l-"))

        def fetch(uri: str) -> Path:
            return resolve(uri, options.tracking_uri, cache)

        components = _load_components(options, data, fetch, say)
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
        mode = components.mode
        raise ValueError(f"--adv_training needs a parametrized processor, not one of mode {mode}")
    layer = options.adv_training and "additive_layer" in options.adversarial_parameters
    if layer and components.processor.additive is None:
        raise ValueError("the processor that was loaded has no additive layer to be searched")
    return components


def _load_components(options: Options, data: Frames, fetch: Callable[[str], Path], say: Say) -> Components:
    """Load what the options give addresses of, and make the processor where they give none."""
    processor_uri, classifier_uri = options.processor_uri, options.classifier_uri
    if options.state_dict_uri:
        both = fetch(options.state_dict_uri)
        if not both.is_dir():
            return _load_state_dict(both, options, data, fetch)
        processor_uri, classifier_uri = str(both / "processor"), str(both / "model")
    processor = load_isp(fetch(processor_uri)) if processor_uri else None
    components = Components(processor or _build_processor(options, data, fetch), processor is None)
    if processor and components.mode != options.processing_mode:
        kind = type(processor).__name__
        say(f"{processor_uri} holds a {kind}: --processing_mode {components.mode}")
    if not classifier_uri:
        return components
    folder = fetch(classifier_uri)
    model, description = load_described(folder, trusted={options.classifier_network})
    norm = load_norm(folder.parent) if (folder.parent / NORM).exists() else None
    network = description["arguments"].get("name", options.classifier_network)
    if network != options.classifier_network:
        say(f"{classifier_uri} holds a {network}: --classifier_network is not used")
    _check_norm(norm, classifier_uri, options)
    _check_model(model, components.processor, data, classifier_uri)
    return replace(components, model=model, description=description, norm=norm)


def _load_state_dict(path: Path, options: Options, data: Frames, fetch: Callable[[str], Path]) -> Components:
    with seeded(options.seed):
        make, description = build_model(options, data, *UNKNOWN)
        model = make()
    processor = _build_processor(options, data, fetch)
    norm = load_state(path, processor, model)
    _check_norm(norm, options.state_dict_uri, options)
    return Components(processor, False, model, description, norm)


def _check_norm(norm: nn.BatchNorm2d | None, uri: str | None, options: Options) -> None:
    if norm is not None and options.output_norm != "batch":
        # Without it the task model would see other images than those it was trained on.
        raise ValueError(f"{uri} was trained with --output_norm batch; give that here too")


def _build_processor(options: Options, data: Frames, fetch: Callable[[str], Path]) -> nn.Module:
    """Return a fresh processor of the mode asked for, its weights drawn from the seed."""
    camera, mode = data.camera, options.processing_mode
    if options.pipeline:
        return open_pipeline(options.pipeline, camera, fetch=fetch)
    if mode == "parametrized":
        size = data.shape if options.adv_noise_layer else ()
        return ParametrizedISP(camera, (1, 3, *size) if size else None)
    if mode == "static":
        return StaticISP(camera, options.sp_debayer, options.sp_sharpening, options.sp_denoising)
    if mode == "none":
        return HalfSizeRGB(camera)
    with seeded(options.seed):
        return NeuralISP(camera, options.smp_encoder)


def build_model(
    options: Options, data: Frames, mean: Sequence[float], std: Sequence[float], targets: Tensor | None = None
) -> tuple[Callable[[], nn.Module], dict[str, Any]]:
    """Return what makes a task model with random or pretrained weights, and how to describe it.

    Args:
        options: network and its details.
        data: whose task and classes.
        mean: of the training images, by channel, display units.
        std: as ``mean``.
        targets: for regression, the numbers of the training images (N,).
    """
    segments = data.task == "segmentation"
    both = f"{options.smp_network}/{options.smp_encoder}"
    name = both if segments else options.classifier_network
    description = describe_model(name, data.task, len(data.classes), mean, std, targets)
    return partial(make_described, description, options.classifier_pretrained), description


@torch.no_grad()
def _check_model(model: nn.Module, processor: nn.Module, data: Frames, uri: str) -> None:
    """Raise a ValueError unless a loaded task model answers in the form of the task."""
    outputs = n_outputs(data.task, len(data.classes))
    answer = model.eval()(processor.eval()(data.raw[:1]))
    wanted = 4 if data.task == "segmentation" else 2
    if answer.ndim != wanted or answer.shape[1] != outputs:
        raise ValueError(
            f"{uri}: a task model that answers with shape {tuple(answer.shape)}, but {data.task} of "
            f"this data set needs {outputs} output{'s' if outputs > 1 else ''}"
        )
