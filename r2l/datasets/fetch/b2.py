"""The data sets from the authors' bucket at Backblaze B2, with your own credentials."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from b2sdk.v3 import B2Api, Bucket, FileVersion, InMemoryAccountInfo
from b2sdk.v3.exception import B2Error
from tqdm import tqdm

from r2l.datasets.fetch.transfer import DownloadError, check_room, disk_errors

BUCKET = "perturbed-minds"
KEY_ID_VARIABLE, KEY_VARIABLE = "B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"
# Folder of the bucket to folder below the root; those with zips go to the downloads.
FOLDERS = {
    "microscopy": {
        "Data histopathology/WhiteCellsImages": "downloads/b2/microscopy_images",
        "Data histopathology/WhiteCellsLabels": "microscopy/labels",
    },
    "drone": {
        "drone/images": "downloads/b2/drone_images",
        "drone/masks": "drone/masks_full",
    },
}
# An empty file of this name marks a folder of the bucket.
_FOLDER_MARK = ".bzEmpty"


def get_b2_bucket(name: str = BUCKET, api: B2Api | None = None) -> Bucket:
    """Return a bucket, with the credentials in B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY.

    The key stays in memory. One that may read the bucket's files will do.

    Args:
        name: of the bucket.
        api: to use instead of a fresh one; it is authorised here.

    Raises:
        DownloadError: no credentials, or B2 refuses them or the bucket.
    """
    key_id, key = os.environ.get(KEY_ID_VARIABLE), os.environ.get(KEY_VARIABLE)
    if not (key_id and key):
        raise DownloadError(
            f"B2 needs credentials: set {KEY_ID_VARIABLE} and {KEY_VARIABLE}.\n"
            "Without an account there, use --source zenodo."
        )
    api = api or B2Api(InMemoryAccountInfo())
    try:
        api.authorize_account(key_id, key)
        return api.get_bucket_by_name(name)
    except B2Error as error:
        raise DownloadError(
            f"B2 refuses the bucket {name} ({error}).\n"
            f"Check {KEY_ID_VARIABLE} and {KEY_VARIABLE}, or use --source zenodo."
        ) from error


def sync(kind: str, root: Path, bucket: Bucket, progress: bool = True) -> list[Path]:
    """Fetch what is missing of a data set's folders; never change or delete what is there.

    Each file is checked by B2's SHA-1 (large files have none there; what a zip holds is checked by
    its own sums) and has its name only once it is whole.

    Returns:
        The folders, as they lie below ``root``.

    Raises:
        DownloadError: a file didn't come, or no room on the disk; those that came are kept.
        OSError: a folder can't be made.
    """
    missing: list[tuple[FileVersion, Path]] = []
    for prefix, below in FOLDERS[kind].items():
        target = root / below
        target.mkdir(parents=True, exist_ok=True)
        with _b2_errors(f"{bucket.name}/{prefix}"):
            for version, _ in bucket.ls(prefix, recursive=True):
                path = _place(version.file_name, prefix, target)
                # A file that is there stays, be it older or newer or of another size.
                if path is not None and not path.exists():
                    missing.append((version, path))
    total = sum(version.size for version, _ in missing)
    check_room(root, total)
    with tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=not progress) as bar:
        for version, path in missing:
            _fetch(bucket, version, path)
            bar.update(version.size)
    return [root / below for below in FOLDERS[kind].values()]


def _place(name: str, prefix: str, target: Path) -> Path | None:
    """Return where a file of the bucket belongs; None for a mark of a folder."""
    inside = PurePosixPath(name).relative_to(prefix)
    if ".." in inside.parts or "\\" in name:
        raise DownloadError(f"{name}: would be written outside of {target}.\nNothing was fetched.")
    return None if inside.name == _FOLDER_MARK else target / inside


def _fetch(bucket: Bucket, version: FileVersion, path: Path) -> None:
    # Of a fixed name, so that the next run replaces what a killed one left.
    partial = path.with_name(f".{path.name}.r2l-part")
    try:
        with _b2_errors(version.file_name), disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without seeking b2sdk uses one stream; with more it hangs for good on a full disk.
            bucket.download_file_by_id(version.id_).save_to(partial, "wb", allow_seeking=False)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _b2_errors(what: str) -> Iterator[None]:
    try:
        yield
    except B2Error as error:
        raise DownloadError(
            f"{what}: B2 didn't give it ({error}).\n"
            "What came is kept: run the same command again, or use --source zenodo."
        ) from error
