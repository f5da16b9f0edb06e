"""Data sets drawn by code, from a seed, through the published cameras.

What they are for: lessons, tests and a first run of an experiment without a download. A twin stands in
for a published set and has its camera, classes, scale, optics and (closely) its channel statistics; it
holds nothing of its images. No result on it is a result about blood or about cars. Nothing in it favours
or hurts any pipeline.

Reproducible: item i depends on i and the arguments only; ``intensity`` changes how many photons are
recorded, not what lies there. Any order, any number of workers.
"""

from itertools import count
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets.layout import DRONE_TASKS, INFO
from r2l.datasets.splits import Item, RawDataset, Transform
from r2l.datasets.twins.aerial_layout import COLUMNS, ROWS, TILE, draw_photo, find_cars
from r2l.datasets.twins.aerial_paint import paint_photo
from r2l.datasets.twins.procedural import apportion, stream
from r2l.datasets.twins.smear import draw_smear, draw_zone
from r2l.files import choose
from r2l.sensor import DRONE_NOISE, MICROSCOPE_NOISE, NoiseModel, record

# Independent streams of chance; the drone's photos are drawn from 1.
_LABELS, _ZONES, _SCENES, _NOISE = range(4)
_CHOICE = 2


class _Twin(RawDataset):
    """What both twins have in common: options, and recording what was drawn."""

    noise: NoiseModel

    def __init__(self, n: int, seed: int, size: int, intensity: float, **largest_group: int) -> None:
        ((name, most),) = largest_group.items()
        if n < 1 or most < 1 or size % 2 or not 16 <= size <= 512:
            wanted = f"n and {name} of at least 1 and an even size from 16 to 512"
            raise ValueError(f"n={n}, {name}={most}, size={size}: expected {wanted}")
        if intensity < 0 or seed < 0:
            raise ValueError(f"intensity={intensity}, seed={seed}: expected 0 or more")
        self.seed, self.size, self.intensity = seed, size, intensity

    def _record(self, light: torch.Tensor, *spot: int) -> torch.Tensor:
        """Record the light (3, H, W) of what lies at a ``spot``: (1, H, W), *raw* domain."""
        rng = stream(self.seed, _NOISE, *spot, round(self.intensity * 1_000_000))
        return record(light, self.camera, self.noise, rng=rng, intensity=self.intensity)


class SyntheticMicroscopy(_Twin):
    """Blood smears with one white cell each, drawn by code: items as in `RawDataset`, with a label.

    A stand-in for Raw-Microscopy; see this module for what it is good for.

    How it is made: absorbances of eosin and azure stain (Beer-Lambert) over an uneven lamp, a
    white cell with a nucleus of lobes amid red cells and platelets, the published point spread
    function with some defocus, then `r2l.sensor.record`. Classes differ by shape, size and stain as
    in a textbook and overlap as they do there. The classes have the published proportions.

    Groups: ``crops_per_zone`` consecutive items share a zone, its lamp, stain and focus. Labels are
    shuffled over zones, so that a zone tells nothing about the label.

    >>> data = SyntheticMicroscopy(4, seed=0, size=32)
    >>> data[0]["raw"].shape, data.classes[data[0]["label"]]
    (torch.Size([1, 32, 32]), 'MON')

    Args:
        n, seed: how many items, of which set.
        size: side of the mosaic in pixels, even, 16 to 512. The field stays 41.6 um, so that a small
            tile shows the same cell more coarsely.
        intensity: exposure; 1.0 is the published base.
        crops_per_zone: size of a group.

    Raises:
        ValueError: n or crops_per_zone below 1, another size, or a negative intensity or seed.
    """

    camera = MICROSCOPE
    noise = MICROSCOPE_NOISE
    classes = INFO["microscopy"].classes

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
        super().__init__(n, seed, size, intensity, crops_per_zone=crops_per_zone)
        self.transform = transform
        counts = apportion(n, INFO["microscopy"].class_counts)
        self.labels = np.repeat(np.arange(len(self.classes)), counts)
        stream(seed, _LABELS).shuffle(self.labels)
        self.groups = np.arange(n) // crops_per_zone

    def scene(self, index: int) -> torch.Tensor:
        """Return what lies under the lens: (3, size, size), linear camera colours, no noise."""
        zone = draw_zone(stream(self.seed, _ZONES, int(self.groups[index])))
        label, rng = self.classes[self.labels[index]], stream(self.seed, _SCENES, index)
        return torch.from_numpy(draw_smear(label, zone, self.size, rng))

    def read(self, index: int) -> Item:
        """Return the recorded mosaic and its label."""
        return {"raw": self._record(self.scene(index), index), "label": int(self.labels[index])}


class SyntheticDrone(_Twin):
    """Aerial tiles at 6 cm a pixel, with cars, drawn by code: items as in `RawDataset`.

    A stand-in for Raw-Drone; see this module for what it is good for.

    How it is made: photos of 92 x 123 m with streets, parking lots, houses, trees, grass, soil and
    clutter under one sun, on which saloons, hatchbacks and vans stand and cast shadows; the
    published point spread function, then `r2l.sensor.record`. Trees and roofs hide what is below
    them, in the mask too.

    Tasks: ``segmentation`` gives ``mask`` (size, size) int64, 1 where a car is seen, and tiles with
    a car only, unless ``empty`` asks for others. ``classification`` gives ``label``, 1 for a tile
    that cars cover by more than 1 %, 0 for one without; half of each. As in Raw-Drone, tiles with
    less of a car than that belong to neither.

    Groups: the photo. A photo gives up to ``tiles_per_photo`` tiles, shuffled within it. `frame`
    gives a whole photo, of which the items are tiles.

    >>> data = SyntheticDrone(2, seed=0, size=32)
    >>> data[0]["mask"].shape, data.groups
    (torch.Size([32, 32]), array([0, 0]))

    Args:
        n, seed, size, intensity: as of `SyntheticMicroscopy`; the field stays 15.36 m.
        task: "segmentation" or "classification".
        empty: share of tiles without a car; None is the published one, 0 for segmentation and 0.5
            for classification.
        tiles_per_photo: greatest size of a group.

    Raises:
        ValueError: as `SyntheticMicroscopy`; an unknown task, or a share outside 0 to 1.
    """

    camera = DRONE
    noise = DRONE_NOISE

    def __init__(
        self,
        n: int = 548,
        seed: int = 0,
        *,
        size: int = 256,
        task: str = "segmentation",
        intensity: float = 1.0,
        transform: Transform | None = None,
        empty: float | None = None,
        tiles_per_photo: int = 16,
    ) -> None:
        self.task, self.classes = task, choose("task", task, DRONE_TASKS)
        if empty is None:
            empty = 0.5 if task == "classification" else 0.0
        if not 0 <= empty <= 1:
            raise ValueError(f"empty={empty}: expected a share of at least 0 and at most 1")
        super().__init__(n, seed, size, intensity, tiles_per_photo=tiles_per_photo)
        self.transform = transform
        tiles = self._choose(n, empty, tiles_per_photo)
        self.groups, self.places, self.labels = tiles[:, 0], tiles[:, 1:3], tiles[:, 3]

    def _choose(self, n: int, empty: float, tiles_per_photo: int) -> NDArray[np.int64]:
        """Return n tiles (photo, row, column, label), photo by photo until there are enough."""
        wanted = [round(n * empty), n - round(n * empty)]
        chosen: list[tuple[int, int, int, int]] = []
        for photo in count():
            rng = stream(self.seed, _CHOICE, photo)
            covered, touched = find_cars(draw_photo(self.seed, photo))
            here: list[tuple[int, int, int, int]] = []
            # Twice the published limit of 1 %, since the area is an estimate.
            for label, fits in enumerate((~touched, covered > 0.02)):
                room = tiles_per_photo - len(here) if label else ceil(tiles_per_photo * empty)
                tiles = rng.permutation(np.argwhere(fits))[: min(room, wanted[label])]
                wanted[label] -= len(tiles)
                here += [(photo, row, column, label) for row, column in tiles.tolist()]
            chosen += [here[i] for i in rng.permutation(len(here))]
            if not any(wanted):
                return np.array(chosen, np.int64)

    def scene(
        self, photo: int, row: int, column: int, rows: int = 1, columns: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what lies under the drone at a tile, or a block of tiles, of a photo.

        Returns:
            The light (3, rows * size, columns * size), linear camera colours, no noise; and the
            cars (rows * size, columns * size) int64.
        """
        window = (number * self.size for number in (row, column, rows, columns))
        light, cars = paint_photo(draw_photo(self.seed, photo), *window, TILE / self.size)
        return torch.from_numpy(light), torch.from_numpy(cars.astype(np.int64))

    def _tile(self, *spot: int) -> Item:
        """Return raw and mask at a photo, row and column."""
        light, cars = self.scene(*spot)
        return {"raw": self._record(light, *spot), "mask": cars}

    def frame(self, photo: int) -> Item:
        """Return a whole photo: raw (1, 6 * size, 8 * size), raw domain, and its mask.

        The items of this photo are cut from it, noise and all.
        """
        tiles = [[self._tile(photo, row, column) for column in range(COLUMNS)] for row in range(ROWS)]
        return {
            what: torch.cat([torch.cat([tile[what] for tile in line], -1) for line in tiles], -2)
            for what in ("raw", "mask")
        }

    def read(self, index: int) -> Item:
        """Return the recorded mosaic, with its mask or its label."""
        tile = self._tile(int(self.groups[index]), *self.places[index].tolist())
        if self.task == "segmentation":
            return tile
        return {"raw": tile["raw"], "label": int(self.labels[index])}
