"""Runs as they are written: settings, numbers, tensors, models; sent to a store, which may go away.

A server that fails in the middle of a training must not end it, nor lose its records. From the first
call that fails on, all calls go to a SQLite store, ``runs_kept`` in the working folder; each
run there remembers which run of which server it goes on with, and `upload` joins the two. Every call
may be repeated, so that nothing is lost or doubled where the server took it but failed to say so.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from r2l.files import atomic_path, csv_text
from r2l.isp.saving import save_isp
from r2l.training.tracking import store as stores
from r2l.training.tracking.store import Tag, TrackingError, call

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

T = TypeVar("T")

# Mlflow allows letters, digits and "_-. /" in names of metrics; pipeline codes hold commas.
_FORBIDDEN = re.compile(r"[^\w\-. /]")
_KEPT, _ID = Path("runs_kept"), ".id"
_PACKAGES = ("r2l", "torch", "torchvision", "lightning", "numpy", "mlflow")


class _Sender:
    """Sends the calls of one experiment's runs to a store, or keeps them."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self._address, self._kept = client.tracking_uri, False
        # Of the store that is written to now.
        self._client, self._experiment = client, experiment
        self._experiment_id = stores.experiment_id(client, experiment)
        # By id as the caller knows it: name and tags of each run, and its id in the local store.
        self._opened: dict[str, tuple[str | None, dict[str, str]]] = {}
        self._local: dict[str, str] = {}

    def open_run(self, run_id: str | None, name: str | None, tags: dict[str, str]) -> str:
        """Open a run again, or make one without an id; return the id by which it is known from then on."""
        if run_id:
            self._opened[run_id] = name, tags
            self.send(run_id, "update_run", status="RUNNING")
            return run_id
        run_id = self._sent_or_kept(lambda: self._made(name, tags))
        self._opened[run_id] = name, tags
        self._local |= {run_id: run_id} if self._kept else {}
        return run_id

    def left_by(self, folder_id: str) -> StoredRun | None:
        """Return the run of a folder that was killed: it counts as running, though the folder is ours now."""

        def left() -> StoredRun | None:
            if self._kept:  # whose runs have other ids than the caller knows
                return None
            running = call(self._client, "search_runs", [self._experiment_id], "status = 'RUNNING'")
            return next((r for r in running if r.data.tags.get(Tag.FOLDER_ID) == folder_id), None)

        return self._sent_or_kept(left)

    def send(self, run_id: str, method: str, *arguments: Any, **options: Any) -> None:
        """Call a method of mlflow's client whose first argument is a run; errors as in `call`."""
        self._sent_or_kept(lambda: call(self._client, method, self._here(run_id), *arguments, **options))

    def register(self, run_id: str, path: str, name: str, alias: str | None) -> None:
        """Make an artefact the newest version of a registered model; with an alias, if one is given."""
        wish = {"path": path, "name": name, "alias": alias}

        def registered() -> None:
            if self._kept:
                self.send(run_id, "set_tag", f"{Tag.REGISTER}.{name}", json.dumps(wish))
            else:
                stores.register_model(self._client, run_id, **wish)

        self._sent_or_kept(registered)

    def _sent_or_kept(self, action: Callable[[], T]) -> T:
        """Do it in the server's store; in the local one from the first time on that this fails."""
        try:
            return action()
        except TrackingError as error:
            if self._kept or not stores.is_remote(self._address):
                raise
            what, why, _ = error.args
        self._kept, self._client = True, stores.open_client(_KEPT)
        self._experiment_id = stores.experiment_id(self._client, self._experiment)
        warnings.warn(
            f"tracking goes on in {_KEPT}: {what}: {why}. Send it later with: "
            f"r2l lab upload {_KEPT} --tracking_uri {self._address}",
            stacklevel=2,
        )
        return action()

    def _here(self, run_id: str) -> str:
        """The run's id in the store that is written to; a local run is made when it is first needed."""
        if self._kept and run_id not in self._local:
            name, tags = self._opened[run_id]
            self._local[run_id] = self._made(name, {**tags, Tag.REMOTE_RUN: run_id})
        return self._local.get(run_id, run_id)

    def _made(self, name: str | None, tags: dict[str, str]) -> str:
        if Tag.PARENT in tags:
            tags = {**tags, Tag.PARENT: self._here(tags[Tag.PARENT])}
        if self._kept:
            tags = {**tags, Tag.REMOTE_STORE: self._address}
        return call(self._client, "create_run", self._experiment_id, tags=tags, run_name=name).info.run_id


class Run:
    """One run that is being written; `track` makes it, `nested` makes its children.

    Names of artefacts may hold folders ("stages/gamma/epoch_003.png"). What a server does not take any
    more is kept in a local store, with a warning that says where; nothing is raised for that.
    """

    def __init__(self, sender: _Sender, run_id: str) -> None:
        self.run_id, self._sender, self._send = run_id, sender, partial(sender.send, run_id)

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings; a value is kept as its text and can't be changed later."""
        from mlflow.entities import Param

        for batch in stores.batches(params=[Param(key, str(value)) for key, value in values.items()]):
            self._send("log_batch", **batch)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Write numbers, at ``step`` (an epoch, a fold); characters mlflow forbids become ``_``."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_FORBIDDEN.sub("_", k), float(v), now, step) for k, v in values.items()]
        self._send("log_batch", metrics=metrics)

    def table(self, table: pd.DataFrame, name: str, index: bool = False) -> None:
        """Write a table as the artefact ``name`` ("cells.csv"), with its index if asked."""
        self._send("log_text", csv_text(table, index), name)

    def values(self, values: Any, name: str) -> None:
        """Write plain values (dicts, lists or arrays, numbers, texts) as the artefact ``name`` (.json)."""
        # In a line: mlflow's own way of writing takes one for each of a list.
        self._send("log_text", json.dumps(values, default=lambda array: array.tolist()) + "\n", name)

    def tensors(self, tensors: Mapping[str, Tensor | np.ndarray], name: str) -> None:
        """Write tensors as the artefact ``name`` (.npz or .safetensors); neither holds any code."""
        plain = {n: torch.as_tensor(v).detach().cpu().contiguous().numpy() for n, v in tensors.items()}
        with self._file(name) as path:
            if path.suffix == ".safetensors":
                from safetensors.numpy import save_file

                save_file(plain, path)
            elif path.suffix == ".npz":
                np.savez_compressed(path, allow_pickle=False, **plain)
            else:
                raise ValueError(f"{name!r}: tensors are written as .npz or .safetensors")

    def model(
        self,
        model: nn.Module,
        name: str = "model",
        *,
        description: Mapping[str, Any] | None = None,
        register: str | None = None,
        alias: str | None = None,
    ) -> str:
        """Write a model so that it loads again without foreign code: a JSON and its weights.

        Args:
            description: how a task model is made again, see `r2l.training.saving.save_model`; None for an
                ISP of `r2l.isp`, which knows.
            register: a name under which it is found later, as its newest version.
            alias: of that version, so that ``models:/REGISTER@ALIAS`` is this model.

        Returns:
            ``runs:/RUN_ID/NAME``, for `resolve`.

        Raises:
            ValueError: what `save_isp` or `save_model` raise; or names that mlflow does not take.
        """
        with self._file(name) as path:
            if description is None:
                save_isp(model, path)
            else:
                from r2l.training.saving import save_model  # with Lightning, which takes seconds

                save_model(description, model, path)
        if register:
            self._sender.register(self.run_id, name, register, alias)
        return f"runs:/{self.run_id}/{name}"

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Yield an empty folder; what lies in it when the block ends well becomes artefacts."""
        with tempfile.TemporaryDirectory(prefix="r2l-") as folder:
            yield Path(folder)
            self._send("log_artifacts", folder)

    def nested(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        folder: Path | None = None,
    ) -> AbstractContextManager[Run]:
        """Open a run below this one (a fold, a model); a new one, or one again, as in `track`."""
        return _opened(self._sender, run_id, name, params, {Tag.PARENT: self.run_id}, folder)

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """Yield where to write the artefact of that name, file or folder."""
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            raise ValueError(f"{name!r} is no name of an artefact; give one such as stages/gamma.png")
        with self.files() as folder:
            path = folder / parts
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path


@contextmanager
def track(
    experiment: str,
    run: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    store: str | Path | None = None,
    run_id: str | None = None,
    folder: Path | None = None,
) -> Iterator[Run]:
    """Open a run for the length of a ``with`` block; an exception marks it as failed and goes on.

    Git commit and the versions of Python and the main packages are written by themselves. A server that
    fails on the way does not end the block: see `r2l.training.tracking.upload`.

    An experiment that does not exist is made, and mlflow thinks up a name for a run without one. Of a run
    that exists, to go on with, the ``run_id`` is given; it has its name and tags. Where a process had the
    ``folder``, in which no other is at work, and was killed, its run goes on too. For settings see
    `Run.params`, for the store `store_address`.

    Raises:
        TrackingError: the store can't be opened, which takes seconds to find out; or has no run ``run_id``.
        ValueError: settings or names that mlflow does not take.
    """
    client = stores.open_client(store)
    sender = _Sender(client, experiment)
    if run_id:
        stored = call(client, "get_run", run_id)
        run, tags = stored.info.run_name, stored.data.tags
    else:
        tags = {**_provenance(), **(tags or {})}
    with _opened(sender, run_id, run, params, tags, folder) as opened:
        yield opened


@contextmanager
def _opened(
    sender: _Sender,
    run_id: str | None,
    name: str | None,
    params: Mapping[str, Any] | None,
    tags: Mapping[str, str],
    folder: Path | None,
) -> Iterator[Run]:
    params, taken_up = params or {}, folder is not None and (folder / _ID).exists()
    own = _signs(folder) if folder else {}
    if taken_up and not run_id and (left := sender.left_by(own[Tag.FOLDER_ID])):
        run_id = left.info.run_id
        params = {key: value for key, value in params.items() if key not in left.data.params}
    run_id = sender.open_run(run_id, name, {**tags, **own})
    run, status = Run(sender, run_id), "FAILED"
    try:
        run.params(params)
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        sender.send(run_id, "set_terminated", status)


def _signs(folder: Path) -> dict[str, str]:
    """The tags of a folder's run; its number is kept in it."""
    if not (folder / _ID).exists():
        with atomic_path(folder / _ID) as partial:
            partial.write_text(uuid4().hex, "utf-8")
    return {Tag.FOLDER: str(folder.resolve()), Tag.FOLDER_ID: (folder / _ID).read_text("utf-8")}


def _provenance() -> dict[str, str]:
    """The versions of Python and the main packages, and the git commit of this package's code."""

    def git(*arguments: str) -> str:
        """What git says about the folder of this file; nothing where it isn't a repository."""
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout.strip()
        return ""

    versions = {"version.python": platform.python_version()}
    versions |= {f"version.{name}": importlib.metadata.version(name) for name in _PACKAGES}
    # An installed copy can lie in somebody else's repository, whose commit would mean nothing.
    if git("ls-files", "--error-unmatch", __file__):
        versions["mlflow.source.git.commit"] = git("rev-parse", "HEAD")
        versions["git.clean"] = str(not git("status", "--porcelain")).lower()
    return versions
