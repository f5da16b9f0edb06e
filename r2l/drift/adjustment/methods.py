"""Ways of adapting a trained model to a camera or a light that it was not trained for.

All under one function, `adapt`, so that they can be compared under equal conditions: the same frames in the
same order, the same number of steps and of images a step.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
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
from r2l.drift.adjustment.self_training import SELF_TRAINING, descend
from r2l.files import choose
from r2l.isp import ParametrizedISP
from r2l.isp.functional import gamma_correct, per_site, subtract_black_level
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
_STATISTICS_BATCH = 256  # most images that statistics of batch normalisation are measured on at once


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

    What each method changes is said by `METHODS`. Sources: ``bn_statistics`` of Schneider et al., "Improving
    robustness against common corruptions by covariate shift adaptation", NeurIPS 2020; ``tent``, ``eata``,
    ``sar`` and ``cotta`` see `r2l.drift.adjustment.self_training`. They are tested on other images than they
    adapt to: so their statistics are measured anew at the end and kept, instead of being those of each test
    batch. Those on the ISP move a `PhysicalAdjustment`, the task model held fast in eval mode; the result's
    processor is a `ParametrizedISP` if it was one.

    >>> import r2l
    >>> trained = RawToLogits(r2l.make_classifier("SmallResNet", 9), r2l.HalfSizeRGB(r2l.MICROSCOPE))
    >>> adapt("bn_statistics", trained, r2l.SyntheticMicroscopy(4, size=32)).adaptation["method"]
    'bn_statistics'

    Args:
        trained: task model, with the ISP of the *target* as its processor.
        target: frames of the target, items with ``raw``; only `LABELLED` methods look at their labels.
        statistics: what `source_statistics` returned; for ``isp`` and ``isp_alignment``, and what ``eata``
            holds on to, if given.
        generalist: what `train_on_pipelines` returned; for ``all_pipelines``.
        steps, batch_size: gradient steps, and images of each, drawn without replacement until none is left,
            then again.
        lr: peak learning rate of Adam, which falls to 0 along a cosine; by default `_RATES`.
        reset_below: loss (nats, moving average) below which what is learned without labels starts anew, so
            that one answer to everything is not where it ends; by default only ``sar`` does, below 0.2.
        undo_below: if answers to the target's frames have become so much alike that the entropy of the mean
            answer is below this part of what it was without a step, nothing but the statistics is kept: in
            batches of one the losses don't tell. Of the methods in `SELF_TRAINING`; 0: never.
        seed: of the order of the images; equal seeds give equal batches to all methods.

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
    module = copy.deepcopy(trained).eval()
    record: dict[str, Any] = {"method": method, "losses": []}
    guard = {} if reset_below is None or method in LABELLED else {"reset_below": reset_below}
    with seeded(seed):
        order, size = torch.Generator().manual_seed(seed), min(batch_size, len(target))
        loader = DataLoader(target, size, shuffle=True, drop_last=True, generator=order)
        batches = islice(chain.from_iterable(repeat(loader)), steps)
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
            loss_of = lambda b: module.loss(module(b["raw"]), module.task.targets(b))  # noqa: E731
            with learning_only(module, weights):
                record |= descend(weights, batches, loss_of, lr or _RATES[method])
        elif method in _WEIGHTS:
            weights = _WEIGHTS[method]
            record |= _adjust_isp(module, batches, lr or _RATES["isp"], weights, statistics, **guard)
    record["steps"] = len(record["losses"])
    record["seconds"] = time.perf_counter() - begin
    module.adaptation = record
    return module.eval()


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
        norm.train().momentum = None  # a plain mean over the batches
    loader = DataLoader(target, size, drop_last=parts > 1 and len(target) % size == 1)
    answers = torch.cat([probabilities(module(batch["raw"])) for batch in loader])
    for norm, momentum in zip(norms, kept, strict=True):
        norm.eval().momentum = momentum
    return float(torch.special.entr(answers.mean(0)).sum())


def _adjust_isp(
    module: RawToLogits, batches: Iterator[dict[str, Any]], lr: float, weights: Mapping[str, float],
    statistics: SourceStatistics | None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    if "alignment" in weights and statistics is None:
        raise ValueError("alignment needs statistics, see source_statistics")
    adjustment = PhysicalAdjustment(module.processor)
    numbers = {name: adjustment.get_parameter(name) for name in _PACE}

    def loss_of(batch: dict[str, Any]) -> Tensor:
        logits, features = forward_features(module, batch["raw"])
        parts = {
            "entropy": lambda: entropies(logits).mean(),
            "alignment": lambda: alignment(features, statistics),
            "task": lambda: module.loss(logits, module.task.targets(batch)),
        }
        return sum(weight * parts[name]() for name, weight in weights.items())

    groups = [{"params": [numbers[name]], "lr": lr * pace} for name, pace in _PACE.items()]
    options |= {"after": adjustment.project_, "betas": _BETAS}
    with learning_only(module, numbers.values()):
        module.processor = adjustment
        record = descend(groups, batches, loss_of, lr, **options)
        module.processor = adjustment.baked()
    return record | {"settings": adjustment.settings()}


#: One unit of ``black_level`` is a hundredth of the range from black to white.
_BLACK_UNIT = 0.01
#: Reach of each number to either side, in its unit.
_REACH = {"exposure": 8.0, "red": 2.0, "blue": 2.0, "gamma": 1.0, "black_level": 5.0}
#: How far each goes while exposure goes one stop. Light changes by factors, calibration by shares; and
#: gain and gamma both brighten, so that without this a search would pay for light with gamma.
_PACE = {"exposure": 1.0, "red": 0.25, "blue": 0.25, "gamma": 0.125, "black_level": 0.25}


class PhysicalAdjustment(nn.Module):
    """An ISP with five numbers around it that a camera's menu has too; at zero nothing is changed.

    Args:
        processor: any ISP with a ``camera``, raw (B, 1, H, W) to display RGB; it is not changed.

    Attributes:
        exposure: () digital gain of all colours, in stops: +1 doubles.
        red, blue: () gain of red or blue against green, in stops.
        gamma: () log2 of the factor on the exponent of the display curve.
        black_level: () shift of the level that counts as no light, in hundredths of the range.

    Gains and level act on the mosaic, gamma on the image. With a `ParametrizedISP` that equals other values
    of its own ``black_level``, ``white_balance`` and ``gamma``, which `baked` writes there.

    Raises:
        ValueError: a processor without a camera.
    """

    def __init__(self, processor: nn.Module) -> None:
        super().__init__()
        if getattr(processor, "camera", None) is None:
            raise ValueError(f"{type(processor).__name__} knows no camera; give it one as .camera")
        self.processor, self.camera = processor, processor.camera
        for name in _REACH:
            self.register_parameter(name, nn.Parameter(torch.zeros(())))

    def gains(self) -> Tensor:
        """Return the factors (3,) on red, green and blue."""
        return torch.exp2(self.exposure + torch.stack([self.red, 0 * self.red, self.blue]))

    def black(self) -> Tensor:
        """Return the four black levels in force, raw domain, by position of the tile."""
        own = self._own_black()
        return own + _BLACK_UNIT * self.black_level * (self.camera.white_level - own)

    def _own_black(self) -> Tensor:
        """The levels that the processor will subtract."""
        learned = getattr(self.processor, "black_level", None)
        level = torch.tensor(self.camera.black_level) if learned is None else learned.detach()
        return level.to(self.black_level)

    def adjust(self, raw: Tensor) -> Tensor:
        """Return the mosaic that the processor gets, (B, 1, H, W), raw domain."""
        white, gains = self.camera.white_level, self.gains()
        linear = subtract_black_level(raw, self.black(), white)
        linear = linear * per_site(torch.stack([gains[c] for c in self.camera.cfa.value]), raw)
        level = per_site(self._own_black(), raw)  # comes back in, since the processor subtracts it
        return linear * (white - level) + level

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) to display (B, 3, H, W)."""
        return gamma_correct(self.processor(self.adjust(raw)), torch.exp2(self.gamma))

    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order."""
        stages = self.processor.stages(self.adjust(raw))
        out = {"raw": raw, "adjusted raw": stages.pop("raw"), **stages}
        return out | {"adjusted gamma": gamma_correct([*out.values()][-1], torch.exp2(self.gamma))}

    @torch.no_grad()
    def project_(self) -> PhysicalAdjustment:
        """Bring the numbers back into `_REACH`; with a `ParametrizedISP` also into its physical bounds."""
        for name, reach in _REACH.items():
            self.get_parameter(name).clamp_(-reach, reach)
        isp = self.processor
        if not isinstance(isp, ParametrizedISP):
            return self
        box = isp.physical_bounds()
        low, high = box["gamma"]
        self.gamma.clamp_((low / isp.gamma).log2(), (high / isp.gamma).log2())
        smallest, largest = box["white_balance"]
        ends = torch.stack([smallest / isp.white_balance, largest / isp.white_balance]).log2()
        low, high = ends.amin(0), ends.amax(0)
        self.exposure.clamp_(low[1], high[1])
        self.red.clamp_(low[0] - self.exposure, high[0] - self.exposure)
        self.blue.clamp_(low[2] - self.exposure, high[2] - self.exposure)
        low, high = box["black_level"]
        room = _BLACK_UNIT * (isp.camera.white_level - isp.black_level)
        lowest = ((low - isp.black_level) / room).max()
        self.black_level.clamp_(lowest, ((high - isp.black_level) / room).min())
        return self

    @torch.no_grad()
    def baked(self) -> nn.Module:
        """Return a `ParametrizedISP` of these settings, if it was one; else a copy of this module."""
        if not isinstance(self.processor, ParametrizedISP):
            return copy.deepcopy(self).requires_grad_(False)
        isp = copy.deepcopy(self.processor)
        gains, gamma = isp.white_balance * self.gains(), isp.gamma * torch.exp2(self.gamma)
        return isp.set_(black_level=self.black(), white_balance=gains, gamma=gamma)

    def settings(self) -> dict[str, float]:
        """Return the five numbers by name, in the units above."""
        return {name: float(self.get_parameter(name).detach()) for name in _REACH}


def describe_isp(isp: ParametrizedISP) -> dict[str, float]:
    """Return what an ISP's parameters mean, in physical terms.

    ``black level`` in percent of the range (mean of the tile); ``exposure`` in stops against the camera's
    calibration (gain of green); ``red / green`` and ``blue / green``: ratios of gains; ``gamma``; ``colour
    contrast``: how far the matrix takes colours apart, the mean of its rows' norms; ``luma noise gain``:
    factor by which sharpening and blur together multiply white noise of luma; ``luma gain``: their factor on
    a flat field.
    """
    with torch.no_grad():
        gains = isp.white_balance.detach().double()
        blur, sharpening = isp.blur_kernel.double(), isp.sharpening_kernel.double().flip(0, 1)
        kernel = F.conv2d(blur[None, None], sharpening[None, None], padding=2)
        return {
            "black level (%)": 100 * float(isp.black_level.mean()) / isp.camera.span,
            "exposure (stops)": float((gains[1] / isp.camera.white_balance[1]).abs().log2()),
            "red / green": float(gains[0] / gains[1]),
            "blue / green": float(gains[2] / gains[1]),
            "gamma": float(isp.gamma),
            "colour contrast": float(isp.colour_matrix.norm(dim=1).mean()),
            "luma noise gain": float(kernel.square().sum().sqrt()),
            "luma gain": float(kernel.sum()),
        }
