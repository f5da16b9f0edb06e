"""Raw-Drone: aerial photos with cars as the sensor saw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from r2l.camera import DRONE
from r2l.datasets import drone_tiles
from r2l.datasets.base import Item, Transform
from r2l.datasets.info import CAR_SHARE, INFO
from r2l.datasets.layout import DatasetError, by_stem, images_in, scale_folder
from r2l.datasets.pixels import decode_all, read_mask
from r2l.datasets.published import RealDataset

TASKS = {"segmentation": ("background", "car"), "classification": ("no car", "car")}


class RawDrone(RealDataset):
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

    Files: tiles are read from ``images_tiles_256`` where they are, else cut from the photos.
    Either way they are decoded once into a cache (below 200 MB an intensity; the variable
    R2L_CACHE, else ``.r2l_cache`` below the root) and memory-mapped from then on. A cut tile is
    named by photo and place: ``00_r03_c05``.

    Uses: how a camera's processing drifts a segmentation model. Limits: 12 photos of one region,
    one season, one camera; tiles of a photo overlap in nothing but look alike.

    Source and licence: Oala et al., "Data Models for Dataset Drift Controls in Machine Learning
    With Optical Images", TMLR 2023; Zenodo, DOI 10.5281/zenodo.5235536; CC BY 4.0.

    Args:
        root: where data lie, the folder above ``drone``; else the variable R2L_DATA, else ./data.
        split: "train", "val", "test" or "all".
        intensity: 0.01, 0.05, 0.1, 0.25, 0.5, 0.75 or 1.0.
        download: fetch what is missing first (see `r2l.datasets.fetch.download.fetch`).
        transform: called on each item.
        task: "segmentation" or "classification".
        tiled: False for whole photos (segmentation only), about 720 MB of cache.
        empty: keep tiles without a car too (segmentation), so that false alarms count.
        view: a pipeline such as "bi,s,ga": items have ``image`` (3, H, W) *display*, developed by
            the authors, in the place of ``raw``.
        scheme: "groups" or "published"; see `r2l.datasets.splits.split_indices`.
        fold: which of the five folds.
        seed: of the split.
        strict: raise for an image without mask or a mask without image; else leave it out.

    Raises:
        DatasetNotFoundError: not there; says how to fetch it.
        DatasetError: a file is damaged or doesn't fit. Damaged images are found on first reading.
        ValueError: an argument that isn't one of those listed, or that doesn't go with the others.
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
        view: str | None = None,
        scheme: str = "groups",
        fold: int = 0,
        seed: int = 0,
        strict: bool = True,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
        if task == "classification" and (not tiled or empty):
            raise ValueError("classification is of tiles, half of them empty: see task=, tiled=")
        if view and not tiled:
            raise ValueError("processed views exist of tiles only: leave tiled=True")
        scale = scale_folder(intensity)
        super().__init__(root, intensity, view, transform, download)
        self.task, self.classes, self.tile = task, TASKS[task], INFO["drone"].tile
        self._raw = {
            "tiles": self.folder / f"images_tiles_{self.tile}" / scale,
            "photos": self.folder / "images_full" / scale,
        }
        # Tiles on disk may be those with cars only.
        wants_empty = empty or task == "classification"
        self._files = self._choose_files(wants_empty) if tiled else "photos"
        self._cuts = tiled and self._files == "photos"
        self._find(strict)
        names, shares, photos = self._list()
        self._chosen = self._choose(shares, photos, empty)
        self._take(
            [names[i] for i in self._chosen],
            shares[self._chosen] > (CAR_SHARE if task == "classification" else 0),
            photos[self._chosen],
            split,
            scheme=scheme,
            fold=fold,
            seed=seed,
            stratified=task == "classification",  # as published
        )

    def _choose_files(self, wants_empty: bool) -> str:
        """Return what to read, "tiles" or "photos": what is wanted, if it is there."""
        order = ("photos", "tiles") if wants_empty else ("tiles", "photos")
        if self.view:
            return "tiles"
        return next((kind for kind in order if images_in(self._raw[kind])), order[0])

    def _find(self, strict: bool) -> None:
        """List images and masks in pairs."""
        masks = {"tiles": f"masks_tiles_{self.tile}", "photos": "masks_full"}[self._files]
        raw = self._raw[self._files]
        parents = self.folder / "processed_views", raw.parent / "processed_views"
        images = by_stem(self._images(raw, parents))
        found = drone_tiles.pair_masks(images, by_stem(images_in(self.folder / masks)))
        if not found:
            raise self._not_found(self.folder / masks)
        stems = self._matched(images, found, self.folder / masks, strict)
        self.files = [images[stem] for stem in stems]
        self._mask_paths = [found[stem] for stem in stems]

    def _list(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return all there is to choose from: names, shares that are car, and photos."""
        stems = [path.stem for path in self.files]
        if self._files == "tiles":
            photos = [_photo(path) for path in self.files]
            return stems, self._whole_masks().mean(axis=(1, 2)), np.array(photos)
        if not self._cuts:
            shares = np.array([mask.mean() for mask in self._whole_masks()])
            return stems, shares, np.arange(len(stems))
        paths = self._mask_paths
        grid = self._array(
            f"shares_{self.tile}",
            paths,
            len(paths),
            lambda: drone_tiles.car_shares(paths, self.tile, self.remedy),
        )
        self._per_photo = grid[0].size
        places = np.indices(grid.shape).reshape(3, -1)
        names = [f"{p:02d}_r{row:02d}_c{column:02d}" for p, row, column in places.T.tolist()]
        return names, grid.ravel(), places[0]

    def _choose(self, shares: np.ndarray, photos: np.ndarray, empty: bool) -> np.ndarray:
        """Return the images of the task among those that `_list` gave."""
        if self.task == "classification":
            chosen = drone_tiles.balanced_tiles(shares, photos)
        elif empty or (not self._cuts and self._files == "photos"):
            chosen = np.arange(len(shares))
        else:
            chosen = np.flatnonzero(shares > 0)
        wants_empty = empty or self.task == "classification"
        if not len(chosen) or (wants_empty and shares[chosen].all()):
            # Tiles on disk are those with cars only: the photos have the others.
            raise self._not_found(self._raw["photos"])
        return chosen

    def _load_frames(self) -> np.ndarray:
        images, masks, remedy = self.files, self._mask_paths, self.remedy
        if self._cuts:
            chosen = self._places()
            cut = partial(
                drone_tiles.cut_photos, images, masks, chosen, self.tile, self.camera, remedy
            )
            return self._cut("tiles", [*images, *masks], cut)
        frames, size = self._decoded(images), self._whole_masks().shape[1:]
        drone_tiles.check_size(masks[0], size, images[0], frames.shape[-2:], remedy)
        return frames

    def _load_masks(self) -> np.ndarray:
        if not self._cuts:
            return self._whole_masks()
        masks, chosen = self._mask_paths, self._places()
        cut = partial(drone_tiles.cut_masks, masks, chosen, self.tile, self.remedy)
        return self._cut("tile_masks", masks, cut)

    def _places(self) -> np.ndarray:
        """Return the chosen tiles as photo and number in it, (N, 2)."""
        return np.column_stack(np.divmod(self._chosen, self._per_photo))

    def _cut(
        self, what: str, sources: Sequence[Path], rows: Callable[[], Iterable[np.ndarray]]
    ) -> np.ndarray:
        """Return the chosen tiles of the photos or masks, cut the first time ever."""
        count = len(self._chosen)
        name = f"{what}_{self.task}_{count}_{self._raw['photos'].name}"
        return self._array(name, sources, count, rows, settings=self._chosen.tolist())

    def _whole_masks(self) -> np.ndarray:
        paths = self._mask_paths
        return self._array(
            f"masks_{paths[0].parent.name}",
            paths,
            len(paths),
            lambda: decode_all(paths, read_mask, self.remedy),
        )

    def read(self, index: int) -> Item:
        """Return the mosaic (or the developed image) with its mask or label.

        Raises:
            DatasetError: some image of the set is damaged; all are decoded together, once.
        """
        row = self.rows[index] if self._cuts else self._chosen[self.rows[index]]
        item = self._item(self._once("frames", self._load_frames)[row])
        if self.task == "classification":
            return {**item, "label": int(self.labels[index])}
        mask = self._once("masks", self._load_masks)[row]
        return {**item, "mask": torch.from_numpy(mask.astype(np.int64))}


def _photo(tile: Path) -> int:
    """Return the photo that a tile's name begins with: 3 for 03_00017.tif."""
    number = tile.stem.split("_")[0]
    if not number.isdigit():
        reason = "the name doesn't begin with the number of a photo (03_00017)"
        raise DatasetError(tile, reason, "Rename it as published, or move it away")
    return int(number)
