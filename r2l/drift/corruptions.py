"""Post-hoc corruptions: what is done to a finished picture, as robustness benchmarks do it.

The ten of the published comparison (Oala et al., TMLR 2023), and JPEG. Definitions and constants are those of
Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019, in its version for images of 32 x 32 pixels (CIFAR-10-C), which is what the published comparison
used, on images of 256 x 256. A blur of one pixel, or a shift of two, is much on the one and nothing on the
other: ``scale="image"`` lets lengths grow with the image.

Chance is drawn for each image by itself from (seed, corruption, image), so that an image's corruption depends
on neither batch nor order, and the same numbers serve all severities: an image changes more, not otherwise,
as severity rises. Differences to the benchmark: values are not rounded to 8 bit (but by JPEG), and zoom blur
enlarges continuously, where the benchmark cuts out whole pixels.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from r2l.files import choose, load_named
from r2l.training.checkpoints import mixed_seed, seeded

SCALES = ("published", "image")
_SIDE = 32  # pixels; of the images that the published constants were made for
_Ids = Sequence[int] | np.ndarray | None
Generators = Sequence[np.random.Generator]


def generators(seed: int, number: int, count: int, ids: _Ids = None) -> Generators:
    """Return a generator for each of ``count`` images, seeded by its identity (its place, if not given)."""
    return [np.random.default_rng((seed, number, int(i))) for i in (range(count) if ids is None else ids)]


def at_severity(constants: Sequence[Any], severity: int) -> Any:
    """Return what stands for a severity; raises a ValueError if that is not 1 to 5."""
    if severity not in range(1, 6):
        raise ValueError(f"severity is {severity}, expected 1, 2, 3, 4 or 5")
    return constants[severity - 1]


def normals(images: Tensor, rngs: Generators) -> Tensor:
    """Return standard normal numbers for images (N, C, H, W), each from its own generator."""
    drawn = [rng.standard_normal(images.shape[1:], dtype=np.float32) for rng in rngs]
    return torch.from_numpy(np.stack(drawn)).to(images)


# What each does to images (N, 3, H, W), display domain, by a generator for each image and the constants of a
# severity. The result can leave [0, 1].


def _gaussian_noise(images: Tensor, rngs: Generators, sigma: float) -> Tensor:
    return images + sigma * normals(images, rngs)


def _speckle_noise(images: Tensor, rngs: Generators, sigma: float) -> Tensor:
    """Add Gaussian noise in proportion to the image."""
    return images + images * sigma * normals(images, rngs)


def _shot_noise(images: Tensor, rngs: Generators, photons: float) -> Tensor:
    """Draw as many photons where the image is white."""
    if not np.isfinite(photons):
        return images
    expected = images.clamp_min(0).cpu().double().numpy() * photons
    drawn = np.stack([rng.poisson(one) for rng, one in zip(rngs, expected, strict=True)])
    return torch.from_numpy(drawn / photons).to(images)


def _impulse_noise(images: Tensor, rngs: Generators, share: float) -> Tensor:
    """Turn a share of the values black or white, pixel by pixel and channel by channel."""
    drawn = np.stack([rng.random(images.shape[1:], dtype=np.float32) for rng in rngs])
    luck, half = torch.from_numpy(drawn).to(images), min(share, 1) / 2  # there are no more than all
    return torch.where(luck > 1 - half, 1.0, torch.where(luck < half, 0.0, images))


def _gaussian_blur(images: Tensor, rngs: Generators, sigma: float) -> Tensor:
    """Blur by a Gaussian of that many pixels, out to four of them; the border is continued."""
    blurred = ndimage.gaussian_filter(images.cpu().numpy(), (0, 0, sigma, sigma), mode="nearest")
    return torch.from_numpy(blurred).to(images)


def _zoom_blur(images: Tensor, rngs: Generators, largest: float, steps: float) -> Tensor:
    """Average the image with enlargements of it, up to ``largest`` times, in so many steps."""
    total = images.clone()
    for zoom in np.linspace(1, largest, int(steps)):
        theta = torch.eye(2, 3).repeat(len(images), 1, 1) / float(zoom)
        grid = F.affine_grid(theta, list(images.shape), align_corners=True).to(images)
        total += F.grid_sample(images, grid, padding_mode="border", align_corners=True)
    return total / (int(steps) + 1)


def _contrast(images: Tensor, rngs: Generators, factor: float) -> Tensor:
    """Shrink the distance to each channel's mean."""
    means = images.mean(dim=(2, 3), keepdim=True)
    return means + (images - means) * factor


def _brightness(images: Tensor, rngs: Generators, more: float) -> Tensor:
    """Raise the V of HSV; hue and saturation stay, so that all channels grow by one factor."""
    value = images.amax(dim=1, keepdim=True)
    raised = (value + more).clamp(0, 1)
    factor = raised / value.clamp_min(1e-12)
    return torch.where(value > 0, images * factor, raised)


def _saturate(images: Tensor, rngs: Generators, factor: float, offset: float) -> Tensor:
    """Turn the S of HSV into ``S * factor + offset``; hue and V stay. Grey counts as red, as in HSV."""
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    depth = value - least
    saturation = depth / value.clamp_min(1e-12)
    new = (saturation * factor + offset).clamp(0, 1)
    share = (value - images) / depth.clamp_min(1e-12)
    reddish = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).to(images)
    return value * (1 - new * torch.where(depth > 0, share, reddish))


def _elastic_transform(images: Tensor, rngs: Generators, alpha: float, sigma: float, affine: float) -> Tensor:
    """Move three points at random by up to ``affine`` pixels, then every pixel along smooth fields."""
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
    for pixels in (warped, moved):  # read there linearly, mirrored at the border
        grid = torch.from_numpy(2 * np.stack(pixels) / (np.array([width, height]) - 1) - 1).to(images)
        images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    return images


def _jpeg_compression(images: Tensor, rngs: Generators, quality: float) -> Tensor:
    """Write as JPEG of that quality (1 to 100, whole, 4:2:0) and read."""
    from r2l.isp.added_stages import jpeg_coded  # what display stages import is not everybody's

    return jpeg_coded(images, int(np.clip(round(quality), 1, 100)))


def _weaken_jpeg(amount: float, quality: float) -> tuple[float]:
    """Scale the table of quantisation, which libjpeg makes of a quality."""
    percent = amount * (5000 / quality if quality < 50 else 200 - 2 * quality)
    return (100 - percent / 2 if percent <= 100 else 5000 / percent,)


@dataclass(frozen=True)
class _Corruption:
    """One kind of corruption: what it does, and the constants of severities 1 to 5, one or several each.

    ``weaken`` returns the constants of a share of the change, 0 leaves the image; by default they are
    multiplied. ``lengths`` are those of the constants that are in pixels.
    """

    apply: Callable[..., Tensor]
    severities: tuple[Any, ...]
    weaken: Callable[..., tuple[float, ...]] = lambda amount, constant: (constant * amount,)
    lengths: tuple[int, ...] = ()

    def constants(self, severity: int, side: int, scale: str) -> tuple[float, ...]:
        """Return the constants of a severity at images of ``side`` pixels."""
        values = at_severity(self.severities, severity)
        values = values if isinstance(values, tuple) else (values,)
        growth = side / _SIDE if scale == "image" else 1.0
        return tuple(v * growth if i in self.lengths else v for i, v in enumerate(values))


_ELASTIC = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
_KINDS = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    # The noise goes with the root of the photons.
    "shot_noise": _Corruption(
        _shot_noise, (500, 250, 100, 75, 50), lambda a, photons: (photons / a**2 if a else np.inf,)
    ),
    "impulse_noise": _Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": _Corruption(_speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": _Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), lengths=(0,)),
    "zoom_blur": _Corruption(
        _zoom_blur,
        tuple((1 + 0.01 * (steps - 1), steps) for steps in (6, 11, 16, 21, 26)),
        lambda a, largest, steps: (1 + (largest - 1) * a, steps),
    ),
    "contrast": _Corruption(
        _contrast, (0.75, 0.5, 0.4, 0.3, 0.15), lambda a, factor: (max(0, 1 - (1 - factor) * a),)
    ),
    "brightness": _Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "saturate": _Corruption(
        _saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        lambda a, factor, offset: (max(0.0, 1 + (factor - 1) * a), offset * a),
    ),
    "elastic_transform": _Corruption(
        _elastic_transform,
        tuple(tuple(_SIDE * share for share in shares) for shares in _ELASTIC),
        lambda a, alpha, sigma, affine: (alpha * a, sigma, affine * a),
        (0, 1, 2),
    ),
    "jpeg_compression": _Corruption(_jpeg_compression, (80, 65, 58, 50, 40), _weaken_jpeg),
}
CORRUPTIONS = tuple(_KINDS)
#: The ten of the published comparison, in its order.
PUBLISHED_CORRUPTIONS = CORRUPTIONS[:10]


#: A name of `CORRUPTIONS`, a function of one's own, or ``module:function`` of it; see `corrupt`.
Corruption = str | Callable[..., Tensor]
Corruptions = Sequence[Corruption] | Mapping[str, Corruption]


def name_corruptions(kinds: Corruptions) -> dict[str, Corruption]:
    """Return corruptions by name: a mapping as it is, functions by their own (ValueError: none, or twice)."""
    if isinstance(kinds, Mapping):
        return dict(kinds)
    names = [kind if isinstance(kind, str) else getattr(kind, "__name__", "") for kind in kinds]
    if len(set(names)) < len(names) or not all(n and n != "<lambda>" for n in names):
        raise ValueError(f"corruptions {names} need names of their own: give {{name: function}}")
    return dict(zip(names, kinds, strict=True))


def corrupt(
    images: Tensor,
    kind: Corruption,
    severity: int = 3,
    *,
    amount: float = 1.0,
    scale: str = "published",
    seed: int = 0,
    ids: _Ids = None,
) -> Tensor:
    """Return corrupted copies of images.

    >>> import torch
    >>> corrupt(torch.full((1, 3, 16, 16), 0.5), "contrast", severity=3).shape
    torch.Size([1, 3, 16, 16])

    Args:
        images: (N, 3, H, W), display domain, [0, 1].
        kind: one of `CORRUPTIONS`; or a function of one's own, or the name of one (``module:function``), from
            an image (1, 3, H, W) to one of its size. It is called with one image at a time, the global
            generators of torch, numpy and Python seeded for it, and gets ``severity=`` if it has such an
            argument; of its change ``amount`` is the share that is mixed in, and ``scale`` is unused.
        severity: 1 to 5.
        amount: how much of the severity's change; 0 leaves the images, 2 is twice the noise, length, contrast
            lost, or quantisation. Between and beyond the five severities it is continuous, but for JPEG,
            whose quality is a whole number.
        scale: "published": constants as made for 32 x 32 pixels, whatever the images' size; "image": those
            that are lengths (blur, elastic) grow with the shorter side of the image. A noise has no length.
        ids: identity of each image (N,), from which its chance is drawn; its place, if not given.

    Returns:
        (N, 3, H, W), display domain, [0, 1].

    Raises:
        ValueError: an unknown kind or scale, a severity that is not 1 to 5, a negative amount, or images of
            another shape, given or made.
        R2LError: own code that is not to be found.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    own = not isinstance(kind, str) or ":" in kind
    corruption = None if own else choose("corruption", kind, _KINDS)
    choose("scale", scale, SCALES)
    at_severity(range(5), severity)
    if not amount >= 0:
        raise ValueError(f"amount is {amount}, expected 0 or more")
    if amount == 0 or len(images) == 0:
        return images.clone()
    if own:
        function = load_named(kind, "corruption") if isinstance(kind, str) else kind
        changed = _by_own(images, function, severity, seed, ids)
        return (images + amount * (changed - images) if amount != 1 else changed).clamp(0, 1)
    constants = corruption.constants(severity, min(images.shape[2:]), scale)
    if amount != 1:
        constants = corruption.weaken(amount, *constants)
    rngs = generators(seed, CORRUPTIONS.index(kind), len(images), ids)
    return corruption.apply(images, rngs, *constants).clamp(0, 1)


def _by_own(images: Tensor, function: Callable[..., Tensor], severity: int, seed: int, ids: _Ids) -> Tensor:
    """Return what a function makes of each image, whose chance follows from its identity alone."""
    takes = "severity" in inspect.signature(function).parameters
    options, made = {"severity": severity} if takes else {}, []
    for number, image in zip(range(len(images)) if ids is None else ids, images, strict=True):
        with seeded(mixed_seed(seed, int(number))):
            made.append(function(image[None].clone(), **options))
        if not isinstance(made[-1], Tensor) or made[-1].shape != image[None].shape:
            shape = tuple(getattr(made[-1], "shape", ())) or type(made[-1]).__name__
            told = f"corruption {function!r} made {shape} of an image {tuple(image[None].shape)}"
            raise ValueError(f"{told}; it has to keep the shape")
    return torch.cat(made).to(images)
