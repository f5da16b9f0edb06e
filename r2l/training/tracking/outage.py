"""A store that may go away: what can't be sent is kept in a local one, and sent later.

A server that fails in the middle of a training must not end it, nor lose its records. From the first
call that fails on, all calls go to a SQLite store, ``runs_kept`` in the working folder; each
run there remembers which run of which server it goes on with, and `upload` joins the two. Every call
may be repeated, so that nothing is lost or doubled where the server took it but failed to say so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from r2l.training.tracking.records import PARENT, Records
from r2l.training.tracking.store import (
    TrackingError,
    batches,
    call,
    experiment_id,
    find_run,
    is_remote,
    open_client,
    store_address,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_KEPT = Path("runs_kept")
# Tags of a kept run: the run that it goes on with, that run's server, and models to be registered; and of
# one that was sent whole, where to.
_REMOTE_RUN, _REMOTE_STORE, _REGISTER = "r2l.remote_run", "r2l.remote_store", "r2l.register"
_UPLOADED = "r2l.uploaded_to"


class Sender:
    """Sends the calls of one experiment's runs to a store, or keeps them."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self.address = client.tracking_uri
        self.kept: str | None = None
        self._client, self._experiment = client, experiment
        # The second is that of the store which is written to now.
        self.experiment_id = self._experiment_id = experiment_id(client, experiment)
        # By id as the caller knows it: name and tags of each run, and its id in the local store.
        self._opened: dict[str, tuple[str | None, dict[str, str]]] = {}
        self._local: dict[str, str] = {}

    def open_run(self, run_id: str | None, name: str | None, tags: dict[str, str]) -> str:
        """Open a run again, or make one without an id; return the id by which it is known from then on."""
        if run_id:
            self._opened[run_id] = name, tags
            self.send("update_run", run_id, status="RUNNING")
            return run_id
        run_id = self._sent_or_kept(lambda: self._made(name, tags))
        self._opened[run_id] = name, tags
        if self.kept:
            self._local[run_id] = run_id
        return run_id

    def send(self, method: str, run_id: str, *arguments: Any, **options: Any) -> None:
        """Call a method of mlflow's client whose first argument is a run; errors as in `call`."""
        self._sent_or_kept(lambda: call(self._client, method, self._here(run_id), *arguments, **options))

    def register(self, run_id: str, path: str, name: str, alias: str | None) -> None:
        """Make an artefact the newest version of a registered model; with an alias, if one is given."""
        wish = {"path": path, "name": name, "alias": alias}

        def registered() -> None:
            if self.kept:
                self.send("set_tag", run_id, f"{_REGISTER}.{name}", json.dumps(wish))
            else:
                _register(self._client, run_id, **wish)

        self._sent_or_kept(registered)

    def _sent_or_kept(self, action: Callable[[], T]) -> T:
        """Do it in the server's store; in the local one from the first time on that this fails."""
        try:
            return action()
        except TrackingError as error:
            if self.kept or not is_remote(self.address):
                raise
            self._keep_from_now_on(error)
        return action()

    def _keep_from_now_on(self, error: TrackingError) -> None:
        self.kept = store_address(_KEPT)
        self._client = open_client(self.kept)
        self._experiment_id = experiment_id(self._client, self._experiment)
        what, why, _ = error.args
        warnings.warn(
            f"tracking goes on in {_KEPT}: {what}: {why}. Send it later with: "
            f"r2l lab upload {_KEPT} --tracking_uri {self.address}",
            stacklevel=2,
        )

    def _here(self, run_id: str) -> str:
        """The run's id in the store that is written to; a local run is made when it is first needed."""
        if self.kept and run_id not in self._local:
            name, tags = self._opened[run_id]
            self._local[run_id] = self._made(name, {**tags, _REMOTE_RUN: run_id})
        return self._local.get(run_id, run_id)

    def _made(self, name: str | None, tags: dict[str, str]) -> str:
        if PARENT in tags:
            tags = {**tags, PARENT: self._here(tags[PARENT])}
        if self.kept:
            tags = {**tags, _REMOTE_STORE: self.address}
        return call(self._client, "create_run", self._experiment_id, tags=tags, run_name=name).info.run_id


def _register(client: MlflowClient, run_id: str, path: str, name: str, alias: str | None) -> None:
    """Make ``path`` of a run a new version of the model ``name``."""
    with suppress(ValueError):  # it exists; a name that can't be is told below
        call(client, "create_registered_model", name)
    source = f"runs:/{run_id}/{path}"
    version = call(client, "create_model_version", name, source=source, run_id=run_id).version
    if alias:
        call(client, "set_registered_model_alias", name, alias, version)


def upload(
    folder: str | Path, store: str | Path, progress: Callable[[str], None] = lambda line: None
) -> dict[str, str]:
    """Send the runs of a local store to another one; what is kept of a run there joins that run.

    It may be broken off and repeated: a run that was sent whole is passed over, and one that was sent in
    part is gone on with. The local store, ``folder``, stays as it is, but for tags that say what was sent;
    both are addresses as in `store_address`. ``progress`` is called with a line a run.

    Returns:
        The id there of each run that was sent now, by its local id.

    Raises:
        TrackingError: either store can't be opened, or the target fails on the way.
        ValueError: both are the same.
    """
    source, target = store_address(folder), store_address(store)
    if source == target:
        raise ValueError(f"{source} can't be uploaded to itself; name the server")
    sending = _Upload(Records(source), open_client(target), progress)
    for run_id in reversed(sending.runs):  # the oldest first
        sending.run(run_id)
    return sending.now


class _Upload:
    """One way from a store to another, and what went along it."""

    def __init__(self, source: Records, client: MlflowClient, progress: Callable[[str], None]) -> None:
        self.source, self.client, self.progress = source, client, progress
        self.runs = {run.info.run_id: run for run in source.all()}
        self.now: dict[str, str] = {}

    def run(self, run_id: str) -> str:
        """Send one run, and first the one above it; return its id there."""
        run, target = self.runs[run_id], self.client.tracking_uri
        there = run.data.tags.get(_REMOTE_RUN)
        if run_id in self.now or run.data.tags.get(_UPLOADED) == target:
            return self.now.get(run_id, there)
        if not there or not find_run(self.client, there):
            there = self._made(run)
        # At once, so that a second attempt goes on with this run instead of making another.
        self.source.call("set_tag", run_id, _REMOTE_RUN, there)
        self.source.call("set_tag", run_id, _REMOTE_STORE, target)
        self._contents(run, there)
        if run.info.status != "RUNNING":
            call(self.client, "set_terminated", there, run.info.status, run.info.end_time)
            self.source.call("set_tag", run_id, _UPLOADED, target)
        self.now[run_id] = there
        self.progress(f"{run.info.run_name}: {there}")
        return there

    def _made(self, run: Any) -> str:
        parent = run.data.tags.get(PARENT)
        tags = {PARENT: self.run(parent)} if parent in self.runs else {}
        name = self.source.call("get_experiment", run.info.experiment_id).name
        there = experiment_id(self.client, name)
        options = {"start_time": run.info.start_time, "run_name": run.info.run_name, "tags": tags}
        return call(self.client, "create_run", there, **options).info.run_id

    def _contents(self, run: Any, there: str) -> None:
        from mlflow.entities import Param, RunTag

        run_id, data = run.info.run_id, run.data
        # Of this store's own runs, or written by `_register`.
        own = (PARENT, _REMOTE_RUN, _REMOTE_STORE, _UPLOADED, _REGISTER, "mlflow.log-model")
        tags = [RunTag(k, v) for k, v in data.tags.items() if not k.startswith(own)]
        params = [Param(key, value) for key, value in data.params.items()]
        metrics = [m for key in data.metrics for m in self.source.call("get_metric_history", run_id, key)]
        for batch in batches(tags=tags, params=params, metrics=metrics):
            call(self.client, "log_batch", there, **batch)
        files = self.source.local(run_id, "")
        if files and files.is_dir():
            call(self.client, "log_artifacts", there, str(files))
        for key, wish in data.tags.items():
            if key.startswith(_REGISTER):
                _register(self.client, there, **json.loads(wish))
