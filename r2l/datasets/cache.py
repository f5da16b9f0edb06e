"""Decoded frames on disk, memory-mapped, so that every epoch but the first is a copy of memory."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from r2l.files import atomic_path

CACHE_VARIABLE = "R2L_CACHE"
_VERSION = 1  # of what is stored; another number makes all caches new


def cache_folder(root: Path) -> Path:
    """Return where decoded data go: the variable R2L_CACHE, else ``root``/.r2l_cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or root / ".r2l_cache")


def cached_array(
    folder: Path,
    name: str,
    sources: Sequence[Path],
    count: int,
    rows: Callable[[], Iterable[np.ndarray]],
    settings: object = None,
) -> np.ndarray:
    """Return an array made from files: from the cache if they are unchanged, else made and cached.

    Sources count as changed when their list, a size or a time of change differs. Many processes may
    call at once: one makes the array, the others wait for it. Where the cache can't be written
    (read-only or full disk), the array stays in memory, with a warning.

    Args:
        folder: where caches lie.
        name: what is cached; a newer cache of this name replaces the older.
        sources: the files that the array is made from.
        count: how many rows.
        rows: makes the rows, in order, of one shape and type. Its errors are no OSError.
        settings: JSON types; whatever else the rows depend on.

    Returns:
        Read-only, memory-mapped where possible.

    Raises:
        Whatever ``rows`` raises. Nothing is left behind then.
    """
    place, key = _keys(sources, count, settings)
    name = f"{name}-{place}"
    path = folder / f"{name}-{key}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not path.exists():
                _write(path, count, rows())
                _drop_older(folder, name, path)
    except OSError as error:
        # What the sources raise is no OSError (see rows), so this is the cache's disk.
        warnings.warn(f"not cached, kept in memory: {path}: {error.strerror}", stacklevel=2)
        array = np.stack(list(rows()))
        array.flags.writeable = False
        return array
    return np.load(path, mmap_mode="r")


def _keys(sources: Sequence[Path], count: int, settings: object) -> tuple[str, str]:
    """Return short hashes of where the sources lie and of all that the array depends on."""
    stats = [(str(p.absolute()), s.st_size, s.st_mtime_ns) for p in sources for s in (p.stat(),)]
    place = str(sources[0].absolute().parent)
    return _hash(place)[:8], _hash(json.dumps([_VERSION, stats, count, settings]))[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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


def _drop_older(folder: Path, name: str, newest: Path) -> None:
    """Remove caches that ``newest`` replaces, and what a killed process left."""
    hidden = folder.glob(f".{name}-*.part")
    for old in (*folder.glob(f"{name}-*.npy"), *hidden):
        if old != newest:
            with suppress(OSError):  # open elsewhere, on systems that mind
                old.unlink()
