"""Whether what is there of the published data sets, or in an own folder, is whole."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from r2l.camera import Camera
from r2l.datasets import layout
from r2l.datasets.fetch.download import crc32
from r2l.datasets.labels import HEADERLESS, labelled_files
from r2l.datasets.layout import DRONE_PHOTOS, INFO, DatasetError, Manifest, SetInfo, raw_folders
from r2l.datasets.pixels import read_mask_values, read_steps
from r2l.datasets.published import PublishedDataset, RawMicroscopy
from r2l.datasets.raw_drone import RawDrone
from r2l.files import R2LError
from r2l.rawfile import RawLayout, read_raw

_MOST = 30  # of one kind, such as classes, that a line names


def verify(kind: str, root: str | Path | None = None, progress: bool = True) -> tuple[list[str], list[str]]:
    """Check a data set: each file against the record of its fetching, each image by decoding it.

    Returns:
        What is in order, and what is not: one line each.

    Raises:
        DatasetNotFoundError: there is nothing of it.
    """
    sets: dict[str, type[PublishedDataset]] = {"microscopy": RawMicroscopy, "drone": RawDrone}
    root = layout.data_root(root)
    manifest, folders = Manifest.read(root), raw_folders(kind, root)
    if not folders:
        raise layout.not_found(kind, root / kind, root)
    fine, wrong = _check_record(kind, root, manifest, progress)
    if kind in manifest.unfinished:
        wrong.append(f"{root / kind}: fetching it broke off; run `r2l data fetch {kind}` again")
    for intensity, folder in folders:
        try:
            how = {"tiled": folder.parent.name != "images_full"} if kind == "drone" else {}
            data = sets[kind](root, "all", intensity, **how)
        except DatasetError as error:
            wrong.append(_line(error))
            continue
        if damaged := list(_damaged(data, progress)):
            wrong += damaged
            continue
        fine.append(f"{folder}: {len(data)} images, each decodes")
        if f"{kind}/{folder.name}" not in manifest.subsets:
            wrong += _differences(INFO[kind], data, folder)
    return fine, wrong


def verify_folder(
    root: Path,
    labels: Path | None = None,
    masks: Path | None = None,
    camera: Camera | None = None,
    frames: RawLayout | None = None,
    progress: bool = True,
) -> tuple[list[str], list[str]]:
    """Check own raw files as `RawFolder` would find them: labels or masks, and each file by reading it.

    Arguments as for `RawFolder`; ``frames`` is the layout of headerless ones.

    Returns:
        Sizes, cameras, classes and groups, a line each; and a line for all that is wrong.

    Raises:
        DatasetNotFoundError, DatasetError: as `labelled_files`.
    """
    table, wrong, rest = labelled_files(root, labels, masks)
    wrong = [_line(error) for error in wrong + rest]
    sizes, cameras, values = Counter(), Counter(), Counter()
    for path, mask in tqdm([*zip(table["path"], table["mask"], strict=True)], "verify", disable=not progress):
        try:
            frame = read_raw(path, camera, frames if path.suffix.lower() in HEADERLESS else None)
            drawn = None if mask is None else read_mask_values(mask, "Draw it again")
        except R2LError as error:
            wrong.append(_line(error))
            continue
        if drawn is not None:
            flat = drawn if drawn.ndim == 2 else drawn.max(-1)  # what is not black is object
            values.update(np.unique(flat).tolist())
            if flat.shape != frame.mosaic.shape:
                wrong.append(f"{mask}: {flat.shape} pixels, and {path} has {frame.mosaic.shape}")
        sizes["{} x {}".format(*frame.mosaic.shape)] += 1
        gains = " ".join(f"{gain:.3g}" for gain in frame.camera.white_balance)
        cameras[f"{frame.camera.name}, {frame.camera.cfa.name}, white balance {gains}"] += 1
    told = f"values in masks (in how many): {_counted(values)}"
    count, whole = f"{sizes.total()} of {len(table)} images can be read", sizes.total() == len(table)
    return [
        *([count] if whole else []),
        f"sizes: {_counted(sizes) or 'none'}{'; --crop makes them one' * (len(sizes) > 1)}",
        *(f"camera: {name} ({count})" for name, count in cameras.most_common()),
        told if masks else f"classes: {_counted(Counter(table['label']))}",
        f"groups: {table['group'].nunique()}",
    ], wrong if whole else [count, *wrong]


def _counted(values: Counter) -> str:
    """Return the commonest values and how many there are of each."""
    words = ", ".join(f"{value} ({count})" for value, count in values.most_common(_MOST))
    return words + (f" and {len(values) - _MOST} more" if len(values) > _MOST else "")


def _line(error: R2LError) -> str:
    path, reason, remedy = error.args
    return f"{path}: {reason} ({remedy[0].lower()}{remedy[1:]})"


def _damaged(data: PublishedDataset, progress: bool) -> Iterator[str]:
    """Decode all images, past the cache; yield a line for each that fails."""
    shape = None
    for path in tqdm(data.files, desc="verify", unit="image", disable=not progress):
        try:
            steps = read_steps(path, data.remedy, data.camera)
        except DatasetError as error:
            yield _line(error)
            continue
        shape = shape or steps.shape
        if steps.shape != shape:
            yield f"{path}: {steps.shape} pixels, and the others have {shape} ({data.remedy})"


def _check_record(kind: str, root: Path, manifest: Manifest, progress: bool) -> tuple[list[str], list[str]]:
    recorded, remedy, wrong = manifest.files_of(kind), layout.fetch_again(kind, root), []
    if not recorded:
        return [f"{root / kind}: not fetched by r2l, so there are no checksums"], wrong
    for name, (size, crc) in tqdm(recorded.items(), desc="checksums", disable=not progress):
        path = root / name
        if not path.is_file():
            wrong.append(f"{path}: gone since it was fetched ({remedy})")
        elif path.stat().st_size != size or crc32(path) != crc:
            wrong.append(f"{path}: not as it was fetched ({remedy})")
    return [] if wrong else [f"{root / kind}: {len(recorded)} files have their checksums"], wrong


def _differences(info: SetInfo, data: PublishedDataset, folder: Path) -> list[str]:
    """Compare counts with the published ones."""
    counts = np.bincount(data.labels, minlength=len(info.classes))
    kinds = [f"images of {name}" for name in info.classes]
    images = DRONE_PHOTOS if folder.parent.name == "images_full" else info.images
    rows = [(len(data), "images", images), *zip(counts, kinds, info.class_counts or (), strict=False)]
    return [f"{folder}: {n} {what}, and {told} were published" for n, what, told in rows if n != told]
