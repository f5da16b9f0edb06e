"""Which of a folder's raw files has which label or mask: tables of path, label, group and mask."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from r2l.datasets.layout import IMAGE_SUFFIXES, DatasetError, DatasetNotFoundError, by_stem

# Raw formats of today's and yesterday's cameras; what a file really is, `read_raw` finds out.
_CAMERA_FORMATS = """
    3fr ari arw bay cap cr2 cr3 crw dcr erf fff gpr iiq kdc mef mos mrw nef nrw orf pef raf raw rw2
    rwl sr2 srf srw x3f
"""
RAW_SUFFIXES = IMAGE_SUFFIXES | {f".{suffix}" for suffix in _CAMERA_FORMATS.split()}
_COLUMNS = ["path", "label", "group", "mask"]
_KEEP_OR_SKIP = "Add what is missing, or leave such images out (in Python: strict=False)"


def raw_files(root: Path) -> list[Path]:
    """Return the raw files below ``root``, by name.

    Raises:
        DatasetNotFoundError: no folder, or no raw file in it.
    """
    if not root.is_dir():
        raise DatasetNotFoundError(f"{root}: no such folder. Give that of your raw files.")
    found = (p for p in sorted(root.rglob("*")) if p.suffix.lower() in RAW_SUFFIXES)
    files = [p for p in found if not p.name.startswith(".")]
    if not files:
        raise DatasetNotFoundError(
            f"{root}: no raw files in it. Give a folder of DNG, CR3, NEF, ARW and the like, or of "
            "mosaics as TIFF, PNG or NPY."
        )
    return files


def table_of_folders(root: Path, strict: bool) -> pd.DataFrame:
    """Return ``root/<class>/<image>`` as a table; each image is a group of its own.

    Raises:
        DatasetError: an image outside of the class folders, and ``strict``.
    """
    rows = []
    for path in raw_files(root):
        inside = path.relative_to(root).parts
        if len(inside) > 1:
            rows.append((path, inside[0], str(path), None))
        elif strict:
            raise DatasetError(path, "an image outside of the class folders", _KEEP_OR_SKIP)
    return pd.DataFrame(rows, columns=_COLUMNS)


def table_of_csv(root: Path, place: Path, strict: bool) -> pd.DataFrame:
    """Return the table in a CSV with the columns file (below ``root``), label and, maybe, group.

    Raises:
        DatasetError: no such CSV; or a label without image, an image without label, and ``strict``.
    """
    try:
        table = pd.read_csv(place, dtype=str)
    except (OSError, ValueError) as error:
        reason, remedy = f"no readable CSV ({error})", "Give a CSV with columns file and label"
        raise DatasetError(place, reason, remedy) from None
    if not {"file", "label"} <= set(table.columns):
        names = textwrap.shorten(", ".join(table.columns), 200, placeholder=" ...")
        reason = f"columns {names}; expected file and label"
        raise DatasetError(place, reason, "Name the columns file, label and (if known) group")
    empty = table[["file", "label"]].isna().any(axis=1)
    if empty.any():
        # The head is line 1.
        reason = f"no file or no label in line {empty.to_numpy().argmax() + 2}"
        raise DatasetError(place, reason, "Fill it in, or take the line out")
    if table["file"].duplicated().any():
        twice = table.loc[table["file"].duplicated(), "file"].iloc[0]
        raise DatasetError(place, f"two labels for {twice}", "Keep one of the two")
    files = raw_files(root)
    table["path"] = [root / name for name in table["file"]]
    there = table["path"].isin(files)
    if strict:
        for name in table.loc[~there, "file"]:
            raise DatasetError(place, f"a label for {name}, which is not in {root}", _KEEP_OR_SKIP)
        for path in sorted(set(files) - set(table["path"])):
            raise DatasetError(path, f"an image without a label in {place}", _KEEP_OR_SKIP)
    groups = table["group"] if "group" in table else table["file"]
    return table.assign(group=groups.fillna(table["file"]), mask=None)[there][_COLUMNS]


def table_of_masks(root: Path, folder: Path, strict: bool) -> pd.DataFrame:
    """Return images and their masks (PNG of the same stem) as a table, without labels.

    Raises:
        DatasetNotFoundError: no such folder of masks.
        DatasetError: an image without mask or a mask without image, and ``strict``; or two images
            of one stem.
    """
    if not folder.is_dir():
        raise DatasetNotFoundError(f"{folder}: no such folder. Give that of the masks.")
    masks = by_stem(sorted(folder.glob("*.png")))
    inside = folder.resolve()
    images = by_stem(p for p in raw_files(root) if inside not in p.resolve().parents)
    if strict:
        for stem in sorted(images.keys() - masks.keys()):
            raise DatasetError(images[stem], f"an image without a mask in {folder}", _KEEP_OR_SKIP)
        for stem in sorted(masks.keys() - images.keys()):
            raise DatasetError(masks[stem], f"a mask without an image in {root}", _KEEP_OR_SKIP)
    both = [stem for stem in images if stem in masks]
    rows = [(images[stem], None, str(images[stem]), masks[stem]) for stem in both]
    return pd.DataFrame(rows, columns=_COLUMNS)
