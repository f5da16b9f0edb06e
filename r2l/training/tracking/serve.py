"""mlflow's page over a store, served from a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from r2l.training.tracking.store import TrackingError, is_remote, open_client, sqlite_path

_START_SECONDS = 120
_STOP_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        address: of the page, and for `track`.
        process: of the server; None of one that somebody else has started.
    """

    address: str
    process: subprocess.Popen[bytes] | None

    def wait(self) -> None:
        """Return when the server ends, or at Ctrl-C."""
        with suppress(KeyboardInterrupt):
            if self.process:
                self.process.wait()


@contextmanager
def serve(
    store: str | Path | None = None, host: str = "127.0.0.1", port: int = 5000, *, make: bool = False
) -> Iterator[Server]:
    """Serve mlflow's page on a store for the length of a ``with`` block; SIGTERM ends it cleanly too.

    Args:
        store: see `store_address`. Of a server, which has a page of its own, only the address is given.
        host: whose requests are answered; "127.0.0.1" are those of this machine alone.
        port: where.
        make: whether a SQLite file that does not exist is made.

    Raises:
        TrackingError: no such store, a port in use, or a server that does not start.
    """
    address = open_client(store, make=make).tracking_uri
    if is_remote(address):
        yield Server(address, None)
        return
    _check_port(host, port)
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    with tempfile.TemporaryFile() as log, _sigterm_as_ctrl_c():
        process = _start(address, host, port, log)
        try:
            _await_answer(url, process, log)
            yield Server(url, process)
        finally:
            _stop(process)


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


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"can't be used ({error.strerror})"
            raise TrackingError(f"{host}:{port}", reason, "choose another --port") from error


def _await_answer(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
    raise TrackingError(
        "mlflow's server", f"did not start: {last[0] if last else 'no reason given'}", "Try it again"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers; with force if it takes them long."""
    for sign in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(OSError):
            os.killpg(process.pid, sign) if hasattr(os, "killpg") else process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that the server is not left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
