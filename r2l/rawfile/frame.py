"""A frame as the sensor gave it, the error for a file that holds none, and a look whether it can be true."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r2l.camera import CFA, Camera
from r2l.files import R2LError

if TYPE_CHECKING:
    import torch

#: What to do about a file that was damaged on its way.
FETCH_AGAIN = "It may be damaged or cut short: copy it again from the card or the source"
#: What to do about one that holds something else than a Bayer mosaic.
USE_BAYER = "Give the camera's original raw file, of a Bayer sensor, or the camera that fits it"
# `look_at` looks at about so many pixels.
_SAMPLE = 200_000
# Parts of the range, and of the pixels, from which on it has something to say.
_BELOW_BLACK, _FAR_FROM_BLACK, _FAR_FROM_WHITE, _MANY = 0.01, 0.4, 0.02, 0.01
# The part of a picture at 0, or at 1, from which on it is blank.
_BLANK = 0.99
# Rows of zeros at the end of a frame, as a part of it, that no exposure leaves.
_CUT_OFF = 1 / 64
# What was said already, by camera or folder, and doubt: many such frames say it once.
_SAID: set[tuple[Hashable, str]] = set()


class RawFileError(R2LError, ValueError):
    """A file that is no usable Bayer frame."""


class RawFileWarning(UserWarning):
    """A frame that is read, and whose numbers contradict its camera."""


@dataclass(frozen=True, eq=False)
class RawFrame:
    """One exposure as the sensor gave it, and its camera.

    The mosaic is float32 (H, W), even H and W, in [0, 1], *raw* domain: fraction of the container's full
    scale, black level still in it. The camera's layout is the mosaic's, top-left first.

    >>> from r2l.camera import DRONE
    >>> RawFrame(np.zeros((8, 8), np.float32), DRONE).tensor().shape
    torch.Size([1, 1, 8, 8])
    """

    mosaic: np.ndarray
    camera: Camera

    def tensor(self) -> torch.Tensor:
        """Return a copy of the mosaic as a float32 tensor (1, 1, H, W), as the ISPs take it."""
        import torch  # slow to import, and reading files does without

        return torch.tensor(self.mosaic)[None, None]

    def binned(self, side: int) -> RawFrame:
        """Return the whole frame with no side above ``side``: a mosaic again, each site a mean of its colour.

        An odd number of sites along both sides goes into one, from where the new site lies, so that the
        colours stay registered. What does not fill a site is left out, at the right and at the bottom.

        >>> from r2l.camera import DRONE
        >>> RawFrame(np.zeros((300, 400), np.float32), DRONE).binned(160).mosaic.shape
        (98, 132)
        """
        n = max(1, -(-max(self.mosaic.shape) // side)) | 1
        rows, columns = (max(1, (length // 2 - n // 2) // n) for length in self.mosaic.shape)
        if n == 1 or 3 * n > min(self.mosaic.shape):
            return self  # small already, or too narrow to be reduced
        small = np.empty((2 * rows, 2 * columns), np.float32)
        for y, x in np.ndindex(2, 2):
            plane = self.mosaic[y::2, x::2][y * (n // 2) :, x * (n // 2) :]
            small[y::2, x::2] = plane[: rows * n, : columns * n].reshape(rows, n, columns, n).mean((1, 3))
        return replace(self, mosaic=small)


def check_layout(path: Path, cfa: CFA, camera: Camera) -> None:
    """Raise a RawFileError where a frame's layout is not that of the camera given for it."""
    if camera.cfa is not cfa:
        reason = f"its layout is {cfa.name}, and that of the camera {camera.name!r} is {camera.cfa.name}"
        raise RawFileError(path, reason, USE_BAYER)


def check_whole(path: Path, frame: RawFrame) -> None:
    """Raise a RawFileError where a frame is zeros from some row on, as decoders leave what they lack.

    Only where the black level says that a sensor gives no zeros.
    """
    mosaic = frame.mosaic
    if min(frame.camera.black_level) * 65535 < 1 or not mosaic.any():
        return
    last = int(np.flatnonzero(mosaic.any(axis=1))[-1]) + 1
    if len(mosaic) - last >= max(8, _CUT_OFF * len(mosaic)):
        reason = f"truncated, it is all zeros below row {last} of {len(mosaic)}"
        raise RawFileError(path, reason, f"{FETCH_AGAIN}, or read what there is: allow_damaged=True")


def look_at(path: Path, frame: RawFrame) -> None:
    """Warn, once a camera and doubt, where levels can't be those of the data, or the picture is strange."""
    # An odd step keeps every position of the tile.
    step = max(3, math.isqrt(frame.mosaic.size // _SAMPLE) | 1)
    camera, sample = frame.camera, frame.mosaic[::step, ::step]
    black, white, span = float(np.mean(camera.black_level)), camera.white_level, camera.span
    dark, bright = (float(v) for v in np.quantile(sample, (0.001, 0.999)))
    has_plateau = (sample >= bright).mean() > _MANY
    is_below = (sample < black - _BELOW_BLACK * span).mean() > _MANY
    doubts = {
        "all of its pixels are alike": dark == bright,
        "its black level lies above many of its pixels": is_below,
        "its black level lies far below its darkest pixels": dark > black + _FAR_FROM_BLACK * span,
        "nothing in it comes near its white level": bright < black + _FAR_FROM_WHITE * span,
        "it saturates below its white level": has_plateau and bright < white - 0.05 * span,
        "it goes beyond its white level": bright > white + 0.05 * span,
    }
    for doubt in [text for text, holds in doubts.items() if holds][:1]:
        _say(doubt, camera, path.name, dark, bright)


def look_at_picture(picture: torch.Tensor, raw: torch.Tensor | np.ndarray, camera: Camera, name: str) -> None:
    """Warn, once a camera, where hardly anything of a development is neither black nor white.

    ``picture`` is (B, 3, H, W), display domain, of ``raw``, raw domain; ``name`` is what to call it.
    """
    for end, there in {"black": picture <= 0, "white": picture > 0.999}.items():
        if there.count_nonzero() > _BLANK * there.numel():
            ends = float(raw.min()), float(raw.max())
            _say(f"developed, (nearly) all of it is {end}", camera, name, *ends)


def _say(doubt: str, camera: Camera, name: str, dark: float, bright: float) -> None:
    text = (
        f"{camera.name}: {doubt} ({name}: pixels from {dark:.4g} to {bright:.4g}, black level "
        f"{np.mean(camera.black_level):.4g}, white level {camera.white_level:.4g}, as fractions of the "
        "container's full scale: 12 bit in one of 16 end at 0.0625). Is it the right camera?"
    )
    warn_once(camera.name, doubt, text)


def warn_once(about: Hashable, doubt: str, text: str) -> None:
    """Warn with a text, unless the same doubt was told about the same camera, or folder, already."""
    if (about, doubt) not in _SAID:
        _SAID.add((about, doubt))
        warnings.warn(text, RawFileWarning, stacklevel=6)
