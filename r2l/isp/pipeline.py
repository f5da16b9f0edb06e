"""A pipeline is an ordered list of named stages; what it does, and how it does it fast, follow from the list.

`Pipeline.stages` reads the list from top to bottom and shows what each stage makes of a frame: the readable
truth. The quick way to the same picture is derived from the list too:

- the `Affine` stages it begins with become one convolution; its weights are measured, see `r2l.isp.fused`;
- a `Directional` stage among them mixes its colours by the matrix that the stages after it are together;
- the `Luma` filters that follow get luma alone, without the three colours they would leave as they are;
- the `Pointwise` ones at the end are done in place.

All that runs tile by tile, and what several pipelines begin with alike is done once a tile. A list with
any other `Stage`, one that has to see a whole frame and its border, is developed stage by stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from itertools import chain, takewhile
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from r2l.isp import functional as stage
from r2l.isp.filters import Border, crop, gpu_kernels, is_recorded, kernels
from r2l.isp.fused import apart, apply_affine, develop_in_tiles, measure_affine, together, whole_tiles

_Result = TypeVar("_Result")


class Stage:
    """A step of a pipeline: ``function(image, *values, **options)``, for a whole frame with its border.

    Stages are equal if they do the same with the same values, which have to be hashable for that.

    Args:
        name: of what comes out. Where stages that follow each other share a name, the last one's counts.
        function: image to image, of equal size for the kinds below; its input stays as it is.
        reach: how many pixels around a pixel it looks at; of use to the kinds below.
    """

    def __init__(
        self, name: str, function: Callable[..., Tensor], *values: Any, reach: int = 0, **options: Any
    ) -> None:
        self.name, self.function, self.reach = name, function, reach
        self.values, self.options = values, options

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image after this stage."""
        return self.function(image, *self.values, **self.options)

    def _key(self) -> tuple[Any, ...]:
        return type(self), self.name, self.function, self.values, *self.options.items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


class Affine(Stage):
    """An affine stage that is the same at each 2x2 tile; a border, if it has one, is "mirror"."""


class Directional(Stage):
    """A demosaicing that is not affine, as `menon2007`; its border is "mirror".

    ``inside(mosaic, *values, matrix=rows)`` computes only where it fits and mixes the colours by a matrix.
    """

    def __init__(self, *args: Any, inside: Callable[..., Tensor], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inside = inside


class Luma(Stage):
    """A filter of luma: ``function(y, *values, border=border)``, border ``None`` where it fits."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image (B, 3, H, W) with its luma filtered."""
        return stage.filter_luma(image, lambda y: self.filter(y, "mirror"))

    def filter(self, y: Tensor, border: Border | None) -> Tensor:
        """Filter (B, 1, H, W)."""
        return self.function(y, *self.values, border=border, **self.options)


class LinearLuma(Luma):
    """A filter of luma that is linear and the same at each pixel, up to its border."""


class Pointwise(Stage):
    """A stage after all filters that looks at one value at a time."""


class Plan(NamedTuple):
    """A list of stages by what the quick way does with them."""

    before: tuple[Affine, ...]
    directional: tuple[Directional, ...]
    after: tuple[Affine, ...]
    luma: tuple[Luma, ...]
    last: tuple[Pointwise, ...]

    @classmethod
    def of(cls, steps: Sequence[Stage]) -> Plan | None:
        """Sort a list; None where it has no quick way."""
        rest = list(steps)

        def take(kind: type[Stage]) -> tuple[Any, ...]:
            taken = tuple(takewhile(lambda step: isinstance(step, kind), rest))
            del rest[: len(taken)]
            return taken

        before, directional = take(Affine), take(Directional)
        plan = cls(before, directional, take(Affine), take(Luma), take(Pointwise))
        # A directional stage is given the mosaic as it is, and a matrix: what is around it has no reach.
        lone = not directional or (len(directional) == 1 and not any(s.reach for s in before + plan.after))
        return plan if lone and not rest else None

    @property
    def front(self) -> tuple[Any, ...]:
        """All that the filters of luma depend on."""
        return self.before, self.directional, self.after

    @property
    def front_margin(self) -> int:
        """How many pixels that takes off each side."""
        return whole_tiles(sum(step.reach for step in self.before + self.directional))


def run(steps: Sequence[Stage], image: Tensor) -> Tensor:
    """Apply stages one after the other."""
    for step in steps:
        image = step(image)
    return image


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve those who want gradients
def _measured(steps: tuple[Stage, ...]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution to `apart` that affine stages are."""
    like = torch.empty(0, dtype=torch.float64)
    return measure_affine(lambda raw: apart(run(steps, raw)), sum(s.reach for s in steps), like)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def mixed(steps: tuple[Stage, ...]) -> list[list[float]]:
    """Return the matrix to `apart` that affine stages of colours are."""
    return apart(run(steps, torch.eye(3, dtype=torch.float64).reshape(3, 3, 1, 1))).reshape(3, 3).T.tolist()


def is_full(raw: Tensor) -> bool:
    """Tell whether a frame is computed with in float32 or better: neither half nor under autocast."""
    # Nor is there autocast on "meta", which computes shapes alone.
    meta = raw.device.type == "meta"
    return raw.dtype not in stage.HALF and (meta or not torch.is_autocast_enabled(raw.device.type))


def in_full_precision(develop: Callable[..., _Result]) -> Callable[..., _Result]:
    """Let ``develop(what, raw)`` compute in float32 or better: whatever autocast says, and if raw is half."""

    @wraps(develop)
    def developed(what: Any, raw: Tensor) -> _Result:
        stage.check_mosaic(raw)
        if raw.dtype in stage.HALF:
            return tree_map(lambda image: image.to(raw.dtype), developed(what, raw.float()))
        if is_full(raw):
            return develop(what, raw)
        with torch.autocast(raw.device.type, enabled=False):
            return develop(what, raw)

    return developed


class Pipeline(nn.Module):
    """Raw (B, 1, H, W) to display (B, 3, H, W) by the stages that `listed` returns.

    It computes in float32 or better, forward and backward, and keeps its numbers so: `half` and `bfloat16`
    leave them. A mosaic of half precision is answered in its own dtype.
    """

    _plan: Plan | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pipeline:
        def keep(number: Tensor) -> Tensor:
            moved = fn(number)
            return number.to(moved.device) if moved.dtype in stage.HALF else moved

        return super()._apply(keep, recurse)

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        raise NotImplementedError

    @in_full_precision
    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order; the first is ``raw``, the last the result."""
        image = raw
        out = {"raw": raw}
        for step in self.listed():
            image = out[step.name] = step(image)
        return out

    @in_full_precision
    def forward(self, raw: Tensor) -> Tensor:
        """Develop ``raw`` (B, 1, H, W), raw domain, to (B, 3, H, W), display domain.

        Raises:
            ValueError: wrong shape or dtype, odd height or width.
        """
        return develop_together([self], raw)[0] if self.quick else run(self.listed(), raw)

    @property
    def quick(self) -> bool:
        """Whether it takes the quick way; never before `_fuse` was called."""
        return self._plan is not None

    def _fuse(self) -> None:
        """Prepare the quick way, if the list has one; for a pipeline whose numbers stay as they are."""
        plan = self._plan = Plan.of(self.listed())
        if plan is not None and plan.directional:
            self._matrix = mixed(plan.after)
        elif plan is not None:
            weight, bias = _measured(plan.before)
            self.register_buffer("_weight", weight, persistent=False)
            self.register_buffer("_bias", bias, persistent=False)

    def _front(self, mosaic: Tensor) -> Tensor:
        """Return what the filters of luma start from: `apart`, smaller by the front's margin."""
        if not self._plan.directional:
            return apply_affine(mosaic, self._weight, self._bias)
        (demosaic,) = self._plan.directional
        mosaic = run(self._plan.before, mosaic)
        return demosaic.inside(mosaic, *demosaic.values, matrix=self._matrix)


def _numbered(plans: Sequence[Plan]) -> list[list[int]]:
    """Number what plans begin with: the front, the front and one filter of luma ...; alike, the same."""
    numbers: dict[tuple[Any, ...], int] = {}
    return [
        [numbers.setdefault((*plan.front, *plan.luma[:n]), len(numbers)) for n in range(len(plan.luma) + 1)]
        for plan in plans
    ]


def curve(last: Sequence[Stage]) -> float | None:
    """Return gamma where the last stages are clip, and a gamma that is a number."""
    known = [step.function for step in last] == [stage.clip, stage.gamma_correct]
    return last[1].values[0] if known and [*map(type, last[1].values)] == [float] else None


def finish(y: Tensor, chroma: Tensor, last: Sequence[Stage], place: Tensor | None) -> Tensor:
    """Bring luma and chroma together and apply the last stages, into ``place`` if there is one."""
    gamma = curve(last)
    if gamma is not None and place is not None and (quick := kernels(y)):
        return quick.finish(y, chroma, gamma, place)
    image = together(y, chroma, place)
    out = None if is_recorded(image) else image
    # Gamma correction clips by itself.
    for step in last if gamma is None else last[1:]:
        image = step.function(image, *step.values, out=out)
    return image


@in_full_precision
def develop_together(pipelines: Sequence[Pipeline], raw: Tensor) -> list[Tensor]:
    """Develop ``raw`` (B, 1, H, W) by each pipeline; what their lists begin with alike is done once a tile.

    Args:
        pipelines: those that are `quick`.
        raw: raw domain.

    Returns:
        (B, 3, H, W) in display domain, one each.
    """
    plans = [pipeline._plan for pipeline in pipelines]
    if quick := gpu_kernels(raw):
        return quick.develop_together(plans, raw)
    numbers = _numbered(plans)
    # Those that share more, next to each other: what nobody needs any more makes room in the caches.
    order = sorted(range(len(plans)), key=numbers.__getitem__)
    # How many pixels around a tile what follows a number looks at, at most: nothing is given more.
    reaches = (sum(s.reach for s in plan.luma[n:]) for plan in plans for n in range(len(plan.luma) + 1))
    around = dict(sorted(zip(chain.from_iterable(numbers), reaches, strict=True)))
    starts = zip(plans, numbers, strict=True)
    margin = max((plan.front_margin + whole_tiles(around[own[0]]) for plan, own in starts), default=0)

    def develop(tile: Tensor, *places: Tensor | None) -> list[Tensor]:
        pictures, done = list(places), {}
        for i in order:
            plan, (number, *further) = plans[i], numbers[i]
            done = {known: done[known] for known in numbers[i] if known in done}
            if number not in done:
                spare = margin - plan.front_margin - whole_tiles(around[number])
                done[number] = crop(pipelines[i]._front(crop(tile, spare)), around[number] % 2)
            chroma, y = crop(done[number][:, 1:], around[number]), done[number][:, :1]
            for step, after in zip(plan.luma, further, strict=True):
                if after not in done:
                    done[after] = step.filter(crop(y, around[number] - around[after] - step.reach), None)
                number, y = after, done[after]
            pictures[i] = finish(crop(y, around[number]), chroma, plan.last, places[i])
        return pictures

    return develop_in_tiles(raw, margin, len(plans), develop)


class StageGradient(NamedTuple):
    """An intermediate image and the gradient of the loss with respect to it, of equal shape."""

    image: Tensor
    gradient: Tensor


def stage_gradients(
    isp: nn.Module, raw: Tensor, loss: Callable[[Tensor], Tensor]
) -> dict[str, StageGradient]:
    """Return for each stage of an ISP its image and the gradient of a loss with respect to it.

    Neither ``raw`` nor the gradients of the ISP's parameters are touched.

    Args:
        isp: any ISP of `r2l.isp`.
        raw: (B, 1, H, W), raw domain.
        loss: the ISP's result to a scalar; usually a task model and its loss.

    Returns:
        By name and in the order of ``isp.stages``: detached images and gradients.

    Raises:
        ValueError: ``loss`` does not return a scalar, or one that does not depend on the image.
    """
    with torch.enable_grad():
        stages = isp.stages(raw.detach().clone().requires_grad_())
        images = list(stages.values())
        value = loss(images[-1])
        if value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                f"loss returned a tensor of shape {tuple(value.shape)}, requires_grad="
                f"{value.requires_grad}; expected a scalar that depends on the image"
            )
        found = torch.autograd.grad(value.reshape(()), images)
    return {
        name: StageGradient(image.detach(), gradient)
        for name, image, gradient in zip(stages, images, found, strict=True)
    }
