"""A few images out of large archives on a server, by ranges of bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import numpy as np
import requests
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from tqdm import tqdm

from r2l.datasets.fetch.archive import Destination, place_of, safe_members
from r2l.datasets.fetch.transfer import RemoteFile, download, progress_bar, translated
from r2l.datasets.info import BAD_STEM, INFO, LABEL_FILE
from r2l.datasets.layout import pair_masks, read_labels, scale_folder
from r2l.files import R2LError

_SEED = 0  # the same images for every intensity
_LABELS = PurePosixPath("microscopy/labels", LABEL_FILE)
_Members = Mapping[PurePosixPath, tuple[zipfile.ZipFile, zipfile.ZipInfo]]


class NoRangesError(R2LError):
    """The server doesn't serve parts of files, or the archives can't be read in parts."""


def fetch_subset(
    into: Destination,
    files: Sequence[RemoteFile],
    session: requests.Session,
    count: int,
    intensity: float,
) -> list[str]:
    """Fetch ``count`` images (tiles, or photos if there are no tiles) with their labels or masks.

    Reads the directory of each zip and then only the wanted files, one request at a time.

    Returns:
        Stems of the images.

    Raises:
        NoRangesError: take whole archives instead.
        DownloadError: no connection or no room on the disk; or an archive that must not be used.
    """
    errors, why = (RemoteIOError, zipfile.BadZipFile), "a part of an archive didn't come"
    with ExitStack() as stack:
        members = _open_all(into.kind, files, session, stack)
        for file in files:
            if Path(file.key).name == LABEL_FILE:
                target = into.root / place_of(into.kind, "", file.key)
                target.parent.mkdir(parents=True, exist_ok=True)
                with progress_bar(file.size, "fetch", progress=False) as bar:
                    download(file, target, session, bar)
        with translated(errors, into.root, why, "Try again later"):
            if into.kind == "microscopy" and _LABELS in members:
                into.extract(*members[_LABELS], _LABELS)
            images = _images_of(into, members, scale_folder(intensity))
            stems = np.random.default_rng(_SEED).permutation(sorted(images))[:count].tolist()
            for stem in tqdm(sorted(stems), "fetch", unit="image", disable=not into.progress):
                for place in images[stem]:
                    into.extract(*members[place], place)
    return sorted(stems)


def _open_all(
    kind: str, files: Sequence[RemoteFile], session: requests.Session, stack: ExitStack
) -> _Members:
    """Return what the zips hold, by where it belongs."""
    members = {}
    for file in files:
        if not file.key.lower().endswith(".zip"):
            continue
        try:
            archive = stack.enter_context(RemoteZip(file.url, session=session))
        except (RemoteZipError, zipfile.BadZipFile) as error:
            raise _no_ranges(file.url, str(error)) from error
        for info in safe_members(archive, file.url):
            members[place_of(kind, file.key, info.filename)] = archive, info
    return members


def _images_of(into: Destination, members: _Members, scale: str) -> dict[str, list[PurePosixPath]]:
    """Return the images with a label or a mask, by stem: where they belong, and their masks."""

    def stems(folder: str) -> dict[str, PurePosixPath]:
        return {place.stem: place for place in members if str(place.parent) == folder}

    images: dict[str, list[PurePosixPath]] = {}
    if into.kind == "microscopy":
        if not (into.root / _LABELS).exists():
            raise _no_ranges(into.root / _LABELS, "no label file")
        labels, classes = read_labels(into.root / _LABELS), INFO[into.kind].classes
        for stem, place in stems(f"microscopy/images/{scale}").items():
            if labels.get(stem) in classes and stem != BAD_STEM:
                images[stem] = [place]
    for what in ("tiles_256", "full") if into.kind == "drone" else ():
        places = stems(f"drone/images_{what}/{scale}")
        masks = pair_masks(places, stems(f"drone/masks_{what}"))
        images = images or {s: [p, masks[s]] for s, p in places.items() if s in masks}
    if not images:
        raise _no_ranges(into.root, f"no images of {scale} in the archives' directories")
    return images


def _no_ranges(what: str | Path, why: str) -> NoRangesError:
    return NoRangesError(what, why, "Fetch whole archives")
