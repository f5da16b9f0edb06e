"""What every data set of raw frames looks like from outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from r2l.camera import Camera

Item = dict[str, Any]
Transform = Callable[[Item], Item]


class RawDataset(Dataset[Item], ABC):
    """The contract. A data set of raw frames has the attributes below and makes items like these::

        {"raw":   (1, H, W) float32 tensor, raw domain (black level still in it),
         "label": int                       for classification, or
         "mask":  (H, W) int64 tensor       for segmentation,
         "meta":  {"group": int, "intensity": float, "camera": str}}

    Attributes:
        camera: layout and calibration of every frame.
        classes: names; a label, or a value in a mask, is an index into them.
        labels: (N,) int64, the label of each item, known without reading it (for segmentation: the
            highest class in the mask), so that splits can be stratified.
        groups: (N,) int64, which items share something that a split must not tear apart (a slide's
            zone, a photo), known without reading.
        intensity: exposure of the frames relative to the base exposure.
        transform: called on each item as the last step, may be None.
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
        """Return item ``index``, counted from the end if negative.

        Raises:
            IndexError: no such item.
        """
        index = range(len(self))[index]
        meta = {
            "group": int(self.groups[index]),
            "intensity": self.intensity,
            "camera": self.camera.name,
        }
        item = {**self.read(index), "meta": meta}
        return self.transform(item) if self.transform else item
