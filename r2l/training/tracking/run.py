"""Runs as they are written: settings, numbers, pictures, tensors, models."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from r2l.files import csv_text, to_uint8
from r2l.isp.saving import save_isp
from r2l.training.saving import save_model
from r2l.training.tracking.outage import Sender
from r2l.training.tracking.records import PARENT
from r2l.training.tracking.store import batches, call, open_client

# Mlflow allows letters, digits and "_-. /" in names of metrics; pipeline codes hold commas.
_FORBIDDEN = re.compile(r"[^\w\-. /]")
_PACKAGES = ("r2l", "torch", "torchvision", "lightning", "numpy", "mlflow")


class Run:
    """One run that is being written; `track` makes it, `nested` makes its children.

    Names of artefacts may hold folders ("stages/gamma/epoch_003.png"). What a server does not take any
    more is kept in a local store, with a warning that says where; nothing is raised for that. ``store`` is
    the store's address, as ``mlflow ui --backend-store-uri`` takes it.
    """

    def __init__(self, sender: Sender, run_id: str) -> None:
        self.run_id, self._sender = run_id, sender
        self.experiment_id, self.store = sender.experiment_id, sender.address

    @property
    def kept(self) -> str | None:
        """Address of the local store that the run goes on in since its server failed; None before."""
        return self._sender.kept

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings; a value is kept as its text and can't be changed later."""
        from mlflow.entities import Param

        for batch in batches(params=[Param(key, str(value)) for key, value in values.items()]):
            self._send("log_batch", **batch)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Write numbers, at ``step`` (an epoch, a fold); characters mlflow forbids become ``_``."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_FORBIDDEN.sub("_", k), float(v), now, step) for k, v in values.items()]
        self._send("log_batch", metrics=metrics)

    def figure(self, figure: Figure, name: str) -> None:
        """Write a figure as the artefact ``name`` ("matrix.png")."""
        self._send("log_figure", figure, name)

    def table(self, table: pd.DataFrame, name: str, index: bool = False) -> None:
        """Write a table as the artefact ``name`` ("cells.csv"), with its index if asked."""
        self._send("log_text", csv_text(table, index), name)

    def values(self, values: Any, name: str) -> None:
        """Write plain values (dicts, lists or arrays, numbers, texts) as the artefact ``name`` (.json)."""
        # In a line: mlflow's own way of writing takes one for each of a list.
        self._send("log_text", json.dumps(values, default=lambda array: array.tolist()) + "\n", name)

    def image(self, image: np.ndarray | Tensor, name: str) -> None:
        """Write a picture as the artefact ``name`` (.png), without loss beyond 8 bit.

        It is (3, H, W), (1, H, W) or (H, W), display domain, of which what leaves [0, 1] becomes 0 or 1; or
        uint8, as it is. Another shape is a ValueError.
        """
        values = torch.as_tensor(image).detach().cpu().numpy()
        if values.ndim == 2:
            values = values[None]
        if values.ndim != 3 or values.shape[0] not in (1, 3):
            raise ValueError(f"a picture of shape {values.shape}, expected (3, H, W), (1, H, W), (H, W)")
        values = values if values.dtype == np.uint8 else to_uint8(values)
        picture = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0).copy())
        with self._file(name) as path:
            picture.save(path, format="PNG")

    def tensors(self, tensors: Mapping[str, Tensor | np.ndarray], name: str) -> None:
        """Write tensors as the artefact ``name`` (.npz or .safetensors); neither holds any code."""
        arrays = {name: torch.as_tensor(value).detach().cpu().numpy() for name, value in tensors.items()}
        plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
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
            model: an ISP of `r2l.isp`, or a task model.
            name: of the artefact, a folder.
            description: how the task model is made again, see `r2l.training.saving.save_model`; None
                for an ISP, which knows.
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
        self, name: str, params: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> AbstractContextManager[Run]:
        """Open a run below this one (a fold, a model); a new one, or ``run_id`` again, as in `track`."""
        return _opened(self._sender, run_id, name, params, {PARENT: self.run_id})

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

    def _send(self, method: str, *arguments: Any, **options: Any) -> None:
        self._sender.send(method, self.run_id, *arguments, **options)


@contextmanager
def track(
    experiment: str,
    run: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    store: str | Path | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """Open a run for the length of a ``with`` block; an exception marks it as failed and goes on.

    Git commit and the versions of Python and the main packages are written by themselves. A server that
    fails on the way does not end the block: see `r2l.training.tracking.upload`.

    Args:
        experiment: its name; it is made if it does not exist.
        run: a name; mlflow thinks one up otherwise.
        params, tags: settings, see `Run.params`, and further tags.
        store: see `store_address`.
        run_id: of a run that exists, to go on with it; it has its name and tags.

    Raises:
        TrackingError: the store can't be opened, which takes seconds to find out; or has no run ``run_id``.
        ValueError: settings or names that mlflow does not take.
    """
    client = open_client(store)
    sender = Sender(client, experiment)
    if run_id:
        stored = call(client, "get_run", run_id)
        run, tags = stored.info.run_name, stored.data.tags
    else:
        tags = {**_provenance(), **(tags or {})}
    with _opened(sender, run_id, run, params, tags) as opened:
        yield opened


@contextmanager
def _opened(
    sender: Sender,
    run_id: str | None,
    name: str | None,
    params: Mapping[str, Any] | None,
    tags: Mapping[str, str],
) -> Iterator[Run]:
    run_id = sender.open_run(run_id, name, dict(tags))
    run, status = Run(sender, run_id), "FAILED"
    try:
        run.params(params or {})
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        sender.send("set_terminated", run_id, status)


def _provenance() -> dict[str, str]:
    """The versions of Python and the main packages, and the git commit of this package's code."""
    versions = {"version.python": platform.python_version()}
    versions |= {f"version.{name}": importlib.metadata.version(name) for name in _PACKAGES}
    # An installed copy can lie in somebody else's repository, whose commit would mean nothing.
    if _git("ls-files", "--error-unmatch", __file__):
        versions["mlflow.source.git.commit"] = _git("rev-parse", "HEAD")
        versions["git.clean"] = str(not _git("status", "--porcelain")).lower()
    return versions


def _git(*arguments: str) -> str:
    """What git says about the folder of this file; nothing where it isn't a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
