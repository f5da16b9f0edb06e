"""Files of pixels to arrays of one form (16-bit steps, and masks), kept decoded in a cache on disk.

The arrays are memory-mapped, so that every epoch but the first is a copy of memory. Files that are damaged,
of another kind or size raise a `DatasetError` that names them, with the remedy that the caller gives.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from r2l.camera import Camera
from r2l.datasets.layout import DatasetError
from r2l.files import atomic_path
from r2l.rawfile import RawFileError, read_frame
from r2l.rawfile.frame import check_whole
from r2l.rawfile.raster import load_npy, load_tiff, open_png

#: Makes the rows of an array, one by one.
Rows = Callable[[], Iterable[np.ndarray]]
_CLASS_NUMBERS = 32  # a mask of up to so many values holds numbers of classes, not shades of an edge
_CACHE_VERSION = 1  # of what is stored; another number makes all caches new


def read_steps(path: Path, remedy: str, camera: Camera | None = None) -> np.ndarray:
    """Read a mosaic as uint16 (H, W), *raw* domain, fractions of 65535."""
    try:
        # The published cameras' levels are known to fit, however dim an exposure is.
        frame = read_frame(path, camera)
        check_whole(path, frame)
    except RawFileError as error:
        raise DatasetError(path, error.args[1], remedy) from error
    return np.round(frame.mosaic * np.float32(65535)).astype(np.uint16)


def read_mask_values(path: Path, remedy: str) -> np.ndarray:
    """Read a mask as the values in its PNG or TIFF, (H, W) or (H, W, channels)."""
    try:
        if path.suffix.lower() != ".png":
            return load_tiff(path)
        with open_png(path) as image:
            return np.asarray(image)
    except Exception as error:  # decoders fail in many ways on damaged files
        raise DatasetError(path, f"no readable mask ({error})", remedy) from error


def read_mask(path: Path, remedy: str) -> np.ndarray:
    """Read a mask as uint8 (H, W): 1 where any colour of the picture is above 0."""
    return object_of(read_mask_values(path, remedy))


def object_of(values: np.ndarray, path: Path | None = None) -> np.ndarray:
    """Return a mask (H, W), uint8: 1 where any colour of values (H, W) or (H, W, channels) is above 0.

    Raises:
        DatasetError: a ``path`` is given, and the values look like the numbers of several classes.
    """
    if values.ndim == 3:
        # Opacity says nothing: a mask saved as RGBA is opaque all over.
        values = values[..., : values.shape[2] - (values.shape[2] in (2, 4))].max(axis=2)
    if path is not None and len(several := np.unique(values)) > 2 and several[-1] < _CLASS_NUMBERS:
        reason = f"the values {', '.join(map(str, several))} look like classes, and here is one object"
        remedy = "Name the classes, from 0 on: --classes background,road,car (classes=[...])"
        remedy += ". Or say which values are the object: --foreground 2,3 (foreground=(2, 3))"
        raise DatasetError(path, reason, remedy)
    return (values > 0).astype(np.uint8)


def read_view(path: Path, remedy: str) -> np.ndarray:
    """Read a developed image as uint16 (3, H, W), *display* domain, fractions of 65535."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            with open_png(path) as image:
                values = np.asarray(image.convert("RGB"))
        else:
            values = (load_npy if suffix == ".npy" else load_tiff)(path)
    except Exception as error:
        raise DatasetError(path, f"no readable image ({error})", remedy) from error
    if values.ndim == 3 and values.shape[2] == 3:
        values = np.moveaxis(values, 2, 0)
    if values.ndim != 3 or len(values) != 3:
        raise DatasetError(path, f"an array of shape {values.shape}, not three colours", remedy)
    if values.dtype.kind not in "uf" or not np.isfinite(values).all():
        reason = f"values of type {values.dtype} that are no brightness, or not finite"
        raise DatasetError(path, reason, remedy)
    full = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    return np.round(np.clip(values / full, 0, 1) * 65535).astype(np.uint16)


def decode_all(
    paths: Sequence[Path], read: Callable[[Path, str], np.ndarray], remedy: str
) -> Iterator[np.ndarray]:
    """Read files one by one and see that each has the size of the first."""
    shape: tuple[int, ...] | None = None
    for path in paths:
        values = read(path, remedy)
        shape = shape or values.shape
        if values.shape != shape:
            size, first = ("{} x {}".format(*each[-2:]) for each in (values.shape, shape))
            raise DatasetError(path, f"{size} pixels, and {paths[0].name} has {first}", remedy)
        yield values


def cache_folder(root: Path) -> Path:
    """Return where decoded data go: the variable R2L_CACHE, else ``root``/.r2l_cache."""
    return Path(os.environ.get("R2L_CACHE") or root / ".r2l_cache")


def cached_array(
    folder: Path,
    name: str,
    sources: Sequence[Path],
    rows: Rows,
    count: int | None = None,
    settings: object = None,
) -> np.ndarray:
    """Return an array made from files: from the cache if they are unchanged, else made and cached.

    Sources count as changed when their list, a size or a time of change differs, ``settings`` (JSON types)
    when what else the rows depend on does; a newer cache of a ``name`` replaces the older. Many processes may
    call at once: one makes the array, the others wait for it. Where the cache can't be written (read-only or
    full disk), the array stays in memory, with a warning.

    Args:
        folder: where caches lie.
        name: what is cached.
        sources: the files that the array is made from.
        rows: makes the rows, in order, of one shape and type. What it raises, no OSError, passes through and
            leaves nothing behind.
        count: how many rows; by default one a source.

    Returns:
        Read-only, memory-mapped where possible.
    """
    count = len(sources) if count is None else count
    stats = [(str(p.absolute()), s.st_size, s.st_mtime_ns) for p in sources for s in (p.stat(),)]
    about = str(sources[0].absolute().parent), json.dumps([_CACHE_VERSION, stats, count, settings])
    place, key = (hashlib.sha256(text.encode()).hexdigest() for text in about)
    name = f"{name}-{place[:8]}"
    path = folder / f"{name}-{key[:16]}.npy"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{name}.lock"):
                if not path.exists():
                    _write(path, count, rows())
                    # What it replaces goes, and what a killed process left.
                    for old in {*folder.glob(f"{name}-*.npy"), *folder.glob(f".{name}-*.part")} - {path}:
                        with suppress(OSError):  # open elsewhere, on systems that mind
                            old.unlink()
    except OSError as error:
        # What the sources raise is no OSError (see rows), so this is the cache's disk.
        warnings.warn(f"not cached, kept in memory: {path}: {error.strerror}", stacklevel=2)
        array = np.stack(list(rows()))
        array.flags.writeable = False
        return array
    return np.load(path, mmap_mode="r")


def _write(path: Path, count: int, rows: Iterable[np.ndarray]) -> None:
    # Plain writes: through a memory map, a full disk would kill the process.
    written = 0
    with atomic_path(path) as partial, partial.open("wb") as file:
        for row in rows:
            if not written:
                header = {"descr": row.dtype.str, "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *row.shape)})
            file.write(row.tobytes())
            written += 1
    assert written == count, f"{written} rows, expected {count}"
