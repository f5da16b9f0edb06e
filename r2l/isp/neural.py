"""ISPs that know little about cameras: a network that learns everything, and none at all."""

from __future__ import annotations

import torch
from torch import Tensor

from r2l.camera import BLUE, GREEN, RED, Camera
from r2l.files import need_extra
from r2l.isp.demosaic import half_size
from r2l.isp.filters import pad
from r2l.isp.functional import subtract_black_level
from r2l.isp.packing import pack, unpack
from r2l.isp.pipeline import Affine, Pipeline, Pointwise, Stage
from r2l.isp.saving import saved_with

_DECODER_CHANNELS = (256, 128, 64, 32, 16)


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

    Raises:
        ValueError: an encoder or a depth that does not exist.

    Source: the learned processing of Oala et al., TMLR 2023, which answered at half size.
    """

    def __init__(self, camera: Camera, encoder: str = "resnet34", depth: int = 3) -> None:
        need_extra("train", "segmentation_models_pytorch")
        import segmentation_models_pytorch as smp  # takes seconds: only for those who use it

        super().__init__()
        if encoder not in smp.encoders.get_encoder_names():
            some = "resnet18, resnet34, resnet50, efficientnet-b0, mobilenet_v2"
            raise ValueError(
                f"unknown encoder {encoder!r}; choose one of segmentation-models-pytorch, such as {some}"
            )
        if depth not in (3, 4, 5):
            raise ValueError(f"depth is {depth}, expected 3, 4 or 5")
        self.camera, self.encoder, self.depth = camera, encoder, depth
        self.network = smp.UnetPlusPlus(
            encoder_name=encoder,
            encoder_depth=depth,
            encoder_weights=None,
            decoder_channels=_DECODER_CHANNELS[:depth],
            in_channels=4,
            classes=12,
        )

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        camera = self.camera
        return [
            Affine("black_level", subtract_black_level, camera.black_level, camera.white_level),
            Stage("network", self._answer),
            Pointwise("sigmoid", torch.sigmoid),
        ]

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

    Args:
        camera: layout and levels.
    """

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self.camera = camera

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        camera = self.camera
        return [
            Affine("black_level", subtract_black_level, camera.black_level, camera.white_level),
            Stage("half_size", half_size, camera.cfa),
        ]
