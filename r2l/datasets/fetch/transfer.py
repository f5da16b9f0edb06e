"""The published files: Zenodo's record, over HTTP and on from where it broke off, and B2's buckets.

What fails (a network, a server, a disk without room, other content than a record says) raises a
`DownloadError`, and what came is kept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, ContentDecodingError, RetryError
from tqdm import tqdm
from urllib3.util import Retry

from r2l.datasets.layout import RECORD
from r2l.files import R2LError, need_extra

if TYPE_CHECKING:
    from b2sdk.v3 import Bucket

CHUNK = 1 << 16  # a break loses what came of the last chunk
_TIMEOUT = (15, 60)  # seconds to connect, seconds of silence
_RETRIES = 5  # of one request, and breaks in a row without news
_BACKOFF = 0.5  # seconds before the second retry; doubles from there
_MAX_REQUESTS = 2  # Zenodo answers more with 429
_BREAKS = (requests.ConnectionError, requests.Timeout, ChunkedEncodingError, ContentDecodingError)
_REFUSED = "The files are not public, or this network is refused"
_ADVICE = {401: _REFUSED, 403: _REFUSED, 404: "The address may have changed; see the record's page"}
# The names of the record's files are its own business; these words tell the sets apart.
_WORDS = {
    "microscopy": ("micro", "histo", "cell", "leuko", "blood", "ma190c"),
    "drone": ("drone", "aerial", "car", "dji"),
}

# At B2, folder of the bucket to folder below the root; those with zips go to the downloads.
_B2_FOLDERS = {
    "microscopy": {
        "Data histopathology/WhiteCellsImages": "downloads/b2/microscopy_images",
        "Data histopathology/WhiteCellsLabels": "microscopy/labels",
    },
    "drone": {"drone/images": "downloads/b2/drone_images", "drone/masks": "drone/masks_full"},
}
_FOLDER_MARK = ".bzEmpty"  # an empty file that marks a folder of the bucket


class DownloadError(R2LError, OSError):
    """A download that ended. Says what failed and what to do about it."""


@contextmanager
def explained(path: Path | str, url: str = "") -> Iterator[None]:
    """Turn what a network, a server or a full disk raises into a DownloadError about ``url`` or ``path``."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code
        why, remedy = f"the server answers {status}", _ADVICE.get(status, "Try later")
        raise DownloadError(url or path, why, remedy) from error
    except RetryError as error:
        why, remedy = "the server stays busy", "Try again later; what came so far is kept"
        raise DownloadError(url or path, why, remedy) from error
    except requests.RequestException as error:
        why = f"no connection ({type(error).__name__})"
        remedy = "Check the network and try again; what came so far is kept"
        raise DownloadError(url or path, why, remedy) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        why = f"no room on the disk ({os.strerror(error.errno)})"
        remedy = "Make room or choose another --root, then run the same command: it goes on from here"
        raise DownloadError(path, why, remedy) from error


@contextmanager
def translated(what: Path | str, why: str, remedy: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn ``errors`` of a foreign package into a DownloadError that quotes them."""
    try:
        yield
    except errors as error:
        raise DownloadError(what, f"{why} ({error})", remedy) from error


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``target`` if the block ends well, and goes if it doesn't.

    Its name is fixed, so that the next run replaces what a killed one left.
    """
    unfinished = target.with_name(f".{target.name}.r2l-part")
    try:
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def check_room(folder: Path, needed: int) -> None:
    """Raise a DownloadError if the disk of ``folder`` has less than ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        why = f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free"
        remedy = "Make room or choose another --root; --tiles N fetches a few images only"
        raise DownloadError(folder, why, remedy)


def byte_bar(total: int, what: str, progress: bool) -> tqdm:
    """Return a bar that counts ``total`` bytes."""
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=not progress)


def polite_session() -> requests.Session:
    """Return a session that waits as long as a busy server says (429, 503 with Retry-After)."""
    busy = (429, 500, 502, 503, 504)
    # Breaks of a connection are `_fetch`'s business.
    times = {"total": None, "connect": 1, "read": 1, "status": _RETRIES}
    retry = Retry(**times, backoff_factor=_BACKOFF, status_forcelist=busy)
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # Compressed on the way, sizes and ranges would mean something else.
    session.headers.update({"User-Agent": "r2l", "Accept-Encoding": "identity"})
    return session


class RemoteFile(NamedTuple):
    """A file of a record: its name, size in bytes, checksum ("md5:<hex>") and address."""

    key: str
    size: int
    checksum: str
    url: str


def record_files(session: requests.Session) -> list[RemoteFile]:
    """Ask Zenodo's API, or the one at the variable R2L_ZENODO_API, which files the record has."""
    base = os.environ.get("R2L_ZENODO_API") or "https://zenodo.org/api"
    url = f"{base.rstrip('/')}/records/{RECORD}"
    with explained(url):
        response = session.get(url, timeout=_TIMEOUT)
        response.raise_for_status()
    try:
        files = [
            RemoteFile(f["key"], int(f["size"]), f["checksum"], f["links"]["self"])
            for f in response.json()["files"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        why = f"the answer is no record ({type(error).__name__})"
        remedy = "The API may have changed: fetch the files from the record's page"
        raise DownloadError(url, why, remedy) from None
    for file in files:
        if file.key in ("", ".", "..") or "/" in file.key or "\\" in file.key:
            raise DownloadError(url, f"a file is called {file.key!r}", "Nothing was fetched")
    if not files:
        raise DownloadError(url, "the record has no files", "See the record's page")
    return files


def files_of(kind: str, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files that belong to a data set by their names: all but those of the other set."""

    def kinds(file: RemoteFile) -> list[str]:
        return [name for name, words in _WORDS.items() if any(word in file.key.lower() for word in words)]

    return [file for file in files if kind in (kinds(file) or [kind])]


def download_all(
    files: Sequence[RemoteFile], folder: Path, session: requests.Session, progress: bool = True
) -> list[Path]:
    """Download files into a folder, two at once, with one bar, and return their paths; see `download`.

    Raises:
        DownloadError: the first that fails; the others under way end first. What came is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / file.key for file in files]
    total = sum(file.size for file in files)
    pairs = zip(files, targets, strict=True)
    there = sum(min(_size(p), file.size) for file, target in pairs for p in (target, _part_of(target)))
    check_room(folder, total - there)
    with byte_bar(total, "fetch", progress) as bar, ThreadPoolExecutor(_MAX_REQUESTS) as pool:
        list(pool.map(partial(download, session=session, bar=bar), files, targets))
    return targets


def download(file: RemoteFile, target: Path, session: requests.Session, bar: tqdm) -> None:
    """Fetch a file whole: it has its name once its checksum is right; one that is there is never replaced.

    What a broken or killed download left (``<name>.part``) is gone on with, if the server serves ranges.

    Raises:
        DownloadError: no connection, a full disk, or other content than the checksum says.
    """
    if target.exists():
        if not _fits(target, file.checksum):
            remedy = "Nothing was replaced: move it away or delete it, and run the same command again"
            raise DownloadError(target, "not the record's file of this name (its checksum differs)", remedy)
        bar.update(file.size)
        return
    part = _part_of(target)
    # What is there may be part of another version: then once more, from the start.
    for _ in range(2 if part.exists() else 1):
        with explained(target, file.url):
            _fetch(file, part, session, bar)
        # Until it is known to be whole it stays what the next process goes on with.
        if _fits(part, file.checksum):
            os.replace(part, target)
            return
        bar.update(-_size(part))
        part.unlink()
    why = f"{file.url} sent other content than its record says (its checksum differs)"
    raise DownloadError(target, why, "It was thrown away; try again later")


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fits(path: Path, checksum: str) -> bool:
    algorithm, _, expected = checksum.rpartition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected.lower()


def _fetch(file: RemoteFile, part: Path, session: requests.Session, bar: tqdm) -> None:
    """Bring a part to the size of the whole file, over as many connections as it takes."""
    bar.update(_size(part))
    breaks = 0
    while (before := _size(part)) < file.size:
        try:
            _append(file, part, session, bar)
        except _BREAKS:
            breaks += 1
            if breaks > _RETRIES:
                raise
            time.sleep(min(_BACKOFF * 2**breaks, 60))
        if _size(part) > before:
            breaks = 0
    part.touch()  # an empty file is a file


def _append(file: RemoteFile, part: Path, session: requests.Session, bar: tqdm) -> None:
    """Add what a part lacks, up to the end or the next break."""
    have = _size(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code != 416:
            response.raise_for_status()
        if have and not (response.status_code == 206 and goes_on):
            # No ranges here: from the start.
            part.unlink()
            bar.update(-have)
            have = 0
            if response.status_code != 200:
                return
        with part.open("ab") as writing:
            for chunk in response.iter_content(CHUNK):
                have += len(chunk)
                if have > file.size:
                    why = f"sends more than the {file.size} bytes of its record"
                    raise DownloadError(file.url, why, "Try again later")
                writing.write(chunk)
                bar.update(len(chunk))
    if have < file.size:
        raise requests.ConnectionError(f"ended {file.size - have} bytes early")


def b2_bucket(name: str = "perturbed-minds") -> Bucket:
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


def sync_b2(kind: str, root: Path, bucket: Bucket, progress: bool = True) -> list[Path]:
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
    check_room(root, total)
    with byte_bar(total, "fetch", progress) as bar:
        for version, path in missing:
            with translated(version.file_name, why, kept, B2Error), whole_file(path) as unfinished:
                # Without seeking b2sdk uses one stream; with more it hangs for good on a full disk.
                bucket.download_file_by_id(version.id_).save_to(unfinished, "wb", allow_seeking=False)
            bar.update(version.size)
    return [root / below for below in _B2_FOLDERS[kind].values()]
