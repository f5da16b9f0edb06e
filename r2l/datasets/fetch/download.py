"""Fetching the published data sets: only when asked, whole or a few images, from Zenodo or B2.

Zip archives are judged before anything is written, and unpacked file by file.
"""

from __future__ import annotations

import errno
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import requests
from filelock import FileLock
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from tqdm import tqdm

from r2l.datasets import layout
from r2l.datasets.fetch import transfer
from r2l.datasets.fetch.transfer import DownloadError, RemoteFile, translated, whole_file
from r2l.files import R2LError, choose

_DOWNLOADS = "downloads"
_OTHER_ARCHIVES = {".gz", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz"}
_SEED = 0  # of the choice of a few images: the same for every intensity
_MAX_MEMBERS = 1_000_000
_MAX_BYTES = 500 * 10**9
_JUNK = ("__MACOSX", ".DS_Store", ".bzEmpty", "Thumbs.db")
_DAMAGED = zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, ValueError
_LABELS = PurePosixPath("microscopy/labels", layout.LABEL_FILE)
_Members = dict[PurePosixPath, tuple[zipfile.ZipFile, zipfile.ZipInfo]]


class ArchiveError(DownloadError):
    """An archive that can't be unpacked, or must not be. Nothing of it was written then."""


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
        into = _Destination(kind, folder, manifest, progress)
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
    """Fetch a data set unless files of it are there, whoever put them there; errors as `fetch`.

    One whose fetching broke off is fetched to the end.
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


def _from_b2(into: _Destination) -> list[str]:
    root, archives = into.root, into.manifest.archives
    into.manifest.begin(root, into.kind)
    folders = transfer.sync_b2(into.kind, root, transfer.b2_bucket(), into.progress)
    zips = sorted(path for folder in folders for path in folder.rglob("*.zip"))
    came = ((path, path.relative_to(root).as_posix(), f"crc32:{crc32(path):08x}") for path in zips)
    whole = into.manifest.is_whole(root, into.kind)
    return _use(into, [file for file in came if not (whole and archives.get(file[1]) == file[2])])


def _fetch_whole(into: _Destination, files: Sequence[RemoteFile], session: requests.Session) -> list[str]:
    archives, folder = into.manifest.archives, into.root / _DOWNLOADS
    into.manifest.begin(into.root, into.kind)
    whole = into.manifest.is_whole(into.root, into.kind)
    pending = [file for file in files if not (whole and archives.get(file.key) == file.checksum)]
    paths = transfer.download_all(pending, folder, session, into.progress) if pending else []
    notes = _use(into, ((p, file.key, file.checksum) for p, file in zip(paths, pending, strict=True)))
    size = sum(file.size for file in files) / 1e9
    return [*notes, f"Its archives ({size:.2f} GB) are in {folder}: not needed any more."]


def _use(into: _Destination, came: Iterable[tuple[Path, str, str]]) -> list[str]:
    """Unpack or install the last files of a data set; each has a name and a checksum in the record."""
    notes, title = [], layout.INFO[into.kind].title
    for path, name, checksum in came:
        suffix = path.suffix.lower()
        if suffix == ".zip":
            into.unpack(path)
        elif suffix in _OTHER_ARCHIVES:
            where = into.root / into.kind
            notes.append(f"{path} is an archive that r2l doesn't unpack: do so into {where}.")
        else:
            into.install(path)
        into.manifest.archives[name] = checksum
    into.manifest.finish(into.kind)
    return [*notes, f"{title} is in {into.root / into.kind}."]


def _fetch_some(
    into: _Destination, files: Sequence[RemoteFile], session: requests.Session, count: int, intensity: float
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
                for info in _safe_members(archive, file.url):
                    members[layout.place_of(kind, file.key, info.filename)] = archive, info
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


def _images_of(into: _Destination, members: _Members, scale: str) -> dict[str, list[PurePosixPath]]:
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


def _safe_members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Return the files in an archive, once all of its members are found harmless.

    Raises:
        ArchiveError: an absolute name, "..", a link or a device, encryption, a rare compression, or
            more than anybody's data: the whole archive is refused.
    """
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    reason = next(filter(None, map(_danger, members)), "")
    if len(members) > _MAX_MEMBERS or size > _MAX_BYTES:
        reason = f"it would grow to {len(members)} files of {size / 1e9:.0f} GB"
    if reason:
        raise ArchiveError(name, reason, "Nothing was unpacked. Don't use this archive")
    files = ((m, PurePosixPath(m.filename).parts) for m in members if not m.is_dir())
    return [m for m, parts in files if not any(part in _JUNK or part.startswith("._") for part in parts)]


def _danger(member: zipfile.ZipInfo) -> str:
    # zipfile cuts names at a null byte and turns backslashes on Windows: judge the original.
    path = PurePosixPath(member.orig_filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)):
        return f"{member.orig_filename!r} would be written outside of the folder"
    if "\0" in member.orig_filename:
        return f"{member.orig_filename!r} is no name"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{member.filename!r} is a link or a device, not a file"
    if member.flag_bits & 0x1:
        return f"{member.filename!r} is encrypted"
    # Others are not in use for data sets, and LZMA's takes the memory that the file asks for.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = zipfile.compressor_names.get(member.compress_type, "an unknown method")
        return f"{member.filename!r} is compressed by {method}"
    return ""


@dataclass(frozen=True)
class _Destination:
    """Where a data set ("microscopy", "drone") is put below a root, with the record of what came."""

    kind: str
    root: Path
    manifest: layout.Manifest
    progress: bool = True

    def unpack(self, archive: Path, depth: int = 0) -> None:
        """Unpack a zip, each file to its place; zips in the zip are unpacked too.

        Files that are there already with the same content stay; one with other content is the
        user's, and stops the unpacking.

        Raises:
            ArchiveError: damaged, dangerous, or a file with other content is in the way.
            DownloadError: no room on the disk.
        """
        try:
            with zipfile.ZipFile(archive) as file:
                inner = self._unpack(archive, file, depth)
        except _DAMAGED as error:
            # Of the system's errors, the one that an offset before the beginning of the file gives.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            remedy = "Move it away, then run the same command again"
            raise ArchiveError(archive, f"damaged, or no zip file ({error})", remedy) from error
        for path in inner:
            self.unpack(path, depth + 1)

    def _unpack(self, archive: Path, file: zipfile.ZipFile, depth: int) -> list[Path]:
        members, inner = _safe_members(file, str(archive)), []
        places = {m: layout.place_of(self.kind, archive.name, m.filename) for m in members}
        missing = (m.file_size for m, place in places.items() if not (self.root / place).exists())
        transfer.check_room(self.root, sum(missing))
        total = sum(member.file_size for member in members)
        with transfer.byte_bar(total, f"unpack {archive.name}", self.progress) as bar:
            for member, place in places.items():
                if place.suffix.lower() == ".zip" and depth == 0:
                    inner.append(archive.parent / archive.stem / place.name)
                    _install(partial(file.open, member), member.file_size, member.CRC, inner[-1])
                else:
                    self.extract(file, member, place)
                bar.update(member.file_size)
        return inner

    def extract(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: PurePosixPath) -> None:
        """Write one file of an archive to its place below the root, and write it down."""
        source, target = partial(archive.open, member), self.root / place
        self.manifest.files[str(place)] = _install(source, member.file_size, member.CRC, target)

    def install(self, path: Path) -> None:
        """Copy a file that came by itself to its place; what isn't known (papers, read-mes) stays."""
        place = layout.place_of(self.kind, "", path.name)
        if "other" not in place.parts:
            source, size, crc = partial(path.open, "rb"), path.stat().st_size, crc32(path)
            self.manifest.files[str(place)] = _install(source, size, crc, self.root / place)


def _install(source: Callable[[], IO[bytes]], size: int, crc: int, target: Path) -> tuple[int, int]:
    """Write a file, whole or not at all, and return its size and CRC; leave it if it is there already."""
    if target.exists():
        if (target.stat().st_size, crc32(target)) == (size, crc):
            return size, crc
        remedy = "Nothing was replaced: move it away, then run the same command again"
        raise ArchiveError(target, "is there with other content than was published", remedy)
    with whole_file(target) as unfinished:
        with source() as reading, unfinished.open("wb") as writing:
            shutil.copyfileobj(reading, writing, transfer.CHUNK)
            came = writing.tell()
        if came != size:
            why = f"should have {size} bytes, and {came} came"
            raise ArchiveError(target, why, "The archive contradicts itself: fetch it again")
    return size, crc


def crc32(path: Path) -> int:
    """Return the CRC-32 of a file, as zip archives have it."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
