"""Which of one's own files has which label or mask, and which of them are one and the same picture."""

import csv
import io
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from r2l.datasets.layout import IMAGE_SUFFIXES, DatasetError, DatasetNotFoundError, by_stem, images_in
from r2l.files import content_hash

# Raw formats of today's and yesterday's cameras; what a file really is, `read_raw` finds out.
_CAMERA_FORMATS = """
    3fr ari arw bay cap cr2 cr3 crw dcr erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2
    rwl sr2 srf srw x3f
"""
#: Of frames without a header.
HEADERLESS = {".bin", ".dat", ".raw"}
_RAW_SUFFIXES = IMAGE_SUFFIXES | {f".{suffix}" for suffix in _CAMERA_FORMATS.split()} | HEADERLESS
_MASK_SUFFIXES = {".png", ".tif", ".tiff"}
_KEEP_OR_SKIP = "Add what is missing, or take out what has no counterpart (in Python: strict=False)"
_PIECE = 4096  # bytes in the middle of a file, where pictures of one size differ


def labelled_files(
    root: Path, labels: Path | None = None, masks: Path | None = None
) -> tuple[pd.DataFrame, list[DatasetError], list[DatasetError]]:
    """Find raw files with their labels (from folders or a CSV) or masks, and all that is wrong with these.

    Groups are those of the CSV, else each image is its own; images that are one picture (equal files, or a
    raw file beside its TIFF or NEF) share one in any case, so that no split tears them apart. Warns of class
    folders without raw files.

    Returns:
        A table of path, label (None with masks), group (a number) and mask (None without); what contradicts
        itself; and what has no counterpart, and is not in the table.

    Raises:
        DatasetNotFoundError: no such folder, or no raw file in it.
        DatasetError: a CSV that can't be read.
    """
    wrong: list[DatasetError] = []
    if masks is not None:
        rows, rest = _rows_of_masks(root, masks)
    elif labels is not None:
        rows, wrong, rest = _rows_of_csv(root, labels)
    else:
        rows, rest = _rows_of_folders(root)
    table = pd.DataFrame(rows, columns=["path", "label", "group", "mask"])
    if table.empty:
        return table, wrong, rest
    contents = _contents(table["path"])
    table["group"] = _merged(table["group"], contents, [p.with_suffix("") for p in table["path"]])
    first: dict[Hashable, tuple] = {}
    for content, row in zip(contents, rows, strict=True):
        path, label, *_ = row
        other, another, *_ = first.setdefault(content, row)
        if label != another:
            reason = f"the same picture as {other}, which is {another}, not {label}"
            rest.append(DatasetError(path, reason, "Keep one of the two"))
    return table, wrong, rest


def raw_files(root: Path) -> list[Path]:
    """Return the raw files below a folder, by name; none that is hidden, or in a hidden folder.

    Links to folders are followed, and each folder is entered once: a link to one above ends there.

    Raises:
        DatasetNotFoundError: no such folder, or no raw file in it.
    """
    if not root.is_dir():
        raise DatasetNotFoundError(root, "no such folder", "Give that of your raw files")
    files, folders, seen = [], deque([root]), set()
    while folders:
        folder = folders.popleft()
        if (real := folder.resolve()) in seen:
            continue
        seen.add(real)
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                folders.append(path)
            elif path.suffix.lower() in _RAW_SUFFIXES:
                files.append(path)
    if not files:
        remedy = "Give a folder of DNG, CR3, NEF, ARW and the like, or of mosaics as TIFF, PNG or NPY"
        raise DatasetNotFoundError(root, "no raw files in it", remedy)
    return sorted(files)


def _rows_of_folders(root: Path) -> tuple[list[tuple], list[DatasetError]]:
    """Return ``root/<class>/<image>``; each image is a group of its own."""
    files = {path: path.relative_to(root).parts[:-1] for path in raw_files(root)}
    rows = [(path, folders[0], str(path), None) for path, folders in files.items() if folders]
    outside = [path for path, folders in files.items() if not folders]
    present = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if empty := sorted(present - {label for _, label, *_ in rows}):
        warnings.warn(f"{root}: no raw files in {', '.join(empty)}, so there is no such class", stacklevel=4)
    return rows, _without(outside, (), "an image outside of the class folders")


def _rows_of_csv(root: Path, path: Path) -> tuple[list[tuple], list[DatasetError], list[DatasetError]]:
    """Return what a CSV says of the files below ``root``."""
    rows, wrong, rest, lines = [], [], [], {}
    files = raw_files(root)
    there = set(files)
    for line, name, label, group in _read_csv(path):
        file = root / os.path.normpath(name)
        if not name or not label:
            reason = f"no file or no label in line {line}"
            wrong.append(DatasetError(path, reason, "Fill it in, or take the line out"))
        elif lines.setdefault(file, line) != line:
            reason = f"two labels for {name}, in lines {lines[file]} and {line}"
            wrong.append(DatasetError(path, reason, "Keep one of the two"))
        elif file not in there:
            rest.append(DatasetError(path, f"a label for {name}, which is not in {root}", _KEEP_OR_SKIP))
        else:
            # A name that no group has: a file is not "EU".
            rows.append((file, label, ("group", group) if group else file, None))
    return rows, wrong, rest + _without(files, lines, f"an image without a label in {path}")


def _read_csv(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield line, file, label and group ("" if there is none) of a CSV as spreadsheets write it.

    Separated by commas, semicolons or tabs, in UTF-8 or else cp1252; words are words, NA too.

    Raises:
        DatasetError: it can't be read, lacks a column, or a line has more cells than the head.
    """
    try:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        form = {"delimiter": separator, "skipinitialspace": True, "strict": True}
        reader = csv.reader(io.StringIO(text, newline=""), **form)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
        if not lines:
            raise ValueError("it is empty")
    except (OSError, ValueError, csv.Error) as error:
        remedy = "Give a CSV with columns file and label"
        raise DatasetError(path, f"no readable CSV ({error})", remedy) from None
    head = [name.lower() for name in lines[0][1]]
    if not {"file", "label"} <= set(head):
        few = ", ".join(name[:20] for name in head[:8]) + (" ..." if len(head) > 8 else "")
        remedy = "Name the columns file, label and (if known) group"
        raise DatasetError(path, f"columns {few}; expected file and label", remedy)
    if twice := [name for name in ("file", "label", "group") if head.count(name) > 1]:
        raise DatasetError(path, f"several columns {twice[0]}", "Keep one of them, or rename the others")
    for number, cells in lines[1:]:
        if any(cells[len(head) :]):
            reason = f"line {number} has {len(cells)} cells, and there are {len(head)} columns"
            raise DatasetError(path, reason, 'Put text with a separator in it in "quotes"')
        if any(cells):
            row = dict(zip_longest(head, cells[: len(head)], fillvalue=""))
            yield number, row["file"], row["label"], row.get("group", "")


def _rows_of_masks(root: Path, folder: Path) -> tuple[list[tuple], list[DatasetError]]:
    """Return images and their masks: PNG or TIFF of the same stem, or with ``_mask`` behind it."""
    if not folder.is_dir():
        raise DatasetNotFoundError(folder, "no such folder", "Give that of the masks")
    inside = folder.resolve()
    images = by_stem(p for p in raw_files(root) if inside not in p.resolve().parents)

    def image_of(mask: Path) -> str:
        stripped = re.sub(r"[ ._-]masks?$", "", mask.stem, flags=re.IGNORECASE)
        return mask.stem if mask.stem in images else stripped

    masks = by_stem((p for p in images_in(folder) if p.suffix.lower() in _MASK_SUFFIXES), image_of)
    rows = [(p, None, str(p), masks[stem]) for stem, p in images.items() if stem in masks]
    rest = _without(images.values(), {p for p, *_ in rows}, f"an image without a mask in {folder}")
    rest += _without(masks.values(), {mask for *_, mask in rows}, f"a mask without an image in {root}")
    return rows, rest


def _without(files: Iterable[Path], paired: Iterable[Path], reason: str) -> list[DatasetError]:
    return [DatasetError(path, reason, _KEEP_OR_SKIP) for path in sorted({*files} - {*paired})]


def _contents(paths: Iterable[Path]) -> list[Hashable]:
    """Return a key of each file, equal where the files are: by size, a piece, or all of it, if need be."""

    def piece(path: Path) -> bytes:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size // 2 - _PIECE // 2))
            return file.read(_PIECE)

    def tried(step: Callable[[Path], Hashable], path: Path) -> Hashable:
        try:
            return step(path)
        except OSError:
            return path  # like no other; reading the frame will say why

    paths = list(paths)
    keys: list[tuple] = [()] * len(paths)
    for step in (lambda path: path.stat().st_size, piece, content_hash):
        many = Counter(keys)
        keys = [(*k, tried(step, p)) if many[k] > 1 else k for k, p in zip(keys, paths, strict=True)]
    return keys


def _merged(*keys: Sequence[Hashable]) -> np.ndarray:
    """Return numbers (N,) of groups in which those are together that share any of their keys."""
    rows = np.arange(len(keys[0]))
    edges = [rows, *(pd.factorize(np.fromiter(column, object))[0] for column in keys)]
    nodes = np.concatenate([codes + len(rows) * k for k, codes in enumerate(edges)])
    links = coo_array((np.ones(len(nodes)), (np.tile(rows, len(edges)), nodes)), shape=2 * (len(nodes),))
    return connected_components(links, directed=False)[1][: len(rows)]
