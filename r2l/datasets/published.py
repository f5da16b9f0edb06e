"""What the two real data sets have in common: frames from a cache, and a part of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from r2l.datasets.base import Item, RawDataset, Transform
from r2l.datasets.cache import cache_folder, cached_array
from r2l.datasets.fetch.manifest import Manifest
from r2l.datasets.info import INFO
from r2l.datasets.layout import (
    DatasetError,
    DatasetNotFoundError,
    data_root,
    fetch_again,
    images_in,
    not_found,
    scale_folder,
    view_folder,
)
from r2l.datasets.pixels import decode_all, image_tensor, read_steps, read_view
from r2l.datasets.splits import split_indices

KEEP_OR_SKIP = "Put it back or fetch it again, or leave such images out (in Python: strict=False)"


class RealDataset(RawDataset):
    """Images in files of one size; what else is known of them comes from names and other files.

    A subclass lists all images of the set and calls `_take`, which keeps those of the split.

    Attributes:
        root: where the data lie.
        view: the pipeline that developed the images, None for raw frames.
        files: all images of the set, in every split.
        names: (N,) name of each item.
        rows: (N,) place of each item among all images of the set.
    """

    kind: str
    files: list[Path]

    def __init__(
        self,
        root: str | Path | None,
        intensity: float,
        view: str | None,
        transform: Transform | None,
        download: bool,
    ) -> None:
        if view is not None and intensity != 1.0:
            raise ValueError(
                "processed views exist of intensity 1.0 only; develop the raw frames of "
                f"intensity {intensity} with StaticISP.from_code({view!r}, dataset.camera)"
            )
        self.root, self.folder = data_root(root), data_root(root) / self.kind
        self.intensity, self.view, self.transform = intensity, view, transform
        self.remedy = fetch_again(self.kind, self.root)
        self._arrays: dict[str, np.ndarray] = {}
        if download:
            from r2l.datasets.fetch.download import (
                fetch_if_missing,  # its packages are slow to import
            )

            fetch_if_missing(self.kind, self.root)

    def _images(self, raw: Path, views: Iterable[Path]) -> list[Path]:
        """Return the files of the raw frames, or of the view asked for.

        Raises:
            DatasetNotFoundError: there are none.
        """
        folder = raw if self.view is None else view_folder(views, self.view)
        if folder is None:
            raise self._not_found(next(iter(views)) / str(self.view))
        found = images_in(folder)
        if not found:
            raise self._not_found(folder)
        return found

    def _not_found(self, looked_in: Path) -> DatasetNotFoundError:
        return not_found(self.kind, looked_in, self.root)

    def _matched(
        self, images: Mapping[str, Path], others: Mapping[str, Any], place: Path, strict: bool
    ) -> list[str]:
        """Return the stems that have both an image and its other half (a label, a mask).

        Raises:
            DatasetError: one stands without the other, and ``strict``.
        """
        part = f"{self.kind}/{scale_folder(self.intensity)}"
        subset = Manifest.read(self.root).subsets.get(part)
        wanted = others if subset is None else {stem for stem in subset if stem in others}
        if strict:
            what = "label" if place.is_file() else "mask"
            for stem in images:
                if stem not in others:
                    reason = f"an image without a {what} in {place}"
                    raise DatasetError(images[stem], reason, KEEP_OR_SKIP)
            for stem in wanted:
                if stem not in images:
                    folder = next(iter(images.values())).parent
                    reason = f"a {what} for {stem}, of which there is no image in {folder}"
                    raise DatasetError(place, reason, KEEP_OR_SKIP)
        stems = [stem for stem in images if stem in wanted]
        if not stems:
            raise self._not_found(place)
        return stems

    def _take(
        self,
        names: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        groups: Sequence[int] | np.ndarray,
        split: str,
        **options: Any,
    ) -> None:
        labels, groups = np.array(labels, np.int64), np.array(groups, np.int64)
        self.rows = split_indices(split, labels, groups, **options)
        self.names = np.array(names)[self.rows]
        self.labels, self.groups = labels[self.rows], groups[self.rows]

    def _once(self, key: str, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array that this process opens at its first use."""
        if key not in self._arrays:
            self._arrays[key] = load()
        return self._arrays[key]

    def _array(
        self,
        name: str,
        sources: Sequence[Path],
        count: int,
        rows: Callable[[], Iterable[np.ndarray]],
        settings: object = None,
    ) -> np.ndarray:
        """Return an array made from files the first time ever, from the cache after that."""
        name = f"{self.kind}_{name}".replace(",", "-")
        place = cache_folder(self.root)
        return self._once(name, lambda: cached_array(place, name, sources, count, rows, settings))

    def _decoded(self, paths: Sequence[Path]) -> np.ndarray:
        """Return all images: (M, H, W) or, developed, (M, 3, H, W); uint16."""
        if self.view:
            name, read = self.view, read_view
        else:
            name = "_".join(paths[0].parent.parts[-2:])
            read = partial(read_steps, camera=self.camera)
        return self._array(name, paths, len(paths), lambda: decode_all(paths, read, self.remedy))

    def _item(self, steps: np.ndarray) -> Item:
        return {"image" if self.view else "raw": image_tensor(steps)}

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps would travel to workers by value: each opens its own.
        return {**self.__dict__, "_arrays": {}}

    def __repr__(self) -> str:
        title = INFO[self.kind].title
        return f"{title}: {len(self)} images, intensity {self.intensity}, in {self.root}"
