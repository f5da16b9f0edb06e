"""Task models: classifiers that take display RGB and carry their own normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

# Mean and standard deviation of ImageNet (RGB), what torchvision's ResNets are used to.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


def _halving_block(channels_in: int, channels_out: int) -> nn.Module:
    shortcut = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False),
        nn.BatchNorm2d(channels_out),
    )
    return BasicBlock(channels_in, channels_out, stride=2, downsample=shortcut)


def small_resnet(num_classes: int) -> nn.Module:
    """Return a residual network of about 70,000 weights for tiles of 32 to 96 pixels.

    It exists so that a dozen models can be trained in a minute on two cores. Like any ResNet it
    ends in a global average, so every tile size from 16 pixels on works.
    """
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        _halving_block(16, 32),
        _halving_block(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


# Keys are the published names, except the last, which is ours.
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "ResNet18": torchvision.models.resnet18,
    "ResNet34": torchvision.models.resnet34,
    "ResNet50": torchvision.models.resnet50,
    "SmallResNet": small_resnet,
}


def make_classifier(
    name: str,
    n_classes: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> nn.Sequential:
    """Return a fresh classifier: display RGB (B, 3, H, W) in [0, 1] to logits (B, n_classes).

    The first of its two parts, ``normalize``, is the input normalisation, the second, ``network``,
    the network. Initial weights are drawn from torch's global generator; `fit` seeds it.

    Args:
        name: one of `CLASSIFIERS`: "ResNet18", "ResNet34", "ResNet50" (torchvision, random
            weights) or "SmallResNet".
        n_classes: number of logits.
        mean: per-channel mean that is subtracted, display units; see `channel_statistics`.
        std: per-channel standard deviation that is divided by, display units.

    Raises:
        ValueError: no such model (the message lists those that exist), or a normalisation that is
            not three numbers.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}; choose from {', '.join(CLASSIFIERS)}")
    model = nn.Sequential()
    model.add_module("normalize", Normalize(mean, std))
    model.add_module("network", CLASSIFIERS[name](num_classes=n_classes))
    return model


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of ``images`` (N, 3, H, W), display units.

    A constant channel gets the standard deviation 1e-3, so that it can be divided by.
    """
    std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())
