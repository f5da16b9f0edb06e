"""What the corruptions do to images; `r2l.drift.corruptions` says how strongly, and draws the chance.

Each takes images (N, 3, H, W), display domain, its constants, and one generator for each image, and returns
images of the same shape, which can leave [0, 1]. Definitions: Hendrycks and Dietterich, ICLR 2019.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

Constants = tuple[float, ...]
Generators = Sequence[np.random.Generator]
T = TypeVar("T")


def generators(
    seed: int, number: int, count: int, ids: Sequence[int] | np.ndarray | None = None
) -> Generators:
    """Return a generator for each of ``count`` images, seeded by its identity (its place, if not given)."""
    return [np.random.default_rng((seed, number, int(i))) for i in (range(count) if ids is None else ids)]


def at_severity(constants: Sequence[T], severity: int) -> T:
    """Return what stands for a severity; raises a ValueError if that is not 1 to 5."""
    if severity not in range(1, 6):
        raise ValueError(f"severity is {severity}, expected 1, 2, 3, 4 or 5")
    return constants[severity - 1]


def normals(images: Tensor, rngs: Generators) -> Tensor:
    """Return standard normal numbers for images (N, C, H, W), each from its own generator."""
    shape = images.shape[1:]
    drawn = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
    return torch.from_numpy(drawn).to(images)


def gaussian_noise(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Add Gaussian noise of that standard deviation, alike at every pixel and channel."""
    return images + constants[0] * normals(images, rngs)


def speckle_noise(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Add Gaussian noise in proportion to the image."""
    return images + images * constants[0] * normals(images, rngs)


def shot_noise(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Draw as many photons as ``constants[0]`` where the image is white."""
    if not np.isfinite(constants[0]):
        return images
    expected = images.clamp_min(0).cpu().double().numpy() * constants[0]
    drawn = np.stack([rng.poisson(one) for rng, one in zip(rngs, expected, strict=True)])
    return torch.from_numpy(drawn / constants[0]).to(images)


def impulse_noise(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Turn a share of the values black or white, pixel by pixel and channel by channel."""
    drawn = np.stack([rng.random(images.shape[1:], dtype=np.float32) for rng in rngs])
    luck = torch.from_numpy(drawn).to(images)
    peppered = torch.where(luck < constants[0] / 2, 0.0, images)
    return torch.where(luck > 1 - constants[0] / 2, 1.0, peppered)


def gaussian_blur(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Blur by a Gaussian of that many pixels, out to four of them; the border is continued."""
    sigma = (0, 0, constants[0], constants[0])
    blurred = ndimage.gaussian_filter(images.cpu().numpy(), sigma, mode="nearest")
    return torch.from_numpy(blurred).to(images)


def zoom_blur(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Average the image with enlargements of it, up to ``constants[0]`` times, in so many steps."""
    largest, steps = constants
    total = images.clone()
    zooms = np.linspace(1, largest, int(steps))
    for zoom in zooms:
        theta = torch.eye(2, 3).repeat(len(images), 1, 1) / float(zoom)
        grid = F.affine_grid(theta, list(images.shape), align_corners=True).to(images)
        total += F.grid_sample(images, grid, padding_mode="border", align_corners=True)
    return total / (len(zooms) + 1)


def contrast(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Shrink the distance to each channel's mean, by that factor."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return means + (images - means) * constants[0]


def brightness(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Raise the V of HSV; hue and saturation stay, so that all channels grow by one factor."""
    value = images.amax(dim=1, keepdim=True)
    raised = (value + constants[0]).clamp(0, 1)
    factor = raised / value.clamp_min(1e-12)
    return torch.where(value > 0, images * factor, raised)


def saturate(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Turn the S of HSV into ``S * factor + offset``; hue and V stay. Grey counts as red, as in HSV."""
    factor, offset = constants
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    depth = value - least
    saturation = depth / value.clamp_min(1e-12)
    new = (saturation * factor + offset).clamp(0, 1)
    share = (value - images) / depth.clamp_min(1e-12)
    reddish = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).to(images)
    share = torch.where(depth > 0, share, reddish)
    return value * (1 - new * share)


def elastic_transform(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Move three points at random by up to ``affine`` pixels, then every pixel along smooth fields."""
    alpha, sigma, affine = constants
    height, width = images.shape[2:]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    centre, arm = np.array([width // 2, height // 2]), min(height, width) // 3
    before = centre + arm * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    warped, moved = [], []
    for rng in rngs:
        after = before + affine * rng.uniform(-1, 1, (3, 2))
        # Of each pixel of the result: where it was; solved for the way back.
        back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
        warped.append(np.stack([x, y, np.ones_like(x)], axis=-1) @ back)
        fields = rng.uniform(-1, 1, (2, height, width))
        smooth = [ndimage.gaussian_filter(f, sigma, mode="reflect", truncate=3) for f in fields]
        moved.append(np.stack([x, y], axis=-1) + alpha * np.stack(smooth, axis=-1))
    return _sample(_sample(images, np.stack(warped)), np.stack(moved))


def _sample(images: Tensor, places: np.ndarray) -> Tensor:
    """Read images at places (N, H, W, x and y) in pixels, linearly, mirrored at the border."""
    size = np.array([images.shape[3], images.shape[2]])
    grid = torch.from_numpy(2 * places / (size - 1) - 1).to(images)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


def jpeg_compression(images: Tensor, constants: Constants, rngs: Generators) -> Tensor:
    """Write as JPEG of that quality (1 to 100, whole, 4:2:0) and read."""
    from r2l.isp.display import jpeg_coded  # what display stages import is not everybody's

    return jpeg_coded(images, int(np.clip(round(constants[0]), 1, 100)))
