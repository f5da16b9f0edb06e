"""Post-hoc corruptions: what is done to a finished picture, as robustness benchmarks do it.

The ten of the published comparison (Oala et al., TMLR 2023), and JPEG. Definitions and constants are those
of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, in its version for images of 32 x 32 pixels (CIFAR-10-C), which is what the
published comparison used, on images of 256 x 256. A blur of one pixel, or a shift of two, is much on the
one and nothing on the other: ``scale="image"`` lets lengths grow with the image.

Chance is drawn for each image by itself from (seed, corruption, image), so that an image's corruption
depends on neither batch nor order, and the same numbers serve all severities: an image changes more, not
otherwise, as severity rises. Differences to the benchmark: values are not rounded to 8 bit (but by JPEG),
and zoom blur enlarges continuously, where the benchmark cuts out whole pixels.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from r2l.drift import distortions
from r2l.drift.distortions import Constants, Generators, at_severity, generators
from r2l.files import choose, load_named
from r2l.training.checkpoints import mixed_seed, seeded

SCALES = ("published", "image")
_SIDE = 32  # pixels; of the images that the published constants were made for


_Apply = Callable[[Tensor, Constants, Generators], Tensor]


@dataclass(frozen=True)
class _Corruption:
    """One kind of corruption.

    Attributes:
        constants: of severities 1 to 5.
        apply: of images (N, 3, H, W), constants, and a generator for each image.
        weaken: of constants and an amount: the constants of that share of the change; 0 leaves the image.
        lengths: which of the constants are in pixels.
    """

    constants: tuple[Constants, Constants, Constants, Constants, Constants]
    apply: _Apply
    weaken: Callable[[Constants, float], Constants]
    lengths: tuple[int, ...] = ()


def _weaken_jpeg(quality: float, amount: float) -> float:
    """Scale the table of quantisation, which libjpeg makes of a quality."""
    percent = amount * (5000 / quality if quality < 50 else 200 - 2 * quality)
    return 100 - percent / 2 if percent <= 100 else 5000 / percent


def _single(
    apply: _Apply,
    *values: float,
    weaken: Callable[[float, float], float] = operator.mul,
    lengths: tuple[int, ...] = (),
) -> _Corruption:
    """Return a corruption of one constant, which by default goes with the amount."""
    constants = tuple((value,) for value in values)
    return _Corruption(constants, apply, lambda c, amount: (weaken(c[0], amount),), lengths)


_ELASTIC = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
_KINDS: dict[str, _Corruption] = {
    "gaussian_noise": _single(distortions.gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.10),
    # The noise goes with the root of the photons.
    "shot_noise": _single(
        *(distortions.shot_noise, 500, 250, 100, 75, 50), weaken=lambda c, a: c / a**2 if a else np.inf
    ),
    "impulse_noise": _single(distortions.impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": _single(distortions.speckle_noise, 0.06, 0.10, 0.12, 0.16, 0.20),
    "gaussian_blur": _single(distortions.gaussian_blur, 0.4, 0.6, 0.7, 0.8, 1.0, lengths=(0,)),
    "zoom_blur": _Corruption(
        tuple((1 + 0.01 * (steps - 1), steps) for steps in (6, 11, 16, 21, 26)),
        distortions.zoom_blur,
        lambda c, a: (1 + (c[0] - 1) * a, c[1]),
    ),
    "contrast": _single(
        *(distortions.contrast, 0.75, 0.5, 0.4, 0.3, 0.15), weaken=lambda c, a: max(0, 1 - (1 - c) * a)
    ),
    "brightness": _single(distortions.brightness, 0.05, 0.1, 0.15, 0.2, 0.3),
    "saturate": _Corruption(
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        distortions.saturate,
        lambda c, a: (max(0.0, 1 + (c[0] - 1) * a), c[1] * a),
    ),
    "elastic_transform": _Corruption(
        tuple(tuple(_SIDE * share for share in shares) for shares in _ELASTIC),
        distortions.elastic_transform,
        lambda c, a: (c[0] * a, c[1], c[2] * a),
        (0, 1, 2),
    ),
    "jpeg_compression": _single(distortions.jpeg_compression, 80, 65, 58, 50, 40, weaken=_weaken_jpeg),
}
CORRUPTIONS = tuple(_KINDS)
#: The ten of the published comparison, in its order.
PUBLISHED_CORRUPTIONS = CORRUPTIONS[:10]


#: A name of `CORRUPTIONS`, a function of one's own, or ``module:function`` of it; see `corrupt`.
Corruption = str | Callable[..., Tensor]
Corruptions = Sequence[Corruption] | Mapping[str, Corruption]


def name_corruptions(kinds: Corruptions) -> dict[str, Corruption]:
    """Return corruptions by name: a mapping as it is, functions by their own names.

    Raises:
        ValueError: a function without a name of its own, or two of one name.
    """
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
    ids: Sequence[int] | np.ndarray | None = None,
) -> Tensor:
    """Return corrupted copies of images.

    >>> import torch
    >>> corrupt(torch.full((1, 3, 16, 16), 0.5), "contrast", severity=3).shape
    torch.Size([1, 3, 16, 16])

    Args:
        images: (N, 3, H, W), display domain, [0, 1].
        kind: one of `CORRUPTIONS`; or a function of one's own, or the name of one (``module:function``),
            from an image (1, 3, H, W) to one of its size. It is called with one image at a time, the global
            generators of torch, numpy and Python seeded for it, and gets ``severity=`` if it has such an
            argument; of its change ``amount`` is the share that is mixed in, and ``scale`` is unused.
        severity: 1 to 5.
        amount: how much of the severity's change; 0 leaves the images, 2 is twice the noise, length,
            contrast lost, or quantisation. Between and beyond the five severities it is continuous, but
            for JPEG, whose quality is a whole number.
        scale: "published": constants as made for 32 x 32 pixels, whatever the images' size; "image": those
            that are lengths (blur, elastic) grow with the shorter side of the image. A noise has no length.
        seed: of all chance.
        ids: identity of each image (N,), from which its chance is drawn; its place, if not given.

    Returns:
        (N, 3, H, W), display domain, [0, 1].

    Raises:
        ValueError: an unknown kind or scale, a severity that is not 1 to 5, a negative amount, or images
            of another shape, given or made.
        R2LError: own code that is not to be found.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    own = not isinstance(kind, str) or ":" in kind
    if own:
        choose("scale", scale, SCALES)
        at_severity(range(5), severity)
    else:
        constants = _constants_of(kind, severity, min(images.shape[2:]), scale)
    if not amount >= 0:
        raise ValueError(f"amount is {amount}, expected 0 or more")
    if amount == 0 or len(images) == 0:
        return images.clone()
    if own:
        function = load_named(kind, "corruption") if isinstance(kind, str) else kind
        changed = _by_own(images, function, severity, seed, ids)
        return (images + amount * (changed - images) if amount != 1 else changed).clamp(0, 1)
    corruption = _KINDS[kind]
    weakened = corruption.weaken(constants, amount) if amount != 1 else constants
    rngs = generators(seed, CORRUPTIONS.index(kind), len(images), ids)
    return corruption.apply(images, weakened, rngs).clamp(0, 1)


def _by_own(
    images: Tensor,
    function: Callable[..., Tensor],
    severity: int,
    seed: int,
    ids: Sequence[int] | np.ndarray | None,
) -> Tensor:
    """Return what a function makes of each image, whose chance follows from its identity alone."""
    takes = "severity" in inspect.signature(function).parameters
    options, made = {"severity": severity} if takes else {}, []
    for number, image in zip(range(len(images)) if ids is None else ids, images, strict=True):
        with seeded(mixed_seed(seed, int(number))):
            made.append(function(image[None].clone(), **options))
        if not isinstance(made[-1], Tensor) or made[-1].shape != image[None].shape:
            shape = tuple(getattr(made[-1], "shape", ())) or type(made[-1]).__name__
            raise ValueError(
                f"corruption {function!r} made {shape} of an image {tuple(image[None].shape)}; it has to "
                "keep the shape"
            )
    return torch.cat(made).to(images)


def _constants_of(kind: str, severity: int, side: int, scale: str = "published") -> Constants:
    """Return the numbers that a severity of a corruption stands for, at images of ``side`` pixels."""
    corruption = choose("corruption", kind, _KINDS)
    growth = side / _SIDE if choose("scale", scale, SCALES) == "image" else 1.0
    values = at_severity(corruption.constants, severity)
    return tuple(v * growth if i in corruption.lengths else v for i, v in enumerate(values))
