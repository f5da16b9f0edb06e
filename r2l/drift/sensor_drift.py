"""Drift of the sensor, beside that of the pipeline: raw frames as another sensor or lamp would have given
them.

Each change takes raw frames to raw frames, so that the pipeline and the model stay what they were:

- ``exposure``: a share of the light. Electrons are thinned (each arrives with that probability), which turns
  a Poisson number into a Poisson number of that share: the noise is that of a real shorter exposure.
- ``noise``: more read noise, a standard deviation in shares of the range from black to white.
- ``bit_depth``: a coarser converter.
- ``white_balance``: light of another colour than it was balanced for: red gains a factor, blue loses it.
- ``black_level``: the dark signal lies higher than the camera says, by a share of the range.
- ``white_level``: the sensor saturates earlier than the camera says, by a share of the range.
- ``hot_pixels``, ``dead_pixels``: a share of the sites that read white, or black.
- ``row_noise``, ``column_noise``: fixed pattern noise, an offset to each row or column, its standard
  deviation in shares of the range.
- ``vignetting``: the corners lose a share of their light, which is thinned as by ``exposure``.
- ``colour_shading``: the same of red, half of it of green, nothing of blue, as under an infrared filter,
  whose edge moves with the angle.

Defects and patterns belong to the sensor: all frames of one ``seed`` and size have the same. Other chance
belongs to the frame. The noise model and its sources are those of `r2l.sensor`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from r2l import sensor
from r2l.camera import DRONE, MICROSCOPE, Camera
from r2l.drift.corruptions import Generators, at_severity, generators, normals
from r2l.files import choose
from r2l.isp.adjustable import Setting
from r2l.isp.functional import balance_mosaic
from r2l.sensor import NoiseModel

_NOISE_MODELS = {MICROSCOPE.name: sensor.MICROSCOPE_NOISE, DRONE.name: sensor.DRONE_NOISE}


class _Sensor(NamedTuple):
    """What a change needs to know: the camera, its noise, a generator for each frame, the sensor's own."""

    camera: Camera
    noise: NoiseModel
    rngs: Generators
    rng: np.random.Generator


def _exposure(light: Tensor, share: float | np.ndarray, s: _Sensor) -> Tensor:
    well = s.noise.full_well(s.camera)
    electrons = (light.cpu().double() * well).numpy()
    whole = electrons.round().clip(0).astype(np.int64)
    # Read noise has been recorded with the light, below black too, and shrinks with it: the rest is added.
    lost = s.noise.read_noise * (1 - share**2) ** 0.5
    thinned = [
        rng.binomial(n, share) + share * (frame - n) + lost * rng.standard_normal(n.shape)
        for rng, frame, n in zip(s.rngs, electrons, whole, strict=True)
    ]
    return torch.from_numpy(np.stack(thinned) / well).to(light)


def _white_balance(light: Tensor, shift: float, s: _Sensor) -> Tensor:
    return balance_mosaic(light, (1 + shift, 1.0, 1 / (1 + shift)), s.camera.cfa)


def _shading(light: Tensor, lost: float, s: _Sensor, *, parts: tuple[float, float, float]) -> Tensor:
    kept = torch.cat([sensor.falloff(light[0].double(), lost * part)[None] for part in parts])
    return _exposure(light, sensor.mosaic(kept, s.camera.cfa).cpu().numpy(), s)


_DEFECTIVE = (0.0005, 0.001, 0.005, 0.01, 0.05)  # shares of sites; a good sensor has less than the first
_NOISY = (0.002, 0.005, 0.01, 0.02, 0.05)
#: What each kind does to light (linear), and its constants at severities 1 to 5.
_KINDS: dict[str, tuple[Callable[[Tensor, float, _Sensor], Tensor], tuple[float, ...]]] = {
    "exposure": (_exposure, (0.75, 0.5, 0.25, 0.1, 0.05)),
    "noise": (lambda light, sigma, s: light + sigma * normals(light, s.rngs), _NOISY),
    # The converter follows the levels, see `drift_sensor`.
    "bit_depth": (lambda light, bits, s: light, (10, 8, 6, 5, 4)),
    "white_balance": (_white_balance, (0.02, 0.05, 0.1, 0.2, 0.4)),
    "black_level": (lambda light, share, s: light + share, _NOISY),
    "white_level": (lambda light, share, s: light.clamp_max(1 - share), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "hot_pixels": (lambda light, share, s: sensor.add_defects(light, share, 1.0, s.rng), _DEFECTIVE),
    "dead_pixels": (lambda light, share, s: sensor.add_defects(light, share, 0.0, s.rng), _DEFECTIVE),
    "row_noise": (lambda light, sigma, s: sensor.add_line_noise(light, sigma, -2, s.rng), _NOISY),
    "column_noise": (lambda light, sigma, s: sensor.add_line_noise(light, sigma, -1, s.rng), _NOISY),
    "vignetting": (partial(_shading, parts=(1, 1, 1)), (0.1, 0.2, 0.4, 0.6, 0.8)),
    "colour_shading": (partial(_shading, parts=(1, 0.5, 0)), (0.05, 0.1, 0.2, 0.3, 0.4)),
}
SENSOR_DRIFTS = tuple(_KINDS)


def drift_sensor(
    raw: Tensor,
    camera: Camera,
    kind: str,
    severity: int = 3,
    *,
    noise: NoiseModel | None = None,
    seed: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
) -> Tensor:
    """Return raw frames as a changed sensor would have given them; the module says what each kind is.

    >>> from r2l.camera import DRONE
    >>> drift_sensor(torch.full((1, 1, 16, 16), 0.25), DRONE, SENSOR_DRIFTS[0]).shape
    torch.Size([1, 1, 16, 16])

    Args:
        raw: (N, 1, H, W), raw domain.
        kind: one of `SENSOR_DRIFTS`, such as "exposure", "white_balance", "hot_pixels".
        noise: of the sensor; that of `MICROSCOPE` and `DRONE` is known.
        severity, seed, ids: as in `r2l.drift.corrupt`.

    Returns:
        (N, 1, H, W), raw domain, on the camera's levels and rounded to its bits.

    Raises:
        ValueError: an unknown kind or severity, frames of another shape, or a camera whose noise is not
            known.
    """
    change, constants = choose("sensor drift", kind, _KINDS)
    constant = at_severity(constants, severity)
    if raw.ndim != 4 or raw.shape[1] != 1:
        raise ValueError(f"expected raw frames (N, 1, H, W), got {tuple(raw.shape)}")
    noise = noise or _NOISE_MODELS.get(camera.name)
    if noise is None:
        raise ValueError(f"the noise of {camera.name!r} is not known; pass noise=NoiseModel(...)")
    if len(raw) == 0:
        return raw.clone()
    number = SENSOR_DRIFTS.index(kind)
    rngs = generators(seed, number, len(raw), ids)
    drifted = _Sensor(camera, noise, rngs, np.random.default_rng((seed, number)))
    # Undone are the levels: below 0 where noise dips under the black level.
    dark, bright = (sensor.apply_levels(torch.full_like(raw, light), camera) for light in (0, 1))
    light = change((raw - dark) / (bright - dark), constant, drifted)
    bits = min(noise.bits, int(constant)) if kind == "bit_depth" else noise.bits
    return sensor.quantise(sensor.apply_levels(light, camera).clamp(0, camera.white_level), bits)


#: What a sensor may be worse by; named as `r2l.isp.added_stages.measure_defects` calls it, with "_" for " ".
_UNITS = {"defective_pixels": "of the sites", "row_noise": "of the range", "column_noise": "of the range"}
SENSOR_SETTINGS = {
    name: Setting(name, name.replace("_", " "), unit, 0.0, 0.0, 0.05, 0.01) for name, unit in _UNITS.items()
}


def worsen(raw: Tensor, camera: Camera, seed: int = 0, **values: float) -> Tensor:
    """Return raw frames (B, 1, H, W) of a sensor that is worse by `SENSOR_SETTINGS`, alike for all frames."""
    # Defective pixels are hot. More of them are those of fewer and others besides.
    for name, value in values.items():
        rng = np.random.default_rng((seed, list(SENSOR_SETTINGS).index(name)))
        if name == "defective_pixels":
            raw = sensor.add_defects(raw, value, camera.white_level, rng)
        else:
            axis = -2 if name == "row_noise" else -1
            raw = sensor.add_line_noise(raw, value * camera.span, axis, rng).clamp(0, camera.white_level)
    return raw
