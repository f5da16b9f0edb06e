"""What `r2l train` runs, called from Python: options, data, images developed once, folds, resuming."""

import contextlib
import json
import os
import shutil
import signal
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import DatasetError, SyntheticMicroscopy
from r2l.datasets import frames as frames_module
from r2l.isp import ParametrizedISP, StaticISP, load_isp, save_isp
from r2l.options import FIELDS, TASK_OF, Options, resolve_options
from r2l.rawfile import write_dng
from r2l.training import fit, make_classifier
from r2l.training.checkpoints import Keeper
from r2l.training.components import _FEW, make_folds, open_components, open_data
from r2l.training.experiment import _FoldTrainer, _record, experiment
from r2l.training.metrics import summarise_folds
from r2l.training.module import RawToLogits
from r2l.training.run_folder import RunFolder, run_folder
from r2l.training.saving import load_model
from r2l.training.tracking import Records, Run, TrackingError
from tests.conftest import run_apart
from tests.fixtures_data import KEPT, write_drone_photos, write_microscopy

pytestmark = pytest.mark.slow  # it trains

PUBLISHED = """
    tracking_uri processor_uri classifier_uri state_dict_uri experiment_name run_name log_model save_locally
    track_processing track_processing_gradients track_save_tensors track_predictions track_n_images
    track_every_epoch seed dataset n_splits train_size lr epochs batch_size augmentation
    check_val_every_n_epoch processing_mode classifier_network classifier_pretrained smp_encoder
    freeze_processor freeze_classifier sp_debayer sp_sharpening sp_denoising adv_training adv_aux_weight
    adv_aux_loss adv_noise_layer adv_track_differences adv_parameters cache_downloaded_models test_run iso
"""
SMALL = {"dataset": "SyntheticMicroscopy", "n_images": 18, "image_size": 32, "accelerator": "cpu"}
SMALL |= {"classifier_network": "SmallResNet", "epochs": 2, "n_splits": 2, "batch_size": 6, "lr": 1e-3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture
def small(place, tmp_path):
    """Options of a tiny experiment; all of this file's share a store."""

    def make(**changes):
        own = {"tracking_uri": f"sqlite:///{place}/mlflow.db", "folder": str(tmp_path / "runs")}
        return Options(**{**SMALL, **own, **changes})

    return make


def quietly(options):
    lines = []
    return experiment(options, say=lines.append, progress=False), lines


@pytest.fixture
def run(small):
    """Run a tiny experiment, its models kept on disk."""
    return lambda **changes: quietly(small(save_locally=True, **changes))


@pytest.fixture(scope="module")
def static_run(place):
    store = f"sqlite:///{place}/mlflow.db"
    tracked = ("processing", "every_epoch", "predictions", "processing_gradients", "save_tensors")
    given = {"processing_mode": "static", "sp_debayer": "malvar2004", "augmentation": "weak"}
    given |= {"track_n_images": 2, "save_locally": True} | {f"track_{name}": True for name in tracked}
    outcome, lines = quietly(Options(**SMALL, **given, tracking_uri=store, folder=str(place / "runs")))
    return outcome, lines, Records(store)


# --- options --------------------------------------------------------------------------------------


def test_the_options_have_the_published_names_and_their_types_defaults():
    assert set(PUBLISHED.split()) <= set(FIELDS)
    for name, option in FIELDS.items():
        assert option.metadata["help"].strip(), name
        assert option.default is None or type(option.default) in (get_args(option.type) or [option.type])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "Telescope"}, "SyntheticDroneSegmentation, RawFolder"),
        ({"augmentation": "wild"}, "none, weak, strong"),
        ({"processing_mode": "dynamic"}, "parametrized, static, neural_network, none"),
        ({"classifier_network": "ResNet19"}, "ResNet18, ResNet34, ResNet50"),
        ({"smp_network": "wnet"}, "unetplusplus"),
        ({"sp_debayer": "nearest"}, "bilinear, malvar2004, menon2007"),
        ({"sp_sharpening": "none"}, "sharpening_filter, unsharp_masking"),
        ({"sp_denoising": "nlm"}, "gaussian_denoising, median_denoising"),
        ({"adv_aux_loss": "psnr"}, "l2, ssim"),
        ({"adv_parameters": "black_level,hue"}, "unknown adv_parameters 'hue'.*colour_correction"),
        ({"output_norm": "layer"}, "none, batch"),
        ({"splits": "random"}, "groups, published"),
        ({"task": "ranking"}, "classification, regression, segmentation"),
        ({"n_splits": 0}, "--n_splits is 0"),
        ({"train_size": 1.0}, "share between 0 and 1"),
        ({"lr": 0.0}, "--lr is 0.0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"dataset": "RawFolder"}, "needs --root"),
        ({"dataset": "RawFolder", "root": "x", "iso": 0.1}, "--iso is for"),
        ({"dataset": "RawFolder", "root": "x", "task": "segmentation"}, "needs --masks"),
        ({"masks": "x"}, "--masks is for --dataset RawFolder"),
        ({"n_images": 4}, "--n_images is for the data sets called Synthetic"),
        ({"dataset": "SyntheticDrone", "root": "x"}, "have none"),
        ({"dataset": "Drone", "task": "segmentation"}, "contradicts --dataset Drone"),
        ({"freeze_classifier": True}, "needs a trained one"),
        ({"freeze_classifier": True, "freeze_processor": True, "classifier_uri": "x"}, "nothing to train"),
        ({"freeze_classifier": True, "processing_mode": "static", "classifier_uri": "x"}, "nothing to train"),
        ({"classifier_uri": "x", "classifier_pretrained": True}, "two sources"),
        ({"state_dict_uri": "x", "processor_uri": "y"}, "holds processor and classifier"),
        ({"adv_training": True, "output_norm": "batch"}, "needs --output_norm none"),
    ],
)
def test_what_does_not_exist_or_contradicts_is_an_error_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        Options(**changes)


@pytest.mark.parametrize(
    ("given", "followed", "line"),
    [
        (
            {"adv_training": True, "freeze_processor": True, "adv_parameters": "additive_layer"},
            {"freeze_classifier": True, "freeze_processor": False, "adv_noise_layer": True},
            "--adv_noise_layer True",
        ),
        (
            {"adv_training": True, "processing_mode": "static"},
            {"processing_mode": "parametrized"},
            "adversarial",
        ),
        ({"processor_uri": ""}, {"processor_uri": None}, "no processor given"),
        ({"classifier_uri": ""}, {"classifier_uri": None}, "no classifier given"),
        ({"tracking_uri": ""}, {"tracking_uri": None}, "taken as not given"),
        ({"test_run": True, "n_splits": 5}, {"epochs": 1, "n_splits": 2}, "test run"),
        ({"track_save_tensors": True}, {"track_processing": True}, "--track_processing True"),
        ({"adv_parameters": "black_level"}, {}, "--adv_parameters has no effect without"),
        ({"sp_debayer": "menon2007"}, {}, "--sp_debayer has no effect without"),
        ({"n_splits": 5, "train_size": 0.5}, {}, "trains on 4 / 5"),
    ],
)
def test_what_follows_from_an_option_is_done_and_told(given, followed, line):
    options = Options(**given)
    settled, lines = resolve_options(options)
    assert any(line in told for told in lines), lines
    changed = {k: v for k, v in asdict(settled).items() if v != asdict(options)[k]}
    assert changed.items() >= followed.items()


def test_only_rate_and_mode_follow_from_the_defaults_and_resolving_twice_changes_nothing():
    told = ["no learning rate given, and a task model from scratch: --lr 0.001"]
    assert resolve_options(Options()) == (Options(lr=0.001, processing_mode="parametrized"), told)
    assert resolve_options(Options(classifier_pretrained=True))[0].lr == 1e-5
    assert resolve_options(Options(lr=0.1, processing_mode="none"))[1] == []
    settled, _ = resolve_options(Options(adv_training=True, test_run=True, processor_uri=""))
    assert resolve_options(settled) == (settled, [])


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_microscopy(root, intensities=(1.0, 0.05))
    write_drone_photos(root)
    return root


@pytest.mark.parametrize("name", [n for n in TASK_OF if n != "RawFolder"])
def test_each_data_set_by_its_name(name, real):
    own = {"n_images": 8, "image_size": 16} if name.startswith("Synthetic") else {"root": str(real)}
    data = open_data(Options(dataset=name, **own))
    item = data[0]
    assert data.task == TASK_OF[name]
    assert ("mask" if "Segmentation" in name else "label") in item
    assert item["raw"].shape[0] == 1
    assert data.camera == (DRONE if "Drone" in name else MICROSCOPE)
    assert len(data) == len(data.labels) == len(data.names) == len(data.groups)
    if name == "Microscopy":
        assert len(data) == KEPT
        assert data.names[0].startswith("Ma190c_")
    if name in ("Drone", "SyntheticDrone"):
        assert data.classes == ("no car", "car")


def test_iso_is_the_intensity(real):
    light, dim = (open_data(Options(root=str(real), iso=iso))[3]["raw"].mean().item() for iso in (1.0, 0.05))
    assert dim == pytest.approx(0.05 * light, rel=1e-3)
    with pytest.raises(ValueError, match=r"choose from 0.01, 0.05"):
        open_data(Options(root=str(real), iso=0.02))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        write_dng(root / f"{i:02d}.dng", 0.1 + 0.05 * i + 0.02 * rng.random((24, 24)), DRONE)
        rows.append({"file": f"{i:02d}.dng", "label": 1.5 * i, "group": i // 2})
    pd.DataFrame(rows).to_csv(root / "numbers.csv", index=False)
    pd.DataFrame(rows).assign(label=["low"] * 6 + ["high"] * 6).to_csv(root / "classes.csv", index=False)
    return root


def test_labels_that_are_numbers_make_a_regression_and_words_make_classes(folder):
    options = Options(dataset="RawFolder", root=str(folder), labels=str(folder / "numbers.csv"))
    data = open_data(options)
    assert data.task == "regression"
    targets = {name: data[i]["target"].item() for i, name in enumerate(data.names.tolist())}
    assert targets == {f"{i:02d}.dng": 1.5 * i for i in range(12)}
    assert "label" not in data[0]
    assert len(open_data(replace(options, task="classification")).classes) == 12
    words = replace(options, labels=str(folder / "classes.csv"))
    assert open_data(words).classes == ("high", "low")
    with pytest.raises(DatasetError, match="'high' is not a number"):
        open_data(replace(words, task="regression"))


def test_a_test_run_takes_few_images_of_many_groups(real):
    options = Options(dataset="SyntheticMicroscopy", n_images=200, image_size=16)
    data, whole = open_data(replace(options, test_run=True)), open_data(options)
    assert len(data) == len(data.labels) == len(set(data.groups)) == _FEW
    index = int(data.names[3])
    assert torch.equal(data[3]["raw"], whole[index]["raw"])
    assert data.labels[3] == whole.labels[index]
    assert data.fingerprint() != whole.fingerprint()


def test_folds_keep_groups_whole_a_single_one_has_the_share_asked_for_and_published_ones_overlap():
    options = Options(dataset="SyntheticMicroscopy", n_images=100, image_size=16)
    data = open_data(options)
    for n_splits, share in ((3, 0.8), (1, 0.2), (1, 0.5), (1, 0.75), (1, 0.8), (1, 0.9)):
        folds = make_folds(data, replace(options, n_splits=n_splits, train_size=share))
        for fold in folds:
            assert not set(data.groups[fold.train]) & set(data.groups[fold.test])
            assert sorted([*fold.train, *fold.test]) == list(range(100))
            assert n_splits > 1 or len(fold.train) / 100 == pytest.approx(share, abs=0.06)
        assert n_splits == 1 or sorted(np.concatenate([f.test for f in folds])) == list(range(100))
    drawn = replace(options, dataset="SyntheticDroneSegmentation", n_images=20)
    drawn = replace(drawn, n_splits=4, splits="published")
    folds = make_folds(open_data(drawn), drawn)
    assert [len(f.train) for f in folds] == [16] * 4
    assert len(np.unique(np.concatenate([f.test for f in folds]))) < 16


# --- the experiment -------------------------------------------------------------------------------


def test_each_image_is_answered_once_by_a_fold_that_was_not_trained_on_it(static_run):
    outcome, lines, _ = static_run
    table = outcome.predictions
    assert sorted(table["image"]) == list(range(18))
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    assert (SyntheticMicroscopy(18, size=32).labels[table["image"]] == table["label"]).all()
    right = table["correct"].groupby(table["fold"]).mean()
    np.testing.assert_allclose(outcome.scores["accuracy"], right)
    said = summarise_folds(outcome.scores).set_index("score").loc["accuracy"]
    assert said["mean"] == pytest.approx(right.mean())
    assert said["spread"] == pytest.approx(right.std(ddof=1))
    assert any("accuracy" in line and "spread" in line for line in lines)
    assert not list(outcome.folder.rglob("*.ckpt")), "checkpoints go when a fold is finished"


def test_the_record_holds_folds_curves_splits_stages_and_models(static_run):
    outcome, _, records = static_run
    folds = records.children(outcome.run_id)
    assert list(folds) == ["fold 0", "fold 1"]
    run = records.call("get_run", outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["sp_debayer"] == "malvar2004"
    kept = {"predictions.csv", "scores.csv", "summary.csv", "camera.json"}
    assert kept <= set(records.files(outcome.run_id))
    assert records.history(folds["fold 1"])["train_loss"].notna().sum() == SMALL["epochs"]
    files = set(records.files(folds["fold 1"]))
    for epoch in ("epoch_000", "epoch_001"):
        pictures = {f"stages/demosaic/{epoch}.png", f"gradients/demosaic/{epoch}.png"}
        assert pictures | {f"tensors/{epoch}.npz", f"predictions/{epoch}.csv"} <= files
    assert {"split.json", "predictions.csv", "model/model.json", "processor/isp.json"} <= files
    split = json.loads(records.local(folds["fold 1"], "split.json").read_text())
    assert sorted(outcome.predictions.query("fold == 1")["image"]) == sorted(split["val"])


def test_static_images_are_developed_once_for_all_folds_and_epochs(small, monkeypatch):
    seen, original = [], frames_module.develop_all
    monkeypatch.setattr(frames_module, "develop_all", lambda x, *a: seen.append(len(x)) or original(x, *a))
    monkeypatch.setattr(StaticISP, "forward", lambda self, raw: pytest.fail("developed again"))
    quietly(small(processing_mode="static", log_model=False))
    assert sum(seen) == SMALL["n_images"]


def test_developing_before_or_while_training_makes_no_difference(small, monkeypatch):
    options = small(freeze_processor=True, augmentation="weak", log_model=False)
    before, _ = quietly(options)
    monkeypatch.setattr(_FoldTrainer, "fixed", False)
    during, _ = quietly(options)
    np.testing.assert_allclose(before.predictions["loss"], during.predictions["loss"], rtol=2e-3)


@pytest.mark.parametrize("mode", ["parametrized", "neural_network", "none"])
def test_each_mode_trains_what_it_has(run, mode):
    how = {"smp_encoder": "resnet18", "output_norm": "batch", "n_splits": 1, "epochs": 1}
    outcome, _ = run(processing_mode=mode, log_model=False, **how)
    assert np.isfinite(outcome.predictions["loss"]).all()
    processor = load_isp(outcome.folder / "fold_0" / "processor")
    assert "running_mean" in load_file(outcome.folder / "fold_0" / "norm.safetensors")
    if mode == "parametrized":
        assert not torch.equal(processor.gamma, ParametrizedISP(MICROSCOPE).gamma)
    kinds = {"none": "HalfSizeRGB", "neural_network": "NeuralISP", "parametrized": "ParametrizedISP"}
    assert kinds[mode] == type(processor).__name__


def test_segmentation_and_regression(run, folder):
    network = {"smp_network": "unet", "smp_encoder": "resnet18", "processing_mode": "none"}
    outcome, _ = run(dataset="SyntheticDroneSegmentation", **network, n_splits=1, epochs=1)
    table = outcome.predictions
    assert outcome.scores["iou"].item() == table["intersection"].sum() / table["union"].sum()
    load_model(outcome.folder / "fold_0" / "model")
    given = {"dataset": "RawFolder", "root": str(folder), "labels": str(folder / "numbers.csv")}
    outcome, _ = run(**given, n_images=None, image_size=None, track_predictions=True, epochs=1)
    errors = outcome.predictions["target"] - outcome.predictions["prediction"]
    assert outcome.predictions["target"].sum() == 1.5 * 66
    # The model begins at the mean of the training numbers, not at 0.
    assert errors.abs().mean() < 8
    both = outcome.scores[["mae", "images"]]
    assert (both["mae"] * both["images"]).sum() / 12 == pytest.approx(errors.abs().mean(), rel=1e-5)


def test_a_processor_and_a_classifier_of_an_earlier_run(run, static_run):
    outcome, _, records = static_run
    fold = f"runs:/{records.children(outcome.run_id)['fold 0']}"
    both = {"processor_uri": f"{fold}/processor", "classifier_uri": f"{fold}/model"}
    later, lines = run(**both, n_splits=1, epochs=1)
    assert any("holds a StaticISP: --processing_mode static" in line for line in lines)
    assert load_isp(later.folder / "fold_0" / "processor").demosaic == "malvar2004"


def test_a_frozen_classifier_stays_and_the_processor_learns(run, static_run):
    model = static_run[0].folder / "fold_0" / "model"
    later, _ = run(classifier_uri=str(model), freeze_classifier=True, n_splits=1, epochs=1, log_model=False)
    before, after = (load_file(p / "weights.safetensors") for p in (model, later.folder / "fold_0" / "model"))
    assert all(torch.equal(before[k], after[k]) for k in before)
    processor = load_isp(later.folder / "fold_0" / "processor")
    assert not torch.equal(processor.black_level, ParametrizedISP(MICROSCOPE).black_level)


@pytest.mark.parametrize("parameters", ["gamma_correct,black_level", "additive_layer"])
def test_adversarial_search_changes_what_it_may_and_nothing_else(run, small, parameters):
    how = {"adv_training": True, "adv_aux_loss": "l2", "adv_track_differences": True}
    outcome, lines = run(**how, adv_parameters=parameters, n_splits=1, epochs=1)
    assert any("--freeze_classifier True" in line for line in lines)
    assert list(outcome.scores["processing"]) == ["original", "adversarial"]
    records = Records(small().tracking_uri)
    (record,) = records.children(outcome.run_id).values()
    assert "differences/epoch_000.png" in records.files(record)
    processor = load_isp(outcome.folder / "fold_0" / "processor")
    fresh = ParametrizedISP(MICROSCOPE, processor.additive_shape).numbers()
    changed = {name for name, value in processor.numbers().items() if not torch.equal(value, fresh[name])}
    wanted = {"gamma_correct,black_level": {"gamma", "black_level"}, "additive_layer": {"additive"}}
    assert changed == wanted[parameters]


def test_a_state_dict_of_both(small, static_run, tmp_path):
    data, folder = open_data(small()), static_run[0].folder / "fold_1"
    components = open_components(small(state_dict_uri=str(folder)), data, print)
    assert components.mode == "static"
    weights = {f"model.{k}": v for k, v in load_model(folder / "model").state_dict().items()}
    isp = ParametrizedISP(MICROSCOPE).set_(gamma=1.7)
    weights |= {f"processor.{k}": v for k, v in isp.state_dict().items()}
    path = tmp_path / "both.safetensors"
    save_file(weights, path)
    components = open_components(small(state_dict_uri=str(path)), data, print)
    assert components.processor.gamma.item() == pytest.approx(1.7)
    assert torch.equal(components.model.state_dict()["network.0.weight"], weights["model.network.0.weight"])
    with pytest.raises(ValueError, match="no weights for these models"):
        open_components(small(state_dict_uri=str(path), classifier_network="ResNet18"), data, print)


def test_a_batch_normalisation_comes_back_with_the_models(small, static_run, tmp_path):
    folder = shutil.copytree(static_run[0].folder / "fold_1", tmp_path / "saved")
    given, data = small(state_dict_uri=str(folder), output_norm="batch"), open_data(small())
    (folder / "norm.safetensors").write_bytes(b"0")
    with pytest.raises(ValueError, match="no weights of a batch normalisation"):
        open_components(given, data, print)
    norm = torch.nn.BatchNorm2d(3)
    norm.running_mean += torch.tensor([0.1, 0.2, 0.3])
    save_file(norm.state_dict(), folder / "norm.safetensors")
    with pytest.raises(ValueError, match="trained with --output_norm batch"):
        open_components(small(state_dict_uri=str(folder)), data, print)
    alone = {"processor_uri": str(folder / "processor"), "classifier_uri": str(folder / "model")}
    with pytest.raises(ValueError, match="trained with --output_norm batch"):
        open_components(small(**alone), data, print)
    said = []
    found = open_components(small(**alone, output_norm="batch"), data, said.append).norm
    assert torch.equal(found.running_mean, norm.running_mean)
    assert any("it has not seen" in line for line in said)
    components = open_components(given, data, print)
    whole = RawToLogits(components.model, components.processor, output_norm=norm)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    file = small(state_dict_uri=str(tmp_path / "whole.safetensors"), output_norm="batch")
    for options in (given, replace(file, processing_mode="static")):
        assert torch.equal(open_components(options, data, print).norm.running_mean, norm.running_mean)


def test_training_goes_on_with_the_batch_normalisation_it_is_given():
    data = SyntheticMicroscopy(6, size=16)
    norm = torch.nn.BatchNorm2d(3, momentum=0.0)  # keeps its running statistics
    norm.running_mean += 0.25
    settings = {"epochs": 4, "progress": False, "accelerator": "cpu", "output_norm": norm}
    trained = fit(make_classifier("SmallResNet", 9), data, processor=StaticISP(MICROSCOPE), **settings)
    assert torch.equal(trained.norm.running_mean, norm.running_mean)
    assert trained.norm is not norm
    assert not torch.equal(trained.norm.weight, norm.weight)


def test_what_is_loaded_goes_before_what_is_named_and_is_checked_against_the_data(
    small, static_run, tmp_path
):
    said, nine = [], str(static_run[0].folder / "fold_0" / "model")
    named = small(classifier_uri=nine, classifier_network="ResNet18")
    open_components(named, open_data(small()), said.append)
    assert f"{nine} holds a SmallResNet: --classifier_network is not used" in said
    drone = small(dataset="SyntheticDrone", classifier_uri=nine)
    with pytest.raises(ValueError, match="needs 2 outputs"):
        open_components(drone, open_data(drone), print)
    save_isp(StaticISP(MICROSCOPE), tmp_path / "isp")
    attack = small(adv_training=True, processor_uri=str(tmp_path / "isp"))
    with pytest.raises(ValueError, match="needs a parametrized processor"):
        open_components(attack, open_data(attack), print)
    with pytest.raises(ValueError, match="no such folder or file"):
        open_components(small(processor_uri="nowhere"), open_data(small()), print)


# --- going on -------------------------------------------------------------------------------------


def same_results(a, b):
    pd.testing.assert_frame_equal(a.predictions, b.predictions)
    for fold in ("fold_0", "fold_1"):
        for part in ("model", "processor"):
            one, two = (load_file(o.folder / fold / part / "weights.safetensors") for o in (a, b))
            assert one.keys() == two.keys()
            assert all(torch.equal(one[k], two[k]) for k in one), f"{fold} {part}"


def signalling(sign, at):
    """A step of training that, for the so-manieth time, sends this process a signal first."""
    step, steps = RawToLogits.training_step, count(1)

    def signal_and_step(self, batch):
        if next(steps) == at:
            os.kill(os.getpid(), sign)
        return step(self, batch)

    return signal_and_step


def train_and_be_killed(options, last):
    """In a process of its own: dies at the last of so many steps."""
    RawToLogits.training_step = signalling(signal.SIGKILL, last)
    experiment(options, progress=False)


def test_a_run_killed_in_mid_epoch_goes_on_to_the_same_result(small, tmp_path, monkeypatch):
    options = small(save_locally=True, augmentation="weak", run_name="killed", epochs=3)
    steps = sum(-(-len(f.train) // 6) for f in make_folds(open_data(options), options))
    # In the second epoch of the second fold.
    last = 3 * steps // 2 + steps // 2 + 1
    assert run_apart(train_and_be_killed, options, last) == -signal.SIGKILL
    trained, run = [], _FoldTrainer.run
    monkeypatch.setattr(_FoldTrainer, "run", lambda self, n, *a: trained.append(n) or run(self, n, *a))
    resumed, lines = quietly(options)
    assert trained == [1], "a finished fold is not trained again"
    assert any("going on with the run" in line and "1 of 2 folds" in line for line in lines)
    records = Records(options.tracking_uri)
    folds = records.children(resumed.run_id)
    assert list(folds) == ["fold 0", "fold 1"], "the records go on too"
    assert records.call("get_run", resumed.run_id).info.status == "FINISHED"
    assert list(records.history(folds["fold 1"]).index) == [0, 1, 2]
    whole, _ = quietly(small(save_locally=True, augmentation="weak", run_name="whole", epochs=3))
    same_results(resumed, whole)


def run_until_the_second_note(options):
    """In a process of its own: dies when it has made a record, and would write its id down."""
    keep, notes = RunFolder.keep, count(1)

    def keep_or_die(self, **changes):
        if next(notes) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, **changes)

    RunFolder.keep = keep_or_die
    experiment(options, progress=False)


def test_a_record_that_was_made_but_not_noted_goes_on(small, tmp_path):
    options = small(run_name="noted", tracking_uri=str(tmp_path / "own.db"))
    for number in (1, 2):  # the run's record, that of its first fold
        assert run_apart(run_until_the_second_note, options) == -signal.SIGKILL
        records = list(Records(options.tracking_uri).all())
        assert [r.info.status for r in records] == ["RUNNING"] * number
    quietly(replace(options, num_workers=1))
    records = sorted(Records(options.tracking_uri).all(), key=lambda r: r.info.run_name)
    assert [r.info.run_name for r in records] == ["fold 0", "fold 1", "noted"]
    assert {r.info.status for r in records} == {"FINISHED"}


@pytest.fixture
def resumed(small, monkeypatch):
    """Interrupt a run by what is put in a method's place; return its options and what it goes on to."""

    def resume(kind, method, interrupting, **changes):
        options = small(save_locally=True, **changes)
        with monkeypatch.context() as patch:
            patch.setattr(kind, method, interrupting)
            with pytest.raises(KeyboardInterrupt):
                quietly(options)
        records = Records(options.tracking_uri)
        run = records.find(options.run_name)
        for name in (run, *list(records.children(run).values())[-1:]):
            assert records.call("get_run", name).info.status == "KILLED"
        outcome, lines = quietly(options)
        assert outcome.run_id == run
        assert any("going on" in line for line in lines)
        return outcome, records

    return resume


def test_ctrl_c_marks_the_run_and_keeps_the_checkpoint(small, resumed):
    outcome, _ = resumed(RawToLogits, "training_step", signalling(signal.SIGINT, 4), run_name="interrupted")
    same_results(outcome, quietly(small(run_name="undisturbed", save_locally=True))[0])


def test_other_options_data_code_or_no_resume_begin_anew_and_a_finished_run_is_repeated(small, monkeypatch):
    def opened(options, data="d", finish=False):
        with contextlib.suppress(InterruptedError), run_folder(options, data) as folder:
            if not finish:
                raise InterruptedError
        return folder

    first = opened(small())
    assert not first.resumed
    assert opened(small()).path == first.path
    assert opened(small(num_workers=1)).path == first.path, "which changes nothing in the result"
    for other in (opened(small(lr=2e-3)), opened(small(), "other data"), opened(small(resume=False))):
        assert not other.resumed
        assert other.path != first.path
    with monkeypatch.context() as patch:
        patch.setattr("r2l.training.run_folder.code_version", lambda: "other")
        assert not opened(small()).resumed
    assert opened(small(), finish=True).resumed
    assert not opened(small()).resumed


def test_a_run_folder_that_was_removed_or_copied_stops_no_later_run(small):
    def finished():
        with run_folder(small(), "d") as folder:
            return folder.path

    first, second = finished(), finished()
    shutil.rmtree(first)
    shutil.copytree(second, f"{second}-copy")
    Path(f"{second}.zip").touch()
    assert finished().name == f"{second.name.removesuffix('2')}3"
    with contextlib.suppress(InterruptedError), run_folder(small(), "d") as fourth:
        raise InterruptedError
    assert finished() == fourth.path, "the newest is gone on with"
    fifth = Path(f"{second}".removesuffix("2") + "5")
    fifth.mkdir()
    (fifth / ".run.json.0123abcd.part").touch()
    assert list(finished().iterdir()) == [fifth / "run.json"], "a process was killed before it wrote more"


@pytest.mark.parametrize("lacking", ["camera.json", "split.json", "stages/gamma/epoch_000.png"])
def test_what_a_record_lacks_when_the_process_ends_is_added(resumed, lacking):
    # Pictures are made of the last epoch; the process ends as soon as its checkpoint is whole.
    kind, method = (Keeper, "on_train_epoch_end") if "/" in lacking else (Run, "values")
    write = getattr(kind, method)

    def interrupting(*arguments):
        if arguments[-1] != lacking:
            write(*arguments)
        if kind is Keeper or arguments[-1] == lacking:
            raise KeyboardInterrupt

    how = {"run_name": f"before its {lacking}", "epochs": 1, "track_processing": True}
    outcome, records = resumed(kind, method, interrupting, **how)
    ended, undisturbed = map(records.files, records.children(outcome.run_id).values())
    assert ended == undisturbed
    assert {lacking, "camera.json", "split.json"} <= {*ended, *records.files(outcome.run_id)}


def test_a_store_that_fails_for_a_moment_has_lost_no_record(small, monkeypatch):
    options, data = small(), open_data(small())

    def recorded():
        with run_folder(options, "d") as folder, contextlib.ExitStack() as stack:
            raise InterruptedError(_record(options, data, folder, print, stack).run_id)

    with pytest.raises(InterruptedError) as first:
        recorded()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_run", Mock(side_effect=OSError("disk I/O error")))
        with pytest.raises(TrackingError, match="disk I/O error"):
            recorded()
    with pytest.raises(InterruptedError, match=str(first.value)):
        recorded()


def test_what_a_killed_process_had_still_to_remove_goes(small):
    with pytest.raises(InterruptedError), run_folder(small(), "d") as folder:
        raise InterruptedError
    gone = ["fold_0/checkpoint/last.ckpt", ".run.json.0123abcd.part"]
    gone += ["fold_1/.predictions.csv.0123abcd.part"]
    kept = ["fold_0/predictions.csv", "fold_1/checkpoint/last.ckpt", "notes.part"]
    for name in (*gone, *kept):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("fold\n")
    with run_folder(small(), "d") as again:
        assert again.path == folder.path
        assert not [name for name in gone if (folder.path / name).exists()]
        assert all((folder.path / name).exists() for name in kept)


def test_two_processes_do_not_work_on_the_same_run(small):
    error = pytest.raises(ValueError, match="another process")
    with run_folder(small(), "d"), error, run_folder(small(), "d"):
        pass
