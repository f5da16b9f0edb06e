"""The published parametrized pipeline, stage by stage in plain torch: the peer of `ParametrizedISP`.

Written from the description in Oala et al., TMLR 2023. The stages are those of the publication, among
them what `ParametrizedISP` does otherwise: the black level is only subtracted, borders are zero, and a
floor of 1e-5 stands before gamma.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.isp.filters import gaussian_kernel
from r2l.isp.functional import SHARPENING_KERNEL

_YUV_FROM_RGB = (
    (0.299, 0.587, 0.114),
    (-0.14714119, -0.28886916, 0.43601035),
    (0.61497538, -0.51496512, -0.10001026),
)
_RED_BLUE = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))
_GREEN = ((0.0, 0.25, 0.0), (0.25, 1.0, 0.25), (0.0, 0.25, 0.0))


class PublishedParametrizedISP(nn.Module):
    """Raw mosaic (B, 1, H, W) to display image (B, 3, H, W), parameters as in `ParametrizedISP`."""

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        blur = torch.tensor(gaussian_kernel(0.5))
        self.black_level = nn.Parameter(torch.tensor(camera.black_level))
        self.white_balance = nn.Parameter(torch.tensor(camera.white_balance))
        self.colour_matrix = nn.Parameter(torch.tensor(camera.colour_matrix))
        self.sharpening_kernel = nn.Parameter(torch.tensor(SHARPENING_KERNEL))
        self.blur_kernel = nn.Parameter(torch.outer(blur, blur))
        self.gamma = nn.Parameter(torch.tensor(2.2))
        tile = torch.tensor(camera.cfa.value).reshape(2, 2)
        self.register_buffer("sites", torch.stack([tile == colour for colour in range(3)]).float())
        self.register_buffer("debayer", torch.tensor([_RED_BLUE, _GREEN, _RED_BLUE])[:, None])
        yuv = torch.tensor(_YUV_FROM_RGB, dtype=torch.float64)
        self.register_buffer("yuv_from_rgb", yuv.float())
        self.register_buffer("rgb_from_yuv", torch.linalg.inv(yuv).float())

    def forward(self, raw: Tensor) -> Tensor:
        """Develop a batch, every stage a pass over all of it."""
        tiles = raw.shape[-2] // 2, raw.shape[-1] // 2
        linear = raw - self.black_level.reshape(2, 2).repeat(tiles)
        masked = linear * self.sites.repeat(1, *tiles)
        rgb = F.conv2d(masked, self.debayer, padding=1, groups=3)
        rgb = torch.einsum("bchw,c->bchw", rgb, self.white_balance)
        rgb = torch.einsum("bchw,kc->bkhw", rgb, self.colour_matrix)
        yuv = torch.einsum("bchw,kc->bkhw", rgb, self.yuv_from_rgb)
        luma = F.conv2d(yuv[:, :1], self.sharpening_kernel[None, None], padding=1)
        luma = F.conv2d(luma, self.blur_kernel[None, None], padding=2)
        yuv = torch.cat([luma, yuv[:, 1:]], dim=1)
        rgb = torch.einsum("bchw,kc->bkhw", yuv, self.rgb_from_yuv)
        return torch.exp(torch.log(rgb.clamp(1e-5, 1.0)) / self.gamma)
