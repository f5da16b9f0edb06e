"""Raw-Drone's photos and masks: which tiles they hold, which of them a task takes, cutting them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r2l.camera import Camera
from r2l.datasets.info import CAR_SHARE
from r2l.datasets.layout import DatasetError
from r2l.datasets.pixels import read_mask, read_steps

# Fixed, so that every split, fold and seed is one of the same tiles.
_BALANCE_SEED = 0


def cut(pixels: np.ndarray, tile: int) -> np.ndarray:
    """Return the whole tiles of (H, W), left to right, then down: (N, tile, tile), a copy."""
    rows, columns = (side // tile for side in pixels.shape)
    whole = pixels[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile)
    return whole.swapaxes(1, 2).reshape(-1, tile, tile)


def car_shares(masks: Sequence[Path], tile: int, remedy: str) -> Iterator[NDArray[np.float64]]:
    """Read the masks (H, W) of photos; yield the share of each tile that is car, (rows, columns).

    Raises:
        DatasetError: a mask is damaged, smaller than a tile, or of another size than the first.
    """
    shape = None
    for path in masks:
        mask = read_mask(path, remedy)
        shape = shape or mask.shape
        if mask.shape != shape or min(mask.shape) < tile:
            reason = f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels"
            what = f"{shape[0]} x {shape[1]}, as {masks[0].name}, and a tile or more"
            raise DatasetError(path, f"{reason}, expected {what}", remedy)
        grid = mask.shape[0] // tile, mask.shape[1] // tile
        yield cut(mask, tile).mean(axis=(1, 2)).reshape(grid)


def balanced_tiles(shares: np.ndarray, photos: np.ndarray) -> NDArray[np.int64]:
    """Return the sorted tiles of the classification task: cars, and as many tiles without.

    A tile counts as car above 1 % and as empty at 0; the few between are left out. The balance is
    kept within each photo, as published, so that the photo tells nothing about the label.

    Args:
        shares: share of each tile that is car, (N,).
        photos: photo of each tile, (N,).
    """
    rng = np.random.default_rng(_BALANCE_SEED)
    chosen: list[int] = []
    for photo in np.unique(photos):
        here = photos == photo
        sides = [np.flatnonzero(here & (shares > CAR_SHARE)), np.flatnonzero(here & (shares == 0))]
        count = min(map(len, sides))
        for side in sides:
            chosen += rng.permutation(side)[:count].tolist()
    return np.sort(np.array(chosen, np.int64))


def cut_photos(
    photos: Sequence[Path],
    masks: Sequence[Path],
    chosen: np.ndarray,
    tile: int,
    camera: Camera,
    remedy: str,
) -> Iterator[np.ndarray]:
    """Yield the chosen tiles of photos, undeveloped: uint16 (tile, tile), *raw* domain.

    Args:
        photos: the raw files.
        masks: their masks, which have to have their size.
        chosen: (N, 2) photo and tile in it, ordered by photo.
        tile: side of a tile.
        camera: layout of the photos.
        remedy: what to do about a damaged file.

    Raises:
        DatasetError: a photo is damaged, or its mask has another size.
    """
    for number, (photo, mask) in enumerate(zip(photos, masks, strict=True)):
        wanted = chosen[chosen[:, 0] == number, 1]
        if not len(wanted):
            continue
        steps = read_steps(photo, remedy, camera)
        check_size(mask, read_mask(mask, remedy).shape, photo, steps.shape, remedy)
        yield from cut(steps, tile)[wanted]


def cut_masks(
    masks: Sequence[Path], chosen: np.ndarray, tile: int, remedy: str
) -> Iterator[np.ndarray]:
    """Yield the masks of the chosen tiles, uint8 (tile, tile), 1 for car; see `cut_photos`."""
    for number, mask in enumerate(masks):
        wanted = chosen[chosen[:, 0] == number, 1]
        if len(wanted):
            yield from cut(read_mask(mask, remedy), tile)[wanted]


def check_size(
    mask: Path, mask_shape: tuple[int, ...], image: Path, shape: tuple[int, ...], remedy: str
) -> None:
    """Raise a DatasetError that names ``mask`` if it hasn't the size of its image."""
    if mask_shape != shape:
        reason = (
            f"a mask of {mask_shape[0]} x {mask_shape[1]} pixels for the "
            f"{shape[0]} x {shape[1]} of {image}"
        )
        raise DatasetError(mask, reason, remedy)


def pair_masks(images: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, Path]:
    """Return masks by the stems of their images: of the same stem, or the one that contains it.

    Masks of no image stay under their own stem.
    """
    paired: dict[str, Path] = {}
    left = dict(masks)
    for stem in images:
        if stem in left:
            paired[stem] = left.pop(stem)
    for stem in images:
        containing = [other for other in left if stem in other]
        if stem not in paired and len(containing) == 1:
            paired[stem] = left.pop(containing[0])
    return {**paired, **left}
