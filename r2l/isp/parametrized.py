"""The parametrized pipeline: every number that processing depends on can be learned, or attacked."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import choose
from r2l.isp import functional as stage
from r2l.isp.demosaic import bilinear
from r2l.isp.filters import correlate, is_recorded, pad, split_margin
from r2l.isp.fused import apply_affine, develop_with_parameters, measure_affine
from r2l.isp.pipeline import Affine, Pipeline, Pointwise, Stage, in_full_precision, run
from r2l.isp.saving import saved_with
from r2l.isp.steps import NUMBERS, Box, Steps, numbers_of, physical_box, tolerance_box

# Demosaic 1, sharpening 1, blur 2; even, as tiles want it.
_REACH = 4
# What a step of one changes a picture by, root mean square, display units.
_STEP = 0.1
# Side and number of the tiles, and step as a part of the room, that units are measured by.
_TILE, _TILES, _SHARE = 64, 8, 1e-4

# Those of each camera before calibration, measured once.
_UNITS: dict[Camera, Tensor] = {}


@saved_with("additive_shape")
class ParametrizedISP(Pipeline):
    """A pipeline of learnable numbers: raw (B, 1, H, W) to display (B, 3, H, W).

    Black level, bilinear demosaic, white balance, colour matrix, 3x3 sharpening and 5x5 blur of luma,
    clip, gamma, and on request an additive layer. Untouched, it equals
    ``StaticISP.from_code("bi,s,ga", camera)`` everywhere, in either order of white balance and demosaicing,
    since bilinear interpolation looks at one colour at a time. All stages up to the clip are affine, so they
    run as one convolution (`r2l.isp.fused`), and their gradients with it.

    What is learned are *steps* away from the numbers it started with, all of order one: a step of one in
    any number changes a picture by the same root mean square, 0.1. `calibrate` measures that on frames, as
    training does; before, it holds for random colours. Gains and gamma change by factors, rows of the matrix
    keep white white (the gains are there to change it), kernels keep their sum, and no step, however
    large, leaves `physical_bounds` (but a black level of nearly zero has a tenth of its room above it below
    it too), or lifts the black level above the mean of the frames it was calibrated on. So one learning
    rate fits all, whatever container the levels are written in.

    The frame goes on beyond its edge as its mirror image, before anything else; kernels that have lost
    their symmetry see that continuation too.

    >>> from r2l.camera import DRONE
    >>> isp = ParametrizedISP(DRONE).set_(gamma=1.8)
    >>> isp(torch.full((1, 1, 8, 8), 0.25)).mean().backward()
    >>> round(isp.gamma.item(), 3), isp.steps.gamma.item(), isp.steps.black_level.grad.shape
    (1.8, 0.0, torch.Size([4]))

    Args:
        camera: layout and calibration: the initial values.
        additive_shape: shape of a layer of zeros to be learned that is added to the display image, such
            as (1, 3, H, W); must broadcast to it. The result is then not clipped again.

    Attributes:
        steps: the parameters, by the name of the number.
        additive: as ``additive_shape``, a parameter, or None.
        black_level: (4,) raw value of no light, by position of the tile. This and what follows is the
            present value, to be read; `set_` writes.
        white_balance: (3,) gains of R, G, B.
        colour_matrix: (3, 3) rows give linear sRGB.
        sharpening_kernel: (3, 3) on luma.
        blur_kernel: (5, 5) on luma; initially a Gaussian of sigma 0.5 pixels.
        gamma: () exponent of the display, 2.2.

    Source: the parametrized processing of Oala et al., TMLR 2023, with the corrections of `StaticISP`.
    """

    def __init__(self, camera: Camera, additive_shape: Iterable[int] | None = None) -> None:
        super().__init__()
        self.camera = camera
        # A negative gain, as the published microscope's, has a negative part in white.
        self.steps = Steps(numbers_of(camera), torch.tensor(camera.white_balance).sign())
        self.additive_shape = None if additive_shape is None else tuple(additive_shape)
        layer = None if additive_shape is None else torch.zeros(self.additive_shape)
        self.register_parameter("additive", None if layer is None else nn.Parameter(layer))
        self._begin_at(self.numbers())
        if camera not in _UNITS:
            self._measure_units(self._nominal())
            _UNITS[camera] = self.steps.unit.clone()
        self.steps.unit.copy_(_UNITS[camera])

    def __getattr__(self, name: str) -> Any:
        if name not in NUMBERS:
            return super().__getattr__(name)
        # Where no gradient is wanted, what is handed out can't be written to, which would change nothing.
        with torch.inference_mode(not torch.is_grad_enabled()):
            return self.numbers()[name]

    def numbers(self) -> dict[str, Tensor]:
        """Return the present numbers by name, in physical units; differentiable in the steps."""
        numbers = self.steps.numbers()
        return numbers if self.additive is None else numbers | {"additive": self.additive}

    def _nominal(self) -> Tensor:
        """Return a mosaic of the camera whose tiles have random colours (1, 1, 16, 16)."""
        camera = self.camera
        light = 0.6 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
        gains = torch.tensor(camera.white_balance).abs()[:, None, None]
        light = (light * gains.min() / gains)[list(camera.cfa.value)]
        black = torch.tensor(camera.black_level)[:, None, None]
        return F.pixel_shuffle(black + (camera.white_level - black) * light, 2)[None]

    @torch.no_grad()
    def set_(self, **numbers: float | Sequence[Any] | Tensor) -> ParametrizedISP:
        """Write numbers, in physical units and by name; steps begin at the present numbers again.

        Raises:
            ValueError: a name or shape that does not fit.
        """
        present = self.numbers()
        for name, value in numbers.items():
            like = choose("number", name, present)
            value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            if value.ndim and value.shape != like.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
            present[name] = value.expand_as(like).clone()
        if "additive" in numbers:
            self.additive.copy_(present["additive"])
        self._begin_at(present)
        return self

    def _begin_at(self, numbers: Mapping[str, Tensor], **tops: Tensor) -> None:
        """Have steps begin at these numbers, with room to `physical_bounds`, or to other tops."""
        self.steps.begin_at(numbers, self.physical_bounds(), **tops)

    @torch.no_grad()
    def calibrate(self, raw: Tensor) -> ParametrizedISP:
        """Measure the units of the steps, which begin at the present numbers again; returns itself.

        A step of one in any number then changes these frames' pictures by a root mean square of 0.1 (the
        norm of the Jacobian, from differences; of tiles out of the middle of some frames), and no step
        lifts a black level by more than nine tenths of the mean signal at its position, unless it was there.

        Args:
            raw: (B, 1, H, W), raw domain.
        """
        stage.check_mosaic(raw)
        rows = torch.linspace(0, len(raw) - 1, min(len(raw), _TILES)).round().long()
        height, width = (max(n - _TILE, 0) // 4 * 2 for n in raw.shape[-2:])
        tile = raw[rows, :, height : height + _TILE, width : width + _TILE].to(self.steps.start)
        sites = F.pixel_unshuffle(raw.to(self.steps.start), 2).transpose(0, 1).flatten(1)
        black = self.numbers()["black_level"]
        spread = (sites - black[:, None]).abs().mean(1)
        signal = sites.mean(1) - black
        # Not all of it: the mean of these frames is not that of all.
        least = 0.1 * spread + 1e-3 * self.camera.span * (spread == 0)
        top = black + torch.maximum(0.9 * signal, least)
        self._begin_at(self.numbers(), black_level=top)
        self._measure_units(tile)
        return self

    @torch.no_grad()
    def _measure_units(self, raw: Tensor) -> None:
        """Measure what each step changes, along the slope that training sees."""
        exact, raw = (copy.deepcopy(self).double(), pad(raw.double(), *[(_REACH, _REACH)] * 2, "mirror"))
        distances = _SHARE * torch.minimum(exact.steps.below, exact.steps.above)
        weight, bias, gamma = exact._measured(exact.steps.moved(0 * distances))
        linear = apply_affine(raw, weight, bias)
        with torch.enable_grad():
            image = stage.gamma_correct(linear.requires_grad_(), gamma)
            (slope,) = torch.autograd.grad(image.sum(), linear)
        by_gamma = -torch.special.xlogy(image, image).detach() / gamma
        changes = []
        for move in torch.diag(distances):
            w, b, g = exact._measured(exact.steps.moved(move))
            change = slope * apply_affine(raw, w - weight, b - bias) + by_gamma * (g - gamma)
            changes.append(change.square().mean().sqrt())
        changes = torch.stack(changes)
        if changes.any():
            self.steps.unit.copy_(_STEP * distances / changes.clamp(min=1e-3 * changes.max()))

    def extra_repr(self) -> str:
        """Say whose camera it started from."""
        return self.camera.name

    def listed(self, numbers: Mapping[str, Tensor] | None = None) -> list[Stage]:
        """Return the stages in order, by the present numbers or by others."""
        number = self.numbers() if numbers is None else numbers
        white_level = self.camera.white_level
        steps: list[Stage] = [
            Affine("black_level", stage.subtract_black_level, number["black_level"], white_level),
            Affine("demosaic", bilinear, self.camera.cfa, reach=1),
            Affine("white_balance", stage.balance_white, number["white_balance"]),
            Affine("colour_matrix", stage.apply_colour_matrix, number["colour_matrix"]),
            Affine("sharpening", _correlate_luma, number["sharpening_kernel"], reach=1),
            Affine("denoising", _correlate_luma, number["blur_kernel"], reach=2),
            Pointwise("clip", stage.clip),
            Pointwise("gamma", stage.gamma_correct, number["gamma"]),
        ]
        if "additive" in number:
            steps.append(Stage("additive", torch.add, number["additive"]))
        return steps

    @in_full_precision
    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order; the first is ``raw``, the last the result."""
        margin = (_REACH, _REACH)
        whole = pad(raw, margin, margin, "mirror")
        out = {"raw": raw}
        for step in self.listed():
            if isinstance(step, Affine):
                image, whole = split_margin(step(whole), _REACH)
            else:
                image = step(image)
            out[step.name] = image
        return out

    @in_full_precision
    def forward(self, raw: Tensor) -> Tensor:
        """Develop ``raw`` (B, 1, H, W), raw domain, to (B, 3, H, W), display domain.

        Raises:
            ValueError: wrong shape or dtype, odd height or width, a black level not below white.
        """
        return self.develop(raw, self.numbers())

    def develop(self, raw: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        """Develop as `forward` by some other `numbers` instead of the own; differentiable in them."""
        # Measured anew each time, so that gradients pass through the weights to the parameters.
        image = develop_with_parameters(raw, _REACH, _develop, *self._measured(numbers))
        return image + numbers["additive"] if "additive" in numbers else image

    def _measured(self, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight and bias of the convolution that all up to the clip is, and gamma."""
        affine = [step for step in self.listed(numbers) if isinstance(step, Affine)]
        return *measure_affine(partial(run, affine), _REACH, self.steps.start), numbers["gamma"]

    def physical_bounds(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the widest box that still is a camera: see `project_` and `r2l.isp.steps.physical_box`.

        The additive layer is not bounded.
        """
        return physical_box(self.camera, {n: step.detach() for n, step in self.steps.items()})

    def tolerance_bounds(self, fraction: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a box around the camera's values, see `r2l.isp.steps.tolerance_box`.

        Raises:
            ValueError: a fraction outside (0, 1).
        """
        fresh = {n: value.to(self.steps.start) for n, value in numbers_of(self.camera).items()}
        return tolerance_box(self.camera, fresh, fraction)

    @torch.no_grad()
    def project_(self, box: Box) -> ParametrizedISP:
        """Bring numbers back into a narrower box than the `physical_bounds`, which none can leave.

        Numbers inside it stay to the bit. Kernels keep their sum, rows of the matrix white; an entry of
        theirs may leave the box by as much as that takes.

        Args:
            box: bounds by name.

        Returns:
            Itself.

        Raises:
            ValueError: a name that is no number.
        """
        numbers = self.numbers()
        for name in box:
            choose("number", name, numbers)
        wanted = {**numbers, **{name: numbers[name].clamp(*ends) for name, ends in box.items()}}
        if self.additive is not None:
            self.additive.copy_(wanted["additive"])
        self.steps.move_to(wanted)
        return self

    def search_(self, names: Sequence[str]) -> ParametrizedISP:
        """Have gradients asked for these numbers' steps only."""
        for name in self.numbers():
            part = self.additive if name == "additive" else self.steps[name]
            part.requires_grad_(name in names)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any
    ) -> None:
        """Take physical numbers, as folders hold them; or steps and where they began, as checkpoints do."""
        names = [name for name in NUMBERS if prefix + name in state_dict]
        if names:
            self.set_(**{name: state_dict.pop(prefix + name) for name in names})
            own = {n: v for n, v in self.state_dict(prefix=prefix).items() if n not in state_dict}
            state_dict.update(own if len(names) == len(NUMBERS) else {})
        super()._load_from_state_dict(state_dict, prefix, *others, **more)


def _correlate_luma(image: Tensor, kernel: Tensor) -> Tensor:
    return stage.filter_luma(image, lambda y: correlate(y, kernel))


def _develop(
    mosaic: Tensor, place: Tensor | None, weight: Tensor, bias: Tensor, gamma: Tensor
) -> list[Tensor]:
    # The convolution takes off whole tiles, here exactly the reach.
    image = apply_affine(mosaic, weight, bias)
    own = not is_recorded(image) and not is_recorded(gamma)
    return [stage.gamma_correct(image, gamma, (image if place is None else place) if own else None)]
