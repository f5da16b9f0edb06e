"""The Croissant cards: valid, in line with the table of facts, and good for reading real files."""

import shutil
from pathlib import Path

import mlcroissant
import numpy as np
import pytest
import tifffile

import r2l.datasets
from r2l.datasets import INFO
from tests.fixtures_data import write_drone_tiles, write_microscopy

CARDS = Path(r2l.datasets.__file__).parent / "cards"


@pytest.mark.parametrize("name", list(INFO))
def test_card_is_valid_and_says_what_the_table_says(name):
    card = mlcroissant.Dataset(jsonld=CARDS / f"raw_{name}.json").metadata
    assert not card.issues.errors
    assert not card.issues.warnings
    info = INFO[name]
    assert card.name == info.title
    assert card.url == info.url
    assert str(info.images) in card.description
    assert info.paper.split('"')[1] in card.cite_as
    assert info.licence == "CC-BY-4.0"
    assert card.license == ["https://creativecommons.org/licenses/by/4.0/"]


def records(root, name, record_set):
    """Read records as any Croissant reader would, with the card beside the data."""
    return list(mlcroissant.Dataset(jsonld=shutil.copy(CARDS / f"raw_{name}.json", root)).records(record_set))


def test_microscopy_card_reads_the_files(tmp_path):
    contents = write_microscopy(tmp_path)
    classes = records(tmp_path, "microscopy", "classes")
    found = [(row["classes/name"], int(row["classes/images"])) for row in classes]
    assert found == [*zip(*(INFO["microscopy"].classes, INFO["microscopy"].class_counts), strict=True)]
    labels = records(tmp_path, "microscopy", "labels")
    assert {r["labels/stem"].decode(): r["labels/class"].decode() for r in labels} == {
        stem: code for stem, (code, _) in contents.items()
    }
    for row in records(tmp_path, "microscopy", "frames"):
        steps = contents[row["frames/stem"].decode()][1]
        np.testing.assert_array_equal(tifffile.imread(tmp_path / row["frames/file"].decode()), steps)


def test_drone_card_reads_the_files(tmp_path):
    contents = write_drone_tiles(tmp_path)
    frames = records(tmp_path, "drone", "frames")
    assert sorted(row["frames/stem"].decode() for row in frames) == sorted(contents)
    for row in records(tmp_path, "drone", "cars"):
        mask = contents[row["cars/stem"].decode()][1]
        np.testing.assert_array_equal(np.asarray(row["cars/mask"]).any(axis=-1), mask)
