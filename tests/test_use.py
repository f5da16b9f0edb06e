"""A saved model in use: r2l.load, r2l predict, evaluate and tolerances."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import r2l
from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.cli.lab import compare
from r2l.datasets import RawFolder, SyntheticDrone, SyntheticMicroscopy
from r2l.drift.forensics import ToleranceReport, bounded_attack, tolerance_report
from r2l.isp import StaticISP, load_isp, save_isp
from r2l.isp.saving import SavedModuleError
from r2l.options import Options
from r2l.rawfile import RawFrame, read_raw, write_dng
from r2l.training import experiment as experiment_module
from r2l.training import export
from r2l.training.checkpoints import Keeper
from r2l.training.experiment import _FoldTrainer
from r2l.training.loading import FrameError, SavedModel
from r2l.training.predict import Trained, predict, predict_matrix
from r2l.training.saving import About, load_model, load_norm, save_model
from r2l.training.tracking import Records, track
from tests.conftest import invoke

pytestmark = pytest.mark.slow  # it trains

CLASSIFIER = {"maker": "make_classifier", "arguments": {"name": "SmallResNet", "n_classes": 3}}
TRAIN = ["--classifier_network", "SmallResNet", "--accelerator", "cpu", "--epochs", "1"]
TRAIN += ["--n_splits", "2", "--lr", "1e-3", "--output_norm", "batch", "--save_locally"]


def r2l_command(*arguments, code=0):
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of DNGs of the twin, and a run of two folds on it, in a store of its own."""
    place = tmp_path_factory.mktemp("use")
    twin = SyntheticMicroscopy(18, size=32)
    for number, item in enumerate(twin):
        folder = place / "photos" / twin.classes[item["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        write_dng(folder / f"{number:02d}.dng", item["raw"][0].numpy(), twin.camera)
    kept = ["--folder", place / "runs", "--tracking_uri", f"sqlite:///{place}/mlflow.db"]
    data = ["--dataset", "RawFolder", "--root", place / "photos"]
    r2l_command("train", *data, *TRAIN, *kept)
    return place, next((place / "runs").glob("r2l/run-*-1"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A saved segmenter of the drone's frames, untrained."""
    folder, arguments = tmp_path_factory.mktemp("segmenter"), {"architecture": "unet", "encoder": "resnet18"}
    with r2l.seeded(0):
        model = r2l.make_segmenter(**arguments)
    about = About("segmentation", ("background", "car"), DRONE, (32, 32)).to_dict()
    save_isp(StaticISP(DRONE), folder / "processor")
    save_model({"maker": "make_segmenter", "arguments": arguments} | about, model, folder / "model")
    return folder


@pytest.fixture
def model(trained):
    """The model of the run's first fold."""
    return r2l.load(trained[1] / "fold_0")


# --- load -----------------------------------------------------------------------------------------


def test_a_fold_is_loaded_as_one_module_from_raw_to_logits(trained, model):
    place, run = trained
    data = RawFolder(place / "photos")
    assert (model.classes, model.camera, model.task.name) == (data.classes, data.camera, "classification")
    assert model.about.shape == (32, 32)
    assert not any(part.training for part in model.modules())
    fold, raw = run / "fold_0", torch.stack([data[i]["raw"] for i in range(4)])
    parts = load_isp(fold / "processor"), load_norm(fold), load_model(fold / "model")
    with torch.inference_mode():
        assert torch.equal(model(raw), torch.nn.Sequential(*parts).eval()(raw))


def test_a_model_is_found_by_folder_run_and_name(trained, model):
    place, run = trained
    store = f"sqlite:///{place}/mlflow.db"
    records = Records(store)
    fold = records.children(records.find("latest"))["fold 0"]
    wanted = load_file(run / "fold_0" / "model" / "weights.safetensors")
    for uri in (run / "fold_0" / "model", f"runs:/{fold}", f"runs:/{fold}/model"):
        loaded = r2l.load(uri, store)
        assert isinstance(loaded.norm, torch.nn.BatchNorm2d)
        assert all(torch.equal(v, wanted[k]) for k, v in loaded.model.state_dict().items())
    described = json.loads((run / "fold_0" / "model" / "model.json").read_text())
    with track("releases", store=store) as release:
        release.model(model.processor, "processor")
        release.model(model.model, description=described, register="cells", alias="best")
    for uri in ("models:/cells/1", "models:/cells@best"):
        assert r2l.load(uri, store).classes == model.classes
    with pytest.raises(SavedModuleError, match=r"several folds.\nGive one, such as .*fold_0"):
        r2l.load(run)
    with pytest.raises(SavedModuleError, match=rf"several folds.\nGive one, such as runs:/{fold}"):
        r2l.load(f"runs:/{records.call('get_run', fold).data.tags['mlflow.parentRunId']}", store)
    with pytest.raises(SavedModuleError, match=r"no model and no processor in it.\nGive runs:/RUN_ID"):
        r2l.load(place)


def test_models_saved_before_have_numbers_for_names(tmp_path):
    save_isp(StaticISP(DRONE), tmp_path / "processor")
    save_model(CLASSIFIER, r2l.make_classifier("SmallResNet", 3), tmp_path / "model")
    model = r2l.load(tmp_path)
    assert (model.classes, model.camera) == (("0", "1", "2"), DRONE)
    frame = RawFrame(np.full((32, 32), 0.4, np.float32), DRONE)
    answer = model.predict(frame)
    assert list(answer) == ["0", "1", "2"]
    assert sum(answer.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ["a", "b"]},
        {"classes": [1, 2, 3]},
        {"classes": 3},
        {"task": "poetry"},
        {"camera": {"name": "x"}},
        {"shape": ["wide", 3]},
        {"colour": "red"},
    ],
)
def test_what_a_model_was_trained_for_is_checked(tmp_path, wrong):
    model = r2l.make_classifier("SmallResNet", 3)
    with pytest.raises((ValueError, TypeError)):
        save_model(CLASSIFIER | wrong, model, tmp_path / "model")
    save_model(CLASSIFIER, model, tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text(json.dumps(CLASSIFIER | wrong))
    with pytest.raises(SavedModuleError, match=r"model\.json: no description"):
        load_model(tmp_path / "model")


# --- frames of other cameras ----------------------------------------------------------------------


def test_containers_and_layouts_are_lined_up_and_other_cameras_refused(trained, model):
    frame = RawFolder(trained[0] / "photos").frame(0)
    plain = model.predict(frame)
    # The same 12-bit exposure at the bottom of a 16-bit container, above a black level of 256.
    black, white = 256 / 65535, 4095 / 65535
    twelve = replace(frame.camera, black_level=(black,) * 4, white_level=white)
    linear = (frame.mosaic - frame.camera.black_level[0]) / (1 - frame.camera.black_level[0])
    small = RawFrame((black + (white - black) * linear).astype(np.float32), twelve)
    assert model.predict(small) == pytest.approx(plain, abs=1e-5)
    assert model(small.tensor()).sub(model(frame.tensor())).abs().max() > 1e-3, "as it lies"
    shifted = replace(frame.camera, cfa=CFA.GRBG)
    turned = model.predict(RawFrame(frame.mosaic[:, 1:-1], shifted))
    assert turned == model.predict(RawFrame(frame.mosaic[:, 2:-2], frame.camera))
    renamed = replace(frame.camera, name="the same under another name")
    assert model.predict(RawFrame(frame.mosaic, renamed)) == plain
    other = RawFrame(frame.mosaic, DRONE)
    with pytest.raises(FrameError, match=r"Hasselblad.*trained for the colours of 'PCO(.|\n)*any_c"):
        model.predict(other)
    assert set(model.predict(other, any_camera=True)) == set(plain)
    with pytest.warns(UserWarning, match="frames of 16 x 16, and the model was trained on 32 x 32"):
        cropped = model.predict(frame, crop=16)
    assert cropped == model.predict(RawFrame(frame.mosaic[8:24, 8:24], frame.camera))
    with pytest.raises(FrameError, match="Crop less"):
        model.predict(frame, crop=64)


# --- r2l predict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [0, 1])
def test_the_answers_are_those_of_the_record_to_the_bit(trained, tmp_path, fold):
    place, run = trained
    kept = pd.read_csv(run / f"fold_{fold}" / "predictions.csv")
    files = [place / "photos" / name for name in kept["name"]]
    r2l_command("predict", run / f"fold_{fold}", *files, "-o", tmp_path / "answers.csv")
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert answers["file"].tolist() == list(map(str, files))
    classes = RawFolder(place / "photos").classes
    told = [answers[f"p_{classes[label]}"][row] for row, label in enumerate(kept["label"])]
    np.testing.assert_array_equal(told, kept["p_true"])
    assert answers["prediction"].tolist() == [classes[n] for n in kept["prediction"]]


def test_a_broken_file_is_told_and_skipped_and_nothing_is_replaced_unasked(trained, tmp_path):
    place, run = trained
    photos, answers = tmp_path / "photos", tmp_path / "new" / "answers.csv"
    photos.mkdir()
    for path in sorted((place / "photos").rglob("*.dng"))[:3]:
        shutil.copy(path, photos)
    (photos / "broken.dng").write_bytes(b"II*\0 and no more")
    ask = partial(r2l_command, "predict", run / "fold_0", photos, "-o", answers)
    output = ask(code=2)
    assert "broken.dng" in output
    assert "3 of 4 files answered" in output
    table = pd.read_csv(answers)
    assert sorted(table["file"]) == sorted(str(p) for p in photos.glob("[0-9]*.dng"))
    np.testing.assert_allclose(table.filter(regex="^p_").sum(axis=1), 1, rtol=1e-5)
    (photos / "broken.dng").unlink()
    assert "exists: --force" in ask(code=2)
    ask("--force")
    assert not list(answers.parent.glob(".*")), "no halves are left"
    write_dng(photos / "z.dng", np.full((32, 32), 0.4, np.float32), DRONE)
    one = partial(r2l_command, "predict", run / "fold_0", photos / "z.dng", code=2)
    assert "0 of 1 files answered: nothing is written" in one("-o", photos / "a.csv")
    assert "nothing can be written into" in one("-o", photos / "z.dng" / "a.csv")
    assert not (photos / "a.csv").exists()
    assert "z.dng: a frame of the camera 'Hasselblad" in ask("-f", code=2)
    ask("-f", "--any_camera")
    assert len(pd.read_csv(answers)) == 4


def test_masks_are_written_as_pictures(segmenter, tmp_path):
    twin, model, masks = SyntheticDrone(3, size=32), r2l.load(segmenter), tmp_path / "masks"
    for number, item in enumerate(twin):
        write_dng(tmp_path / f"{number}.dng", item["raw"][0].numpy(), DRONE)
    r2l_command("predict", segmenter, tmp_path, "-o", masks)
    for number in range(3):
        mask = np.array(Image.open(masks / f"{number}.png"))
        with torch.inference_mode():
            logits = model(read_raw(tmp_path / f"{number}.dng").tensor())
        np.testing.assert_array_equal(mask, 255 * (logits[0, 0] > 0).numpy())
    assert 0 < mask.mean() < 255
    assert "exists" in r2l_command("predict", segmenter, tmp_path / "0.dng", "-o", masks, code=2)
    wrong = r2l_command("predict", segmenter, tmp_path / "0.dng", "-o", tmp_path / "a.csv", code=2)
    assert "give -o a folder" in wrong
    (tmp_path / "below").mkdir()
    write_dng(tmp_path / "below" / "0.dng", twin[0]["raw"][0].numpy(), DRONE)
    twice = r2l_command("predict", segmenter, tmp_path, "-o", tmp_path / "m", code=2)
    assert "would both be written to" in twice


def test_frames_without_a_header_are_answered_as_their_dngs(trained, tmp_path):
    place, run = trained
    for path in sorted((place / "photos").rglob("*.dng")):
        steps = np.round(read_raw(path).mosaic * 65535).astype("<u2")
        target = tmp_path / "raws" / path.parent.name / f"{path.stem}.raw"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(steps.tobytes())
    described = ("--camera", "microscope", "--width", 32, "--height", 32, "--bits", 16)
    fold, answers, tables = run / "fold_0", tmp_path / "a.csv", []
    for source, how in ((tmp_path / "raws", described), (place / "photos", ())):
        r2l_command("predict", fold, source, "-o", answers, "-f", "--accelerator", "cpu", *how)
        tables.append(pd.read_csv(answers).filter(regex="^p_").to_numpy())
    np.testing.assert_allclose(*tables, atol=2e-3)
    told = r2l_command("evaluate", fold, tmp_path / "raws", *described)
    assert "18 images of RawFolder" in told
    assert "also needs --bits" in r2l_command("evaluate", fold, tmp_path / "raws", *described[:-2], code=2)
    wrong = r2l_command("predict", fold, place, "-o", answers, "-f", "--accelerator", "x", code=2)
    assert "--accelerator x" in wrong


def test_masks_of_several_classes_are_learned_and_written_as_numbers(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "masks").mkdir()
    (tmp_path / "photos").mkdir()
    for number in range(12):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, 12:22], mask[:, 22:] = 1, 2
        mask = np.rot90(mask, number % 4).copy()
        light = np.array([0.1, 0.4, 0.8])[mask] + rng.normal(0, 0.02, (32, 32))
        write_dng(tmp_path / "photos" / f"{number}.dng", np.clip(0.07 + 0.9 * light, 0, 1), DRONE)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    data = ("--masks", tmp_path / "masks", "--classes", "background,road,car")
    folder = ("--dataset", "RawFolder", "--root", tmp_path / "photos")
    network = ("--smp_network", "unet", "--smp_encoder", "resnet18", "--processing_mode", "static")
    kept = ("--folder", tmp_path / "runs", "--tracking_uri", f"sqlite:///{tmp_path}/mlflow.db")
    steps = ("--epochs", 4, "--batch_size", 3, "--lr", 3e-3, "--save_locally")
    output = r2l_command("train", *folder, *data, *network, *kept, *steps)
    assert "segmentation, 3 classes" in output
    assert "no effect" not in output
    (run,) = (tmp_path / "runs").glob("r2l/run-*")
    score = pd.read_csv(run / "scores.csv")["iou"].item()
    records = Records(kept[-1])
    fold = records.children(records.find("latest"))["fold 0"]
    metered = records.call("get_run", fold).data.metrics["val_iou"]
    assert metered == pytest.approx(score, abs=1e-5), "torchmetrics' and ours"
    model = r2l.load(run / "fold_0")
    assert model.classes == ("background", "road", "car")
    told = r2l_command("evaluate", run / "fold_0", tmp_path / "photos", *data)
    assert "road" in told
    r2l_command("predict", run / "fold_0", tmp_path / "photos", "-o", tmp_path / "answers")
    right = []
    for number in range(12):
        with Image.open(tmp_path / "answers" / f"{number}.png") as image:
            answer = np.asarray(image)
        with torch.inference_mode():
            logits = model(read_raw(tmp_path / "photos" / f"{number}.dng").tensor())
        np.testing.assert_array_equal(answer, logits[0].argmax(0))
        right.append(answer == np.asarray(Image.open(tmp_path / "masks" / f"{number}.png")))
    assert np.mean(right) > 0.6, "a third by chance"
    frames = r2l.Frames.of(
        RawFolder(tmp_path / "photos", masks=tmp_path / "masks", classes=("car", "road", "background")),
        progress=False,
    )
    taken = model.take(frames)
    assert torch.equal(taken.truth, 2 - frames.truth), "by their names"


# --- r2l evaluate, r2l tolerances -----------------------------------------------------------------


def test_evaluating_gives_the_scores_and_answers_of_the_record(trained, tmp_path, monkeypatch):
    place, run = trained
    monkeypatch.setattr(experiment_module, "_FoldTrainer", lambda *a: pytest.fail("trains"))
    told = tmp_path / "answers.csv"
    ask = partial(r2l_command, "evaluate", run / "fold_0", place / "photos")
    output = ask("--n_splits", 2, "--fold", 0, "-o", told)
    kept, again = pd.read_csv(run / "fold_0" / "predictions.csv"), pd.read_csv(told)
    shared = [name for name in again if name in kept and name != "pipeline"]
    assert {"image", "group", "label", "p_true", "loss", "name"} <= set(shared)
    pd.testing.assert_frame_equal(again[shared], kept[shared], check_exact=True)
    scores = pd.read_csv(run / "scores.csv").query("fold == 0")
    assert f"{scores['accuracy'].item():.4g}" in output
    assert "trained without --own_colours" in ask("--own_colours", code=2)
    assert "18 images of RawFolder" in ask()


def test_classes_are_known_by_name_and_a_foreign_one_is_refused(trained, model):
    some = RawFolder(trained[0] / "photos", classes=model.classes[::-1])
    frames = r2l.Frames.of(some, progress=False)
    names = [model.classes[::-1][label] for label in frames.truth]
    assert [model.classes[label] for label in model.take(frames).truth] == names
    with pytest.raises(FrameError, match=r"the classes cats: the model knows only EOS"):
        model.take(replace(frames, classes=("cats", *frames.classes[1:])))
    with pytest.raises(FrameError, match="labels of segmentation"):
        model.take(r2l.Frames.of(SyntheticDrone(2, size=32, task="segmentation"), progress=False))


def test_masks_are_lined_up_with_their_frames(segmenter):
    model = r2l.load(segmenter)
    twin = r2l.Frames.of(SyntheticDrone(3, size=32, task="segmentation"), progress=False)
    turned = replace(DRONE, cfa=CFA.BGGR, black_level=DRONE.black_level[::-1])
    taken = model.take(replace(twin, camera=turned))
    assert taken.camera == DRONE
    assert torch.equal(taken.raw, twin.raw[..., 1:-1, 1:-1])
    assert torch.equal(taken.truth, twin.truth[..., 1:-1, 1:-1])
    assert model.take(twin) is twin


def test_tolerances_are_of_the_models_own_processor(trained, model, tmp_path):
    place, run = trained
    path = tmp_path / "tolerances.json"
    data = (place / "photos", "--n_splits", 2, "--fold", 0, "-o", path, "--points", 3)
    ask = partial(r2l_command, "tolerances", run / "fold_0", *data)
    output, report = ask(), ToleranceReport.load(path)
    assert report.pipeline == "parametrized"
    assert report.camera.black_level == pytest.approx(model.processor.black_level.tolist())
    assert report.images == 9
    assert report.score == pd.read_csv(run / "fold_0" / "predictions.csv")["correct"].mean()
    assert "red gain" in output
    assert "few groups, worth" in output
    photo = next((place / "photos").rglob("*.dng"))
    assert "inside" in r2l_command("check", "--tolerances", path, "--camera", photo)
    assert "exists" in ask(code=2)
    ask("-f", "--pipeline", "ma,u,me")
    assert ToleranceReport.load(path).pipeline.startswith("malvar2004, unsharp")


def test_reports_and_attacks_take_the_models_own_processor_unless_told_otherwise():
    frames = r2l.Frames.of(SyntheticMicroscopy(8, size=16, crops_per_zone=2), progress=False)
    network, about = (r2l.make_classifier("SmallResNet", 9), About("classification", tuple("abcdefghi")))
    static = SavedModel(network, StaticISP.from_code("ma,u,me", MICROSCOPE), about)
    short = {"settings": ["gamma"], "points": 3, "refine": 0, "progress": False}
    report = tolerance_report(static, frames, **short)
    assert report.pipeline == "malvar2004, unsharp_masking, median_denoising"
    told = tolerance_report(static, frames, "bi,s,ga", **short)
    assert told.pipeline.startswith("bilinear")
    assert tolerance_report(network.eval(), frames, **short).pipeline == told.pipeline
    isp = r2l.ParametrizedISP(MICROSCOPE).set_(gamma=1.7)
    attack = bounded_attack(SavedModel(network, isp, about), frames, steps=1, restarts=1)
    assert attack.pipeline().gamma.item() == pytest.approx(1.7)
    with pytest.raises(ValueError, match="give isp=ParametrizedISP"):
        bounded_attack(static, frames, steps=1)


# --- r2l lab runs, r2l lab compare ----------------------------------------------------------------


def test_runs_are_listed_and_compared_with_data_and_scores(trained, tmp_path):
    place, run = trained
    kept = ["--folder", tmp_path, "--tracking_uri", f"sqlite:///{place}/mlflow.db"]
    data = ["--dataset", "RawFolder", "--root", place / "photos", "--run_name", "other"]
    said = r2l_command("train", *data, *TRAIN, *kept, "--seed", 5, "--test_pipelines", "bi,s,ga me,u,me")
    store = ["--store", place / "mlflow.db"]
    records = Records(store[1])
    listed = r2l_command("lab", "runs", *store)
    folder = next(tmp_path.glob("r2l/other-*-1"))
    mean = pd.read_csv(folder / "scores.csv")["accuracy"].mean()
    line = next(line for line in listed.splitlines() if " other " in line)
    assert "RawFolder" in line
    assert f"{mean:.4f}".rstrip("0") in line
    # The table under the test pipelines, and its metrics.
    tested = pd.concat([pd.read_csv(folder / f"fold_{n}" / "tested.csv") for n in (0, 1)])
    accuracy = tested.groupby("test")["correct"].mean()
    metrics = records.call("get_run", records.find("other")).data.metrics
    assert "under the test pipelines" in said
    assert metrics["test.me_u_me.accuracy"] == pytest.approx(accuracy["me,u,me"])
    first = records.find("other")
    second = next(r.info.run_id for r in records.all() if r.data.tags.get("r2l.folder") == str(run))
    told = r2l_command("lab", "compare", first, second, *store)
    folds = ([f / f"fold_{n}" / "predictions.csv" for n in (0, 1)] for f in (folder, run))
    answers = [pd.concat(map(pd.read_csv, two)) for two in folds]
    rights = [table.set_index("name")["correct"].astype(float) for table in answers]
    difference = (rights[0] - rights[1]).mean()
    assert "accuracy of 18 images in" in told
    assert f"difference: {difference:+.3f} (" in told
    assert f"{first}: {rights[0].mean():.3f} (" in told
    same = r2l_command("lab", "compare", first, first, *store)
    assert "difference: +0.000" in same


@pytest.mark.parametrize(("other", "why"), [("b", "none that both"), ("a", "labelled otherwise")])
def test_runs_without_a_common_image_and_label_are_not_compared(monkeypatch, other, why):
    tables = [pd.DataFrame({"name": [name], "label": [n]}) for n, name in enumerate(("a", other))]
    monkeypatch.setitem(compare.__globals__, "_answers", lambda run, store: tables[int(run)])
    assert why in r2l_command("lab", "compare", "0", "1", code=2)


# --- the best epoch -------------------------------------------------------------------------------


class _Power(Exception):
    pass


@pytest.mark.parametrize("cut", ["", "in training", "after it"])
def test_the_best_epoch_is_kept_beside_the_last(tmp_path, monkeypatch, cut):
    monkeypatch.chdir(tmp_path)
    original, answers = export.epoch_numbers, _FoldTrainer._answers

    def cut_once(moment):
        if cut == moment and not (tmp_path / "cut").exists():
            (tmp_path / "cut").touch()
            raise _Power

    def numbers(trainer):
        if trainer.current_epoch == 2:
            cut_once("in training")
        # Validation as it suits the test: the second epoch is the best.
        return original(trainer) | {"val_loss": [3.0, 1.0, 2.0][trainer.current_epoch]}

    def late(*arguments):
        cut_once("after it")
        return answers(*arguments)

    states = []
    monkeypatch.setattr(export, "epoch_numbers", numbers)
    monkeypatch.setattr(_FoldTrainer, "_answers", late)
    save = Keeper.on_train_epoch_end

    def look(self, trainer, module):
        states.append({k: v.clone() for k, v in module.state_dict().items()})
        save(self, trainer, module)

    monkeypatch.setattr(Keeper, "on_train_epoch_end", look)
    given = {"dataset": "SyntheticMicroscopy", "n_images": 12, "image_size": 32, "lr": 1e-2, "epochs": 3}
    given |= {"classifier_network": "SmallResNet", "accelerator": "cpu", "save_locally": True}
    train = partial(experiment_module.experiment, Options(**given), say=lambda line: None, progress=False)
    if cut:
        with pytest.raises(_Power):
            train()
    outcome = train()
    best, last = r2l.load(outcome.folder / "fold_0" / "best"), r2l.load(outcome.folder / "fold_0")
    assert len(states) == 3
    assert equal_states(best.model, states[1])
    assert equal_states(last.model, states[2])
    assert not equal_states(last.model, states[1])
    (child,) = Records().children(outcome.run_id).values()
    assert equal_states(r2l.load(f"runs:/{child}/best").model, states[1])


def equal_states(model, state):
    own = model.state_dict()
    return all(torch.equal(own[name], state[f"model.{name}"]) for name in own)


def test_a_matrix_has_a_models_own_processor_where_it_is_named(trained, model):
    frames = model.take(r2l.Frames.of(RawFolder(trained[0] / "photos")))
    everything = Trained(model, "own", np.arange(len(frames)))
    pipelines = {"own": model.processor, "ma,u,me": "ma,u,me"}
    table = predict_matrix([everything], frames, pipelines, progress=False)
    alone = predict(model, {"all": frames}, by="frames")
    own = table[table["test"] == "own"]
    np.testing.assert_allclose(own["p_true"], alone["p_true"], atol=1e-5)
    assert not np.allclose(table[table["test"] == "ma,u,me"]["p_true"], alone["p_true"], atol=1e-3)
