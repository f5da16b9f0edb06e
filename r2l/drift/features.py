"""Numbers that describe an image, to detect shifts by: statistics of the picture, or a model's answers."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2l.training.predict import on_device

_CHANNELS = ("red", "green", "blue")
_BATCH = 64


def image_features(images: Tensor, model: nn.Module | None = None) -> pd.DataFrame:
    """Return numbers that describe each image: its statistics, or what a model answers to it.

    Args:
        images: (N, 3, H, W), display domain.
        model: from images to logits; None describes the pictures: of each channel mean, standard
            deviation, share of black and of white, and contrast between neighbours (logarithm of the mean
            absolute Laplacian) and between every other pixel, and how channels go together (correlations).

    Returns:
        One row an image; columns are named.

    Raises:
        ValueError: images of another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    with torch.no_grad(), on_device(model or nn.Identity()) as device:
        parts = [
            _picture(batch) if model is None else _answers(model(batch.to(device)))
            for batch in images.split(_BATCH)
        ]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return pd.DataFrame({name: values.cpu().double().numpy() for name, values in columns.items()})


def _picture(images: Tensor) -> dict[str, Tensor]:
    flat = images.flatten(2)
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).to(images)
    kernels = kernel.expand(3, 1, 3, 3)
    per_channel = {
        "mean": flat.mean(2),
        "deviation": flat.std(2),
        "black": (flat <= 1e-3).float().mean(2),
        "white": (flat >= 1 - 1e-3).float().mean(2),
    }
    for name, step in (("detail", 1), ("coarse detail", 2)):
        edges = F.conv2d(images, kernels, dilation=step, groups=3).abs().flatten(2).mean(2)
        per_channel[name] = edges.clamp_min(1e-6).log()
    columns = {
        f"{name}, {channel}": values[:, i]
        for name, values in per_channel.items()
        for i, channel in enumerate(_CHANNELS)
    }
    centred = flat - flat.mean(2, keepdim=True)
    unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-6)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        columns[f"correlation, {_CHANNELS[a]} and {_CHANNELS[b]}"] = (unit[:, a] * unit[:, b]).sum(
            1
        )
    return columns


def _answers(logits: Tensor) -> dict[str, Tensor]:
    """What a model answers: log-probabilities of the classes, or of masks shares and sureness."""
    if logits.ndim == 2:
        values = logits.log_softmax(1).clamp_min(-20)
        return {f"class {i}": values[:, i] for i in range(values.shape[1])}
    if logits.shape[1] > 1:
        shares = logits.softmax(1).flatten(2)
        columns = {f"share of class {i}": shares[:, i].mean(1) for i in range(shares.shape[1])}
        return columns | {"unsure": 1 - shares.amax(1).mean(1)}
    shares = logits.flatten(1).sigmoid()
    unsure = (shares * (1 - shares)).mean(1)
    return {"foreground": shares.mean(1), "unsure": unsure, "largest": shares.amax(1)}
