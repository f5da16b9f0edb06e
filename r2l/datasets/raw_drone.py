"""Raw-Drone: aerial photos with cars as the sensor saw them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r2l.camera import DRONE
from r2l.datasets import layout
from r2l.datasets.pixels import decode_all, read_mask
from r2l.datasets.published import PublishedDataset, numbers_in
from r2l.datasets.splits import Item, Transform
from r2l.files import choose

_TILE = layout.INFO["drone"].tile


class RawDrone(PublishedDataset):
    """Aerial tiles with cars, as raw mosaics; items as in `RawDataset`, with a mask or a label.

    What it is: 548 tiles of 256x256 with masks, cut from 12 photos of 3648x5472, each at seven
    exposures (intensity 1.0, the base, down to 0.01), and the base developed by the twelve static
    pipelines. A photo has 294 tiles; published are those with a car.

    How it was recorded: a DJI Mavic 2 Pro with a Hasselblad L1D-20c (Sony IMX183) at 250 m, 6 cm a
    pixel, f/8, ISO 200; 12 bit, left-justified in 16. Camera: `DRONE`.

    Tasks: ``segmentation`` gives ``mask`` (H, W) int64, 1 for car. ``classification`` gives
    ``label``, 1 for a tile that cars cover by more than 1 %, 0 for one without, as many of each
    from each photo (465 + 465 in all); it needs photos, or tiles without cars beside the others.

    Groups: the photo. The default splits never tear one apart; the published study's did
    (``scheme="published"``).

    Files: tiles are read from ``images_tiles_256`` where they are, else cut from the photos; the
    cache takes below 200 MB an intensity. A cut tile is named by photo and place: ``00_r03_c05``.

    Uses: how a camera's processing drifts a segmentation model. Limits: 12 photos of one region,
    one season, one camera; tiles of a photo overlap in nothing but look alike. Source and licence:
    ``r2l.datasets.INFO["drone"]``.

    Errors and attributes are those of `PublishedDataset`.

    >>> RawDrone.if_present(root="no/such/folder") is None
    True

    Args:
        root, split, intensity, download, transform: as of `PublishedDataset`.
        task: "segmentation" or "classification".
        tiled: False for whole photos (segmentation only), about 720 MB of cache.
        empty: keep tiles without a car too (segmentation), so that false alarms count.
        **options: ``view``, ``scheme``, ``fold``, ``seed`` and ``strict`` of `PublishedDataset`.
    """

    kind = "drone"
    camera = DRONE

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        intensity: float = 1.0,
        download: bool = False,
        transform: Transform | None = None,
        *,
        task: str = "segmentation",
        tiled: bool = True,
        empty: bool = False,
        **options: Any,
    ) -> None:
        self.classes = choose("task", task, layout.DRONE_TASKS)
        if task == "classification" and (not tiled or empty):
            raise ValueError("classification is of tiles, half of them empty: see task=, tiled=")
        if options.get("view") and not tiled:
            raise ValueError("processed views exist of tiles only: leave tiled=True")
        self.task, self.is_stratified = task, task == "classification"  # as published
        self._tiled, self._empty = tiled, empty
        super().__init__(root, split, intensity, download, transform, **options)

    def _list(self, strict: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raw = {
            "tiles": self.folder / f"images_tiles_{_TILE}" / self._scale,
            "photos": self.folder / "images_full" / self._scale,
        }
        # Tiles on disk may be those with cars only.
        wants_empty = self._empty or self.task == "classification"
        order = ["photos", "tiles"] if wants_empty else ["tiles", "photos"]
        if not self._tiled or self.view:
            order = ["tiles" if self.view else "photos"]
        source = next((kind for kind in order if layout.images_in(raw[kind])), order[0])
        self._cuts = self._tiled and source == "photos"
        self._pair(raw[source], f"masks_tiles_{_TILE}" if source == "tiles" else "masks_full", strict)
        names, shares, photos = self._candidates()
        if self.task == "classification":
            self._chosen = _balanced(shares, photos)
        else:
            self._chosen = np.flatnonzero((shares > 0) | self._empty | (not self._tiled))
        shares, photos = shares[self._chosen], photos[self._chosen]
        if not len(shares) or (wants_empty and shares.all()):
            # Tiles on disk are those with cars only: the photos have the others.
            raise self._not_found(raw["photos"])
        labels = shares > (layout.CAR_SHARE if self.task == "classification" else 0)
        return np.array(names)[self._chosen], labels, photos

    def _pair(self, raw: Path, masks_folder: str, strict: bool) -> None:
        views = self.folder / "processed_views", raw.parent / "processed_views"
        folder, images = self.folder / masks_folder, layout.by_stem(self._images(raw, *views))
        masks = layout.pair_masks(images, layout.by_stem(layout.images_in(folder)))
        if not masks:
            raise self._not_found(folder)
        stems = self._matched(images, masks, folder, strict)
        self.files, self._masks = [images[stem] for stem in stems], [masks[stem] for stem in stems]

    def _candidates(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return all there is to choose from: names, shares that are car, and photos."""
        grid = self._array(f"shares_{_TILE if self._cuts else 'whole'}", self._masks, self._read_shares)
        self._per_file, spots = grid[0].size, np.indices(grid.shape).reshape(3, -1)
        names, photos = [path.stem for path in self.files], spots[0]
        if self._cuts:
            names = [f"{p:02d}_r{row:02d}_c{column:02d}" for p, row, column in spots.T.tolist()]
        elif self._tiled:
            photos = np.ravel([numbers_in(path, r"(\d+)(?:_|$)", "03_00017") for path in self.files])
        return names, grid.ravel(), photos

    def _read_shares(self) -> Iterator[np.ndarray]:
        """Yield the share of each tile of a file that is car, (rows, columns)."""
        masks = decode_all(self._masks, read_mask, self.remedy)
        for path, mask in zip(self._masks, masks, strict=True):
            rows, columns = (side // _TILE if self._cuts else 1 for side in mask.shape)
            if rows * columns == 0:
                size = "{} x {}".format(*mask.shape)
                reason = f"a mask of {size} pixels, expected a tile of {_TILE} or more"
                raise layout.DatasetError(path, reason, self.remedy)
            yield self._tiles_of(mask).mean(axis=(1, 2)).reshape(rows, columns)

    def _tiles_of(self, values: np.ndarray) -> np.ndarray:
        """Return the whole tiles of a photo's (H, W), left to right, then down: (N, tile, tile), a copy.

        Of a file that is an item itself, the one that it is.
        """
        if not self._cuts:
            return values[None]
        rows, columns = (side // _TILE for side in values.shape)
        whole = values[: rows * _TILE, : columns * _TILE].reshape(rows, _TILE, columns, _TILE)
        return whole.swapaxes(1, 2).reshape(-1, _TILE, _TILE)

    def _read_mask(self, number: int) -> np.ndarray:
        return read_mask(self._masks[number], self.remedy)

    def _read_image(self, number: int) -> np.ndarray:
        image, mask = self._decode(self.files[number], self.remedy), self._read_mask(number)
        if mask.shape != image.shape[-2:]:
            size, wanted = ("{} x {}".format(*values.shape[-2:]) for values in (mask, image))
            reason = f"a mask of {size} pixels for the {wanted} of {self.files[number]}"
            raise layout.DatasetError(self._masks[number], reason, self.remedy)
        return image

    def _kept(self, what: str, sources: Sequence[Path], read: Callable[[int], np.ndarray]) -> np.ndarray:
        """Return the chosen tiles of what ``read`` gives of each file, cut the first time ever."""
        numbers, tiles = np.divmod(self._chosen, self._per_file)

        def rows() -> Iterator[np.ndarray]:
            for number in np.unique(numbers).tolist():
                yield from self._tiles_of(read(number))[tiles[numbers == number]]

        name = f"{what}_{self.task}_{len(tiles)}_{self._scale}"
        return self._array(name, sources, rows, count=len(tiles), settings=self._chosen.tolist())

    def read(self, index: int) -> Item:
        """Return the mosaic (or the developed image) with its mask or label; errors as of the class."""
        row, images = self.rows[index], self._kept("tiles", [*self.files, *self._masks], self._read_image)
        item = self._item(images[row])
        if self.task == "classification":
            return {**item, "label": int(self.labels[index])}
        masks = self._kept("tile_masks", self._masks, self._read_mask)
        return {**item, "mask": torch.from_numpy(masks[row].astype(np.int64))}


def _balanced(shares: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Return the sorted tiles of the classification task: cars (above 1 %), and as many tiles without (0).

    The balance is kept within each photo, as published, so that the photo tells nothing about the label.
    """
    rng = np.random.default_rng(0)  # whatever the split, fold and seed, the same tiles
    chosen: list[int] = []
    for photo in np.unique(photos):
        here = photos == photo
        sides = [np.flatnonzero(here & (shares > layout.CAR_SHARE)), np.flatnonzero(here & (shares == 0))]
        count = min(map(len, sides))
        for side in sides:
            chosen += rng.permutation(side)[:count].tolist()
    return np.sort(np.array(chosen, np.int64))
