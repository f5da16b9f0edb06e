"""Files over HTTP that go on where they broke off, and servers that are asked politely."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

CHUNK = 1 << 16  # a break loses what came of the last chunk
TIMEOUT = (15, 60)  # seconds to connect, seconds of silence
RETRIES = 5  # of one request, and breaks in a row without news
BACKOFF = 0.5  # seconds before the second retry; doubles from there
_BREAKS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)


class DownloadError(OSError):
    """A download that ended. Says what failed and what to do about it."""


def polite_session() -> requests.Session:
    """Return a session that waits as long as a busy server says (429, 503 with Retry-After)."""
    retry = Retry(
        total=None,
        connect=1,  # breaks are `_Resuming`'s business
        read=1,
        status=RETRIES,
        backoff_factor=BACKOFF,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=("GET", "HEAD"),
        respect_retry_after_header=True,
    )
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # Compressed on the way, sizes and ranges would mean something else.
    session.headers.update({"User-Agent": "r2l", "Accept-Encoding": "identity"})
    return session


@contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Turn what requests raises into a DownloadError of one or two lines."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code
        raise DownloadError(f"{url}: the server answers {status}.\n{_advice(status)}") from error
    except requests.exceptions.RetryError as error:
        raise DownloadError(
            f"{url}: the server stays busy.\nTry again later; what came so far is kept."
        ) from error
    except requests.RequestException as error:
        raise DownloadError(
            f"{url}: no connection ({type(error).__name__}).\n"
            "Check the network and try again; what came so far is kept."
        ) from error


def _advice(status: int) -> str:
    if status in (401, 403):
        return "The files are not public, or this network is refused."
    return "The address may have changed; see the record's page." if status == 404 else "Try later."


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Add the remedy to what a full disk raises about ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DownloadError(
            f"{path}: no room on the disk ({os.strerror(error.errno)}).\n"
            "Make room or choose another --root, then run the same command: it goes on from here."
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Raise a DownloadError if the disk of ``folder`` has less than ``needed`` bytes left."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free.\n"
            "Make room or choose another --root; --tiles N fetches a few images only."
        )


def download(
    url: str,
    target: Path,
    size: int,
    checksum: str,
    session: requests.Session,
    bar: tqdm | None = None,
) -> None:
    """Fetch a file whole: it has its name only once its checksum is right.

    What a broken or killed download left (``<name>.part``) is gone on with, if the server serves
    ranges. A file that is there already with this checksum is left as it is.

    Args:
        url: where from.
        target: where to.
        size: bytes expected.
        checksum: "md5:<hex>", or another algorithm of hashlib.
        session: see `polite_session`.
        bar: is moved by the bytes that came.

    Raises:
        DownloadError: no connection, a full disk, or other content than the checksum says.
    """
    if target.exists() and _fits(target, checksum):
        if bar is not None:
            bar.update(size)
        return
    part = target.with_name(target.name + ".part")
    # What is there may be part of another version: then once more, from the start.
    for _ in range(2 if part.exists() else 1):
        with disk_errors(target), network_errors(url):
            _Resuming(part, size, session, bar).fetch(url)
        # Until it is known to be whole it stays what the next process goes on with.
        if _fits(part, checksum):
            os.replace(part, target)
            return
        if bar is not None:
            bar.update(-part.stat().st_size)
        part.unlink()
    raise DownloadError(
        f"{target}: {url} sent other content than its record says (its checksum differs).\n"
        "It was thrown away; try again later."
    )


def _fits(path: Path, checksum: str) -> bool:
    algorithm, _, expected = checksum.rpartition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected.lower()


class _Resuming:
    """Downloads into a part of a fixed name, over as many connections as it takes."""

    def __init__(self, part: Path, size: int, session: requests.Session, bar: tqdm | None) -> None:
        self.part, self.size, self.session, self.bar = part, size, session, bar

    def fetch(self, url: str) -> None:
        """Bring the part to the size that the whole file has."""
        self._move(self._have())
        breaks = 0
        while self._have() < self.size:
            before = self._have()
            try:
                self._append(url, before)
            except _BREAKS:
                breaks += 1
                if breaks > RETRIES:
                    raise
                time.sleep(min(BACKOFF * 2**breaks, 60))
            if self._have() > before:
                breaks = 0
        self.part.touch()  # an empty file is a file

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _move(self, by: int) -> None:
        if self.bar is not None:
            self.bar.update(by)

    def _append(self, url: str, have: int) -> None:
        """Add what is missing, up to the end or the next break."""
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status_code != 416:
                response.raise_for_status()
            if have and not (response.status_code == 206 and goes_on):
                # No ranges here: from the start.
                self.part.unlink()
                self._move(-have)
                have = 0
                if response.status_code != 200:
                    return
            with self.part.open("ab") as file:
                for chunk in response.iter_content(CHUNK):
                    have += len(chunk)
                    if have > self.size:
                        raise DownloadError(
                            f"{url}: sends more than the {self.size} bytes of its record.\n"
                            "Try again later."
                        )
                    file.write(chunk)
                    self._move(len(chunk))
        if have < self.size:
            raise requests.ConnectionError(f"ended {self.size - have} bytes early")
