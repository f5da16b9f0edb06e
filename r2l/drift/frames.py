"""A data set of raw frames, read once and held in memory: what models are trained on and asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from r2l.camera import Camera
from r2l.datasets import RawDataset
from r2l.training.quiet import progress_bar
from r2l.training.tasks import TASKS

# Frames of a step hold about this many pixels: small enough for the caches of a small machine.
_STEP_PIXELS = 400_000


@dataclass(frozen=True, eq=False)
class Frames(Dataset):
    """Raw frames in memory, with what is true of them; also a data set, as `fit` and `evaluate` take it.

    Items are ``dict(raw=(1, H, W), label=int or mask=(1, H, W), meta=dict(image, group))``.

    Attributes:
        raw: (N, 1, H, W), raw domain.
        truth: (N,) class of each frame, or (N, 1, H, W) masks of 0.0 and 1.0.
        groups: (N,) which share something; what a bootstrap draws.
        camera: whose they are.
        labels: (N,) what folds are stratified by: the classes or, of masks, what the data set says.
        classes: names of the classes.
    """

    raw: Tensor = field(repr=False)
    truth: Tensor = field(repr=False)
    groups: np.ndarray = field(repr=False)
    camera: Camera
    labels: np.ndarray | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        dataset: RawDataset,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        progress: bool = True,
    ) -> Frames:
        """Read frames of a data set, all or those of ``indices``. Memory: 4 bytes a pixel, 8 with masks.

        Raises:
            ValueError: no frames.
        """
        chosen = np.arange(len(dataset)) if indices is None else np.asarray(indices, int)
        if not len(chosen):
            raise ValueError("nothing to load: no frames")
        items = []
        with progress_bar(total=len(chosen), desc="loading", disable=not progress) as bar:
            for index in chosen.tolist():
                items.append(dataset[index])
                bar.update()
        task = TASKS["segmentation" if "mask" in items[0] else "classification"]
        truth = torch.stack([torch.as_tensor(item[task.key]) for item in items])
        return cls(
            torch.stack([item["raw"] for item in items]),
            task.targets({task.key: truth}),
            np.asarray(dataset.groups)[chosen],
            dataset.camera,
            np.asarray(dataset.labels)[chosen],
            tuple(dataset.classes),
        )

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        masks = self.truth.ndim == 4
        truth = {"mask": self.truth[index]} if masks else {"label": int(self.truth[index])}
        meta = {"image": index, "group": int(self.groups[index])}
        return {"raw": self.raw[index], **truth, "meta": meta}

    def subset(self, indices: Sequence[int] | np.ndarray) -> Subset:
        """Return the items ``indices`` as a data set; each keeps its number as ``meta["image"]``."""
        return Subset(self, np.asarray(indices, int).tolist())

    def to(self, device: str | torch.device) -> Frames:
        """Return the frames on a device, where searches and scans then run."""
        return replace(self, raw=self.raw.to(device), truth=self.truth.to(device))

    def take(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Return some of the frames, numbered anew."""
        chosen = np.asarray(indices)
        kept = torch.as_tensor(chosen, device=self.raw.device)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(
            self,
            raw=self.raw[kept],
            truth=self.truth[kept],
            groups=self.groups[chosen],
            labels=labels,
        )

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Frames, Frames]:
        """Part the frames in two with whole groups on either side: ``share`` of them, and the rest.

        Raises:
            ValueError: one part would be empty.
        """
        names = np.unique(self.groups)
        count = round(share * len(names))
        if not 0 < count < len(names):
            raise ValueError(f"{len(names)} groups can't be parted {share:g} to {1 - share:g}")
        drawn = np.random.default_rng(seed).permutation(names)[:count]
        inside = np.isin(self.groups, drawn)
        return self.take(np.flatnonzero(inside)), self.take(np.flatnonzero(~inside))

    def steps(self) -> Iterator[slice]:
        """Cut the frames into steps that suit a small machine."""
        size = max(1, _STEP_PIXELS // (self.raw.shape[-1] * self.raw.shape[-2]))
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))
