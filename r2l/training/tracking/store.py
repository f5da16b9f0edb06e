"""Where runs are kept: addresses, opening a store, and calls that end soon and say what is wrong."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from r2l.files import R2LError, atomic_path, local_path
from r2l.progress import quiet_loggers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

_DEFAULT_STORE = "sqlite:///mlflow.db"
_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
# What mlflow answers to a value that it will never take; anything else is the store's trouble.
_MISTAKES = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
# mlflow's own patience is seven retries of two minutes each.
_OPENING = {"MAX_RETRIES": "1", "BACKOFF_FACTOR": "0", "TIMEOUT": "5"}
_WRITING = {"MAX_RETRIES": "3", "BACKOFF_FACTOR": "1", "TIMEOUT": "30"}
_SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_LOCKED_TRIES = 6
_OPENING_SECONDS = 120  # to make all tables, on a machine that has much else to do
_AT_ONCE = {"params": 100, "tags": 100, "metrics": 1000}  # mlflow's limits


class TrackingError(R2LError, OSError):
    """A store that can't be opened, read or written."""


def store_address(store: str | Path | None = None) -> str:
    """Return the address of a store, as mlflow takes it.

    Args:
        store: an address (``sqlite:///...``, ``http://...``), a SQLite file, or a folder that holds (or
            will hold) ``mlflow.db``; None for the variable ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db``.
    """
    store = str(store or os.environ.get(_VARIABLE) or _DEFAULT_STORE)
    if store.startswith(f"{_SQLITE}~"):
        return f"{_SQLITE}{local_path(store.removeprefix(_SQLITE))}"
    if ":/" in store and not store.startswith("file:"):
        return store
    path = local_path(store)
    return f"{_SQLITE}{path if path.suffix == '.db' else path / 'mlflow.db'}"


def sqlite_path(address: str) -> Path | None:
    """Return the file of a SQLite store; None for any other."""
    return Path(address.removeprefix(_SQLITE)) if address.startswith(_SQLITE) else None


def is_remote(address: str) -> bool:
    """Tell whether a store is reached over a network."""
    return address.startswith(("http://", "https://"))


def open_client(store: str | Path | None = None, *, make: bool = True) -> MlflowClient:
    """Return a client of a store that answered, within seconds.

    Args:
        store: see `store_address`.
        make: whether a SQLite file that does not exist is made.

    Raises:
        TrackingError: the store can't be opened; names the address and the remedy.
    """
    address = store_address(store)
    path = sqlite_path(address)
    if path:
        check_sqlite(path, make)
    # Before the import, which would otherwise report usage to mlflow's makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # takes seconds: only for those who track

    with ExitStack() as stack:
        stack.enter_context(_calm(_OPENING))
        stack.enter_context(_clear_errors(address, opening=True))
        if path:
            # One process at a time: two that make its tables at once fail. In a read-only folder nothing
            # is made, and a lock that nobody gives back keeps nobody out.
            with suppress(OSError):
                folder = path.parent / "mlruns"
                folder.mkdir(parents=True, exist_ok=True)
                lock = FileLock(folder / ".opening.lock", timeout=_OPENING_SECONDS)
                stack.enter_context(lock)
            _make_aside(path)
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    return client


def call(client: MlflowClient, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of mlflow's client; wait a little where another process writes to the file.

    Raises:
        ValueError: mlflow does not take such a value.
        TrackingError: the store did not answer, or could not do it.
    """
    for attempt in range(1, _LOCKED_TRIES + 1):
        try:
            with _calm(_WRITING), _clear_errors(client.tracking_uri):
                return getattr(client, method)(*arguments, **options)
        except TrackingError as error:
            if "database is locked" not in str(error) or attempt == _LOCKED_TRIES:
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def find_run(client: MlflowClient, run_id: str) -> StoredRun | None:
    """Return what mlflow knows of a run, None where it has no such run; errors as in `call`."""
    try:
        return call(client, "get_run", run_id)
    except TrackingError as error:
        if "not found" not in str(error):
            raise
        return None


def batches(**entities: Sequence[Any]) -> Iterator[dict[str, Sequence[Any]]]:
    """Yield arguments of mlflow's ``log_batch``, no more at once than it takes."""
    for kind, values in entities.items():
        for start in range(0, len(values), _AT_ONCE[kind]):
            yield {kind: values[start : start + _AT_ONCE[kind]]}


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment, which is made if it does not exist."""
    path = sqlite_path(client.tracking_uri)
    # Any other store decides for itself.
    folder = (path.resolve().parent / "mlruns").as_uri() if path else None
    for last in (False, True):
        found = call(client, "get_experiment_by_name", name)
        if found:
            return found.experiment_id
        try:
            return call(client, "create_experiment", name, artifact_location=folder)
        except ValueError:
            # Another process made it just now; or it was deleted, which only its owner can undo.
            if last:
                raise
    raise AssertionError("unreachable")


def check_sqlite(path: Path, make: bool = False) -> None:
    """Find at once what mlflow would try again for minutes.

    Raises:
        TrackingError: no such file (unless ``make``), or none of SQLite.
    """
    if not path.is_file():
        if path.exists() or not make:
            raise TrackingError(
                f"no store of runs at {path}",
                "a folder" if path.exists() else "no such file",
                "Runs are written by `r2l train`, or by r2l.training.tracking.track; name their store "
                "with --store",
            )
        return
    with path.open("rb") as file:
        head = file.read(16)
    if head and head != b"SQLite format 3\0":
        raise TrackingError(path, "no SQLite file", "Give another file for the runs")


def _make_aside(path: Path) -> None:
    """Make a SQLite file that does not exist under another name, and rename it once it is whole.

    Mlflow makes its tables in some seventy steps: killed between them, a process would leave a file that
    mlflow never opens again.
    """
    # Not plain names: options of SQLite behind a "?", and ":memory:".
    if set(path.name) & set("?:") or (path.exists() and path.stat().st_size):
        return
    for left in path.parent.glob(f".{path.name}.*.part*"):
        left.unlink()
    with atomic_path(path) as partial:
        partial.touch()  # Where nothing can be written, mlflow would try for minutes.
        _make_tables(partial)


def _make_tables(path: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"{_SQLITE}{path}").search_experiments(max_results=1)


@contextmanager
def _clear_errors(address: str, opening: bool = False) -> Iterator[None]:
    """Turn the errors of mlflow and of what it calls into two, as in `call`; opening, into one."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # OSError: of requests, when a server refuses a file; or of the disk, when it is full.
    except (MlflowException, SQLAlchemyError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        why = why.splitlines()[0].removesuffix(".")
        if getattr(error, "error_code", None) in _MISTAKES and not opening:
            raise ValueError(why) from error
        if is_remote(address) and "HTTPConnectionPool" in why:
            why = f"no answer ({_innermost(why)})"
        what = f"the store can't be opened: {address}" if opening else address
        raise TrackingError(what, why, _remedy(address, why)) from error


def _innermost(message: str) -> str:
    """What is in the core of requests' nested messages: "Connection refused"."""
    for reason in ("Connection refused", "timed out", "Name or service not known"):
        if reason in message:
            return reason
    return message.rsplit("Caused by ", 1)[-1].rstrip(")")


def _remedy(address: str, why: str) -> str:
    if is_remote(address):
        return (
            "Start the server, or correct the address; without one, runs are kept in the working "
            f"folder ({_DEFAULT_STORE})"
        )
    if "locked" in why:
        return "Another process holds it: wait until that ends, or give another store"
    return "Give sqlite:///FILE that can be written, a folder, or the http address of an mlflow server"


@contextmanager
def _calm(limits: dict[str, str]) -> Iterator[None]:
    """Bound how long mlflow waits, unless the user said how long; let it print nothing.

    A new SQLite file is made in some seventy steps, each of which it would log. Errors come as exceptions,
    so that their log would only repeat them.
    """
    wanted = {f"MLFLOW_HTTP_REQUEST_{name}": value for name, value in limits.items()} | _SILENT
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        with quiet_loggers("alembic", "mlflow", "urllib3", level=logging.CRITICAL):
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
