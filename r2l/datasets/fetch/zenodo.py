"""The record of the data sets at Zenodo: which files it has, and fetching them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from r2l.datasets.fetch.transfer import (
    TIMEOUT,
    DownloadError,
    check_room,
    download,
    network_errors,
)
from r2l.datasets.info import RECORD

API_VARIABLE = "R2L_ZENODO_API"
API = "https://zenodo.org/api"
# Zenodo answers more with 429.
MAX_REQUESTS = 2
# The names of the record's files are its own business; these words tell the sets apart.
_WORDS = {
    "microscopy": ("micro", "histo", "cell", "leuko", "blood", "ma190c"),
    "drone": ("drone", "aerial", "car", "dji"),
}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a record: its name, size in bytes, checksum ("md5:<hex>") and address."""

    key: str
    size: int
    checksum: str
    url: str


def record_files(
    session: requests.Session, api: str | None = None, record: int = RECORD
) -> list[RemoteFile]:
    """Ask the API which files a record has.

    Args:
        session: see `polite_session`.
        api: base address; else the variable R2L_ZENODO_API, else Zenodo's.
        record: number of the record.

    Raises:
        DownloadError: no answer, or not the expected one.
    """
    url = f"{(api or os.environ.get(API_VARIABLE) or API).rstrip('/')}/records/{record}"
    with network_errors(url):
        response = session.get(url, timeout=TIMEOUT)
        response.raise_for_status()
    try:
        files = [
            RemoteFile(f["key"], int(f["size"]), f["checksum"], f["links"]["self"])
            for f in response.json()["files"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{url}: the answer is no record ({type(error).__name__}).\n"
            "The API may have changed: fetch the files from the record's page."
        ) from None
    for file in files:
        if file.key in ("", ".", "..") or "/" in file.key or "\\" in file.key:
            raise DownloadError(f"{url}: a file is called {file.key!r}.\nNothing was fetched.")
    if not files:
        raise DownloadError(f"{url}: the record has no files.\nSee the record's page.")
    return files


def files_of(kind: str, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files that belong to a data set by their names: all but those of the other set."""
    mine, others = _WORDS[kind], [w for k, words in _WORDS.items() if k != kind for w in words]

    def is_other(key: str) -> bool:
        name = key.lower()
        return any(word in name for word in others) and not any(word in name for word in mine)

    return [file for file in files if not is_other(file.key)]


def download_all(
    files: Sequence[RemoteFile], folder: Path, session: requests.Session, progress: bool = True
) -> list[Path]:
    """Download files into a folder, two at once, with one bar; see `transfer.download`.

    Returns:
        Their paths.

    Raises:
        DownloadError: the first that fails; the others end first. What came is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / file.key for file in files]
    _check_room(files, targets)
    total = sum(file.size for file in files)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="fetch", disable=not progress) as bar,
        ThreadPoolExecutor(MAX_REQUESTS) as pool,
    ):
        jobs = [
            pool.submit(download, file.url, target, file.size, file.checksum, session, bar)
            for file, target in zip(files, targets, strict=True)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return targets


def _check_room(files: Sequence[RemoteFile], targets: Sequence[Path]) -> None:
    there = sum(
        min(path.stat().st_size, file.size)
        for file, target in zip(files, targets, strict=True)
        for path in (target, target.with_name(target.name + ".part"))
        if path.exists()
    )
    check_room(targets[0].parent, sum(file.size for file in files) - there)
