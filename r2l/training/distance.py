"""How far apart two images are, one number a pair."""

from __future__ import annotations

import torch
from pytorch_msssim import ssim
from torch import Tensor

#: l2: mean squared difference, from 0; ssim: 1 - SSIM, 0 to 2; psnr: decibels of a peak of 1, where *more*
#: is nearer.
DISTANCES = ("l2", "ssim", "psnr")


def image_distance(image: Tensor, reference: Tensor, kind: str = "l2") -> Tensor:
    """Return the distance of each image to its reference, (B,), differentiable.

    A mean over pixels and channels, so that it depends on neither the size of the batch nor that of the
    images.

    Args:
        image: (B, 3, H, W), display domain.
        reference: as ``image``.
        kind: one of `DISTANCES`. SSIM has a Gaussian window of 11 pixels, sigma 1.5, and K 0.01 and 0.03
            (Wang et al., "Image quality assessment", IEEE TIP 2004).

    Raises:
        ValueError: an unknown kind, shapes that differ, or images too small for SSIM's window.
    """
    if kind not in DISTANCES:
        raise ValueError(f"unknown distance {kind!r}; choose from {', '.join(DISTANCES)}")
    if image.shape != reference.shape or image.ndim != 4:
        raise ValueError(
            f"images have shapes {tuple(image.shape)} and {tuple(reference.shape)}, "
            "expected the same (B, C, H, W)"
        )
    if kind == "ssim":
        if min(image.shape[-2:]) < 11:
            raise ValueError(f"SSIM needs images of 11 x 11 pixels or more, got {image.shape[-2:]}")
        return 1 - ssim(image, reference, data_range=1.0, size_average=False)
    squares = (image - reference).square().mean(dim=(1, 2, 3))
    if kind == "l2":
        return squares
    return -10 * torch.log10(squares.clamp_min(torch.finfo(squares.dtype).tiny))
