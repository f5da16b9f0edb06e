"""The facts of the two published data sets, where a copy lies on disk, and the record of what was fetched.

A copy looks like this, below the root::

    microscopy/labels/Ma190c_annotations.dat        one "<stem> <CLASS>" a line
    microscopy/images/raw_scaleNNN/<stem>.tiff      NNN: intensity in percent, 100 is the base
    microscopy/images/processed_views/<pipeline>/   developed by one of the twelve pipelines
    drone/images_tiles_256/raw_scaleNNN/PP_IIIII.tif    photo and tile
    drone/masks_tiles_256/PP_IIIII.png
    drone/images_full/raw_scaleNNN/*.DNG, drone/masks_full/*.png
    drone/processed_views/<pipeline>/
    r2l_manifest.json                               what `r2l data fetch` put there: see `Manifest`
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from r2l.files import R2LError, T, atomic_path, local_path

RECORD = 5235536
_PAPER = "Data Models for Dataset Drift Controls in Machine Learning With Optical Images"
INTENSITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class SetInfo:
    """What is published about one data set; `INFO` has it by what `r2l data` calls it.

    ``classes`` name the labels, or the values in a mask; ``class_counts`` are the images of each, None for
    masks. Base images are counted: each intensity and each processed view has as many. ``tile`` is their side
    in pixels, ``groups`` what a split must not tear apart. Means and deviations are of R, G, B in developed
    images, *display* domain, and at R, G, B sites, *raw* domain, None where not published.
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
    paper: str = f'Oala et al., "{_PAPER}", TMLR 2023'


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
_BAD_STEM = "Ma190c_lame3_zone13_composite_Mcropped_2"
LABEL_FILE = "Ma190c_annotations.dat"
IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".npy", ".dng"})
# A pipeline in a folder's name, in the codes of its stages or their long names.
_PIPELINE = re.compile(
    r"(?<![a-z])(bi|ma|me)(?:linear|lvar2004|non2007)?[^a-z]+([su])(?:harpening_filter|nsharp_masking)?"
    r"[^a-z]+(me|ga)(?:dian_denoising|ussian_denoising)?(?![a-z])"
)


class DatasetNotFoundError(R2LError, FileNotFoundError):
    """A data set, or the part asked for, is not there. Says where it was looked for and how to get it."""


class DatasetError(R2LError, ValueError):
    """A file of a data set is damaged, missing or doesn't fit the others. Says which, and what to do."""


def not_found(name: str, looked_in: Path, root: Path) -> DatasetNotFoundError:
    """Return the error for a data set ("microscopy", "drone") that isn't in ``looked_in``."""
    remedy = f"Fetch it with `r2l data fetch {name} --root {root}` or download=True"
    remedy += ", or set root= or R2L_DATA to where it lies"
    return DatasetNotFoundError(looked_in, f"{INFO[name].title} is not there", remedy)


def data_root(root: str | Path | None = None) -> Path:
    """Return where data lie: ``root``, else the variable R2L_DATA, else ./data."""
    return local_path(root or os.environ.get("R2L_DATA") or "data")


def scale_folder(intensity: float) -> str:
    """Return the folder's name of a published intensity: ``raw_scale025`` for 0.25.

    Raises:
        ValueError: no published intensity; the message lists them.
    """
    if intensity not in INTENSITIES:
        recorded = ", ".join(map(str, INTENSITIES))
        simulated = "any other exposure can be simulated: see SyntheticMicroscopy, SyntheticDrone"
        raise ValueError(f"intensity {intensity} was not recorded; choose from {recorded} ({simulated})")
    return f"raw_scale{round(intensity * 100):03d}"


def fetch_again(name: str, root: Path) -> str:
    """Return what to do about a damaged file."""
    return f"Move it away and run `r2l data fetch {name} --root {root}` again"


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, by name; [] if there is no such folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]


def by_stem(paths: Iterable[Path], name: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
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


def read_labels(path: Path) -> tuple[dict[str, str], set[str]]:
    """Read the microscope's label file, "<stem> <CLASS>" a line.

    Returns:
        Stem to class of what is used, and the stems of what is not: rare classes and the bad file.

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
    classes = INFO["microscopy"].classes
    kept = {stem: name for stem, name in labels.items() if name in classes and stem != _BAD_STEM}
    return kept, {_BAD_STEM, *labels} - {*kept}


def pair_masks(images: Iterable[str], masks: Mapping[str, T]) -> dict[str, T]:
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
    match = _PIPELINE.search(folder_name.lower())
    return ",".join(match.groups()) if match else None


def view_folders(*parents: Path) -> dict[str, Path]:
    """Return the folders below ``parents`` that hold a view, by pipeline; the first of a name."""
    folders = [folder for parent in parents for folder in sorted(parent.rglob("*/"))]
    return {code: folder for folder in reversed(folders) if (code := pipeline_code(folder.name))}


def place_of(kind: str, archive: str, member: str) -> PurePosixPath:
    """Return where a file belongs below the root by its name.

    What isn't known goes to ``<kind>/other/<archive>/`` under its own name, so that nothing is lost.

    Args:
        kind: the data set being fetched.
        archive: name of the archive, "" for a file that came by itself.
        member: path in the archive.
    """
    path = PurePosixPath(member)
    above = [PurePosixPath(archive).stem, *path.parts[:-1]]
    everything = "/".join([*above, path.name]).lower()
    view = next((f"processed_views/{part}" for part in above if pipeline_code(part)), None)
    scales = re.findall(r"raw_scale(\d{3})", everything)
    scale = f"raw_scale{scales[-1]}" if scales else None
    is_mask, folder = "mask" in everything, None
    if path.name == LABEL_FILE:
        kind, folder = "microscopy", "labels"
    elif re.search(r"lame\d+_zone\d+", path.stem):
        is_developed = any(word in everything for word in ("processed", "view", "rgb"))
        kind, inside = "microscopy", view or scale or (None if is_developed else "raw_scale100")
        folder = inside and f"images/{inside}"
    elif path.suffix.lower() == ".dng":
        kind, folder = "drone", f"images_full/{scale or 'raw_scale100'}"
    elif re.fullmatch(r"\d{2}_\d{5}", path.stem):
        kind, tiles = "drone", scale and f"images_tiles_256/{scale}"
        folder = view or ("masks_tiles_256" if is_mask else tiles)
    elif kind == "drone" and is_mask and path.suffix.lower() == ".png":
        folder = "masks_full"
    if folder is None:
        return PurePosixPath(kind, "other", above[0], *path.parts)
    return PurePosixPath(kind, folder, path.name)


MANIFEST = "r2l_manifest.json"
# What is no manifest; the last two are numbers beyond all bounds, and nesting without end.
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass
class Manifest:
    """Record of a root.

    Attributes:
        files: path below the root to size and CRC-32, as the archive says.
        archives: name of each archive that was unpacked to the source's checksum.
        subsets: "<data set>/raw_scaleNNN" to the stems of its images, where only some were fetched.
        unfinished: data sets whose fetching began and didn't end.
    """

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    subsets: dict[str, list[str]] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Return the record of ``root``; an empty one if nothing was fetched into it.

        Raises:
            DatasetError: the file is damaged.
        """
        path = root / MANIFEST
        try:
            values = json.loads(path.read_text("utf-8"))
            values["files"] = {k: (int(s), int(c)) for k, (s, c) in values["files"].items()}
            manifest = cls(**values)
            lists = [manifest.unfinished, *manifest.subsets.values()]
            texts = [*manifest.archives.values(), *(name for names in lists for name in names)]
            if {*map(type, lists)} - {list} or {*map(type, texts)} - {str}:
                raise TypeError("a name is no text, or a list of names is none")
            return manifest
        except FileNotFoundError:
            return cls()
        except _DAMAGE as error:
            remedy = "Move it away and run `r2l data fetch` again"
            raise DatasetError(path, f"damaged ({error})", remedy) from None

    def write(self, root: Path) -> None:
        """Write the record, whole or not at all."""
        with atomic_path(root / MANIFEST) as unfinished:
            unfinished.write_text(json.dumps(asdict(self), indent=1), "utf-8")

    def files_of(self, kind: str) -> dict[str, tuple[int, int]]:
        """Return the part of ``files`` that is of one data set."""
        return {name: v for name, v in self.files.items() if name.startswith(f"{kind}/")}

    def is_whole(self, root: Path, kind: str) -> bool:
        """Tell whether all recorded files of a data set are there, of the recorded size."""
        files = ((root / name, size) for name, (size, _) in self.files_of(kind).items())
        # os.path says False to names that no system takes, as a damaged record may have them.
        return all(os.path.isfile(path) and os.path.getsize(path) == size for path, size in files)

    def begin(self, root: Path, kind: str) -> None:
        """Write down that a whole data set is being fetched."""
        self.unfinished = sorted({*self.unfinished, kind})
        self.write(root)

    def finish(self, kind: str) -> None:
        """Note that all of a data set is there."""
        self.unfinished = [name for name in self.unfinished if name != kind]
        self.subsets = {k: v for k, v in self.subsets.items() if not k.startswith(f"{kind}/")}


def raw_folders(kind: str, root: Path) -> list[tuple[float, Path]]:
    """Return the folders of raw frames that are there, with their intensities."""
    names = {"microscopy": ("images",), "drone": ("images_tiles_256", "images_full")}[kind]
    pairs = ((i, root / kind / name / scale_folder(i)) for name in names for i in INTENSITIES)
    return [(intensity, folder) for intensity, folder in pairs if images_in(folder)]


def describe(kind: str, root: str | Path | None = None) -> list[str]:
    """Return what a data set is, where it comes from, its licence, and what of it is below ``root``."""
    info, root = INFO[kind], data_root(root)
    subsets = Manifest.read(root).subsets
    counts = info.class_counts or [""] * len(info.classes)
    classes = (f"{name} {count}".strip() for name, count in zip(info.classes, counts, strict=True))
    exposures = f"at intensities {' '.join(map(str, info.intensities))}, and 12 processed views"
    there = []
    for _, folder in raw_folders(kind, root):
        part = " (a part was asked for)" if subsets.get(f"{kind}/{folder.name}") else ""
        there.append(f"{len(images_in(folder))} in {folder}{part}")
    if views := view_folders(root / kind):
        there.append(f"views {' '.join(sorted(views))}")
    return [
        f"{info.title}: {info.summary}.",
        f"  published  {info.images} raw images of {info.tile}x{info.tile}, {exposures}",
        f"  classes    {', '.join(classes)}",
        f"  groups     {info.groups}",
        f"  licence    {info.licence}",
        f"  source     {info.url}",
        f"  paper      {info.paper}",
        f"  there      {'; '.join(there) or f'nothing in {root / kind}'}",
    ]
