"""Augmentation: other views of an image in training, its mask turned with it.

It acts on the developed image, behind the processor, never on the mosaic: a flip or a quarter turn would
shift the colours of a mosaic's 2x2 tile, and the processor would take red for blue. Gradients pass through
to the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from r2l.files import choose

# torchvision is imported where it distorts: what checks an option needs the names alone.
if TYPE_CHECKING:
    from torchvision.transforms import v2

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
    choose("augmentation", strength, AUGMENTATIONS)
    return {"none": None, "weak": _turn, "strong": _turn_and_distort}[strength]


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
    from torchvision.transforms import v2

    pad = v2.Pad((width // _BEYOND, height // _BEYOND), padding_mode="reflect")
    shift = _SHIFT / (1 + 2 / _BEYOND)  # of the padded side, which is half as long again
    how = {"translate": (shift, shift), "scale": _SCALES, "interpolation": v2.InterpolationMode.BILINEAR}
    # Nothing to fill; any colour would be put in by a step without gradient.
    move = v2.RandomAffine(_DEGREES, **how, fill=None)
    jitter = v2.ColorJitter(_JITTER, _JITTER, _JITTER)
    return v2.Compose([pad, move, v2.CenterCrop((height, width)), jitter])


def _turn_and_distort(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    from torchvision import tv_tensors

    images, masks = _turn(images, masks)
    distort = _distortion(*images.shape[-2:])
    of_masks = [None] * len(images) if masks is None else map(tv_tensors.Mask, masks)
    pairs = [distort(tv_tensors.Image(image), mask) for image, mask in zip(images, of_masks, strict=True)]
    seen, moved = zip(*pairs, strict=True)
    seen = torch.stack([image.as_subclass(Tensor) for image in seen])
    return seen, None if masks is None else torch.stack([mask.as_subclass(Tensor) for mask in moved])
