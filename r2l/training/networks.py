"""Networks for the task models by name: the published ones, torchvision's, timm's, and one's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from r2l.files import load_named
from r2l.training.pretrained import load_imagenet_weights, timm_weights

# Both answer in training with a second, auxiliary answer, unless told not to.
_SINGLE: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


def _halving_block(channels_in: int, channels_out: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock  # takes seconds: only to make a network

    shortcut = nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=2, bias=False),
        nn.BatchNorm2d(channels_out),
    )
    return BasicBlock(channels_in, channels_out, stride=2, downsample=shortcut)


def _small_resnet(num_classes: int) -> nn.Module:
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


def _published(name: str, **options: Any) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, **options)


# Keys are the published names, except the last, which is ours.
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_published, name.lower()) for name in ("ResNet18", "ResNet34", "ResNet50")},
    "SmallResNet": _small_resnet,
}


def is_own_code(name: object) -> bool:
    """Tell whether a network's name is ``module:function``, which to make runs code of one's own."""
    return isinstance(name, str) and ":" in name and not name.startswith("timm:")


def check_network(name: str) -> str:
    """Return a name that `make_network` knows; own code is neither looked for nor run.

    Raises:
        ValueError: an unknown name; lists what there is, and what is spelt nearly so.
    """
    if is_own_code(name) or (isinstance(name, str) and name in CLASSIFIERS):
        return name
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    if isinstance(name, str) and name in theirs:
        return name
    import timm  # takes seconds: only for those who use it

    if isinstance(name, str) and timm.is_model(name.removeprefix("timm:")):
        return name
    everything = [*CLASSIFIERS, *theirs, *timm.list_models()]
    near = difflib.get_close_matches(str(name).removeprefix("timm:"), everything)
    raise ValueError(
        f"unknown classifier {name!r}; choose from {', '.join(CLASSIFIERS)}, torchvision's {len(theirs)} "
        f"(such as {theirs[0]}), timm's {len(timm.list_models())} (such as timm:convnext_tiny), or "
        "module:function of your own" + (f". Did you mean {' or '.join(near)}?" if near else "")
    )


def make_network(name: str, n_outputs: int, pretrained: bool = False) -> nn.Module:
    """Return a fresh network: normalised images (B, 3, H, W) to (B, n_outputs).

    Args:
        name: of `CLASSIFIERS`; of torchvision (``efficientnet_b0``) or, if that has none, of timm, which
            ``timm:`` before it asks for; or ``module:function`` of one's own, which is called with
            ``n_outputs``. What sizes of images it takes is the network's own affair.
        n_outputs: how many numbers it answers with.
        pretrained: all but the last layer trained on ImageNet; not for one's own.

    Raises:
        ValueError: an unknown name, or pretrained weights of a network that has none.
        R2LError: own code that is not to be found, or that makes no network.
        PretrainedWeightsError: the weights are not in the cache and can't be fetched.
    """
    check_network(name)
    if pretrained and (name == "SmallResNet" or name in _SINGLE or is_own_code(name)):
        raise ValueError(f"{name} has no pretrained weights; leave pretrained off or take a ResNet")
    if is_own_code(name):
        network = load_named(name, "network")(n_outputs)
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name} made a {type(network).__name__}, expected a torch module")
        return network
    import torchvision

    theirs = torchvision.models.list_models(module=torchvision.models)
    if name in CLASSIFIERS or name in theirs:
        make = CLASSIFIERS.get(name) or torchvision.models.get_model_builder(name)
        network = make(num_classes=n_outputs, **_SINGLE.get(name, {}))
        if pretrained:
            load_imagenet_weights(network, name)
        return network
    import timm

    name = name.removeprefix("timm:")
    if not pretrained:
        return timm.create_model(name, num_classes=n_outputs)
    with timm_weights(name):
        return timm.create_model(name, num_classes=n_outputs, pretrained=True)
