"""Raw-Microscopy: white blood cells as the sensor saw them."""

from __future__ import annotations

import re
from pathlib import Path

from r2l.camera import MICROSCOPE
from r2l.datasets.base import Item
from r2l.datasets.info import BAD_STEM, INFO, LABEL_FILE
from r2l.datasets.layout import DatasetError, by_stem, read_labels
from r2l.datasets.published import PublishedDataset

_ZONE = re.compile(r"lame(\d+)_zone(\d+)")


class RawMicroscopy(PublishedDataset):
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

    Arguments, errors and attributes are those of `PublishedDataset`; the cache takes about 120 MB
    an intensity.
    """

    kind = "microscopy"
    camera = MICROSCOPE
    classes = INFO["microscopy"].classes

    def _list(self, strict: bool) -> tuple[list[str], list[int], list[int]]:
        label_file = self.folder / "labels" / LABEL_FILE
        images = self.folder / "images"
        paths = by_stem(self._images(images / self._scale, images / "processed_views"))
        if not label_file.is_file():
            raise self._not_found(label_file)
        class_of = read_labels(label_file)
        dropped = {BAD_STEM, *(stem for stem, name in class_of.items() if name not in self.classes)}
        paths = {stem: path for stem, path in paths.items() if stem not in dropped}
        if not paths:
            raise self._not_found(images / self._scale)
        kept = {stem: name for stem, name in class_of.items() if stem not in dropped}
        stems = self._matched(paths, kept, label_file, strict)
        self.files = [paths[stem] for stem in stems]
        labels = [self.classes.index(kept[stem]) for stem in stems]
        return stems, labels, [_zone(path) for path in self.files]

    def read(self, index: int) -> Item:
        """Return the mosaic (or the developed image) and its label.

        Raises:
            DatasetError: some image of the set is damaged; all are decoded together, once.
        """
        frames = self._once("frames", lambda: self._decoded(self.files))
        return {**self._item(frames[self.rows[index]]), "label": int(self.labels[index])}


def _zone(path: Path) -> int:
    """Return a number for the zone in an image's name: 3013 for lame 3, zone 13."""
    match = _ZONE.search(path.stem)
    if match is None:
        reason = f"{path.stem!r} doesn't tell its zone (lame<number>_zone<number>)"
        raise DatasetError(path, reason, "Rename it as published, or move it away")
    return 1000 * int(match[1]) + int(match[2])
