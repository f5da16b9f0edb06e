"""Stages added to a pipeline: what raw converters do before it, what cameras do behind it; defects measured.

A mosaic stage takes (B, 1, H, W), raw domain, and returns the like. A display stage takes (B, 3, H, W),
display domain, [0, 1], and returns the like; all but resize keep the size. Gradients pass through every one:
those of JPEG and quantisation straight through, as if nothing had been rounded, since the true ones are zero
almost everywhere (Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013).
What a picture means in light is its value to the power 2.2, as `gamma_correct` made it.
"""

import io
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import choose, to_uint8
from r2l.isp import functional as stage
from r2l.isp.filters import blur
from r2l.isp.pipeline import Stage, in_full_precision, run
from r2l.isp.saving import saved_with
from r2l.isp.static import MOSAIC
from r2l.sensor import falloff


def clip_highlights(raw: Tensor, camera: Camera) -> Tensor:
    """Cut a mosaic where white balance would lift it past what the weakest channel can reach.

    Where all three channels saturate, the gains alone give a colour (pink, since green has the least
    gain), and the colour matrix keeps it. Cut like this, saturated white comes out white. It is no stage
    of the published pipelines; raw converters do it before demosaicing.

    From (B, 1, H, W), raw domain, to the like; by a camera with a gain that is not positive nothing changes.
    """
    stage.check_mosaic(raw)
    if min(camera.white_balance) <= 0:
        return raw
    shares = [min(camera.white_balance) / camera.white_balance[colour] for colour in camera.cfa.value]
    caps = [b + (camera.white_level - b) * s for b, s in zip(camera.black_level, shares, strict=True)]
    return torch.minimum(raw, stage.per_site(caps, raw))


def correct_defects(raw: Tensor, camera: Camera, threshold: float = 0.1) -> Tensor:
    """Replace hot and dead pixels by the median of their eight neighbours of the same colour.

    Defective counts a site that lies above all eight, or below all, by more than ``threshold``. It is no
    stage of the published pipelines; put it before one: ``open_pipeline("defects:0.1+ma,s,ga", camera)``.

    >>> from r2l.camera import DRONE
    >>> raw = torch.full((1, 1, 8, 8), 0.2)
    >>> raw[0, 0, 3, 4] = 1.0
    >>> round(float(correct_defects(raw, DRONE).max()), 3)
    0.2

    Args:
        raw: (B, 1, H, W), raw domain, as is what is returned; at its border each colour is mirrored.
        camera: whose levels to measure by.
        threshold: a share of the range from black to white. Fine points, such as stars, fall to a low one.

    Raises:
        ValueError: no mosaic, one smaller than 4 x 4, or a negative threshold.
    """
    stage.check_mosaic(raw)
    height, width = raw.shape[-2:]
    if not threshold >= 0 or min(height, width) < 4:
        what = f"threshold {threshold} for {height}x{width} pixels"
        raise ValueError(f"{what}: expected 0 or more, for 4x4 or more")
    if not len(raw):
        return raw
    step = threshold * camera.span
    planes = F.pixel_unshuffle(raw, 2)
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (1, 1, 1, 1), mode="reflect")
    around = [padded[..., y : y + height, x : x + width] for y, x in np.ndindex(3, 3) if (y, x) != (1, 1)]
    high, low = reduce(torch.maximum, around), reduce(torch.minimum, around)
    bad = (planes > high + step) | (planes < low - step)
    fixed = planes.clone()
    fixed[bad] = torch.stack([values[bad] for values in around]).sort(dim=0).values[3:5].mean(dim=0)
    return F.pixel_shuffle(fixed, 2)


def correct_shading(raw: Tensor, camera: Camera, lost: float = 0.5) -> Tensor:
    """Give the light back that a lens takes, ``lost`` of it in the corners: `r2l.sensor.falloff` undone.

    >>> from r2l.camera import DRONE
    >>> raw = torch.full((1, 1, 8, 8), 0.2)
    >>> corrected = correct_shading(raw, DRONE, 0.5) - 0.0625
    >>> round(float(corrected[0, 0, 0, 0] / (raw - 0.0625)[0, 0, 0, 0]), 2)
    2.0

    From (B, 1, H, W), raw domain, to the like; what is lifted beyond the camera's white is clipped there.
    """
    stage.check_mosaic(raw)
    black = stage.per_site(camera.black_level, raw)
    white = raw.clamp_min(camera.white_level)  # what was beyond it stays
    return torch.minimum(black + (raw - black) / falloff(raw, lost), white)


def correct_lines(raw: Tensor, lines: int = 15) -> Tensor:
    """Take off fixed pattern noise: offsets of single rows and columns against the lines around them.

    An offset is the median of a line's differences to the line before of its colour, summed up, less the mean
    of that over so many lines; so edges that are not as long as the frame stay, and slow shading too.

    From (B, 1, H, W), raw domain, to the like. More lines, of one colour and odd, take off more of the noise,
    and more of the scene. A ValueError for an even number of lines, or a frame with fewer.
    """
    stage.check_mosaic(raw)
    height, width = raw.shape[-2:]
    if lines % 2 == 0 or min(height, width) < lines + 1:
        most = (min(height, width) - 2) | 1
        told = f"lines is {lines}, for {height}x{width} pixels"
        raise ValueError(f"{told}: expected an odd number up to {most}")
    if not len(raw):
        return raw
    planes = F.pixel_unshuffle(raw, 2)
    for across in (-1, -2):
        level = F.pad(planes.diff(dim=-3 - across).median(dim=across).values.cumsum(-1), (1, 0))
        around = F.pad(level, (lines // 2,) * 2, mode="reflect")
        planes = planes - (level - F.avg_pool1d(around, lines, 1)).unsqueeze(across)
    return F.pixel_shuffle(planes, 2)


def measure_defects(raw: Tensor, camera: Camera, threshold: float = 0.1) -> dict[str, float]:
    """Measure how many sites of a frame are defective, and its fixed pattern noise.

    >>> from r2l.camera import DRONE
    >>> sorted(measure_defects(torch.rand(1, 1, 32, 32), DRONE))
    ['column noise', 'defective pixels', 'row noise']

    Arguments and errors are those of `correct_defects`, but of 6 x 6 pixels or more.

    Returns:
        ``defective pixels``, a share of the sites; ``row noise`` and ``column noise``, the standard deviation
        of offsets to rows and to columns, in shares of the range from black to white. What pixel noise
        adds is taken off; regular texture, such as of a fence, counts as noise.
    """
    if not len(raw) or min(raw.shape[-2:]) < 6:
        told = f"{len(raw)} frames of {raw.shape[-2]}x{raw.shape[-1]} pixels"
        raise ValueError(f"{told} are too few, expected one or more of 6x6 or more")
    fixed = correct_defects(raw, camera, threshold)
    planes = F.pixel_unshuffle(fixed, 2).double() / camera.span
    return {
        "defective pixels": float((fixed != raw).double().mean()),
        "row noise": _line_noise(planes),
        "column noise": _line_noise(planes.transpose(-1, -2)),
    }


def _line_noise(planes: Tensor) -> float:
    """Return the deviation of offsets to the rows of (B, 4, H, W), by robust second differences."""

    def variance(rows: Tensor) -> Tensor:
        bent = rows[..., 1:-1, :] - (rows[..., :-2, :] + rows[..., 2:, :]) / 2
        return (1.4826 * bent.abs().flatten(2).median(dim=-1).values) ** 2 / 1.5

    share = 1 / planes.shape[-1]
    lines = variance(planes.mean(dim=-1, keepdim=True)) - share * variance(planes)
    return float((lines / (1 - share)).clamp_min(0).mean() ** 0.5)


_GAMMA = 2.2


def jpeg_coded(images: Tensor, quality: int) -> Tensor:
    """Write as JPEG (4:2:0, by libjpeg) and read: (B, 3, H, W), display domain; no gradient."""
    pictures = to_uint8(images.detach().permute(0, 2, 3, 1).cpu().numpy())
    for one in pictures:
        Image.fromarray(one).save(file := io.BytesIO(), "JPEG", quality=quality)
        one[...] = Image.open(file)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(images) / 255


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


_CURVES = {"srgb": _srgb, "filmic": _filmic, "contrast": _contrast}


def _chroma_blur(image: Tensor, sigma: float) -> Tensor:
    y = stage.luma(image)
    return stage.clip(y + blur(image - y, sigma))


def _vignette(image: Tensor, lost: float) -> Tensor:
    return image * falloff(image, lost) ** (1 / _GAMMA)


def _odd(text: str) -> int:
    if int(text) % 2 == 0:
        raise ValueError
    return int(text)


class _Kind(NamedTuple):
    """A stage by name: its function, what its number may be, and the number if none is given."""

    function: Callable[[Tensor, Any], Tensor]
    read: Callable[[str], Any]
    low: float = 0
    high: float = 0
    default: str = ""


_DISPLAY = {
    "jpeg": _Kind(_jpeg, int, 1, 100, "75"),
    "resize": _Kind(_resize, float, 1 / 64, 8),
    "tone": _Kind(lambda image, curve: curve(image), lambda name: choose("tone", name, _CURVES)),
    "quantise": _Kind(_quantise, int, 1, 16, "8"),
    "chroma_blur": _Kind(_chroma_blur, float, 0.1, 100, "1.5"),
    "vignette": _Kind(_vignette, float, 0, 0.95, "0.5"),
}
_MOSAIC = {
    "defects": _Kind(correct_defects, float, 0, 1, "0.1"),
    "shading": _Kind(correct_shading, float, 0, 0.95, "0.5"),
    "lines": _Kind(lambda raw, _camera, lines: correct_lines(raw, lines), _odd, 3, 255, "15"),
}


def display_stage(text: str) -> Stage:
    """Return the display stage of ``name`` or ``name:number``, see `open_pipeline`; else a ValueError.

    >>> display_stage("jpeg:75")(torch.rand(1, 3, 8, 12)).shape
    torch.Size([1, 3, 8, 12])
    """
    return Stage(*_read_stage("display stage", text, _DISPLAY))


def mosaic_stage(text: str, camera: Camera) -> Stage:
    """Return the stage, mosaic to mosaic, of ``name`` or ``name:number``, likewise.

    >>> from r2l.camera import DRONE
    >>> mosaic_stage("defects:0.2", DRONE)(torch.rand(1, 1, 8, 12)).shape
    torch.Size([1, 1, 8, 12])
    """
    name, function, value = _read_stage("mosaic stage", text, _MOSAIC)
    return Stage(name, function, camera, value)


def _read_stage(what: str, text: str, kinds: Mapping[str, _Kind]) -> tuple[str, Callable[..., Tensor], Any]:
    """Return name, function and number of ``name`` or ``name:number``, one of ``kinds``."""
    name, _, number = (part.strip() for part in text.partition(":"))
    kind = choose(what, name, kinds)
    number = number or kind.default
    if not kind.high:
        return name, kind.function, kind.read(number)
    try:
        value = kind.read(number)
        if not kind.low <= value <= kind.high:
            raise ValueError
    except ValueError:
        sort = {int: "a whole", _odd: "an odd", float: "a"}[kind.read]
        number = f"{sort} number from {kind.low:g} to {kind.high:g}"
        raise ValueError(f"{what} {text!r}: expected {name}:N, N {number}") from None
    return name, kind.function, value


@saved_with("base", "steps")
class Displayed(nn.Module):
    """A pipeline, mosaic stages before it, display stages after it: raw (B, 1, H, W) to display (B, 3, H, W).

    >>> from r2l.camera import DRONE
    >>> from r2l.isp.static import StaticISP
    >>> isp = Displayed(DRONE, StaticISP.from_code("bi,s,ga", DRONE), "resize:0.5+jpeg:75")
    >>> list(isp.stages(torch.rand(1, 1, 16, 16)))[-3:], isp(torch.rand(1, 1, 16, 16)).shape
    (['gamma', 'resize', 'jpeg'], torch.Size([1, 3, 8, 8]))

    Args:
        camera: of the frames.
        base: any pipeline.
        steps: mosaic and display stages, joined by "+"; see `open_pipeline`.
    """

    def __init__(self, camera: Camera, base: nn.Module, steps: str) -> None:
        super().__init__()
        self.camera, self.base, self.steps = camera, base, steps
        texts = [(text, text.partition(":")[0].strip() in MOSAIC) for text in steps.split("+")]
        self.before = [mosaic_stage(text, camera) for text, is_mosaic in texts if is_mosaic]
        self.after = [display_stage(text) for text, is_mosaic in texts if not is_mosaic]

    def extra_repr(self) -> str:
        """Say what comes before and after."""
        return self.steps

    @in_full_precision
    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        """Return what each stage makes of ``raw``, in order, the base's first."""
        shown = getattr(self.base, "stages", lambda raw: {"raw": raw, "display": self.base(raw)})
        out = {"raw": raw}
        for step in self.before:
            raw = out[step.name] = step(raw)
        out |= {name: image for name, image in shown(raw).items() if name != "raw"}
        image = list(out.values())[-1]
        for step in self.after:
            image = out[step.name] = step(image)
        return out

    @in_full_precision
    def forward(self, raw: Tensor) -> Tensor:
        """Develop ``raw`` (B, 1, H, W), raw domain, to (B, 3, H', W'), display domain."""
        return run(self.after, self.base(run(self.before, raw)))
