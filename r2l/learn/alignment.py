"""A raw file and the JPEG that a camera made of it, brought together; or the reason why they don't belong."""

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy.signal import correlate, correlation_lags
from torch import Tensor

from r2l.camera import Camera
from r2l.files import R2LError
from r2l.isp.filters import crop
from r2l.isp.functional import balance_mosaic, subtract_black_level
from r2l.rawfile import RawFrame
from r2l.sensor import apply_levels

#: Side of a block, and what its processing sees around it, in pixels.
BLOCK, MARGIN = 64, 12
_SATURATED = 0.985  # part of the range from which on a site is taken for saturated
_MOST = 600  # blocks looked at, drawn evenly: enough for all numbers, whatever the size of a frame
_COARSE = 1024  # pixels of the longest picture that is aligned coarsely
_TEXTURE = 0.01  # deviation, of values that look even, from which on a block has something to align by
_ALIKE, _ENOUGH = 0.5, 0.5  # correlation that tells the same, and in which part of textured blocks it must
_CROP = 0.04  # part of a side within which a size is taken for a crop
_OFF, _LENS = 0.75, 0.75  # pixels that a block may be off, and that tell a lens correction


class AlignmentError(R2LError, ValueError):
    """A picture that does not lie on its raw file."""


class Blocks(NamedTuple):
    """Parts of pairs that lie on each other.

    Attributes:
        raw: (N, 1, BLOCK + 2 MARGIN, the same), raw domain, with what lies around.
        target: (N, 3, BLOCK, BLOCK), display domain: the camera's.
        seen: (N, 1, BLOCK, BLOCK), whether nothing saturated that a pixel is interpolated from.
    """

    raw: Tensor
    target: Tensor
    seen: Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """A frame and the picture made of it, aligned.

    Attributes:
        picture: uint8 (h, w, 3), turned and scaled to the frame.
        shift: row and column of the frame at which the picture begins.
        turned: quarter turns, against the clock, that the picture was given.
        scale: by which it was enlarged; 1 for a picture of full size.
        lens: pixels by which the corners are moved by a lens correction; 0 where none is seen.
        corners: (n, 2) row and column in the frame of blocks that show the same.
        left_out: part of the blocks that don't: what moved, or was moved.
    """

    frame: RawFrame
    picture: np.ndarray
    shift: tuple[int, int]
    turned: int
    scale: float
    lens: float
    corners: np.ndarray
    left_out: float

    def blocks(self, numbers: np.ndarray, camera: Camera) -> Blocks:
        """Cut out blocks, given by their numbers, as another exposure of this camera would have them."""
        own, raws, targets = self.frame.camera, [], []
        # A frame that was turned begins with another colour than the other.
        start = own.cfa.shift_to(camera.cfa)
        for y, x in self.corners[numbers] + np.array(start):
            raws.append(self.frame.mosaic[y - MARGIN : y + BLOCK + MARGIN, x - MARGIN : x + BLOCK + MARGIN])
            y, x = y - self.shift[0], x - self.shift[1]
            targets.append(self.picture[y : y + BLOCK, x : x + BLOCK])
        raw = torch.from_numpy(np.stack(raws))[:, None]
        black = np.roll(np.reshape(own.black_level, (2, 2)), start, (0, 1)).ravel().tolist()
        linear = subtract_black_level(raw, black, own.white_level)
        full = F.max_pool2d((linear >= _SATURATED).float(), 5, stride=1, padding=2)
        if own != camera:
            gains = [a / b for a, b in zip(own.white_balance, camera.white_balance, strict=True)]
            raw = apply_levels(balance_mosaic(linear, gains, camera.cfa), camera)
        target = torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2).float() / 255
        return Blocks(raw, target, crop(full, MARGIN) == 0)


def open_picture(path: str | Path) -> np.ndarray:
    """Return a JPEG (or PNG) as uint8 (H, W, 3), turned as its EXIF orientation says.

    Raises:
        AlignmentError: it can't be read, or is no such picture.
    """
    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"no picture that can be read ({error})"
        raise AlignmentError(path, reason, "Give the camera's own JPEG") from error


def align(frame: RawFrame, picture: np.ndarray, name: str = "picture") -> Pair:
    """Lay a picture, uint8 (h, w, 3), on the frame that it was made of: crop, shift, quarter turns, size.

    Raises:
        AlignmentError: it shows something else, is too small, or was moved by more than a block can bear;
            names the picture by ``name``.
    """
    height, width = size = frame.mosaic.shape
    if min(*size, *picture.shape[:2]) < BLOCK + 2 * MARGIN:
        reason = f"{height} x {width} raw and {picture.shape[:2]} JPEG pixels are too few"
        raise AlignmentError(name, reason, f"Give pictures of {BLOCK + 2 * MARGIN} pixels or more")
    raw_luma = _look(_raw_luma(frame))
    tried = []
    for turned in (0, 2, 1, 3):
        image = np.rot90(picture, turned)
        for scale in _scales(size, image.shape[:2]):
            resized = _enlarged(image, scale)
            luma = _look(_picture_luma(resized))
            tried.append((*_coarse(raw_luma, luma), turned, scale, resized, luma))
        if tried and max(score for score, *_ in tried) > _ALIKE:
            break
    if not tried:
        sizes = f"{picture.shape[1]} x {picture.shape[0]} pixels for {width} x {height} of raw"
        raise _refused(name, f"it has {sizes}")
    _, shift, turned, scale, resized, luma = max(tried, key=itemgetter(0))
    for _ in range(2):  # the second time from where the first has led
        corners = _grid(size, resized.shape[:2], shift)
        if not len(corners):
            raise _refused(name, "they share no area to speak of")
        moved, score, textured = _local(raw_luma, luma, corners, shift)
        alike = textured & (score > _ALIKE)
        if alike.sum() < max(4, _ENOUGH * textured.sum()):
            reason = f"of {textured.sum()} blocks with something in them, {alike.sum()} show the same"
            raise _refused(name, reason)
        step = np.rint(np.median(moved[alike], axis=0)).astype(int)
        if not step.any():
            break
        shift = (shift[0] + int(step[0]), shift[1] + int(step[1]))
    lens = _lens(corners[alike], moved[alike], size)
    good = ~textured | (alike & (np.abs(moved).max(axis=1) <= _OFF))
    if lens:
        # Where there is nothing to see a shift by, the lens has shifted all the same.
        good &= lens * np.linalg.norm(_arms(corners, size), axis=1) ** 3 < _OFF
    if good.sum() < 4 or (good & textured).sum() < 4:
        reason = f"moved against its raw file by {lens:.1f} pixels in the corners: a lens correction"
        remedy = "Switch it off in the camera, or give a pair made with a longer lens"
        raise AlignmentError(name, reason, remedy)
    return Pair(frame, resized, shift, turned, scale, lens, corners[good], float(1 - good.mean()))


def _refused(name: str, why: str) -> AlignmentError:
    remedy = "Give the JPEG that the camera made of this exposure, not cropped or straightened afterwards"
    return AlignmentError(name, f"does not lie on its raw file: {why}", remedy)


def _raw_luma(frame: RawFrame) -> Tensor:
    """Return the mean of each 2x2 sites (1, 1, H - 1, W - 1), balanced: a picture without demosaicing."""
    camera = frame.camera
    linear = subtract_black_level(frame.tensor(), camera.black_level, camera.white_level)
    return F.avg_pool2d(balance_mosaic(linear, camera.white_balance, camera.cfa), 2, stride=1)


def _picture_luma(picture: np.ndarray) -> Tensor:
    """Return the same of a picture, linear like it."""
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)
    return F.avg_pool2d((torch.from_numpy(grey)[None, None] / 255) ** 2.2, 2, stride=1)


def _look(luma: Tensor) -> Tensor:
    """Return values in steps that look even, whatever the exposure: their cube root, by the mean."""
    even = luma.clamp(min=0) ** (1 / 3)
    return even / even.mean().clamp(min=1e-6) * 0.5


def _scales(frame: tuple[int, int], picture: tuple[int, int]) -> list[float]:
    """Return factors that could bring a picture to a frame's scale."""
    factors = [wanted / present for wanted, present in zip(frame, picture, strict=True)]
    if all(abs(factor - 1) < _CROP for factor in factors):
        return [1.0]
    whole = {round(factor, 4) for factor in factors if 0.2 < factor < 5}
    # Of another scale it still shows all; or it is a part, at the same scale.
    similar = max(factors) / min(factors) - 1 < _CROP
    return [*(sorted(whole) if similar else ()), *([1.0] if min(factors) > 1 - _CROP else ())]


def _enlarged(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return np.ascontiguousarray(picture)
    height, width = (round(side * scale) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _details(luma: Tensor) -> Tensor:
    """Take off what changes slowly."""
    rows = F.avg_pool2d(luma, (9, 1), 1, (4, 0), count_include_pad=False)  # and then columns: half the time
    return luma - F.avg_pool2d(rows, (1, 9), 1, (0, 4), count_include_pad=False)


def _coarse(raw: Tensor, picture: Tensor) -> tuple[float, tuple[int, int]]:
    """Return how alike two lumas are where they fit best, and the shift in pixels of full size."""
    factor = 2 * max(1, round(max(*raw.shape, *picture.shape) / (2 * _COARSE)))
    a, b = (_details(F.avg_pool2d(luma, factor))[0, 0].numpy() for luma in (raw, picture))
    surface = correlate(a - a.mean(), b - b.mean(), method="fft")
    reached = []
    for n, m, axis in zip(a.shape, b.shape, (0, 1), strict=True):
        # A camera's picture lies inside its raw frame, but for a rim: other places are chance.
        lags, rim = correlation_lags(n, m), round(_CROP * min(n, m))
        near = (lags >= min(0, n - m) - rim) & (lags <= max(0, n - m) + rim)
        surface = surface.compress(near, axis)
        reached.append(lags[near])
    place = np.unravel_index(surface.argmax(), surface.shape)
    dy, dx = (int(lags[p]) for lags, p in zip(reached, place, strict=True))
    a, b = a[max(dy, 0) :, max(dx, 0) :], b[max(-dy, 0) :, max(-dx, 0) :]
    height, width = np.minimum(a.shape, b.shape)
    both = a[:height, :width].ravel(), b[:height, :width].ravel()
    alike = np.corrcoef(*both)[0, 1] if min(height, width) >= 8 else 0.0
    return float(np.nan_to_num(alike)), (dy * factor, dx * factor)


def _grid(frame: tuple[int, int], picture: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """Return rows and columns, even, of blocks inside both, with their margin inside the frame."""
    axes = []
    for side, extent, begin in zip(frame, picture, shift, strict=True):
        first = max(MARGIN, begin)
        last = min(side - MARGIN, begin + extent) - BLOCK - 1
        axes.append(np.arange(first + first % 2, last + 1, BLOCK))
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    if len(corners) > _MOST:
        corners = np.random.default_rng(0).choice(corners, _MOST, replace=False)
    return corners


def _local(
    raw: Tensor, picture: Tensor, corners: np.ndarray, shift: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return by block its shift to a part of a pixel, how alike both are, whether there is much to see."""
    window = torch.hann_window(BLOCK, periodic=False)
    here, there = _cut(raw, corners), _cut(picture, corners - np.array(shift))
    a, b = (_details(part)[:, 0] * window * window[:, None] for part in (here, there))
    surface = torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b).conj())
    norm = a.norm(dim=(1, 2)) * b.norm(dim=(1, 2))
    number, top = torch.arange(len(corners)), surface.flatten(1).argmax(1)
    row, column = top // BLOCK, top % BLOCK
    shifts = [_vertex(surface[number, :, column], row), _vertex(surface[number, row], column)]
    score = surface[number, row, column] / norm.clamp(min=1e-9)
    textured = torch.minimum(*(part.std(dim=(1, 2, 3)) for part in (here, there))) > _TEXTURE
    return torch.stack(shifts, 1).double().numpy(), score.numpy(), textured.numpy()


def _cut(luma: Tensor, corners: np.ndarray) -> Tensor:
    """Return blocks (N, 1, BLOCK, BLOCK) of a picture (1, 1, H, W)."""
    return torch.cat([luma[..., y : y + BLOCK, x : x + BLOCK] for y, x in corners])


def _vertex(lines: Tensor, top: Tensor) -> Tensor:
    """Return where a parabola through each cyclic line's highest value and its neighbours is highest."""
    before, at, after = (lines.gather(1, ((top + k) % BLOCK)[:, None])[:, 0] for k in (-1, 0, 1))
    place = top + 0.5 * (before - after) / (before - 2 * at + after).clamp(max=-1e-12)
    return torch.where(place > BLOCK / 2, place - BLOCK, place)


def _arms(corners: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Return where blocks lie from the middle of a frame: (n, 2), a corner of it 1 away."""
    centre = np.array(frame) / 2
    return (corners + BLOCK / 2 - centre) / np.linalg.norm(centre)


def _lens(corners: np.ndarray, shift: np.ndarray, frame: tuple[int, int]) -> float:
    """Return by how many pixels shifts along the radius grow toward the corners; 0 if they don't.

    The cube of the radius is what radial distortion begins with (Brown, "Close-range camera calibration",
    Photogrammetric Engineering, 1971).
    """
    arm = _arms(corners, frame)
    radius = np.linalg.norm(arm, axis=1)
    along = ((shift - np.median(shift, axis=0)) * arm).sum(axis=1) / radius.clip(1e-6)
    cube = radius**3
    if len(cube) < 8 or np.ptp(cube) < 0.1:
        return 0.0
    moved = float((along * cube).sum() / (cube**2).sum())
    explained = 1 - ((along - moved * cube) ** 2).sum() / max((along**2).sum(), 1e-12)
    return abs(moved) if abs(moved) > _LENS and explained > 0.5 else 0.0
