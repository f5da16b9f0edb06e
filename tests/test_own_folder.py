"""Own files as people have them: their folders, tables and masks, and what must not go wrong silently."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from sklearn.metrics import r2_score

from r2l.camera import DRONE
from r2l.datasets import DatasetError, Frames, RawFolder, SyntheticMicroscopy
from r2l.datasets.verify import verify_folder
from r2l.files import R2LError, local_path, read_csv, write_csv
from r2l.isp import StaticISP
from r2l.options import Options
from r2l.rawfile import RawFileError, write_dng
from r2l.rawfile.decoding import tiff_facts
from r2l.sweep import ParameterError, read_sweep
from r2l.sweep.jobs import parse_yaml
from r2l.sweep.runs import _claimed
from r2l.training import fit, make_classifier
from r2l.training.checkpoints import seeded
from r2l.training.components import make_folds, open_data
from r2l.training.experiment import experiment
from r2l.training.models import make_regressor, target_statistics
from r2l.training.tracking import Records, store_address
from tests.conftest import invoke
from tests.fixtures_data import mosaic

SMALL = {"dataset": "RawFolder", "classifier_network": "SmallResNet", "processing_mode": "static"}
SMALL |= {"epochs": 1, "batch_size": 4, "log_model": False, "accelerator": "cpu"}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Class folders a and b with four files each, none like another; the working folder is above."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in "ab":
        Path("photos", name).mkdir(parents=True)
        for number in range(4):
            steps = mosaic(rng, (32, 32), 0.6)
            write_dng(f"photos/{name}/{name}{number}.dng", steps / np.float32(65535), DRONE)
    return Path("photos")


def names(photos):
    return [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.dng"))]


def table(photos, label, head="file,label", group=None, separator=",", encoding="utf-8"):
    rows = [[n, str(label(i, n)), *([group(i)] if group else [])] for i, n in enumerate(names(photos))]
    Path("labels.csv").write_bytes("\n".join([head, *(separator.join(row) for row in rows)]).encode(encoding))
    return "labels.csv"


def cut_short(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[:900])


def open_photos(**options):
    return open_data(Options(**SMALL, root="photos", **options), progress=False)


def test_hidden_folders_are_no_classes_linked_ones_are_followed_once_empty_ones_are_told(photos, tmp_path):
    (photos / ".thumbnails").mkdir()
    shutil.copy(photos / "a/a0.dng", photos / ".thumbnails/x.dng")
    shutil.move(photos / "b", tmp_path / "elsewhere")
    (photos / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(photos.resolve())
    (photos / "c").mkdir()
    (photos / "c/x.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.warns(UserWarning, match="no raw files in c"):
        data = RawFolder(photos)
    assert data.classes == ("a", "b")
    assert np.bincount(data.labels).tolist() == [4, 4]


@pytest.mark.parametrize("word", ["NA", "None", "null", "nan", "N/A"])
def test_words_that_others_take_for_missing_are_words(photos, word):
    labels = table(photos, lambda i, n: word if n[0] == "a" else "b")
    assert RawFolder(photos, labels).classes == tuple(sorted([word, "b"]))
    groups = table(photos, lambda i, n: n[0], "file,label,group", lambda i: ("EU", word)[i % 2])
    assert len(set(RawFolder(photos, groups).groups)) == 2


@pytest.mark.parametrize(
    ("head", "separator", "encoding"),
    [("file;label", ";", "utf-8-sig"), ("File, LABEL ", ", ", "utf-8"), ("file\tlabel", "\t", "cp1252")],
)
def test_tables_as_spreadsheets_write_them(photos, head, separator, encoding):
    labels = table(photos, lambda i, n: f"{n[0]}é{' ' * (i % 2)}", head, None, separator, encoding)
    assert RawFolder(photos, labels).classes == ("aé", "bé")


def test_trailing_separators_are_no_columns_and_more_cells_are_refused(photos):
    assert RawFolder(photos, table(photos, lambda i, n: f"{n[0]},")).classes == ("a", "b")
    with pytest.raises(DatasetError, match="line 2 has 3 cells, and there are 2 columns"):
        RawFolder(photos, table(photos, lambda i, n: f"{n[0]},x"))


def test_columns_and_classes_named_twice_are_refused(photos):
    with pytest.raises(DatasetError, match="several columns label"):
        RawFolder(photos, table(photos, lambda i, n: f"{n[0]},b", head="file,label,Label"))
    with pytest.raises(ValueError, match="one of them twice"):
        RawFolder(photos, classes=["a", "b", "a"])


def test_a_file_named_twice_is_refused_and_a_copy_is_in_its_groups(photos):
    Path("labels.csv").write_text(f"{Path(table(photos, lambda i, n: n[0])).read_text()}\n./b/../a/a0.dng,b")
    with pytest.raises(DatasetError, match=r"two labels for .*, in lines 2 and 10"):
        RawFolder(photos, "labels.csv")

    (photos / "a/card2").mkdir()
    shutil.copy(photos / "a/a1.dng", photos / "a/card2/IMG.dng")  # two cards
    steps = np.full((32, 32), 20_000, np.uint16)
    tifffile.imwrite(photos / "b/b2.tif", steps)  # raw beside its TIFF
    data = RawFolder(photos)
    group = dict(zip(data.names.tolist(), data.groups.tolist(), strict=True))
    assert (len(group), len(set(group.values()))) == (10, 8)
    assert group["a/card2/IMG.dng"] == group["a/a1.dng"]
    assert group["b/b2.tif"] == group["b/b2.dng"]

    shutil.copy(photos / "a/a1.dng", photos / "b/other.dng")
    with pytest.raises(DatasetError, match=r"a1.dng.*the same picture as|the same picture as .*a1"):
        RawFolder(photos)


def test_class_names_that_are_numbers_come_in_their_order(photos):
    labels = table(photos, lambda i, n: (9, 10, 100, 2)[i % 4])
    assert RawFolder(photos, labels).classes == ("2", "9", "10", "100")
    with pytest.raises(DatasetError, match="--task classification or regression"):
        open_photos(labels=labels)
    assert open_photos(labels=labels, task="regression").truth[:4].tolist() == [9, 10, 100, 2]


@pytest.mark.parametrize("name", ["{}.PNG", "{}_mask.png", "{}-Mask.tif", "{}.tiff"])
def test_masks_by_their_names(photos, name):
    Path("masks").mkdir()
    for path in (photos / "a").iterdir():
        mask = Image.fromarray(np.eye(32, dtype=np.uint8) * 255)
        mask.save(Path("masks", name.format(path.stem)), "TIFF" if "tif" in name else "PNG")
    Path("masks/._a0.png").write_bytes(b"of macOS")
    data = RawFolder(photos / "a", masks="masks")
    assert len(data) == 4
    assert torch.equal(data[0]["mask"], torch.eye(32, dtype=torch.int64))


@pytest.mark.parametrize("value", [np.int16(-1), np.float32(0.5), np.float32("nan"), np.uint8(3)])
def test_values_of_masks_that_are_no_class_are_refused(photos, value):
    Path("masks").mkdir()
    mask = np.zeros((32, 32), value.dtype)
    for number in range(4):
        tifffile.imwrite(f"masks/a{number}.tif", mask)
    data = RawFolder(photos / "a", masks="masks", classes=["road", "car", "tree"])
    assert not data[0]["mask"].any()
    mask[3, 4] = value
    tifffile.imwrite("masks/a0.tif", mask)
    with pytest.raises(DatasetError, match=f"a value of {value}, and there are 3 classes"):
        data[0]


def test_masks_of_several_classes_are_refused_unless_the_object_is_said(photos):
    Path("masks").mkdir()
    values = np.repeat(np.arange(4, dtype=np.uint8), 8)[:, None].repeat(32, 1)
    for path in (photos / "a").iterdir():
        Image.fromarray(values).save(f"masks/{path.stem}.png")
    with pytest.raises(DatasetError, match="the values 0, 1, 2, 3 look like classes"):
        RawFolder(photos / "a", masks="masks")[0]
    options = Options(**SMALL, root="photos/a", masks="masks", foreground="1, 3")
    np.testing.assert_array_equal(open_data(options, progress=False).truth[0, 0], np.isin(values, (1, 3)))
    with pytest.raises(ValueError, match="leave out --classes"):
        replace(options, classes="a,b,c,d")
    named = open_data(replace(options, foreground=None, classes="sky, road,car,tree"), False)
    assert named.classes == ("sky", "road", "car", "tree")
    np.testing.assert_array_equal(named.truth[0, 0], values)


def test_own_colours_are_what_each_files_own_pipeline_gives(photos):
    other = replace(DRONE, name="other light", white_balance=(1.5, 1.0, 2.5))
    dim = np.random.default_rng(1).uniform(0.07, 0.3, (32, 32)).astype(np.float32)
    write_dng(photos / "b/b9.dng", dim, other)
    data = RawFolder(photos, own_colours=True)
    index = data.names.tolist().index("b/b9.dng")
    shared = StaticISP.from_code("bi,s,ga", data.camera)(data[index]["raw"][None])
    own = StaticISP.from_code("bi,s,ga", other)(torch.tensor(dim)[None, None])
    torch.testing.assert_close(shared, own, atol=1e-3, rtol=0)
    plain = StaticISP.from_code("bi,s,ga", data.camera)(RawFolder(photos)[index]["raw"][None])
    assert (plain - own).abs().max() > 0.05


def test_broken_files_are_left_out_if_asked_and_counted_in_the_record(photos):
    cut_short(photos / "a/a0.dng", photos / "b/b3.dng")
    with pytest.raises(RawFileError, match=r"a0\.dng"):
        open_photos()
    lines = []
    outcome = experiment(Options(**SMALL, root="photos", skip_broken=True), say=lines.append, progress=False)
    assert any(line.startswith("2 left out as broken: ") and "b3.dng" in line for line in lines)
    assert Records().call("get_run", outcome.run_id).data.params["skipped"] == "2"
    assert not {"a/a0.dng", "b/b3.dng"} & set(outcome.predictions["name"])


def test_the_fingerprint_is_of_numbers_masks_pixels_and_camera():
    def frames(truth=(1.0, 2.0), pixel=0.5, camera=DRONE):
        raw = torch.full((2, 1, 8, 8), 0.5)
        raw[1, 0, 3, 3] = pixel
        return Frames(raw, torch.tensor(truth), np.arange(2), camera)

    first = frames()
    others = [frames((1.0, 3.0)), frames(pixel=0.6), frames(camera=replace(DRONE, white_level=0.9))]
    assert first.fingerprint() == frames().fingerprint()
    assert len({f.fingerprint() for f in (first, *others)}) == 4
    assert first.fingerprint([0]) == others[1].fingerprint([0]) != first.fingerprint([1])


@pytest.mark.slow
@pytest.mark.parametrize("unit", [lambda i: 1.7e9 + i / 4, lambda i: (i + 0.5) * 1e-30])
def test_measurements_keep_their_digits(photos, unit):
    options = Options(**SMALL, root="photos", labels=table(photos, lambda i, n: repr(unit(i))))
    outcome = experiment(options, say=lambda line: None, progress=False)
    true = {name: unit(i) for i, name in enumerate(names(photos))}
    answers = outcome.predictions
    assert answers["target"].tolist() == [true[name] for name in answers["name"]]
    expected = r2_score(answers["target"], answers["prediction"])
    assert outcome.scores["r2"].item() == pytest.approx(expected)
    assert expected < 0.99


def test_a_table_keeps_its_digits_whatever_numpy_prints_with(tmp_path):
    # Libraries of colour set these options where they are imported.
    table = pd.DataFrame({"a": [2.5e-30 * (1 + 2**-52), float("nan"), 1 / 3], "b": ["x", "y", "ü"]})
    with np.printoptions(legacy="1.13"):
        write_csv(table, tmp_path / "table.csv")
        pd.testing.assert_frame_equal(read_csv(tmp_path / "table.csv"), table, check_exact=True)


def test_steps_of_a_regression_do_not_depend_on_its_unit(photos):
    def weights(unit):
        data = open_photos(labels=table(photos, lambda i, n: repr((i + 0.5) * unit)))
        mean, std = target_statistics(data.truth)
        make = partial(make_regressor, "SmallResNet", target_mean=mean, target_std=std)
        isp = StaticISP.from_code("bi,s,ga", data.camera)
        settings = {"task": "regression", "epochs": 1, "batch_size": 4, "accelerator": "cpu"}
        trained = fit(make, data, processor=isp, progress=False, **settings)
        return torch.cat([p.flatten() for p in trained.model.network.parameters()])

    one, large = weights(1.0), weights(1e30)
    assert torch.isfinite(large).all()
    torch.testing.assert_close(one, large, atol=1e-4, rtol=0)


def test_trainings_that_run_away_or_lack_classes_end(photos):
    for data, lr, match in (
        (RawFolder(photos), float("1e30"), "not a number: the training ran away"),
        (SyntheticMicroscopy(20, seed=0, size=32), 1e-3, "2 classes apart, and there is a label"),
    ):
        model, isp = partial(make_classifier, "SmallResNet", 2), StaticISP(data.camera)
        with pytest.raises(ValueError, match=match):
            fit(model, data, processor=isp, lr=lr, epochs=4, batch_size=4, progress=False)


def test_errors_come_back_from_a_loaders_worker_as_they_are(photos):
    cut_short(photos / "b/b3.dng")
    data = RawFolder(photos)
    with pytest.raises(RawFileError) as direct:
        data[7]
    with pytest.raises(RawFileError) as far:
        list(torch.utils.data.DataLoader(data, 8, num_workers=1))
    assert far.value.args == direct.value.args
    assert isinstance(far.value, R2LError)


def test_too_few_classes_or_images_are_told_in_our_own_words():
    def folds(labels, classes, **options):
        raw, groups = torch.rand(len(labels), 1, 8, 8), np.arange(len(labels))
        frames = Frames(raw, labels, groups, DRONE, classes=classes)
        return make_folds(frames, Options(**SMALL, root="x", **options))

    with pytest.raises(ValueError, match="all 6 images are of one class, a"):
        folds(torch.zeros(6).long(), ("a",))
    with pytest.raises(ValueError, match="each of the 6 images has a class of its own"):
        folds(torch.arange(6), [*"abcdef"])
    (fold,) = folds(torch.arange(16) % 2, "ab", train_size=0.9)
    assert len(fold.test) in (1, 2)
    assert sorted([*fold.train, *fold.test]) == list(range(16))


def test_home_and_file_addresses_mean_what_they_mean_elsewhere(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/photos") == tmp_path / "photos"
    assert local_path(tmp_path.as_uri()) == tmp_path
    assert len(RawFolder("~/photos")) == len(RawFolder(photos.resolve().as_uri())) == 8
    options = Options(**SMALL, root="~/photos", folder="~/runs", processor_uri="~/isp")
    assert (options.folder, options.processor_uri) == (f"{tmp_path}/runs", f"{tmp_path}/isp")
    assert store_address("sqlite:///~/m.db") == f"sqlite:///{tmp_path}/m.db"
    assert store_address("~") == f"sqlite:///{tmp_path}/mlflow.db"


def test_verify_tells_all_that_is_wrong_in_one_go(photos):
    cut_short(photos / "a/a0.dng", photos / "b/b1.dng")
    write_dng(photos / "b/b8.dng", np.full((24, 32), 0.3), replace(DRONE, name="other"))
    shutil.copy(photos / "a/a1.dng", photos / "b/copy.dng")
    shutil.copy(photos / "a/a1.dng", photos / "outside.dng")
    result = invoke("data", "verify", "--root", "photos")
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert result.exit_code == 2
    assert len(wrong) == 5
    assert "wrong  8 of 10 images can be read" in wrong
    for name in ("a0.dng", "b1.dng", "copy.dng", "outside.dng"):
        assert any(name in line for line in wrong)
    for text in ("32 x 32 (7), 24 x 32 (1)", "b (6), a (4)", "other, RGGB"):
        assert text in result.stdout
    assert invoke("data", "verify").exit_code == 2


def test_verify_looks_at_masks(photos):
    Path("masks").mkdir()
    for number in range(3):
        side = 32 if number else 16
        drawn = np.eye(side, dtype=np.uint8) * (number + 1)
        Image.fromarray(drawn).save(f"masks/a{number}_mask.png")
    fine, wrong = verify_folder(photos / "a", masks=Path("masks"), progress=False)
    assert "3 of 3 images can be read" in fine
    assert "values in masks (in how many): 0 (3), 1 (1), 2 (1), 3 (1)" in fine
    assert len(wrong) == 2
    assert "a3.dng: an image without a mask" in wrong[0]
    assert "a0_mask.png: (16, 16) pixels" in wrong[1]


@pytest.fixture
def sweep(photos):
    Path("s.yaml").write_text(
        "train: {dataset: RawFolder, root: photos, labels: labels.csv, lr: 1e-3}\ngrid: {epochs: [1, 2]}\n"
    )
    table(photos, lambda i, n: n[0])
    return "s.yaml"


def test_a_sweeps_runs_are_known_by_labels_pixels_and_camera(photos, sweep):
    def hashes():
        return [job.hash for job in read_sweep(sweep).jobs]

    first = hashes()
    assert hashes() == first
    assert len(set(first)) == 2
    shutil.copy(photos / "a/a0.dng", "kept.dng")
    os.utime(photos / "a/a0.dng", (1, 1))
    assert hashes() == first, "another time, the same content"
    seen = {tuple(first)}
    for label in (lambda i, n: "xyz"[i % 3], lambda i, n: f"{i}.5", lambda i, n: f"{i}.25"):
        table(photos, label)
        seen.add(tuple(hashes()))
    write_dng(photos / "a/a0.dng", np.full((32, 32), 0.4), DRONE)
    seen.add(tuple(hashes()))
    assert len(seen) == 5
    assert read_sweep(sweep).jobs[0].options().lr == 1e-3


def test_a_sweep_does_not_write_over_another_files_report(photos, sweep):
    Path("other").mkdir()
    shutil.copy(sweep, "other/s.yaml")

    def claim(file):
        with _claimed(read_sweep(file), Path()):
            pass

    claim(sweep)
    claim(sweep)
    with pytest.raises(ParameterError, match=r"it holds the sweep of .*s\.yaml"):
        claim("other/s.yaml")
    Path(sweep).rename("moved.yaml")
    claim("other/s.yaml")
    Path("other/s.yaml").rename("s.yaml")
    Path("other/s.yaml").write_text(Path("s.yaml").read_text())
    result = invoke("sweep", "s.yaml", "other/s.yaml", "--plan")
    assert result.exit_code == 2
    assert "files of one name" in result.output


@pytest.mark.parametrize("text", ["1e-3", "5E2", "-2e+1", "1.e3", "[1, 2e1]", "e3", "1e", "0x1e3"])
def test_numbers_in_yaml_are_those_of_json(text):
    try:
        expected = json.loads(text.replace(".e", ".0e"))
    except ValueError:
        expected = yaml.safe_load(text)
    assert parse_yaml(text) == expected


def test_yaml_nested_without_end_is_refused_at_once(tmp_path):
    Path(tmp_path, "x.yaml").write_text("a: " + "[" * 40_000)
    start = time.perf_counter()
    with pytest.raises(ParameterError, match="nested more than 30 deep"):
        read_sweep(tmp_path / "x.yaml")
    assert time.perf_counter() - start < 2


def test_threads_of_one_process_draw_as_they_would_alone():
    def draws(seed):
        with seeded(seed):
            parts = []
            for _ in range(20):
                parts.append(torch.rand(50))
                time.sleep(0.001)
            return torch.cat(parts)

    alone = [draws(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        both = list(pool.map(draws, range(3)))
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


def test_a_tiff_that_vanishes_is_an_error_and_one_with_broken_tags_is_not(tmp_path):
    with pytest.raises(RawFileError, match="can't be read"):
        tiff_facts(tmp_path / "gone.dng")
    Path(tmp_path, "broken.dng").write_bytes(b"II*\0\xff\xff\xff\x7f" + bytes(40))
    assert tiff_facts(tmp_path / "broken.dng") is None
