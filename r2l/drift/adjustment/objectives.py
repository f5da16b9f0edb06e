"""What an adaptation without labels can go by: how sure the model is, and what its features look like."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from r2l.training import RawToLogits

_IMAGE = "image"  # the developed one's name among the statistics
_FISHER_IMAGES = 64  # that the Fisher information is measured on, one by one
# A variance below this share of the layer's mean variance is taken as this share: dead channels.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class SourceStatistics:
    """What a trained model saw of the data it was trained on: kept, so that the data need not be.

    Attributes:
        layers: by name, mean and variance (C,) of each channel over images and pixels: of the developed image
            (``"image"``) and of the inputs of the batch normalisations behind the ISP.
        fisher: of the parameters of batch normalisation, by name: how much the answers depend on each, the
            mean square of the slope of the likeliest answer's log-probability.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    fisher: Mapping[str, Tensor] = field(default_factory=dict)


def _layers(trained: RawToLogits, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """Layers behind the ISP, by name."""
    named = {name: m for name, m in trained.named_modules() if isinstance(m, kinds)}
    return {name: m for name, m in named.items() if name.split(".")[0] in ("norm", "model")}


def batch_norms(trained: RawToLogits) -> dict[str, nn.Module]:
    """Return the batch normalisations behind the ISP, by name; a ValueError where there are none."""
    norms = _layers(trained, _BatchNorm)
    if not norms:
        raise ValueError(f"{type(trained.model).__name__} has no batch normalisation to adapt")
    return norms


def affine_parameters(trained: RawToLogits) -> dict[str, nn.Parameter]:
    """Return scales and shifts of the batch normalisations behind the ISP, by name."""
    norms = batch_norms(trained).items()
    return {f"{name}.{part}": p for name, norm in norms for part, p in norm.named_parameters()}


@contextmanager
def learning_only(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only these parameters ask for gradients; at the end each asks as it did before."""
    asked = {name: p.requires_grad for name, p in module.named_parameters()}
    module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    yield
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(asked.get(name, False))
        parameter.grad = None


def _by_channel(features: Tensor) -> Tensor:
    """Lay features (B, C, ...) out as (C, values over images and pixels)."""
    return features.transpose(0, 1).flatten(1)


def forward_features(module: RawToLogits, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits of raw frames (B, 1, H, W), and the features that `SourceStatistics.layers` are about.

    Without batch normalisations these are the inputs of all layers with weights.
    """
    features = {_IMAGE: module.develop(frames)}

    def keep(name: str) -> Callable[..., None]:
        return lambda _layer, inputs: features.__setitem__(name, inputs[0])

    layers = _layers(module, _BatchNorm) or _layers(module, nn.Conv2d, nn.Linear)
    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        return module.model(module.norm(features[_IMAGE])), features
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def source_statistics(trained: RawToLogits, data: Dataset, *, batch_size: int = 64) -> SourceStatistics:
    """Measure, in eval mode, what a trained model sees of the data it was trained on.

    ``trained`` is what `fit` returned, with the ISP it was trained with, and stays as it is; the data are
    items with ``raw``. Sums run over all batches, whose size does not matter. No data are a ValueError.
    """
    if len(data) == 0:
        raise ValueError("no data to measure statistics on")
    was_training = trained.training
    trained.eval()
    totals: dict[str, Tensor] = {}
    for batch in DataLoader(data, batch_size):
        for name, feature in forward_features(trained, batch["raw"])[1].items():
            flat = _by_channel(feature).double()
            count = torch.full((len(flat),), flat.shape[1])
            totals[name] = torch.stack([flat.sum(1), flat.square().sum(1), count]) + totals.get(name, 0)
    fisher = _fisher_information(trained, data)
    trained.train(was_training)
    layers = {}
    for name, (first, second, count) in totals.items():
        mean = first / count
        layers[name] = mean.float(), (second / count - mean.square()).clamp_min(0).float()
    return SourceStatistics(layers, fisher)


@torch.enable_grad()
def _fisher_information(trained: RawToLogits, data: Dataset) -> dict[str, Tensor]:
    """Measure `SourceStatistics.fisher` on images spread over the data; source: EATA, see `eata`."""
    if not _layers(trained, _BatchNorm):
        return {}
    affine = affine_parameters(trained)
    totals = {name: torch.zeros_like(p.detach()) for name, p in affine.items()}
    rows = torch.linspace(0, len(data) - 1, min(len(data), _FISHER_IMAGES)).round().long()
    with learning_only(trained, affine.values()):
        for row in rows.tolist():
            logits = of_classes(trained(data[row]["raw"][None]))
            slopes = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), [*affine.values()])
            for total, slope in zip(totals.values(), slopes, strict=True):
                total += slope.square() / len(rows)
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
    image is compared the same way here. Features that the source statistics lack are a ValueError.
    """
    if missing := set(features) - set(source.layers):
        raise ValueError(f"the source statistics lack {sorted(missing)}; measure them on this model")
    parts = []
    for name, feature in features.items():
        # A fifth of the time of `torch.var_mean` on a CPU.
        deviation = _by_channel(feature) - (mean := _by_channel(feature).mean(1))[:, None]
        variance = deviation.square().mean(1)
        source_mean, source_variance = source.layers[name]
        floor = _LEAST_SHARE * source_variance.mean()
        variance, wanted = variance + floor, source_variance + floor
        ratio, shift = variance / wanted, (mean - source_mean).square() / wanted
        parts.append(0.5 * (ratio - 1 - ratio.log() + shift).mean())
    return torch.stack(parts).mean()
