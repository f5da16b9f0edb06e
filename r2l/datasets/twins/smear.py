"""A twin of Raw-Microscopy: what a microscope sees of a stained blood smear, drawn from a seed."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from r2l.camera import MICROSCOPE
from r2l.datasets.layout import INFO
from r2l.datasets.splits import Item, Transform
from r2l.datasets.twins import procedural as draw
from r2l.datasets.twins.procedural import EVERYWHERE, Array, Part, Twin, coverage, patch
from r2l.sensor import MICROSCOPE_NOISE

_FIELD = 256 * 6.5 / 40  # micrometres: 256 pixels of 6.5 um behind a 40x objective
_PSF_SIGMA = 0.450 / 2.355  # micrometres; the published 450 nm taken as full width at half maximum
_WAVELENGTHS = np.array([620, 525, 450]) / 525  # of the three filters; a PSF grows with them

# Decadic absorbance of a full layer at 620, 525 and 450 nm. Eosin (pink) absorbs green, the azures
# (blue, purple on chromatin) absorb red and green. Red cell and nucleus are read off the demo tile
# of the raw2logit repository; the others are chosen by eye, no measured spectra.
_RED_CELL = np.array([0.075, 0.185, 0.055], np.float32)
_PINK = np.array([0.06, 0.22, 0.03], np.float32)
_BLUE = np.array([0.24, 0.22, 0.02], np.float32)
_NUCLEAR = np.array([0.55, 0.85, 0.14], np.float32)
_ORANGE = np.array([0.08, 0.42, 0.14], np.float32)


@dataclass(frozen=True)
class _Cell:
    """What a class of white cell looks like. Lengths in micrometres, pairs are mean and deviation.

    A nucleus is a chain of lobes that share an area: one lobe has the radius ``lobe``, four have
    half of it. ``spacing`` is the way from lobe to lobe and ``bridge`` the thickness of what joins
    them, both relative to a lobe's radius; ``bend`` is the turn between two steps in radians,
    ``winding`` the probability that a turn keeps the direction of the one before.

    ``edge`` is the width of the nucleus's border and ``ragged`` how far it frays; ``density`` is
    its stain and ``chromatin`` how uneven that is. ``pink`` and ``blue`` stain the cytoplasm, and
    ``orange`` and ``dark`` say how densely coarse granules of that colour lie in it (0 to 1).
    """

    radius: tuple[float, float]
    lobes: tuple[int, int]
    lobe: tuple[float, float]
    spacing: float = 0.0
    bridge: tuple[float, float] = (1.0, 0.0)
    bend: tuple[float, float] = (0.0, 0.0)
    winding: float = 0.5
    edge: float = 0.2
    ragged: float = 0.1
    chromatin: float = 0.12
    density: float = 1.0
    pink: float = 0.3
    blue: float = 0.3
    orange: float = 0.0
    dark: float = 0.0


_CELL_TYPES = {
    "BAS": _Cell((5.9, 0.7), (2, 3), (2.9, 0.3), 1.0, (0.9, 0.1), (0.8, 0.4), pink=0.5, blue=0.4, dark=0.9),
    "EOS": _Cell((6.7, 0.7), (2, 3), (3.2, 0.3), 1.9, (0.5, 0.2), (0.9, 0.4), 1.0, pink=0.5, orange=0.9),
    "KSC": _Cell((7.5, 1.2), (1, 4), (5.0, 0.9), 0.9, edge=2.5, ragged=1.0, density=0.65, pink=0, blue=0.1),
    "LYA": _Cell((6.6, 1.0), (1, 2), (4.4, 0.6), 0.5, chromatin=0.14, pink=0.1, blue=0.9),
    "LYT": _Cell((5.1, 0.9), (1, 2), (3.8, 0.5), 0.3, chromatin=0.16, pink=0.1, blue=0.7),
    "MON": _Cell((7.5, 0.9), (2, 4), (4.8, 0.6), 0.8, (0.95, 0.1), (0.8, 0.4), 1.0, density=0.8, blue=0.6),
    "NGB": _Cell((6.6, 0.6), (4, 6), (3.5, 0.35), 1.2, (0.85, 0.14), (0.6, 0.3), 0.9, pink=0.6, blue=0.3),
    "NGS": _Cell((6.5, 0.7), (2, 5), (3.6, 0.4), 1.8, (0.5, 0.2), (1.1, 0.5), 0.7, pink=0.6, blue=0.3),
}


class _Zone(NamedTuple):
    """What the crops of one zone of a slide share.

    ``light`` (3,) is the empty field, linear camera colours; ``tilt`` (2,) how much of it is gained
    from one crop to the next, down and to the right; ``stain`` (4,) multiplies the absorbance of
    red cells, pink, blue and nuclei; ``defocus`` is the added blur's sigma in micrometres;
    ``crowding`` goes with the number of red cells and ``pallor`` (0 to 1) is their dent.
    """

    light: Array
    tilt: Array
    stain: Array
    defocus: float
    crowding: float
    pallor: float


def _draw_zone(rng: np.random.Generator) -> _Zone:
    """Draw a zone: its lamp, its staining and how thickly the blood lies."""
    return _Zone(
        light=np.exp(rng.normal(np.log([0.635, 0.188, 0.0775]), [0.08, 0.09, 0.06])),
        tilt=rng.normal(0, 0.03, 2),
        stain=np.exp(rng.normal(0, 0.18, 4)),
        defocus=abs(rng.normal(0, 0.25)),
        crowding=rng.uniform(0.5, 1.5),
        pallor=rng.uniform(0, 0.6),
    )


class _Slide:
    """A patch of smear under the objective: absorbance (3, size, size) to paint cells on."""

    def __init__(self, size: int, zone: _Zone, rng: np.random.Generator) -> None:
        self.size, self.zone, self.rng = size, zone, rng
        self.pixel = _FIELD / size
        across = ((np.arange(size) + 0.5) * self.pixel - _FIELD / 2).astype(np.float32)
        self.y, self.x = across[:, None], across[None]  # micrometres from the middle
        self.absorbance = np.zeros((3, size, size), np.float32)

    def grain(self, wavelength: float, shape: tuple[int, ...], number: int = 0) -> Array:
        """Return random texture whose finest detail is ``wavelength`` micrometres."""
        return draw.cut(draw.texture(max(wavelength / self.pixel, 1.5), 2, number), self.rng, *shape)

    def ellipse(self, y: Array, x: Array, stretch: float) -> Array:
        """Return the distance from the origin, ``stretch`` times as far along some direction."""
        turn = self.rng.uniform(0, np.pi)
        c, s = np.cos(turn), np.sin(turn)
        along = np.float32(c * stretch) * y + np.float32(s * stretch) * x
        across = np.float32(c / stretch) * x - np.float32(s / stretch) * y
        along *= along
        along += across * across
        return np.sqrt(along, out=along)

    def blob(self, y: Array, x: Array, radius: float, stretch: float, unrest: float) -> Array:
        """Return the signed distance to a roundish shape around the origin."""
        border = draw.wobble(np.arctan2(y, x), unrest, self.rng)
        return self.ellipse(y, x, stretch) - np.float32(radius) * (1 + border)

    def paint(self, where: Part, density: Array, dye: Array, stain: float) -> None:
        """Add a layer of ``density`` (h, w) of a dye (3,) to the part of the slide at ``where``."""
        for plane, strength in zip(self.absorbance, dye * np.float32(stain), strict=True):
            plane[where] += density * strength

    def add_red_cells(self, keep_free: float) -> None:
        """Strew red cells about a free middle of radius ``keep_free``; they overlap a little."""
        rng, half = self.rng, _FIELD / 2 + 3
        spots = rng.uniform(-half, half, (int(100 * self.zone.crowding), 2))
        radii = rng.normal(4.0, 0.3, len(spots)).clip(2.5, 5)
        gaps = np.hypot(*(spots[:, None] - spots).T) - 0.75 * (radii[:, None] + radii)
        taken = np.hypot(*spots.T) <= keep_free + 0.6 * radii
        layer = np.zeros((self.size, self.size), np.float32)
        for i, collides in enumerate(gaps < 0):
            if not taken[i]:
                taken |= collides
                self.add_red_cell(layer, spots[i], radii[i])
        self.paint(EVERYWHERE, layer, _RED_CELL, self.zone.stain[0])

    def add_red_cell(self, layer: Array, spot: Array, radius: float) -> None:
        """Add to ``layer`` a biconcave disc: thinner in the middle, by the zone's pallor."""
        stretch, thickness = np.exp(self.rng.standard_normal(2) * (0.05, 0.1))
        dent = self.zone.pallor * self.rng.uniform(0.5, 1.2) * thickness
        where, y, x = patch(spot, 1.2 * radius, self.y, self.x)
        distance = self.ellipse(y, x, stretch)
        depth = np.exp(distance * distance * np.float32(-6 / radius**2))
        depth = np.float32(thickness) - np.float32(dent) * depth
        layer[where] += depth * coverage(distance - np.float32(radius), 0.5)

    def add_platelets(self) -> None:
        """Strew a few platelets, purple and small."""
        for _ in range(self.rng.poisson(1.2)):
            spot, radius = self.rng.uniform(-_FIELD / 2, _FIELD / 2, 2), self.rng.uniform(0.5, 1.3)
            where, y, x = patch(spot, 2 * radius, self.y, self.x)
            density = coverage(self.blob(y, x, radius, 1, 0.15), 0.5)
            self.paint(where, density, _NUCLEAR, self.rng.uniform(0.2, 0.6) * self.zone.stain[3])

    def nucleus(self, y: Array, x: Array, kind: _Cell, room: float) -> Array:
        """Return the signed distance to a nucleus, shrunk where needed to fit into ``room``."""
        rng = self.rng
        count = rng.integers(kind.lobes[0], kind.lobes[1] + 1)
        radii = rng.normal(*kind.lobe) / np.sqrt(count) * np.exp(rng.normal(0, 0.1, count))
        signs = np.where(rng.random(count) < kind.winding, 1, rng.choice([-1, 1], count))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(signs * rng.normal(*kind.bend, count))
        points = np.cumsum(kind.spacing * radii[:, None] * np.stack([np.sin(heading), np.cos(heading)], 1), 0)
        points -= points.mean(0) + rng.normal(0, 0.1 * room, 2)
        shrink = min(1, room / (np.hypot(*points.T) + radii).max())
        points, radii = points * shrink, radii * shrink
        bridge = max(rng.normal(*kind.bridge), 0.12)
        distance = self.blob(y - points[0, 0], x - points[0, 1], radii[0], 1.0, 0.06)
        for a, b, radius in zip(points, points[1:], radii[1:], strict=False):
            lobe = self.blob(y - b[0], x - b[1], radius, np.exp(rng.normal(0, 0.1)), 0.06)
            distance = draw.union(distance, draw.capsule(y, x, a, b, bridge * radius), 0.4)
            distance = draw.union(distance, lobe, 0.4)
        return distance

    def granules(self, inside: Array, amount: float) -> Array:
        """Return coarse granules (h, w) that lie ``inside``, more and closer with ``amount``."""
        threshold = 0.6 - 0.6 * amount * self.rng.uniform(0.6, 1.1)
        return np.clip(3 * (self.grain(0.7, inside.shape, 3) - threshold), 0, 1) * inside

    def add_white_cell(self, kind: _Cell, spot: Array, radius: float) -> None:
        """Paint a white cell: cytoplasm, nucleus with its chromatin, granules."""
        rng = self.rng
        where, y, x = patch(spot, 1.3 * radius, self.y, self.x)
        body = self.blob(y, x, radius, np.exp(rng.normal(0, 0.05)), 0.03)
        core = self.nucleus(y, x, kind, 0.93 * radius) + kind.ragged * self.grain(2.0, body.shape)
        inside, nuclear = coverage(body, 0.4), coverage(core, kind.edge)
        cytoplasm = inside * (1 + 0.15 * self.grain(0.6, body.shape, 1))
        chromatin = nuclear * (1 + kind.chromatin * self.grain(0.8, body.shape, 2))
        _, pink, blue, purple = self.zone.stain
        tone = np.exp(rng.normal(0, [0.25, 0.25, 0.1]))
        self.paint(where, cytoplasm, _PINK, pink * kind.pink * tone[0])
        self.paint(where, cytoplasm, _BLUE, blue * kind.blue * tone[1])
        self.paint(where, chromatin, _NUCLEAR, purple * kind.density * tone[2])
        if kind.orange:
            self.paint(where, self.granules(inside * (1 - 0.8 * nuclear), kind.orange), _ORANGE, 0.8 * pink)
        if kind.dark:  # a basophil's granules hide its nucleus
            self.paint(where, self.granules(inside, kind.dark), _NUCLEAR, 0.8 * purple)

    def light(self, defocus: float) -> Array:
        """Return what passes (3, size, size): Beer-Lambert, then the lens."""
        place = self.rng.uniform(-1, 1, 2).astype(np.float32)  # of the crop in its zone, in crops
        down, right = self.zone.tilt.astype(np.float32)
        lamp = 1 + down * (place[0] + self.y / _FIELD) + right * (place[1] + self.x / _FIELD)
        light = self.absorbance * np.float32(-np.log(10))
        sigma = np.hypot(_PSF_SIGMA, defocus) / self.pixel
        # The lens works on longer rows: columns at a power of two collide in the processor's cache.
        sharp, blurred = np.empty((2, self.size, self.size + 16), np.float32)[..., : self.size]
        for colour, relative, strength in zip(light, _WAVELENGTHS, self.zone.light, strict=True):
            np.multiply(np.exp(colour, out=colour), lamp, out=sharp)
            gaussian_filter(sharp, sigma * relative, output=blurred, truncate=3, mode="nearest")
            np.multiply(blurred, np.float32(strength), out=colour)
        return light


def _draw_smear(label: str, zone: _Zone, size: int, rng: np.random.Generator) -> Array:
    """Draw the light (3, size, size), linear camera colours, that a smear lets through.

    A white cell of class ``label`` lies about the middle of 41.6 x 41.6 micrometres, whatever the
    ``size`` in pixels. Every cell is a little spoiled; one of class UNC is any cell, and so much so
    that nobody can name it.
    """
    slide = _Slide(size, zone, rng)
    known = label in _CELL_TYPES
    name = label if known else rng.choice(list(_CELL_TYPES))
    kind, spoilt = _CELL_TYPES[name], rng.beta(0.5, 3) if known else rng.uniform(0.6, 1.2)
    frayed, smudged, pale = rng.uniform(0, spoilt, 3)  # as in a bad smear: frayed, borderless, pale
    stain = {"pink": kind.pink * (1 - 0.8 * pale), "blue": kind.blue * (1 - 0.8 * pale)}
    stain["density"] = kind.density * (1 - 0.5 * pale)
    kind = replace(kind, ragged=kind.ragged + frayed, edge=kind.edge + 2 * smudged, **stain)
    blur = abs(rng.normal(0, 0.12)) if known else rng.uniform(0.2, 1.4)
    radius = max(rng.normal(*kind.radius), 3.5)
    slide.add_red_cells(keep_free=radius)
    slide.add_platelets()
    slide.add_white_cell(kind, rng.normal(0, 0.8, 2), radius)
    return slide.light(zone.defocus + blur)


class SyntheticMicroscopy(Twin):
    """Blood smears with one white cell each, drawn by code: items as in `RawDataset`, with a label.

    A stand-in for Raw-Microscopy; see `r2l.datasets.twins` for what it is good for.

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
        super().__init__(n, seed, size, intensity, transform, crops_per_zone=crops_per_zone)
        counts = draw.apportion(n, INFO["microscopy"].class_counts)
        self.labels = np.repeat(np.arange(len(self.classes)), counts)
        draw.stream(seed, 0).shuffle(self.labels)
        self.groups = np.arange(n) // crops_per_zone

    def scene(self, index: int) -> torch.Tensor:
        """Return what lies under the lens: (3, size, size), linear camera colours, no noise."""
        zone = _draw_zone(draw.stream(self.seed, 1, int(self.groups[index])))
        label, rng = self.classes[self.labels[index]], draw.stream(self.seed, 2, index)
        return torch.from_numpy(_draw_smear(label, zone, self.size, rng))

    def read(self, index: int) -> Item:
        """Return the recorded mosaic and its label."""
        return {"raw": self.record(self.scene(index), index), "label": int(self.labels[index])}
