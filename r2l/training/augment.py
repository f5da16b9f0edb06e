"""Augmentation: other views of an image in training, its mask turned with it.

It acts on the developed image, behind the processor, never on the mosaic: a flip or a quarter turn would
shift the colours of a mosaic's 2x2 tile, and the processor would take red for blue. Gradients pass through
to the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

AUGMENTATIONS = ("none", "weak", "strong")

# What `strong` may do on top; an image moves by less than a quarter of its side.
_DEGREES, _SHIFT, _SCALES, _JITTER, _BEYOND = 10, 0.05, (0.9, 1.1), 0.2, 4


class Augment:
    """Augment a batch, each image by a draw of its own.

    A draw follows from (seed, epoch, index of the image in its data set) alone: not from the batch that
    the image is in, nor from what else was drawn. The global generators are left as they were.

    - *weak*: one of the eight flips and quarter turns of a square (of an oblong: the four that keep its
      shape), all equally likely. It invents no pixels.
    - *strong*: that; then a turn by up to 10 degrees, a shift by up to 5 % of each side and a scale of 0.9
      to 1.1, bilinear (masks: nearest), the surroundings filled with the mirror image; then brightness,
      contrast and saturation by factors of 0.8 to 1.2. The jitter clips to [0, 1].

    Args:
        strength: "weak" or "strong".
        seed: not negative.

    Raises:
        ValueError: an unknown strength.
    """

    def __init__(self, strength: str, seed: int) -> None:
        if strength not in AUGMENTATIONS[1:]:
            raise ValueError(
                f"unknown augmentation {strength!r}; choose from {', '.join(AUGMENTATIONS)}"
            )
        self.strength, self.seed = strength, seed

    def __call__(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        indices: Sequence[int] | Tensor,
        epoch: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return new images and masks; differentiable with respect to the images.

        Args:
            images: (B, 3, H, W), display domain, [0, 1].
            masks: (B, 1, H, W), or None; those that hold 0 and 1 alone still do so afterwards.
            indices: (B,), of the images in their data set.
            epoch: from 0.
        """
        draws = [(self.seed, epoch, int(index)) for index in indices]
        pair = _turned(images, masks, draws)
        return _distorted(*pair, draws) if self.strength == "strong" else pair


def make_augment(strength: str, seed: int) -> Augment | None:
    """Return the augmentation of that strength; None for "none".

    Raises:
        ValueError: an unknown strength.
    """
    return None if strength == "none" else Augment(strength, seed)


def _wrap(images: Tensor, masks: Tensor | None) -> tuple[Tensor, ...]:
    image = tv_tensors.Image(images)
    return (image,) if masks is None else (image, tv_tensors.Mask(masks))


def _turned(
    images: Tensor, masks: Tensor | None, draws: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor | None]:
    """Flip and turn; all images of a batch that drew the same at once."""
    square = images.shape[-1] == images.shape[-2]
    moves = np.array([np.random.default_rng(draw).integers(8 if square else 4) for draw in draws])
    order = np.argsort(moves, kind="stable")
    # Where each image went when they were sorted by move.
    back = torch.from_numpy(np.argsort(order)).to(images.device)
    groups = [torch.from_numpy(order[moves[order] == m]) for m in np.unique(moves)]
    turned = []
    for tensor in (images, masks):
        if tensor is None:
            turned.append(None)
            continue
        parts = [
            _move(tensor[group.to(tensor.device)], int(move), square)
            for move, group in zip(np.unique(moves), groups, strict=True)
        ]
        turned.append(torch.cat(parts)[back])
    return turned[0], turned[1]


def _move(part: Tensor, move: int, square: bool) -> Tensor:
    if move % 2:
        part = v2.functional.horizontal_flip(part)
    return torch.rot90(part, move // 2 * (1 if square else 2), (-2, -1))


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


def _distorted(
    images: Tensor, masks: Tensor | None, draws: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor | None]:
    distort = _distortion(*images.shape[-2:])
    results = []
    with _own_draws() as generator:
        for i, draw in enumerate(draws):
            # Another stream than the turns'.
            seed = np.random.SeedSequence(draw, spawn_key=(1,)).generate_state(1)[0]
            generator.manual_seed(int(seed))
            results.append(distort(*_wrap(images[i], None if masks is None else masks[i])))
    if masks is None:
        return torch.stack([r.as_subclass(Tensor) for r in results]), None
    return tuple(
        torch.stack([part.as_subclass(Tensor) for part in parts])
        for parts in zip(*results, strict=True)
    )


@contextmanager
def _own_draws() -> Iterator[torch.Generator]:
    """Lend torch's CPU generator, from which torchvision draws, and put its state back."""
    state = torch.get_rng_state()
    try:
        yield torch.default_generator
    finally:
        torch.set_rng_state(state)
