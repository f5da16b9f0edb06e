"""Display stages: what cameras and programs still do to a developed picture.

Each takes (B, 3, H, W), display domain, [0, 1], and returns the like; all but resize keep the size. Gradients
pass through every one: those of JPEG and quantisation straight through, as if nothing had been rounded, since
the true ones are zero almost everywhere (Bengio et al., "Estimating or propagating gradients through
stochastic neurons", 2013). What a picture means in light is its value to the power 2.2, as `gamma_correct`
made it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from r2l.files import choose, to_uint8
from r2l.isp import functional as stage
from r2l.isp.filters import blur
from r2l.isp.pipeline import Stage
from r2l.sensor import falloff

_GAMMA = 2.2


def jpeg_coded(images: Tensor, quality: int) -> Tensor:
    """Write as JPEG (4:2:0, by libjpeg) and read: (B, 3, H, W), display domain; no gradient."""
    read = []
    for one in to_uint8(images.detach().permute(0, 2, 3, 1).cpu().numpy()):
        with io.BytesIO() as file:
            Image.fromarray(one).save(file, "JPEG", quality=quality)
            read.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).to(images) / 255


def _straight_through(image: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, with the gradient of ``image``."""
    # Not image + (rounded - image): that would round once more.
    return rounded if not image.requires_grad else image + (rounded - image).detach()


def _jpeg(image: Tensor, quality: int) -> Tensor:
    return _straight_through(image, jpeg_coded(image, quality))


def _quantise(image: Tensor, bits: int) -> Tensor:
    steps = 2**bits - 1
    return _straight_through(image, (image.detach() * steps).round() / steps)


def _resize(image: Tensor, factor: float) -> Tensor:
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


def _srgb(image: Tensor) -> Tensor:
    """IEC 61966-2-1 in the place of the power 2.2."""
    light = image**_GAMMA
    curved = 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, 12.92 * light, curved)


def _filmic(image: Tensor) -> Tensor:
    """A toe and a shoulder in light: Narkowicz' fit of ACES (2016), scaled so that white stays white."""
    light = image**_GAMMA
    curve = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    return stage.gamma_correct(curve / (2.54 / 3.16), _GAMMA)


def _contrast(image: Tensor) -> Tensor:
    """Half way to ``3 x**2 - 2 x**3``: steeper in the middle; black, mid-grey and white stay."""
    return (image + image**2 * (3 - 2 * image)) / 2


_CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "srgb": _srgb,
    "filmic": _filmic,
    "contrast": _contrast,
}


def _tone(image: Tensor, curve: str) -> Tensor:
    return _CURVES[curve](image)


def _chroma_blur(image: Tensor, sigma: float) -> Tensor:
    y = stage.luma(image)
    return stage.clip(y + blur(image - y, sigma))


def _vignette(image: Tensor, lost: float) -> Tensor:
    return image * falloff(image, lost) ** (1 / _GAMMA)


class _Kind(NamedTuple):
    """A display stage: its function, what its number may be, and the number if none is given."""

    function: Callable[[Tensor, Any], Tensor]
    read: Callable[[str], Any]
    low: float = 0
    high: float = 0
    default: str = ""


_KINDS = {
    "jpeg": _Kind(_jpeg, int, 1, 100, "75"),
    "resize": _Kind(_resize, float, 1 / 64, 8),
    "tone": _Kind(_tone, lambda name: choose("tone", name, list(_CURVES))),
    "quantise": _Kind(_quantise, int, 1, 16, "8"),
    "chroma_blur": _Kind(_chroma_blur, float, 0.1, 100, "1.5"),
    "vignette": _Kind(_vignette, float, 0, 0.95, "0.5"),
}


def display_stage(text: str) -> Stage:
    """Return the display stage that ``name`` or ``name:number`` names; see `open_pipeline` for what there is.

    >>> display_stage("jpeg:75")(torch.rand(1, 3, 8, 12)).shape
    torch.Size([1, 3, 8, 12])

    Raises:
        ValueError: no such stage, tone or number; lists those that exist, or says which numbers do.
    """
    name, _, number = (part.strip() for part in text.partition(":"))
    kind = choose("display stage", name, _KINDS)
    number = number or kind.default
    if not kind.high:
        return Stage(name, kind.function, kind.read(number))
    try:
        value = kind.read(number)
        if not kind.low <= value <= kind.high:
            raise ValueError
    except ValueError:
        what = "a whole number" if kind.read is int else "a number"
        raise ValueError(
            f"display stage {text!r}: expected {name}:N, N {what} from {kind.low:g} to {kind.high:g}"
        ) from None
    return Stage(name, kind.function, value)
