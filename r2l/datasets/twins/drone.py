"""Aerial tiles with cars made from code and a seed: a stand-in for Raw-Drone, not a copy of it."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from r2l.camera import DRONE
from r2l.datasets.base import Item, RawDataset, Transform
from r2l.datasets.twins.aerial_layout import COLUMNS, ROWS, TILE, Photo, beside, draw_photo
from r2l.datasets.twins.aerial_paint import paint_photo
from r2l.datasets.twins.procedural import stream
from r2l.sensor import DRONE_NOISE, record

TASKS = {"segmentation": ("background", "car"), "classification": ("no car", "car")}
CHOICE, NOISE = 2, 3  # streams of chance; 1 draws the photos
EMPTY_SHARES = {"segmentation": 0.0, "classification": 0.5}  # as in Raw-Drone


def find_cars(photo: Photo) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Judge each tile of a photo without painting it.

    Returns:
        The share of each tile (ROWS, COLUMNS) that cars cover, about, trees taken into account; and
        whether any car so much as touches the tile.
    """
    inside, touched = np.zeros((ROWS, COLUMNS)), np.zeros((ROWS, COLUMNS), bool)
    trees = np.array([(t.y, t.x, t.radius + 0.4) for t in photo.trees]).reshape(-1, 3)
    along, across = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 13), np.linspace(-1, 1, 7)))
    for car in photo.cars:
        # 0.2 m are added on each side, so that no tile's corner slips in between the points.
        y, x = beside(car, along * (car.length / 2 + 0.2), across * (car.width / 2 + 0.2))
        tile = np.floor(y / TILE).astype(int), np.floor(x / TILE).astype(int)
        there = (y > 0) & (x > 0) & (tile[0] < ROWS) & (tile[1] < COLUMNS)
        hidden = (np.hypot(y[:, None] - trees[:, 0], x[:, None] - trees[:, 1]) < trees[:, 2]).any(1)
        touched[tile[0][there], tile[1][there]] = True
        seen = there & ~hidden
        share = car.length * car.width / along.size / TILE**2
        np.add.at(inside, (tile[0][seen], tile[1][seen]), share)
    return inside, touched


class SyntheticDrone(RawDataset):
    """Aerial tiles at 6 cm a pixel, with cars, drawn by code: items as in `RawDataset`.

    What it is for: lessons, tests and a first run of an experiment without a download. It stands in
    for Raw-Drone and has its camera, scale, optics, tasks and (closely) its channel statistics; it
    holds nothing of its images. No result on it is a result about cars.

    How it is made: photos of 92 x 123 m with streets, parking lots, houses, trees, grass, soil and
    clutter under one sun, on which saloons, hatchbacks and vans stand and cast shadows; the
    published point spread function, then `r2l.sensor.record`. Trees and roofs hide what is below
    them, in the mask too. Nothing in it favours or hurts any pipeline.

    Tasks: ``segmentation`` gives ``mask`` (size, size) int64, 1 where a car is seen, and tiles with
    a car only, unless ``empty`` asks for others. ``classification`` gives ``label``, 1 for a tile
    that cars cover by more than 1 %, 0 for one without; half of each. As in Raw-Drone, tiles with
    less of a car than that belong to neither.

    Groups: the photo. A photo gives up to ``tiles_per_photo`` tiles, shuffled within it.

    Reproducible: item i depends on n, seed, task, size, ``empty``, ``tiles_per_photo`` and i only;
    ``intensity`` changes how many photons are recorded, not what lies there. Any order, any number
    of workers. `frame` gives a whole photo, of which the items are tiles.

    Args:
        n: how many tiles.
        seed: which set; another seed makes another.
        size: side of the mosaic in pixels, even. The field stays 15.36 m, so that a small tile
            shows the same cars more coarsely.
        task: "segmentation" or "classification".
        intensity: exposure; 1.0 is the published base.
        transform: called on each item.
        empty: share of tiles without a car; None is the published one, 0 for segmentation and 0.5
            for classification.
        tiles_per_photo: greatest size of a group.

    Raises:
        ValueError: an unknown task, n or tiles_per_photo below 1, a size that is odd or outside 16
            to 512, a share outside 0 to 1, or a negative intensity or seed.
    """

    camera = DRONE

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
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
        empty = EMPTY_SHARES[task] if empty is None else empty
        if n < 1 or tiles_per_photo < 1 or size % 2 or not 16 <= size <= 512:
            raise ValueError(
                f"n={n}, tiles_per_photo={tiles_per_photo}, size={size}: expected n and "
                "tiles_per_photo of at least 1 and an even size from 16 to 512"
            )
        if intensity < 0 or seed < 0 or not 0 <= empty <= 1:
            raise ValueError(
                f"intensity={intensity}, seed={seed}, empty={empty}: expected 0 or more, and a "
                "share of at most 1"
            )
        self.seed, self.size, self.intensity, self.transform = seed, size, intensity, transform
        self.task, self.classes = task, TASKS[task]
        tiles = self._choose(n, empty, tiles_per_photo)
        self.groups, self.places, self.labels = tiles[:, 0], tiles[:, 1:3], tiles[:, 3]

    def _choose(self, n: int, empty: float, tiles_per_photo: int) -> NDArray[np.int64]:
        """Return n tiles (photo, row, column, label), photo by photo until there are enough."""
        wanted = [round(n * empty), n - round(n * empty)]
        chosen: list[tuple[int, int, int, int]] = []
        photo = 0
        while any(wanted):
            rng = stream(self.seed, CHOICE, photo)
            covered, touched = find_cars(draw_photo(self.seed, photo))
            found: list[tuple[int, int, int, int]] = []
            # Twice the published limit of 1 %, since the area is an estimate.
            for label, fits in enumerate((~touched, covered > 0.02)):
                room = tiles_per_photo - len(found) if label else ceil(tiles_per_photo * empty)
                places = rng.permutation(np.argwhere(fits))[: min(room, wanted[label])]
                wanted[label] -= len(places)
                found += [(photo, row, column, label) for row, column in places.tolist()]
            chosen += [found[i] for i in rng.permutation(len(found))]
            photo += 1
        return np.array(chosen, np.int64)

    def _record(self, photo: int, row: int, column: int) -> tuple[torch.Tensor, torch.Tensor]:
        light, cars = self.scene(photo, row, column)
        place = (photo, row, column, round(self.intensity * 1_000_000))
        raw = record(
            light,
            self.camera,
            DRONE_NOISE,
            rng=stream(self.seed, NOISE, *place),
            intensity=self.intensity,
        )
        return raw, cars

    def scene(
        self, photo: int, row: int, column: int, rows: int = 1, columns: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what lies under the drone at a tile, or a block of tiles, of a photo.

        Returns:
            The light (3, rows * size, columns * size), linear camera colours, no noise; and the
            cars (rows * size, columns * size) int64.
        """
        s = self.size
        window = row * s, column * s, rows * s, columns * s
        light, cars = paint_photo(draw_photo(self.seed, photo), *window, TILE / s)
        return torch.from_numpy(light), torch.from_numpy(cars.astype(np.int64))

    def frame(self, photo: int) -> Item:
        """Return a whole photo: raw (1, 6 * size, 8 * size), raw domain, and its mask.

        The items of this photo are cut from it, noise and all.
        """
        tiles = [[self._record(photo, r, c) for c in range(COLUMNS)] for r in range(ROWS)]
        raw, mask = (
            torch.cat([torch.cat([tile[i] for tile in line], -1) for line in tiles], -2)
            for i in (0, 1)
        )
        return {"raw": raw, "mask": mask}

    def read(self, index: int) -> Item:
        """Return the recorded mosaic, with its mask or its label."""
        raw, cars = self._record(int(self.groups[index]), *self.places[index].tolist())
        if self.task == "segmentation":
            return {"raw": raw, "mask": cars}
        return {"raw": raw, "label": int(self.labels[index])}
