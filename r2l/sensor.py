"""The way backwards: from an image to what a camera's sensor would have recorded of it.

`unprocess` takes a picture that is meant for the eye (*display* domain) back to the colours that the camera
saw (*linear*, camera colours); `record` exposes a sensor to such light and returns a *raw* mosaic.

The noise is the Poisson-Gaussian model: electrons arrive as a Poisson process (shot noise), the electronics
add a Gaussian (read noise), the converter rounds. Sources: Foi et al., "Practical Poissonian-Gaussian noise
modeling and fitting for single-image raw-data", IEEE TIP 2008; EMVA Standard 1288 (gain in DN per electron,
saturation capacity); Brooks et al., "Unprocessing images for learned raw denoising", CVPR 2019.

Tensors are float32, ``(..., C, H, W)``, and no input is changed. Chance comes from the generator that the
caller hands in: numpy's, since its seeds can be tuples such as (seed, index) that do not collide (torch's on
the CPU keeps 32 bits). Noise is drawn on the CPU: gradients pass through everything else.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from r2l.camera import CFA, Camera

CONTAINER_MAX = 65535  # raw files and the published tiles hold 16 bit numbers


@dataclass(frozen=True)
class NoiseModel:
    """How a sensor turns light into numbers; a ValueError for any that can't be.

    >>> from r2l.camera import DRONE
    >>> round(NoiseModel(gain=0.528, read_noise=2.5, bits=12).full_well(DRONE))  # electrons
    7271
    """

    gain: float  #: digital numbers (DN) per electron, counted at ``bits`` (EMVA 1288's K)
    read_noise: float  #: standard deviation of the dark signal in electrons
    bits: int  #: of the converter, 1 to 16; its numbers lie left-justified in 16

    def __post_init__(self) -> None:
        if not self.gain > 0 or not self.read_noise >= 0 or self.bits not in range(1, 17):
            raise ValueError(f"{self}: expected gain > 0, read_noise >= 0 and 1 <= bits <= 16")

    def full_well(self, camera: Camera) -> float:
        """Return the electrons at saturation, the light that reads 1.0 after levels."""
        return camera.span * (2**self.bits - 1) / self.gain


# PCO edge 5.5, data sheet: 0.46 e-/DN at 16 bit, 30,000 e- full well, 1.5 e- rms read noise.
MICROSCOPE_NOISE = NoiseModel(gain=1 / 0.46, read_noise=1.5, bits=16)
# Hasselblad L1D-20c at ISO 200: the gain is Raw-Drone's; the read noise is usual for its IMX183.
DRONE_NOISE = NoiseModel(gain=0.528, read_noise=2.5, bits=12)


def _check_colours(image: Tensor) -> None:
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"expected colours of shape (..., 3, H, W), got {tuple(image.shape)}")


def invert_colour_matrix(image: Tensor, camera: Camera) -> Tensor:
    """Return white-balanced camera colours from linear sRGB; both (..., 3, H, W), linear.

    Raises a RuntimeError where the camera's matrix has no inverse.
    """
    _check_colours(image)
    inverse = torch.linalg.inv(torch.tensor(camera.colour_matrix, dtype=torch.float64))
    return torch.einsum("ij,...jhw->...ihw", inverse.to(image), image)


def invert_white_balance(image: Tensor, camera: Camera) -> Tensor:
    """Return camera colours as the sensor saw them; both (..., 3, H, W), linear.

    A negative gain is as good as any: `MICROSCOPE`'s inverse matrix gives negative balanced reds,
    which its negative red gain turns into positive light. Raises a ValueError where a gain is zero.
    """
    _check_colours(image)
    if 0 in camera.white_balance:
        raise ValueError(f"{camera.name}: white balance {camera.white_balance} has no inverse")
    return image / image.new_tensor(camera.white_balance).reshape(-1, 1, 1)


def unprocess(image: Tensor, camera: Camera) -> Tensor:
    """Take a picture (..., 3, H, W), display domain, [0, 1], back to the light that the camera saw.

    Returns:
        (..., 3, H, W), linear, camera colours; 1.0 saturates a site. Colours that the camera cannot
        make come out negative or above 1: `record` treats them as dark or saturated.
    """
    return invert_white_balance(invert_colour_matrix(image.clamp(min=0) ** 2.2, camera), camera)


def mosaic(image: Tensor, cfa: CFA) -> Tensor:
    """Keep of each pixel the one colour that its filter lets through.

    From (..., 3, H, W) red, green, blue to (..., 1, H, W); any domain, which stays.
    """
    _check_colours(image)
    sites = torch.empty_like(image[..., :1, :, :])
    for position, colour in enumerate(cfa.value):
        y, x = divmod(position, 2)
        sites[..., 0, y::2, x::2] = image[..., colour, y::2, x::2]
    return sites


def _add_shot_noise(electrons: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw the electrons that arrive where ``electrons`` are expected: variance equals mean.

    Poisson numbers; from 100 on rounded Gaussian ones, which have the same mean and variance, a
    skewness of 0 for 0.1 or less, and take a quarter of the time.
    """
    expected = electrons.detach().cpu().clamp(min=0).numpy()
    arrived = np.sqrt(expected) * rng.standard_normal(expected.shape, dtype=np.float32)
    arrived += expected
    np.rint(arrived, out=arrived)
    few = expected < 100
    if few.any():
        arrived[few] = rng.poisson(expected[few])
    return torch.from_numpy(arrived).to(electrons)


def add_defects(light: Tensor, share: float, level: float, rng: np.random.Generator) -> Tensor:
    """Set a share of a sensor's sites to ``level``: 1 is hot, 0 dead; all linear.

    Each site is defective with probability ``share``, the same ones in all frames (..., H, W). Raises a
    ValueError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of defective sites is {share}, expected 0 to 1")
    bad = torch.from_numpy(rng.random(tuple(light.shape[-2:])) < share).to(light.device)
    return torch.where(bad, level, light)


def add_line_noise(light: Tensor, deviation: float, axis: int, rng: np.random.Generator) -> Tensor:
    """Add fixed pattern noise: an offset to each row (``axis`` -2) or column (-1), alike in all frames.

    ``light`` is (..., H, W), linear; ``deviation`` is Gaussian, a share of the range from black to white.
    """
    sides = [1, 1]
    sides[axis] = light.shape[axis]
    return light + deviation * torch.from_numpy(rng.standard_normal(sides)).to(light)


def falloff(like: Tensor, lost: float) -> Tensor:
    """Return the light that a vignetting lens leaves, (H, W) as ``like`` (..., H, W).

    1 in the centre, less by the square of the distance from it, ``1 - lost`` in the corners.
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in like.shape[-2:])
    return 1 - lost * (rows[:, None] ** 2 + columns**2) / 2


def apply_levels(light: Tensor, camera: Camera) -> Tensor:
    """Move a mosaic (..., H, W), linear, to raw by a camera's levels: ``x * (white - black) + black``.

    The black level is that of the position in the tile; 0 becomes black, 1 saturates.
    """
    height, width = light.shape[-2:]
    tile = torch.tensor(camera.black_level, dtype=light.dtype, device=light.device).reshape(2, 2)
    black = tile.repeat((height + 1) // 2, (width + 1) // 2)[:height, :width]
    return light * (camera.white_level - black) + black


def quantise(raw: Tensor, bits: int) -> Tensor:
    """Round to the numbers of a ``bits`` deep converter, left-justified in 16 (any shape, raw).

    The result times 65535 is whole and a multiple of ``2 ** (16 - bits)``, as in a raw file; the
    largest is therefore a little below 1.0 for fewer than 16 bits.
    """
    step = 2 ** (16 - bits)
    numbers = (raw * (CONTAINER_MAX / step)).round().clamp(0, 2**bits - 1)
    return numbers * step / CONTAINER_MAX


def record(
    scene: Tensor, camera: Camera, noise: NoiseModel, *, rng: np.random.Generator, intensity: float = 1.0
) -> Tensor:
    """Expose a sensor to a scene: (..., 3, H, W) to (..., 1, H, W), raw, [0, camera.white_level].

    >>> from r2l.camera import DRONE
    >>> scene = torch.full((3, 8, 8), 0.5)
    >>> record(scene, DRONE, DRONE_NOISE, rng=np.random.default_rng(0)).shape
    torch.Size([1, 8, 8])

    Args:
        scene: linear, camera colours: the light of an exposure of intensity 1, as a fraction of what
            saturates a site. `unprocess` makes one from a picture.
        camera: layout and levels.
        noise: gain, read noise, bit depth.
        rng: where chance comes from.
        intensity: exposure relative to the scene's, not negative; 0.05 records a twentieth of the photons.
    """
    if not intensity >= 0:
        raise ValueError(f"intensity is {intensity}, expected 0 or more")
    full_well = noise.full_well(camera)
    electrons = _add_shot_noise(mosaic(scene, camera.cfa) * intensity * full_well, rng)
    read = rng.standard_normal(tuple(electrons.shape), dtype=np.float32)
    electrons = electrons + noise.read_noise * torch.from_numpy(read).to(electrons)
    return quantise(apply_levels(electrons / full_well, camera).clamp(0, camera.white_level), noise.bits)
