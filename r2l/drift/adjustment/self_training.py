"""Adapting a network by its own answers: entropy of all, of the reliable ones, or a slower teacher's word.

The methods of test-time adaptation as published, but for what makes them comparable here: all take Adam's
steps on the same batches, and at the end the statistics of batch normalisation are measured anew and kept.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from r2l.drift.adjustment.objectives import (
    SourceStatistics,
    affine_parameters,
    batch_norms,
    entropies,
    learning_only,
    of_classes,
    probabilities,
)
from r2l.training import RawToLogits
from r2l.training.module import make_augment

_RELIABLE = 0.4  # EATA and SAR: answers of less than this part of the largest entropy
# EATA: most likeness (cosine) to the mean answer, as published for ten classes; weight of what keeps the
# network near its start.
_REDUNDANT, _FISHER = 0.4, 2000.0
# SAR: how far away the sharper loss is looked for, and the mean loss (nats) below which it has collapsed.
_RADIUS, COLLAPSED = 0.05, 0.2
# CoTTA, as published for ten classes: surer than this the network needs no second look; looks that a teacher
# takes else; part of the weights that go back to the source at each step; longest memory of the teacher.
_SURE, _LOOKS, _RESTORED, _MEMORY = 0.92, 8, 0.01, 0.999

_Batch = dict[str, Any]
_Batches = Iterable[_Batch]
_Record = dict[str, Any]


def descend(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    batches: _Batches,
    loss_of: Callable[[_Batch], Tensor | None],
    lr: float,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
    betas: tuple[float, float] = (0.9, 0.999),
    reset_below: float = -math.inf,
) -> _Record:
    """Take one step of Adam a batch, the learning rate falling from ``lr`` to 0 along a cosine.

    ``loss_of`` a batch may be None: then there is nothing to learn from, and no step is taken. Where the
    losses' moving average (nine parts old) falls below ``reset_below``, the parameters go back to where they
    were at first: no entropy at all is that of one answer to everything. ``before`` and ``after`` are called
    around each step. Returned are ``losses``, one a batch (NaN: no step), and the number of ``resets``.
    """
    batches = list(batches)
    optimizer = torch.optim.Adam(list(parameters), lr, betas=betas)
    rates = [group["lr"] for group in optimizer.param_groups]
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    start = [p.detach().clone() for p in learned]
    losses, resets, mean = [], 0, None
    for number, batch in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * number / len(batches))) / 2
        optimizer.zero_grad()
        loss = loss_of(batch)
        losses.append(math.nan if loss is None else float(loss.detach()))
        if loss is not None:
            loss.backward()
            before()
            optimizer.step()
            after()
            mean = losses[-1] if mean is None else 0.9 * mean + 0.1 * losses[-1]
        if mean is not None and mean < reset_below:
            _copy(start, learned)
            optimizer.state.clear()
            resets, mean = resets + 1, None
    return {"losses": losses, "resets": resets}


@torch.no_grad()
def _copy(values: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    for value, parameter in zip(values, into, strict=True):
        parameter.copy_(value)


def _by_entropy(
    module: RawToLogits,
    loss_of: Callable[[Tensor], Tensor | None],
    batches: _Batches,
    lr: float,
    **options: Any,
) -> _Record:
    """Learn scales and shifts of batch normalisation, with the statistics of the batch, by raw frames."""
    for norm in batch_norms(module).values():
        norm.train()
    affine = [*affine_parameters(module).values()]
    with learning_only(module, affine):
        return descend(affine, batches, lambda batch: loss_of(batch["raw"]), lr, **options)


def tent(module: RawToLogits, *step: Any, source: object, **options: Any) -> _Record:
    """Lower the entropy of all answers (Wang et al., ICLR 2021)."""
    return _by_entropy(module, lambda raw: entropies(module(raw)).mean(), *step, **options)


def _most(logits: Tensor) -> float:
    """Entropy (nats) below which an answer is reliable."""
    return _RELIABLE * math.log(max(2, logits.shape[1]))


def eata(module: RawToLogits, *step: Any, source: SourceStatistics | None, **options: Any) -> _Record:
    """Lower the entropy of answers that are reliable and unlike the mean one, near the source's weights.

    Source: Niu et al., "Efficient test-time model adaptation without forgetting", ICML 2022. Without
    ``source`` nothing holds the weights (the authors' ETA).
    """
    affine, fisher = affine_parameters(module), {} if source is None else source.fisher
    start = {name: p.detach().clone() for name, p in affine.items()}
    mean: list[Tensor] = []

    def loss_of(raw: Tensor) -> Tensor | None:
        logits = module(raw)
        entropy, answers = entropies(logits), probabilities(logits).detach()
        chosen = entropy < _most(logits)
        if mean:
            chosen &= F.cosine_similarity(answers, mean[0][None]).abs() < _REDUNDANT
        if not chosen.any():
            return None
        new = answers[chosen].mean(0)
        mean[:] = [0.9 * mean[0] + 0.1 * new if mean else new]
        entropy = entropy[chosen]
        loss = (entropy * (_most(logits) - entropy.detach()).exp()).mean()
        kept = [(weight * (affine[n] - start[n]).square()).sum() for n, weight in fisher.items()]
        return loss + _FISHER * sum(kept)

    return _by_entropy(module, loss_of, *step, **options)


def sar(module: RawToLogits, *step: Any, source: object, reset_below: float = COLLAPSED) -> _Record:
    """Lower the entropy of reliable answers where it is flat, and start anew after a collapse.

    Source: Niu et al., "Towards stable test-time adaptation in dynamic wild world", ICLR 2023.
    """
    affine = [*affine_parameters(module).values()]
    start: list[Tensor] = []

    def reliable(raw: Tensor, among: Tensor | bool = True) -> tuple[Tensor | None, Tensor]:
        logits = module(raw)
        entropy = entropies(logits)
        chosen = (entropy < _most(logits)) & among
        return (entropy[chosen].mean() if chosen.any() else None), chosen

    def loss_of(raw: Tensor) -> Tensor | None:
        first, chosen = reliable(raw)
        if first is None:
            return None
        slopes = torch.autograd.grad(first, affine)
        length = torch.stack([slope.norm() for slope in slopes]).norm() + 1e-12
        start[:] = [p.detach().clone() for p in affine]
        _copy([p + _RADIUS * s / length for p, s in zip(start, slopes, strict=True)], affine)
        second, _ = reliable(raw, chosen)  # of those that were reliable before the step aside
        if second is None:
            _copy(start, affine)
        return second

    options = {"before": lambda: _copy(start, affine), "reset_below": reset_below}
    return _by_entropy(module, loss_of, *step, **options)


def cotta(module: RawToLogits, batches: _Batches, lr: float, *, source: object, **options: Any) -> _Record:
    """Follow a teacher, the mean of the weights so far, that looks again where the source is not sure.

    All weights of the task model learn, some go back to the source's at each step, and the teacher is what
    stays. Its memory is as long as the steps at most: the published .999 would stand still in forty. Source:
    Wang et al., "Continual test-time domain adaptation", CVPR 2022.
    """
    batches = list(batches)
    memory = min(_MEMORY, 1 - 1 / max(2, len(batches)))
    for norm in batch_norms(module).values():
        norm.train()
    anchor, teacher = copy.deepcopy(module), copy.deepcopy(module)
    weights, kept, slow = ([*m.model.parameters()] for m in (module, anchor, teacher))

    def answers(network: RawToLogits, image: Tensor) -> Tensor:
        return network.model(network.norm(image))

    @torch.no_grad()
    def taught(image: Tensor) -> Tensor:
        target = of_classes(answers(teacher, image)).softmax(1)
        if probabilities(answers(anchor, image)).amax(1).mean() >= _SURE:
            return target
        # Masks would have to be turned back; they are looked at in other colours only.
        jitter, augment = v2.ColorJitter(0.2, 0.2, 0.2), make_augment("strong")
        look = (lambda x: augment(x, None)[0]) if target.ndim == 2 else jitter
        looks = [of_classes(answers(teacher, look(image))) for _ in range(_LOOKS)]
        return torch.stack([logits.softmax(1) for logits in looks]).mean(0)

    def loss_of(batch: _Batch) -> Tensor:
        with torch.no_grad():
            image = module.develop(batch["raw"])
        logits = of_classes(answers(module, image))
        return -(taught(image) * logits.log_softmax(1)).sum(1).mean()

    @torch.no_grad()
    def after() -> None:
        for weight, old, mean in zip(weights, kept, slow, strict=True):
            mean.lerp_(weight, 1 - memory)
            weight.copy_(torch.where(torch.rand(weight.shape).to(weight.device) < _RESTORED, old, weight))

    with learning_only(module, weights):
        record = descend(weights, batches, loss_of, lr, after=after, **options)
    _copy(slow, weights)
    return record


#: They adapt a module in place: by batches, a learning rate, ``source`` (statistics), options of `descend`.
SELF_TRAINING: dict[str, Callable[..., _Record]] = {"tent": tent, "eata": eata, "sar": sar, "cotta": cotta}
