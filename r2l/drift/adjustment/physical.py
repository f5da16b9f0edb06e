"""Five physical numbers of a camera, and an ISP whose five numbers can be adjusted."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2l.isp import ParametrizedISP
from r2l.isp.functional import gamma_correct, per_site, subtract_black_level

#: One unit of ``black_level`` is a hundredth of the range from black to white.
_BLACK_UNIT = 0.01
#: Reach of each number to either side, in its unit.
_REACH = {"exposure": 8.0, "red": 2.0, "blue": 2.0, "gamma": 1.0, "black_level": 5.0}
#: How far each goes while exposure goes one stop. Light changes by factors, calibration by shares; and
#: gain and gamma both brighten, so that without this a search would pay for light with gamma.
PACE = {"exposure": 1.0, "red": 0.25, "blue": 0.25, "gamma": 0.125, "black_level": 0.25}


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
        """Bring the numbers back into `_REACH`; with a `ParametrizedISP` also into what it calls a camera."""
        for name, reach in _REACH.items():
            self.get_parameter(name).clamp_(-reach, reach)
        if isinstance(self.processor, ParametrizedISP):
            self._project_into(self.processor)
        return self

    def _project_into(self, isp: ParametrizedISP) -> None:
        """Keep the processor's values, as adjusted, in `ParametrizedISP.physical_bounds`."""
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
