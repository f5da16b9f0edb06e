"""Files of pixels to arrays of one form, for the real data sets: 16-bit steps, and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from r2l.camera import Camera
from r2l.datasets.layout import DatasetError
from r2l.plainfile import load_npy, load_tiff, open_png
from r2l.rawfile import RawFileError, read_raw

_FULL_SCALE = np.float32(65535)


def image_tensor(steps: np.ndarray) -> torch.Tensor:
    """Return uint16 steps (H, W) or (3, H, W) as float32 (1 or 3, H, W) in [0, 1]."""
    values = steps.astype(np.float32)
    values /= _FULL_SCALE
    return torch.from_numpy(values if values.ndim == 3 else values[None])


def read_steps(path: Path, remedy: str, camera: Camera | None = None) -> np.ndarray:
    """Read a mosaic as uint16 (H, W), *raw* domain, fractions of 65535.

    Raises:
        DatasetError: damaged, or no mosaic.
    """
    try:
        mosaic = read_raw(path, camera).mosaic
    except RawFileError as error:
        raise DatasetError(path, error.args[1], remedy) from error
    return np.round(mosaic * _FULL_SCALE).astype(np.uint16)


def read_mask_values(path: Path, remedy: str) -> np.ndarray:
    """Read a mask as the values in its PNG, (H, W) or (H, W, channels).

    Raises:
        DatasetError: damaged, or no PNG.
    """
    try:
        with open_png(path) as image:
            return np.asarray(image)
    except Exception as error:
        # Decoders fail in many ways on damaged files.
        raise DatasetError(path, f"no readable mask ({error})", remedy) from error


def read_mask(path: Path, remedy: str) -> np.ndarray:
    """Read a mask as uint8 (H, W): 1 where any colour of the picture is above 0.

    Raises:
        DatasetError: damaged, or no picture.
    """
    values = read_mask_values(path, remedy)
    if values.ndim == 3:
        # Opacity says nothing: a mask saved as RGBA is opaque all over.
        colours = values[..., : values.shape[2] - (values.shape[2] in (2, 4))]
        values = colours.max(axis=2)
    return (values > 0).astype(np.uint8)


def read_view(path: Path, remedy: str) -> np.ndarray:
    """Read a developed image as uint16 (3, H, W), *display* domain, fractions of 65535.

    Raises:
        DatasetError: damaged, or not of three colours.
    """
    try:
        if path.suffix.lower() == ".png":
            with open_png(path) as image:
                values = np.asarray(image.convert("RGB"))
        elif path.suffix.lower() == ".npy":
            values = load_npy(path)
        else:
            values = load_tiff(path)
    except Exception as error:
        raise DatasetError(path, f"no readable image ({error})", remedy) from error
    if values.ndim == 3 and values.shape[2] == 3:
        values = np.moveaxis(values, 2, 0)
    if values.ndim != 3 or len(values) != 3:
        raise DatasetError(path, f"an array of shape {values.shape}, not three colours", remedy)
    if values.dtype.kind not in "uf" or not np.isfinite(values).all():
        reason = f"values of type {values.dtype} that are no brightness, or not finite"
        raise DatasetError(path, reason, remedy)
    full = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    return np.round(np.clip(values / full, 0, 1) * 65535).astype(np.uint16)


def decode_all(
    paths: Sequence[Path], read: Callable[[Path, str], np.ndarray], remedy: str
) -> Iterator[np.ndarray]:
    """Read files one by one and see that each has the size of the first.

    Raises:
        DatasetError: damaged, or of another size.
    """
    shape: tuple[int, ...] | None = None
    for path in paths:
        values = read(path, remedy)
        shape = shape or values.shape
        if values.shape != shape:
            reason = f"{_size(values.shape)} pixels, and {paths[0].name} has {_size(shape)}"
            raise DatasetError(path, reason, remedy)
        yield values


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]} x {shape[-1]}"
