"""Task models that take display RGB and carry their own normalisation: classes, numbers, masks."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2l.datasets.frames import EXACT
from r2l.files import choose
from r2l.training.networks import load_encoder_weights, make_network

# Mean and standard deviation of ImageNet (RGB), what torchvision's ResNets are used to.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Mean and standard deviation, of each channel or target.
Statistics = tuple[Sequence[float], Sequence[float]]
#: (n_classes, mean, std) to a task model; mean and std normalise its input, display units.
ModelFactory = Callable[[int, Sequence[float], Sequence[float]], nn.Module]


class _Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel, in display units."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"expected 3 means and 3 stds (RGB), got {len(mean)} and {len(std)}")
        if min(std) <= 0:
            raise ValueError(f"std has to be positive, got {tuple(std)}")
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([*map(float, values)]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Map display RGB (B, 3, H, W) to roughly zero mean and unit variance, same shape."""
        return (image - self.mean) / self.std


class Rescale(nn.Module):
    """Multiply by a standard deviation and add a mean, target by target: what `_Normalize` does, undone."""

    mean: Tensor
    std: Tensor

    def __init__(self, n_targets: int, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=EXACT)
            if tensor.ndim > 1 or tensor.numel() not in (1, n_targets):
                raise ValueError(f"target_{name} has {tensor.numel()} numbers, expected 1 or {n_targets}")
            self.register_buffer(name, tensor.expand(n_targets).clone())
        if not (self.std > 0).all():
            raise ValueError(f"target_std has to be positive, got {std}")

    def forward(self, outputs: Tensor) -> Tensor:
        """Map (B, n_targets) of unit variance to the targets' units, in float64: all their digits."""
        return outputs.to(self.std.dtype) * self.std + self.mean


class _Padded(nn.Module):
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


def make_classifier(
    name: str,
    n_classes: int,
    mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD,
    *,
    pretrained: bool = False,
) -> nn.Sequential:
    """Return a fresh classifier: display RGB (B, 3, H, W) in [0, 1] to logits (B, n_classes).

    Its parts are ``normalize``, the input normalisation, and ``network``. Initial weights are drawn from
    torch's global generator; `fit` seeds it.

    >>> make_classifier("SmallResNet", 9)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 9])

    Args:
        name: "ResNet18", "ResNet34", "ResNet50", "SmallResNet"; any other classifier of torchvision
            ("efficientnet_b0") or timm ("timm:convnext_tiny"); or "module:function" of your own, which is
            called with the number of logits. What sizes of images it takes is the network's own affair.
        n_classes: number of logits.
        mean, std: of each channel, display units; see `channel_statistics`.
        pretrained: start from ImageNet weights (torchvision's ``IMAGENET1K_V1``, or timm's), all but the
            last layer, which is drawn. They are fetched once, into torch's or Hugging Face's cache.

    Raises:
        ValueError: no such model (the message lists those that exist), a normalisation that is not three
            numbers, or pretrained weights of a model that has none.
        R2LError: own code that is not to be found; as PretrainedWeightsError weights that can't be had.
    """
    return _normalised(make_network(name, n_classes, pretrained), mean, std)


def make_regressor(
    name: str,
    n_targets: int = 1,
    mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD,
    *,
    target_mean: float | Sequence[float] = 0.0,
    target_std: float | Sequence[float] = 1.0,
    pretrained: bool = False,
) -> nn.Sequential:
    """Return a fresh model of numbers: display RGB (B, 3, H, W) in [0, 1] to (B, n_targets).

    A classifier's network whose outputs are scaled by a third part, ``rescale``: it then starts near the
    targets' mean, with steps of the size of their spread, while all else is in the targets' own units.

    >>> make_regressor("SmallResNet", target_mean=20.0)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 1])

    Args:
        name, mean, std, pretrained: as for `make_classifier`.
        n_targets: how many numbers an image.
        target_mean, target_std: one number, or one for each target; see `target_statistics`.

    Raises:
        ValueError, PretrainedWeightsError: as `make_classifier`; or a spread that is not positive or not as
            many as targets.
    """
    model = make_classifier(name, n_targets, mean, std, pretrained=pretrained)
    model.add_module("rescale", Rescale(n_targets, target_mean, target_std))
    return model


#: Architectures of segmentation-models-pytorch that take most of its encoders, and tiles of 32 pixels.
SEGMENTERS = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet")
SEGMENTERS += ("deeplabv3", "deeplabv3plus", "upernet")


def make_segmenter(
    architecture: str = "unet",
    encoder: str = "resnet34",
    mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD,
    *,
    n_classes: int = 1,
    pretrained: bool = False,
) -> nn.Sequential:
    """Return a fresh segmenter: display RGB (B, 3, H, W) in [0, 1] to logits (B, n_classes, H, W).

    Parts and seeding as `make_classifier`. Any size goes: the image is continued by its mirror image to a
    multiple of 32, and the answer cut to its size.

    >>> make_segmenter("unet", "resnet18")(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 1, 32, 32])

    Args:
        architecture: one of `SEGMENTERS`, such as "unet", "unetplusplus", "fpn", "deeplabv3plus".
        encoder: any encoder of segmentation-models-pytorch, such as "resnet18" or "resnet34".
        mean, std: as for `make_classifier`.
        n_classes: logits a pixel: 1, positive where the object is, or one for each of several classes.
        pretrained: start from an encoder trained on ImageNet, fetched once into Hugging Face's cache.

    Raises:
        ValueError: an architecture or an encoder that does not exist, or that don't go together.
        PretrainedWeightsError: the weights are not in the cache and can't be fetched.
    """
    import segmentation_models_pytorch as smp  # takes seconds: only for those who use it

    architecture = choose("architecture", architecture.lower(), SEGMENTERS)
    choose("encoder", encoder, smp.encoders.get_encoder_names())
    try:
        network = smp.create_model(architecture, encoder, encoder_weights=None, classes=n_classes)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{architecture} does not go with encoder {encoder}: {error}") from error
    if pretrained:
        load_encoder_weights(network.encoder, encoder)
    return _normalised(_Padded(network), mean, std)


def in_plain_order(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Hand out a module's weights as files take them, in the order of their shape: a hook of its state."""
    state.update({n: v.contiguous() for n, v in state.items() if torch.is_tensor(v)})


def _normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    model = nn.Sequential(OrderedDict(normalize=_Normalize(mean, std), network=network))
    # The order of weights that saves a CPU a quarter of a small network's step, and a sixth of its answer.
    model.register_state_dict_post_hook(in_plain_order)
    return model.to(memory_format=torch.channels_last)


#: What a description of a model may name; nothing else is ever called.
MAKERS = {make.__name__: make for make in (make_classifier, make_segmenter, make_regressor)}


def describe_model(
    name: str,
    task: str,
    n_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    targets: Tensor | None = None,
) -> dict[str, Any]:
    """Return how a task model is made, in plain JSON types: ``maker``, and its ``arguments`` by name.

    Args:
        name: as for `make_classifier`; for masks architecture and encoder ("unet/resnet18"), or one of
            the two.
        targets: for regression (of one number), those of the training images (N,), if they are known.
    """
    arguments: dict[str, Any] = {"mean": list(mean), "std": list(std)}
    if task == "classification":
        return {"maker": "make_classifier", "arguments": arguments | {"name": name, "n_classes": n_classes}}
    if task == "regression":
        arguments |= {"name": name, "n_targets": 1}
        if targets is not None:
            arguments["target_mean"], arguments["target_std"] = target_statistics(targets)
        return {"maker": "make_regressor", "arguments": arguments}
    architecture, _, encoder = name.partition("/")
    if not encoder and architecture.lower() not in SEGMENTERS:
        architecture, encoder = "", architecture
    parts = {"architecture": architecture, "encoder": encoder}
    arguments |= {part: value for part, value in parts.items() if value}
    if (outputs := n_outputs(task, n_classes)) > 1:
        arguments["n_classes"] = outputs
    return {"maker": "make_segmenter", "arguments": arguments}


def n_outputs(task: str, n_classes: int) -> int:
    """Return how many outputs, or logits a pixel, a task of so many classes needs: two of masks are one."""
    return n_classes if task == "classification" or (task == "segmentation" and n_classes > 2) else 1


def make_described(description: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """Return a fresh model as `describe_model` describes it."""
    make = choose("maker", description["maker"], MAKERS)
    return make(**{**description["arguments"], "pretrained": pretrained})


def channel_statistics(images: Tensor | Iterable[Tensor]) -> Statistics:
    """Return mean and standard deviation of each channel of images (N, 3, H, W), display units.

    A constant channel gets the standard deviation 1e-3, so that it can be divided by. Batches of as many
    images as memory holds are summed up in float64.
    """
    if isinstance(images, Tensor):
        std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
        return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())
    count, total, squares = 0, torch.zeros(3).double(), torch.zeros(3).double()
    for batch in images:
        batch = batch.double()
        count += batch.numel() // 3
        total += batch.sum((0, 2, 3))
        squares += batch.square().sum((0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def target_statistics(targets: Tensor) -> Statistics:
    """Return mean and standard deviation of each target, (N,) or (N, n); 1 of one that is constant."""
    std, mean = torch.std_mean(targets.double().reshape(len(targets), -1), dim=0, correction=0)
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())
