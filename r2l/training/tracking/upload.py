"""Runs of a local store sent to a server: what could not be sent while they ran, or all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r2l.training.tracking.records import Records
from r2l.training.tracking.sender import PARENT, REGISTER, REMOTE_RUN, REMOTE_STORE, register
from r2l.training.tracking.store import (
    TrackingError,
    call,
    experiment_id,
    open_client,
    store_address,
)

UPLOADED = "r2l.uploaded_to"
_METRICS_A_CALL, _PARAMS_A_CALL = 1000, 100  # mlflow's limits


def upload(
    folder: str | Path,
    store: str | Path,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Send the runs of a local store to another one; what is kept of a run there joins that run.

    It may be broken off and repeated: a run that was sent whole is passed over, and one that was sent in
    part is gone on with. The local store stays as it is, but for tags that say what was sent.

    Args:
        folder: the local store, see `store_address`.
        store: where to.
        progress: called with a line a run.

    Returns:
        The id there of each run that was sent now, by its local id.

    Raises:
        TrackingError: either store can't be opened, or the target fails on the way.
        ValueError: both are the same.
    """
    source, target = store_address(folder), store_address(store)
    if source == target:
        raise ValueError(f"{source} can't be uploaded to itself; name the server")
    sent = _Upload(Records(source), open_client(target), target, progress)
    runs = {run.info.run_id: run for run in sent.source.all()}
    for run_id in reversed(runs):  # the oldest first
        sent.run(run_id, runs)
    return sent.now


class _Upload:
    """One way from a store to another, and what went along it."""

    def __init__(
        self, source: Records, client: Any, target: str, progress: Callable[[str], None]
    ) -> None:
        self.source, self.client, self.target, self.progress = source, client, target, progress
        self.now: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def run(self, run_id: str, runs: dict[str, Any]) -> str:
        """Send one run, and first the one above it; return its id there."""
        if run_id in self._known:
            return self._known[run_id]
        run = runs[run_id]
        tags = run.data.tags
        done = tags.get(UPLOADED) == self.target
        if done:
            self._known[run_id] = tags[REMOTE_RUN]
            return tags[REMOTE_RUN]
        parent = tags.get(PARENT)
        above = self.run(parent, runs) if parent in runs else None
        there = self._joined(run) or self._made(run, above)
        self._known[run_id] = there
        # At once, so that a second attempt goes on with this run instead of making another.
        self._mark(run_id, REMOTE_RUN, there)
        self._mark(run_id, REMOTE_STORE, self.target)
        self._contents(run, there)
        if run.info.status != "RUNNING":
            end = run.info.end_time
            call(self.client, "set_terminated", there, run.info.status, end)
            self._mark(run_id, UPLOADED, self.target)
        self.now[run_id] = there
        self.progress(f"{run.info.run_name}: {there}")
        return there

    def _joined(self, run: Any) -> str | None:
        """The run there that this one goes on with, if it is that server's and still exists."""
        there = run.data.tags.get(REMOTE_RUN)
        if not there:
            return None
        try:
            return call(self.client, "get_run", there).info.run_id
        except TrackingError as error:
            if "not found" not in str(error):
                raise
            return None

    def _made(self, run: Any, above: str | None) -> str:
        name = call(self.source.client, "get_experiment", run.info.experiment_id).name
        there = experiment_id(self.client, name)
        tags = {PARENT: above} if above else {}
        options = {"start_time": run.info.start_time, "run_name": run.info.run_name, "tags": tags}
        return call(self.client, "create_run", there, **options).info.run_id

    def _contents(self, run: Any, there: str) -> None:
        from mlflow.entities import Param, RunTag

        run_id, data = run.info.run_id, run.data
        own = (PARENT, REMOTE_RUN, REMOTE_STORE, UPLOADED)
        tags = [
            RunTag(k, v)
            for k, v in data.tags.items()
            if k not in own and not k.startswith((REGISTER, "mlflow.log-model"))
        ]
        params = [Param(k, v) for k, v in data.params.items()]
        call(self.client, "log_batch", there, tags=tags)
        for start in range(0, len(params), _PARAMS_A_CALL):
            call(self.client, "log_batch", there, params=params[start : start + _PARAMS_A_CALL])
        for key in data.metrics:
            points = self.source.call("get_metric_history", run_id, key)
            for start in range(0, len(points), _METRICS_A_CALL):
                part = points[start : start + _METRICS_A_CALL]
                call(self.client, "log_batch", there, metrics=part)
        files = self.source.local(run_id, "")
        if files and files.is_dir():
            call(self.client, "log_artifacts", there, str(files))
        for key, value in data.tags.items():
            if key.startswith(REGISTER):
                register(self.client, there, **json.loads(value))

    def _mark(self, run_id: str, tag: str, value: str) -> None:
        self.source.call("set_tag", run_id, tag, value)
