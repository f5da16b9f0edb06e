"""Blood smears made from code and a seed: a stand-in for Raw-Microscopy, not a copy of it."""

from __future__ import annotations

import numpy as np
import torch

from r2l.camera import MICROSCOPE
from r2l.datasets.base import Item, RawDataset, Transform
from r2l.datasets.info import INFO
from r2l.datasets.twins.procedural import apportion, stream
from r2l.datasets.twins.smear import draw_smear, draw_zone
from r2l.sensor import MICROSCOPE_NOISE, record

# Raw-Microscopy's 940 cells; a synthetic set has them in the same proportions.
CLASS_COUNTS = dict(zip(INFO["microscopy"].classes, INFO["microscopy"].class_counts, strict=True))


LABELS, ZONES, SCENES, NOISE = range(4)  # independent streams of chance


class SyntheticMicroscopy(RawDataset):
    """Blood smears with one white cell each, drawn by code: items as in `RawDataset`, with a label.

    What it is for: lessons, tests and a first run of an experiment without a download. It stands in
    for Raw-Microscopy and has its camera, classes, class proportions, optics and (closely) its
    channel statistics; it holds nothing of its images. No result on it is a result about blood.

    How it is made: absorbances of eosin and azure stain (Beer-Lambert) over an uneven lamp, a
    white cell with a nucleus of lobes amid red cells and platelets, the published point spread
    function with some defocus, then `r2l.sensor.record`. Classes differ by shape, size and stain as
    in a textbook and overlap as they do there. Nothing in it favours or hurts any pipeline.

    Groups: ``crops_per_zone`` consecutive items share a zone, its lamp, stain and focus. Labels are
    shuffled over zones, so that a zone tells nothing about the label.

    Reproducible: item i depends on n, seed, size, ``crops_per_zone`` and i only; ``intensity``
    changes how many photons are recorded, not what lies there. Any order, any number of workers.

    Args:
        n: how many items.
        seed: which set; another seed makes another.
        size: side of the mosaic in pixels, even. The field stays 41.6 um, so that a small tile
            shows the same cell more coarsely.
        intensity: exposure; 1.0 is the published base.
        transform: called on each item.
        crops_per_zone: size of a group.

    Raises:
        ValueError: n or crops_per_zone below 1, a size that is odd or outside 16 to 512, or a
            negative intensity or seed.
    """

    camera = MICROSCOPE
    classes = tuple(CLASS_COUNTS)

    def __init__(
        self,
        n: int = 940,
        seed: int = 0,
        *,
        size: int = 256,
        intensity: float = 1.0,
        transform: Transform | None = None,
        crops_per_zone: int = 5,
    ) -> None:
        if n < 1 or crops_per_zone < 1 or size % 2 or not 16 <= size <= 512:
            raise ValueError(
                f"n={n}, crops_per_zone={crops_per_zone}, size={size}: expected n and "
                "crops_per_zone of at least 1 and an even size from 16 to 512"
            )
        if intensity < 0 or seed < 0:
            raise ValueError(f"intensity={intensity}, seed={seed}: expected 0 or more")
        self.seed, self.size, self.intensity, self.transform = seed, size, intensity, transform
        counts = apportion(n, CLASS_COUNTS)
        self.labels = np.repeat(np.arange(len(self.classes)), list(counts.values()))
        stream(seed, LABELS).shuffle(self.labels)
        self.groups = np.arange(n) // crops_per_zone

    def scene(self, index: int) -> torch.Tensor:
        """Return what lies under the lens: (3, size, size), linear camera colours, no noise."""
        zone = draw_zone(stream(self.seed, ZONES, int(self.groups[index])))
        label = self.classes[self.labels[index]]
        return torch.from_numpy(
            draw_smear(label, zone, self.size, stream(self.seed, SCENES, index))
        )

    def read(self, index: int) -> Item:
        """Return the recorded mosaic and its label."""
        noise = stream(self.seed, NOISE, index, round(self.intensity * 1_000_000))
        raw = record(
            self.scene(index),
            self.camera,
            MICROSCOPE_NOISE,
            rng=noise,
            intensity=self.intensity,
        )
        return {"raw": raw, "label": int(self.labels[index])}
