"""What the published data sets have in common, frames from a cache, parts of a split; and Raw-Microscopy."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from r2l.camera import MICROSCOPE
from r2l.datasets import layout, pixels
from r2l.datasets.splits import Item, RawDataset, Transform, split_indices

_KEEP_OR_SKIP = "Put it back, fetch it again, or take out what has no counterpart (in Python: strict=False)"


class PublishedDataset(RawDataset):
    """Images in files of one size, decoded once into a cache and memory-mapped from then on.

    The cache lies at the variable R2L_CACHE, else in ``.r2l_cache`` below the root.

    Args:
        root: where data lie, the folder above ``microscopy`` and ``drone``; else the variable
            R2L_DATA, else ./data.
        split: "train", "val", "test" or "all"; ``scheme``, ``fold`` and ``seed`` as of
            `r2l.datasets.splits.split_indices`.
        intensity: one of `r2l.datasets.layout.INTENSITIES`.
        download: fetch what is missing first (see `r2l.datasets.fetch.download.fetch`).
        view: a pipeline such as "bi,s,ga": items have ``image`` (3, H, W) *display*, developed by
            the authors, in the place of ``raw``.
        strict: raise for an image without label or mask, or one without image; else leave it out.

    Raises:
        DatasetNotFoundError: not there; says how to fetch it.
        DatasetError: a file is damaged or doesn't fit. Damaged images are found on first reading, when all
            of the set are decoded together, once.
        ValueError: an argument that isn't one of those listed, or that doesn't go with the others.

    Attributes:
        files: all images of the set, in every split.
        names: (N,) name of each item.
        rows: (N,) place of each item among all images of the set.
    """

    kind: str
    files: list[Path]
    is_stratified = True  # whether the published splits kept the shares of the classes

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        intensity: float = 1.0,
        download: bool = False,
        transform: Transform | None = None,
        *,
        view: str | None = None,
        scheme: str = "groups",
        fold: int = 0,
        seed: int = 0,
        strict: bool = True,
    ) -> None:
        self._scale = layout.scale_folder(intensity)
        if view is not None and intensity != 1.0:
            instead = f"frames of intensity {intensity} with StaticISP.from_code({view!r}, dataset.camera)"
            raise ValueError(f"processed views exist of intensity 1.0 only; develop the raw {instead}")
        self.root = layout.data_root(root)
        self.folder = self.root / self.kind
        self.intensity, self.view, self.transform = intensity, view, transform
        self.remedy = layout.fetch_again(self.kind, self.root)
        self._arrays: dict[str, np.ndarray] = {}
        if download:
            from r2l.datasets.fetch.download import fetch_if_missing  # slow to import

            fetch_if_missing(self.kind, self.root)
        names, *numbers = self._list(strict)
        labels, groups = (np.array(values, np.int64) for values in numbers)
        cut = {"scheme": scheme, "fold": fold, "seed": seed, "stratified": self.is_stratified}
        self.rows = split_indices(split, labels, groups, **cut)
        self.names = np.array(names)[self.rows]
        self.labels, self.groups = labels[self.rows], groups[self.rows]

    @classmethod
    def if_present(cls, **arguments: Any) -> Self | None:
        """Return all of the set, or None where it has not been fetched; arguments as for the class."""
        try:
            return cls(**{"split": "all", **arguments})
        except layout.DatasetNotFoundError:
            return None

    @abstractmethod
    def _list(self, strict: bool) -> tuple[Sequence[str], Sequence[int], Sequence[int]]:
        """Set ``files``; return name, label and group of each image of the set."""

    @property
    def sources(self) -> list[Path]:
        """The files that the items are read from."""
        return [*self.files, *getattr(self, "_masks", ())]

    def _images(self, raw: Path, *views: Path) -> list[Path]:
        """Return the files of the raw frames, or of the view asked for, which is below ``views``."""
        folder = raw
        if self.view is not None:
            folder = layout.view_folders(*views).get(self.view.replace(" ", ""), views[0] / self.view)
        files = layout.images_in(folder)
        if not files:
            raise self._not_found(folder)
        return files

    def _not_found(self, looked_in: Path) -> layout.DatasetNotFoundError:
        return layout.not_found(self.kind, looked_in, self.root)

    def _matched(
        self, images: Mapping[str, Path], others: Mapping[str, Any], source: Path, strict: bool
    ) -> list[str]:
        """Return the stems that have both an image and its other half, of the file or folder ``source``."""
        subset = layout.Manifest.read(self.root).subsets.get(f"{self.kind}/{self._scale}", others)
        wanted = dict.fromkeys(stem for stem in subset if stem in others)
        what = "label" if source.is_file() else "mask"
        if bare := [stem for stem in images if stem not in others and strict]:
            reason = f"an image without a {what} in {source}"
            raise layout.DatasetError(images[bare[0]], reason, _KEEP_OR_SKIP)
        if lost := [stem for stem in wanted if stem not in images and strict]:
            folder = next(iter(images.values())).parent
            reason = f"a {what} for {lost[0]}, of which there is no image in {folder}"
            raise layout.DatasetError(source, reason, _KEEP_OR_SKIP)
        stems = [stem for stem in images if stem in wanted]
        if not stems:
            raise self._not_found(source)
        return stems

    def _array(self, name: str, sources: Sequence[Path], rows: pixels.Rows, **options: Any) -> np.ndarray:
        """Return an array made from files, a row of each unless told; see `cached_array`."""
        name = f"{self.kind}_{name}".replace(",", "-")
        if name not in self._arrays:
            folder = pixels.cache_folder(self.root)
            self._arrays[name] = pixels.cached_array(folder, name, sources, rows, **options)
        return self._arrays[name]

    def _decode(self, path: Path, remedy: str) -> np.ndarray:
        """Read an image: (H, W) or, developed, (3, H, W); uint16."""
        return pixels.read_view(path, remedy) if self.view else pixels.read_steps(path, remedy, self.camera)

    def _item(self, steps: np.ndarray) -> Item:
        values = torch.from_numpy(np.divide(steps, 65535, dtype=np.float32))
        return {"image": values} if self.view else {"raw": values[None]}

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps would travel to workers by value: each opens its own.
        return {**self.__dict__, "_arrays": {}}

    def __repr__(self) -> str:
        title = layout.INFO[self.kind].title
        return f"{title}: {len(self)} images, intensity {self.intensity}, in {self.root}"


def numbers_in(path: Path, pattern: str, example: str) -> tuple[int, ...]:
    """Return the numbers that tell an image's group in its name; a DatasetError names the file without."""
    match = re.match(pattern, path.stem)
    if match is None:
        reason = f"the name doesn't tell its group, as {example} does"
        raise layout.DatasetError(path, reason, "Rename it as published, or move it away")
    return tuple(map(int, match.groups()))


class RawMicroscopy(PublishedDataset):
    """White blood cells in stained smears, as raw mosaics; items as in `RawDataset`, with a label.

    What it is: 940 images of 256x256, one leukocyte each, of nine classes, each at seven exposures (intensity
    1.0, the base, down to 0.01), and the base developed by the twelve static pipelines. Counts, source and
    licence: ``r2l.datasets.INFO["microscopy"]``.

    How it was recorded: human blood smears, Olympus 40x/0.95 objective, bright field, a PCO edge
    5.5 sCMOS (monochrome) behind filters of 450, 525 and 620 nm; the three exposures were rescaled
    and sampled into an RGGB mosaic. 16-bit TIFF; camera: `MICROSCOPE`.

    Groups: the zone of a slide. Crops of a zone share illumination and stain, and the default
    splits never tear one apart; the published study's splits did (``scheme="published"``).

    Left out, as by the authors: classes of four images or fewer, and one bad file.

    Uses: how a camera's processing drifts a classifier. Limits: one laboratory, one microscope, a
    mosaic that no Bayer sensor recorded, classes as rare as 8 images. Not for diagnosis.

    Arguments, errors and attributes are those of `PublishedDataset`; the cache takes about 120 MB
    an intensity.

    >>> RawMicroscopy.if_present(root="no/such/folder") is None
    True
    """

    kind = "microscopy"
    camera = MICROSCOPE
    classes = layout.INFO["microscopy"].classes

    def _list(self, strict: bool) -> tuple[list[str], list[int], list[int]]:
        label_file = self.folder / "labels" / layout.LABEL_FILE
        images = self.folder / "images"
        paths = layout.by_stem(self._images(images / self._scale, images / "processed_views"))
        if not label_file.is_file():
            raise self._not_found(label_file)
        class_of, dropped = layout.read_labels(label_file)
        paths = {stem: path for stem, path in paths.items() if stem not in dropped}
        if not paths:
            raise self._not_found(images / self._scale)
        stems = self._matched(paths, class_of, label_file, strict)
        self.files = [paths[stem] for stem in stems]
        labels = [self.classes.index(class_of[stem]) for stem in stems]
        zones = (numbers_in(path, r".*lame(\d+)_zone(\d+)", "lame1_zone2") for path in self.files)
        return stems, labels, [1000 * lame + zone for lame, zone in zones]

    def read(self, index: int) -> Item:
        """Return the mosaic (or the developed image) and its label; errors as of the class."""
        name = self.view or "_".join(self.files[0].parent.parts[-2:])
        steps = self._array(
            name, self.files, partial(pixels.decode_all, self.files, self._decode, self.remedy)
        )
        return {**self._item(steps[self.rows[index]]), "label": int(self.labels[index])}
