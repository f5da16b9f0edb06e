"""The data sets from the authors' bucket at Backblaze B2, with your own credentials."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from b2sdk.v3 import (
    B2Api,
    B2Folder,
    Bucket,
    CompareVersionMode,
    InMemoryAccountInfo,
    KeepOrDeleteMode,
    LocalFolder,
    ScanPoliciesManager,
    Synchronizer,
    SyncReport,
)
from b2sdk.v3.exception import B2Error, IncompleteSync
from tqdm import tqdm

from r2l.datasets.transfer import DownloadError

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
_FOLDER_MARK = r"(.*/)?\.bzEmpty$"


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

    Each file is checked by B2's SHA-1 and has its name only once it is whole.

    Returns:
        The folders, as they lie below ``root``.

    Raises:
        DownloadError: a file didn't come; those that did are kept.
        OSError: a folder can't be made.
    """
    synchronizer = Synchronizer(
        max_workers=4,
        keep_days_or_delete=KeepOrDeleteMode.NO_DELETE,
        # A file that is there stays, be it older or newer or of another size.
        compare_version_mode=CompareVersionMode.NONE,
        policies_manager=ScanPoliciesManager(exclude_file_regexes=[_FOLDER_MARK]),
    )
    folders = []
    for prefix, below in FOLDERS[kind].items():
        target = root / below
        target.mkdir(parents=True, exist_ok=True)
        report = _Bar(prefix, progress)
        try:
            source = B2Folder(bucket.name, prefix, bucket.api)
            now = int(time.time() * 1000)
            synchronizer.sync_folders(source, LocalFolder(target), now, report)
        except IncompleteSync as error:
            raise DownloadError(
                f"{target}: not all of {prefix} came ({report.first_error}).\n"
                "Those that came are kept: run the same command again."
            ) from error
        except B2Error as error:
            raise DownloadError(f"{prefix}: B2 refuses ({error}).\nTry again later.") from error
        finally:
            report.close()
        folders.append(target)
    return folders


class _Bar(SyncReport):
    """Shows what b2sdk reports as one of our bars, and keeps the first error."""

    def __init__(self, title: str, progress: bool) -> None:
        self.bar = tqdm(desc=title, unit="B", unit_scale=True, disable=not progress)
        self.first_error = ""
        super().__init__(io.StringIO(), no_progress=True)

    def end_compare(self, total_transfer_files: int, total_transfer_bytes: int) -> None:
        super().end_compare(total_transfer_files, total_transfer_bytes)
        self.bar.total = total_transfer_bytes
        self.bar.refresh()

    def update_transfer(self, file_delta: int, byte_delta: int) -> None:
        super().update_transfer(file_delta, byte_delta)
        self.bar.update(byte_delta)

    def error(self, message: str) -> None:
        super().error(message)
        # "action(...): the error, at length"
        self.first_error = self.first_error or message.partition("): ")[2] or message

    def close(self) -> None:
        super().close()
        self.bar.close()
