"""Writing to a store that may go away: what can't be sent is kept in a local one.

A server that fails in the middle of a training must not end it, nor lose its records. From the first
call that fails on, all calls go to a SQLite store, by default ``runs_kept`` in the working folder; each
run there remembers which run of which server it goes on with, and `upload` joins the two. Every call
may be repeated, so that nothing is lost or doubled where the server took it but failed to say so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2l.training.tracking.store import (
    TrackingError,
    call,
    experiment_id,
    is_remote,
    open_client,
    store_address,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEPT_FOLDER = "runs_kept"
PARENT = "mlflow.parentRunId"
#: Tags of a kept run: the run that it goes on with, that run's server, and models to be registered.
REMOTE_RUN, REMOTE_STORE, REGISTER = "r2l.remote_run", "r2l.remote_store", "r2l.register"


class Sender:
    """Sends the calls of one experiment's runs to a store, or keeps them.

    Args:
        client: of the store.
        experiment: name of the experiment, which is made if it does not exist.
        keep_in: folder of the local store for what can't be sent.
    """

    def __init__(self, client: MlflowClient, experiment: str, keep_in: str | Path) -> None:
        self.address = client.tracking_uri
        self.kept: str | None = None
        self._client, self._experiment, self._keep_in = client, experiment, Path(keep_in)
        self.experiment_id = experiment_id(client, experiment)
        # By id as the caller knows it: name and tags of each run, and its id in the local store.
        self._made: dict[str, tuple[str | None, dict[str, str]]] = {}
        self._local: dict[str, str] = {}

    def create_run(self, name: str | None, tags: Mapping[str, str]) -> str:
        """Make a run and return its id, by which it is known from then on."""
        tags = dict(tags)
        if self.kept is None:
            try:
                made = call(
                    self._client, "create_run", self.experiment_id, tags=tags, run_name=name
                )
                self._made[made.info.run_id] = (made.info.run_name, tags)
                return made.info.run_id
            except TrackingError as error:
                self._keep_from_now_on(error)
        run_id = self._make_kept(name, tags)
        self._made[run_id], self._local[run_id] = (name, tags), run_id
        return run_id

    def send(self, method: str, run_id: str, *arguments: Any, **options: Any) -> None:
        """Call a method of mlflow's client whose first argument is a run.

        Raises:
            ValueError: mlflow does not take such a value.
            TrackingError: a local store failed.
        """
        if self.kept is None:
            try:
                call(self._client, method, run_id, *arguments, **options)
                return
            except TrackingError as error:
                self._keep_from_now_on(error)
        call(self._client, method, self._kept_id(run_id), *arguments, **options)

    def register(self, run_id: str, path: str, name: str, alias: str | None) -> None:
        """Make an artefact the newest version of a registered model; with an alias, if one is given."""
        if self.kept is None:
            try:
                register(self._client, run_id, path, name, alias)
                return
            except TrackingError as error:
                self._keep_from_now_on(error)
        wish = json.dumps({"path": path, "name": name, "alias": alias})
        self.send("set_tag", run_id, f"{REGISTER}.{name}", wish)

    def _keep_from_now_on(self, error: TrackingError) -> None:
        if not is_remote(self.address):
            raise error
        local = store_address(self._keep_in)
        self._client = open_client(local)
        self.kept = local
        self._kept_experiment = experiment_id(self._client, self._experiment)
        warnings.warn(
            f"tracking goes on in {self._keep_in}: {error}. Send it later with: "
            f"r2l lab upload {self._keep_in} --tracking_uri {self.address}",
            stacklevel=2,
        )

    def _kept_id(self, run_id: str) -> str:
        """The local run that goes on with ``run_id``; it is made when it is first written to."""
        if run_id not in self._local:
            name, tags = self._made[run_id]
            self._local[run_id] = self._make_kept(name, {**tags, REMOTE_RUN: run_id})
        return self._local[run_id]

    def _make_kept(self, name: str | None, tags: dict[str, str]) -> str:
        if PARENT in tags:
            tags = {**tags, PARENT: self._kept_id(tags[PARENT])}
        tags = {**tags, REMOTE_STORE: self.address}
        made = call(self._client, "create_run", self._kept_experiment, tags=tags, run_name=name)
        return made.info.run_id


def register(client: MlflowClient, run_id: str, path: str, name: str, alias: str | None) -> str:
    """Make ``path`` of a run a new version of the model ``name``; return the version's number."""
    with suppress(ValueError):  # it exists; a name that can't be is told below
        call(client, "create_registered_model", name)
    source = f"runs:/{run_id}/{path}"
    version = call(client, "create_model_version", name, source=source, run_id=run_id).version
    if alias:
        call(client, "set_registered_model_alias", name, alias, version)
    return str(version)
