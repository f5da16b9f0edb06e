"""The data sets from the authors' bucket at Backblaze B2, with your own credentials."""

import os
from pathlib import Path, PurePosixPath

from b2sdk.v3 import B2Api, Bucket, FileVersion, InMemoryAccountInfo
from b2sdk.v3.exception import B2Error

from r2l.datasets.fetch.transfer import DownloadError, check_room, progress_bar, translated, whole_file

_KEY_ID, _KEY = "B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"
# Folder of the bucket to folder below the root; those with zips go to the downloads.
_FOLDERS = {
    "microscopy": {
        "Data histopathology/WhiteCellsImages": "downloads/b2/microscopy_images",
        "Data histopathology/WhiteCellsLabels": "microscopy/labels",
    },
    "drone": {"drone/images": "downloads/b2/drone_images", "drone/masks": "drone/masks_full"},
}
# An empty file of this name marks a folder of the bucket.
_FOLDER_MARK = ".bzEmpty"


def get_b2_bucket(name: str = "perturbed-minds") -> Bucket:
    """Return a bucket, with the credentials in B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY.

    The key stays in memory. One that may read the bucket's files will do.

    Raises:
        DownloadError: no credentials, or B2 refuses them or the bucket.
    """
    key_id, key = os.environ.get(_KEY_ID), os.environ.get(_KEY)
    if not (key_id and key):
        why, remedy = f"set {_KEY_ID} and {_KEY}", "Without an account there, use --source zenodo"
        raise DownloadError("B2 needs credentials", why, remedy)
    api = B2Api(InMemoryAccountInfo())
    remedy = f"Check {_KEY_ID} and {_KEY}, or use --source zenodo"
    with translated(B2Error, "B2", f"refuses the bucket {name}", remedy):
        api.authorize_account(key_id, key)
        return api.get_bucket_by_name(name)


def sync(kind: str, root: Path, bucket: Bucket, progress: bool = True) -> list[Path]:
    """Fetch what is missing of a data set's folders, and return these; never change what is there.

    Each file is checked by B2's SHA-1 (large files have none there; what a zip holds is checked by
    its own sums) and has its name only once it is whole.

    Raises:
        DownloadError: a file didn't come, or no room on the disk; those that came are kept.
        OSError: a folder can't be made.
    """
    missing: list[tuple[FileVersion, Path]] = []
    why, kept = "B2 didn't give it", "What came is kept: run the same command again, or use --source zenodo"
    for prefix, below in _FOLDERS[kind].items():
        target = root / below
        target.mkdir(parents=True, exist_ok=True)
        with translated(B2Error, f"{bucket.name}/{prefix}", why, kept):
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
    with progress_bar(total, "fetch", progress) as bar:
        for version, path in missing:
            with translated(B2Error, version.file_name, why, kept), whole_file(path) as unfinished:
                # Without seeking b2sdk uses one stream; with more it hangs for good on a full disk.
                file = bucket.download_file_by_id(version.id_)
                file.save_to(unfinished, "wb", allow_seeking=False)
            bar.update(version.size)
    return [root / below for below in _FOLDERS[kind].values()]
