"""What an adaptation without labels can go by: how sure the model is, and what its features look like."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from r2l.training import RawToLogits

# Name of the developed image among the statistics.
_IMAGE = "image"
# Images that the Fisher information is measured on, one by one.
_FISHER_IMAGES = 64
# A variance below this share of the layer's mean variance is taken as this share: dead channels.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class SourceStatistics:
    """What a trained model saw of the data it was trained on: kept, so that the data need not be.

    Attributes:
        layers: by name, mean and variance (C,) of each channel over images and pixels: of the developed
            image (``"image"``) and of the inputs of the batch normalisations behind the ISP.
        images: how many images they were measured on.
        fisher: of the parameters of batch normalisation, by name: how much the answers depend on each, the
            mean square of the slope of the likeliest answer's log-probability.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    images: int
    fisher: Mapping[str, Tensor] = field(default_factory=dict)


def _layers(trained: RawToLogits, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """Layers behind the ISP, by name."""
    named = trained.named_modules()
    behind = ((name, m) for name, m in named if name.split(".")[0] in ("norm", "model"))
    return {name: m for name, m in behind if isinstance(m, kinds)}


def batch_norms(trained: RawToLogits) -> dict[str, nn.Module]:
    """Return the batch normalisations behind the ISP, by name.

    Raises:
        ValueError: there are none.
    """
    norms = _layers(trained, _BatchNorm)
    if not norms:
        raise ValueError(f"{type(trained.model).__name__} has no batch normalisation to adapt")
    return norms


def affine_parameters(trained: RawToLogits) -> dict[str, nn.Parameter]:
    """Return scales and shifts of the batch normalisations behind the ISP, by name."""
    norms = batch_norms(trained).items()
    return {f"{name}.{part}": p for name, norm in norms for part, p in norm.named_parameters()}


def _watched(trained: RawToLogits) -> dict[str, nn.Module]:
    """Layers whose inputs are compared: batch normalisations; where there are none, all with weights."""
    return _layers(trained, _BatchNorm) or _layers(trained, nn.Conv2d, nn.Linear)


def _by_channel(features: Tensor) -> Tensor:
    """Lay features (B, C, ...) out as (C, values over images and pixels)."""
    return features.transpose(0, 1).flatten(1)


@contextmanager
def _recorded_features(trained: RawToLogits) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with the inputs of the watched layers at each forward pass."""
    features: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda _module, inputs: features.__setitem__(name, inputs[0])

    handles = [m.register_forward_pre_hook(keep(name)) for name, m in _watched(trained).items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def forward_features(module: RawToLogits, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits, and the features that statistics are about, of raw frames (B, 1, H, W)."""
    image = module.develop(frames)
    with _recorded_features(module) as features:
        logits = module.model(module.norm(image))
    return logits, {_IMAGE: image, **features}


@torch.no_grad()
def source_statistics(trained: RawToLogits, data: Dataset, *, batch_size: int = 64) -> SourceStatistics:
    """Measure, in eval mode, what a trained model sees of the data it was trained on.

    Args:
        trained: what `fit` returned, with the ISP it was trained with; it is not changed.
        data: its training data, items with ``raw``.
        batch_size: images at once; sums run over all of them, so that it does not matter.

    Raises:
        ValueError: no data.
    """
    if len(data) == 0:
        raise ValueError("no data to measure statistics on")
    was_training = trained.training
    trained.eval()
    totals: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for batch in DataLoader(data, batch_size):
        _, features = forward_features(trained, batch["raw"])
        for name, feature in features.items():
            flat = _by_channel(feature).double()
            sums = totals.setdefault(name, [torch.zeros(len(flat)).double() for _ in range(2)])
            sums[0] += flat.sum(1)
            sums[1] += flat.square().sum(1)
            counts[name] = counts.get(name, 0) + flat.shape[1]
    fisher = _fisher_information(trained, data)
    trained.train(was_training)
    layers = {}
    for name, (first, second) in totals.items():
        mean = first / counts[name]
        variance = (second / counts[name] - mean.square()).clamp_min(0)
        layers[name] = (mean.float(), variance.float())
    return SourceStatistics(layers, len(data), fisher)


@torch.enable_grad()
def _fisher_information(trained: RawToLogits, data: Dataset) -> dict[str, Tensor]:
    """Measure `SourceStatistics.fisher` on images spread over the data; source: EATA, see `eata`."""
    if not _layers(trained, _BatchNorm):
        return {}
    affine = affine_parameters(trained)
    asked = [p.requires_grad for p in affine.values()]
    totals = {name: torch.zeros_like(p.detach()) for name, p in affine.items()}
    rows = torch.linspace(0, len(data) - 1, min(len(data), _FISHER_IMAGES)).round().long()
    for parameter in affine.values():
        parameter.requires_grad_(True)
    for row in rows.tolist():
        logits = of_classes(trained(data[row]["raw"][None]))
        loss = F.cross_entropy(logits, logits.argmax(1))
        for total, slope in zip(totals.values(), torch.autograd.grad(loss, [*affine.values()]), strict=True):
            total += slope.square() / len(rows)
    for parameter, before in zip(affine.values(), asked, strict=True):
        parameter.requires_grad_(before)
    return totals


def of_classes(logits: Tensor) -> Tensor:
    """Return logits (B, C, ...) of two classes or more: one channel is that of one class against none."""
    return logits if logits.shape[1] > 1 else torch.cat([logits, torch.zeros_like(logits)], dim=1)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities (B, C) of logits (B, C, ...), means over the pixels where there are some."""
    shares = of_classes(logits).softmax(1)
    return shares.flatten(2).mean(2) if shares.ndim > 2 else shares


def entropies(logits: Tensor) -> Tensor:
    """Return the Shannon entropy (nats) of each of the answers (B,) to logits (B, C, ...), mean over pixels.

    Source: Wang et al., "Tent: Fully test-time adaptation by entropy minimization", ICLR 2021, eq. 1.
    """
    logits = of_classes(logits)
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).reshape(len(logits), -1).mean(1)


def alignment(features: Mapping[str, Tensor], source: SourceStatistics) -> Tensor:
    """Return how far features are from the source's: mean over layers and channels, nats.

    Each channel is taken as normal, and compared by the Kullback-Leibler divergence of the target's
    distribution from the source's. Source: Ishii and Sugiyama, "Source-free domain adaptation via
    distributional alignment by matching batch normalization statistics", arXiv 2101.10842; the developed
    image is compared the same way here.

    Raises:
        ValueError: features that the source statistics lack.
    """
    if missing := set(features) - set(source.layers):
        raise ValueError(f"the source statistics lack {sorted(missing)}; measure them on this model")
    parts = []
    for name, feature in features.items():
        variance, mean = torch.var_mean(_by_channel(feature), dim=1, correction=0)
        source_mean, source_variance = source.layers[name]
        floor = _LEAST_SHARE * source_variance.mean()
        variance, wanted = variance + floor, source_variance + floor
        shift = (mean - source_mean).square() / wanted
        ratio = variance / wanted
        parts.append(0.5 * (ratio - 1 - ratio.log() + shift).mean())
    return torch.stack(parts).mean()
