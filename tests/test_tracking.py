"""Records of runs: what went in comes out of the store, whatever happens to the store."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sqlalchemy import Engine, event

from r2l.camera import DRONE, MICROSCOPE
from r2l.isp import ParametrizedISP
from r2l.isp.saving import load_isp
from r2l.rawfile import load_camera
from r2l.training.models import make_classifier, make_segmenter
from r2l.training.saving import load_model, save_model
from r2l.training.tracking import Records, Run, TrackingError, open_client, resolve, serve, track, upload
from tests.browser import free_port
from tests.conftest import end_apart, run_apart, start_apart


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store)


def test_parent_and_nested_runs_keep_what_is_written(store, client, tmp_path):
    with track("synthesis", "fast", {"epochs": 3}, {"note": "a test"}, store) as run:
        with run.nested("ma,s,me, fold 0", {"pipeline": "ma,s,me"}) as child:
            child.metrics({"accuracy on ma,s,me": 0.5})
            child.metrics({"accuracy on ma,s,me": 0.75}, step=1)
        run.table(pd.DataFrame({"train": ["ma,s,me"], "accuracy": [0.5]}), "cells.csv")
        run.values({"worst": "ma,s,me"}, "summary.json")
    parent, nested = client.get_run(run.run_id), client.get_run(child.run_id)
    assert parent.info.run_name == "fast"
    assert parent.info.status == nested.info.status == "FINISHED"
    assert parent.data.params == {"epochs": "3"}
    assert parent.data.tags["note"] == "a test"
    assert parent.data.tags["version.torch"].startswith("2")
    assert nested.data.tags["mlflow.parentRunId"] == run.run_id
    assert nested.data.metrics == {"accuracy on ma_s_me": 0.75}
    assert len(client.get_metric_history(child.run_id, "accuracy on ma_s_me")) == 2
    assert {f.path for f in client.list_artifacts(run.run_id)} == {"cells.csv", "summary.json"}
    kept = pd.read_csv(client.download_artifacts(run.run_id, "cells.csv", str(tmp_path)))
    assert kept.to_dict("list") == {"train": ["ma,s,me"], "accuracy": [0.5]}


def test_experiments_are_found_again_and_files_lie_beside_the_database(store, client):
    with track("again", store=store) as first, track("again", store=store) as second:
        pass
    (experiment,) = {client.get_run(run.run_id).info.experiment_id for run in (first, second)}
    folder = store.removeprefix("sqlite:///").removesuffix("mlflow.db")
    assert client.get_experiment(experiment).artifact_location == f"file://{folder}mlruns"


@pytest.mark.parametrize(("error", "status"), [(OSError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_badly_is_marked_and_the_error_goes_on(store, client, error, status):
    with pytest.raises(error), track("ends badly", store=store) as run, run.nested("child") as child:
        raise error
    assert {client.get_run(r.run_id).info.status for r in (run, child)} == {status}


def track_and_be_killed(store, folder):
    """In a process of its own: dies before all settings are written."""
    Run.params = lambda self, values: os.kill(os.getpid(), signal.SIGKILL)
    with track("killed", "run", {"a": 1}, store=store, folder=folder):
        pass


def test_the_run_of_a_folder_goes_on_after_a_kill(tmp_path):
    store, folders = tmp_path / "mlflow.db", [tmp_path / name for name in "ab"]
    client = open_client(store)
    for folder in folders:
        folder.mkdir()
        assert run_apart(track_and_be_killed, store, folder) == -signal.SIGKILL
    left = {r.info.run_id for r in Records(store).all()}
    with track("killed", "run", {"a": 1}, store=store, folder=folders[0]) as run:
        pass
    goes_on, other = client.get_run(run.run_id), client.get_run(*left - {run.run_id})
    assert (goes_on.info.status, goes_on.data.params) == ("FINISHED", {"a": "1"})
    assert other.info.status == "RUNNING", "of another folder, where somebody may be at work"
    with track("killed", "run", {"a": 2}, store=store, folder=folders[0]) as new:
        assert new.run_id not in left, "what finished stays as it is"


FRESH_PROCESS = """
import sys
import r2l.training
from r2l.training.tracking import track
assert "mlflow" not in sys.modules, "only those who track pay for the import"
with track("x"):
    assert "lightning" not in sys.modules, "nor those who train by other means"
"""


@pytest.mark.slow
def test_a_new_store_in_the_working_folder_is_made_in_silence(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", FRESH_PROCESS], **how)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").is_file()


def test_tensors_camera_and_split_come_back(store):
    tensors = {"stages/gamma": torch.rand(2, 3, 4, 4), "whole": np.arange(3)}
    with track("artefacts", store=store) as run:
        run.tensors(tensors, "tensors/epoch_000.npz")
        run.tensors(tensors, "t.safetensors")
        run.values(DRONE.to_dict(), "camera.json")
        run.values({"train": np.array([0, 2]), "test": [1]}, "split.json")
        for wrong in ("../out.npz", "/out.npz", ""):
            with pytest.raises(ValueError, match="no name of an artefact"):
                run.tensors(tensors, wrong)
        with pytest.raises(ValueError, match=r"npz or \.safetensors"):
            run.tensors(tensors, "t.pt")
    folder = resolve(f"runs:/{run.run_id}", store)
    zipped = np.load(folder / "tensors" / "epoch_000.npz", allow_pickle=False)
    safe = load_file(folder / "t.safetensors")
    for name, value in tensors.items():
        np.testing.assert_array_equal(zipped[name], np.asarray(value))
        np.testing.assert_array_equal(safe[name].numpy(), np.asarray(value))
    assert load_camera(folder / "camera.json") == DRONE
    assert json.loads((folder / "split.json").read_text()) == {"train": [0, 2], "test": [1]}
    assert not (folder / "t.pt").exists()
    (folder / "tensors" / ".artifact.uploading.1").touch()  # as where mlflow was killed
    assert Records(store).files(run.run_id, "tensors") == ["tensors/epoch_000.npz"]


SMALL = {"name": "SmallResNet", "n_classes": 3, "mean": [0.5] * 3, "std": [0.1] * 3}
CLASSIFIER = {"maker": "make_classifier", "arguments": SMALL}


def small_classifier(seed=0):
    torch.manual_seed(seed)
    return make_classifier(**SMALL)


def equal_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_models_are_found_by_run_by_alias_and_by_version(store):
    first, second = small_classifier(1), small_classifier(2)
    isp = ParametrizedISP(MICROSCOPE).set_(gamma=1.7)
    with track("models", store=store) as run:
        uri = run.model(first, description=CLASSIFIER, register="cells", alias="best")
        run.model(second, "later", description=CLASSIFIER, register="cells")
        run.model(isp, "isp", register="camera", alias="learned")
    assert uri == f"runs:/{run.run_id}/model"
    assert equal_weights(load_model(resolve(uri, store)), first)
    assert equal_weights(load_model(resolve("models:/cells@best", store)), first)
    assert equal_weights(load_model(resolve("models:/cells/2", store)), second)
    assert load_isp(resolve("models:/camera@learned", store)).gamma.item() == pytest.approx(1.7)
    folder = resolve("models:/cells@best", store)
    assert {path.name for path in folder.iterdir()} == {"model.json", "weights.safetensors"}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nothing@best", "no model 'nothing'.*there are: .*asked"),
        ("models:/asked@worst", "no alias 'worst'; there are: best"),
        ("models:/asked/99", "no version 99"),
        ("models:/asked", "expected models:/name@alias"),
        ("runs:/" + "0" * 32 + "/model", "no run 0000"),
        ("runs:/short/model", "32 hex digits"),
        ("runs:/{run}/modle", "no 'modle'; there are: model"),
        ("runs:/{run}/model/weights", "there are: model/model.json, model/weights.safetensors"),
        ("runs:/{run}/../../../etc", "leads out of its folder"),
        ("no/such/folder", "no such folder or file"),
    ],
)
def test_addresses_that_mean_nothing_say_what_there_is(store, uri, message):
    with track("addresses", store=store) as run:
        run.model(small_classifier(), description=CLASSIFIER, register="asked", alias="best")
    with pytest.raises(ValueError, match=message):
        resolve(uri.format(run=run.run_id), store)
    for path in (Path(__file__), Path(__file__).parent):
        assert resolve(path) == resolve(str(path)) == path, "paths are their own address"


def test_task_models_load_again_and_draw_nothing(tmp_path):
    unet = {"architecture": "unet", "encoder": "resnet18"}
    model = make_segmenter(**unet).eval()
    # Weights that would be fetched, where no network is, only to be overwritten.
    described = {"maker": "make_segmenter", "arguments": {**unet, "pretrained": True}}
    save_model(described, model, tmp_path / "segmenter")
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    again = load_model(tmp_path / "segmenter").eval()
    assert torch.equal(torch.rand(2), expected)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"maker": "os.system", "arguments": {}}, "unknown maker 'os.system'; choose from make_cl"),
        ({"maker": "make_classifier"}, "expected"),
        ({"maker": "make_classifier", "arguments": {"depth": 3}}, "takes the arguments name, n_cl"),
        ({**CLASSIFIER, "arguments": {"name": "SmallResNet", "n_classes": 4}}, "weights differ"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused_when_saving(tmp_path, description, message):
    with pytest.raises(ValueError, match=message):
        save_model(description, small_classifier(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_damaged_model_folders_say_which_file(tmp_path):
    save_model(CLASSIFIER, small_classifier(), tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    save_file({"other": weights.popitem()[1]}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors: no weights for this model"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="save_model writes one"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maker": "eval"}, "unknown maker 'eval'"),
        # What no weights have takes no memory either.
        ({"arguments": SMALL | {"n_classes": 10**9}}, "no weight is of that size"),
        ({"arguments": SMALL | {"name": ["SmallResNet"]}}, r"unknown classifier \['SmallResNet'\]"),
        ({"arguments": SMALL | {"mean": [10**400] * 3}}, "too large"),
    ],
)
def test_damaged_descriptions_of_models_are_told(tmp_path, changes, message):
    save_model(CLASSIFIER, small_classifier(), tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(CLASSIFIER | changes))
    with pytest.raises(ValueError, match=rf"model\.json: no description .*{message}"):
        load_model(tmp_path)


def test_mistakes_are_told_as_such(store):
    with track("mistakes", store=store) as run:
        run.params({"lr": 1})
        with pytest.raises(ValueError, match="Changing param values"):
            run.params({"lr": 2})
        run.params({f"p{i}": i for i in range(150)})  # more than mlflow takes in one call
    assert len(Records(store).call("get_run", run.run_id).data.params) == 151


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text.db", "no SQLite file"),
        ("folder.db", "a folder"),
        # Where nothing can be written, whoever asks.
        ("text.db/runs.db", "Not a directory"),
    ],
)
@pytest.mark.usefixtures("client")  # mlflow's import takes seconds
def test_a_store_that_is_none_is_noticed_at_once(tmp_path, name, reason):
    (tmp_path / "text.db").write_bytes(b"no database")
    (tmp_path / "folder.db").mkdir()
    start = time.monotonic()
    with pytest.raises(TrackingError, match=rf"{name}: {reason}\.\n.*\.$"), track("x", store=tmp_path / name):
        pass
    assert time.monotonic() - start < 5


def test_a_locked_store_is_told_in_two_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("r2l.training.tracking.store._LOCKED_TRIES", 2)
    path = tmp_path / "mlflow.db"

    def hurry(connection, cursor, statement, parameters, *_):
        """In the place of the 20 seconds for which mlflow lets SQLite wait, as each session says anew."""
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), parameters

    with track("x", store=path) as run, closing(sqlite3.connect(path)) as other:
        other.execute("begin exclusive")
        event.listen(Engine, "before_cursor_execute", hurry, retval=True)
        try:
            with pytest.raises(TrackingError, match=r"database is locked\.\nAnother process .*\.$"):
                run.metrics({"a": 1.0})
        finally:
            event.remove(Engine, "before_cursor_execute", hurry)
        other.rollback()


def write_run(store, name):
    with track("parallel", name, store=store) as run:
        for step in range(15):
            run.metrics({"loss": step}, step)
            run.params({f"p{step}": step})


def make_store_and_be_killed(store):
    from alembic.runtime.migration import HeadMaintainer

    update, steps = HeadMaintainer.update_to_step, []

    def killing(self, step):
        steps.append(step)
        if len(steps) == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, step)

    HeadMaintainer.update_to_step = killing
    with track("x", store=store):
        pass


@pytest.fixture
def made_stores(copied_stores, monkeypatch):
    """Let stores be made from the ground up, here and in processes that are forked."""
    monkeypatch.setattr("r2l.training.tracking.store._make_tables", copied_stores)


@pytest.mark.slow
@pytest.mark.usefixtures("made_stores")
def test_a_store_whose_making_was_killed_is_made_the_next_time(tmp_path):
    assert run_apart(make_store_and_be_killed, tmp_path) == -signal.SIGKILL
    with track("x", store=tmp_path) as run:
        run.metrics({"a": 1.0})
    assert [r.info.run_id for r in Records(tmp_path).all()] == [run.run_id]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlruns"}


@pytest.mark.slow
@pytest.mark.usefixtures("made_stores")
def test_two_processes_write_to_one_store(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"  # which neither finds there
    writers = [start_apart(write_run, store, name) for name in "ab"]
    assert [end_apart(writer) for writer in writers] == [0, 0]
    records = Records(store)
    for name in "ab":
        run_id = records.find(name)
        assert len(records.history(run_id)) == 15
        assert len(records.call("get_run", run_id).data.params) == 15
    assert records.table()["experiment"].tolist() == ["parallel"] * 2


@pytest.mark.parametrize(
    ("silent", "why", "seconds"),
    [(False, r"Connection refused\)", 15), pytest.param(True, ".*timed out", 25, marks=pytest.mark.slow)],
)
def test_a_server_that_does_not_answer_is_noticed_before_training(silent, why, seconds):
    before, start = dict(os.environ), time.monotonic()
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if silent:
            mute.listen()
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with (
            pytest.raises(TrackingError, match=rf"{address}: no answer \({why}") as caught,
            track("x", store=address),
        ):
            pytest.fail("the block was entered")
    assert time.monotonic() - start < seconds
    assert "Start the server" in str(caught.value)
    before.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    assert dict(os.environ) == before, "mlflow's patience is bounded for the call alone"


def write_fold(run, epochs, fold):
    for epoch in epochs:
        run.metrics({"val_loss": 10 * fold + epoch}, epoch)
        run.values({"epoch": epoch}, f"stages/gamma/epoch_{epoch:03d}.json")


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_dies(tmp_path, monkeypatch):
    """Two folds; the server is killed in the first; then it is back, and the rest is sent."""
    monkeypatch.chdir(tmp_path)
    database, port = tmp_path / "server" / "runs.db", free_port()
    open_client(database)
    with (
        serve(database, port=port) as (server, process),
        track("trains", "run", {"lr": 1}, store=server) as run,
    ):
        with run.nested("fold 0") as first:
            write_fold(first, [0, 1], 0)
            first.model(small_classifier(1), description=CLASSIFIER, register="net", alias="a")
            # What lies on a server is fetched once, whole.
            cached = resolve("models:/net@a", server, cache=tmp_path / "cache")
            assert equal_weights(load_model(cached), small_classifier(1))
            assert cached.is_relative_to(tmp_path / "cache")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with pytest.warns(UserWarning, match=r"goes on in runs_kept.*r2l lab upload runs_kept"):
                write_fold(first, [2, 3], 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once
            with run.nested("fold 1", {"fold": 1}, folder=tmp_path) as second:
                write_fold(second, [0, 1], 1)
                second.model(small_classifier(2), description=CLASSIFIER, register="net", alias="b")
            run.metrics({"mean": 0.5})
    assert (tmp_path / "runs_kept" / "mlflow.db").is_file()
    again = resolve(f"runs:/{first.run_id}/model", server, cache=tmp_path / "cache")
    assert again == cached, "without the server"

    with serve(database, port=port) as (server, _):
        lines = []
        assert len(upload("runs_kept", server, progress=lines.append)) == len(lines) == 3
        assert upload("runs_kept", server) == {}, "sent already"
        records = Records(server)
        folds = records.children(run.run_id)
        assert list(folds) == ["fold 0", "fold 1"]
        assert folds["fold 0"] == first.run_id
        for number, (name, count) in enumerate({"fold 0": 4, "fold 1": 2}.items()):
            losses = records.history(folds[name])["val_loss"]
            assert losses.tolist() == [10 * number + epoch for epoch in range(count)]
            assert len(records.files(folds[name], "stages/gamma")) == count
        parent = records.call("get_run", run.run_id)
        assert parent.data.params == {"lr": "1"}
        assert parent.data.metrics == {"mean": 0.5}
        assert records.call("get_run", folds["fold 1"]).data.params == {"fold": "1"}
        assert {r.info.status for r in records.all()} == {"FINISHED"}
        assert len(list(records.all())) == 3
        late = resolve("models:/net@b", server, cache=tmp_path / "cache")
        assert equal_weights(load_model(late), small_classifier(2))
    with pytest.raises(ValueError, match="to itself"):
        upload("runs_kept", "runs_kept")
