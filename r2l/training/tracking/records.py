"""Runs read back from a store, and addresses of what they wrote turned into paths on this machine."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd

from r2l.files import local_path
from r2l.training.tracking.store import (
    TrackingError,
    call,
    check_sqlite,
    find_run,
    open_client,
    sqlite_path,
    store_address,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"
_SHOWN = 10  # names that a message lists
_RUN = re.compile(r"runs:/+([0-9a-f]{32})(?:/(.+?))?/?$")
_RUNS = f"""
select r.run_uuid run_id, r.name, e.name experiment, coalesce(t.value, '') parent, status,
  start_time start, coalesce(p.value, '') dataset
from runs r join experiments e using (experiment_id)
  left join tags t on t.run_uuid = r.run_uuid and t.key = '{PARENT}'
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
        self.address = store_address(store)
        if path := sqlite_path(self.address):
            check_sqlite(path)
        else:
            _ = self.client  # whether it answers is told at once

    @cached_property
    def client(self) -> MlflowClient:
        """Mlflow's client of the store, which takes seconds to import."""
        return open_client(self.address, make=False)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of mlflow's client; errors as in `r2l.training.tracking.store.call`."""
        return call(self.client, method, *arguments, **options)

    def all(self) -> Iterator[Any]:
        """Yield mlflow's runs, the newest first."""
        order = ["attributes.start_time DESC"]
        yield from self._pages("search_runs", list(self._experiments()), order_by=order)

    def table(self) -> pd.DataFrame:
        """Return one row a run, the newest first: names, parent, status, start, data set, last metrics."""
        if sqlite_path(self.address):
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
                "parent": run.data.tags.get(PARENT, ""),
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
            top = PARENT not in stored.data.tags
            if run in (stored.info.run_id, stored.info.run_name) or (top and run == "latest"):
                return stored.info.run_id
            if top:
                names[stored.info.run_name] = None
        raise missing(f"no run {run!r} in {self.address}", names)

    def children(self, run_id: str) -> dict[str, str]:
        """Return ids by name of the runs below one, in the order they were started."""
        below = [r.info for r in self.all() if r.data.tags.get(PARENT) == run_id]
        return {info.run_name: info.run_id for info in reversed(below)}

    def history(self, run_id: str) -> pd.DataFrame:
        """Return a run's metrics, one row a step (an epoch); the last value written to a step counts."""
        series = {}
        for key in self.call("get_run", run_id).data.metrics:
            points = self.call("get_metric_history", run_id, key)
            points = sorted(points, key=lambda point: point.timestamp)
            series[key] = pd.Series({point.step: point.value for point in points})
        return pd.DataFrame(series).rename_axis("epoch").sort_index()

    def files(self, run_id: str, under: str = "") -> list[str]:
        """Return the paths of all artefacts of a run below a folder, sorted."""
        out = []
        for entry in self.call("list_artifacts", run_id, under or None):
            out += self.files(run_id, entry.path) if entry.is_dir else [entry.path]
        return sorted(out)

    def local(self, run_id: str, path: str) -> Path | None:
        """Return where an artefact lies on this machine's disk; None if it has to be fetched."""
        location = urlparse(self.call("get_run", run_id).info.artifact_uri)
        if location.scheme not in ("", "file"):
            return None
        root = Path(url2pathname(location.path)).resolve()
        file = (root / path).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f"{path!r} is no artefact of run {run_id}: it leads out of its folder")
        return file

    def fetch(self, run_id: str, path: str, folder: Path) -> Path:
        """Copy an artefact, file or folder, into an empty folder."""
        return Path(self.call("download_artifacts", run_id, path, str(folder)))

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
    address = store_address(store)
    path = sqlite_path(address)
    if path is None:
        raise ValueError(f"{address} is no SQLite file, so that SQL can't be asked of it")
    check_sqlite(path)
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=20)
    try:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise ValueError("the statement returns nothing; write a query, such as select ...")
        return pd.DataFrame(cursor.fetchall(), columns=[c[0] for c in cursor.description])
    except sqlite3.Error as error:
        raise ValueError(
            f"{error}; the main tables are runs, experiments, params, metrics, latest_metrics, tags"
        ) from error
    finally:
        connection.close()


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
    records = None
    if text.startswith("models:"):
        records = Records(store)
        text = model_source(text, records)
    match = _RUN.match(text)
    if not match:
        raise ValueError(f"{text!r} is no address; expected runs:/RUN_ID/path, of 32 hex digits")
    run_id, path = match[1], match[2] or ""
    shared = os.environ.get("R2L_CACHE")
    cached = Path(cache or (Path(shared, "artefacts") if shared else "runs/fetched"), run_id, path)
    if path and cached.exists():
        return cached
    records = records or Records(store)
    return _existing(records, run_id, path) or _fetched(records, run_id, path, cached)


def model_source(uri: str, store: str | Path | Records | None = None) -> str:
    """Return the ``runs:/`` address behind that of a registered model; errors as in `resolve`."""
    records = store if isinstance(store, Records) else Records(store)
    match = _MODEL.match(uri)
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
    if not find_run(records.client, run_id):
        raise ValueError(f"no run {run_id} in {records.address}")
    local = records.local(run_id, path)
    if local is not None and local.exists():
        return local
    parent = path.rpartition("/")[0]
    entries = [e.path for e in records.call("list_artifacts", run_id, parent or None)]
    if local is None and (path in entries or not path):
        return None
    entries = entries or [e.path for e in records.call("list_artifacts", run_id)]
    raise missing(f"run {run_id} has no {path!r}", entries, "no artefacts")


def _fetched(records: Records, run_id: str, path: str, cached: Path) -> Path:
    cached.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: what is in the cache is never looked at again.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=cached.parent) as folder:
        fetched = records.fetch(run_id, path, Path(folder))
        if path:
            os.replace(fetched, cached)
        else:
            shutil.copytree(fetched, cached, dirs_exist_ok=True)
    return cached
