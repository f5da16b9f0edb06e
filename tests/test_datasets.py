"""The loaders of the real sets and of own raw files, on small copies in the real formats."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.datasets import INFO, DatasetError, DatasetNotFoundError, RawDrone, RawFolder, RawMicroscopy
from r2l.datasets import pixels as pixels_module
from r2l.datasets.layout import data_root, pipeline_code
from r2l.isp import PIPELINES, StaticISP
from r2l.rawfile import RawFileError, write_dng
from tests.conftest import end_apart, start_apart
from tests.fixtures_data import (
    BAD,
    KEPT,
    LABELS,
    mosaic,
    write_drone_photos,
    write_drone_tiles,
    write_microscopy,
)


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch, tmp_path):
    monkeypatch.delenv("R2L_DATA", raising=False)
    monkeypatch.delenv("R2L_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Healthy copies, for tests that only read."""
    root = tmp_path_factory.mktemp("data")
    contents = {
        "microscopy": write_microscopy(root, intensities=(1.0, 0.25), views=("bi,s,ga", "ma_u_me")),
        "tiles": write_drone_tiles(root),
    }
    contents["photos"] = write_drone_photos(root / "photos")
    return root, contents


def exact(steps):
    return steps / np.float32(65535)


def spoil(path):
    """Cut a file short."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_microscopy_items_are_the_files_numbers(copies):
    root, contents = copies
    dataset = RawMicroscopy(root, "all")
    assert len(dataset) == KEPT
    assert BAD not in dataset.names
    for index, item in enumerate(dataset):
        code, steps = contents["microscopy"][dataset.names[index]]
        assert item["raw"].dtype == torch.float32
        np.testing.assert_array_equal(item["raw"][0], exact(steps))
        assert dataset.classes[item["label"]] == code
        group = dataset.groups[index]
        assert f"_lame{group // 1000}_zone{group % 1000}_" in dataset.names[index]
        assert item["meta"] == {"group": group, "intensity": 1.0, "camera": MICROSCOPE.name}
    assert len(set(dataset.groups)) > 10
    assert RawMicroscopy(root, "all", transform=lambda item: item["meta"]["camera"])[0] == MICROSCOPE.name


def test_microscopy_intensities_are_other_files(copies):
    root, contents = copies
    dim = RawMicroscopy(root, "all", intensity=0.25)
    steps = contents["microscopy"][dim.names[3]][1]
    np.testing.assert_array_equal(dim[3]["raw"][0], exact((steps * 0.25).astype(np.uint16)))
    assert dim[3]["meta"]["intensity"] == 0.25
    with pytest.raises(ValueError, match=r"0\.3 was not recorded; choose from 0\.01"):
        RawMicroscopy(root, intensity=0.3)


@pytest.mark.parametrize("view", ["bi,s,ga", "ma,u,me"])
def test_microscopy_views_are_developed_images(copies, view):
    root, contents = copies
    dataset = RawMicroscopy(root, "all", view=view)
    item = dataset[0]
    steps = contents["microscopy"][dataset.names[0]][1]
    assert "raw" not in item
    np.testing.assert_array_equal(item["image"], exact(np.stack([steps, steps // 2, steps // 4])))
    with pytest.raises(DatasetNotFoundError, match="me,u,ga"):
        RawMicroscopy(root, view="me,u,ga")
    with pytest.raises(ValueError, match="of intensity"):
        RawMicroscopy(root, view=view, intensity=0.25)


@pytest.mark.parametrize("value", ["a", 1 + 1j, np.nan])
def test_a_view_of_no_brightness_is_refused(tmp_path, value):
    np.save(tmp_path / "a.npy", np.full((3, 4, 4), value))
    with pytest.raises(DatasetError, match=r"a\.npy: values of type"):
        pixels_module.read_view(tmp_path / "a.npy", "Fetch it again")


def test_folder_names_of_views():
    for code in PIPELINES:
        assert pipeline_code(code.replace(",", "_")) == code
    assert pipeline_code("menon2007-unsharp_masking-median_denoising") == "me,u,me"
    assert pipeline_code("raw_scale100") is None


def test_root_comes_from_argument_variable_or_folder(copies, monkeypatch, tmp_path):
    root, _ = copies
    monkeypatch.setenv("R2L_DATA", str(root))
    assert len(RawMicroscopy(split="all")) == KEPT
    assert data_root("elsewhere").name == "elsewhere"
    monkeypatch.delenv("R2L_DATA")
    os.symlink(root, tmp_path / "data")
    assert len(RawMicroscopy(split="all")) == KEPT


@pytest.mark.parametrize(("loader", "name"), [(RawMicroscopy, "microscopy"), (RawDrone, "drone")])
def test_absent_set_names_the_command_that_fetches_it(tmp_path, loader, name):
    with pytest.raises(DatasetNotFoundError) as caught:
        loader(tmp_path)
    assert f"r2l data fetch {name} --root {tmp_path}" in str(caught.value)
    assert "download=True" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fold", range(5))
def test_splits_keep_zones_whole(copies, fold):
    parts = {s: RawMicroscopy(copies[0], s, fold=fold) for s in ("train", "val", "test")}
    assert sorted(n for p in parts.values() for n in p.names) == sorted(RawMicroscopy(copies[0], "all").names)
    groups = [set(part.groups.tolist()) for part in parts.values()]
    assert len(set().union(*groups)) == sum(map(len, groups))
    assert parts["test"].names.tolist() == RawMicroscopy(copies[0], "test").names.tolist()
    assert parts["val"][0]["label"] == parts["val"].labels[0]
    names = [RawMicroscopy(copies[0], "train", fold=fold, seed=seed).names.tolist() for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    other = RawMicroscopy(copies[0], "train", fold=(fold + 1) % 5)
    assert parts["train"].names.tolist() != other.names.tolist()


def test_published_scheme_has_no_test_set(copies):
    train = RawMicroscopy(copies[0], "train", scheme="published")
    val = RawMicroscopy(copies[0], "val", scheme="published")
    assert len(train) == int(0.8 * KEPT)
    assert len(train) + len(val) == KEPT
    assert not set(train.names) & set(val.names)
    with pytest.raises(ValueError, match="no test set"):
        RawMicroscopy(copies[0], "test", scheme="published")
    for options in ({"split": "dev"}, {"scheme": "random"}, {"fold": 5}):
        with pytest.raises(ValueError, match="choose from"):
            RawMicroscopy(copies[0], **options)


def test_drone_tiles_from_files(copies):
    root, contents = copies
    dataset = RawDrone(root, "all")
    assert len(dataset) == 18
    assert dataset.groups.tolist() == [photo for photo in range(6) for _ in range(3)]
    assert set(dataset.labels.tolist()) == {1}
    for index, item in enumerate(dataset):
        steps, mask = contents["tiles"][dataset.names[index]]
        np.testing.assert_array_equal(item["raw"][0], exact(steps))
        assert item["mask"].dtype == torch.int64
        np.testing.assert_array_equal(item["mask"], mask)
    assert not set(RawDrone(root, "val").groups.tolist()) & set(RawDrone(root, "train").groups.tolist())


@pytest.fixture
def photos(copies):
    return copies[0] / "photos", copies[1]["photos"]


def test_drone_photos_are_cut_into_tiles(photos):
    root, contents = photos
    dataset = RawDrone(root, "all")
    assert dataset.names.tolist()[:3] == ["00_r00_c00", "00_r00_c01", "00_r00_c02"]
    assert len(dataset) == 3 * 5
    for index, item in enumerate(dataset):
        photo, column = divmod(index, 3)
        steps, mask = list(contents.values())[photo]
        tile = slice(0, 256), slice(256 * column, 256 * (column + 1))
        np.testing.assert_allclose(item["raw"][0] * 65535, steps[tile], atol=0.01)
        np.testing.assert_array_equal(item["mask"], mask[tile] > 0)
        assert item["meta"]["group"] == photo
    everything = RawDrone(root, "all", empty=True)
    assert everything.labels.tolist() == [1, 1, 1, 0, 0, 0] * 5
    assert everything[4]["mask"].sum() == 0


def test_drone_classification_is_balanced_in_each_photo(copies):
    root, contents = copies[0] / "photos", copies[1]["photos"]
    dataset = RawDrone(root, "all", task="classification")
    assert dataset.classes == ("no car", "car")
    for photo in range(5):
        assert sorted(dataset.labels[dataset.groups == photo].tolist()) == [0, 0, 1, 1]
        # The speck of a car in the second tile is neither.
        assert f"{photo:02d}_r00_c01" not in dataset.names
    item = dataset[0]
    assert item["label"] == dataset.labels[0]
    assert "mask" not in item
    expected = next(iter(contents.values()))[0][:256, :256]
    np.testing.assert_allclose(item["raw"][0] * 65535, expected, atol=0.01)
    for options in ({"task": "classification"}, {"empty": True}):
        with pytest.raises(DatasetNotFoundError, match="images_full"):
            RawDrone(copies[0], "all", **options)


def test_drone_full_frames(photos):
    root, contents = photos
    dataset = RawDrone(root, "all", tiled=False)
    assert dataset.names.tolist() == list(contents)
    steps, mask = contents[dataset.names[1]]
    item = dataset[1]
    assert item["raw"].shape == (1, 600, 800)
    np.testing.assert_allclose(item["raw"][0] * 65535, steps, atol=0.01)
    np.testing.assert_array_equal(item["mask"], mask > 0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "detection"}, "detection"),
        ({"task": "classification", "tiled": False}, "classification"),
        ({"tiled": False, "view": "bi,s,ga"}, "tiles only"),
    ],
)
def test_drone_refuses_what_does_not_go_together(copies, options, match):
    with pytest.raises(ValueError, match=match):
        RawDrone(copies[0], **options)


@pytest.fixture
def decodings(monkeypatch):
    """Count how often a raw file is decoded."""
    count = []
    real = pixels_module.read_frame
    monkeypatch.setattr(pixels_module, "read_frame", lambda *a: count.append(a) or real(*a))
    return count


def test_files_are_decoded_once(tmp_path, decodings):
    write_microscopy(tmp_path)
    first = [item["raw"] for item in RawMicroscopy(tmp_path, "all")]
    assert len(decodings) == KEPT
    for split in ("all", "train", "test"):
        for item in RawMicroscopy(tmp_path, split):
            assert any(torch.equal(item["raw"], raw) for raw in first)
    assert len(decodings) == KEPT


def test_a_changed_file_is_decoded_again(tmp_path, decodings):
    write_microscopy(tmp_path)
    before = RawMicroscopy(tmp_path, "all")
    assert before[3]["raw"].shape == (1, 32, 32)
    path = before.files[3]
    steps = 65535 - tifffile.imread(path)
    tifffile.imwrite(path, steps)
    os.utime(path, ns=(0, 1))
    np.testing.assert_array_equal(RawMicroscopy(tmp_path, "all")[3]["raw"][0], exact(steps))
    assert len(decodings) == 2 * KEPT
    # The cache of the old files has gone.
    assert len(list((tmp_path / ".r2l_cache").glob("*.npy"))) == 1


def test_photos_are_cut_once(tmp_path, decodings):
    write_drone_photos(tmp_path, photos=2)
    for _ in range(2):
        assert len([item["raw"] for item in RawDrone(tmp_path, "all")]) == 6
    assert len(decodings) == 2


def test_cache_lies_where_the_variable_says(tmp_path, monkeypatch):
    write_microscopy(tmp_path / "data")
    monkeypatch.setenv("R2L_CACHE", str(tmp_path / "cache"))
    assert len(RawMicroscopy(tmp_path / "data", "all")[0]["raw"]) == 1
    assert not (tmp_path / "data/.r2l_cache").exists()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_without_room_for_the_cache_frames_stay_in_memory(tmp_path, monkeypatch):
    contents = write_microscopy(tmp_path / "data")
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("R2L_CACHE", str(tmp_path / "file"))
    dataset = RawMicroscopy(tmp_path / "data", "all")
    with pytest.warns(UserWarning, match="kept in memory"):
        item = dataset[0]
    np.testing.assert_array_equal(item["raw"][0], exact(contents[dataset.names[0]][1]))


def _read_all(root, told):
    told.write_text(str(sum(float(item["raw"].double().sum()) for item in RawMicroscopy(root, "all"))))


def test_two_processes_at_once_make_one_cache(tmp_path):
    contents = write_microscopy(tmp_path)
    readers = [start_apart(_read_all, tmp_path, tmp_path / f"{n}.txt") for n in range(3)]
    assert [end_apart(reader) for reader in readers] == [0] * 3
    sums = [float((tmp_path / f"{n}.txt").read_text()) for n in range(3)]
    kept = RawMicroscopy(tmp_path, "all").names
    assert sums == pytest.approx([sum(contents[name][1].sum() / 65535 for name in kept)] * 3, rel=1e-5)
    left = [path.name for path in (tmp_path / ".r2l_cache").iterdir()]
    assert len([name for name in left if name.endswith(".npy")]) == 1
    assert not [name for name in left if name.endswith(".part")]


def test_workers_give_the_same_batches(copies):
    dataset = RawDrone(copies[0], "all")
    plain = [batch["raw"] for batch in DataLoader(dataset, batch_size=5)]
    loader = DataLoader(dataset, batch_size=5, num_workers=2)
    assert all(torch.equal(a, b["raw"]) for a, b in zip(plain, loader, strict=True))
    # A spawned worker gets a pickle, in which there are no pixels.
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 20_000
    assert torch.equal(pickle.loads(pickled)[0]["raw"], plain[0][0])


def test_items_are_the_callers_to_change(copies):
    dataset = RawDrone(copies[0], "all")
    item = dataset[0]
    before = item["raw"].clone()
    item["raw"].zero_()
    item["mask"].fill_(7)
    assert torch.equal(dataset[0]["raw"], before)
    assert dataset[0]["mask"].max() == 1


def assert_names_file_and_remedy(error, path):
    reason, _, remedy = str(error).partition("\n")
    assert reason.startswith(f"{path}: ")
    assert remedy


IMAGES, MASKS = "microscopy/images/raw_scale100/", "drone/masks_tiles_256/"
TILE, MASK = "drone/images_tiles_256/raw_scale100/02_00001.tif", f"{MASKS}02_00001.png"
CELL, LAST, NEW = (f"Ma190c_lame{n}_composite_Mcropped_1.tiff" for n in ("1_zone1", "2_zone7", "9_zone9"))


def resize(path, shape):
    Image.fromarray(np.ones(shape, np.uint8 if path.suffix == ".png" else np.uint16)).save(path)


def without_zone(path):
    path.rename(path.with_name("cell.tiff"))
    labels = path.parents[2] / "labels/Ma190c_annotations.dat"
    labels.write_text(labels.read_text().replace(CELL[:-5], "cell"))


@pytest.mark.parametrize(
    ("path", "damage", "named", "match"),
    [
        (IMAGES + CELL, spoil, IMAGES + CELL, "no readable TIFF"),
        (IMAGES + LAST, lambda p: resize(p, (40, 32)), IMAGES + LAST, "40 x 32"),
        (IMAGES + CELL, Path.unlink, LABELS, f"a label for {CELL[:-5]}"),
        (IMAGES + CELL, lambda p: shutil.copy(p, p.with_name(NEW)), IMAGES + NEW, "without a label"),
        (IMAGES + CELL, without_zone, IMAGES + "cell.tiff", "zone"),
        (LABELS, lambda p: p.write_bytes(b"one two three\n"), LABELS, "line 1"),
        (LABELS, lambda p: p.write_bytes(b"a BAS\na LYT\n"), LABELS, "second label"),
        (LABELS, lambda p: p.write_bytes(b"\xff\xfe\x00"), LABELS, "no readable label file"),
        (MASK, lambda p: p.write_bytes(b"none"), MASK, "no readable mask"),
        (MASK, lambda p: Image.open(p).save(p, "GIF"), MASK, "no readable mask"),
        (MASK, lambda p: resize(p, (16, 32)), MASK, "16 x 32"),
        (MASK, Path.unlink, TILE, "without a mask"),
        (TILE, Path.unlink, MASKS, "a mask for 02_00001"),
    ],
)
def test_damaged_copies_name_the_file_and_the_remedy(tmp_path, path, damage, named, match):
    write_microscopy(tmp_path)
    write_drone_tiles(tmp_path)
    damage(tmp_path / path)
    loader = RawDrone if "drone" in str(path) else RawMicroscopy
    with pytest.raises(DatasetError, match=match) as caught:
        loader(tmp_path, "all")[0]
    assert_names_file_and_remedy(caught.value, tmp_path / named)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert not [p for p in tmp_path.glob(".r2l_cache/*raw_scale*") if p.suffix in (".npy", ".part")]
    if match.startswith(("a ", "without a ")):  # in one half of a pair only: can be left out
        left = {RawDrone: 18, RawMicroscopy: KEPT}[loader]
        left -= path != IMAGES + CELL or damage is Path.unlink
        assert len(loader(tmp_path, "all", strict=False)) == left


@pytest.mark.parametrize(
    ("write", "first", "side", "sizes"),
    [
        (write_drone_tiles, f"{MASKS}00_00000.png", 16, "16 x 16 pixels for the 32 x 32"),
        (write_drone_photos, "drone/masks_full/DJI_0440_mask.png", 512, "512 x 512 pixels for the 600 x 800"),
    ],
)
def test_masks_all_of_another_size_than_their_images(tmp_path, write, first, side, sizes):
    write(tmp_path, photos=2)
    for path in (tmp_path / first).parent.iterdir():
        resize(path, (side, side))
    with pytest.raises(DatasetError, match=f"a mask of {sizes}") as caught:
        RawDrone(tmp_path, "all")[0]
    assert_names_file_and_remedy(caught.value, tmp_path / first)
    assert not list((tmp_path / ".r2l_cache").glob("*tiles*.npy"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_masks_in_any_mode_of_png(tmp_path, mode):
    mask = np.zeros((32, 32), bool)
    mask[4:9, 3:20] = True
    image = Image.fromarray(mask.astype(np.uint8) if mode == "P" else mask)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.convert(mode).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(pixels_module.read_mask(tmp_path / "mask.png", ""), mask)


def test_info_adds_up():
    info = INFO["microscopy"]
    assert sum(info.class_counts) == info.images == 940
    # As published, since the twin's counts come from the same table.
    published = "BAS 18, EOS 54, KSC 163, LYA 30, LYT 230, MON 191, NGB 8, NGS 216, UNC 30"
    counts = zip(info.classes, info.class_counts, strict=True)
    assert ", ".join(f"{name} {count}" for name, count in counts) == published
    assert INFO["drone"].images == 548


def own_photos(folder, camera=DRONE, classes=("cat", "dog"), each=4, shape=(40, 60)):
    rng = np.random.default_rng(0)
    contents = {}
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            path = folder / name / f"{name}{number}.dng"
            contents[path] = exact(mosaic(rng, shape, 0.6))
            write_dng(path, contents[path], camera)
    return contents


def test_class_folders(tmp_path, monkeypatch):
    contents = own_photos(tmp_path / "photos")
    dataset = RawFolder(tmp_path / "photos")
    assert dataset.classes == ("cat", "dog")
    assert dataset.camera == DRONE
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4
    for index, item in enumerate(dataset):
        np.testing.assert_allclose(item["raw"][0], contents[dataset.paths[index]], atol=1e-5)
        assert dataset.classes[item["label"]] == dataset.paths[index].parent.name
    batch = next(iter(DataLoader(dataset, batch_size=8)))
    assert StaticISP.from_code("bi,s,ga", dataset.camera)(batch["raw"]).shape == (8, 3, 40, 60)
    # With a cache each is decoded once.
    kept = RawFolder(tmp_path / "photos", cache=tmp_path / "cache")
    first = [item["raw"] for item in kept]
    monkeypatch.setattr("r2l.datasets.folder.read_raw", None)
    assert all(torch.equal(item["raw"], raw) for item, raw in zip(kept, first, strict=True))


def test_csv_of_labels_with_groups(tmp_path):
    own_photos(tmp_path / "photos", each=6)
    names = [f"{name}/{name}{i}.dng" for name in ("cat", "dog") for i in range(6)]
    rows = [f"{name},{'odd' if i % 2 else 'even'},day{i // 2}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,group", *rows]))
    dataset = RawFolder(tmp_path / "photos", labels=tmp_path / "labels.csv")
    assert dataset.classes == ("even", "odd")
    assert dataset.labels.tolist() == [0, 1] * 6
    assert dataset.groups.tolist() == [i // 2 for i in range(12)]
    train = RawFolder(tmp_path / "photos", tmp_path / "labels.csv", split="train")
    assert 0 < len(train) < 12
    assert train[0]["label"] == train.labels[0]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ("name,label\na,b\n", "expected file and label"),
        ("file,label\ncat/none.dng,b\n", "cat/none.dng"),
        ("file,label\ncat/cat0.dng,b\n", "without a label"),
        ("file,label\ncat/cat0.dng,b\ncat/cat0.dng,c\n", "two labels"),
        ("file,label\ncat/cat1.dng,b\ncat/cat0.dng,\n", "no file or no label in line 3"),
        ("", "no readable CSV"),
        (",".join(f"c{i}" for i in range(20_000)) + "\n", r"c0, c1, .* \.\.\.; expected file"),
    ],
)
def test_csv_that_does_not_fit(tmp_path, rows, match):
    own_photos(tmp_path / "photos", each=1)
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(DatasetError, match=match) as caught:
        RawFolder(tmp_path / "photos", tmp_path / "labels.csv")
    assert str(caught.value).count("\n") == 1
    assert len(str(caught.value)) < 1000


def test_own_masks(tmp_path):
    contents = own_photos(tmp_path / "photos", classes=("all",))
    (tmp_path / "masks").mkdir()
    for number, path in enumerate(contents):
        mask = np.zeros((40, 60), np.uint8)
        mask[number : number + 10, 5:9] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/{path.stem}.png")
    dataset = RawFolder(tmp_path / "photos", masks=tmp_path / "masks")
    assert dataset.classes == ("background", "object")
    assert dataset[2]["mask"].nonzero().min(0).values.tolist() == [2, 5]
    with pytest.raises(DatasetError, match="a value of 255, and there are 3 classes"):
        RawFolder(tmp_path / "photos", masks=tmp_path / "masks", classes=("a", "b", "c"))[0]
    Image.fromarray(mask[:30]).save(tmp_path / "masks/all1.png")
    with pytest.raises(DatasetError, match=r"mask of shape \(30, 60\)"):
        dataset[1]
    (tmp_path / "masks/all1.png").unlink()
    with pytest.raises(DatasetError, match="without a mask"):
        RawFolder(tmp_path / "photos", masks=tmp_path / "masks")


def test_given_camera_is_for_files_that_say_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    steps = mosaic(np.random.default_rng(0), (20, 30), 1.0)
    tifffile.imwrite(tmp_path / "a/one.tiff", steps)
    with pytest.raises(RawFileError, match="camera"):
        RawFolder(tmp_path)
    np.testing.assert_array_equal(RawFolder(tmp_path, camera=MICROSCOPE)[0]["raw"][0], exact(steps))


@pytest.mark.parametrize("layout", list(CFA))
def test_frames_of_other_layouts_are_brought_in_line(tmp_path, layout):
    """A flat colour, recorded by sensors of two layouts and levels, gives one mosaic."""
    other = replace(DRONE, cfa=layout, black_level=(0.03,) * 4, white_level=0.8)
    for camera, name in ((DRONE, "0"), (other, "1")):
        light = np.array([0.2, 0.5, 0.3])[np.array(camera.cfa.value).reshape(2, 2)]
        black = np.reshape(camera.black_level, (2, 2))
        tile = black + light * (camera.white_level - black)
        (tmp_path / "flat").mkdir(exist_ok=True)
        write_dng(tmp_path / f"flat/{name}.dng", np.tile(tile, (15, 20)), camera)
    dataset = RawFolder(tmp_path, crop=24)
    one, two = (item["raw"] for item in dataset)
    assert one.shape == two.shape == (1, 24, 24)
    torch.testing.assert_close(one, two, atol=3e-5, rtol=0)
    assert dataset.camera == DRONE
    assert dataset.frame(1).camera.cfa is layout


def test_own_folder_errors(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no such folder"):
        RawFolder(tmp_path / "none")
    with pytest.raises(DatasetNotFoundError, match="no raw files"):
        RawFolder(tmp_path)
    own_photos(tmp_path / "photos", each=1)
    shutil.copy(tmp_path / "photos/cat/cat0.dng", tmp_path / "photos/stray.dng")
    with pytest.raises(DatasetError, match="outside of the class folders"):
        RawFolder(tmp_path / "photos")
    assert len(RawFolder(tmp_path / "photos", strict=False)) == 2
    for options in ({"crop": 3}, {"labels": "a", "masks": "b"}, {"split": "dev"}):
        with pytest.raises(ValueError, match=r"crop|not both|dev"):
            RawFolder(tmp_path / "photos", strict=False, **options)
    with pytest.raises(DatasetError, match="less than the crop"):
        RawFolder(tmp_path / "photos", strict=False, crop=100)[0]
    spoil(tmp_path / "photos/dog/dog0.dng")
    with pytest.raises(RawFileError, match="dog0"):
        RawFolder(tmp_path / "photos", strict=False)[1]
