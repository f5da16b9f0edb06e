"""Fetching the real data sets: only when asked, whole or a few images, from Zenodo or B2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from filelock import FileLock

from r2l.datasets.fetch.archive import crc32, install, place_of, unpack
from r2l.datasets.fetch.manifest import NAME, Manifest
from r2l.datasets.fetch.transfer import disk_errors, polite_session
from r2l.datasets.fetch.zenodo import RemoteFile, download_all, files_of, record_files
from r2l.datasets.info import INFO
from r2l.datasets.layout import data_root, images_in, scale_folder

SOURCES = ("zenodo", "b2")
DOWNLOADS = "downloads"
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
    """Fetch a real data set below ``root``; what is there already is not fetched again.

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
    if kind not in INFO:
        raise ValueError(f"unknown data set {kind!r}; choose from {', '.join(INFO)}")
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; choose from {', '.join(SOURCES)}")
    if tiles is not None and (tiles < 1 or source == "b2"):
        raise ValueError(f"{tiles} tiles from {source}: expected 1 or more, from zenodo")
    place = data_root(root)
    with _locked(place) as manifest:
        if source == "b2":
            return _from_b2(kind, place, manifest, progress)
        return _from_zenodo(kind, place, manifest, tiles, intensity, api, progress)


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
    with disk_errors(root):
        (root / DOWNLOADS).mkdir(parents=True, exist_ok=True)
    with FileLock(root / DOWNLOADS / ".lock"):
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
        with disk_errors(root):
            manifest.write(root)


def _from_b2(kind: str, root: Path, manifest: Manifest, progress: bool) -> list[str]:
    from r2l.datasets.fetch.b2 import get_b2_bucket, sync  # slow to import

    bucket = get_b2_bucket()
    manifest.begin(root, kind)
    folders = sync(kind, root, bucket, progress)
    whole = not manifest.changed(root, kind)
    for archive in sorted(path for folder in folders for path in folder.rglob("*.zip")):
        name, known = archive.relative_to(root).as_posix(), f"crc32:{crc32(archive):08x}"
        if not whole or manifest.archives.get(name) != known:
            unpack(kind, archive, root, manifest, progress)
            manifest.archives[name] = known
    manifest.finish(kind)
    return [f"{INFO[kind].title} is in {root / kind}."]


def _from_zenodo(
    kind: str,
    root: Path,
    manifest: Manifest,
    tiles: int | None,
    intensity: float,
    api: str | None,
    progress: bool,
) -> list[str]:
    with polite_session() as session:
        files = files_of(kind, record_files(session, api))
        if tiles is None:
            return _fetch_whole(kind, files, root, manifest, session, progress)
        from r2l.datasets.fetch.subset import NoRangesError, fetch_subset

        options = {"count": tiles, "intensity": intensity, "progress": progress}
        try:
            stems = fetch_subset(kind, files, root, manifest, session, **options)
        except NoRangesError as error:
            why = f"Whole archives were fetched, since single images can't be had: {error}."
            return [why, *_fetch_whole(kind, files, root, manifest, session, progress)]
    part = f"{kind}/{scale_folder(intensity)}"
    manifest.subsets[part] = sorted({*manifest.subsets.get(part, ()), *stems})
    return [f"{len(stems)} images of {INFO[kind].title} are in {root / kind}."]


def _fetch_whole(
    kind: str,
    files: Sequence[RemoteFile],
    root: Path,
    manifest: Manifest,
    session: requests.Session,
    progress: bool,
) -> list[str]:
    manifest.begin(root, kind)
    whole, done = not manifest.changed(root, kind), manifest.archives
    pending = [file for file in files if not (whole and done.get(file.key) == file.checksum)]
    notes: list[str] = []
    if pending:
        paths = download_all(pending, root / DOWNLOADS, session, progress)
        for file, path in zip(pending, paths, strict=True):
            notes += _put_in_place(kind, path, root, manifest, progress)
            manifest.archives[file.key] = file.checksum
    manifest.finish(kind)
    size = sum(file.size for file in files) / 1e9
    return [
        *notes,
        f"{INFO[kind].title} is in {root / kind}.",
        f"Its archives ({size:.2f} GB) are in {root / DOWNLOADS}: not needed any more.",
    ]


def _put_in_place(
    kind: str, path: Path, root: Path, manifest: Manifest, progress: bool
) -> list[str]:
    """Bring a downloaded file to where it belongs; return what is left to the user."""
    if path.suffix.lower() == ".zip":
        unpack(kind, path, root, manifest, progress)
    elif path.suffix.lower() in _OTHER_ARCHIVES:
        return [f"{path} is an archive that r2l doesn't unpack: do so into {root / kind}."]
    else:
        place, crc = place_of(kind, "", path.name), crc32(path)
        # The rest (papers, read-mes) stays where it is.
        if "other" not in place.parts:
            install(lambda: path.open("rb"), path.stat().st_size, crc, root / place)
            manifest.files[str(place)] = (path.stat().st_size, crc)
    return []
