"""Same seed, same weights: seeded generators, and checkpoints from which a killed run goes on to them.

A folder holds ``last.ckpt`` (Lightning's checkpoint after the last whole epoch, with what the run was started
with) and ``previous.ckpt`` (the one before, in case the last is damaged). They are read with
``weights_only=True``: data, no code. Lightning's own `ModelCheckpoint` keeps neither the order of the images
nor the states of the generators.
"""

import hashlib
import os
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from r2l.datasets.frames import Frames

if TYPE_CHECKING:
    from r2l.training.module import RawToLogits

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_PARTS = {"state_dict", "epoch", "callbacks", "generators", "settings"}
# The thread that draws holds it; it may seed again within.
_ALONE = threading.RLock()


def _global_states() -> dict[str, Any]:
    """Return the states of the global generators of torch, numpy and Python, as a checkpoint holds them."""
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python; put their states back at the end.

    One thread of a process at a time: the generators are the process's, so that others wait here.

    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with _ALONE:
        states = _global_states()
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - as above
            yield
        finally:
            _set_global_states(states)


def mixed_seed(*place: int) -> int:
    """Return one seed for a place (seed, fold) in an experiment; no two places share their draws.

    Fold 1 of seed 0 would share them with fold 0 of seed 1 if the two were added.

    >>> mixed_seed(0, 1) == mixed_seed(1, 0)
    False
    """
    return int(np.random.SeedSequence(place).generate_state(1)[0])


class Shuffled(DataLoader):
    """A loader whose order can be taken up again.

    Its generator decides the order of every epoch. What it had come to at the end of an epoch is kept
    with the checkpoint; ``pinned`` to it, the next epoch begins there, however often an iterator is made
    before.
    """

    pinned: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.pinned is not None:
            self.generator.set_state(self.pinned)
        return super().__iter__()


class Keeper(Checkpoint):
    """Writes a checkpoint after each epoch, with the states of all generators, and takes them up again."""

    def __init__(self, folder: Path, loader: Shuffled, settings: Mapping[str, Any]) -> None:
        self.folder, self.loader, self.settings = folder, loader, settings
        self.states: dict[str, Any] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def last(self) -> tuple[Path, dict[str, Any]] | None:
        """Return as `_read_last`; a ValueError names the settings in which that run and this one differ."""
        if (found := _read_last(self.folder)) is None:
            return None
        kept = found[1]["settings"]
        pairs = {name: (kept.get(name), self.settings.get(name)) for name in {**kept, **self.settings}}
        differing = [f"{name} was {was!r}, is {now!r}" for name, (was, now) in pairs.items() if was != now]
        if differing:
            raise ValueError(
                f"{self.folder} holds a run with other settings: {'; '.join(differing)}. Give another "
                "folder, remove this one to start afresh, or take its settings to go on"
            )
        return found

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
        """Add the settings, and the states of all generators."""
        checkpoint["settings"] = dict(self.settings)
        checkpoint["generators"] = {**_global_states(), "order": self.loader.generator.get_state()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
        """Have the order of images go on where it was."""
        self.states = checkpoint["generators"]
        self.loader.pinned = self.states["order"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the global generators where they were: nothing draws between this and the first image."""
        if self.states is not None:
            _set_global_states(self.states)

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Let the order of later epochs follow from this one's."""
        self.loader.pinned = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write aside, then rename: there is a whole checkpoint at every moment."""
        partial = self.folder / f"{LAST}.part"
        trainer.save_checkpoint(partial)  # by all processes together
        if trainer.is_global_zero:
            last = self.folder / LAST
            if last.exists():
                os.replace(last, self.folder / PREVIOUS)
            os.replace(partial, last)


def _read_last(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint of a folder that is whole, and what it holds; None if it has none.

    Warns when it falls back to the one before; a ValueError where there are some, but none can be read.
    """
    reasons = []
    for path in filter(Path.exists, (folder / LAST, folder / PREVIOUS)):
        try:
            with ZipFile(path) as archive:  # torch.load itself does not look at the checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} has another checksum")
            content = torch.load(path, map_location="cpu", weights_only=True)
            if missing := _PARTS - set(content):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except Exception as error:
            # Instructions of a damaged pickle fail in every way, but run no code.
            reasons.append(f"{path} ({str(error).splitlines()[0] if str(error) else error!r})")
            continue
        if reasons:
            warnings.warn(f"{reasons[0]}: damaged; going on from {path}", stacklevel=3)
        return path, content
    if reasons:
        raise ValueError(
            f"no checkpoint can be read: {'; '.join(reasons)}. Give another folder, or remove this one to "
            "start from the beginning"
        )
    return None


def settings_of(
    module: "RawToLogits", data: Dataset, validation: Dataset | None, trainer: dict[str, Any]
) -> dict[str, Any]:
    """Return as plain values what tells one run in a folder from another; see `Keeper.last`."""
    return {
        "task": module.task.name,
        "loss": _plain(module.loss),
        **{name: getattr(module, name) for name in ("lr", "processor_lr", "weight_decay")},
        "output_norm": _plain(module.norm),
        "trained": [name for name, p in module.named_parameters() if p.requires_grad],
        "adversary": None if module.adversary is None else asdict(module.adversary),
        "initial weights": _digest(module.state_dict()),
        "data": _sampled(data),
        "validation": None if validation is None else _sampled(validation),
        "trainer": {name: _plain(value) for name, value in sorted(trainer.items())},
    }


def _plain(value: Any) -> Any:
    """What of a setting can be compared from one run to the next: its value, or its name."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def _sampled(data: Dataset) -> str:
    """Say how many items there are, and what they hold: of other sets than `Frames`, three of them."""
    frames, rows = (data.dataset, data.indices) if isinstance(data, Subset) else (data, None)
    if isinstance(frames, Frames):
        return f"{len(data)} items, {frames.fingerprint(rows)}"
    parts = {}
    # Transforms of items may draw: what is trained must not depend on whether this was called.
    with seeded(0):
        for index in sorted({0, len(data) // 2, len(data) - 1} & set(range(len(data)))):
            parts |= {f"{index} {k}": torch.as_tensor(v) for k, v in data[index].items() if k != "meta"}
    return f"{len(data)} items, {_digest(parts)}"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
