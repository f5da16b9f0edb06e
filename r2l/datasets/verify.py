"""What is there of the real data sets, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from r2l.datasets.fetch.archive import crc32
from r2l.datasets.fetch.manifest import Manifest
from r2l.datasets.info import DRONE_FRAMES, INFO, INTENSITIES
from r2l.datasets.layout import (
    DatasetError,
    fetch_again,
    images_in,
    not_found,
    pipeline_code,
    scale_folder,
)
from r2l.datasets.pixels import read_steps
from r2l.datasets.published import RealDataset
from r2l.datasets.raw_drone import RawDrone
from r2l.datasets.raw_microscopy import RawMicroscopy

_LOADERS: dict[str, type[RealDataset]] = {"microscopy": RawMicroscopy, "drone": RawDrone}
_RAW = {"microscopy": ("images",), "drone": ("images_tiles_256", "images_full")}


def describe(kind: str, root: Path) -> list[str]:
    """Return what a data set is, where it comes from, its licence, and what of it is below ``root``."""
    info = INFO[kind]
    counts = info.class_counts
    classes = zip(info.classes, counts, strict=True) if counts else ((c, "") for c in info.classes)
    return [
        f"{info.title}: {info.summary}.",
        f"  published  {info.images} raw images of {info.tile}x{info.tile}, at intensities "
        + " ".join(map(str, info.intensities))
        + ", and 12 processed views",
        "  classes    " + ", ".join(f"{name} {count}".strip() for name, count in classes),
        f"  groups     {info.groups}",
        f"  licence    {info.licence}",
        f"  source     {info.url}",
        f"  paper      {info.paper}",
        f"  there      {'; '.join(_inventory(kind, root)) or f'nothing in {root / kind}'}",
    ]


def _inventory(kind: str, root: Path) -> Iterator[str]:
    for name in _RAW[kind]:
        for intensity in INTENSITIES:
            folder = root / kind / name / scale_folder(intensity)
            if found := images_in(folder):
                subset = Manifest.read(root).subsets.get(f"{kind}/{folder.name}")
                part = " (a part was asked for)" if subset else ""
                yield f"{len(found)} in {folder}{part}"
    views = {pipeline_code(path.name) for path in (root / kind).rglob("*") if path.is_dir()}
    if views := sorted(view for view in views if view):
        yield f"views {' '.join(views)}"


def verify(kind: str, root: Path, progress: bool = True) -> tuple[list[str], list[str]]:
    """Check a data set: each file against the record of its fetching, each image by decoding it.

    Returns:
        What was found in order, and what was not: one line each.

    Raises:
        DatasetNotFoundError: there is nothing of it.
    """
    manifest = Manifest.read(root)
    scales = [
        (intensity, name)
        for name in _RAW[kind]
        for intensity in INTENSITIES
        if images_in(root / kind / name / scale_folder(intensity))
    ]
    if not scales:
        raise not_found(kind, root / kind, root)
    fine, wrong = _check_record(kind, root, manifest, progress)
    if kind in manifest.unfinished:
        wrong.append(f"{root / kind}: fetching it broke off; run `r2l data fetch {kind}` again")
    for intensity, name in scales:
        tiled = {} if kind == "microscopy" else {"tiled": name != "images_full"}
        place = root / kind / name / scale_folder(intensity)
        try:
            data = _LOADERS[kind](root, "all", intensity, **tiled)
        except DatasetError as error:
            wrong.append(_line(error))
            continue
        damaged = list(_damaged(data, progress))
        wrong += damaged
        if not damaged:
            fine.append(f"{place}: {len(data)} images, each decodes")
            if f"{kind}/{place.name}" not in manifest.subsets:
                wrong += _differences(kind, data, place)
    return fine, wrong


def _line(error: DatasetError) -> str:
    path, reason, remedy = error.args
    return f"{path}: {reason} ({remedy[0].lower()}{remedy[1:]})"


def _damaged(data: RealDataset, progress: bool) -> Iterator[str]:
    """Decode all images, past the cache; yield a line for each that fails."""
    shape = None
    for path in tqdm(data.files, desc="verify", unit="image", disable=not progress):
        try:
            steps = read_steps(path, data.remedy, data.camera)
        except DatasetError as error:
            yield _line(error)
            continue
        shape = shape or steps.shape
        if steps.shape != shape:
            yield f"{path}: {steps.shape} pixels, and the others have {shape} ({data.remedy})"


def _check_record(
    kind: str, root: Path, manifest: Manifest, progress: bool
) -> tuple[list[str], list[str]]:
    recorded = {name: v for name, v in manifest.files.items() if name.startswith(f"{kind}/")}
    wrong = []
    for name, (size, crc) in tqdm(recorded.items(), desc="checksums", disable=not progress):
        path, remedy = root / name, fetch_again(kind, root)
        if not path.is_file():
            wrong.append(f"{path}: gone since it was fetched ({remedy})")
        elif path.stat().st_size != size or crc32(path) != crc:
            wrong.append(f"{path}: not as it was fetched ({remedy})")
    if not recorded:
        return [f"{root / kind}: not fetched by r2l, so there are no checksums"], wrong
    fine = [] if wrong else [f"{root / kind}: {len(recorded)} files have their checksums"]
    return fine, wrong


def _differences(kind: str, data: RealDataset, place: Path) -> list[str]:
    """Compare counts with the published ones."""
    info, is_photos = INFO[kind], place.parent.name == "images_full"
    expected = DRONE_FRAMES if is_photos else info.images
    wrong = []
    if len(data) != expected:
        wrong.append(f"{place}: {len(data)} images, and {expected} were published")
    if info.class_counts:
        counts = np.bincount(data.labels, minlength=len(info.classes))
        for name, count, published in zip(info.classes, counts, info.class_counts, strict=True):
            if count != published:
                wrong.append(f"{place}: {count} images of {name}, and {published} were published")
    return wrong
