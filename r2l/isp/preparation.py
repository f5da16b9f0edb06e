"""Mosaics prepared for a pipeline: what raw converters do before demosaicing, and look for."""

from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from r2l.camera import Camera
from r2l.isp.functional import check_mosaic, per_site
from r2l.sensor import falloff


def clip_highlights(raw: Tensor, camera: Camera) -> Tensor:
    """Cut a mosaic where white balance would lift it past what the weakest channel can reach.

    Where all three channels saturate, the gains alone give a colour (pink, since green has the least
    gain), and the colour matrix keeps it. Cut like this, saturated white comes out white. It is no stage
    of the published pipelines; raw converters do it before demosaicing.

    From (B, 1, H, W), raw domain, to the like; by a camera with a gain that is not positive nothing changes.
    """
    check_mosaic(raw)
    if min(camera.white_balance) <= 0:
        return raw
    shares = [min(camera.white_balance) / camera.white_balance[colour] for colour in camera.cfa.value]
    caps = [b + (camera.white_level - b) * s for b, s in zip(camera.black_level, shares, strict=True)]
    return torch.minimum(raw, per_site(caps, raw))


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
    check_mosaic(raw)
    height, width = raw.shape[-2:]
    if not threshold >= 0 or min(height, width) < 4:
        what = f"threshold {threshold} for {height}x{width} pixels"
        raise ValueError(f"{what}: expected 0 or more, for 4x4 or more")
    step = threshold * camera.span
    planes = F.pixel_unshuffle(raw, 2)
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (1, 1, 1, 1), mode="reflect")
    shifts = [shift for shift in np.ndindex(3, 3) if shift != (1, 1)]
    around = [padded[..., y : y + height, x : x + width] for y, x in shifts]
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
    check_mosaic(raw)
    black = per_site(camera.black_level, raw)
    white = raw.clamp_min(camera.white_level)  # what was beyond it stays
    return torch.minimum(black + (raw - black) / falloff(raw, lost), white)


def correct_lines(raw: Tensor, lines: int = 15) -> Tensor:
    """Take off fixed pattern noise: offsets of single rows and columns against the lines around them.

    An offset is the median of a line's differences to the line before of its colour, summed up, less the mean
    of that over so many lines; so edges that are not as long as the frame stay, and slow shading too.

    From (B, 1, H, W), raw domain, to the like. More lines, of one colour and odd, take off more of the noise,
    and more of the scene. A ValueError for an even number of lines, or a frame with fewer.
    """
    check_mosaic(raw)
    height, width = raw.shape[-2:]
    if lines % 2 == 0 or min(height, width) < lines + 1:
        raise ValueError(f"{lines} lines of {height}x{width} pixels: expected an odd number that fits")
    planes = F.pixel_unshuffle(raw, 2)
    for across in (-1, -2):
        steps = planes.diff(dim=-3 - across).median(dim=across).values
        level = F.pad(steps.cumsum(-1), (1, 0))
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
    if min(raw.shape[-2:]) < 6:
        raise ValueError(f"{raw.shape[-2]}x{raw.shape[-1]} pixels are too few, expected 6x6 or more")
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
