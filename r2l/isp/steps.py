"""Steps of order one in place of a pipeline's numbers, so that one learning rate fits them all."""

from __future__ import annotations

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


def numbers_of(camera: Camera) -> dict[str, Tensor]:
    """Return the numbers of a pipeline that nothing was learned by."""
    blur = torch.tensor(gaussian_kernel(0.5), dtype=torch.float64)
    blur = torch.outer(blur, blur).tolist()
    colours = camera.black_level, camera.white_balance, camera.colour_matrix
    values = (*colours, SHARPENING_KERNEL, blur, 2.2)
    return {name: torch.tensor(value) for name, value in zip(NUMBERS, values, strict=True)}


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
        self.register_buffer("_kept", self._constraints(white), persistent=False)
        factors = [torch.full_like(value, name in _FACTORS) for name, value in numbers.items()]
        self.register_buffer("_is_factor", _flat(factors) > 0, persistent=False)

    def _constraints(self, white: Tensor) -> Tensor:
        """Return the projection (n, n) of moves to those that keep white white, and the kernels' sums."""
        blocks = []
        for name, step in self.items():
            n = step.numel()
            if name == "colour_matrix":
                blocks += [torch.eye(3) - torch.outer(white, white) / 3] * 3
            else:
                blocks.append(torch.eye(n) - (torch.full((n, n), 1 / n) if name in _KERNELS else 0))
        return torch.block_diag(*blocks)

    def numbers(self) -> dict[str, Tensor]:
        """Return the present numbers by name; differentiable in the steps."""
        return self.moved(self.unit * _flat(self.values()))

    def moved(self, moves: Tensor) -> dict[str, Tensor]:
        """Return the numbers at some distance (n,) from the start, before bounds and constraints."""
        room = torch.where(moves < 0, self.below, self.above)
        # No product of matrices, which autocast would cut short.
        moves = (self._kept * (room * torch.tanh(moves / room))).sum(1)
        return self._parted(
            torch.where(self._is_factor, self.start * moves.exp(), self.start + moves)
        )

    def _parted(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([step.numel() for step in self.values()])
        return {n: part.view(self[n].shape) for n, part in zip(self, parts, strict=True)}

    @torch.no_grad()
    def begin_at(
        self,
        numbers: Mapping[str, Tensor],
        bounds: Mapping[str, tuple[Tensor, Tensor]],
        **tops: Tensor,
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
        # A level of nearly zero needs room below it too.
        below_black.copy_(torch.maximum(below_black, 0.1 * above_black))
        self.below.copy_(below)
        self.above.copy_(above)

    @torch.no_grad()
    def move_to(self, wanted: Mapping[str, Tensor]) -> None:
        """Set the steps to those that lead to some numbers, as near as room and constraints allow.

        Numbers that are wanted as they are stay to the bit.
        """
        now, wanted = (_flat(n[name] for name in self) for n in (self.numbers(), wanted))
        moves = torch.where(self._is_factor, (wanted / self.start).log(), wanted - self.start)
        room = torch.where(moves < 0, self.below, self.above)
        steps = room * torch.atanh((moves / room).clamp(-0.999999, 0.999999)) / self.unit
        steps = torch.where(wanted == now, _flat(self.values()), steps)
        for name, part in self._parted(steps).items():
            self[name].copy_(part)


def _flat(numbers: Iterable[Tensor]) -> Tensor:
    return torch.cat([number.reshape(-1) for number in numbers])
