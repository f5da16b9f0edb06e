"""What lies where in an aerial photo: streets, houses, trees and cars, drawn from a seed."""

from functools import lru_cache
from itertools import count
from math import ceil, cos, sin
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from r2l.camera import DRONE
from r2l.datasets.twins.procedural import Array, stream
from r2l.sensor import unprocess

TILE = 256 * 0.06  # metres; 256 pixels of 6 cm
ROWS, COLUMNS = 6, 8  # tiles of a photo
_EXTENT = np.array([ROWS, COLUMNS]) * TILE


def seen(red: float, green: float, blue: float) -> Array:
    """Return what the drone's camera records of a display colour: (3,), linear, camera colours."""
    colour = torch.tensor([red, green, blue]).reshape(3, 1, 1)
    return unprocess(colour, DRONE).flatten().clamp(min=0).numpy()


_CROWNS = (seen(0.19, 0.27, 0.21), seen(0.23, 0.29, 0.20), seen(0.29, 0.31, 0.24))
_ROOFS = (seen(0.50, 0.34, 0.29), seen(0.40, 0.40, 0.41), seen(0.37, 0.31, 0.28))
_JUNK = (seen(0.60, 0.60, 0.60), seen(0.40, 0.32, 0.25), seen(0.25, 0.33, 0.42))
_PAINTS = {  # display colour and share; about as cars sell in Europe
    "white": (seen(0.93, 0.93, 0.93), 0.24),
    "silver": (seen(0.62, 0.63, 0.64), 0.18),
    "grey": (seen(0.40, 0.41, 0.43), 0.20),
    "black": (seen(0.17, 0.17, 0.18), 0.20),
    "red": (seen(0.52, 0.18, 0.17), 0.07),
    "blue": (seen(0.20, 0.28, 0.46), 0.08),
    "beige": (seen(0.58, 0.54, 0.46), 0.03),
}
# Length, width and height of a saloon, a hatchback and a van, which are kinds 0, 1 and 2.
_CAR_SIZES = ((4.6, 1.82, 1.45), (4.1, 1.76, 1.50), (5.2, 1.98, 2.00))
_LOWEST_SUN = 0.6  # radians above the horizon
_LONGEST_SHADOW = 1 / np.tan(_LOWEST_SUN)  # per metre of height
STALL = (2.6, 5.0)  # width and depth of a parking space


class Box(NamedTuple):
    """Something with right angles about (y, x). Metres; its length lies ``heading`` off the y axis."""

    y: float
    x: float
    heading: float
    length: float
    width: float
    height: float
    colour: Array
    kind: int = 0

    @property
    def reach(self) -> float:
        """How far from (y, x) the box and its shadow come."""
        return (self.length + self.width) / 2 + self.height * _LONGEST_SHADOW


class Tree(NamedTuple):
    """A crown about (y, x). Metres; its shadow falls from ``height``."""

    y: float
    x: float
    radius: float
    height: float
    colour: Array

    @property
    def reach(self) -> float:
        """How far from (y, x) the crown and its shadow come."""
        return self.radius + 1 + self.height * _LONGEST_SHADOW


class Photo(NamedTuple):
    """All that one photo shows; roads are long boxes.

    ``shadow`` is the shift of a shadow per metre of height (y, x), ``sun`` the share of the light that a
    shadow takes away, ``light`` the exposure by colour; ``waves`` (k, 4) are the plane waves that spread dry
    grass and soil (frequency along y and x, phase, layer); ``offset`` is where its textures begin.
    """

    shadow: Array
    sun: float
    light: Array
    waves: Array
    offset: tuple[int, int]
    roads: list[Box]
    lots: list[Box]
    roofs: list[Box]
    junk: list[Box]
    trees: list[Tree]
    cars: list[Box]


def turned(y: Array, x: Array, heading: float) -> tuple[Array, Array]:
    """Return coordinates along and across ``heading`` (radians off the y axis)."""
    c, s = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    return c * y + s * x, c * x - s * y


def _beside(box: Box, along: float | Array, across: float | Array) -> Array:
    """Return the points (2, ...), y and x, ``along`` and ``across`` metres from the box's middle."""
    c, s = np.cos(box.heading), np.sin(box.heading)
    return np.array([box.y + c * along - s * across, box.x + s * along + c * across])


def upright(box: Box, margin: float = 0) -> tuple[float, float]:
    """Return how far a box, ``margin`` wider all round, comes from its middle along y and x."""
    c, s = abs(cos(box.heading)), abs(sin(box.heading))
    length, width = box.length / 2 + margin, box.width / 2 + margin
    return c * length + s * width, s * length + c * width


def _gap(spots: Array, boxes: list[Box]) -> Array:
    """Return the distance (k,) of each of (k, 2) spots to the nearest box; infinite if none."""
    nearest = np.full(len(spots), np.inf)
    for box in boxes:
        along, across = map(np.abs, turned(spots[:, 0] - box.y, spots[:, 1] - box.x, box.heading))
        outside = np.maximum(along - box.length / 2, 0), np.maximum(across - box.width / 2, 0)
        nearest = np.minimum(nearest, np.hypot(*outside))
    return nearest


def _slab(spot: Array, heading: float, length: float, width: float) -> Box:
    """Return a box without height or colour, to drive or park on."""
    return Box(*spot.tolist(), float(heading), float(length), float(width), 0.0, np.zeros(3))


def _draw_lots(roads: list[Box], rng: Generator) -> list[Box]:
    """Draw parking lots beside the roads: two rows of spaces with an aisle between them."""
    depth = 2 * STALL[1] + 6
    lots = []
    for road in roads:
        for _ in range(rng.integers(0, 3)):
            side = rng.choice([-1, 1]) * ((road.width + depth) / 2 + 1.5)
            spot = _beside(road, rng.uniform(-45, 45), side)
            if _gap(spot[None], roads)[0] > depth / 2:
                lots.append(_slab(spot, road.heading, STALL[0] * rng.integers(6, 15), depth))
    return lots


def _new_car(spot: Array, heading: float, rng: Generator) -> Box:
    """Draw a car of any make and paint at a place (y, x), pointing along ``heading`` or back."""
    kind = int(rng.choice(len(_CAR_SIZES), p=(0.45, 0.43, 0.12)))
    size = np.array(_CAR_SIZES[kind]) * np.exp(rng.normal(0, 0.04, 3))
    paints, shares = zip(*_PAINTS.values(), strict=True)
    colour = paints[rng.choice(len(paints), p=shares)] * np.exp(rng.normal(0, 0.15))
    heading += np.pi * rng.integers(2) + rng.normal(0, 0.04)
    return Box(*spot.tolist(), heading, *size.tolist(), colour.astype(np.float32), kind)


def _park_along(road: Box, rng: Generator) -> list[Box]:
    """Draw cars at both kerbs of a road, and a few that drive."""
    busy = rng.uniform(0.1, 0.5)
    cars = []
    for along in np.arange(-90, 90, 6.2):
        for side in (-1, 1):
            kerb = side * (road.width / 2 - rng.uniform(0.9, 1.2))
            lane, place = (kerb, busy) if rng.random() < 0.9 else (0.4 * kerb, 0.5)
            if rng.random() < place:
                spot = _beside(road, along + rng.normal(0, 0.4), lane)
                cars.append(_new_car(spot, road.heading, rng))
    return cars


def _park_in(lot: Box, rng: Generator) -> list[Box]:
    """Draw cars in the spaces of a lot, across its length."""
    full = rng.uniform(0.2, 0.8)
    half = lot.length / 2
    cars = []
    for along in np.arange(-half + STALL[0] / 2, half, STALL[0]):
        for side in (-1, 1):
            if rng.random() < full:
                row = side * (lot.width - STALL[1]) / 2 + rng.normal(0, 0.25)
                spot = _beside(lot, along + rng.normal(0, 0.12), row)
                cars.append(_new_car(spot, lot.heading + np.pi / 2, rng))
    return cars


def _draw_boxes(
    sides: tuple[float, float], colours: tuple[Array, ...], taken: list[Box], clear: float, rng: Generator
) -> list[Box]:
    """Strew up to 60 boxes, in line with the first of the ``taken`` ones and ``clear`` metres of all."""
    boxes: list[Box] = []
    for spot in rng.uniform(-5, _EXTENT + 5, (60, 2)):
        length, width = rng.uniform(*sides), rng.uniform(*sides)
        if _gap(spot[None], [*taken, *boxes])[0] < np.hypot(length, width) / 2 + clear:
            continue
        heading = taken[0].heading + rng.integers(2) * np.pi / 2 + rng.normal(0, 0.05)
        colour = colours[rng.integers(len(colours))] * np.float32(np.exp(rng.normal(0, 0.2)))
        height = min(length, width) * rng.uniform(0.4, 0.8)
        kind = int(rng.integers(2))
        boxes.append(Box(*spot.tolist(), heading, length, width, height, colour, kind))
    return boxes


def _draw_trees(built: list[Box], rng: Generator) -> list[Tree]:
    """Strew trees, in groups, so that no trunk stands on what is built."""
    count = int(rng.uniform(30, 180))
    clumps = rng.uniform(0, _EXTENT, (max(count // 8, 1), 2))
    spots = clumps[rng.integers(len(clumps), size=count)] + rng.normal(0, 7, (count, 2))
    radii = np.exp(rng.normal(np.log(2.4), 0.4, count)).clip(0.8, 5)
    free = _gap(spots, built) > 0.6 * radii
    trees = []
    for (y, x), radius in zip(spots[free].tolist(), radii[free].tolist(), strict=True):
        colour = _CROWNS[rng.integers(3)] * np.float32(np.exp(rng.normal(0, 0.15)))
        trees.append(Tree(y, x, radius, radius * rng.uniform(1.5, 2.5), colour))
    return trees


def _apart(cars: list[Box]) -> list[Box]:
    """Return the cars without those that stand in another's way."""
    along, across = np.array([-0.5, 0, 0.5])[:, None], np.array([-0.5, 0, 0.5])
    kept: list[Box] = []
    for car in cars:
        near = [k for k in kept if abs(k.y - car.y) < 6 and abs(k.x - car.x) < 6]
        outline = _beside(car, along * car.length + 0 * across, across * car.width + 0 * along)
        if _gap(outline.reshape(2, -1).T, near).min() > 0.2:
            kept.append(car)
    return kept


@lru_cache(maxsize=128)
def draw_photo(seed: int, number: int) -> Photo:
    """Draw photo ``number`` of a set: 92 x 123 metres under one sun."""
    rng = stream(seed, 1, number)
    # A street through the photo, and often a second one across it.
    heading = rng.uniform(0, np.pi)
    headings = [heading, heading + np.pi / 2 + rng.normal(0, 0.15)][: 1 + (rng.random() < 0.6)]
    roads = [_slab(_EXTENT * rng.uniform(0.25, 0.75, 2), h, 400, rng.uniform(5.5, 8)) for h in headings]
    lots = _draw_lots(roads, rng)
    built = [*roads, *lots]
    roofs = _draw_boxes((6, 13), _ROOFS, built, 3, rng)
    junk = _draw_boxes((0.6, 5), _JUNK, [*built, *roofs], 0.3, rng)
    parked = [car for road in roads for car in _park_along(road, rng)]
    parked += [car for lot in lots for car in _park_in(lot, rng)]
    towards, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(_LOWEST_SUN, 1.1)
    layers = np.arange(12) % 2
    frequencies = rng.normal(0, 1, (12, 2)) * rng.choice([0.05, 0.15, 0.4], (12, 1))
    return Photo(
        shadow=np.array([np.sin(towards), np.cos(towards)]) / np.tan(elevation),
        sun=rng.uniform(0, 0.25) if rng.random() < 0.5 else rng.uniform(0.4, 0.7),
        light=(np.exp(rng.normal(0.05, 0.25) + rng.normal(0, 0.03, 3))).astype(np.float32),
        waves=np.column_stack([frequencies, rng.uniform(0, 2 * np.pi, 12), layers]),
        offset=tuple(rng.integers(0, 10_000, 2)),
        roads=roads,
        lots=lots,
        roofs=roofs,
        junk=junk,
        trees=_draw_trees([*built, *roofs], rng),
        cars=_apart(parked),
    )


def _find_cars(photo: Photo) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return of each tile (ROWS, COLUMNS) the share that cars cover, and whether any touches it.

    About, since nothing is painted; trees are taken into account.
    """
    inside, touched = np.zeros((ROWS, COLUMNS)), np.zeros((ROWS, COLUMNS), bool)
    trees = np.array([(t.y, t.x, t.radius + 0.4) for t in photo.trees]).reshape(-1, 3)
    along, across = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 13), np.linspace(-1, 1, 7)))
    for car in photo.cars:
        # 0.2 m are added on each side, so that no tile's corner slips in between the points.
        y, x = _beside(car, along * (car.length / 2 + 0.2), across * (car.width / 2 + 0.2))
        tile = np.floor(y / TILE).astype(int), np.floor(x / TILE).astype(int)
        there = (y > 0) & (x > 0) & (tile[0] < ROWS) & (tile[1] < COLUMNS)
        hidden = (np.hypot(y[:, None] - trees[:, 0], x[:, None] - trees[:, 1]) < trees[:, 2]).any(1)
        touched[tile[0][there], tile[1][there]] = True
        seen = there & ~hidden
        share = car.length * car.width / along.size / TILE**2
        np.add.at(inside, (tile[0][seen], tile[1][seen]), share)
    return inside, touched


def choose_tiles(n: int, seed: int, empty: float, tiles_per_photo: int) -> NDArray[np.int64]:
    """Return n tiles (photo, row, column, label), photo by photo until there are enough."""
    wanted = [round(n * empty), n - round(n * empty)]
    chosen: list[tuple[int, int, int, int]] = []
    for photo in count():
        rng = stream(seed, 2, photo)
        covered, touched = _find_cars(draw_photo(seed, photo))
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
