"""Ways of adapting a trained model to a camera or a light that it was not trained for.

All under one function, `adapt`, so that they can be compared under equal conditions: the same frames in the
same order, the same number of steps and of images a step.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from r2l.drift.adjustment.objectives import (
    SourceStatistics,
    alignment,
    batch_norms,
    entropies,
    forward_features,
    learning_only,
    probabilities,
)
from r2l.drift.adjustment.physical import PACE, PhysicalAdjustment
from r2l.drift.adjustment.self_training import SELF_TRAINING, descend
from r2l.files import choose
from r2l.training import RawToLogits, seeded

#: What each method needs and changes.
METHODS = {
    "none": "nothing is changed",
    "bn_statistics": "batch normalisations measure mean and variance anew, without labels",
    "tent": "batch normalisations anew, and their affine parameters to lower entropy, without labels",
    "eata": "as tent, by reliable answers that are not all alike, held near the source's parameters",
    "sar": "as tent, by reliable answers, where entropy is flat; starts anew after a collapse",
    "cotta": "all weights of the task model follow a slower teacher, some are restored, without labels",
    "isp": "five physical numbers of the ISP, by entropy and alignment, without labels",
    "isp_entropy": "as isp, by entropy alone",
    "isp_alignment": "as isp, by alignment alone",
    "isp_labels": "as isp, by the task's own loss, with labels",
    "fine_tune": "all weights of the task model, with labels",
    "all_pipelines": "another model, trained on all twelve pipelines; nothing is adapted",
}
#: What is compared unless asked for more: one of each kind, none that takes many times as long as TENT.
COMPARED = ("none", "bn_statistics", "tent", "sar", "isp_alignment", "fine_tune")
#: Methods that see the labels of the target.
LABELLED = ("fine_tune", "isp_labels")
#: Peak learning rates of Adam; that of the ISP is in stops a step.
_RATES = dict.fromkeys((*SELF_TRAINING, "fine_tune"), 1e-3) | {"isp": 0.2}
#: Weights of what they lower for the methods that adjust the ISP.
_WEIGHTS = {
    "isp": {"entropy": 0.1, "alignment": 1.0},
    "isp_entropy": {"entropy": 1.0},
    "isp_alignment": {"alignment": 1.0},
    "isp_labels": {"task": 1.0},
}
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
    reset_below: float | None = None,
    undo_below: float = 0.5,
    seed: int = 0,
) -> RawToLogits:
    """Return a copy of ``trained`` that is adapted to the target; what was given stays as it was.

    Methods (`METHODS`):

    - ``bn_statistics``: running means and variances measured anew on the target (Schneider et al., "Improving
      robustness against common corruptions by covariate shift adaptation", NeurIPS 2020).
    - ``tent``, ``eata``, ``sar``, ``cotta``: see `r2l.drift.adjustment.self_training`; ``eata`` holds on to
      the source by its ``statistics`` if they are given. Since they are tested on other images than they
      adapt to, the statistics are measured anew at the end and kept, instead of being those of each test
      batch.
    - ``isp``, ``isp_entropy``, ``isp_alignment``: `PhysicalAdjustment`, the task model held fast in eval
      mode; minimises entropy plus `alignment` to the source statistics. The result's processor is a
      `ParametrizedISP` if it was one. ``isp_labels``: by the task's loss instead.
    - ``fine_tune``: the task model by its own loss, in train mode, the ISP held fast.
    - ``all_pipelines``: ``generalist`` behind the target's ISP.

    Args:
        method: one of `METHODS`.
        trained: task model, with the ISP of the *target* as its processor.
        target: frames of the target, items with ``raw``; only `LABELLED` methods look at their labels.
        statistics: what `source_statistics` returned; for ``isp`` and ``isp_alignment``.
        generalist: what `train_on_pipelines` returned; for ``all_pipelines``.
        steps: gradient steps.
        batch_size: images a step, drawn without replacement until none is left, then again.
        lr: peak learning rate of Adam, which falls to 0 along a cosine; by default `_RATES`.
        reset_below: loss (nats, moving average) below which what is learned without labels starts anew, so
            that one answer to everything is not where it ends; by default only ``sar`` does, below 0.2.
        undo_below: if answers to the target's frames have become so much alike that the entropy of the mean
            answer is below this part of what it was without a step, nothing but the statistics is kept: in
            batches of one the losses don't tell. Of the methods in `SELF_TRAINING`; 0: never.
        seed: of the order of the images; equal seeds give equal results, and equal batches to all methods.

    Returns:
        A module in eval mode with the attribute ``adaptation``: dict of ``method``, ``steps`` (taken),
        ``seconds``, ``losses`` (one a step; NaN where no answer was reliable), ``resets``, ``undone``, and
        for the ISP its five ``settings``.

    Raises:
        ValueError: an unknown method, no frames, or something that the method needs is not given.
    """
    choose("method", method, METHODS)
    if len(target) == 0 or steps < 1 or batch_size < 1:
        raise ValueError(f"nothing to adapt to: {len(target)} frames, {steps} steps of {batch_size} images")
    begin = time.perf_counter()
    module = copy.deepcopy(trained).eval().to(memory_format=torch.channels_last)
    record: dict[str, Any] = {"method": method, "losses": []}
    unguarded = reset_below is None or method in LABELLED
    guard = {} if unguarded else {"reset_below": reset_below}
    with seeded(seed):
        batches = _batches(target, batch_size, steps, seed)
        if method == "all_pipelines":
            if generalist is None:
                raise ValueError("all_pipelines needs generalist, see train_on_pipelines")
            module.model, module.norm = copy.deepcopy((generalist.model, generalist.norm))
        elif method == "bn_statistics":
            _measure_statistics(module, target)
        elif method in SELF_TRAINING:
            learn, start = SELF_TRAINING[method], copy.deepcopy(module)
            record |= learn(module, batches, lr or _RATES[method], source=statistics, **guard)
            varied = _measure_statistics(module, target)
            record["undone"] = undo_below > 0 and varied < undo_below * _measure_statistics(start, target)
            module = start if record["undone"] else module
        elif method == "fine_tune":
            weights = [*module.model.train().parameters()]
            with learning_only(module, weights):
                record |= descend(weights, batches, partial(_task_loss, module), lr or _RATES[method])
        elif method in _WEIGHTS:
            weights = _WEIGHTS[method]
            record |= _adjust_isp(module, batches, lr or _RATES["isp"], weights, statistics, **guard)
    record["steps"] = len(record["losses"])
    record["seconds"] = time.perf_counter() - begin
    module.adaptation = record
    return module.eval().to(memory_format=torch.contiguous_format)


def _batches(data: Dataset, size: int, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``steps`` batches of one size, going through the data as often as it takes."""
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, min(size, len(data)), shuffle=True, drop_last=True, generator=order)
    return islice(chain.from_iterable(repeat(loader)), steps)


@torch.no_grad()
def _measure_statistics(module: RawToLogits, target: Dataset) -> float:
    """Set the running statistics to the target's, averaged over batches of about equal size.

    Returns the entropy (nats) of the mean answer meanwhile: near nothing if all are alike and sure.
    """
    parts = -(-len(target) // _STATISTICS_BATCH)
    size = -(-len(target) // parts)
    norms = [*batch_norms(module).values()]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    loader = DataLoader(target, size, drop_last=parts > 1 and len(target) % size == 1)
    answers = torch.cat([probabilities(module(batch["raw"])) for batch in loader])
    for norm, momentum in zip(norms, kept, strict=True):
        norm.eval().momentum = momentum
    return float(torch.special.entr(answers.mean(0)).sum())


def _task_loss(module: RawToLogits, batch: dict[str, Any]) -> Tensor:
    return module.loss(module(batch["raw"]), module.task.targets(batch))


def _adjust_isp(
    module: RawToLogits,
    batches: Iterator[dict[str, Any]],
    lr: float,
    weights: Mapping[str, float],
    statistics: SourceStatistics | None,
    **options: Any,
) -> dict[str, Any]:
    if "alignment" in weights and statistics is None:
        raise ValueError("alignment needs statistics, see source_statistics")
    adjustment = PhysicalAdjustment(module.processor)
    numbers = {name: adjustment.get_parameter(name) for name in PACE}

    def loss_of(batch: dict[str, Any]) -> Tensor:
        logits, features = forward_features(module, batch["raw"])
        parts = {
            "entropy": lambda: entropies(logits).mean(),
            "alignment": lambda: alignment(features, statistics),
            "task": lambda: module.loss(logits, module.task.targets(batch)),
        }
        return sum(weight * parts[name]() for name, weight in weights.items())

    groups = [{"params": [numbers[name]], "lr": lr * pace} for name, pace in PACE.items()]
    options |= {"after": adjustment.project_, "betas": _BETAS}
    with learning_only(module, numbers.values()):
        module.processor = adjustment
        record = descend(groups, batches, loss_of, lr, **options)
        module.processor = adjustment.baked()
    return record | {"settings": adjustment.settings()}
