"""Your own raw files as a data set: class folders, a CSV of labels, or masks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from r2l.camera import CFA, Camera
from r2l.datasets.base import Item, RawDataset, Transform
from r2l.datasets.layout import IMAGE_SUFFIXES, DatasetError, DatasetNotFoundError, by_stem
from r2l.datasets.pixels import cached_array, read_mask, read_mask_values
from r2l.datasets.splits import split_indices
from r2l.rawfile import RawFrame, RawLayout, read_raw

# Raw formats of today's and yesterday's cameras; what a file really is, `read_raw` finds out.
_CAMERA_FORMATS = """
    3fr ari arw bay cap cr2 cr3 crw dcr erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2
    rwl sr2 srf srw x3f
"""
_HEADERLESS = {".bin", ".dat", ".raw"}
_RAW_SUFFIXES = IMAGE_SUFFIXES | {f".{suffix}" for suffix in _CAMERA_FORMATS.split()} | _HEADERLESS
_COLUMNS = ["path", "label", "group", "mask"]
_KEEP_OR_SKIP = "Add what is missing, or leave such images out (in Python: strict=False)"


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

    >>> import tempfile, r2l
    >>> with tempfile.TemporaryDirectory() as photos:
    ...     Path(photos, "cats").mkdir()
    ...     _ = r2l.write_dng(f"{photos}/cats/1.dng", np.full((22, 22), 0.5), r2l.DRONE)
    ...     RawFolder(photos).classes
    ('cats',)

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
        layout: of headerless frames, which also need ``camera``.

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
        layout: RawLayout | None = None,
    ) -> None:
        if labels is not None and masks is not None:
            raise ValueError("give labels or masks, not both")
        if crop is not None and (crop < 2 or crop % 2):
            raise ValueError(f"crop is {crop}, expected an even number of pixels")
        self.root, self.crop, self.transform = Path(root), crop, transform
        self._cache = None if cache is None else Path(cache)
        self._has_masks, self._is_binary = masks is not None, classes is None
        if masks is not None:
            table = _table_of_masks(self.root, Path(masks), strict)
            self.classes = tuple(classes or ("background", "object"))
        else:
            if labels is None:
                table = _table_of_folders(self.root, strict)
            else:
                table = _table_of_csv(self.root, Path(labels), strict)
            self.classes = _class_names(table["label"], classes, Path(labels or root))
        if table.empty:
            remedy = (
                "Give each image a label or a mask, or leave strict=True to hear which has none"
            )
            raise DatasetNotFoundError(self.root, "no raw file with a label or a mask", remedy)
        self._given, self._layout = camera, layout
        self.camera = camera or read_raw(table["path"].iloc[0]).camera
        numbers = [0 if self._has_masks else self.classes.index(name) for name in table["label"]]
        all_labels = np.array(numbers, np.int64)
        all_groups = pd.factorize(table["group"])[0].astype(np.int64)
        rows = split_indices(split, all_labels, all_groups, fold=fold, seed=seed)
        self.labels, self.groups = all_labels[rows], all_groups[rows]
        self.paths: list[Path] = table["path"].iloc[rows].tolist()
        self.names = np.array([str(path.relative_to(self.root)) for path in self.paths])
        self._masks: list[Path] = table["mask"].iloc[rows].tolist()

    def frame(self, index: int) -> RawFrame:
        """Return the whole frame of an item as its file says, camera and all.

        Raises:
            RawFileError: no usable raw frame.
        """
        path = self.paths[index]
        # Among frames without a header there may be others.
        layout = self._layout if path.suffix.lower() in _HEADERLESS else None
        return read_raw(path, self._given, layout)

    def read(self, index: int) -> Item:
        """Return the mosaic, in line with ``camera``, and its label or mask.

        Raises:
            RawFileError: no usable raw frame.
            DatasetError: a mask that is damaged or doesn't fit, or a frame smaller than the crop.
        """
        item: Item = {"raw": torch.tensor(self._kept("frame", index))[None]}
        if not self._has_masks:
            return {**item, "label": int(self.labels[index])}
        return {**item, "mask": torch.tensor(self._kept("mask", index).astype(np.int64))}

    def _kept(self, what: str, index: int) -> np.ndarray:
        """Return the mosaic or the mask of an item, from the cache if there is one."""
        if self._cache is None:
            return self._load(what, index)
        sources = [self.paths[index], *([self._masks[index]] if self._has_masks else [])]
        settings = [self.camera.to_dict(), self._given is None, self.crop, self.classes]
        settings.append(repr(self._layout))
        name, rows = f"{what}_{self.paths[index].name}", lambda: [self._load(what, index)]
        return cached_array(self._cache, name, sources, 1, rows, settings)[0]

    def _load(self, what: str, index: int) -> np.ndarray:
        frame, path = self.frame(index), self.paths[index]
        whole = frame.mosaic.shape
        pixels = _in_levels(frame, self.camera) if what == "frame" else self._mask(index, whole)
        pixels = pixels[_in_line(whole, frame.camera.cfa, self.camera.cfa)]
        if self.crop is None:
            return np.ascontiguousarray(pixels)
        if min(pixels.shape) < self.crop:
            size = f"{pixels.shape[0]} x {pixels.shape[1]}"
            reason = f"{size} pixels, less than the crop of {self.crop}"
            raise DatasetError(path, reason, "Crop less")
        # Even offsets keep the layout.
        top, left = ((side - self.crop) // 4 * 2 for side in pixels.shape)
        return np.ascontiguousarray(pixels[top : top + self.crop, left : left + self.crop])

    def _mask(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        path, remedy = self._masks[index], "Draw it on the upright picture, whole"
        values = (read_mask if self._is_binary else read_mask_values)(path, remedy)
        if values.shape != shape:
            reason = f"a mask of shape {values.shape} for the {shape} of {self.paths[index]}"
            raise DatasetError(path, reason, remedy)
        if values.max() >= len(self.classes):
            reason = f"a value of {values.max()}, and there are {len(self.classes)} classes"
            raise DatasetError(path, reason, "Give classes=... with a name for each value")
        return values.astype(np.uint8)


# --- which file has which label or mask: tables of path, label, group and mask ---------------------


def _raw_files(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DatasetNotFoundError(root, "no such folder", "Give that of your raw files")
    files = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in _RAW_SUFFIXES]
    files = [p for p in files if not p.name.startswith(".")]
    if not files:
        remedy = (
            "Give a folder of DNG, CR3, NEF, ARW and the like, or of mosaics as TIFF, PNG or NPY"
        )
        raise DatasetNotFoundError(root, "no raw files in it", remedy)
    return files


def _table_of_folders(root: Path, strict: bool) -> pd.DataFrame:
    """Return ``root/<class>/<image>`` as a table; each image is a group of its own."""
    rows = []
    for path in _raw_files(root):
        inside = path.relative_to(root).parts
        if len(inside) > 1:
            rows.append((path, inside[0], str(path), None))
        elif strict:
            raise DatasetError(path, "an image outside of the class folders", _KEEP_OR_SKIP)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _table_of_csv(root: Path, csv: Path, strict: bool) -> pd.DataFrame:
    """Return the table in a CSV with the columns file (below ``root``), label and, maybe, group."""
    try:
        table = pd.read_csv(csv, dtype=str)
    except (OSError, ValueError) as error:
        remedy = "Give a CSV with columns file and label"
        raise DatasetError(csv, f"no readable CSV ({error})", remedy) from None
    if not {"file", "label"} <= set(table.columns):
        names = textwrap.shorten(", ".join(table.columns), 200, placeholder=" ...")
        reason = f"columns {names}; expected file and label"
        raise DatasetError(csv, reason, "Name the columns file, label and (if known) group")
    empty = table[["file", "label"]].isna().any(axis=1)
    if empty.any():
        # The head is line 1.
        reason = f"no file or no label in line {empty.to_numpy().argmax() + 2}"
        raise DatasetError(csv, reason, "Fill it in, or take the line out")
    for twice in table.loc[table["file"].duplicated(), "file"]:
        raise DatasetError(csv, f"two labels for {twice}", "Keep one of the two")
    files = _raw_files(root)
    table["path"] = [root / name for name in table["file"]]
    there = table["path"].isin(files)
    if strict:
        for name in table.loc[~there, "file"]:
            raise DatasetError(csv, f"a label for {name}, which is not in {root}", _KEEP_OR_SKIP)
        _refuse_rest(files, table["path"], f"an image without a label in {csv}")
    groups = table["group"] if "group" in table else table["file"]
    return table.assign(group=groups.fillna(table["file"]), mask=None)[there][_COLUMNS]


def _table_of_masks(root: Path, folder: Path, strict: bool) -> pd.DataFrame:
    """Return images and their masks (PNG of the same stem) as a table, without labels."""
    if not folder.is_dir():
        raise DatasetNotFoundError(folder, "no such folder", "Give that of the masks")
    masks, inside = by_stem(sorted(folder.glob("*.png"))), folder.resolve()
    images = by_stem(p for p in _raw_files(root) if inside not in p.resolve().parents)
    both = [stem for stem in images if stem in masks]
    if strict:
        pairs = [(images[stem], masks[stem]) for stem in both]
        _refuse_rest(images.values(), [p for p, _ in pairs], f"an image without a mask in {folder}")
        _refuse_rest(masks.values(), [p for _, p in pairs], f"a mask without an image in {root}")
    rows = [(images[stem], None, str(images[stem]), masks[stem]) for stem in both]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _refuse_rest(paths: Iterable[Path], taken: Iterable[Path], reason: str) -> None:
    """Raise a DatasetError about the first of the files that are not ``taken``."""
    for path in sorted(set(paths) - set(taken)):
        raise DatasetError(path, reason, _KEEP_OR_SKIP)


def _class_names(labels: pd.Series, classes: Sequence[str] | None, source: Path) -> tuple[str, ...]:
    names = sorted(set(labels))
    unknown = [name for name in names if classes is not None and name not in classes]
    if unknown:
        reason = f"labels that are not among the classes: {', '.join(unknown)}"
        raise DatasetError(source, reason, "Add them to classes=..., or leave the argument out")
    return tuple(classes or names)


# --- frames of another camera than the set's --------------------------------------------------------


def _in_line(shape: tuple[int, ...], has: CFA, wanted: CFA) -> tuple[slice, slice]:
    """Return the window of a mosaic (H, W) in which the layout ``has`` reads ``wanted``.

    It starts at the first or second row and column and stays even.
    """
    rows, columns = has.shift_to(wanted)
    return slice(rows, shape[0] - rows), slice(columns, shape[1] - columns)


def _in_levels(frame: RawFrame, camera: Camera) -> np.ndarray:
    """Return a mosaic (H, W), *raw* domain, with the black and white levels of ``camera``.

    Unchanged if they are the frame's own already; values beyond [0, 1] are clipped.
    """
    has, mosaic = frame.camera, frame.mosaic
    shift = has.cfa.shift_to(camera.cfa)
    # Of the positions that these become once the mosaic is in line.
    targets = np.roll(np.reshape(camera.black_level, (2, 2)), shift, (0, 1)).ravel().tolist()
    result = np.empty_like(mosaic)
    for position, (black, target) in enumerate(zip(has.black_level, targets, strict=True)):
        site = slice(position // 2, None, 2), slice(position % 2, None, 2)
        if (black, has.white_level) == (target, camera.white_level):
            result[site] = mosaic[site]
            continue
        scale = (camera.white_level - target) / (has.white_level - black)
        result[site] = np.clip((mosaic[site] - black) * scale + target, 0, 1)
    return result
