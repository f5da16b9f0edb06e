"""Task models on disk: a folder with a small JSON (how to make it) and its weights, no pickle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import R2LError, atomic_path, choose
from r2l.isp.saving import load_module, reading, save_module
from r2l.training.checkpoints import seeded
from r2l.training.metrics import TASKS
from r2l.training.models import MAKERS, make_described
from r2l.training.networks import is_own_code

DESCRIPTION = "model.json"
#: Weights of a batch normalisation between processor and task model, in the folder that holds both.
NORM = "norm.safetensors"
# Arguments that can ask for any amount of memory.
_SIZES = {"n_classes", "n_targets"}
_NEEDED = {"maker", "arguments"}
_TASK_OF = {"make_regressor": "regression", "make_segmenter": "segmentation"}


@dataclass(frozen=True)
class About:
    """What a model was trained for; kept in its description.

    Attributes:
        task: "classification", "regression" or "segmentation".
        classes: names, by label; none for numbers.
        camera: whose levels and layout its frames had; None of a model saved without.
        shape: height and width of those frames, likewise.
        own_colours: whether each frame was brought to that camera's white balance.
        lens_corrections: whether those that DNGs carry were applied.
    """

    task: str
    classes: tuple[str, ...]
    camera: Camera | None = None
    shape: tuple[int, int] | None = None
    own_colours: bool = False
    lens_corrections: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, for a description; `of` is the way back."""
        return {**vars(self), "camera": None if self.camera is None else self.camera.to_dict()}

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> About:
        """Return what a description says, checked; saved without, its maker's task, and numbers as names."""
        described = {k: v for k, v in description.items() if k in cls.__dataclass_fields__}
        number = description["arguments"].get("n_classes", 0)
        if "classes" not in described:  # asked first: a description may claim any number of them
            described["classes"] = tuple(map(str, range(number)))
        task = _TASK_OF.get(description["maker"], "classification")
        about = cls(**{"task": task, **described})
        choose("task", about.task, TASKS)
        names, camera, shape = about.classes, about.camera, about.shape
        wrong = names and number not in (0, len(names))
        if wrong or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{len(names)} names of classes for {number} outputs: {names}")
        camera = None if camera is None else Camera.from_dict(camera)
        shape = None if shape is None else tuple(map(int, shape))
        return replace(about, classes=tuple(names), camera=camera, shape=shape)


def save_model(description: Mapping[str, Any], model: nn.Module, folder: str | Path) -> Path:
    """Write a task model into a folder, which is made if need be; each file whole or not at all.

    Args:
        description: ``{"maker": "make_classifier", "arguments": {"name": "ResNet18", "n_classes": 9}}``;
            makers as in `r2l.training.models.MAKERS`, arguments by name, of plain JSON types. And, so that
            `r2l.load` knows them, what it was trained for: ``**About(...).to_dict()``.
        model: what that maker made, trained. It is made again at once, so that a mistake shows now.
        folder: where to.

    Raises:
        ValueError: an unknown maker, arguments that it does not take, or another model than it makes.
        OSError: the folder can't be written.
    """
    described = _checked(json.loads(json.dumps(description)))
    weights = {name: value.shape for name, value in model.state_dict().items()}
    if weights != {name: value.shape for name, value in _make(described).state_dict().items()}:
        raise ValueError(f"{described} does not make this {type(model).__name__}: weights differ")
    return save_module(model, described, Path(folder) / DESCRIPTION)


def load_model(folder: str | Path, trusted: Collection[str] = ()) -> nn.Module:
    """Return the task model that `save_model` wrote, on the CPU; errors as `load_described`."""
    return load_described(folder, trusted)[0]


def load_described(folder: str | Path, trusted: Collection[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Return the task model that `save_model` wrote, on the CPU, and the description it was saved with.

    Runs no foreign code but the networks of one's own, ``module:function``, that are ``trusted``.

    Raises:
        ValueError: the folder does not hold a whole model; names the file and what is wrong with it.
        R2LError: a network of one's own that is not trusted, or not to be found.
    """
    path, described = Path(folder) / DESCRIPTION, {}

    def make(description: Any, weights: Mapping[str, Tensor]) -> nn.Module:
        described.update(_checked(description))
        name = described["arguments"].get("name")
        if is_own_code(name) and name not in trusted:
            raise R2LError(
                path,
                f"its network is code of someone's own, {name}, which is not run unasked",
                f"If you trust that: trusted=[{name!r}], --trusted {name} or --classifier_network {name}",
            )
        # Numbers of outputs have to be some weight's size, before they take memory.
        sizes = {size for value in weights.values() for size in value.shape}
        for name in _SIZES & set(described["arguments"]):
            if (number := described["arguments"][name]) not in sizes:
                raise ValueError(f"{name} is {number}, but no weight is of that size")
        return _make(described)

    return load_module(path, make, "a task model", "save_model writes one"), described


def save_norm(norm: nn.BatchNorm2d, folder: Path) -> None:
    """Write a batch normalisation between processor and task model into the folder that holds both."""
    with atomic_path(folder / NORM) as partial:
        save_file(norm.state_dict(), partial)


def load_norm(folder: Path) -> nn.BatchNorm2d:
    """Return the batch normalisation that `save_norm` wrote; a ValueError where it is missing or damaged."""
    path = folder / NORM
    with reading(path, "no weights of a batch normalisation", "Copy the folder again, whole"):
        return _norm(load_file(path))


def load_state(path: Path, processor: nn.Module, model: nn.Module) -> nn.BatchNorm2d | None:
    """Load the weights of a trained `RawToLogits` from a safetensors file into its two parts, in place.

    Return the batch normalisation between them, if there was one; a ValueError tells of no such file, or
    weights of other models.
    """
    remedy = "Give a safetensors file of a trained RawToLogits, or a folder with processor and model"
    with reading(path, "no weights for these models", remedy):
        weights = load_file(path)
        own = {
            name: {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{name}.")}
            for name in ("processor", "model", "norm")
        }
        processor.load_state_dict(own["processor"])
        model.load_state_dict(own["model"])
        return _norm(own["norm"]) if own["norm"] else None


def _norm(weights: Mapping[str, Tensor]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    norm.load_state_dict(weights)
    return norm


def _checked(description: Any) -> dict[str, Any]:
    """Return a description whose maker and arguments exist, and that fetches nothing."""
    names = _NEEDED | set(About.__dataclass_fields__)
    if not isinstance(description, dict) or not _NEEDED <= set(description) <= names:
        raise ValueError('expected {"maker": ..., "arguments": {...}} and what `About` has')
    maker, arguments = choose("maker", description["maker"], MAKERS), description["arguments"]
    known = inspect.signature(maker).parameters
    if not isinstance(arguments, dict) or not set(arguments) <= set(known):
        raise ValueError(f"{description['maker']} takes the arguments {', '.join(known)}")
    About.of({"classes": (), **description})  # the weights have not told yet how many there can be
    return description


def _make(description: dict[str, Any]) -> nn.Module:
    with seeded(0):  # drawn only to be overwritten
        return make_described(description)
