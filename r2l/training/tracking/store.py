"""Where runs are kept: addresses, opening a store, and calls that end soon and say what is wrong."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from r2l.files import atomic_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_STORE = "sqlite:///mlflow.db"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
# What mlflow answers to a value that it will never take; anything else is the store's trouble.
_MISTAKES = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
# mlflow's own patience is seven retries of two minutes each.
_OPENING = {"MAX_RETRIES": "1", "BACKOFF_FACTOR": "0", "TIMEOUT": "5"}
_WRITING = {"MAX_RETRIES": "3", "BACKOFF_FACTOR": "1", "TIMEOUT": "30"}
_LOCKED_TRIES = 6
_OPENING_SECONDS = 120  # to make all tables, on a machine that has much else to do


class TrackingError(OSError):
    """A store that can't be opened, read or written. Says which, why, and what to do about it."""


def store_address(store: str | Path | None = None) -> str:
    """Return the address of a store, as mlflow takes it.

    Args:
        store: an address (``sqlite:///...``, ``http://...``), a SQLite file, or a folder that holds (or
            will hold) ``mlflow.db``; None for the variable ``MLFLOW_TRACKING_URI``, else `DEFAULT_STORE`.
    """
    store = str(store or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)
    if ":/" in store:
        return store
    path = Path(store)
    return f"{_SQLITE}{path if path.suffix == '.db' else path / 'mlflow.db'}"


def sqlite_path(address: str) -> Path | None:
    """Return the file of a SQLite store; None for any other."""
    return Path(address.removeprefix(_SQLITE)) if address.startswith(_SQLITE) else None


def is_remote(address: str) -> bool:
    """Tell whether a store is reached over a network."""
    return address.startswith(("http://", "https://"))


def open_client(address: str, *, make: bool = True) -> MlflowClient:
    """Return a client of a store that answered, within seconds.

    Args:
        address: see `store_address`.
        make: whether a SQLite file that does not exist is made.

    Raises:
        TrackingError: the store can't be opened; names the address and the remedy.
    """
    _check_sqlite(address, make)
    # Before the import, which would otherwise report usage to mlflow's makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # takes seconds: only for those who track

    try:
        with _alone(address), _quiet_loggers(), _patience(_OPENING), _clear_errors(address):
            _make_aside(address)
            client = MlflowClient(tracking_uri=address, registry_uri=address)
            client.search_experiments(max_results=1)
    except (TrackingError, ValueError) as error:
        remedy = (
            "Start the server, or correct the address; without one, runs are kept in the working "
            f"folder ({DEFAULT_STORE})"
            if is_remote(address)
            else "Give sqlite:///FILE, a folder, or the http address of an mlflow server"
        )
        raise TrackingError(f"the store can't be opened: {error}.\n{remedy}.") from error
    return client


def call(client: MlflowClient, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of mlflow's client; wait a little where another process writes to the file.

    Raises:
        ValueError: mlflow does not take such a value.
        TrackingError: the store did not answer, or could not do it.
    """
    address = client.tracking_uri
    for attempt in range(_LOCKED_TRIES):
        try:
            with _quiet_loggers(), _patience(_WRITING), _clear_errors(address):
                return getattr(client, method)(*arguments, **options)
        except TrackingError as error:
            if "database is locked" not in str(error) or attempt + 1 == _LOCKED_TRIES:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is made if it does not exist."""
    for last in (False, True):
        found = call(client, "get_experiment_by_name", name)
        if found:
            return found.experiment_id
        folder = artefact_folder(client.tracking_uri)
        try:
            return call(client, "create_experiment", name, artifact_location=folder)
        except ValueError:
            # Another process made it just now; or it was deleted, which only its owner can undo.
            if last:
                raise
    raise AssertionError("unreachable")


def artefact_folder(address: str) -> str | None:
    """Return the folder ``mlruns`` beside a SQLite file; None lets any other store decide."""
    path = sqlite_path(address)
    return (path.resolve().parent / "mlruns").as_uri() if path else None


def _check_sqlite(address: str, make: bool) -> None:
    """Find at once what mlflow would try again for minutes."""
    path = sqlite_path(address)
    if path is None:
        return
    if not path.is_file():
        if path.exists() or not make:
            reason = "a folder" if path.exists() else "no such file"
            raise TrackingError(
                f"no store of runs at {path}: {reason}.\nRuns are written by `r2l train`, or "
                "by r2l.training.tracking.track; name their store with --store."
            )
        return
    with path.open("rb") as file:
        head = file.read(16)
    if head and head != b"SQLite format 3\0":
        raise TrackingError(f"{path} is no SQLite file.\nGive another file for the runs.")


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """Let one process at a time open a SQLite file: two that make its tables at once fail."""
    path = sqlite_path(address)
    if path is None:
        yield
        return
    folder = path.parent / "mlruns"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".opening.lock", timeout=_OPENING_SECONDS)
        lock.acquire()
    except (
        OSError
    ):  # a read-only folder, in which nothing is made, or a lock that nobody gives back
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _make_aside(address: str) -> None:
    """Make a SQLite file that does not exist under another name, and rename it once it is whole.

    Mlflow makes its tables in some seventy steps: killed between them, a process would leave a file that
    mlflow never opens again.
    """
    from mlflow import MlflowClient

    path = sqlite_path(address)
    # Not plain names: options of SQLite behind a "?", and ":memory:".
    if path is None or set(path.name) & set("?:") or (path.exists() and path.stat().st_size):
        return
    for left in path.parent.glob(f".{path.name}.*.part*"):
        left.unlink()
    with atomic_path(path) as partial:
        MlflowClient(tracking_uri=f"{_SQLITE}{partial}").search_experiments(max_results=1)


@contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        if error.error_code in _MISTAKES:
            raise ValueError(message) from error
        if is_remote(address) and "HTTPConnectionPool" in message:
            message = f"no answer ({_innermost(message)})"
        raise TrackingError(f"{address}: {message}") from error
    except OSError as error:
        # Of requests, when a server refuses a file; or of the disk, when it is full.
        raise TrackingError(f"{address}: {error}") from error


def _innermost(message: str) -> str:
    """What is in the core of requests' nested messages: "Connection refused"."""
    for known in ("Connection refused", "timed out", "Name or service not known"):
        if known in message:
            return known
    return message.rsplit("Caused by ", 1)[-1].rstrip(")")


@contextmanager
def _patience(limits: dict[str, str]) -> Iterator[None]:
    """Bound how long mlflow waits, unless the user said how long; let it print nothing."""
    wanted = {f"MLFLOW_HTTP_REQUEST_{name}": value for name, value in limits.items()}
    wanted["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    wanted["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """A new SQLite file is made in some seventy steps, each of which mlflow would print.

    Errors come as exceptions, so that their log would only repeat them.
    """
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
