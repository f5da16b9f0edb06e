"""Your own raw files as a data set: class folders, a CSV of labels, or masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from r2l.camera import CFA, Camera
from r2l.datasets.base import Item, RawDataset, Transform
from r2l.datasets.cache import cached_array
from r2l.datasets.folder_tables import table_of_csv, table_of_folders, table_of_masks
from r2l.datasets.layout import DatasetError, DatasetNotFoundError
from r2l.datasets.pixels import read_mask, read_mask_values
from r2l.datasets.splits import split_indices
from r2l.rawfile import RawFrame, read_raw


class RawFolder(RawDataset):
    """Own raw files of any format that `r2l.rawfile.read_raw` takes; items as in `RawDataset`.

    Labels come from one of three places::

        RawFolder("photos")                      photos/<class>/<image>: a folder is a class
        RawFolder("photos", labels="cells.csv")  columns file, label and, if known, group
        RawFolder("photos", masks="masks")       masks/<image's stem>.png

    One camera describes all frames, so that one ISP develops them: the given one, else that of the
    first file. A frame of another layout (held upright, say) loses a row or a column at each side
    to bring its layout in line; other black and white levels are mapped onto those of ``camera``.
    White balance and matrix are ``camera``'s; a file's own are in ``frame(index).camera``.

    Args:
        root: folder of the images.
        labels: CSV file; "file" is a path below ``root``.
        masks: folder of masks, each as high and wide as its upright frame.
        camera: calibration of all frames. TIFF, PNG and NPY files say nothing and need it.
        classes: names of labels; by default those found, in order of the alphabet. With masks,
            names of the values in them; by default ("background", "object"), object above 0.
        crop: cut this many pixels (even) square out of the middle, so that frames of several sizes
            make a batch.
        split: "all", "train", "val" or "test", of whole groups; see `r2l.datasets.splits`.
        fold: which of the five folds.
        seed: of the split.
        transform: called on each item.
        cache: folder to keep decoded frames in (four bytes a pixel); None decodes at each reading.
        strict: raise for an image without label or mask, or one without image; else leave it out.

    Raises:
        DatasetNotFoundError: no folder, or no raw file in it.
        DatasetError: labels, masks and images don't fit.
        RawFileError: the first file is no usable raw frame (the others are read when asked for).
        ValueError: both labels and masks, an odd crop, or an unknown split.
    """

    def __init__(
        self,
        root: str | Path,
        labels: str | Path | None = None,
        masks: str | Path | None = None,
        *,
        camera: Camera | None = None,
        classes: Sequence[str] | None = None,
        crop: int | None = None,
        split: str = "all",
        fold: int = 0,
        seed: int = 0,
        transform: Transform | None = None,
        cache: str | Path | None = None,
        strict: bool = True,
    ) -> None:
        if labels is not None and masks is not None:
            raise ValueError("give labels or masks, not both")
        if crop is not None and (crop < 2 or crop % 2):
            raise ValueError(f"crop is {crop}, expected an even number of pixels")
        self.root, self.crop, self.transform = Path(root), crop, transform
        self.cache = None if cache is None else Path(cache)
        if masks is not None:
            table = table_of_masks(self.root, Path(masks), strict)
            self.classes = tuple(classes or ("background", "object"))
            self._binary = classes is None
        else:
            place = self.root if labels is None else Path(labels)
            table = (
                table_of_folders(self.root, strict)
                if labels is None
                else table_of_csv(self.root, place, strict)
            )
            self.classes = _class_names(table["label"], classes, place)
        if table.empty:
            raise DatasetNotFoundError(f"{self.root}: no raw file with a label or a mask")
        self._given = camera
        self.camera = camera or read_raw(table["path"].iloc[0]).camera
        is_mask = masks is not None
        known = [0 if is_mask else self.classes.index(name) for name in table["label"]]
        self._set_split(table, np.array(known, np.int64), split, fold, seed, is_mask)

    def _set_split(
        self,
        table: pd.DataFrame,
        labels: np.ndarray,
        split: str,
        fold: int,
        seed: int,
        is_mask: bool,
    ) -> None:
        groups = pd.factorize(table["group"])[0].astype(np.int64)
        rows = split_indices(split, labels, groups, fold=fold, seed=seed)
        self.paths: list[Path] = table["path"].iloc[rows].tolist()
        self._mask_paths: list[Path] | None = table["mask"].iloc[rows].tolist() if is_mask else None
        self.labels, self.groups = labels[rows], groups[rows]

    def frame(self, index: int) -> RawFrame:
        """Return the whole frame of an item as its file says, camera and all.

        Raises:
            RawFileError: no usable raw frame.
        """
        return read_raw(self.paths[index], self._given)

    def read(self, index: int) -> Item:
        """Return the mosaic, in line with ``camera``, and its label or mask.

        Raises:
            RawFileError: no usable raw frame.
            DatasetError: a mask that is damaged or doesn't fit, or a frame smaller than the crop.
        """
        if self._mask_paths is None:
            mosaic = self._kept("frame", index, [self.paths[index]])
            return {"raw": torch.tensor(mosaic)[None], "label": int(self.labels[index])}
        sources = [self.paths[index], self._mask_paths[index]]
        mosaic, mask = (self._kept(what, index, sources) for what in ("frame", "mask"))
        return {"raw": torch.tensor(mosaic)[None], "mask": torch.tensor(mask.astype(np.int64))}

    def _kept(self, what: str, index: int, sources: list[Path]) -> np.ndarray:
        """Return the mosaic or the mask of an item, from the cache if there is one."""
        if self.cache is None:
            return self._load(what, index)
        settings = [self.camera.to_dict(), self._given is None, self.crop, self.classes]
        name = f"{what}_{self.paths[index].name}"
        return cached_array(
            self.cache, name, sources, 1, lambda: [self._load(what, index)], settings
        )[0]

    def _load(self, what: str, index: int) -> np.ndarray:
        frame, path = self.frame(index), self.paths[index]
        whole = frame.mosaic.shape
        pixels = in_levels(frame, self.camera) if what == "frame" else self._mask(index, whole)
        window = in_line(whole, frame.camera.cfa, self.camera.cfa)
        pixels = pixels[window]
        if self.crop is None:
            return np.ascontiguousarray(pixels)
        if min(pixels.shape) < self.crop:
            size = f"{pixels.shape[0]} x {pixels.shape[1]}"
            reason, remedy = f"{size} pixels, less than the crop of {self.crop}", "Crop less"
            raise DatasetError(path, reason, remedy)
        # Even offsets keep the layout.
        top, left = ((side - self.crop) // 4 * 2 for side in pixels.shape)
        return np.ascontiguousarray(pixels[top : top + self.crop, left : left + self.crop])

    def _mask(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        assert self._mask_paths is not None
        path, remedy = self._mask_paths[index], "Draw it on the upright picture, whole"
        values = (read_mask if self._binary else read_mask_values)(path, remedy)
        if values.shape != shape:
            reason = f"a mask of shape {values.shape} for the {shape} of {self.paths[index]}"
            raise DatasetError(path, reason, remedy)
        if values.max() >= len(self.classes):
            reason = f"a value of {values.max()}, and there are {len(self.classes)} classes"
            raise DatasetError(path, reason, "Give classes=... with a name for each value")
        return values.astype(np.uint8)


def _class_names(labels: pd.Series, classes: Sequence[str] | None, place: Path) -> tuple[str, ...]:
    found = sorted(set(labels))
    unknown = [name for name in found if classes is not None and name not in classes]
    if unknown:
        reason = f"labels that are not among the classes: {', '.join(unknown)}"
        raise DatasetError(place, reason, "Add them to classes=..., or leave the argument out")
    return tuple(classes or found)


def in_line(shape: tuple[int, ...], has: CFA, wanted: CFA) -> tuple[slice, slice]:
    """Return the window of a mosaic (H, W) in which the layout ``has`` reads ``wanted``.

    It starts at the first or second row and column and stays even.
    """
    for rows in (0, 1):
        for columns in (0, 1):
            if has.shifted(rows, columns) is wanted:
                return slice(rows, shape[0] - rows), slice(columns, shape[1] - columns)
    raise AssertionError("every Bayer layout is a shift of every other")


def in_levels(frame: RawFrame, camera: Camera) -> np.ndarray:
    """Return a mosaic (H, W), *raw* domain, with the black and white levels of ``camera``.

    Unchanged if they are the frame's own already; values beyond [0, 1] are clipped.
    """
    has, mosaic = frame.camera, frame.mosaic
    window = in_line((2, 2), has.cfa, camera.cfa)
    rows, columns = window[0].start, window[1].start
    result = np.empty_like(mosaic)
    for position in range(4):
        y, x = divmod(position, 2)
        # The position that this one becomes once the mosaic is in line.
        target = camera.black_level[2 * ((y - rows) % 2) + (x - columns) % 2]
        black, site = has.black_level[position], (slice(y, None, 2), slice(x, None, 2))
        if (black, has.white_level) == (target, camera.white_level):
            result[site] = mosaic[site]
            continue
        scale = (camera.white_level - target) / (has.white_level - black)
        result[site] = np.clip((mosaic[site] - black) * scale + target, 0, 1)
    return result
