"""Where forensics search, boxes of processing, and what they ask there: a model's score and margin.

A point of [-1, 1]^d is one way to develop: 0 is the pipeline as given, -1 and 1 are the ends of the tolerance
of a number. All searches, and the random perturbations that they are compared with, move in such a box.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets.frames import Frames
from r2l.drift.paired import score_table
from r2l.drift.sensor_drift import SENSOR_SETTINGS, worsen
from r2l.files import choose
from r2l.isp.adjustable import AdjustableISP, settings_of
from r2l.isp.learned import LearnedISP
from r2l.isp.parametrized import ParametrizedISP
from r2l.training import RawToLogits
from r2l.training.adversarial import Adversary
from r2l.training.metrics import TASKS, Task, image_distance

#: Raw (B, 1, H, W) to display (B, 3, H, W).
Develop = Callable[[Tensor], Tensor]

#: accuracy: whether the answer is right; p_true: probability given to the true class; iou: of each image's
#: foreground, 1 where there is none and none was found. All in [0, 1], better if higher.
METRICS = {"accuracy": "correct", "p_true": "p_true", "iou": "iou"}
_MARGIN = Adversary(weight=0.0, confidence=1.0)


def task_model(model: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """Return a frozen copy, in eval mode, of what takes display images to logits.

    Of a `RawToLogits` that is what follows the processor. The model that was given stays as it was.
    """
    parts = [model]
    if isinstance(model, RawToLogits):
        parts = [part for part in (model.norm, model.model) if isinstance(part, nn.Module)]
    frozen = copy.deepcopy(nn.Sequential(*parts)).eval().requires_grad_(False)
    return frozen.to(device, memory_format=torch.channels_last)


def own_processor(model: nn.Module, pipeline: Any = None) -> Any:
    """Return ``pipeline``; where none is given the model's own processor, or "bi,s,ga" if it has none."""
    if pipeline is not None:
        return pipeline
    own = getattr(model, "processor", None)
    return "bi,s,ga" if own is None or isinstance(own, nn.Identity) else own


def once_each(ask: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """Return ``ask``, which remembers its answers: searches often come to the same corner of a box."""
    remembered = cache(lambda point: ask(np.array(point)))
    return lambda point: remembered(tuple(point))


class Evaluator:
    """A frozen model and frames: asked how it does under one pipeline or another.

    The model is a `RawToLogits`, or any module from display images to logits, and stays as it is; the frames
    are raw ones, where it is to be asked (`Frames.to`); the metric is one of `METRICS` that fits the truth.
    """

    def __init__(self, model: nn.Module, frames: Frames, metric: str = "accuracy") -> None:
        if frames.raw is None:
            raise ValueError("nothing to develop: these frames hold developed images only")
        self.task, self.frames, self.metric = task_model(model, frames.raw.device), frames, metric

    def scores(self, develop: Develop) -> np.ndarray:
        """Return the score (N,) of every frame as ``develop`` renders it."""
        column = choose("metric", self.metric, METRICS)

        def measure(outputs: Tensor, truth: Tensor) -> Tensor:
            task = _task(truth)
            answers = task.answers(task.check(outputs, truth), truth)
            if column not in answers:
                raise ValueError(f"metric {self.metric!r} does not fit {task.name}")
            return answers[column].float()

        return self._each(develop, measure)

    def margin(self, develop: Develop) -> float:
        """Return the mean margin of the frames as ``develop`` renders them: low is good for an attack.

        See `r2l.training.adversarial.Adversary.aims`; an image that is lost by a logit does not draw a search
        away from those that are not.
        """
        return float(self._each(develop, _margins).mean())

    def margin_gradient(
        self, develop_at: Callable[[Tensor, Tensor], Tensor], point: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Return the mean margin and its gradient (d,) with respect to ``point`` (d,).

        ``develop_at`` takes raw (B, 1, H, W) and a point (d,) to display, differentiably.
        """
        leaf = torch.tensor(point, dtype=torch.float32, requires_grad=True)
        total, gradient = 0.0, np.zeros(len(point))
        for outputs, truth in self._answers(lambda raw: develop_at(raw, leaf)):
            margin = _margins(outputs, truth).sum()
            total += float(margin.detach())
            # A model that ignores its image gives no gradient.
            if margin.requires_grad:
                (part,) = torch.autograd.grad(margin, leaf, allow_unused=True)
                gradient += 0 if part is None else part.double().cpu().numpy()
        return total / len(self.frames), gradient / len(self.frames)

    def difference(self, develop: Develop, reference: Develop) -> float:
        """Return the mean squared difference of the frames as both render them."""
        with torch.inference_mode():
            raws = [self.frames.raw[step] for step in self.frames.steps()]
            parts = [image_distance(develop(raw), reference(raw)).double().cpu() for raw in raws]
        return float(torch.cat(parts).mean())

    def _answers(self, develop: Develop) -> Iterator[tuple[Tensor, Tensor]]:
        for step in self.frames.steps():
            yield self.task(develop(self.frames.raw[step])), self.frames.targets(step)

    def _each(self, develop: Develop, measure: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        with torch.inference_mode():
            parts = [measure(*answer).double().cpu().numpy() for answer in self._answers(develop)]
        return np.concatenate(parts)


def _task(truth: Tensor) -> Task:
    return TASKS["segmentation" if truth.ndim == 4 else "classification"]


def _margins(outputs: Tensor, truth: Tensor) -> Tensor:
    """Return by how much the truth leads, (B,), bounded below."""
    return _MARGIN.aims(_task(truth).name, outputs, truth)


#: Pipelines whose numbers have bounds, and whose gradients pass to them.
Searchable = ParametrizedISP | LearnedISP

# Reach of the additive layer, in display units, at 100 % tolerance.
_ADDITIVE_REACH = 0.1
_KERNELS = ("sharpening_kernel", "blur_kernel")
_Names = str | Sequence[str]


class ParameterSpace:
    """Parameters of a `ParametrizedISP` or `LearnedISP` around their present values; gradients pass.

    Args:
        isp: the pipeline at the centre; it stays as it is.
        parameters: names (a ValueError lists them), or "all".
        fraction: in (0, 1), of tolerance, see `ParametrizedISP.tolerance_bounds`, whose half width is taken
            around the present values. An additive layer may reach ``fraction`` of a tenth of the range.

    Kernels keep their sum: the same is taken off all entries, which may then leave the box by as much. Beyond
    the box (where a search without bounds may go) values stop at the `physical_bounds`.
    """

    def __init__(self, isp: Searchable, parameters: _Names = "all", fraction: float = 0.1) -> None:
        self.isp = copy.deepcopy(isp).requires_grad_(False)
        present = {name: value.detach() for name, value in self.isp.numbers().items()}
        names = selected("parameters", parameters, present, present)
        self.names = tuple(name for name in present if name in names)
        self.centre = {name: present[name].clone() for name in self.names}
        bounds, physical = self.isp.tolerance_bounds(fraction), self.isp.physical_bounds()
        self.reach, self.limits = {}, {}
        for name, centre in self.centre.items():
            low, high = bounds.get(name, (0, torch.full_like(centre, 2 * fraction * _ADDITIVE_REACH)))
            reach = self.reach[name] = (high - low) / 2
            if name in physical:
                low, high = physical[name]
                self.limits[name] = torch.minimum(low, centre - reach), torch.maximum(high, centre + reach)
        self.sizes = [centre.numel() for centre in self.centre.values()]
        numbered = zip(self.names, self.sizes, strict=True)
        parts = ([name] if size == 1 else [f"{name}[{i}]" for i in range(size)] for name, size in numbered)
        self.coordinates = tuple(chain.from_iterable(parts))

    def values(self, point: Tensor) -> dict[str, Tensor]:
        """Return the parameters at ``point`` (d,), by name; differentiable."""
        values = {}
        for (name, centre), part in zip(self.centre.items(), point.split(self.sizes), strict=True):
            value = centre + self.reach[name] * part.to(centre).reshape(centre.shape)
            if name in self.limits:
                value = value.clamp(*self.limits[name])
            if name in _KERNELS:
                value = value + (centre.sum() - value.sum()) / value.numel()
            values[name] = value
        return values

    def point(self, values: Mapping[str, Tensor]) -> np.ndarray:
        """Return the point (d,) of parameters by name; beyond the box it leaves [-1, 1]."""
        parts = [((values[n].detach() - self.centre[n]) / self.reach[n]).flatten() for n in self.names]
        return torch.cat(parts).double().cpu().numpy()

    def develop(self, raw: Tensor, point: Tensor) -> Tensor:
        """Develop ``raw`` (B, 1, H, W) at ``point`` (d,): (B, 3, H, W), display; differentiable."""
        return self.isp.develop(raw, self.isp.numbers() | self.values(point))

    def pipeline(self, point: np.ndarray) -> Searchable:
        """Return the pipeline at ``point`` (d,), a new module."""
        # In double, so that the centre comes back to the bit.
        return copy.deepcopy(self.isp).set_(**self.values(torch.as_tensor(point)))


class SettingSpace:
    """Settings of a static pipeline (`AdjustableISP`) around their present values; no gradients needed.

    Args:
        pipeline, camera: what `AdjustableISP` takes.
        settings: names, or "all", which leaves out the black levels of single positions.
        fraction: of each setting's ``reach``: 0.1 lets gains be off by 10 %, exposure by 0.1 stops, levels by
            a thousandth of the range.
    """

    def __init__(
        self, pipeline: str | nn.Module, camera: Camera, settings: _Names = "all", fraction: float = 0.1
    ) -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}, expected a value between 0 and 1")
        self.base, self.fraction = AdjustableISP(pipeline, camera), fraction
        present = settings_of(self.base)
        together = [name for name in present if not name.startswith("black_level_")]
        self.names = self.coordinates = selected("settings", settings, present, together)
        self.settings = {name: present[name] for name in self.names}

    def values(self, point: np.ndarray) -> dict[str, float]:
        """Return the settings at ``point`` (d,), by name; widths stop at 0."""
        moved = zip(self.settings.values(), point, strict=True)
        values = {s.name: s.value + self.fraction * s.reach * float(part) for s, part in moved}
        return values | {name: max(values[name], 0.0) for name in values if name == "blur"}

    def pipeline(self, point: np.ndarray) -> AdjustableISP:
        """Return the pipeline at ``point`` (d,), a new module."""
        return AdjustableISP(self.base, **self.values(point))


SearchSpace = ParameterSpace | SettingSpace


def selected(kind: str, names: _Names, options: Iterable[str], together: Iterable[str]) -> tuple[str, ...]:
    """Return the names that were asked for; "all" stands for ``together``."""
    names = [names] if isinstance(names, str) else list(names)
    names = list(together) if names == ["all"] else names
    unknown = [name for name in names if name not in options]
    if unknown or not names:
        raise ValueError(f"no {kind} {unknown or 'given'}; choose from all, {', '.join(options)}")
    return tuple(names)


class Prober:
    """A model, frames and a pipeline: asked for the scores of all frames under changed settings.

    Args:
        model, frames, metric: as in `Evaluator`; the frames of one camera.
        pipeline: a code such as "ma,s,me", a corrected `StaticISP`, or a `ParametrizedISP`; by default the
            model's own processor, or "bi,s,ga" if it has none.
        level: of the bands and safe intervals, over groups.

    Its ``settings`` are those of the pipeline, see `settings_of`, and `SENSOR_SETTINGS`.
    """

    def __init__(
        self,
        model: nn.Module,
        frames: Frames,
        pipeline: str | nn.Module | None = None,
        *,
        metric: str = "accuracy",
        level: float = 0.95,
    ) -> None:
        self.evaluator, self.level = Evaluator(model, frames, metric), level
        self.base = AdjustableISP(own_processor(model, pipeline), frames.camera)
        self.settings = settings_of(self.base) | SENSOR_SETTINGS
        self._remembered: dict[tuple[tuple[str, float], ...], np.ndarray] = {}

    def pipeline(self, **values: float) -> Develop:
        """Return the pipeline under these settings, the others unchanged."""
        sensor = {name: values.pop(name) for name in SENSOR_SETTINGS if name in values}
        isp, camera = AdjustableISP(self.base, **values), self.evaluator.frames.camera
        return (lambda raw: isp(worsen(raw, camera, **sensor))) if sensor else isp

    def scores(self, **values: float) -> np.ndarray:
        """Return the score (N,) of each frame under these settings; asked twice, remembered."""
        moved = {n: v for n, v in values.items() if n not in self.settings or v != self.settings[n].value}
        key = tuple(sorted(moved.items()))
        if key not in self._remembered:
            self._remembered[key] = self.evaluator.scores(self.pipeline(**moved))
        return self._remembered[key]

    def measure(self, name: str, values: Sequence[float]) -> pd.DataFrame:
        """Return score and fall of the metric, with bounds, one row a value of one setting."""
        columns = np.stack([self.scores(**{name: float(value)}) for value in values], 1)
        falls, groups = self.scores()[:, None] - columns, self.evaluator.frames.groups
        table = score_table(columns, falls, groups, self.level, "fall").drop(columns="p")
        table.insert(0, "value", np.asarray(values, dtype=float))
        return table
