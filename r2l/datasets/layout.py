"""Where a copy of a real data set lies on disk, and the errors for what is missing or wrong there.

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
from collections.abc import Iterable
from pathlib import Path

from r2l.datasets.info import INFO, INTENSITIES

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".npy", ".dng"})
ROOT_VARIABLE = "R2L_DATA"
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


class DatasetNotFoundError(FileNotFoundError):
    """A data set, or the part asked for, is not there. Says where it was looked for and how to get it."""


def not_found(name: str, looked_in: Path, root: Path) -> DatasetNotFoundError:
    """Return the error for a data set ("microscopy", "drone") that isn't in ``looked_in``."""
    return DatasetNotFoundError(
        f"{INFO[name].title} is not in {looked_in}.\n"
        f"Fetch it with `r2l data fetch {name} --root {root}` or download=True, or set root= or "
        f"{ROOT_VARIABLE} to where it lies."
    )


class DatasetError(ValueError):
    """A file of a data set is damaged, missing or doesn't fit the others. Says which, and what to do."""

    def __init__(self, path: str | Path, reason: str, remedy: str) -> None:
        super().__init__(str(path), reason, remedy)

    def __str__(self) -> str:
        path, reason, remedy = self.args
        return f"{path}: {reason}.\n{remedy}."


def data_root(root: str | Path | None = None) -> Path:
    """Return where data lie: ``root``, else the variable R2L_DATA, else ./data."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()


def scale_folder(intensity: float) -> str:
    """Return the folder's name of a published intensity: ``raw_scale025`` for 0.25.

    Raises:
        ValueError: no published intensity; the message lists them.
    """
    if intensity not in INTENSITIES:
        known = ", ".join(map(str, INTENSITIES))
        raise ValueError(
            f"intensity {intensity} was not recorded; choose from {known} (any other exposure can "
            "be simulated: see SyntheticMicroscopy, SyntheticDrone)"
        )
    return f"raw_scale{round(intensity * 100):03d}"


def fetch_again(name: str, root: Path) -> str:
    """Return what to do about a damaged file."""
    return f"Move it away and run `r2l data fetch {name} --root {root}` again"


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, by name; [] if there is no such folder."""
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(p for p in found if not p.name.startswith("."))


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without suffix.

    Raises:
        DatasetError: two files differ by their suffix only.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            other = found[path.stem].name
            raise DatasetError(path, f"the same image as {other}", "Keep one of the two")
        found[path.stem] = path
    return found


def pipeline_code(folder_name: str) -> str | None:
    """Return the pipeline ("bi,s,ga") that a folder's name spells, in codes or long names, else None."""
    name = folder_name.lower()
    for long, code in _CODE_OF.items():
        name = name.replace(long, code)
    match = re.search(r"(?<![a-z])(bi|ma|me)[^a-z]+([su])[^a-z]+(me|ga)(?![a-z])", name)
    return ",".join(match.groups()) if match else None


def view_folder(parents: Iterable[Path], code: str) -> Path | None:
    """Return the folder below one of ``parents`` that holds the view of pipeline ``code``."""
    wanted = code.replace(" ", "")
    for parent in parents:
        for folder, folders, _ in os.walk(parent):
            folders.sort()
            for name in folders:
                if pipeline_code(name) == wanted:
                    return Path(folder, name)
    return None
