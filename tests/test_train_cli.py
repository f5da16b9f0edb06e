"""The command `r2l train`: the published lines as they stand, flags, help, and errors before the work."""

import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision

from r2l.options import FIELDS, Options, resolve_options
from r2l.training import experiment as experiment_module
from r2l.training.module import RawToLogits
from r2l.training.tracking import Records
from tests.conftest import invoke
from tests.fixtures_data import KEPT, write_microscopy
from tests.test_train import signalling

# As published, after `python train.py`; long lines are continued by backslashes there.
COMMON = r"""train --experiment_name X --run_name Y --dataset Microscopy --lr 1e-5 --n_splits 5 --epochs 5 \
 --classifier_pretrained %s --augmentation weak --log_model True --iso 0.01 --freeze_processor \
 --processor_uri "$processor_uri" --track_processing --track_every_epoch --track_predictions \
 --track_processing_gradients --track_save_tensors"""
LINES = {
    "synthesis": COMMON % "--processing_mode static",
    "forensics": COMMON % "--adv_training --processing_mode parametrized",
    "adjustment": COMMON % "--processing_mode parametrized",
}
# Two folds and one epoch in the place of five of each: of an option given twice the last counts.
SHORTER = " --n_splits 2 --epochs 1"
TWIN = ["--dataset", "SyntheticMicroscopy", "--n_images", "12", "--image_size", "32"]
TWIN += ["--classifier_network", "SmallResNet", "--accelerator", "cpu"]
train = partial(invoke, "train")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with data in the real layout, and what stands in for pretrained weights."""
    place = tmp_path_factory.mktemp("published")
    write_microscopy(place / "data", intensities=(1.0, 0.01))
    weights = place / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    return place


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_the_published_lines_run_as_they_stand(published, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for variable in ("processor_uri", "R2L_CACHE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    for variable, folder in (("R2L_DATA", "data"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(variable, str(published / folder))
    line = LINES[name] + SHORTER
    if name == "synthesis":  # as a shell has it, in a process of its own
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        command = ["sh", "-c", f"{sys.executable} -m r2l {line}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        assert "leaked" not in done.stderr  # what libraries print where Python's end is cut short
    else:
        # Of a relative address, mlflow remembers the file of the first working folder in a process.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        _, *words = shlex.split(line.replace("\\\n", "").replace("$processor_uri", ""))
        done = train(*words)
        assert done.exit_code == 0, done.output
    assert "no processor given (--processor_uri is empty): made afresh" in done.stdout
    assert f"Microscopy: {KEPT} images of 32 x 32, classification, 9 classes; 2 folds" in done.stdout
    assert ("--freeze_processor False" in done.stdout) == (name == "forensics")
    records = Records(tmp_path)
    folds = records.children(records.find("Y"))
    assert list(folds) == ["fold 0", "fold 1"]
    kept = "processor/isp.json model/weights.safetensors predictions.csv stages/gamma/epoch_000.png "
    kept += "gradients/gamma/epoch_000.png tensors/epoch_000.npz predictions/epoch_000.csv"
    for fold in folds.values():
        assert set(kept.split()) <= set(records.files(fold))
    params = records.call("get_run", records.find("Y")).data.params
    assert (params["iso"], params["lr"], params["augmentation"]) == ("0.01", "1e-05", "weak")


def parsed(monkeypatch, *arguments):
    """Return the options that a command line comes to."""
    seen = []
    monkeypatch.setattr(experiment_module, "experiment", lambda options, say: seen.append(options))
    result = train(*arguments)
    assert result.exit_code == 0, result.output
    return seen[0]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", True),
        ("--log_model", True),
        ("--log_model True", True),
        ("--log_model=yes", True),
        ("--log_model False", False),
        ("--log_model=false", False),
        ("--no_log_model", False),
        ("--log_model False --log_model", True),
        ("--log_model --epochs 3 --log_model 0", False),
    ],
)
def test_flags_stand_alone_or_take_a_value(monkeypatch, words, value):
    options = parsed(monkeypatch, *words.split(), "--run_name", "True")
    assert options.log_model is value
    assert options.run_name == "True"


def test_every_flag_takes_a_value_and_the_last_counts(monkeypatch):
    # Without those that another option has to go with.
    bound = {"freeze_classifier", "own_colours", "skip_broken", "lens_corrections"}
    harmless = [n for n, option in FIELDS.items() if isinstance(option.default, bool) and n not in bound]
    for value in (True, False):
        words = [w for n in harmless for w in (f"--{n}", str(value))]
        options = parsed(monkeypatch, *words, "--epochs", "7", "--epochs", "3")
        assert {n: getattr(options, n) for n in harmless} == dict.fromkeys(harmless, value)
        assert options.epochs == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--log_model maybe", "--log_model takes True or False"),
        ("--epochs many", "--epochs"),
        ("--epoch_count 3", "--epoch_count"),
        ("--epochs", "--epochs"),
        ("--dataset Telescope", "unknown dataset 'Telescope'; choose from Microscopy, Drone"),
        ("--processing_mode static --freeze_classifier True --classifier_uri x", "nothing to train"),
        ("--pipeline bi,s,ga --processing_mode parametrized", "neither --processing_mode parametrized"),
        ("--pipeline bi,s,ga@camera --variant paper", "--variant paper contradicts --pipeline"),
        ("--seed 4294967296", "--seed is 4294967296, expected 4294967295 or less"),
        ("--experiment_name=", "--experiment_name is empty"),
        ("--dataset Microscopy --root nowhere", "r2l data fetch microscopy"),
        ("--classifier_uri runs:/none", "is no address"),
        ("--classifier_pretrained", "does not exist"),
        ("--tracking_uri http://127.0.0.1:9", "store can't be opened"),
    ],
)
def test_errors_come_before_the_work_in_a_line_or_two(in_tmp_path, monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    # As where there is no network.
    monkeypatch.setattr(socket, "getaddrinfo", _no_network)
    twin = TWIN if "--dataset" not in words else []
    if "pretrained" in words:
        twin = [w.replace("SmallResNet", "ResNet18") for w in TWIN]
    result = train(*twin, *words.split())
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) < 10
    assert not (tmp_path / "runs").exists()


def _no_network(host, *rest, **options):
    if host in ("127.0.0.1", b"127.0.0.1"):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, rest[0]))]
    raise socket.gaierror("no network")


def test_help_comes_quickly_in_groups_and_names_every_option():
    start, command = time.perf_counter(), [sys.executable, "-X", "importtime", "-m", "r2l", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - start < 10
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "lightning", "mlflow", "numpy"}
    for name, option in FIELDS.items():
        assert f"\n{option.metadata['group']}:\n" in done.stdout
        assert f"--{name}" in done.stdout


@pytest.mark.usefixtures("in_tmp_path")
def test_a_test_run_is_short_and_ctrl_c_ends_in_one_line(tmp_path, monkeypatch):
    # Of a relative address, mlflow remembers the file of the first working folder in a process.
    words = [*TWIN, "--test_run", "--run_name", "R", "--tracking_uri", str(tmp_path / "mlflow.db")]
    with monkeypatch.context() as patch:
        patch.setattr(RawToLogits, "training_step", signalling(signal.SIGINT, 1))
        result = train(*words)
    assert result.exit_code == 130
    lines = [s for s in result.stderr.replace("\r", "\n").splitlines() if "interrupted" in s]
    assert len(lines) == 1
    records = Records(tmp_path)
    assert records.call("get_run", records.find("R")).info.status == "KILLED"
    result = train(*words)
    assert result.exit_code == 0, result.output
    assert "going on with the run" in result.stdout
    assert "test run, few images: --epochs 1" in result.stdout
    assert "accuracy" in result.stdout
    assert records.call("get_run", records.find("R")).info.status == "FINISHED"
    assert "going on" not in train(*words).stdout, "a finished run is repeated"


def test_a_variant_is_that_of_fixed_processing_or_told_by_its_suffix():
    options = Options(dataset="SyntheticMicroscopy", processing_mode="static", variant="paper")
    tests = "all lines+bi,s,ga+jpeg:75 libraw:ahd ma,u,me@camera"
    resolved, lines = resolve_options(replace(options, sp_debayer="menon2007", test_pipelines=tests))
    assert resolved.pipeline == "me,s,ga@paper"
    wanted = "all@paper lines+bi,s,ga@paper+jpeg:75 libraw:ahd ma,u,me@camera"
    assert resolved.test_pipelines == wanted
    assert "the variant paper" in lines[0]
    assert resolve_options(resolved)[0] == resolved
    with pytest.raises(ValueError, match="--pipeline bi,s,ga@paper"):
        replace(options, processing_mode="parametrized")
