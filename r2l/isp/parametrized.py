"""The parametrized pipeline: every number that processing depends on can be learned, or attacked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.isp import functional as stage
from r2l.isp.demosaic import bilinear
from r2l.isp.filters import correlate, crop, gaussian_kernel, pad
from r2l.isp.fused import apply_affine, develop_with_parameters, measure_affine
from r2l.isp.pipeline import Affine, Pipeline, Pointwise, Stage, in_full_precision, run
from r2l.isp.saving import saved_with

#: A lower and an upper bound for each value of a parameter, by the parameter's name.
Box = Mapping[str, tuple[Tensor, Tensor]]

# Demosaic 1, sharpening 1, blur 2; even, as strips want it.
_REACH = 4
_KERNELS = ("sharpening_kernel", "blur_kernel")
# A level this close to white leaves almost nothing to divide by.
_LEAST_RANGE = 0.05


@saved_with("additive_shape")
class ParametrizedISP(Pipeline):
    """A pipeline of learnable parameters: raw (B, 1, H, W) to display (B, 3, H, W).

    Black level, bilinear demosaic, white balance, colour matrix, 3x3 sharpening and 5x5 blur of luma,
    clip, gamma, and on request an additive layer. Untouched, it equals
    ``StaticISP.from_code("bi,s,ga", camera)`` everywhere, in either order of white balance and demosaicing,
    since bilinear interpolation looks at one colour at a time. All stages up to the clip are affine, so they
    run as one convolution (`r2l.isp.fused`), and their gradients with it.

    The frame goes on beyond its edge as its mirror image, before anything else; kernels that have lost
    their symmetry see that continuation too.

    >>> from r2l.camera import DRONE
    >>> isp = ParametrizedISP(DRONE)
    >>> isp(torch.full((1, 1, 8, 8), 0.25)).mean().backward()
    >>> isp.black_level.grad.shape
    torch.Size([4])

    Args:
        camera: layout and calibration: the initial values.
        additive_shape: shape of a layer of zeros to be learned that is added to the display image, such
            as (1, 3, H, W); must broadcast to it. The result is then not clipped again.

    Attributes:
        black_level: (4,) raw value of no light, by position of the tile.
        white_balance: (3,) gains of R, G, B.
        colour_matrix: (3, 3) rows give linear sRGB.
        sharpening_kernel: (3, 3) on luma.
        blur_kernel: (5, 5) on luma; initially a Gaussian of sigma 0.5 pixels.
        gamma: () exponent of the display, 2.2.
        additive: as ``additive_shape``, or None.

    Source: the parametrized processing of Oala et al., TMLR 2023, with the corrections of `StaticISP`.
    """

    def __init__(self, camera: Camera, additive_shape: Iterable[int] | None = None) -> None:
        super().__init__()
        self.camera = camera
        blur = torch.tensor(gaussian_kernel(0.5), dtype=torch.float64)
        initial = {
            "black_level": camera.black_level,
            "white_balance": camera.white_balance,
            "colour_matrix": camera.colour_matrix,
            "sharpening_kernel": stage.SHARPENING_KERNEL,
            "blur_kernel": torch.outer(blur, blur).tolist(),
            "gamma": 2.2,
        }
        for name, value in initial.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.additive_shape = None if additive_shape is None else tuple(additive_shape)
        layer = None if additive_shape is None else torch.zeros(self.additive_shape)
        self.register_parameter("additive", None if layer is None else nn.Parameter(layer))

    def extra_repr(self) -> str:
        """Say whose camera it started from."""
        return self.camera.name

    def listed(self) -> list[Stage]:
        """Return the stages in order; each reads its numbers from the parameters."""
        white_level = self.camera.white_level
        steps: list[Stage] = [
            Affine("black_level", stage.subtract_black_level, self.black_level, white_level),
            Affine("demosaic", bilinear, self.camera.cfa, reach=1),
            Affine("white_balance", stage.balance_white, self.white_balance),
            Affine("colour_matrix", stage.apply_colour_matrix, self.colour_matrix),
            Affine("sharpening", _correlate_luma, self.sharpening_kernel, reach=1),
            Affine("denoising", _correlate_luma, self.blur_kernel, reach=2),
            Pointwise("clip", stage.clip),
            Pointwise("gamma", stage.gamma_correct, self.gamma),
        ]
        if self.additive is not None:
            steps.append(Stage("additive", torch.add, self.additive))
        return steps

    @in_full_precision
    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order; the first is ``raw``, the last the result."""
        margin = (_REACH, _REACH)
        whole = pad(raw, margin, margin, "mirror")
        out = {"raw": raw}
        for step in self.listed():
            if isinstance(step, Affine):
                image, whole = _split_margin(step(whole), _REACH)
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
        affine = [step for step in self.listed() if isinstance(step, Affine)]
        # Measured anew each time, so that gradients pass through the weights to the parameters.
        weight, bias = measure_affine(partial(run, affine), _REACH, self.colour_matrix)
        image = develop_with_parameters(raw, _REACH, _develop, weight, bias, self.gamma)
        return image if self.additive is None else image + self.additive

    def physical_bounds(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the widest box that still is a camera: see `project_`.

        Levels from 0 to just below white, gains of the camera's sign and of magnitude 0.05 to 20, matrix
        entries within 10, kernel entries within 25, gamma 0.2 to 5. The additive layer is not bounded.
        """
        highest_black = self.camera.white_level - _LEAST_RANGE
        sign = torch.tensor(self.camera.white_balance).sign().to(self.white_balance)
        smallest, largest = 0.05 * sign, 20.0 * sign
        limits = {
            "black_level": (0.0, highest_black),
            "white_balance": (torch.minimum(smallest, largest), torch.maximum(smallest, largest)),
            "colour_matrix": (-10.0, 10.0),
            "sharpening_kernel": (-25.0, 25.0),
            "blur_kernel": (-25.0, 25.0),
            "gamma": (0.2, 5.0),
        }
        return {name: self._spread(name, *ends) for name, ends in limits.items()}

    def tolerance_bounds(self, fraction: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a box around the camera's values: what another device of the kind may differ by.

        Levels may be off by ``fraction`` of a hundredth of the range below white, gains, matrix entries
        and gamma by ``fraction`` of their own value (matrix: of each row's largest), kernel entries by
        ``fraction`` of the kernel's largest.

        Raises:
            ValueError: a fraction outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}, expected a value between 0 and 1")
        fresh = ParametrizedISP(self.camera).to(self.colour_matrix)
        box = {}
        for name, value in fresh.named_parameters():
            value = value.detach()
            reach = fraction * {
                "black_level": torch.full_like(value, 0.01 * self.camera.white_level),
                "colour_matrix": value.abs().amax(-1, keepdim=True),
                "sharpening_kernel": value.abs().max(),
                "blur_kernel": value.abs().max(),
            }.get(name, value.abs())
            box[name] = (value - reach, value + reach)
        return box

    def _spread(self, name: str, *ends: float | Tensor) -> tuple[Tensor, Tensor]:
        like = self.get_parameter(name).detach()
        low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in ends)
        return low.expand_as(like).clone(), high.expand_as(like).clone()

    @torch.no_grad()
    def project_(self, box: Box | None = None) -> ParametrizedISP:
        """Bring the parameters back into a box, kernels to unit sum; call it after each step.

        Kernels are moved by the same amount everywhere, the least change that restores their sum; that
        comes after the box, which a kernel's entry may then leave by as much.

        Args:
            box: bounds by name of parameter; `physical_bounds` if none is given.

        Returns:
            Itself.

        Raises:
            ValueError: a name that is no parameter.
        """
        box = self.physical_bounds() if box is None else box
        known = dict(self.named_parameters())
        if unknown := set(box) - set(known):
            raise ValueError(f"no parameters {sorted(unknown)}; choose from {', '.join(known)}")
        for name, (low, high) in box.items():
            known[name].clamp_(low, high)
        for name in set(_KERNELS) & set(box):
            kernel = known[name]
            kernel.add_((1 - kernel.sum()) / kernel.numel())
        return self


def _correlate_luma(image: Tensor, kernel: Tensor) -> Tensor:
    return stage.filter_luma(image, lambda y: correlate(y, kernel))


def _develop(
    mosaic: Tensor, places: Sequence[Tensor | None], weight: Tensor, bias: Tensor, gamma: Tensor
) -> list[Tensor]:
    # The convolution takes off whole tiles, here exactly the reach.
    return [stage.gamma_correct(apply_affine(mosaic, weight, bias), gamma, places[0])]


def _split_margin(image: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Return an image without its margin, and whole again, put together from both.

    So that a gradient with respect to what lies inside the frame can be taken on the way.
    """
    inside = crop(image, margin)
    frame = F.pad(torch.ones_like(inside), (margin,) * 4)
    return inside, F.pad(inside, (margin,) * 4) + image * (1 - frame)
