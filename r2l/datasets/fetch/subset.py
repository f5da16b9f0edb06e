"""A few images out of large archives on a server, by ranges of bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import requests
from remotezip import RangeNotSupported, RemoteIOError, RemoteZip, RemoteZipError
from tqdm import tqdm

from r2l.datasets.fetch.archive import ArchiveError, extract, place_of, safe_members
from r2l.datasets.fetch.manifest import Manifest
from r2l.datasets.fetch.transfer import DownloadError, download
from r2l.datasets.fetch.zenodo import RemoteFile
from r2l.datasets.info import BAD_FILES, INFO, LABEL_FILE
from r2l.datasets.layout import scale_folder
from r2l.datasets.raw_microscopy import read_labels

_SEED = 0  # the same images for every intensity
_BAD_STEMS = {Path(name).stem for name in BAD_FILES}


class NoRangesError(Exception):
    """The server doesn't serve parts of files, or the archives can't be read in parts."""


@dataclass(frozen=True)
class _Member:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo


def fetch_subset(
    kind: str,
    files: Sequence[RemoteFile],
    root: Path,
    manifest: Manifest,
    session: requests.Session,
    *,
    count: int,
    intensity: float = 1.0,
    progress: bool = True,
) -> list[str]:
    """Fetch ``count`` images (tiles, or photos if there are no tiles) with their labels or masks.

    Reads the directory of each zip and then only the wanted files, one request at a time.

    Returns:
        Stems of the images.

    Raises:
        NoRangesError: take whole archives instead.
        DownloadError: no connection or no room on the disk; or an archive that must not be used.
    """
    with ExitStack() as stack:
        members = _open_all(kind, files, session, stack)
        for file in files:
            if Path(file.key).name == LABEL_FILE:
                target = root / place_of(kind, "", file.key)
                target.parent.mkdir(parents=True, exist_ok=True)
                download(file.url, target, file.size, file.checksum, session)
        try:
            return _fetch(kind, members, root, manifest, count, intensity, progress)
        except (RemoteIOError, zipfile.BadZipFile) as error:
            raise DownloadError(
                f"{root}: a part of an archive didn't come ({error}).\nTry again later."
            ) from error


def _open_all(
    kind: str, files: Sequence[RemoteFile], session: requests.Session, stack: ExitStack
) -> dict[PurePosixPath, _Member]:
    """Return what the zips hold, by where it belongs."""
    members: dict[PurePosixPath, _Member] = {}
    for file in files:
        if not file.key.lower().endswith(".zip"):
            continue
        try:
            archive = stack.enter_context(RemoteZip(file.url, session=session))
        except RangeNotSupported:
            raise NoRangesError(f"{file.url}: no ranges") from None
        except (RemoteZipError, zipfile.BadZipFile) as error:
            raise NoRangesError(f"{file.url}: {error}") from error
        for info in safe_members(archive, file.url):
            members[place_of(kind, file.key, info.filename)] = _Member(archive, info)
    return members


def _fetch(
    kind: str,
    members: dict[PurePosixPath, _Member],
    root: Path,
    manifest: Manifest,
    count: int,
    intensity: float,
    progress: bool,
) -> list[str]:
    def get(place: PurePosixPath) -> None:
        member = members[place]
        extract(member.archive, member.info, root / place)
        manifest.files[str(place)] = (member.info.file_size, member.info.CRC)

    scale = scale_folder(intensity)
    if kind == "microscopy":
        label_file = PurePosixPath("microscopy/labels", LABEL_FILE)
        if label_file in members:
            get(label_file)
        if not (root / label_file).exists():
            raise NoRangesError("no label file")
        labels = read_labels(root / label_file)
        known = {s for s, name in labels.items() if name in INFO[kind].classes} - _BAD_STEMS
        images = _images(members, f"microscopy/images/{scale}")
        pairs = {stem: [place] for stem, place in images.items() if stem in known}
    else:
        pairs = _with_masks(members, f"drone/images_tiles_256/{scale}", "drone/masks_tiles_256")
        pairs = pairs or _with_masks(members, f"drone/images_full/{scale}", "drone/masks_full")
    if not pairs:
        raise NoRangesError("no images of this intensity in the archives' directories")
    stems = np.random.default_rng(_SEED).permutation(sorted(pairs))[:count].tolist()
    for stem in tqdm(sorted(stems), desc="fetch", unit="image", disable=not progress):
        for place in pairs[stem]:
            get(place)
    return sorted(stems)


def _images(members: dict[PurePosixPath, _Member], folder: str) -> dict[str, PurePosixPath]:
    return {place.stem: place for place in members if str(place.parent) == folder}


def _with_masks(
    members: dict[PurePosixPath, _Member], images: str, masks: str
) -> dict[str, list[PurePosixPath]]:
    found = {place.stem: place for place in _images(members, masks).values()}
    pairs = {}
    for stem, place in _images(members, images).items():
        mask = next((found[other] for other in found if stem in other), None)
        if mask is not None:
            pairs[stem] = [place, mask]
    return pairs


__all__ = ["ArchiveError", "NoRangesError", "fetch_subset"]
