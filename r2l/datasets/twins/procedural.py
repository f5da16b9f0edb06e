"""What the twins share: cheap primitives to draw from (shapes, textures, seeds), and how a scene is recorded.

Shapes are signed distances (negative inside), as numpy float32 arrays over a grid of coordinates;
everything is a function of its arguments, and chance comes from a `numpy.random.Generator`.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from r2l import sensor
from r2l.datasets.splits import RawDataset, Transform

Array = NDArray[np.float32]
Part = tuple[slice, slice]  # rows and columns of a picture
EVERYWHERE: Part = (slice(None), slice(None))
_TURN = np.arange(512) * (2 * np.pi / 512)
_WAVES = np.array([2, 3, 4, 5])[:, None]


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the generator that belongs to (seed, key): the same wherever and whenever asked.

    Keys begin with what is drawn: of blood 0 labels, 1 zones, 2 scenes; of cars 1 photos, 2 the choice of
    tiles; of both 3 noise.
    """
    return np.random.default_rng((seed, *key))


def apportion(total: int, weights: Sequence[int]) -> NDArray[np.int64]:
    """Split ``total`` in proportion to ``weights``, in whole numbers (largest remainders)."""
    exact = total * np.array(weights) / sum(weights)
    counts = exact.astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def patch(
    centre: tuple[float, float], reach: float | tuple[float, float], y: Array, x: Array
) -> tuple[Part, Array, Array]:
    """Return the part of a grid within ``reach`` of ``centre``, and its coordinates from there.

    A reach of two numbers is down and right. The grid is given by its rising coordinates, y (H, 1)
    and x (1, W); the part may be empty.
    """
    down, right = reach if isinstance(reach, tuple) else (reach, reach)
    rows = slice(*y[:, 0].searchsorted((centre[0] - down, centre[0] + down)))
    columns = slice(*x[0].searchsorted((centre[1] - right, centre[1] + right)))
    return (rows, columns), y[rows] - np.float32(centre[0]), x[:, columns] - np.float32(centre[1])


def coverage(distance: Array, pixel: float) -> Array:
    """Return the share of each pixel that lies inside, from the distance to the border.

    ``distance`` and the side ``pixel`` share a unit. Exact for a straight border along an axis.
    """
    share = distance / -pixel
    share += 0.5
    return share.clip(0, 1, out=share)


def union(a: Array, b: Array, softness: float) -> Array:
    """Return the signed distance of two shapes grown together over a neck of ``softness``."""
    overlap = np.maximum(softness - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * softness)


def smooth(picture: Array, sigma: float) -> Array:
    """Return a picture (H, W) under a Gaussian of ``sigma`` pixels, cut off at three.

    Only what needs nothing from beyond the picture: smaller by `smooth_reach` on each side. In
    float32 and whole rows at a time, which takes half the time of scipy's filter.
    """
    reach = smooth_reach(sigma)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    for _ in range(2):  # down, then to the right
        size = len(picture) - 2 * reach
        result = picture[reach : reach + size] * weights[0]
        pair = np.empty_like(result)
        for i in range(1, reach + 1):
            np.add(picture[reach - i :][:size], picture[reach + i :][:size], out=pair)
            pair *= weights[i]
            result += pair
        picture = result.T
    return picture


def smooth_reach(sigma: float) -> int:
    """Return from how far `smooth` takes light, in pixels."""
    return int(3 * sigma + 0.5)


def capsule(y: Array, x: Array, start: Array, end: Array, radius: float) -> Array:
    """Return the signed distance to a line from ``start`` to ``end`` (y, x) with round ends."""
    along = end - start
    py, px = y - start[0], x - start[1]
    length2 = max(float(along @ along), 1e-9)
    share = np.clip((py * along[0] + px * along[1]) / length2, 0, 1)
    return np.hypot(py - share * along[0], px - share * along[1]) - np.float32(radius)


def rectangle(y: Array, x: Array, half_length: float, half_width: float, corner: float) -> Array:
    """Return the signed distance to a rectangle around the origin, its length along y."""
    dy = np.abs(y) - np.float32(half_length - corner)
    dx = np.abs(x) - np.float32(half_width - corner)
    outside = np.hypot(np.maximum(dy, 0), np.maximum(dx, 0))
    return outside + np.minimum(np.maximum(dy, dx), 0) - np.float32(corner)


def remainder(x: Array, period: float) -> Array:
    """Return ``x`` modulo ``period``; numpy's own ``%`` takes twenty times as long."""
    return x - np.floor(x * np.float32(1 / period)) * np.float32(period)


def wobble(angle: Array, amplitude: float, rng: np.random.Generator) -> Array:
    """Return a smooth random function of ``angle`` (radians), of about ``amplitude`` deviation.

    It is looked up in 512 steps, finer than a pixel for any shape of up to 80 pixels radius.
    """
    sizes = amplitude * rng.standard_normal((4, 1)) / _WAVES
    table = (sizes * np.cos(_WAVES * _TURN + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(0)
    step = (angle * np.float32(len(_TURN) / (2 * np.pi))).astype(np.intp)
    return table.astype(np.float32).take(step)  # a negative angle counts from the end


@lru_cache(maxsize=64)
def texture(wavelength: float, octaves: float, number: int) -> Array:
    """Return periodic random texture (512, 512), mean 0, deviation 1, made once per process.

    White noise is filtered to the band from ``wavelength`` pixels up to ``2 ** octaves`` times as
    much, with an amplitude that falls as 1/f inside. Who needs chance takes a part of it with `cut`.
    """
    side = 512
    noise = stream(number).standard_normal((side, side))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    high, low = 1 / wavelength, 1 / (wavelength * 2**octaves)
    band = np.exp(-((frequency / high) ** 2)) * (1 - np.exp(-((frequency / low) ** 2)))
    spectrum = np.fft.rfft2(noise) * band / np.maximum(frequency, 1 / side)
    result = np.fft.irfft2(spectrum, (side, side))
    result = ((result - result.mean()) / result.std()).astype(np.float32)
    result.flags.writeable = False  # shared by every scene of the process
    return result


def cut(pattern: Array, rng: np.random.Generator, height: int, width: int) -> Array:
    """Return a random part (height, width) of a `texture`, no larger than the texture."""
    y = rng.integers(pattern.shape[0] - height + 1)
    x = rng.integers(pattern.shape[1] - width + 1)
    return pattern[y : y + height, x : x + width]


def wrap(pattern: Array, top: int, left: int, height: int, width: int) -> Array:
    """Return a window of the plane that repeats `texture` ``pattern`` for ever."""
    rows = np.arange(top, top + height) % pattern.shape[0]
    columns = np.arange(left, left + width) % pattern.shape[1]
    return pattern.take(rows, 0).take(columns, 1)


class Twin(RawDataset):
    """What both twins have in common: options, and recording what was drawn."""

    noise: sensor.NoiseModel

    def __init__(
        self, n: int, seed: int, size: int, intensity: float, transform: Transform | None, **group: int
    ) -> None:
        ((name, most),) = group.items()
        if n < 1 or most < 1 or size % 2 or not 16 <= size <= 512:
            wanted = f"n and {name} of at least 1 and an even size from 16 to 512"
            raise ValueError(f"n={n}, {name}={most}, size={size}: expected {wanted}")
        if intensity < 0 or seed < 0:
            raise ValueError(f"intensity={intensity}, seed={seed}: expected 0 or more")
        self.seed, self.size, self.intensity, self.transform = seed, size, intensity, transform

    def record(self, light: torch.Tensor, *spot: int) -> torch.Tensor:
        """Record the light (3, H, W) of what lies at a ``spot``: (1, H, W), *raw* domain."""
        rng = stream(self.seed, 3, *spot, round(self.intensity * 1_000_000))
        return sensor.record(light, self.camera, self.noise, rng=rng, intensity=self.intensity)
