"""Looking into an ISP: what a loss wants changed at each stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class StageGradient(NamedTuple):
    """An intermediate image and the gradient of the loss with respect to it, of equal shape."""

    image: Tensor
    gradient: Tensor


def stage_gradients(
    isp: nn.Module, raw: Tensor, loss: Callable[[Tensor], Tensor]
) -> dict[str, StageGradient]:
    """Return for each stage of an ISP its image and the gradient of a loss with respect to it.

    Neither ``raw`` nor the gradients of the ISP's parameters are touched.

    Args:
        isp: any ISP of `r2l.isp`.
        raw: (B, 1, H, W), raw domain.
        loss: the ISP's result to a scalar; usually a task model and its loss.

    Returns:
        By name and in the order of ``isp.stages``: detached images and gradients.

    Raises:
        ValueError: ``loss`` does not return a scalar, or one that does not depend on the image.
    """
    with torch.enable_grad():
        stages = isp.stages(raw.detach().clone().requires_grad_())
        images = list(stages.values())
        value = loss(images[-1])
        if value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                f"loss returned a tensor of shape {tuple(value.shape)}, requires_grad="
                f"{value.requires_grad}; expected a scalar that depends on the image"
            )
        found = torch.autograd.grad(value.reshape(()), images)
    return {
        name: StageGradient(image.detach(), gradient)
        for name, image, gradient in zip(stages, images, found, strict=True)
    }
