"""Records of runs with mlflow: the only file that knows it.

By default everything lies in the working folder, ``mlflow.db`` (SQLite) and ``mlruns`` (files), and
no server is needed; ``mlflow ui`` in that folder shows the runs. No global state of mlflow's is
touched: runs are written through a client of their own.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORE = "sqlite:///mlflow.db"
PACKAGES = ("r2l", "torch", "torchvision", "lightning", "numpy", "mlflow")


class Run:
    """One run that is being written; `track` makes it, `nested` makes its children.

    Attributes:
        run_id: mlflow's name for it.
        experiment_id: the experiment it belongs to.
        store: address of the store, as ``mlflow ui --backend-store-uri`` takes it.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, run_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.store = client.tracking_uri
        self._client = client

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings; a value is kept as its text and can't be changed later."""
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(k, str(v)) for k, v in values.items()])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Write numbers, at ``step`` (an epoch, a fold); characters mlflow forbids become ``_``."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_metric_name(k), float(v), now, step) for k, v in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def figure(self, figure: Figure, name: str) -> None:
        """Write a figure as the artefact ``name`` ("matrix.png")."""
        self._client.log_figure(self.run_id, figure, name)

    def table(self, table: pd.DataFrame, name: str, index: bool = False) -> None:
        """Write a table as the artefact ``name`` ("cells.csv"), with its index if asked."""
        self._client.log_text(self.run_id, table.to_csv(index=index), name)

    def values(self, values: Any, name: str) -> None:
        """Write plain values (dicts, lists, numbers, texts) as the artefact ``name`` (.json)."""
        self._client.log_dict(self.run_id, values, name)

    @contextmanager
    def nested(self, name: str, params: Mapping[str, Any] | None = None) -> Iterator[Run]:
        """Open a run below this one (a fold, a model) for the length of a ``with`` block."""
        tags = {"mlflow.parentRunId": self.run_id}
        with _run(self._client, self.experiment_id, name, params, tags) as child:
            yield child


@contextmanager
def track(
    experiment: str,
    run: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    store: str | None = None,
) -> Iterator[Run]:
    """Open a run for the length of a ``with`` block; an exception marks it as failed and goes on.

    Git commit and the versions of Python and the main packages are written by themselves.

    Args:
        experiment: name of the experiment; it is made if it does not exist.
        run: name of the run; mlflow thinks one up otherwise.
        params: settings, see `Run.params`.
        tags: further tags.
        store: address of the store; else the variable ``MLFLOW_TRACKING_URI``, else
            `DEFAULT_STORE`, relative to the working folder.

    Raises:
        mlflow.exceptions.MlflowException: the store can't be opened.
    """
    store = store or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    client = _client(store)
    found = client.get_experiment_by_name(experiment)
    experiment_id = (
        found.experiment_id
        if found
        else client.create_experiment(experiment, artifact_location=_artefact_folder(store))
    )
    tags = {**_provenance(), **(tags or {})}
    with _run(client, experiment_id, run, params, tags) as opened:
        yield opened


@contextmanager
def _run(
    client: MlflowClient,
    experiment_id: str,
    name: str | None,
    params: Mapping[str, Any] | None,
    tags: Mapping[str, str],
) -> Iterator[Run]:
    run_id = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
    opened = Run(client, experiment_id, run_id)
    status = "FAILED"
    try:
        opened.params(params or {})
        yield opened
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _client(store: str) -> MlflowClient:
    # Before the import, which would otherwise report usage to mlflow's makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # takes seconds: only for those who track

    # A new SQLite file is made in some forty steps, each of which mlflow would print.
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        client = MlflowClient(tracking_uri=store)
        client.search_experiments(max_results=1)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return client


def _artefact_folder(store: str) -> str | None:
    """The folder ``mlruns`` beside a SQLite file; None lets any other store decide."""
    prefix = "sqlite:///"
    if not store.startswith(prefix):
        return None
    return (Path(store.removeprefix(prefix)).resolve().parent / "mlruns").as_uri()


def _provenance() -> dict[str, str]:
    versions = {"version.python": platform.python_version()}
    for package in PACKAGES:
        versions[f"version.{package}"] = importlib.metadata.version(package)
    # An installed copy can lie in somebody else's repository, whose commit would mean nothing.
    if _git("ls-files", "--error-unmatch", __file__):
        versions["mlflow.source.git.commit"] = _git("rev-parse", "HEAD")
        versions["git.clean"] = str(not _git("status", "--porcelain")).lower()
    return versions


def _git(*arguments: str) -> str:
    """What git says about the folder of this file; nothing where it isn't a repository."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _metric_name(name: str) -> str:
    """Mlflow allows letters, digits and ``_-. /``; pipeline codes hold commas."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
