"""Records of runs: what went in comes out of the store."""

import subprocess
import sys

import pandas as pd
import pytest
from matplotlib.figure import Figure

from r2l.training.tracking import track


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
        run.figure(Figure(figsize=(1, 1)), "matrix.png")
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
    files = {f.path for f in client.list_artifacts(run.run_id)}
    assert files == {"matrix.png", "cells.csv", "summary.json"}
    kept = pd.read_csv(client.download_artifacts(run.run_id, "cells.csv", str(tmp_path)))
    assert kept.to_dict("list") == {"train": ["ma,s,me"], "accuracy": [0.5]}


def test_experiments_are_found_again_and_files_lie_beside_the_database(store, client):
    with track("again", store=store) as first, track("again", store=store) as second:
        first.values({}, "empty.json")
    assert first.experiment_id == second.experiment_id
    folder = store.removeprefix("sqlite:///").removesuffix("mlflow.db")
    assert client.get_experiment(first.experiment_id).artifact_location == f"file://{folder}mlruns"


@pytest.mark.parametrize(("error", "status"), [(OSError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_badly_is_marked_and_the_error_goes_on(store, client, error, status):
    with (
        pytest.raises(error),
        track("ends badly", store=store) as run,
        run.nested("child") as child,
    ):
        raise error
    assert {client.get_run(r.run_id).info.status for r in (run, child)} == {status}


FRESH_PROCESS = """
import sys
import r2l.training
from r2l.training.tracking import track
assert "mlflow" not in sys.modules, "only those who track pay for the import"
with track("x") as run:
    print(run.store)
"""


def test_a_new_store_in_the_working_folder_is_made_in_silence(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sqlite:///mlflow.db\n"
    assert done.stderr == ""
    assert (tmp_path / "mlflow.db").is_file()
