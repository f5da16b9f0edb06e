"""What task models wear around their network: normalisation, its undoing, and a border."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Args:
        mean: three numbers in display units ([0, 1]).
        std: three positive numbers in display units.

    Raises:
        ValueError: not three numbers each, or a ``std`` that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"expected 3 means and 3 stds (RGB), got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std has to be positive, got {tuple(std)}")
        self.register_buffer("mean", torch.tensor([*map(float, mean)]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([*map(float, std)]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Map display RGB (B, 3, H, W) to roughly zero mean and unit variance, same shape."""
        return (image - self.mean) / self.std


class Rescale(nn.Module):
    """Multiply by a standard deviation and add a mean, target by target: what `Normalize` does, undone."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, n_targets: int, mean: float | Sequence[float], std: float | Sequence[float]
    ) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=torch.float32)
            if tensor.ndim > 1 or tensor.numel() not in (1, n_targets):
                raise ValueError(
                    f"target_{name} has {tensor.numel()} numbers, expected 1 or {n_targets}"
                )
            self.register_buffer(name, tensor.expand(n_targets).clone())
        if not (self.std > 0).all():
            raise ValueError(f"target_std has to be positive, got {std}")

    def forward(self, outputs: Tensor) -> Tensor:
        """Map (B, n_targets) of unit variance to the targets' units."""
        return outputs * self.std + self.mean


class Padded(nn.Module):
    """Run a network on images continued to a multiple of 32 pixels, and cut its answer to their size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, C, H, W)."""
        height, width = image.shape[-2:]
        down, right = -height % 32, -width % 32
        if down or right:
            mirrored = down < height and right < width
            image = F.pad(image, (0, right, 0, down), "reflect" if mirrored else "replicate")
        return self.network(image)[..., :height, :width]
