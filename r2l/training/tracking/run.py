"""Runs as they are written: settings, numbers, pictures, tensors, models."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.isp.saving import save_isp
from r2l.training.saving import save_model
from r2l.training.tracking.provenance import provenance
from r2l.training.tracking.sender import KEPT_FOLDER, PARENT, Sender
from r2l.training.tracking.store import open_client, store_address

_PARAMS_A_CALL = 100  # mlflow's limit


class Run:
    """One run that is being written; `track` makes it, `nested` makes its children.

    Names of artefacts may hold folders ("stages/gamma/epoch_003.png"). What a server does not take any
    more is kept in a local store, with a warning that says where; nothing is raised for that.

    Attributes:
        run_id: mlflow's name for it.
        experiment_id: the experiment it belongs to.
        store: address of the store, as ``mlflow ui --backend-store-uri`` takes it.
    """

    def __init__(self, sender: Sender, run_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = sender.experiment_id
        self.store = sender.address
        self._sender = sender

    @property
    def kept(self) -> str | None:
        """Address of the local store that the run goes on in since its server failed; None before."""
        return self._sender.kept

    def params(self, values: Mapping[str, Any]) -> None:
        """Write settings; a value is kept as its text and can't be changed later."""
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in values.items()]
        for start in range(0, len(params), _PARAMS_A_CALL):
            self._send("log_batch", params=params[start : start + _PARAMS_A_CALL])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Write numbers, at ``step`` (an epoch, a fold); characters mlflow forbids become ``_``."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_metric_name(k), float(v), now, step) for k, v in values.items()]
        self._send("log_batch", metrics=metrics)

    def figure(self, figure: Figure, name: str) -> None:
        """Write a figure as the artefact ``name`` ("matrix.png")."""
        self._send("log_figure", figure, name)

    def table(self, table: pd.DataFrame, name: str, index: bool = False) -> None:
        """Write a table as the artefact ``name`` ("cells.csv"), with its index if asked."""
        self._send("log_text", table.to_csv(index=index), name)

    def predictions(self, table: pd.DataFrame, name: str = "predictions.csv") -> None:
        """Write what `predict` returns, one row a sample, as the artefact ``name``."""
        self.table(table, name)

    def values(self, values: Any, name: str) -> None:
        """Write plain values (dicts, lists, numbers, texts) as the artefact ``name`` (.json)."""
        self._send("log_dict", values, name)

    def camera(self, camera: Camera, name: str = "camera.json") -> None:
        """Write a camera so that `r2l.rawfile.load_camera` reads it again."""
        self.values(camera.to_dict(), name)

    def split(self, indices: Mapping[str, Iterable[int]], name: str = "split.json") -> None:
        """Write which images lie on which side: indices by side ("train", "val", "test")."""
        plain = {side: np.asarray(list(i)).astype(int).tolist() for side, i in indices.items()}
        # One line: mlflow's own way of writing takes a line an index.
        self._send("log_text", json.dumps(plain) + "\n", name)

    def image(self, image: np.ndarray | Tensor, name: str) -> None:
        """Write a picture as the artefact ``name`` (.png), without loss beyond 8 bit.

        Args:
            image: (3, H, W), (1, H, W) or (H, W), display domain; what leaves [0, 1] becomes 0 or 1. Or
                uint8, as it is.
            name: of the artefact.

        Raises:
            ValueError: another shape.
        """
        picture = Image.fromarray(_eight_bit(image))
        with self.files() as folder:
            picture.save(_below(folder, name), format="PNG")

    def tensors(self, tensors: Mapping[str, Tensor | np.ndarray], name: str) -> None:
        """Write tensors as the artefact ``name`` (.npz or .safetensors); neither holds any code."""
        plain = {
            k: np.ascontiguousarray(torch.as_tensor(v).detach().cpu().numpy())
            for k, v in tensors.items()
        }
        with self.files() as folder:
            path = _below(folder, name)
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
            register: a name under which it is found later; its newest version.
            alias: a name of that version, so that ``models:/REGISTER@ALIAS`` is this model.

        Returns:
            ``runs:/RUN_ID/NAME``, for `resolve`.

        Raises:
            ValueError: what `save_isp` or `save_model` raise; or names that mlflow does not take.
        """
        with self.files() as folder:
            place = _below(folder, name)
            if description is None:
                save_isp(model, place)
            else:
                save_model(description, model, place)
        if register:
            self._sender.register(self.run_id, name, register, alias)
        return f"runs:/{self.run_id}/{name}"

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Yield an empty folder; what lies in it when the block ends well becomes artefacts."""
        with tempfile.TemporaryDirectory(prefix="r2l-") as folder:
            yield Path(folder)
            self._send("log_artifacts", folder)

    @contextmanager
    def nested(self, name: str, params: Mapping[str, Any] | None = None) -> Iterator[Run]:
        """Open a run below this one (a fold, a model) for the length of a ``with`` block."""
        with _run(self._sender, name, params, {PARENT: self.run_id}) as child:
            yield child

    def _send(self, method: str, *arguments: Any, **options: Any) -> None:
        self._sender.send(method, self.run_id, *arguments, **options)


@contextmanager
def track(
    experiment: str,
    run: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    store: str | Path | None = None,
    keep_in: str | Path = KEPT_FOLDER,
) -> Iterator[Run]:
    """Open a run for the length of a ``with`` block; an exception marks it as failed and goes on.

    Git commit and the versions of Python and the main packages are written by themselves. A server that
    fails on the way does not end the block: see `r2l.training.tracking.upload`.

    Args:
        experiment: name of the experiment; it is made if it does not exist.
        run: name of the run; mlflow thinks one up otherwise.
        params: settings, see `Run.params`.
        tags: further tags.
        store: address of the store, a SQLite file or a folder; else the variable
            ``MLFLOW_TRACKING_URI``, else `DEFAULT_STORE`, relative to the working folder.
        keep_in: folder for what a failing server does not take any more.

    Raises:
        TrackingError: the store can't be opened, which takes seconds to find out.
        ValueError: settings or names that mlflow does not take.
    """
    sender = Sender(open_client(store_address(store)), experiment, keep_in)
    tags = {**provenance(), **(tags or {})}
    with _run(sender, run, params, tags) as opened:
        yield opened


@contextmanager
def _run(
    sender: Sender, name: str | None, params: Mapping[str, Any] | None, tags: Mapping[str, str]
) -> Iterator[Run]:
    run_id = sender.create_run(name, tags)
    opened = Run(sender, run_id)
    status = "FAILED"
    try:
        opened.params(params or {})
        yield opened
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        sender.send("set_terminated", run_id, status)


def _metric_name(name: str) -> str:
    """Mlflow allows letters, digits and ``_-. /``; pipeline codes hold commas."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _eight_bit(image: np.ndarray | Tensor) -> np.ndarray:
    """Turn (C, H, W) or (H, W) to uint8 as Pillow takes it."""
    values = torch.as_tensor(image).detach().cpu().numpy()
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0) if values.shape[0] == 3 else values[0]
    elif values.ndim != 2:
        raise ValueError(
            f"a picture of shape {values.shape}, expected (3, H, W), (1, H, W), (H, W)"
        )
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    return np.round(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)


def _below(folder: Path, name: str) -> Path:
    """The path of an artefact in a folder, its own folder made."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ValueError(f"{name!r} is no name of an artefact; give one such as stages/gamma.png")
    path = folder / parts
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
