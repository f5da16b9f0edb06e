"""What r2l is held against: the published recipe, from independent libraries, and the theory of noise.

The recipe lives with the benchmark, whose peer it is; nothing of r2l but the camera's numbers goes into it.
"""

from benchmarks.recipe import DEMOSAIC, published
from benchmarks.recipe import on_luma as _on_luma
from r2l.camera import Camera
from r2l.sensor import NoiseModel

__all__ = ["DEMOSAIC", "_on_luma", "noise_variance", "published"]


def noise_variance(light: float, noise: NoiseModel, camera: Camera) -> float:
    """Return the variance that theory expects of a linear mosaic (linear squared).

    Foi et al.: ``a * light + b``, with a from the shot noise, b from the read noise and the
    rounding (a step squared over 12). It does not know of clipping.
    """
    full_well = noise.full_well(camera)
    rounding = 1 / (noise.gain * full_well) ** 2 / 12
    return light / full_well + (noise.read_noise / full_well) ** 2 + rounding
