"""Task models on disk: a folder with a small JSON (how to make it) and its weights, no pickle."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from r2l.rawfile import atomic_path
from r2l.training.quiet import seeded

DESCRIPTION, WEIGHTS = "model.json", "weights.safetensors"
#: The functions of `r2l.training.models` that a description may name; nothing else is ever called.
MAKERS = ("make_classifier", "make_segmenter", "make_regressor")
# Arguments that would fetch weights, only to be overwritten.
_FETCHING = ("pretrained",)


def save_model(description: Mapping[str, Any], model: nn.Module, folder: str | Path) -> Path:
    """Write a task model into a folder, which is made if need be; each file whole or not at all.

    The model is made again from its description at once, so that a mistake shows now and not when the
    weights are needed.

    Args:
        description: ``{"maker": "make_classifier", "arguments": {"name": "ResNet18", "n_classes": 9}}``;
            makers as in `MAKERS`, arguments by name, of plain JSON types.
        model: what that maker made, trained.
        folder: where to.

    Raises:
        ValueError: an unknown maker, arguments that it does not take, or another model than it makes.
        OSError: the folder can't be written.
    """
    described = _checked(json.loads(json.dumps(description)))
    weights = {
        name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()
    }
    expected = {name: value.shape for name, value in _make(described).state_dict().items()}
    if expected != {name: value.shape for name, value in weights.items()}:
        raise ValueError(f"{described} does not make this {type(model).__name__}: weights differ")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS) as partial:
        # Clones: tied weights, which safetensors refuses, become equal ones.
        save_file({name: value.clone() for name, value in weights.items()}, partial)
    with atomic_path(folder / DESCRIPTION) as partial:
        partial.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return folder


def load_model(folder: str | Path) -> nn.Module:
    """Return the task model that `save_model` wrote, on the CPU. Runs no foreign code.

    The global random generators stay as they are.

    Raises:
        ValueError: the folder does not hold a whole model; names the file and what is wrong with it.
    """
    folder = Path(folder)
    try:
        model = _make(_checked(json.loads((folder / DESCRIPTION).read_text("utf-8"))))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION}: no description of a task model ({error}); save_model writes one"
        ) from error
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder / WEIGHTS}: no weights for this model ({reason}); copy the folder again, whole"
        ) from error
    return model


def _checked(description: Any) -> dict[str, Any]:
    """Return a description whose maker and arguments exist, and that fetches nothing."""
    if not isinstance(description, dict) or set(description) != {"maker", "arguments"}:
        raise ValueError('expected {"maker": ..., "arguments": {...}}')
    maker, arguments = _maker(description["maker"]), description["arguments"]
    known = inspect.signature(maker).parameters
    if not isinstance(arguments, dict) or not set(arguments) <= set(known):
        raise ValueError(f"{description['maker']} takes the arguments {', '.join(known)}")
    arguments = arguments | {name: False for name in _FETCHING if name in known}
    return {"maker": description["maker"], "arguments": arguments}


def _maker(name: Any) -> Callable[..., nn.Module]:
    models = importlib.import_module("r2l.training.models")
    known = [maker for maker in MAKERS if hasattr(models, maker)]
    if name not in known:
        raise ValueError(f"unknown maker {name!r}; choose from {', '.join(known)}")
    return getattr(models, name)


def _make(description: dict[str, Any]) -> nn.Module:
    with seeded(0):  # drawn only to be overwritten
        return _maker(description["maker"])(**description["arguments"])
