"""Training that is killed, interrupted or damaged, and goes on."""

import os
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import Dataset

from r2l.training import fit, make_classifier, predict
from tests.conftest import run_apart

ROOT = Path(__file__).parents[1]


class Noisy(Dataset):
    """Brightness is the class. Each reading draws from all three global generators, as transforms may."""

    def __init__(self, n=22, kill_at=None, shift=0.0):
        self.n, self.kill_at, self.shift, self.read = n, kill_at, shift, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read += 1
        if self.read == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = torch.rand(3, 16, 16) + random.random() + np.random.rand()  # noqa: NPY002
        return {"image": 0.1 * noise + 0.3 * (i % 3) + self.shift, "label": i % 3}


def model():
    network = make_classifier("SmallResNet", 3, (0.5,) * 3, (0.3,) * 3)
    network.network.insert(6, nn.Dropout(0.3))
    return network


SETTINGS = {"epochs": 4, "batch_size": 5, "augmentation": "weak", "progress": False}


def train(data=None, **settings):
    data = Noisy() if data is None else data
    return fit(model, data, validation=Noisy(7), **{**SETTINGS, **settings})


def train_and_be_killed(folder, num_workers):
    """In a process of its own: dies while it reads an image of the third epoch, of 22 each."""
    # Three images are read first, for the settings.
    train(Noisy(kill_at=3 + 2 * 22 + 9), checkpoint=folder, num_workers=int(num_workers))


class Interrupt(Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch, error=KeyboardInterrupt):
        self.epoch, self.error = epoch, error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise self.error


@pytest.fixture(scope="module")
def undisturbed():
    return train()


@pytest.fixture
def interrupted(tmp_path):
    """A folder with two whole epochs of four."""
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path / "run", callbacks=[Interrupt(2)])
    return tmp_path / "run"


def assert_same(a, b):
    state, other = a.state_dict(), b.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_goes_on_to_the_same_weights(tmp_path, undisturbed):
    assert run_apart(train_and_be_killed, tmp_path, 0) == -signal.SIGKILL
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 1, "two epochs were whole"
    torch.rand(13)  # whatever the new process drew before
    assert_same(train(checkpoint=tmp_path), undisturbed)


def test_checkpoints_change_nothing_and_a_finished_run_comes_back_at_once(tmp_path, undisturbed):
    folder = tmp_path / "below" / "run"
    assert_same(train(checkpoint=folder), undisturbed)
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "previous.ckpt"}
    again = Noisy()
    assert_same(train(again, checkpoint=folder), undisturbed)
    assert again.read <= 3, "only looked at, not trained on"


def test_ctrl_c_comes_through_keeps_the_checkpoint_and_works_the_next_time(tmp_path, undisturbed):
    handler = signal.getsignal(signal.SIGINT)
    state = torch.get_rng_state()
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint=tmp_path, callbacks=[Interrupt(epoch)])
        assert signal.getsignal(signal.SIGINT) is handler
        assert torch.equal(state, torch.get_rng_state())
    assert_same(train(checkpoint=tmp_path), undisturbed)
    with pytest.raises(SystemExit):  # other exits are left alone
        train(callbacks=[Interrupt(0, SystemExit)])


@pytest.mark.parametrize("damage", ["half", "a flipped bit"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(interrupted, undisturbed, damage):
    last = interrupted / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "half":
        del content[len(content) // 2 :]
    else:
        weights = torch.load(last, weights_only=True)["state_dict"]["model.network.1.weight"]
        content[content.index(weights.numpy().tobytes()) + 5] ^= 1
    last.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged; going on from .*previous.ckpt"):
        assert_same(train(checkpoint=interrupted), undisturbed)


class Trap:
    """Foreign code: makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trap",)


def out_of_order(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/version", "3\n")
        file.writestr("archive/data.pkl", b"\x80\x02.")  # the end, and nothing before


def without_settings(path):
    content = torch.load(path, weights_only=True)
    settings = content.pop("settings")
    assert (settings["epochs"], settings["augmentation"], settings["loss"]) == (4, "weak", "cross_entropy")
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"nothing"), ""),
        (lambda path: torch.save({"state_dict": Trap()}, path), ""),
        (out_of_order, ""),
        (without_settings, "lacks settings"),
    ],
)
def test_checkpoints_that_are_all_damaged_are_an_error_run_no_code_and_stay(
    interrupted, tmp_path, monkeypatch, damage, reason
):
    monkeypatch.chdir(tmp_path)
    paths = [interrupted / name for name in ("last.ckpt", "previous.ckpt")]
    for path in paths:
        damage(path)
    before = [path.read_bytes() for path in paths]
    with pytest.raises(ValueError, match=rf"no checkpoint can be read.*last\.ckpt.*{reason}.*previous\.ckpt"):
        train(checkpoint=interrupted)
    assert [path.read_bytes() for path in paths] == before
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lr": 0.1}, "lr was 0.001, is 0.1"),
        ({"epochs": 5}, "epochs was 4, is 5"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"gradient_clip_val": 1.0}, "trainer was"),
        ({"data": Noisy(23)}, "data was '22 items"),
        ({"data": Noisy(shift=0.1)}, "data was '22 items"),
        ({"freeze_model": True, "output_norm": "batch"}, "trained was"),
    ],
)
def test_other_settings_are_refused_by_name(interrupted, change, word):
    before = (interrupted / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=f"other settings.*{word}.*Give another folder"):
        train(checkpoint=interrupted, **change)
    assert (interrupted / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_resuming_works_with_workers_and_sparse_validation(tmp_path):
    settings = {"num_workers": 1, "validate_every": 3}
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path, callbacks=[Interrupt(2)], **settings)
    resumed = train(checkpoint=tmp_path, **settings)
    whole = train(**settings)
    assert_same(resumed, whole)
    assert list(whole.history["val_loss"].isna()) == [True, True, False, True]


SCRIPT = """
import sys, torch
from tests.test_resume import Noisy, model
from r2l.training import fit
module = fit(model, Noisy(), validation=Noisy(8), epochs=2, batch_size=5, progress=False,
             gradient_clip_val=1.0, accelerator="cpu", devices=2,
             num_nodes=1, strategy="ddp", checkpoint=sys.argv[1] + "/run")
rank = torch.distributed.get_rank()
torch.save([module.state_dict(), module.history.to_dict()], f"{sys.argv[1]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command, env = [sys.executable, str(script), str(tmp_path)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    (one, history), (two, same) = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    trained = {name for name in one if "running" not in name}
    assert all(torch.equal(one[name], two[name]) for name in trained)
    assert len(history["train_loss"]) == 2
    assert history == same, "both know the loss of all images"
    single = fit(model, Noisy(), epochs=2, batch_size=10, progress=False).state_dict()
    assert any(not torch.equal(one[name], single[name]) for name in trained), "another order"


def test_reduced_precision_reaches_the_trainer_and_answers_come_in_full(undisturbed):
    table = predict(undisturbed, {"a": Noisy()}, precision="bf16-mixed")
    full = predict(undisturbed, {"a": Noisy()})
    assert table["p_true"].dtype == np.float32
    assert not table["p_true"].equals(full["p_true"])
    reduced = train(precision="bf16-mixed", epochs=1)
    assert np.isfinite(reduced.history["train_loss"]).all()
    assert next(reduced.parameters()).dtype == torch.float32


def test_clipping_reaches_the_trainer():
    start = model()

    def farthest(**settings):
        options = {"epochs": 1, "batch_size": 5, "weight_decay": 0.0, "progress": False}
        end = fit(start, Noisy(), **options, **settings).model
        pairs = zip(start.parameters(), end.parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    # So little gradient is left that Adam's epsilon outweighs it.
    assert farthest(gradient_clip_val=1e-14) < 1e-7 < 1e-5 < farthest()
