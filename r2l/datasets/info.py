"""The published facts of the two real data sets, in one table."""

from __future__ import annotations

from dataclasses import dataclass

RECORD = 5235536
INTENSITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SetInfo:
    """What is published about one data set; `INFO` has it by what `r2l data` calls it.

    Attributes:
        title: its published name.
        summary: content, in a sentence.
        classes: names of the labels, or of the values in a mask.
        class_counts: images of each class, in the order of ``classes``; None for masks.
        images: base images. Each intensity and each processed view has as many.
        tile: side of an image in pixels.
        groups: what a split must not tear apart.
        licence: SPDX name.
        url, paper: source.
        processed_mean, processed_std: R, G, B of developed images, *display* domain.
        mosaic_mean, mosaic_std: at R, G, B sites, *raw* domain; None where not published.
    """

    title: str
    summary: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...] | None
    images: int
    tile: int
    groups: str
    processed_mean: tuple[float, float, float]
    processed_std: tuple[float, float, float]
    mosaic_mean: tuple[float, float, float] | None = None
    mosaic_std: tuple[float, float, float] | None = None
    intensities: tuple[float, ...] = INTENSITIES
    licence: str = "CC-BY-4.0"
    url: str = f"https://doi.org/10.5281/zenodo.{RECORD}"
    paper: str = (
        'Oala et al., "Data Models for Dataset Drift Controls in Machine Learning With Optical '
        'Images", TMLR 2023'
    )


INFO = {
    "microscopy": SetInfo(
        title="Raw-Microscopy",
        summary="White blood cells in stained smears, bright field, 40x/0.95, one cell an image",
        classes=("BAS", "EOS", "KSC", "LYA", "LYT", "MON", "NGB", "NGS", "UNC"),
        class_counts=(18, 54, 163, 30, 230, 191, 8, 216, 30),
        images=940,
        tile=256,
        groups="zone of a slide, from lame and zone in the file's name",
        processed_mean=(0.91, 0.84, 0.94),
        processed_std=(0.08, 0.12, 0.05),
        mosaic_mean=(0.5663, 0.1401, 0.0731),
        mosaic_std=(0.097, 0.0423, 0.008),
    ),
    "drone": SetInfo(
        title="Raw-Drone",
        summary="Tiles of 12 drone photos from 250 m, 6 cm a pixel, with masks of the cars",
        classes=("background", "car"),
        class_counts=None,
        images=548,
        tile=256,
        groups="photo, the first number of the tile's name",
        processed_mean=(0.35, 0.36, 0.35),
        processed_std=(0.12, 0.11, 0.12),
    ),
}

DRONE_PHOTOS = 12
DRONE_TASKS = {"segmentation": ("background", "car"), "classification": ("no car", "car")}
# A tile that cars cover by more than this share counts as "car"; one without any as "no car".
CAR_SHARE = 0.01
# Unusable as published.
BAD_STEM = "Ma190c_lame3_zone13_composite_Mcropped_2"
LABEL_FILE = "Ma190c_annotations.dat"
