"""Going on with the records of a run that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from r2l.training.tracking.run import Run
from r2l.training.tracking.sender import KEPT_FOLDER, Sender
from r2l.training.tracking.store import call, open_client, store_address


def reopen(
    experiment: str,
    run_id: str,
    store: str | Path | None = None,
    keep_in: str | Path = KEPT_FOLDER,
) -> AbstractContextManager[Run]:
    """Open a run that exists for the length of a ``with`` block; it ends as in `track`.

    Raises:
        TrackingError: the store can't be opened, or has no such run; before the block begins.
    """
    sender = Sender(open_client(store_address(store)), experiment, keep_in)
    _adopt(sender, run_id)
    return _opened(Run(sender, run_id))


def reopen_nested(parent: Run, run_id: str) -> AbstractContextManager[Run]:
    """Open a run below ``parent`` again, as `reopen` does."""
    _adopt(parent._sender, run_id)
    return _opened(Run(parent._sender, run_id))


def _adopt(sender: Sender, run_id: str) -> None:
    """Have a sender know a run that it didn't make."""
    run = call(sender._client, "get_run", run_id)
    sender._made[run_id] = run.info.run_name, dict(run.data.tags)


@contextmanager
def _opened(run: Run) -> Iterator[Run]:
    run._send("update_run", status="RUNNING")
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run._send("set_terminated", status)
