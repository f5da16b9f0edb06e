"""Runs read back from a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd

from r2l.training.tracking.sender import PARENT
from r2l.training.tracking.store import call, open_client, store_address

_SHOWN = 10  # names that a message lists


class Records:
    """The runs of a store; nothing is written.

    Args:
        store: as in `store_address`.

    Raises:
        TrackingError: there is no such store, or it does not answer.
    """

    def __init__(self, store: str | Path | None = None) -> None:
        self.address = store_address(store)
        self.client = open_client(self.address, make=False)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of mlflow's client; errors as in `r2l.training.tracking.store.call`."""
        return call(self.client, method, *arguments, **options)

    def all(self) -> Iterator[Any]:
        """Yield mlflow's runs, the newest first."""
        experiments = [e.experiment_id for e in self._pages("search_experiments")]
        order = ["attributes.start_time DESC"]
        yield from self._pages("search_runs", experiments, order_by=order)

    def table(self) -> pd.DataFrame:
        """Return one row a run, the newest first: names, parent, status, start, last metrics."""
        names = {e.experiment_id: e.name for e in self._pages("search_experiments")}
        rows = [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "experiment": names[run.info.experiment_id],
                "parent": run.data.tags.get(PARENT, ""),
                "status": run.info.status,
                "start": pd.Timestamp(run.info.start_time, unit="ms"),
                **run.data.metrics,
            }
            for run in self.all()
        ]
        return pd.DataFrame(rows)

    def find(self, run: str) -> str:
        """Return the id of a run: by its id, by its name (the newest of that name), or "latest".

        "latest" is the newest run that is nobody's fold.

        Raises:
            ValueError: no such run; lists the newest that exist.
        """
        names: dict[str, None] = {}
        for known in self.all():
            if run in (known.info.run_id, known.info.run_name):
                return known.info.run_id
            top = PARENT not in known.data.tags
            if run == "latest" and top:
                return known.info.run_id
            if top:
                names[known.info.run_name] = None
        listed = _listed(list(names)) or "none yet"
        raise ValueError(f"no run {run!r} in {self.address}; there are: {listed}")

    def children(self, run_id: str) -> dict[str, str]:
        """Return ids by name of the runs below one, in the order they were started."""
        found = [r.info for r in self.all() if r.data.tags.get(PARENT) == run_id]
        return {info.run_name: info.run_id for info in reversed(found)}

    def history(self, run_id: str) -> pd.DataFrame:
        """Return a run's metrics, one row a step (an epoch); the last value written to a step counts."""
        run = self.call("get_run", run_id)
        series = {}
        for key in run.data.metrics:
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
        place = urlparse(self.call("get_run", run_id).info.artifact_uri)
        if place.scheme not in ("", "file"):
            return None
        root = Path(url2pathname(place.path)).resolve()
        found = (root / path).resolve()
        if not found.is_relative_to(root):
            raise ValueError(f"{path!r} is no artefact of run {run_id}: it leads out of its folder")
        return found

    def fetch(self, run_id: str, path: str, folder: Path) -> Path:
        """Copy an artefact, file or folder, into an empty folder."""
        return Path(self.call("download_artifacts", run_id, path, str(folder)))

    def _pages(self, method: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        token = None
        while True:
            page = self.call(method, *arguments, page_token=token, **options)
            yield from page
            token = page.token
            if not token:
                return


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
