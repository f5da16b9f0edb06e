"""ISPs that are learned: a real camera's, its numbers from `r2l.learn`; a network; and none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2l.camera import BLUE, GREEN, RED, Camera
from r2l.files import choose, need_extra
from r2l.isp import functional as stage
from r2l.isp.demosaic import DEMOSAIC, half_size
from r2l.isp.filters import correlate, pack, pad, unpack
from r2l.isp.pipeline import Luma, Pipeline, Pointwise, Stage, run
from r2l.isp.saving import saved_with
from r2l.isp.static import StaticISP, demosaicing, levels
from r2l.isp.steps import physical_box, tolerance_box

#: Pieces of a tone curve, and the side of its kernels in pixels.
SPANS, KERNEL = 32, 5
# How sharply softplus bends, in steps of a straight curve: a step of 0 costs 0.01 of one.
_BEND = 64.0 * SPANS


@saved_with("demosaic")
class LearnedISP(Pipeline):
    """A camera's processing: raw (B, 1, H, W) to display (B, 3, H, W).

    Black level, white balance on the mosaic, a cut of what saturates, demosaicing, colour matrix, a tone
    curve a channel, sharpening of luma, smoothing of chroma, clip. Untouched, it is the camera's colour by
    gamma 2.2, not sharpened. Gradients pass to the raw data and to all parameters.

    The tone curve is a quadratic spline over the gamma-encoded value, ``x ** (1 / 2.2)``, and rises whatever
    its parameters are: its control points are sums of steps, which a softplus keeps positive.

    >>> from r2l.camera import DRONE
    >>> isp = LearnedISP(DRONE, "malvar2004")
    >>> isp(torch.rand(1, 1, 8, 8)).shape
    torch.Size([1, 3, 8, 8])

    Args:
        camera: layout and calibration: the initial values. A negative gain's sign goes into the matrix.
        demosaic: bilinear, malvar2004 or menon2007.

    Attributes:
        black_level, white_balance, colour_matrix: as `Camera` has them.
        tone_curve: (3, SPANS + 2) by channel, display units: the control point at black, then steps.
        sharpening_kernel, blur_kernel: (5, 5) on luma of the display image, and on its chroma.
    """

    def __init__(self, camera: Camera, demosaic: str = "bilinear") -> None:
        super().__init__()
        self.camera, self.demosaic = camera, choose("demosaic", demosaic, list(DEMOSAIC))
        identity = torch.zeros(KERNEL, KERNEL)
        identity[KERNEL // 2, KERNEL // 2] = 1
        matrix = stage.signed_columns(camera.colour_matrix, camera.white_balance)
        straight = (torch.arange(SPANS + 2.0) - 0.5) / SPANS
        self.black_level = nn.Parameter(torch.tensor(camera.black_level))
        self.white_balance = nn.Parameter(torch.tensor(camera.white_balance).abs())
        self.colour_matrix = nn.Parameter(torch.tensor(matrix))
        self.tone_curve = nn.Parameter(to_steps(straight.expand(3, -1)))
        self.sharpening_kernel = nn.Parameter(identity)
        self.blur_kernel = nn.Parameter(identity.clone())

    def extra_repr(self) -> str:
        """Say whose pipeline it is."""
        return f"{self.demosaic}, {self.camera.name}"

    def numbers(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return dict(self.named_parameters())

    @torch.no_grad()
    def set_(self, **numbers: Tensor) -> LearnedISP:
        """Write parameters by name, in place; returns itself. Raises a ValueError for a name that is none."""
        for name, value in numbers.items():
            choose("parameter", name, self.numbers()).copy_(value)
        return self

    def _detached(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.named_parameters()}

    def physical_bounds(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the widest box that still is a camera, see `r2l.isp.steps.physical_box`."""
        return physical_box(self.camera, self._detached())

    def tolerance_bounds(self, fraction: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a box around the present values, see `r2l.isp.steps.tolerance_box`.

        Each step of the tone curve, and its value at black, may be off by ``fraction`` of itself.
        """
        numbers = self._detached()
        # Where the curve is flat the parameter is far below the step.
        steps = control_points(numbers["tone_curve"]).diff(dim=-1)
        reach = fraction * torch.cat([numbers["tone_curve"][:, :1].abs(), steps], -1)
        box = tolerance_box(self.camera, numbers, fraction)
        return box | {"tone_curve": (numbers["tone_curve"] - reach, numbers["tone_curve"] + reach)}

    def develop(self, raw: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        """Develop ``raw`` (B, 1, H, W) by some other `numbers` instead of the own; differentiable in them."""
        return run(self.listed(numbers), raw)

    def listed(
        self, numbers: Mapping[str, Tensor] | None = None, gamma: float = StaticISP.gamma
    ) -> list[Stage]:
        """Return the stages in order, by the parameters or by other numbers; ``gamma`` leads to the curve."""
        number = self.numbers() if numbers is None else numbers
        cfa, gains = self.camera.cfa, number["white_balance"]
        points = control_points(number["tone_curve"])
        return [
            Stage("black_level", stage.subtract_black_level, number["black_level"], self.camera.white_level),
            Stage("white_balance", stage.balance_mosaic, gains, cfa),
            Stage("highlights", torch.minimum, gains.abs().min()),
            demosaicing(self.demosaic, cfa),
            Stage("colour_matrix", stage.apply_colour_matrix, number["colour_matrix"]),
            Stage("tone_curve", apply_tone_curve, points, gamma),
            Luma("sharpening", correlate, number["sharpening_kernel"]),
            Stage("denoising", _filter_chroma, number["blur_kernel"]),
            Stage("clip", stage.clip),
        ]


def to_steps(points: Tensor) -> Tensor:
    """Return parameters of a tone curve from its control points (C, n), which must not fall."""
    steps = points.diff(dim=-1).clamp(min=1e-3 / _BEND) * _BEND
    # The inverse of softplus, without the overflow of a large step's exponential.
    raw = steps + torch.log(-torch.expm1(-steps))
    return torch.cat([points[..., :1], raw / _BEND], dim=-1)


def control_points(curve: Tensor) -> Tensor:
    """Return the rising control points (C, n) of a tone curve's parameters."""
    steps = F.softplus(curve[..., 1:] * _BEND, threshold=30) / _BEND
    return torch.cat([curve[..., :1], steps], dim=-1).cumsum(-1)


def spline_weights(u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return, for values in [0, 1], the first of three control points and the weights of the three."""
    position = u * SPANS
    first = position.detach().floor().clamp(0, SPANS - 1)
    t = position - first
    return first.long(), ((1 - t) ** 2 / 2, 0.5 + t * (1 - t), t**2 / 2)


def apply_tone_curve(image: Tensor, points: Tensor, gamma: float = 2.2) -> Tensor:
    """Map linear (B, 3, H, W) to display by a curve a channel, given its control points (3, n)."""
    first, weights = spline_weights(stage.gamma_correct(image, gamma))
    channel = torch.arange(3, device=image.device).reshape(3, 1, 1) * points.shape[-1]
    values, place = points.to(image).reshape(-1), (first + channel).flatten()  # [] takes eight times as long
    parts = [values.index_select(0, place + k).view(image.shape) * w for k, w in enumerate(weights)]
    return stage.clip(parts[0] + parts[1] + parts[2])


def _filter_chroma(image: Tensor, kernel: Tensor) -> Tensor:
    y = stage.luma(image)
    return y + correlate(image - y, kernel)


@saved_with("encoder", "depth")
class NeuralISP(Pipeline):
    """A learned pipeline: raw (B, 1, H, W) to display (B, 3, H, W) in [0, 1] by a U-Net++.

    Levels come from the camera; all else is learned. The network sees the four planes of the mosaic at
    half size and answers with the twelve planes of an image at full size, so that masks fit. Any even
    size goes; the frame is continued by its mirror image to what the network can halve.

    >>> from r2l.camera import DRONE
    >>> NeuralISP(DRONE, encoder="resnet18")(torch.full((1, 1, 32, 32), 0.25)).shape
    torch.Size([1, 3, 32, 32])

    Args:
        camera: layout and levels.
        encoder: any encoder of segmentation-models-pytorch; weights start at random.
        depth: how often the network halves its input, 3 to 5.

    Source: the learned processing of Oala et al., TMLR 2023, which answered at half size.
    """

    def __init__(self, camera: Camera, encoder: str = "resnet34", depth: int = 3) -> None:
        need_extra("train", "segmentation_models_pytorch")
        import segmentation_models_pytorch as smp  # takes seconds: only for those who use it

        super().__init__()
        if encoder not in smp.encoders.get_encoder_names():
            some = "resnet18, resnet34, resnet50, efficientnet-b0, mobilenet_v2"
            what = f"unknown encoder {encoder!r}; choose one of segmentation-models-pytorch"
            raise ValueError(f"{what}, such as {some}")
        if depth not in (3, 4, 5):
            raise ValueError(f"depth is {depth}, expected 3, 4 or 5")
        self.camera, self.encoder, self.depth = camera, encoder, depth
        channels = {"decoder_channels": (256, 128, 64, 32, 16)[:depth], "in_channels": 4, "classes": 12}
        self.network = smp.UnetPlusPlus(encoder, depth, encoder_weights=None, **channels)

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        return [levels(self.camera), Stage("network", self._answer), Pointwise("sigmoid", torch.sigmoid)]

    def _answer(self, linear: Tensor) -> Tensor:
        step = 2 ** (self.depth + 1)
        height, width = linear.shape[-2:]
        planes = pack(pad(linear, (0, -height % step), (0, -width % step), "mirror"))
        by_colour = [p for c in (RED, GREEN, BLUE) for p in self.camera.cfa.positions(c)]
        return unpack(self.network(planes[:, by_colour]))[..., :height, :width]


@saved_with()
class HalfSizeRGB(Pipeline):
    """No pipeline: raw (B, 1, H, W) to linear (B, 3, H/2, W/2), red, the mean of both greens, blue.

    Levels only, no white balance, no gamma: the published processing mode "none".

    >>> from r2l.camera import DRONE
    >>> HalfSizeRGB(DRONE)(torch.full((1, 1, 8, 8), 0.25)).shape
    torch.Size([1, 3, 4, 4])
    """

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self.camera = camera

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        return [levels(self.camera), Stage("half_size", half_size, self.camera.cfa)]
