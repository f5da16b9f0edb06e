"""Where a copy of a published data set lies on disk, and the errors for what is missing or wrong there.

A copy looks like this, below the root::

    microscopy/labels/Ma190c_annotations.dat        one "<stem> <CLASS>" a line
    microscopy/images/raw_scaleNNN/<stem>.tiff      NNN: intensity in percent, 100 is the base
    microscopy/images/processed_views/<pipeline>/   developed by one of the twelve pipelines
    drone/images_tiles_256/raw_scaleNNN/PP_IIIII.tif    photo and tile
    drone/masks_tiles_256/PP_IIIII.png
    drone/images_full/raw_scaleNNN/*.DNG, drone/masks_full/*.png
    drone/processed_views/<pipeline>/
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import TypeVar

from r2l.datasets.info import INFO, INTENSITIES
from r2l.files import R2LError, local_path

_AnyPath = TypeVar("_AnyPath", bound=PurePath)

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".npy", ".dng"})
# Long names of the options behind a pipeline's code, as folder names may spell them.
_CODE_OF = {
    "bilinear": "bi",
    "malvar2004": "ma",
    "menon2007": "me",
    "sharpening_filter": "s",
    "unsharp_masking": "u",
    "gaussian_denoising": "ga",
    "median_denoising": "me",
}


class DatasetNotFoundError(R2LError, FileNotFoundError):
    """A data set, or the part asked for, is not there. Says where it was looked for and how to get it."""


class DatasetError(R2LError, ValueError):
    """A file of a data set is damaged, missing or doesn't fit the others. Says which, and what to do."""


def not_found(name: str, looked_in: Path, root: Path) -> DatasetNotFoundError:
    """Return the error for a data set ("microscopy", "drone") that isn't in ``looked_in``."""
    return DatasetNotFoundError(
        looked_in,
        f"{INFO[name].title} is not there",
        f"Fetch it with `r2l data fetch {name} --root {root}` or download=True, or set root= or "
        "R2L_DATA to where it lies",
    )


def data_root(root: str | Path | None = None) -> Path:
    """Return where data lie: ``root``, else the variable R2L_DATA, else ./data."""
    return local_path(root or os.environ.get("R2L_DATA") or "data")


def scale_folder(intensity: float) -> str:
    """Return the folder's name of a published intensity: ``raw_scale025`` for 0.25.

    Raises:
        ValueError: no published intensity; the message lists them.
    """
    if intensity not in INTENSITIES:
        raise ValueError(
            f"intensity {intensity} was not recorded; choose from "
            f"{', '.join(map(str, INTENSITIES))} (any other exposure can be simulated: see "
            "SyntheticMicroscopy, SyntheticDrone)"
        )
    return f"raw_scale{round(intensity * 100):03d}"


def fetch_again(name: str, root: Path) -> str:
    """Return what to do about a damaged file."""
    return f"Move it away and run `r2l data fetch {name} --root {root}` again"


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, by name; [] if there is no such folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]


def by_stem(
    paths: Iterable[Path], name: Callable[[Path], str] = lambda path: path.stem
) -> dict[str, Path]:
    """Return files by their names without suffix, or by another ``name``.

    Raises:
        DatasetError: two files have one name.
    """
    files: dict[str, Path] = {}
    for path in paths:
        other = files.setdefault(name(path), path)
        if other is not path:
            raise DatasetError(path, f"the same image as {other.name}", "Keep one of the two")
    return files


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
        if len(words) not in (0, 2):
            reason = f'line {number} is {line[:60]!r}, expected "<image> <CLASS>"'
            raise DatasetError(path, reason, remedy)
        if words and labels.setdefault(*words) != words[1]:
            raise DatasetError(path, f"line {number} gives {words[0]} a second label", remedy)
    return labels


def pair_masks(images: Iterable[str], masks: Mapping[str, _AnyPath]) -> dict[str, _AnyPath]:
    """Return masks by the stems of their images: of the same stem, or the one that contains it.

    Masks of no image stay under their own stem.
    """
    left = dict(masks)
    paired = {stem: left.pop(stem) for stem in images if stem in left}
    for stem in images:
        containing = [other for other in left if stem in other]
        if stem not in paired and len(containing) == 1:
            paired[stem] = left.pop(containing[0])
    return {**paired, **left}


def pipeline_code(folder_name: str) -> str | None:
    """Return the pipeline ("bi,s,ga") that a folder's name spells, in codes or long names, else None.

    >>> pipeline_code("menon2007-unsharp_masking-median_denoising")
    'me,u,me'
    """
    name = folder_name.lower()
    for long, code in _CODE_OF.items():
        name = name.replace(long, code)
    match = re.search(r"(?<![a-z])(bi|ma|me)[^a-z]+([su])[^a-z]+(me|ga)(?![a-z])", name)
    return ",".join(match.groups()) if match else None


def view_folders(*parents: Path) -> dict[str, Path]:
    """Return the folders below ``parents`` that hold a view, by pipeline; the first of a name."""
    views: dict[str, Path] = {}
    for parent in parents:
        for folder, names, _ in sorted(os.walk(parent)):
            for name in sorted(names):
                if code := pipeline_code(name):
                    views.setdefault(code, Path(folder, name))
    return views
