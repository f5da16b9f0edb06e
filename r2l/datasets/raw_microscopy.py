"""Raw-Microscopy: white blood cells as the sensor saw them."""

from __future__ import annotations

import re
from pathlib import Path

from r2l.camera import MICROSCOPE
from r2l.datasets.base import Item, Transform
from r2l.datasets.info import BAD_FILES, INFO, LABEL_FILE
from r2l.datasets.layout import DatasetError, by_stem, scale_folder
from r2l.datasets.published import RealDataset

_ZONE = re.compile(r"lame(\d+)_zone(\d+)")
_BAD_STEMS = {Path(name).stem for name in BAD_FILES}


def read_labels(path: Path) -> dict[str, str]:
    """Read the label file: "<stem> <CLASS>" a line, to stem and class, all classes of the file.

    Raises:
        DatasetError: a line of another form, or two labels for one image.
    """
    remedy = "Fetch the label file again"
    labels: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(path, f"no readable label file ({error})", remedy) from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            reason = f'line {number} is {line[:60]!r}, expected "<image> <CLASS>"'
            raise DatasetError(path, reason, remedy)
        stem, label = words
        if labels.get(stem, label) != label:
            raise DatasetError(path, f"line {number} gives {stem} a second label", remedy)
        labels[stem] = label
    return labels


def zone_group(stem: str) -> int:
    """Return a number for the zone in an image's name: 3013 for lame 3, zone 13.

    Raises:
        ValueError: the name has no lame and zone.
    """
    match = _ZONE.search(stem)
    if not match:
        raise ValueError(f"{stem!r} doesn't tell its zone (lame<number>_zone<number>)")
    return 1000 * int(match[1]) + int(match[2])


class RawMicroscopy(RealDataset):
    """White blood cells in stained smears, as raw mosaics; items as in `RawDataset`, with a label.

    What it is: 940 images of 256x256, one leukocyte each, of nine classes (BAS 18, EOS 54, KSC 163,
    LYA 30, LYT 230, MON 191, NGB 8, NGS 216, UNC 30), each at seven exposures (intensity 1.0, the
    base, down to 0.01), and the base developed by the twelve static pipelines.

    How it was recorded: human blood smears, Olympus 40x/0.95 objective, bright field, a PCO edge
    5.5 sCMOS (monochrome) behind filters of 450, 525 and 620 nm; the three exposures were rescaled
    and sampled into an RGGB mosaic. 16-bit TIFF; camera: `MICROSCOPE`.

    Groups: the zone of a slide. Crops of a zone share illumination and stain, and the default
    splits never tear one apart; the published study's splits did (``scheme="published"``).

    Left out, as by the authors: classes of four images or fewer, and one bad file.

    Uses: how a camera's processing drifts a classifier. Limits: one laboratory, one microscope, a
    mosaic that no Bayer sensor recorded, classes as rare as 8 images. Not for diagnosis.

    Source and licence: Oala et al., "Data Models for Dataset Drift Controls in Machine Learning
    With Optical Images", TMLR 2023; Zenodo, DOI 10.5281/zenodo.5235536; CC BY 4.0.

    Images are decoded once into a cache (about 120 MB an intensity; the variable R2L_CACHE, else
    ``.r2l_cache`` below the root) and memory-mapped from then on, by any number of workers.

    Args:
        root: where data lie, the folder above ``microscopy``; else the variable R2L_DATA, else
            ./data.
        split: "train", "val", "test" or "all".
        intensity: 0.01, 0.05, 0.1, 0.25, 0.5, 0.75 or 1.0.
        download: fetch what is missing first (see `r2l.datasets.fetch.download.fetch`).
        transform: called on each item.
        view: a pipeline such as "bi,s,ga": items have ``image`` (3, H, W) *display*, developed by
            the authors, in the place of ``raw``.
        scheme: "groups" or "published"; see `r2l.datasets.splits.split_indices`.
        fold: which of the five folds.
        seed: of the split.
        strict: raise for an image without label or a label without image; else leave it out.

    Raises:
        DatasetNotFoundError: not there; says how to fetch it.
        DatasetError: a file is damaged or doesn't fit. Damaged images are found on first reading.
        ValueError: an argument that isn't one of those listed.
    """

    kind = "microscopy"
    camera = MICROSCOPE
    classes = INFO["microscopy"].classes

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
        scale = scale_folder(intensity)
        super().__init__(root, intensity, view, transform, download)
        place = self.folder / "labels" / LABEL_FILE
        images = self.folder / "images"
        found = by_stem(self._images(images / scale, [images / "processed_views"]))
        if not place.is_file():
            raise self._not_found(place)
        known = read_labels(place)
        dropped = _BAD_STEMS | {stem for stem, name in known.items() if name not in self.classes}
        found = {stem: path for stem, path in found.items() if stem not in dropped}
        if not found:
            raise self._not_found(images / scale)
        kept = {stem: name for stem, name in known.items() if stem not in dropped}
        stems = self._matched(found, kept, place, strict)
        self.files = [found[stem] for stem in stems]
        self._take(
            stems,
            [self.classes.index(known[stem]) for stem in stems],
            [self._group(path) for path in self.files],
            split,
            scheme=scheme,
            fold=fold,
            seed=seed,
        )

    def _group(self, path: Path) -> int:
        try:
            return zone_group(path.stem)
        except ValueError as error:
            raise DatasetError(
                path, str(error), "Rename it as published, or move it away"
            ) from None

    def read(self, index: int) -> Item:
        """Return the mosaic (or the developed image) and its label.

        Raises:
            DatasetError: some image of the set is damaged; all are decoded together, once.
        """
        frames = self._once("frames", lambda: self._decoded(self.files))
        steps = frames[self.rows[index]]
        return {**self._item(steps), "label": int(self.labels[index])}
