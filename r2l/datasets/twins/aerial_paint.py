"""A twin of Raw-Drone, and how an aerial photo looks: a window painted by itself agrees with its neighbours.

Each pixel depends on its place in the photo alone: coordinates are metres from the photo's corner,
textures are addressed by place, and objects carry their chance with them.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from r2l.camera import DRONE
from r2l.datasets.layout import DRONE_TASKS
from r2l.datasets.splits import Item, Transform
from r2l.datasets.twins import aerial_layout as layout
from r2l.datasets.twins import procedural as draw
from r2l.datasets.twins.aerial_layout import STALL, Box, Photo, Tree, seen, turned, upright
from r2l.datasets.twins.procedural import EVERYWHERE, Array, Part, Twin, coverage, patch
from r2l.files import choose
from r2l.sensor import DRONE_NOISE

_PSF_SIGMA = 2.52 * 0.06  # metres
_PAVEMENT = 1.5  # metres
_LUSH, _DRY, _SOIL = seen(0.24, 0.31, 0.24), seen(0.41, 0.39, 0.33), seen(0.40, 0.34, 0.30)
_ASPHALT, _PAVING, _MARKING = seen(0.36, 0.37, 0.40), seen(0.46, 0.46, 0.47), seen(0.70, 0.70, 0.68)
_GLASS = seen(0.13, 0.15, 0.18)
_SUNLIGHT = np.array([1.06, 1.0, 0.9], np.float32)  # what a shadow lacks: it is bluer than the sun
# Where windscreen and rear window begin and end, as shares of the length, by kind of car.
_WINDOWS = (((0.29, 0.43), (0.74, 0.84)), ((0.27, 0.41), (0.88, 0.95)), ((0.10, 0.20), (0.98, 0.99)))


@lru_cache(maxsize=3)
def _car_sprite(kind: int) -> Array:
    """Return a car from above, front first: (3, 130, 66), its body, glass and brightness.

    A frame of nothing is round it, so that a look-up beyond the car finds nothing.
    """
    u, v = np.arange(128)[:, None] / 127, np.abs(np.arange(64)[None] / 63 * 2 - 1)
    (front, top), (back, rear) = _WINDOWS[kind]
    body = coverage(draw.rectangle((u - 0.5) * 4.5, v * 0.9, 2.25, 0.9, 0.4), 0.05)
    panes = ((u > front) & (u < top) | (u > back) & (u < rear)) & (v < 0.82)
    sides = (u > front + 0.05) & (u < rear - 0.04) & (v > 0.80) & (v < 0.93)
    roof = (u > top) & (u < back) & (v < 0.8)
    bright = 1 + 0.12 * roof - 0.3 * (v > 0.93) - 0.15 * (np.abs(u - 0.5) > 0.48)
    planes = np.stack([body, body * (panes | sides), bright])
    return np.pad(planes, ((0, 0), (1, 1), (1, 1))).astype(np.float32)


def _each(paint: Callable[[Any], None], things: list[Any]) -> None:
    for thing in things:
        paint(thing)


class _Window:
    """The part of a photo that is being painted, arguments as of `_paint_photo`."""

    def __init__(self, photo: Photo, top: int, left: int, height: int, width: int, pixel: float) -> None:
        self.photo, self.pixel = photo, pixel
        self.y = ((np.arange(top, top + height) + 0.5) * pixel).astype(np.float32)[:, None]
        self.x = ((np.arange(left, left + width) + 0.5) * pixel).astype(np.float32)[None]
        self.edges = self.y[[0, -1], 0].tolist(), self.x[0, [0, -1]].tolist()
        where = top + photo.offset[0], left + photo.offset[1], height, width
        self.grain = draw.wrap(draw.texture(max(0.2 / pixel, 1.5), 2, 10), *where)
        self.leaves = draw.wrap(draw.texture(max(0.5 / pixel, 1.5), 3, 11), *where)
        self.rough = 1 + 0.05 * self.grain + 0.03 * self.leaves  # asphalt, concrete, tiles
        self.albedo = np.empty((3, height, width), np.float32)
        self.sun = np.ones((height, width), np.float32)  # share of the sun that gets through
        self.cars = np.zeros((height, width), bool)

    def local(self, box: Box, margin: float = 0) -> tuple[Part, Array, Array]:
        """Return the part of the window about a box, and its coordinates along and across it."""
        reach = upright(box, margin + 0.2 + self.pixel / 2)
        where, y, x = patch((box.y, box.x), reach, self.y, self.x)
        return where, *turned(y, x, box.heading)

    def crossed_by(self, road: Box) -> bool:
        """Say whether some of a road, or of its pavement, lies in the window."""
        (top, bottom), (left, right) = self.edges
        away = turned((top + bottom) / 2 - road.y, (left + right) / 2 - road.x, road.heading)[1]
        window = Box(0, 0, road.heading, right - left, bottom - top, 0, road.colour)
        return abs(away) < upright(window)[0] + road.width / 2 + _PAVEMENT + self.pixel

    def blend(self, where: Part, cover: Array, colour: Array, shade: Array | float = 1) -> None:
        """Lay ``colour`` (3,), brighter or darker by ``shade``, over a part of the ground.

        ``cover`` (h, w) says where, from 0 to 1.
        """
        left, laid = 1 - cover, cover * shade
        for plane, value in zip(self.albedo, colour, strict=True):
            part = plane[where]
            part *= left
            part += laid * value

    def cover(self, where: Part, inside: Array, colour: Array, shade: Array) -> None:
        """Lay something in the sun over all that is below."""
        self.blend(where, inside, colour, shade)
        self.sun[where] += inside * (1 - self.sun[where])
        self.cars[where] &= inside < 0.5

    def paint_ground(self) -> None:
        """Spread lush grass, dry grass and soil by plane waves, ragged by the leaves."""
        fields = [0.2 * self.leaves + 0.3, 0.2 * self.leaves - 0.6]
        wave = np.empty_like(self.sun)
        for fy, fx, phase, layer in self.photo.waves.astype(np.float32):
            a, b, field = fy * self.y + phase, fx * self.x, fields[int(layer)]
            field += np.multiply(0.4 * np.cos(a), np.cos(b), out=wave)
            field -= np.multiply(0.4 * np.sin(a), np.sin(b), out=wave)
        self.albedo[:] = _LUSH[:, None, None]
        for field, colour in zip(fields, (_DRY, _SOIL), strict=True):
            self.blend(EVERYWHERE, field.clip(0, 1, out=field), colour)
        self.albedo *= 1 + 0.12 * self.grain + 0.18 * self.leaves

    def pave(
        self, road: Box, colour: Array = _PAVING, margin: float = _PAVEMENT
    ) -> tuple[Part, Array, Array]:
        """Lay a pavement on both sides, and under the road; return where, along and across the road."""
        where, along, across = self.local(road, margin)
        beyond = np.abs(across) - np.float32(road.width / 2 + margin)
        self.blend(where, coverage(beyond, self.pixel), colour, self.rough[where])
        return where, along, across

    def paint_road(self, road: Box) -> None:
        """Lay asphalt and a broken line in the middle."""
        where, along, across = self.pave(road, _ASPHALT, 0)
        line = coverage(np.abs(across) - 0.06, self.pixel) * (draw.remainder(along, 6) < 3)
        self.blend(where, 0.7 * line, _MARKING)

    def paint_lot(self, lot: Box) -> None:
        """Lay asphalt, with a line between two parking spaces."""
        where, along, across = self.local(lot)
        inside = coverage(draw.rectangle(along, across, lot.length / 2, lot.width / 2, 0.5), self.pixel)
        self.blend(where, inside, _ASPHALT, self.rough[where])
        to_line = np.abs(draw.remainder(along + (lot.length + STALL[0]) / 2, STALL[0]) - STALL[0] / 2)
        line = coverage(to_line - 0.05, self.pixel) * (np.abs(across) > lot.width / 2 - STALL[1])
        self.blend(where, 0.6 * line * inside, _MARKING)

    def shade(self, box: Box) -> None:
        """Take the sun from where the box stands in its way: the box, swept along its shadow."""
        shift = (self.photo.shadow * box.height).tolist()
        length = float(np.hypot(*shift))
        down, right = upright(box)
        reach = down + abs(shift[0]) / 2, right + abs(shift[1]) / 2
        middle = (box.y + shift[0] / 2, box.x + shift[1] / 2)
        where, y, x = patch(middle, reach, self.y, self.x)
        along, across = turned(y + shift[0] / 2, x + shift[1] / 2, box.heading)
        first, last = np.float32(0), np.float32(1)
        sweep = turned(*shift, box.heading)
        for p, side, step in ((along, box.length, sweep[0]), (across, box.width, sweep[1])):
            step = np.float32(np.copysign(max(abs(step), 1e-3), step))
            one, other = (p - side / 2) / step, (p + side / 2) / step
            first = np.maximum(first, np.minimum(one, other))
            last = np.minimum(last, np.maximum(one, other))
        dark = np.minimum(np.maximum((last - first) * (length / 0.25), 0), 1)  # 25 cm of penumbra
        self.sun[where] = np.minimum(self.sun[where], 1 - dark)

    def shade_tree(self, tree: Tree) -> None:
        """Take most of the sun from where the crown's shadow falls."""
        shift = (self.photo.shadow * tree.height).tolist()
        middle = (tree.y + shift[0], tree.x + shift[1])
        where, y, x = patch(middle, tree.radius + 1, self.y, self.x)
        distance = np.sqrt(y * y + x * x) - tree.radius + 0.3 * self.leaves[where]
        self.sun[where] = np.minimum(self.sun[where], 1 - 0.85 * coverage(distance, 0.4))

    def paint_roof(self, box: Box) -> None:
        """Cover a box: kind 0 with two slopes, of which one looks to the sun, else flat."""
        where, along, across = self.local(box)
        inside = coverage(draw.rectangle(along, across, box.length / 2, box.width / 2, 0.05), self.pixel)
        to_sun = -turned(*self.photo.shadow, box.heading)[1] * (0.1 + self.photo.sun)
        tiles = self.rough[where]
        if box.kind == 0:
            tiles = tiles * (1 + np.float32(0.5 * np.tanh(to_sun)) * np.sign(across))
        self.cover(where, inside, box.colour, tiles)

    def paint_car(self, car: Box, sun: Array) -> None:
        """Put a car there, in the ``sun`` (H, W) that shines on it; its own shadow does not."""
        where, along, across = self.local(car)
        u = np.rint((along / car.length + 0.5) * 127 + 1).clip(0, 129)
        v = np.rint((across / car.width + 0.5) * 63 + 1).clip(0, 65)
        sprite = _car_sprite(car.kind)
        spots = (u * sprite.shape[2] + v).astype(np.intp)
        body, glass, bright = (plane.take(spots) for plane in sprite)
        self.blend(where, body, car.colour, bright)
        self.blend(where, glass, _GLASS)
        self.sun[where] += body * (sun[where] - self.sun[where])
        self.cars[where] |= body > 0.5

    def paint_tree(self, tree: Tree) -> None:
        """Put a crown there: ragged, brighter towards the sun. It hides what is below."""
        where, y, x = patch((tree.y, tree.x), tree.radius + 1, self.y, self.x)
        leaves = self.leaves[where]
        inside = coverage(np.sqrt(y * y + x * x) - tree.radius + 0.35 * leaves, 0.25)
        sy, sx = (-0.5 * self.photo.sun / tree.radius * self.photo.shadow).astype(np.float32)
        lit = np.maximum(1 + sy * y + sx * x + 0.25 * leaves + 0.2 * self.grain[where], 0.3)
        self.cover(where, inside, tree.colour, lit)

    def near(self, things: list[Any]) -> list[Any]:
        """Return the boxes or trees of which something may lie in the window."""
        (top, bottom), (left, right) = self.edges
        things = [t for t in things if top - t.reach < t.y < bottom + t.reach]
        return [t for t in things if left - t.reach < t.x < right + t.reach]

    def paint(self) -> None:
        """Paint from the ground up; shadows lie on the ground, crowns above all."""
        roads, lots, roofs, junk, trees, cars = map(self.near, self.photo[-6:])
        roads = [road for road in roads if self.crossed_by(road)]
        self.paint_ground()
        _each(self.pave, roads)
        _each(self.paint_road, roads)
        _each(self.paint_lot, lots)
        _each(self.shade, [*roofs, *junk])
        _each(self.shade_tree, trees)
        sun = self.sun.copy()
        _each(self.shade, cars)
        _each(partial(self.paint_car, sun=sun), cars)
        _each(self.paint_roof, [*junk, *roofs])
        _each(self.paint_tree, trees)

    def light(self) -> Array:
        """Return what reaches the sensor, after the lens: (3, ...), smaller by the lens's reach."""
        dark, light = 1 - self.sun, []
        for i, warm in enumerate(_SUNLIGHT):
            lit = dark * (-self.photo.light[i] * np.float32(self.photo.sun) * warm)
            lit += self.photo.light[i]
            lit *= self.albedo[i]
            light.append(draw.smooth(lit, _PSF_SIGMA / self.pixel))
        return np.stack(light)


def _paint_photo(
    photo: Photo, top: int, left: int, height: int, width: int, pixel: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Paint a window of a photo, which may lie beyond it: from ``top`` and ``left`` on, in pixels.

    Args:
        photo: what there is.
        top, left, height, width: rows and columns.
        pixel: side of a pixel on the ground in metres.

    Returns:
        The light (3, height, width), linear camera colours, and where cars are (height, width).
    """
    halo = draw.smooth_reach(_PSF_SIGMA / pixel)  # the lens brings light from beyond the window
    size = height + 2 * halo, width + 2 * halo
    window = _Window(photo, top - halo, left - halo, *size, pixel)
    window.paint()
    return window.light(), window.cars[halo : halo + height, halo : halo + width]


class SyntheticDrone(Twin):
    """Aerial tiles at 6 cm a pixel, with cars, drawn by code: items as in `RawDataset`.

    A stand-in for Raw-Drone; see `r2l.datasets.twins` for what it is good for.

    How it is made: photos of 92 x 123 m with streets, parking lots, houses, trees, grass, soil and clutter
    under one sun, on which saloons, hatchbacks and vans stand and cast shadows; the published point spread
    function, then `r2l.sensor.record`. Trees and roofs hide what is below them, in the mask too.

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
        empty = (task == "classification") / 2 if empty is None else empty
        if not 0 <= empty <= 1:
            raise ValueError(f"empty={empty}: expected a share of at least 0 and at most 1")
        super().__init__(n, seed, size, intensity, transform, tiles_per_photo=tiles_per_photo)
        tiles = layout.choose_tiles(n, seed, empty, tiles_per_photo)
        self.groups, self.places, self.labels = tiles[:, 0], tiles[:, 1:3], tiles[:, 3]

    def scene(
        self, photo: int, row: int, column: int, rows: int = 1, columns: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what lies under the drone at a tile, or a block of tiles, of a photo.

        Returns:
            The light (3, rows * size, columns * size), linear camera colours, no noise; and the
            cars (rows * size, columns * size) int64.
        """
        window = (number * self.size for number in (row, column, rows, columns))
        light, cars = _paint_photo(layout.draw_photo(self.seed, photo), *window, layout.TILE / self.size)
        return torch.from_numpy(light), torch.from_numpy(cars.astype(np.int64))

    def _tile(self, *spot: int) -> Item:
        """Return raw and mask at a photo, row and column."""
        light, cars = self.scene(*spot)
        return {"raw": self.record(light, *spot), "mask": cars}

    def frame(self, photo: int) -> Item:
        """Return a whole photo: raw (1, 6 * size, 8 * size), raw domain, and its mask.

        The items of this photo are cut from it, noise and all.
        """
        tiles = [[self._tile(photo, y, x) for x in range(layout.COLUMNS)] for y in range(layout.ROWS)]
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
