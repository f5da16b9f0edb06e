"""Ways of adapting a trained model to a camera or a light that it was not trained for.

All under one function, `adapt`, so that they can be compared under equal conditions: the same frames in the
same order, the same number of steps and of images a step.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from r2l.drift.adjustment.objectives import (
    SourceStatistics,
    alignment,
    batch_norms,
    entropy,
    forward_features,
)
from r2l.drift.adjustment.physical import PACE, PhysicalAdjustment
from r2l.files import choose
from r2l.training import RawToLogits, seeded

#: What each method needs and changes.
METHODS = {
    "none": "nothing is changed",
    "bn_statistics": "batch normalisations measure mean and variance anew, without labels",
    "tent": "batch normalisations anew, and their affine parameters to lower entropy, without labels",
    "isp": "five physical numbers of the ISP, by entropy and alignment, without labels",
    "isp_entropy": "as isp, by entropy alone",
    "isp_alignment": "as isp, by alignment alone",
    "fine_tune": "all weights of the task model, with labels",
    "all_pipelines": "another model, trained on all twelve pipelines; nothing is adapted",
}
#: Methods that see the labels of the target.
LABELLED = ("fine_tune",)
#: Peak learning rates of Adam; that of the ISP is in stops a step.
_RATES = {"tent": 1e-3, "fine_tune": 1e-3, "isp": 0.2}
#: Weights of entropy and alignment for the methods that adjust the ISP.
_WEIGHTS = {"isp": (0.1, 1.0), "isp_entropy": (1.0, 0.0), "isp_alignment": (0.0, 1.0)}
# Adam's memories for the ISP, shorter than usual: the first gradients are many times the later ones, which
# could not correct an overshoot while the first are remembered.
_BETAS = (0.7, 0.9)
# Most images that statistics of batch normalisation are measured on at once.
_STATISTICS_BATCH = 256


def adapt(
    method: str,
    trained: RawToLogits,
    target: Dataset,
    *,
    statistics: SourceStatistics | None = None,
    generalist: RawToLogits | None = None,
    steps: int = 40,
    batch_size: int = 32,
    lr: float | None = None,
    seed: int = 0,
) -> RawToLogits:
    """Return a copy of ``trained`` that is adapted to the target; what was given stays as it was.

    Methods (`METHODS`):

    - ``bn_statistics``: running means and variances measured anew on the target (Schneider et al.,
      "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020).
    - ``tent``: only scales and shifts of batch normalisation, by entropy, with the statistics of the batch
      (Wang et al., ICLR 2021). Since it is tested on other images than it adapts to, the statistics are
      measured anew at the end and kept, instead of being those of each test batch.
    - ``isp``, ``isp_entropy``, ``isp_alignment``: `PhysicalAdjustment`, the task model held fast in eval
      mode; minimises entropy plus `alignment` to the source statistics. The result's processor is a
      `ParametrizedISP` if it was one.
    - ``fine_tune``: the task model by its own loss, in train mode, the ISP held fast.
    - ``all_pipelines``: ``generalist`` behind the target's ISP.

    Args:
        method: one of `METHODS`.
        trained: task model, with the ISP of the *target* as its processor.
        target: frames of the target, items with ``raw``; only ``fine_tune`` looks at their labels.
        statistics: what `source_statistics` returned; for ``isp`` and ``isp_alignment``.
        generalist: what `train_on_pipelines` returned; for ``all_pipelines``.
        steps: gradient steps.
        batch_size: images a step, drawn without replacement until none is left, then again.
        lr: peak learning rate of Adam, which falls to 0 along a cosine; by default `_RATES`.
        seed: of the order of the images; equal seeds give equal results, and equal batches to all methods.

    Returns:
        A module in eval mode with the attribute ``adaptation``: dict of ``method``, ``steps`` (taken),
        ``seconds``, ``losses`` (one a step), and for the ISP its five ``settings``.

    Raises:
        ValueError: an unknown method, no frames, or something that the method needs is not given.
    """
    choose("method", method, METHODS)
    if len(target) == 0 or steps < 1 or batch_size < 2:
        raise ValueError(
            f"nothing to adapt to: {len(target)} frames, {steps} steps of {batch_size} images"
        )
    begin = time.perf_counter()
    module = copy.deepcopy(trained).eval()
    record: dict[str, Any] = {"method": method, "steps": 0, "losses": []}
    with seeded(seed):
        batches = _batches(target, batch_size, steps, seed)
        if method == "all_pipelines":
            if generalist is None:
                raise ValueError("all_pipelines needs generalist, see train_on_pipelines")
            module.model, module.norm = copy.deepcopy((generalist.model, generalist.norm))
        elif method == "bn_statistics":
            _measure_statistics(module, target)
        elif method == "tent":
            record["losses"] = _tent(module, batches, lr or _RATES["tent"])
            _measure_statistics(module, target)
        elif method == "fine_tune":
            record["losses"] = _fine_tune(module, batches, lr or _RATES["fine_tune"])
        elif method in _WEIGHTS:
            found = _adjust_isp(module, batches, lr or _RATES["isp"], _WEIGHTS[method], statistics)
            record["losses"], record["settings"] = found
    record["steps"] = len(record["losses"])
    record["seconds"] = time.perf_counter() - begin
    module.adaptation = record
    return module.eval()


def _batches(data: Dataset, size: int, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``steps`` batches of one size, going through the data as often as it takes."""
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, min(size, len(data)), shuffle=True, drop_last=True, generator=order)
    endless = chain.from_iterable(repeat(loader))
    return islice(endless, steps)


def _descend(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    batches: Iterator[dict[str, Any]],
    loss_of: Callable[[dict[str, Any]], Tensor],
    lr: float,
    after: Callable[[], object] = lambda: None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[float]:
    """Take one step of Adam a batch, the learning rate falling to 0 along a cosine; return the losses."""
    batches = list(batches)
    optimizer = torch.optim.Adam(list(parameters), lr, betas=betas)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        after()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def _measure_statistics(module: RawToLogits, target: Dataset) -> None:
    """Set the running statistics to those of the target, averaged over batches of about equal size."""
    norms = batch_norms(module)
    parts = -(-len(target) // _STATISTICS_BATCH)
    size = -(-len(target) // parts)
    kept = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for batch in DataLoader(target, size, drop_last=parts > 1 and len(target) % size == 1):
        module(batch["raw"])
    for name, norm in norms.items():
        norm.momentum = kept[name]
        norm.eval()


def _tent(module: RawToLogits, batches: Iterator[dict[str, Any]], lr: float) -> list[float]:
    norms = batch_norms(module).values()
    affine = [p for norm in norms for p in (norm.weight, norm.bias) if p is not None]
    for norm in norms:
        norm.train()  # the statistics of the batch
    with _learning_only(module, affine):
        return _descend(affine, batches, lambda batch: entropy(module(batch["raw"])), lr)


def _fine_tune(module: RawToLogits, batches: Iterator[dict[str, Any]], lr: float) -> list[float]:
    def loss_of(batch: dict[str, Any]) -> Tensor:
        return module.loss(module(batch["raw"]), module.task.targets(batch))

    weights = [*module.model.train().parameters()]
    with _learning_only(module, weights):
        return _descend(weights, batches, loss_of, lr)


def _adjust_isp(
    module: RawToLogits,
    batches: Iterator[dict[str, Any]],
    lr: float,
    weights: tuple[float, float],
    statistics: SourceStatistics | None,
) -> tuple[list[float], dict[str, float]]:
    if weights[1] and statistics is None:
        raise ValueError("alignment needs statistics, see source_statistics")
    adjustment = PhysicalAdjustment(module.processor)
    numbers = {name: adjustment.get_parameter(name) for name in PACE}

    def loss_of(batch: dict[str, Any]) -> Tensor:
        logits, features = forward_features(module, batch["raw"])
        loss = weights[0] * entropy(logits)
        return loss + weights[1] * alignment(features, statistics) if weights[1] else loss

    groups = [{"params": [numbers[name]], "lr": lr * pace} for name, pace in PACE.items()]
    with _learning_only(module, numbers.values()):
        module.processor = adjustment
        losses = _descend(groups, batches, loss_of, lr, adjustment.project_, _BETAS)
        module.processor = adjustment.baked()
    return losses, adjustment.settings()


@contextmanager
def _learning_only(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only these parameters ask for gradients; at the end each asks as it did before."""
    asked = {name: p.requires_grad for name, p in module.named_parameters()}
    module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    yield
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(asked.get(name, False))
        parameter.grad = None
