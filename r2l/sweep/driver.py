"""The sweep itself: what is not finished goes to the workers, until nothing is left."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console

from r2l.files import atomic_path
from r2l.sweep.board import Board, Entry, Show, live_view
from r2l.sweep.engine import ClusterError, Engine
from r2l.sweep.grid import Sweep
from r2l.sweep.job import code_version
from r2l.sweep.notebook import ParameterError
from r2l.sweep.work import Result, Setting, carry_out, read_result
from r2l.training.tracking import store_address
from r2l.training.tracking.store import open_client, sqlite_path

if TYPE_CHECKING:
    from distributed import Client, Future

NOTE = "sweep.json"
#: Losses of the scheduler in a row, with no run finished between, after which a sweep gives up.
_LOSSES = 5
_LOOK = 0.5  # seconds


class _LostError(Exception):
    """The scheduler does not know of our runs any more."""


def open_board(sweep: Sweep, folder: Path, *, any_code: bool = False) -> Board:
    """Return where the runs of a sweep stand by what lies in its folder.

    Args:
        sweep: the runs.
        folder: of the sweep.
        any_code: count runs that another version of the code finished, too.
    """
    code = code_version()
    entries = []
    for job in sweep.jobs:
        place = job.folder(folder.resolve() / "runs", code, any_code)
        result = read_result(place)
        entries.append(Entry(job, place, "kept" if result else "waiting", result))
    return Board(entries)


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    engine: Engine,
    *,
    store: str | None = None,
    any_code: bool = False,
    limit: int | None = None,
    console: Console | None = None,
) -> Board:
    """Carry out the runs of a sweep that aren't finished, and return how each ended.

    A run that fails leaves its log and its error, and does not stop the others. One whose worker dies is
    given to another one. When the scheduler is lost, a new connection is made and what is left is sent again.
    Everything that is finished is on disk, so that a sweep that was stopped in whatever way goes on when
    it is called again.

    Args:
        sweep: what to run.
        folder: of the sweep; each run has one in it. All workers must see it under the same path.
        engine: where to run it.
        store: address of the mlflow store, see `store_address`.
        any_code: take finished runs of other versions of the code as finished.
        limit: at most so many of the runs that are left, the first ones.
        console: where to show how far it is; by default the terminal.

    Raises:
        ParameterError: another process is at work in the folder.
        ClusterError: no workers, or they were lost again and again.
        OSError: folder or store can't be written.
    """
    from distributed.utils import silence_logging_cmgr

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        setting = setting_of(sweep, engine, store)
        open_client(setting.store)  # Noticed now, and made once, not by all workers together.
        board = open_board(sweep, folder, any_code=any_code)
        if limit is not None:
            beyond = {id(entry) for entry in board.left[limit:]}
            board.entries = [entry for entry in board.entries if id(entry) not in beyond]
        # What a loss means for the runs the board says; Dask's tracebacks would go right through it.
        with silence_logging_cmgr(logging.CRITICAL), live_view(board, console) as show:
            show(board)
            _until_done(board, engine, setting, show)
        _keep_note(folder, sweep, setting, board)
    return board


def setting_of(sweep: Sweep, engine: Engine, store: str | None = None) -> Setting:
    """Return what the runs of a sweep share; they work in this process's working folder."""
    store = _absolute(store_address(store))
    return Setting(sweep.name, store, str(Path.cwd()), code_version(), engine.threads)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ParameterError(
            f"another process is at work on this sweep ({folder}); wait for it, or give another --folder"
        ) from None


def _absolute(store: str) -> str:
    """Return an address that means the same on a worker, whatever folder that is in."""
    path = sqlite_path(store)
    return store if path is None else f"sqlite:///{path.resolve()}"


def _until_done(board: Board, engine: Engine, setting: Setting, show: Show) -> None:
    losses = 0
    while board.left:
        before = len(board.left)
        try:
            with engine.connect() as client:
                _round(client, board, setting, show)
        except _LostError as error:
            losses = 0 if len(board.left) < before else losses + 1
            if losses == _LOSSES:
                raise ClusterError(
                    f"the scheduler was lost {losses} times in a row and no run finished between; what is "
                    "finished is kept: look at the scheduler's log, then give the same command again"
                ) from error
            for entry in board.entries:
                entry.wait()
            board.notes.append(f"the scheduler was lost ({error}): connecting again")
            show(board)
            time.sleep(min(losses, 5))


def _round(client: Client, board: Board, setting: Setting, show: Show) -> None:
    """Send all that is left to the workers of one scheduler and wait for it.

    Raises:
        _LostError: the scheduler went, or came again without memory.
    """
    sent = {}
    for entry in board.left:
        # The time makes it another task than that of a round before.
        key = f"{entry.folder.name}-{time.time_ns()}"
        future = client.submit(
            carry_out, entry.job, str(entry.folder), setting, key=key, pure=False
        )
        sent[future] = entry
    try:
        while sent:
            for future in [f for f in sent if f.done()]:
                sent.pop(future).end(_outcome(future))
            if client.status != "running":
                raise _LostError(f"connection {client.status}")
            _note_running(client, sent)
            show(board)
            time.sleep(_LOOK)
    except (OSError, TimeoutError, CancelledError) as error:
        raise _LostError(str(error) or type(error).__name__) from error


def _outcome(future: Future) -> Result:
    """Return what a worker returned, or what became of it.

    Raises:
        _LostError: the scheduler has forgotten the task.
    """
    from distributed import KilledWorker

    if future.status in ("cancelled", "lost"):
        raise _LostError("it has forgotten the runs")
    try:
        return future.result()
    except KilledWorker as error:
        place = getattr(error.last_worker, "address", "")
        times = error.allowed_failures + 1
        return Result(0.0, place, error=f"its worker died {times} times: out of memory?")
    except (OSError, CancelledError, TimeoutError):
        raise
    except Exception as error:
        return Result(0.0, "", error=f"{type(error).__name__}: {error}")


def _note_running(client: Client, sent: dict[Future, Entry]) -> None:
    by_key = {future.key: entry for future, entry in sent.items()}
    for worker, keys in client.processing().items():
        # A worker does one run at a time; others that it was given wait at its door.
        for key in keys[:1]:
            if key in by_key:
                by_key[key].start(worker.rpartition("//")[2])


def _keep_note(folder: Path, sweep: Sweep, setting: Setting, board: Board) -> None:
    note = {
        "name": sweep.name,
        "about": sweep.about,
        "code": setting.code,
        "store": setting.store,
        "runs": [
            {
                "name": entry.job.name,
                "folder": os.path.relpath(entry.folder, folder),
                "status": entry.status,
                "parameters": entry.job.parameters,
                "result": asdict(entry.result) if entry.result else None,
            }
            for entry in board.entries
        ],
    }
    with atomic_path(folder / NOTE) as partial:
        partial.write_text(json.dumps(note, indent=1, default=str) + "\n", "utf-8")
