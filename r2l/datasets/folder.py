"""Your own raw files as a data set: class folders, a CSV of labels, or masks."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from r2l.camera import CFA, Camera
from r2l.datasets.labels import HEADERLESS, labelled_files
from r2l.datasets.layout import DatasetError, DatasetNotFoundError
from r2l.datasets.pixels import cached_array, object_of, read_mask_values
from r2l.datasets.splits import Item, RawDataset, Transform, split_indices
from r2l.files import local_path
from r2l.rawfile import RawFileError, RawFrame, RawLayout, read_raw


class RawFolder(RawDataset):
    """Own raw files of any format that `r2l.rawfile.read_raw` takes; items as in `RawDataset`.

    Labels come from one of three places::

        RawFolder("photos")                      photos/<class>/<image>: a folder is a class
        RawFolder("photos", labels="cells.csv")  columns file, label and, if known, group
        RawFolder("photos", masks="masks")       masks/<image's stem>.png (or .tif, or _mask.png)

    One camera describes all frames, so that one ISP develops them: the given one, else that of the
    first file. A frame of another layout (held upright, say) loses a row or a column at each side
    to bring its layout in line; other black and white levels are mapped onto those of ``camera``.
    White balance and matrix are ``camera``'s; a file's own are in ``frame(index).camera``.
    Images that are one picture (a copy, a raw file beside its TIFF) are one group.

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
        split, fold, seed: "all", "train", "val" or "test", of whole groups; see `r2l.datasets.splits`.
        cache: folder to keep decoded frames in (four bytes a pixel); None decodes at each reading.
        strict: as of `PublishedDataset`.
        layout: of headerless frames, which also need ``camera``.
        own_colours: scale the colours of each frame so that ``camera``'s white balance does with
            them what the file's own would do with the file.
        skip_broken: `Frames.of` leaves out frames that can't be read; else they are an error.
        foreground: values of the masks that are the object; by default all above 0.
        lens_corrections: apply what DNGs carry to correct lens and sensor, see `r2l.rawfile.read_raw`.

    Raises:
        DatasetNotFoundError: no folder, or no raw file in it.
        DatasetError: labels, masks and images don't fit.
        RawFileError: the first file is no usable raw frame (the others are read when asked for).
        ValueError: options that exclude each other, an odd crop, or an unknown split.

    Warns:
        UserWarning: class folders without raw files.
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
        own_colours: bool = False,
        skip_broken: bool = False,
        foreground: Sequence[int] | None = None,
        lens_corrections: bool = False,
    ) -> None:
        if labels is not None and masks is not None:
            raise ValueError("give labels or masks, not both")
        if own_colours and camera is not None:
            raise ValueError("own colours are the files': leave out the camera, or own_colours")
        if crop is not None and (crop < 2 or crop % 2):
            raise ValueError(f"crop is {crop}, expected an even number of pixels")
        self.root, self.crop, self.transform = local_path(root), crop, transform
        self.skip_broken, self._own_colours, self._foreground = skip_broken, own_colours, foreground
        self._lens_corrections = lens_corrections
        self._cache = None if cache is None else local_path(cache)
        self._has_masks, self._is_binary = masks is not None, classes is None
        source, drawn = (None if path is None else local_path(path) for path in (labels, masks))
        table, wrong, rest = labelled_files(self.root, source, drawn)
        if errors := [*wrong, *(rest if strict else ())]:
            raise errors[0]
        if table.empty:
            remedy = "Give each image a label or a mask, or leave strict=True to hear which has none"
            raise DatasetNotFoundError(self.root, "no raw file with a label or a mask", remedy)
        if self._has_masks:
            self.classes = tuple(classes or ("background", "object"))
        else:
            self.classes = _class_names(table["label"], classes, source or self.root)
        self._given, self._layout = camera, layout
        self.camera = camera or self._first_camera(table["path"])
        numbers = [0 if self._has_masks else self.classes.index(name) for name in table["label"]]
        all_labels, all_groups = np.array(numbers, np.int64), table["group"].to_numpy(np.int64)
        rows = split_indices(split, all_labels, all_groups, fold=fold, seed=seed)
        self.labels, self.groups = all_labels[rows], all_groups[rows]
        self.paths: list[Path] = table["path"].iloc[rows].tolist()
        self.names = np.array([str(path.relative_to(self.root)) for path in self.paths])
        self._masks: list[Path] = table["mask"].iloc[rows].tolist()

    def _first_camera(self, paths: pd.Series) -> Camera:
        *early, last = paths if self.skip_broken else paths[:1]
        for path in early:
            with suppress(RawFileError):
                return read_raw(path).camera
        return read_raw(last).camera

    @property
    def sources(self) -> list[Path]:
        """The files that the items are read from: images, and masks if there are any."""
        return [*self.paths, *(self._masks if self._has_masks else [])]

    def frame(self, index: int) -> RawFrame:
        """Return the whole frame of an item as its file says, camera and all.

        Raises:
            RawFileError: no usable raw frame.
        """
        path = self.paths[index]
        # Among frames without a header there may be others.
        layout = self._layout if path.suffix.lower() in HEADERLESS else None
        return read_raw(path, self._given, layout, lens_corrections=self._lens_corrections)

    def read(self, index: int) -> Item:
        """Return the mosaic, in line with ``camera``, and its label or mask; errors as `frame`.

        Raises:
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
        settings = [self.camera.to_dict(), self._given is None, self.crop, self.classes, repr(self._layout)]
        settings += [self._own_colours, self._foreground, self._lens_corrections]
        name, rows = f"{what}_{self.paths[index].name}", lambda: [self._load(what, index)]
        return cached_array(self._cache, name, sources, rows, 1, settings)[0]

    def _load(self, what: str, index: int) -> np.ndarray:
        frame = self.frame(index)
        whole = frame.mosaic.shape
        is_frame = what == "frame"
        pixels = in_levels(frame, self.camera, self._own_colours) if is_frame else self._mask(index, whole)
        pixels = pixels[in_line(whole, frame.camera.cfa, self.camera.cfa)]
        if self.crop is not None:
            if min(pixels.shape) < self.crop:
                reason = "{} x {} pixels, less than the crop of {}".format(*pixels.shape, self.crop)
                raise DatasetError(self.paths[index], reason, "Crop less")
            pixels = pixels[middle(pixels.shape, self.crop)]
        return np.ascontiguousarray(pixels)

    def _mask(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        path, remedy = self._masks[index], "Draw it on the upright picture, whole"
        values = read_mask_values(path, remedy)
        if self._foreground is not None:
            values = np.isin(values, self._foreground)
        elif self._is_binary:
            values = object_of(values, path)
        if values.shape != shape:
            reason = f"a mask of shape {values.shape} for the {shape} of {self.paths[index]}"
            raise DatasetError(path, reason, remedy)
        # Not a number is no class either: it has no rest.
        if (wrong := values[(values < 0) | (values >= len(self.classes)) | (values % 1 != 0)]).size:
            reason = f"a value of {wrong[0]}, and there are {len(self.classes)} classes"
            raise DatasetError(path, reason, "Give classes=... with a name for each value")
        return values.astype(np.uint8)


def is_number(text: str) -> bool:
    """Whether a label can be read as a finite number."""
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _class_names(labels: pd.Series, classes: Sequence[str] | None, source: Path) -> tuple[str, ...]:
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"classes are {list(classes)}: one of them twice")
    names = sorted(set(labels), key=lambda name: (0, float(name), name) if is_number(name) else (1, 0, name))
    if unknown := [name for name in names if classes is not None and name not in classes]:
        reason = f"labels that are not among the classes: {', '.join(unknown)}"
        raise DatasetError(source, reason, "Add them to classes=..., or leave the argument out")
    return tuple(classes or names)


def in_line(shape: tuple[int, ...], has: CFA, wanted: CFA) -> tuple[slice, slice]:
    """Return the window of a mosaic (H, W) in which the layout ``has`` reads ``wanted``.

    It starts at the first or second row and column and stays even.
    """
    rows, columns = has.shift_to(wanted)
    return slice(rows, shape[0] - rows), slice(columns, shape[1] - columns)


def middle(shape: tuple[int, ...], crop: int) -> tuple[slice, ...]:
    """Return the window of ``crop`` pixels square in the middle of a mosaic; it keeps the layout."""
    offsets = ((side - crop) // 4 * 2 for side in shape)
    return tuple(slice(offset, offset + crop) for offset in offsets)


def in_levels(frame: RawFrame, camera: Camera, own_colours: bool = False) -> np.ndarray:
    """Return a mosaic (H, W), *raw* domain, with the black and white levels of ``camera``.

    Unchanged if they are the frame's own already; values beyond [0, 1] are clipped. With its own colours
    each site is scaled by the ratio of the two white balances, green by 1.
    """
    has, mosaic = frame.camera, frame.mosaic
    gains = np.divide(has.white_balance, camera.white_balance) if own_colours else np.ones(3)
    gains = (gains / gains[1])[list(has.cfa.value)]
    shift = has.cfa.shift_to(camera.cfa)
    # Of the positions that these become once the mosaic is in line.
    targets = np.roll(np.reshape(camera.black_level, (2, 2)), shift, (0, 1)).ravel().tolist()
    result = np.empty_like(mosaic)
    for position, (black, target) in enumerate(zip(has.black_level, targets, strict=True)):
        site = slice(position // 2, None, 2), slice(position % 2, None, 2)
        if (black, has.white_level, gains[position]) == (target, camera.white_level, 1):
            result[site] = mosaic[site]
            continue
        scale = gains[position] * (camera.white_level - target) / (has.white_level - black)
        result[site] = np.clip((mosaic[site] - black) * scale + target, 0, 1)
    return result
