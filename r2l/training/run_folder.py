"""The folder of one run: what it needs to go on after a kill, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from r2l.files import atomic_path
from r2l.options import Options

NOTE = "run.json"
TESTED = "tested.csv"
#: Options that say how a run is carried out, not what comes out of it.
_FREE = ("resume", "folder", "num_workers")


class RunFolder:
    """One run on disk. Its parts are written whole or not at all, so that a kill leaves no halves.

    Attributes:
        path: the folder; ``fold_0``, ``fold_1``, ... lie in it.
        note: what is known of the run: key, options, ids of its records, whether it is finished.
        resumed: whether an earlier process began it.
    """

    def __init__(self, path: Path, note: dict[str, Any], resumed: bool) -> None:
        self.path, self.note, self.resumed = path, note, resumed

    def keep(self, **changes: Any) -> None:
        """Write down what is known of the run."""
        self.note |= changes
        with atomic_path(self.path / NOTE) as partial:
            partial.write_text(json.dumps(self.note, indent=1) + "\n", "utf-8")

    def fold(self, number: int) -> Path:
        """Return the folder of a fold; it is made if need be."""
        place = self.path / f"fold_{number}"
        place.mkdir(exist_ok=True)
        return place

    def predictions(self, number: int) -> pd.DataFrame | None:
        """Return the answers of a finished fold, None of any other."""
        place = self.path / f"fold_{number}" / "predictions.csv"
        return pd.read_csv(place) if place.exists() else None

    def tested(self, number: int) -> pd.DataFrame | None:
        """Return a finished fold's answers under the test pipelines, None where none were asked for."""
        place = self.path / f"fold_{number}" / TESTED
        return pd.read_csv(place) if place.exists() else None

    def finish_fold(self, number: int, predictions: pd.DataFrame) -> pd.DataFrame:
        """Keep the answers of a fold, which marks it as finished; its checkpoints go.

        Returns:
            The answers as they are kept, so that they are the same whether the run was interrupted or not.
        """
        place = self.fold(number)
        with atomic_path(place / "predictions.csv") as partial:
            predictions.to_csv(partial, index=False)
        _drop_checkpoints(place)
        return pd.read_csv(place / "predictions.csv")

    def tidy(self) -> None:
        """Remove what a process that was killed had still to remove: it is of no use any more."""
        for partial in self.path.rglob(".*.????????.part"):  # see atomic_path
            partial.unlink()
        for answers in self.path.glob("fold_*/predictions.csv"):
            _drop_checkpoints(answers.parent)


@contextmanager
def run_folder(options: Options, data: str) -> Iterator[RunFolder]:
    """Open the folder of a run for the length of a ``with`` block: a new one, or that of an interrupted run.

    A run is gone on with if its options and data are the same, it did not finish, and ``options.resume``.

    Args:
        options: of the run.
        data: a hash of its data set, see `Corpus.fingerprint`.

    Raises:
        ValueError: another process is at work on the same run.
    """
    plain = {k: v for k, v in asdict(options).items() if k not in _FREE}
    key = hashlib.sha256(json.dumps([plain, data], sort_keys=True).encode()).hexdigest()[:8]
    name = f"{_safe(options.run_name or 'run')}-{key}"
    parent = Path(options.folder) / _safe(options.experiment_name)
    parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parent / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is at work on this run ({parent / name}); wait for it, or give "
            "another --run_name"
        ) from None
    with lock:
        opened = _unfinished(parent, name) if options.resume else None
        if opened is None:
            number = 1 + sum(1 for _ in parent.glob(f"{name}-*"))
            path = parent / f"{name}-{number}"
            path.mkdir()
            opened = RunFolder(path, {}, resumed=False)
            opened.keep(key=key, options=plain, data=data, finished=False)
        else:
            opened.tidy()
        yield opened
        opened.keep(finished=True)


def _drop_checkpoints(place: Path) -> None:
    for checkpoints in place.glob("checkpoint*"):
        shutil.rmtree(checkpoints)


def _unfinished(parent: Path, name: str) -> RunFolder | None:
    """Return the newest run of this name that did not finish."""
    for place in sorted(parent.glob(f"{name}-*"), key=_number, reverse=True):
        try:
            note = json.loads((place / NOTE).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        return None if note["finished"] else RunFolder(place, note, resumed=True)
    return None


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _safe(name: str) -> str:
    """Return a name as files can have it."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"
