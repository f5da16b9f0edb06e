"""Zip archives of the data sets: judged before anything is written, and unpacked file by file."""

import errno
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from r2l.datasets.fetch.transfer import CHUNK, DownloadError, check_room, progress_bar, whole_file
from r2l.datasets.layout import LABEL_FILE, Manifest, pipeline_code

_MAX_MEMBERS = 1_000_000
_MAX_BYTES = 500 * 10**9
_CELL = re.compile(r"lame\d+_zone\d+")
_TILE = re.compile(r"\d{2}_\d{5}")
_SCALE = re.compile(r"raw_scale(\d{3})")
_JUNK = ("__MACOSX", ".DS_Store", ".bzEmpty", "Thumbs.db")
_DAMAGED = zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, ValueError
_Source = Callable[[], IO[bytes]]  # opens what a file is written from


class ArchiveError(DownloadError):
    """An archive that can't be unpacked, or must not be. Nothing of it was written then."""


def safe_members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Return the files in an archive, once all of its members are found harmless.

    Raises:
        ArchiveError: an absolute name, "..", a link or a device, encryption, a rare compression, or
            more than anybody's data: the whole archive is refused.
    """
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    if len(members) > _MAX_MEMBERS or size > _MAX_BYTES:
        raise _refused(name, f"it would grow to {len(members)} files of {size / 1e9:.0f} GB")
    for member in members:
        # zipfile cuts names at a null byte and turns backslashes on Windows: judge the original.
        path = PurePosixPath(member.orig_filename.replace("\\", "/"))
        mode = stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)):
            raise _refused(name, f"{member.orig_filename!r} would be written outside of the folder")
        if "\0" in member.orig_filename:
            raise _refused(name, f"{member.orig_filename!r} is no name")
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(name, f"{member.filename!r} is a link or a device, not a file")
        if member.flag_bits & 0x1:
            raise _refused(name, f"{member.filename!r} is encrypted")
        # Others are not in use for data sets, and LZMA's takes the memory that the file asks for.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = zipfile.compressor_names.get(member.compress_type, "an unknown method")
            raise _refused(name, f"{member.filename!r} is compressed by {method}")
    files = ((m, PurePosixPath(m.filename).parts) for m in members if not m.is_dir())
    return [m for m, parts in files if not any(part in _JUNK or part.startswith("._") for part in parts)]


def _refused(name: str, reason: str) -> ArchiveError:
    return ArchiveError(name, reason, "Nothing was unpacked. Don't use this archive")


def place_of(kind: str, archive: str, member: str) -> PurePosixPath:
    """Return where a file belongs below the root (see `r2l.datasets.layout`), by its name.

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
    scales = _SCALE.findall(everything)
    scale = f"raw_scale{scales[-1]}" if scales else None
    is_mask, folder = "mask" in everything, None
    if path.name == LABEL_FILE:
        kind, folder = "microscopy", "labels"
    elif _CELL.search(path.stem):
        is_developed = any(word in everything for word in ("processed", "view", "rgb"))
        kind, inside = "microscopy", view or scale or (None if is_developed else "raw_scale100")
        folder = inside and f"images/{inside}"
    elif path.suffix.lower() == ".dng":
        kind, folder = "drone", f"images_full/{scale or 'raw_scale100'}"
    elif _TILE.fullmatch(path.stem):
        kind, tiles = "drone", scale and f"images_tiles_256/{scale}"
        folder = view or ("masks_tiles_256" if is_mask else tiles)
    elif kind == "drone" and is_mask and path.suffix.lower() == ".png":
        folder = "masks_full"
    if folder is None:
        return PurePosixPath(kind, "other", above[0], *path.parts)
    return PurePosixPath(kind, folder, path.name)


@dataclass(frozen=True)
class Destination:
    """Where a data set ("microscopy", "drone") is put below a root, with the record of what came."""

    kind: str
    root: Path
    manifest: Manifest
    progress: bool = True

    def unpack(self, archive: Path, depth: int = 0) -> None:
        """Unpack a zip, each file to its place; zips in the zip are unpacked too.

        Files that are there already with the same content stay; one with other content is the
        user's, and stops the unpacking.

        Raises:
            ArchiveError: damaged, dangerous, or a file with other content is in the way.
            DownloadError: no room on the disk.
        """
        inner: list[Path] = []
        with _zip_errors(archive), zipfile.ZipFile(archive) as file:
            members = safe_members(file, str(archive))
            places = {m: place_of(self.kind, archive.name, m.filename) for m in members}
            missing = (m.file_size for m, place in places.items() if not (self.root / place).exists())
            check_room(self.root, sum(missing))
            total = sum(member.file_size for member in members)
            with progress_bar(total, f"unpack {archive.name}", self.progress) as bar:
                for member, place in places.items():
                    if place.suffix.lower() == ".zip" and depth == 0:
                        inner.append(archive.parent / archive.stem / place.name)
                        _install(partial(file.open, member), member.file_size, member.CRC, inner[-1])
                    else:
                        self.extract(file, member, place)
                    bar.update(member.file_size)
        for path in inner:
            self.unpack(path, depth + 1)

    def extract(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: PurePosixPath) -> None:
        """Write one file of an archive to its place below the root, and write it down."""
        self._put(partial(archive.open, member), member.file_size, member.CRC, place)

    def install(self, path: Path) -> None:
        """Copy a file that came by itself to its place; what isn't known (papers, read-mes) stays."""
        place = place_of(self.kind, "", path.name)
        if "other" not in place.parts:
            self._put(partial(path.open, "rb"), path.stat().st_size, crc32(path), place)

    def _put(self, source: _Source, size: int, crc: int, place: PurePosixPath) -> None:
        _install(source, size, crc, self.root / place)
        self.manifest.files[str(place)] = (size, crc)


def _install(source: _Source, size: int, crc: int, target: Path) -> None:
    """Write a file, whole or not at all; leave it if it is there already."""
    if target.exists():
        if (target.stat().st_size, crc32(target)) == (size, crc):
            return
        remedy = "Nothing was replaced: move it away, then run the same command again"
        raise ArchiveError(target, "is there with other content than was published", remedy)
    with whole_file(target) as unfinished:
        with source() as reading, unfinished.open("wb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
            came = writing.tell()
        if came != size:
            why = f"should have {size} bytes, and {came} came"
            raise ArchiveError(target, why, "The archive contradicts itself: fetch it again")


def crc32(path: Path) -> int:
    """Return the CRC-32 of a file, as zip archives have it."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


@contextmanager
def _zip_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        # Of the system's errors, the one that an offset before the beginning of the file gives.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        remedy = "Move it away, then run the same command again"
        raise ArchiveError(archive, f"damaged, or no zip file ({error})", remedy) from error
