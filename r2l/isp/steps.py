"""Steps of order one in place of a pipeline's numbers, so that one learning rate fits them all."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.isp.filters import gaussian_kernel
from r2l.isp.functional import SHARPENING_KERNEL

_KERNELS = ("sharpening_kernel", "blur_kernel")
#: What a parametrized pipeline's numbers are called, in this order.
NUMBERS = ("black_level", "white_balance", "colour_matrix", *_KERNELS, "gamma")
# What changes by factors, and so keeps its sign.
_FACTORS = ("white_balance", "gamma")
# A level so near to white, as a part of the range, leaves almost nothing to divide by.
_LEAST_RANGE = 0.05

#: A lower and an upper bound for each value of a parameter, by the parameter's name.
Box = Mapping[str, tuple[Tensor, Tensor]]


def numbers_of(camera: Camera) -> dict[str, Tensor]:
    """Return the numbers of a pipeline that nothing was learned by."""
    blur = torch.tensor(gaussian_kernel(0.5), dtype=torch.float64)
    blur = torch.outer(blur, blur).tolist()
    colours = camera.black_level, camera.white_balance, camera.colour_matrix
    values = (*colours, SHARPENING_KERNEL, blur, 2.2)
    return {name: torch.tensor(value) for name, value in zip(NUMBERS, values, strict=True)}


def physical_box(camera: Camera, numbers: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the widest box that still is a camera, for those of a pipeline's numbers that it bounds."""
    sign = torch.tensor(camera.white_balance).sign()
    gains = torch.stack([0.05 * sign, 20.0 * sign])
    ends = {
        "black_level": (0.0, camera.white_level - _LEAST_RANGE * camera.span),
        "white_balance": (gains.amin(0), gains.amax(0)),
        "colour_matrix": (-10.0, 10.0),
        **dict.fromkeys(_KERNELS, (-25.0, 25.0)),
        "gamma": (0.2, 5.0),
        "tone_curve": (-1.0, 1.0),  # the value at black, and steps, in display units
    }
    return {
        name: tuple(torch.zeros_like(value) + torch.as_tensor(end).to(value) for end in ends[name])
        for name, value in numbers.items()
        if name in ends
    }


def tolerance_box(
    camera: Camera, numbers: Mapping[str, Tensor], fraction: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a box around numbers: what another device of the kind may differ by.

    Levels may be off by ``fraction`` of a hundredth of the range, matrix entries by ``fraction`` of the
    row's largest, kernel entries of the kernel's largest, all else by ``fraction`` of its own value.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a value between 0 and 1")
    box = {}
    for name, value in numbers.items():
        size = value.abs()
        if name == "black_level":
            size = torch.full_like(value, 0.01 * camera.span)
        elif name == "colour_matrix":
            size = size.amax(-1, keepdim=True)
        elif name in _KERNELS:
            size = size.max()
        box[name] = (value - fraction * size, value + fraction * size)
    return box


class Steps(nn.ParameterDict):
    """Parameters, one a number, that move the numbers away from where they start; zero at first.

    Gains and gamma move by factors, rows of the colour matrix keep white white, kernels keep their sum,
    and no step, however large, leaves the room that there is below and above.

    Args:
        numbers: where they start, by the names of `NUMBERS`.
        white: (3,) signs that the channels of white have before the colour matrix.

    Attributes:
        start, unit, below, above: (n,) of all numbers one after the other: where they start, how far a step
            of one moves, and the room; logarithms for those that move by factors.
    """

    def __init__(self, numbers: Mapping[str, Tensor], white: Tensor) -> None:
        # Pairs, since it would sort a dict.
        super().__init__([(n, nn.Parameter(torch.zeros_like(v))) for n, v in numbers.items()])
        start = _flat(numbers.values())
        self.register_buffer("start", start)
        for name in ("unit", "below", "above"):
            self.register_buffer(name, torch.ones_like(start))
        # The projection (n, n) of moves to those that keep white white, and the kernels' sums.
        blocks = []
        for name, step in self.items():
            n = step.numel()
            if name == "colour_matrix":
                blocks += [torch.eye(3) - torch.outer(white, white) / 3] * 3
            else:
                blocks.append(torch.eye(n) - (torch.full((n, n), 1 / n) if name in _KERNELS else 0))
        self.register_buffer("_kept", torch.block_diag(*blocks), persistent=False)
        factors = [torch.full_like(value, name in _FACTORS) for name, value in numbers.items()]
        self.register_buffer("_is_factor", _flat(factors) > 0, persistent=False)

    def numbers(self) -> dict[str, Tensor]:
        """Return the present numbers by name; differentiable in the steps."""
        return self.moved(self.unit * _flat(self.values()))

    def moved(self, moves: Tensor) -> dict[str, Tensor]:
        """Return the numbers at some distance (n,) from the start, before bounds and constraints."""
        room = torch.where(moves < 0, self.below, self.above)
        # No product of matrices, which autocast would cut short.
        moves = (self._kept * (room * torch.tanh(moves / room))).sum(1)
        return self._parted(torch.where(self._is_factor, self.start * moves.exp(), self.start + moves))

    def _parted(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([step.numel() for step in self.values()])
        return {n: part.view(self[n].shape) for n, part in zip(self, parts, strict=True)}

    @torch.no_grad()
    def begin_at(
        self, numbers: Mapping[str, Tensor], bounds: Mapping[str, tuple[Tensor, Tensor]], **tops: Tensor
    ) -> None:
        """Start anew at these numbers, with room up to the bounds; ``black_level`` to another top."""
        start = self.start.copy_(_flat(numbers[name] for name in self))
        for step in self.values():
            step.zero_()
        low, high = (_flat(ends) for ends in zip(*(bounds[n] for n in self), strict=True))
        ends = torch.stack([low, high]).abs()
        factors = torch.stack([start.abs() / ends.amin(0), ends.amax(0) / start.abs()])
        room = torch.stack([start - low, high - start])
        room = torch.where(self._is_factor, factors.log(), room).clamp(max=100.0)
        # What was loaded may lie at a bound or beyond.
        below, above = room.maximum(0.01 * room.sum(0).abs())
        # Views into them.
        below_black, above_black = (self._parted(side)["black_level"] for side in (below, above))
        if "black_level" in tops:
            above_black.copy_(tops["black_level"] - self._parted(start)["black_level"])
        # A level of nearly zero needs room below it too, but no more: it would be light that is not there.
        below_black.copy_(torch.maximum(self._parted(room[0])["black_level"], 0.1 * above_black))
        self.below.copy_(below)
        self.above.copy_(above)

    @torch.no_grad()
    def move_to(self, wanted: Mapping[str, Tensor]) -> None:
        """Set the steps to those that lead to some numbers, or near; what is wanted as it is stays so."""
        now, wanted = (_flat(n[name] for name in self) for n in (self.numbers(), wanted))
        moves = torch.where(self._is_factor, (wanted / self.start).log(), wanted - self.start)
        room = torch.where(moves < 0, self.below, self.above)
        steps = room * torch.atanh((moves / room).clamp(-0.999999, 0.999999)) / self.unit
        steps = torch.where(wanted == now, _flat(self.values()), steps)
        for name, part in self._parted(steps).items():
            self[name].copy_(part)


def _flat(numbers: Iterable[Tensor]) -> Tensor:
    return torch.cat([number.reshape(-1) for number in numbers])
