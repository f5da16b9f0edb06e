"""Where runs are kept: addresses, opening a store, calls that say soon what is wrong, and mlflow's page."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock

from r2l.files import R2LError, atomic_path, local_path
from r2l.progress import quiet_loggers, variables

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
# What is in the core of requests' nested messages.
_REASONS = ("Connection refused", "timed out", "Name or service not known")
_LOCKED_TRIES = 6
_OPENING_SECONDS = 120  # to make all tables, on a machine that has much else to do
_START_SECONDS, _STOP_SECONDS = 120, 10  # of the server of the page
_AT_ONCE = {"params": 100, "tags": 100, "metrics": 1000}  # mlflow's limits


class Tag(StrEnum):
    """Tags of runs that say how they hang together."""

    PARENT = "mlflow.parentRunId"
    FOLDER = "r2l.folder"  # that is the run's alone
    FOLDER_ID = "r2l.folder_id"  # that no other has, on this machine or another
    REMOTE_RUN = "r2l.remote_run"  # of a kept run: the one that it goes on with
    REMOTE_STORE = "r2l.remote_store"  # where that is
    REGISTER = "r2l.register"  # a model of a kept run that is to be registered there
    UPLOADED = "r2l.uploaded_to"  # of a kept run that was sent whole


class TrackingError(R2LError, OSError):
    """A store that can't be opened, read or written."""


def store_address(store: str | Path | None = None) -> str:
    """Return the address of a store, as mlflow takes it.

    It is given as such (``sqlite:///...``, ``http://...``), as a SQLite file, or as a folder that holds (or
    will hold) ``mlflow.db``; None is the variable ``MLFLOW_TRACKING_URI``, else ``sqlite:///mlflow.db``.
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
    """Return a client of a store (see `store_address`) that answered, within seconds.

    With ``make`` a SQLite file that does not exist is made.

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
                stack.enter_context(FileLock(folder / ".opening.lock", timeout=_OPENING_SECONDS))
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
    for attempt in count(1):
        try:
            with _calm(_WRITING), _clear_errors(client.tracking_uri):
                return getattr(client, method)(*arguments, **options)
        except TrackingError as error:
            if "database is locked" not in str(error) or attempt == _LOCKED_TRIES:
                raise
            time.sleep(0.05 * 2**attempt)


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
    if found := call(client, "get_experiment_by_name", name):
        return found.experiment_id
    try:
        return call(client, "create_experiment", name, artifact_location=folder)
    except ValueError:
        # Another process made it just now; or it was deleted, which only its owner can undo.
        if found := call(client, "get_experiment_by_name", name):
            return found.experiment_id
        raise


def register_model(client: MlflowClient, run_id: str, path: str, name: str, alias: str | None) -> None:
    """Make ``path`` of a run a new version of the model ``name``."""
    with suppress(ValueError):  # it exists; a name that can't be is told below
        call(client, "create_registered_model", name)
    source = f"runs:/{run_id}/{path}"
    version = call(client, "create_model_version", name, source=source, run_id=run_id).version
    if alias:
        call(client, "set_registered_model_alias", name, alias, version)


def check_sqlite(path: Path, make: bool = False) -> None:
    """Raise where no such file is (unless ``make``) or none of SQLite: mlflow would try again for minutes."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                raise TrackingError(path, "no SQLite file", "Give another file for the runs")
    elif path.exists() or not make:
        why = "a folder" if path.exists() else "no such file"
        remedy = "Give the store that runs were written to, by `r2l train` or r2l.training.tracking.track"
        raise TrackingError(f"no store of runs at {path}", why, remedy)


def _make_aside(path: Path) -> None:
    """Make a SQLite file that does not exist under another name, and rename it once it is whole."""
    # Mlflow makes its tables in some seventy steps: killed between them, a process would leave a file that
    # mlflow never opens again.
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
            core = next((r for r in _REASONS if r in why), why.rsplit("Caused by ", 1)[-1].rstrip(")"))
            why = f"no answer ({core})"
        remedy = "Give sqlite:///FILE that can be written, a folder, or the http address of an mlflow server"
        if is_remote(address):
            remedy = "Start the server, or correct the address; without one, runs are kept in the working "
            remedy += f"folder ({_DEFAULT_STORE})"
        elif "locked" in why:
            remedy = "Another process holds it: wait until that ends, or give another store"
        what = f"the store can't be opened: {address}" if opening else address
        raise TrackingError(what, why, remedy) from error


@contextmanager
def _calm(limits: dict[str, str]) -> Iterator[None]:
    """Bound how long mlflow waits, unless the user said how long; let it print nothing: errors are raised."""
    wanted = {f"MLFLOW_HTTP_REQUEST_{name}": value for name, value in limits.items()} | _SILENT
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    with variables(ours), quiet_loggers("alembic", "mlflow", "urllib3", level=logging.CRITICAL):
        yield


@contextmanager
def serve(
    store: str | Path | None = None, host: str = "127.0.0.1", port: int = 5000
) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """Serve mlflow's page on a store for the length of a ``with`` block; SIGTERM ends it cleanly too.

    Of a store that is a server, which has a page of its own, only the address is given. Answered are the
    requests of this machine alone, unless ``host`` is another than 127.0.0.1.

    Raises:
        TrackingError: no such store, a port in use, or a server that does not start.
    """
    address = store_address(store)
    if path := sqlite_path(address):
        check_sqlite(path)  # all that a client would tell sooner than the server
    else:
        open_client(address)
    if is_remote(address):
        yield address, None
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"can't be used ({error.strerror})"
            raise TrackingError(f"{host}:{port}", reason, "choose another --port") from error
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    with tempfile.TemporaryFile() as log, _sigterm_as_ctrl_c():
        process = _start(address, host, port, log)
        try:
            _await_answer(url, process, log)
            yield url, process
        finally:
            # The server and its workers; with force if it takes them long.
            for sign in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
                with suppress(OSError):
                    os.killpg(process.pid, sign) if hasattr(os, "killpg") else process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                    break


def _start(address: str, host: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    if path := sqlite_path(address):
        # Beside the database: else files that others send would lie in the working folder.
        command += ["--artifacts-destination", str(path.resolve().parent / "mlartifacts")]
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # A queue for jobs that nobody here gives; it doubles the memory.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **os.environ,
    }
    # A session of its own: Ctrl-C reaches this process, which ends that one and its workers in order.
    return subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def _await_answer(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    last = (log.read().decode(errors="replace").strip() or "no reason given").splitlines()[-1]
    raise TrackingError("mlflow's server", f"did not start: {last}", "See to that, or try it again")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that the server is not left behind."""
    # Only the main thread may say so.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
