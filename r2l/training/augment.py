"""Augmentation: other views of an image in training, its mask turned with it.

It acts on the developed image, behind the processor, never on the mosaic: a flip or a quarter turn would
shift the colours of a mosaic's 2x2 tile, and the processor would take red for blue. Gradients pass through
to the processor.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from r2l.files import choose

AUGMENTATIONS = ("none", "weak", "strong")

# What `strong` may do on top; an image moves by less than a quarter of its side.
_DEGREES, _SHIFT, _SCALES, _JITTER, _BEYOND = 10, 0.05, (0.9, 1.1), 0.2, 4

#: Of images (B, 3, H, W), display domain, [0, 1], and masks (B, 1, H, W) or None: new ones.
Augment = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def make_augment(strength: str) -> Augment | None:
    """Return what augments a batch, each image by a draw of its own; None for "none".

    Draws are torch's, of its global generator, which `fit` seeds and a checkpoint keeps.

    - *weak*: one of the eight flips and quarter turns of a square (of an oblong: the four that keep its
      shape), all equally likely. It invents no pixels.
    - *strong*: that; then a turn by up to 10 degrees, a shift by up to 5 % of each side and a scale of 0.9
      to 1.1, bilinear (masks: nearest), the surroundings filled with the mirror image; then brightness,
      contrast and saturation by factors of 0.8 to 1.2. The jitter clips to [0, 1].

    Both are differentiable with respect to the images, and leave masks of 0 and 1 such.

    Raises:
        ValueError: an unknown strength.
    """
    return {"none": None, "weak": _turn, "strong": _turn_and_distort}[
        choose("augmentation", strength, AUGMENTATIONS)
    ]


def _turn(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Flip and turn; all images of a batch that drew the same at once."""
    square = images.shape[-1] == images.shape[-2]
    moves = torch.randint(8 if square else 4, (len(images),))
    new = [None if old is None else torch.empty_like(old) for old in (images, masks)]
    for move in moves.unique().tolist():
        drawn = (moves == move).to(images.device)
        for target, source in zip(new, (images, masks), strict=True):
            if target is not None:
                part = source[drawn].flip(-1) if move % 2 else source[drawn]
                target[drawn] = torch.rot90(part, move // 2 * (1 if square else 2), (-2, -1))
    return new[0], new[1]


@lru_cache
def _distortion(height: int, width: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.Pad((width // _BEYOND, height // _BEYOND), padding_mode="reflect"),
            v2.RandomAffine(
                _DEGREES,
                # Of the padded side, which is half as long again.
                translate=(_SHIFT / (1 + 2 / _BEYOND),) * 2,
                scale=_SCALES,
                interpolation=v2.InterpolationMode.BILINEAR,
                fill=None,  # nothing to fill; any colour would be put in by a step without gradient
            ),
            v2.CenterCrop((height, width)),
            v2.ColorJitter(_JITTER, _JITTER, _JITTER),
        ]
    )


def _turn_and_distort(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    images, masks = _turn(images, masks)
    distort = _distortion(*images.shape[-2:])
    if masks is None:
        distorted = [distort(tv_tensors.Image(image)) for image in images]
        return torch.stack([image.as_subclass(Tensor) for image in distorted]), None
    pairs = [
        distort(tv_tensors.Image(image), tv_tensors.Mask(mask))
        for image, mask in zip(images, masks, strict=True)
    ]
    return tuple(torch.stack([p.as_subclass(Tensor) for p in parts]) for parts in zip(*pairs, strict=True))
