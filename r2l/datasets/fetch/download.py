"""Fetching the published data sets: only when asked, whole or a few images, from Zenodo or B2."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import requests
from filelock import FileLock
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from tqdm import tqdm

from r2l.datasets import layout
from r2l.datasets.fetch import transfer
from r2l.datasets.fetch.archive import Destination, crc32, place_of, safe_members
from r2l.datasets.fetch.transfer import DownloadError, RemoteFile, translated, whole_file
from r2l.files import R2LError, choose, need_extra

if TYPE_CHECKING:
    from b2sdk.v3 import Bucket

_DOWNLOADS = "downloads"
_OTHER_ARCHIVES = {".gz", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz"}
_SEED = 0  # of the choice of a few images: the same for every intensity
_LABELS = PurePosixPath("microscopy/labels", layout.LABEL_FILE)
_Members = dict[PurePosixPath, tuple[zipfile.ZipFile, zipfile.ZipInfo]]

# At B2, folder of the bucket to folder below the root; those with zips go to the downloads.
_B2_FOLDERS = {
    "microscopy": {
        "Data histopathology/WhiteCellsImages": "downloads/b2/microscopy_images",
        "Data histopathology/WhiteCellsLabels": "microscopy/labels",
    },
    "drone": {"drone/images": "downloads/b2/drone_images", "drone/masks": "drone/masks_full"},
}
_FOLDER_MARK = ".bzEmpty"  # an empty file that marks a folder of the bucket


class NoRangesError(R2LError):
    """The server doesn't serve parts of files, or the archives can't be read in parts."""


def fetch(
    kind: str,
    root: str | Path | None = None,
    *,
    source: str = "zenodo",
    tiles: int | None = None,
    intensity: float = 1.0,
    progress: bool = True,
) -> list[str]:
    """Fetch a published data set below ``root``; what is there already is not fetched again.

    Archives go to ``root/downloads``, are checked by the record's checksums, and stay there after
    unpacking: delete them if you want the room. A fetch that broke off or was killed goes on where
    it was. Two at once: the second waits for the first. Nothing that is there is ever replaced.

    Args:
        kind: "microscopy" or "drone".
        root: folder above ``microscopy`` and ``drone``; else the variable R2L_DATA, else ./data.
        source: "zenodo" (its API is at the variable R2L_ZENODO_API, if set), or "b2" with
            B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY set.
        tiles: fetch this many images of ``intensity`` only, by ranges of bytes, from Zenodo. Where
            the server doesn't serve ranges, whole archives are fetched.
        intensity: see ``tiles``.
        progress: show bars.

    Returns:
        What happened, a sentence a line.

    Raises:
        ValueError: an unknown set or source, or ``tiles`` below 1 or from B2.
        DownloadError: no connection, no room, wrong content, or an archive that must not be used.
    """
    choose("data set", kind, layout.INFO)
    choose("source", source, ("zenodo", "b2"))
    if tiles is not None and (tiles < 1 or source == "b2"):
        raise ValueError(f"{tiles} tiles from {source}: expected 1 or more, from zenodo")
    folder = layout.data_root(root)
    with _locked(folder) as manifest:
        into = Destination(kind, folder, manifest, progress)
        if source == "b2":
            return _from_b2(into)
        with transfer.polite_session() as session:
            files, notes = transfer.files_of(kind, transfer.record_files(session)), []
            if tiles is not None:
                try:
                    return _fetch_some(into, files, session, tiles, intensity)
                except NoRangesError as error:
                    why = ": ".join(error.args[:2])
                    notes = [f"Whole archives were fetched, since single images can't be had: {why}."]
            return [*notes, *_fetch_whole(into, files, session)]


def fetch_if_missing(kind: str, root: Path) -> None:
    """Fetch a data set unless files of it are there, whoever put them there.

    One whose fetching broke off is fetched to the end.

    Raises:
        DownloadError: as `fetch`.
    """
    there = any(layout.images_in(folder) for folder in (root / kind).glob("*/raw_scale*"))
    if not there or kind in layout.Manifest.read(root).unfinished:
        fetch(kind, root)


@contextmanager
def _locked(root: Path) -> Iterator[layout.Manifest]:
    """Keep other processes out of a root while files are fetched into it."""
    with transfer.explained(root):
        (root / _DOWNLOADS).mkdir(parents=True, exist_ok=True)
    with FileLock(root / _DOWNLOADS / ".lock"):
        for partial in root.glob(f".{layout.MANIFEST}.????????.part"):  # of a process that was killed
            partial.unlink()
        manifest = layout.Manifest.read(root)
        try:
            yield manifest
        except BaseException:
            # What came is remembered even if the rest failed.
            with suppress(OSError):
                manifest.write(root)
            raise
        with transfer.explained(root):
            manifest.write(root)


def _from_b2(into: Destination) -> list[str]:
    bucket, root, archives = _b2_bucket(), into.root, into.manifest.archives
    into.manifest.begin(root, into.kind)
    folders = _sync_b2(into.kind, root, bucket, into.progress)
    whole = into.manifest.is_whole(root, into.kind)
    for archive in sorted(path for folder in folders for path in folder.rglob("*.zip")):
        name, checksum = archive.relative_to(root).as_posix(), f"crc32:{crc32(archive):08x}"
        if not whole or archives.get(name) != checksum:
            into.unpack(archive)
            archives[name] = checksum
    into.manifest.finish(into.kind)
    return [f"{layout.INFO[into.kind].title} is in {root / into.kind}."]


def _b2_bucket(name: str = "perturbed-minds") -> Bucket:
    """Return a bucket, with the credentials in B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY.

    The key stays in memory. One that may read the bucket's files will do.

    Raises:
        DownloadError: no credentials, or B2 refuses them or the bucket.
    """
    need_extra("b2", "b2sdk")
    from b2sdk.v3 import B2Api, InMemoryAccountInfo  # slow to import
    from b2sdk.v3.exception import B2Error

    names = "B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY"
    key_id, key = os.environ.get("B2_APPLICATION_KEY_ID"), os.environ.get("B2_APPLICATION_KEY")
    if not (key_id and key):
        remedy = "Without an account there, use --source zenodo"
        raise DownloadError("B2 needs credentials", f"set {names}", remedy)
    api, remedy = B2Api(InMemoryAccountInfo()), f"Check {names}, or use --source zenodo"
    with translated("B2", f"refuses the bucket {name}", remedy, B2Error):
        api.authorize_account(key_id, key)
        return api.get_bucket_by_name(name)


def _sync_b2(kind: str, root: Path, bucket: Bucket, progress: bool = True) -> list[Path]:
    """Fetch what is missing of a data set's folders, and return these; never change what is there.

    Each file is checked by B2's SHA-1 (large files have none there; what a zip holds is checked by
    its own sums) and has its name only once it is whole.

    Raises:
        DownloadError: a file didn't come, or no room on the disk; those that came are kept.
        OSError: a folder can't be made.
    """
    from b2sdk.v3.exception import B2Error

    missing = []
    why, kept = "B2 didn't give it", "What came is kept: run the same command again, or use --source zenodo"
    for prefix, below in _B2_FOLDERS[kind].items():
        target = root / below
        target.mkdir(parents=True, exist_ok=True)
        with translated(f"{bucket.name}/{prefix}", why, kept, B2Error):
            for version, _ in bucket.ls(prefix, recursive=True):
                inside = PurePosixPath(version.file_name).relative_to(prefix)
                if ".." in inside.parts or "\\" in version.file_name:
                    outside = f"would be written outside of {target}"
                    raise DownloadError(version.file_name, outside, "Nothing was fetched")
                # A file that is there stays, be it older or newer or of another size.
                if inside.name != _FOLDER_MARK and not (target / inside).exists():
                    missing.append((version, target / inside))
    total = sum(version.size for version, _ in missing)
    transfer.check_room(root, total)
    with transfer.progress_bar(total, "fetch", progress) as bar:
        for version, path in missing:
            with translated(version.file_name, why, kept, B2Error), whole_file(path) as unfinished:
                # Without seeking b2sdk uses one stream; with more it hangs for good on a full disk.
                file = bucket.download_file_by_id(version.id_)
                file.save_to(unfinished, "wb", allow_seeking=False)
            bar.update(version.size)
    return [root / below for below in _B2_FOLDERS[kind].values()]


def _fetch_whole(into: Destination, files: Sequence[RemoteFile], session: requests.Session) -> list[str]:
    root, archives, folder = into.root, into.manifest.archives, into.root / _DOWNLOADS
    into.manifest.begin(root, into.kind)
    whole, notes = into.manifest.is_whole(root, into.kind), []
    pending = [file for file in files if not (whole and archives.get(file.key) == file.checksum)]
    paths = transfer.download_all(pending, folder, session, into.progress) if pending else []
    for file, path in zip(pending, paths, strict=True):
        suffix = path.suffix.lower()
        if suffix == ".zip":
            into.unpack(path)
        elif suffix in _OTHER_ARCHIVES:
            notes.append(f"{path} is an archive that r2l doesn't unpack: do so into {root / into.kind}.")
        else:
            into.install(path)
        archives[file.key] = file.checksum
    into.manifest.finish(into.kind)
    size = sum(file.size for file in files) / 1e9
    notes.append(f"{layout.INFO[into.kind].title} is in {root / into.kind}.")
    return [*notes, f"Its archives ({size:.2f} GB) are in {folder}: not needed any more."]


def _fetch_some(
    into: Destination, files: Sequence[RemoteFile], session: requests.Session, count: int, intensity: float
) -> list[str]:
    """Fetch ``count`` images (tiles, or photos if there are no tiles) with their labels or masks.

    Reads the directory of each zip and then only the wanted files, one request at a time.

    Raises:
        NoRangesError: take whole archives instead.
    """
    scale, root, kind = layout.scale_folder(intensity), into.root, into.kind
    with ExitStack() as stack:
        members: _Members = {}
        for file in files:
            if file.key.lower().endswith(".zip"):
                try:
                    archive = stack.enter_context(RemoteZip(file.url, session=session))
                except (RemoteZipError, zipfile.BadZipFile) as error:
                    raise NoRangesError(file.url, str(error), "Fetch whole archives") from error
                for info in safe_members(archive, file.url):
                    members[place_of(kind, file.key, info.filename)] = archive, info
        for file in files:
            if Path(file.key).name == layout.LABEL_FILE:
                into.install(*transfer.download_all([file], root / _DOWNLOADS, session, progress=False))
        trouble = root, "a part of an archive didn't come", "Try again later"
        stack.enter_context(translated(*trouble, RemoteIOError, zipfile.BadZipFile))
        if kind == "microscopy" and _LABELS in members:
            into.extract(*members[_LABELS], _LABELS)
        images = _images_of(into, members, scale)
        stems = sorted(np.random.default_rng(_SEED).permutation(sorted(images))[:count].tolist())
        for stem in tqdm(stems, "fetch", unit="image", disable=not into.progress):
            for place in images[stem]:
                into.extract(*members[place], place)
    part, subsets = f"{kind}/{scale}", into.manifest.subsets
    subsets[part] = sorted({*subsets.get(part, ()), *stems})
    return [f"{len(stems)} images of {layout.INFO[kind].title} are in {root / kind}."]


def _images_of(into: Destination, members: _Members, scale: str) -> dict[str, list[PurePosixPath]]:
    """Return the images with a label or a mask, by stem: where they belong, and their masks."""

    def stems(folder: str) -> dict[str, PurePosixPath]:
        return {place.stem: place for place in members if str(place.parent) == folder}

    images: dict[str, list[PurePosixPath]] = {}
    if into.kind == "microscopy" and (into.root / _LABELS).exists():
        kept, _ = layout.read_labels(into.root / _LABELS)
        images = {s: [place] for s, place in stems(f"microscopy/images/{scale}").items() if s in kept}
    for what in ("tiles_256", "full") if into.kind == "drone" else ():
        places = stems(f"drone/images_{what}/{scale}")
        masks = layout.pair_masks(places, stems(f"drone/masks_{what}"))
        images = images or {s: [p, masks[s]] for s, p in places.items() if s in masks}
    if not images:
        why = f"no images of {scale} with labels or masks in the archives' directories"
        raise NoRangesError(into.root, why, "Fetch whole archives")
    return images
