"""Runs read back from a store, what they wrote as paths on this machine, and both sent to another store."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import pandas as pd

from r2l.files import local_path
from r2l.training.tracking import store as stores
from r2l.training.tracking.store import Tag, TrackingError, call

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SHOWN = 10  # names that a message lists
_RUN = re.compile(r"runs:/+([0-9a-f]{32})(?:/(.+?))?/?$")
_RUNS = f"""
select r.run_uuid run_id, r.name, e.name experiment, coalesce(t.value, '') parent, status,
  start_time start, coalesce(p.value, '') dataset
from runs r join experiments e using (experiment_id)
  left join tags t on t.run_uuid = r.run_uuid and t.key = '{Tag.PARENT}'
  left join params p on p.run_uuid = r.run_uuid and p.key = 'dataset'
where r.lifecycle_stage = 'active' and e.lifecycle_stage = 'active'
order by start_time desc, r.run_uuid"""
_METRICS = "select run_uuid run_id, key, value, is_nan from latest_metrics"
_MODEL = re.compile(r"models:/+([^/@]+)(?:@([^/]+)|/([0-9]+))$")


class Records:
    """The runs of a store, by its address (`store_address`); nothing is written.

    Raises:
        TrackingError: there is no such store, or it does not answer.
    """

    def __init__(self, store: str | Path | None = None) -> None:
        self.address = stores.store_address(store)
        if path := stores.sqlite_path(self.address):
            stores.check_sqlite(path)
        else:
            _ = self.client  # whether it answers is told at once

    @cached_property
    def client(self) -> MlflowClient:
        """Mlflow's client of the store, which takes seconds to import."""
        return stores.open_client(self.address, make=False)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of mlflow's client; errors as in `r2l.training.tracking.store.call`."""
        return call(self.client, method, *arguments, **options)

    def all(self) -> Iterator[Any]:
        """Yield mlflow's runs, the newest first."""
        newest = {"order_by": ["attributes.start_time DESC"]}
        yield from self._pages("search_runs", list(self._experiments()), **newest)

    def table(self) -> pd.DataFrame:
        """Return one row a run, the newest first: names, parent, status, start, data set, last metrics."""
        if stores.sqlite_path(self.address):
            # A tenth of the time that mlflow takes.
            runs, values = query(_RUNS, self.address), query(_METRICS, self.address)
            values["value"] = values["value"].mask(values["is_nan"].astype(bool))
            wide = values.pivot(index="run_id", columns="key", values="value")
            runs["start"] = pd.to_datetime(runs["start"], unit="ms")
            return runs.join(wide, on="run_id") if len(runs) else pd.DataFrame()
        names = self._experiments()
        rows = [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "experiment": names[run.info.experiment_id],
                "parent": run.data.tags.get(Tag.PARENT, ""),
                "status": run.info.status,
                "start": pd.Timestamp(run.info.start_time, unit="ms"),
                "dataset": run.data.params.get("dataset", ""),
                **run.data.metrics,
            }
            for run in self.all()
        ]
        return pd.DataFrame(rows)

    def find(self, run: str) -> str:
        """Return the id of a run: by its id, by its name (the newest of that name), or "latest".

        "latest" is the newest run that is nobody's fold. Where there is none, a ValueError lists the newest.
        """
        names: dict[str, None] = {}
        for stored in self.all():
            top = Tag.PARENT not in stored.data.tags
            if run in (stored.info.run_id, stored.info.run_name) or (top and run == "latest"):
                return stored.info.run_id
            if top:
                names[stored.info.run_name] = None
        raise missing(f"no run {run!r} in {self.address}", names)

    def children(self, run_id: str) -> dict[str, str]:
        """Return ids by name of the runs below one, in the order they were started."""
        below = [r.info for r in self.all() if r.data.tags.get(Tag.PARENT) == run_id]
        return {info.run_name: info.run_id for info in reversed(below)}

    def history(self, run_id: str) -> pd.DataFrame:
        """Return a run's metrics, one row a step (an epoch); the last value written to a step counts."""
        series = {}
        for key in self.call("get_run", run_id).data.metrics:
            points = sorted(self.call("get_metric_history", run_id, key), key=lambda p: p.timestamp)
            series[key] = pd.Series({point.step: point.value for point in points})
        return pd.DataFrame(series).rename_axis("epoch").sort_index()

    def files(self, run_id: str, under: str = "") -> list[str]:
        """Return the paths of all artefacts of a run below a folder, sorted."""
        entries = self.call("list_artifacts", run_id, under or None)
        parts = (self.files(run_id, e.path) if e.is_dir else [e.path] for e in entries)
        return sorted(path for part in parts for path in part)

    def local(self, run_id: str, path: str) -> Path | None:
        """Return where an artefact lies on this machine's disk; None if it has to be fetched."""
        location = self.call("get_run", run_id).info.artifact_uri
        if urlparse(location).scheme not in ("", "file"):
            return None
        file = ((root := local_path(location).resolve()) / path).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f"{path!r} is no artefact of run {run_id}: it leads out of its folder")
        return file

    def _experiments(self) -> dict[str, str]:
        return {e.experiment_id: e.name for e in self._pages("search_experiments")}

    def _pages(self, method: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        page = self.call(method, *arguments, **options)
        yield from page
        while page.token:
            page = self.call(method, *arguments, page_token=page.token, **options)
            yield from page


def query(sql: str, store: str | Path | None = None) -> pd.DataFrame:
    """Return what an SQL query finds in a SQLite store, which is opened read-only.

    The tables: ``runs`` (run_uuid, name, status, start_time), ``experiments``, ``params``, ``latest_metrics``
    (run_uuid, key, value), ``metrics`` (all steps), ``tags``.

    Raises:
        ValueError: the store is no SQLite file, or the query is wrong (names the tables).
        TrackingError: there is no such file.
    """
    address = stores.store_address(store)
    path = stores.sqlite_path(address)
    if path is None:
        raise ValueError(f"{address} is no SQLite file, so that SQL can't be asked of it")
    stores.check_sqlite(path)
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
        try:
            rows = (cursor := connection.execute(sql)).fetchall()
        except sqlite3.Error as error:
            tables = "the main tables are runs, experiments, params, metrics, latest_metrics, tags"
            raise ValueError(f"{error}; {tables}") from error
    if cursor.description is None:
        raise ValueError("the statement returns nothing; write a query, such as select ...")
    return pd.DataFrame(rows, columns=[column[0] for column in cursor.description])


def missing(what: str, names: Iterable[str], none: str = "none yet") -> ValueError:
    """Return the error for what is not there, which lists what is."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ValueError(f"{what}; there are: {', '.join(names[:_SHOWN]) or none}{more}")


def resolve(uri: str | Path, store: str | Path | None = None, cache: str | Path | None = None) -> Path:
    """Return the folder or file that an address means; it is fetched if it lies on a server.

    Args:
        uri: ``runs:/RUN_ID/path``, ``models:/name@alias``, ``models:/name/version``, or the path of a
            folder or a file, which is returned as it is.
        store: where runs and models are looked up, see `store_address`.
        cache: folder for what is fetched, by default ``artefacts`` in that of the variable R2L_CACHE, else
            ``runs/fetched``. The same artefact of the same run is fetched once; without asking the server,
            since a finished run does not change. Nothing in it is ever deleted.

    Raises:
        ValueError: no such run, model, alias, version, artefact or path; names those that exist.
        TrackingError: the store can't be opened.
    """
    text = str(uri)
    if not text.startswith(("runs:", "models:")):
        path = local_path(text)
        if not path.exists():
            raise ValueError(
                f"{text}: no such folder or file; give one, or runs:/RUN_ID/path, or models:/name@alias"
            )
        return path
    if text.startswith("models:"):
        text = model_source(text, store)
    match = _RUN.match(text)
    if not match:
        raise ValueError(f"{text!r} is no address; expected runs:/RUN_ID/path, of 32 hex digits")
    run_id, path = match[1], match[2] or ""
    shared = os.environ.get("R2L_CACHE")
    cached = Path(cache or (Path(shared, "artefacts") if shared else "runs/fetched"), run_id, path)
    if path and cached.exists():
        return cached
    records = Records(store)
    if existing := _existing(records, run_id, path):
        return existing
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: what is in the cache is never looked at again.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=cached.parent) as folder:
        fetched = records.call("download_artifacts", run_id, path, folder)
        if not path:
            return Path(shutil.copytree(fetched, cached, dirs_exist_ok=True))
        os.replace(fetched, cached)
    return cached


def model_source(uri: str, store: str | Path | None = None) -> str:
    """Return the ``runs:/`` address behind that of a registered model; errors as in `resolve`."""
    records, match = Records(store), _MODEL.match(uri)
    if not match:
        raise ValueError(f"{uri!r} is no address; expected models:/name@alias or models:/name/1")
    name, alias, version = match.groups()
    models = {m.name: m for m in records.call("search_registered_models", max_results=1000)}
    if name not in models:
        raise missing(f"no model {name!r} in {records.address}", sorted(models))
    aliases = models[name].aliases
    if alias and alias not in aliases:
        raise missing(f"model {name!r} has no alias {alias!r}", sorted(aliases))
    try:
        return records.call("get_model_version", name, version or str(aliases[alias])).source
    except TrackingError as error:
        raise ValueError(f"model {name!r} has no version {version}") from error


def _existing(records: Records, run_id: str, path: str) -> Path | None:
    """Where the artefact lies on this disk; None if it exists, but on a server."""
    if not stores.find_run(records.client, run_id):
        raise ValueError(f"no run {run_id} in {records.address}")
    if (local := records.local(run_id, path)) and local.exists():
        return local
    entries = [e.path for e in records.call("list_artifacts", run_id, path.rpartition("/")[0] or None)]
    if local is None and (path in entries or not path):
        return None
    entries = entries or [e.path for e in records.call("list_artifacts", run_id)]
    raise missing(f"run {run_id} has no {path!r}", entries, "no artefacts")


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
    source, target = stores.store_address(folder), stores.store_address(store)
    if source == target:
        raise ValueError(f"{source} can't be uploaded to itself; name the server")
    sending = _Upload(Records(source), stores.open_client(target), progress)
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
        there = run.data.tags.get(Tag.REMOTE_RUN)
        if run_id in self.now or run.data.tags.get(Tag.UPLOADED) == target:
            return self.now.get(run_id, there)
        if not there or not stores.find_run(self.client, there):
            there = self._made(run)
        # At once, so that a second attempt goes on with this run instead of making another.
        self.source.call("set_tag", run_id, Tag.REMOTE_RUN, there)
        self.source.call("set_tag", run_id, Tag.REMOTE_STORE, target)
        self._contents(run, there)
        if run.info.status != "RUNNING":
            call(self.client, "set_terminated", there, run.info.status, run.info.end_time)
            self.source.call("set_tag", run_id, Tag.UPLOADED, target)
        self.now[run_id] = there
        self.progress(f"{run.info.run_name}: {there}")
        return there

    def _made(self, run: Any) -> str:
        parent = run.data.tags.get(Tag.PARENT)
        tags = {Tag.PARENT: self.run(parent)} if parent in self.runs else {}
        experiment = self.source.call("get_experiment", run.info.experiment_id).name
        options = {"start_time": run.info.start_time, "run_name": run.info.run_name, "tags": tags}
        there = stores.experiment_id(self.client, experiment)
        return call(self.client, "create_run", there, **options).info.run_id

    def _contents(self, run: Any, there: str) -> None:
        from mlflow.entities import Param, RunTag

        run_id, data = run.info.run_id, run.data
        # Of this store's own runs, or written by `register_model`.
        own = (*Tag, "mlflow.log-model")
        tags = [RunTag(k, v) for k, v in data.tags.items() if not k.startswith(own)]
        params = [Param(key, value) for key, value in data.params.items()]
        metrics = [m for key in data.metrics for m in self.source.call("get_metric_history", run_id, key)]
        for batch in stores.batches(tags=tags, params=params, metrics=metrics):
            call(self.client, "log_batch", there, **batch)
        files = self.source.local(run_id, "")
        if files and files.is_dir():
            call(self.client, "log_artifacts", there, str(files))
        for key, wish in data.tags.items():
            if key.startswith(Tag.REGISTER):
                stores.register_model(self.client, there, **json.loads(wish))
