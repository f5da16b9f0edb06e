"""Checkpoints: a training run that is killed goes on, to the same weights as if it had not been.

A folder holds ``settings.json`` (what the run was started with), ``last.ckpt`` (Lightning's checkpoint after
the last whole epoch) and ``previous.ckpt`` (the one before, in case the last is damaged). They are read
with ``weights_only=True``: data, no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from r2l.files import atomic_path
from r2l.training.module import RawToLogits
from r2l.training.quiet import seeded

LAST, PREVIOUS, SETTINGS = "last.ckpt", "previous.ckpt", "settings.json"


class Shuffled(DataLoader):
    """A loader whose order can be taken up again.

    Its generator decides the order of every epoch. What it had come to at the end of an epoch is kept
    with the checkpoint; `pin` makes the next epoch begin there, however often an iterator is made before.
    """

    pinned: Tensor | None = None

    def pin(self, state: Tensor | None) -> None:
        """Begin at this state of the generator; None goes on from wherever it is."""
        self.pinned = state

    def __iter__(self) -> Iterator[Any]:
        if self.pinned is not None:
            self.generator.set_state(self.pinned)
        return super().__iter__()


class Keeper(Checkpoint):
    """Writes a checkpoint after each epoch, with the states of all generators, and takes them up again."""

    def __init__(self, folder: Path, loader: Shuffled) -> None:
        self.folder, self.loader = folder, loader
        self.states: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the states of all generators."""
        checkpoint["generators"] = {**_global_states(), "order": self.loader.generator.get_state()}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have the order of images go on where it was."""
        self.states = checkpoint["generators"]
        self.loader.pin(self.states["order"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the global generators where they were: nothing draws between this and the first image."""
        if self.states is not None:
            _set_global_states(self.states)

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Let the order of later epochs follow from this one's."""
        self.loader.pin(None)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write aside, then rename: there is a whole checkpoint at every moment."""
        partial = self.folder / f"{LAST}.part"
        trainer.save_checkpoint(partial)  # by all processes together
        if trainer.is_global_zero:
            last = self.folder / LAST
            if last.exists():
                os.replace(last, self.folder / PREVIOUS)
            os.replace(partial, last)


def _global_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - other people's transforms draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def _set_global_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


def _read_whole(path: Path) -> dict[str, Any]:
    with ZipFile(path) as archive:  # torch.load itself does not look at the checksums
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} has another checksum")
    found = torch.load(path, map_location="cpu", weights_only=True)
    if missing := {"state_dict", "epoch", "callbacks", "generators"} - set(found):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return found


def read_last(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint of a folder that is whole, and what it holds; None if it has none.

    Warns when it falls back to the one before.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    reasons = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = _read_whole(path)
        except Exception as error:
            # Instructions of a damaged pickle fail in every way, but run no code.
            reasons.append(f"{path} ({str(error).splitlines()[0] if str(error) else error!r})")
            continue
        if reasons:
            warnings.warn(f"{reasons[0]}: damaged; going on from {path}", stacklevel=3)
        return path, found
    if reasons:
        raise ValueError(
            f"no checkpoint can be read: {'; '.join(reasons)}. Give another folder, or remove this one to "
            "start from the beginning"
        )
    return None


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder a run's own: write its settings, or see that those there are equal.

    Raises:
        ValueError: the folder holds a run of other settings, or checkpoints without settings.
    """
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            kept = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not the settings of a run ({error}); {_REMEDY}") from error
        differing = [
            f"{name} was {kept.get(name)!r}, is {settings.get(name)!r}"
            for name in {**kept, **settings}
            if kept.get(name) != settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings: {'; '.join(differing)}. {_REMEDY}"
            )
        return
    if any((folder / name).exists() for name in (LAST, PREVIOUS)):
        raise ValueError(f"{folder} holds a checkpoint, but no {SETTINGS}. {_REMEDY}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


_REMEDY = "Give another folder, remove this one to start afresh, or take its settings to go on"


def describe(
    module: RawToLogits, data: Dataset, validation: Dataset | None, trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a run that follow from what it was given, as plain values.

    Two runs of equal settings have equal results, as far as a digest can tell: of all initial weights, and
    of the first, middle and last item of the data.
    """
    return {
        "task": module.task.name,
        "loss": _name(module.loss),
        "lr": module.lr,
        "weight_decay": module.weight_decay,
        "trained": [name for name, p in module.named_parameters() if p.requires_grad],
        "initial weights": _digest(module.state_dict()),
        "adversary": None if module.adversary is None else asdict(module.adversary),
        "data": _describe_data(data),
        "validation": None if validation is None else _describe_data(validation),
        "trainer": {name: _name(value) for name, value in sorted(trainer.items())},
    }


def _name(value: Any) -> Any:
    """What of a setting can be compared from one run to the next: its value, or its name."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _describe_data(data: Dataset) -> str:
    parts = {}
    # Transforms of items may draw: what is trained must not depend on whether this was called.
    with seeded(0):
        for index in sorted({0, len(data) // 2, len(data) - 1} & set(range(len(data)))):
            item = data[index]
            parts |= {f"{index} {k}": torch.as_tensor(v) for k, v in item.items() if k != "meta"}
    return f"{len(data)} items, {_digest(parts)}"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
