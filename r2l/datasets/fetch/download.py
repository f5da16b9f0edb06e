"""Fetching the published data sets: only when asked, whole or a few images, from Zenodo or B2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from filelock import FileLock

from r2l.datasets.fetch import transfer
from r2l.datasets.fetch.archive import Destination, crc32
from r2l.datasets.fetch.manifest import NAME, Manifest
from r2l.datasets.fetch.transfer import RemoteFile
from r2l.datasets.info import INFO
from r2l.datasets.layout import data_root, images_in, scale_folder
from r2l.files import choose

_DOWNLOADS = "downloads"
_OTHER_ARCHIVES = frozenset({".gz", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz"})


def fetch(
    kind: str,
    root: str | Path | None = None,
    *,
    source: str = "zenodo",
    tiles: int | None = None,
    intensity: float = 1.0,
    api: str | None = None,
    progress: bool = True,
) -> list[str]:
    """Fetch a published data set below ``root``; what is there already is not fetched again.

    Archives go to ``root/downloads``, are checked by the record's checksums, and stay there after
    unpacking: delete them if you want the room. A fetch that broke off or was killed goes on where
    it was. Two at once: the second waits for the first. Nothing that is there is ever replaced.

    Args:
        kind: "microscopy" or "drone".
        root: folder above ``microscopy`` and ``drone``; else the variable R2L_DATA, else ./data.
        source: "zenodo", or "b2" with B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY set.
        tiles: fetch this many images of ``intensity`` only, by ranges of bytes, from Zenodo. Where
            the server doesn't serve ranges, whole archives are fetched.
        intensity: see ``tiles``.
        api: base address of Zenodo's API; else the variable R2L_ZENODO_API, else the real one.
        progress: show bars.

    Returns:
        What happened, a sentence a line.

    Raises:
        ValueError: an unknown set or source, or ``tiles`` below 1 or from B2.
        DownloadError: no connection, no room, wrong content, or an archive that must not be used.
    """
    choose("data set", kind, INFO)
    choose("source", source, ("zenodo", "b2"))
    if tiles is not None and (tiles < 1 or source == "b2"):
        raise ValueError(f"{tiles} tiles from {source}: expected 1 or more, from zenodo")
    folder = data_root(root)
    with _locked(folder) as manifest:
        into = Destination(kind, folder, manifest, progress)
        if source == "b2":
            return _from_b2(into)
        with transfer.polite_session() as session:
            files = transfer.files_of(kind, transfer.record_files(session, api))
            if tiles is None:
                return _fetch_whole(into, files, session)
            return _fetch_some(into, files, session, tiles, intensity)


def fetch_if_missing(kind: str, root: Path) -> None:
    """Fetch a data set unless files of it are there, whoever put them there.

    One whose fetching broke off is fetched to the end.

    Raises:
        DownloadError: as `fetch`.
    """
    there = any(images_in(folder) for folder in (root / kind).glob("*/raw_scale*"))
    if not there or kind in Manifest.read(root).unfinished:
        fetch(kind, root)


@contextmanager
def _locked(root: Path) -> Iterator[Manifest]:
    """Keep other processes out of a root while files are fetched into it."""
    with transfer.explained(root):
        (root / _DOWNLOADS).mkdir(parents=True, exist_ok=True)
    with FileLock(root / _DOWNLOADS / ".lock"):
        for partial in root.glob(f".{NAME}.????????.part"):  # of a process that was killed
            partial.unlink()
        manifest = Manifest.read(root)
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
    from r2l.datasets.fetch.b2 import get_b2_bucket, sync  # slow to import

    bucket, root, archives = get_b2_bucket(), into.root, into.manifest.archives
    into.manifest.begin(root, into.kind)
    folders = sync(into.kind, root, bucket, into.progress)
    whole = into.manifest.is_whole(root, into.kind)
    for archive in sorted(path for folder in folders for path in folder.rglob("*.zip")):
        name, checksum = archive.relative_to(root).as_posix(), f"crc32:{crc32(archive):08x}"
        if not whole or archives.get(name) != checksum:
            into.unpack(archive)
            archives[name] = checksum
    into.manifest.finish(into.kind)
    return [f"{INFO[into.kind].title} is in {root / into.kind}."]


def _fetch_some(
    into: Destination,
    files: Sequence[RemoteFile],
    session: requests.Session,
    tiles: int,
    intensity: float,
) -> list[str]:
    from r2l.datasets.fetch.subset import NoRangesError, fetch_subset

    try:
        stems = fetch_subset(into, files, session, tiles, intensity)
    except NoRangesError as error:
        what, why, _ = error.args
        note = f"Whole archives were fetched, since single images can't be had: {what}: {why}."
        return [note, *_fetch_whole(into, files, session)]
    part, subsets = f"{into.kind}/{scale_folder(intensity)}", into.manifest.subsets
    subsets[part] = sorted({*subsets.get(part, ()), *stems})
    return [f"{len(stems)} images of {INFO[into.kind].title} are in {into.root / into.kind}."]


def _fetch_whole(
    into: Destination, files: Sequence[RemoteFile], session: requests.Session
) -> list[str]:
    kind, root, archives = into.kind, into.root, into.manifest.archives
    into.manifest.begin(root, kind)
    whole, notes = into.manifest.is_whole(root, kind), []
    pending = [file for file in files if not (whole and archives.get(file.key) == file.checksum)]
    if pending:
        paths = transfer.download_all(pending, root / _DOWNLOADS, session, into.progress)
        for file, path in zip(pending, paths, strict=True):
            suffix = path.suffix.lower()
            if suffix == ".zip":
                into.unpack(path)
            elif suffix in _OTHER_ARCHIVES:
                notes.append(
                    f"{path} is an archive that r2l doesn't unpack: do so into {root / kind}."
                )
            else:
                into.install(path)
            archives[file.key] = file.checksum
    into.manifest.finish(kind)
    size = sum(file.size for file in files) / 1e9
    return [
        *notes,
        f"{INFO[kind].title} is in {root / kind}.",
        f"Its archives ({size:.2f} GB) are in {root / _DOWNLOADS}: not needed any more.",
    ]
