"""What long work shows, a bar in any front end and none of Lightning's banners; its cores and variables."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class _NotebookBar(tqdm):
    """A bar that is one output of its cell, replaced in place, and stays on the page as text."""

    def __init__(self, **options: Any) -> None:
        self.handle: Any = None
        super().__init__(**{**options, "leave": True, "file": io.StringIO(), "ascii": False, "ncols": 80})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        from IPython.display import display

        content = {"text/plain": str(self) if msg is None else msg}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)


def _in_notebook() -> bool:
    return type(sys.stdout).__module__.startswith("ipykernel")


def progress_bar(**options: Any) -> tqdm:
    """Return a tqdm bar that redraws at most once a second; on a terminal it vanishes when closed.

    The options are tqdm's, such as ``total``, ``desc``, and ``disable`` to show none. In a notebook it is
    plain text that is replaced in place. Neither of tqdm's own would do there: the state of a widget is not
    kept when papermill executes a notebook, so that it would stand at zero on the page for ever, and a
    terminal's bar leaves a line for each time it was drawn.

    >>> with progress_bar(total=2, desc="counting", disable=True) as bar:
    ...     for _ in range(2):
    ...         bar.update()
    """
    bar = _NotebookBar if _in_notebook() else tqdm
    return bar(**{"leave": False, "mininterval": 1.0, **options})


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def quiet_loggers(*names: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let loggers speak from ``level`` on only, for a while."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(level)
        yield
    finally:
        for logger, before in levels.items():
            logger.setLevel(before)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's banners, tips and advice on workers off the page; errors still show."""
    with quiet_loggers("lightning.pytorch", "lightning.fabric"), warnings.catch_warnings():
        for advice in (
            ".*does not have many workers.*",
            ".*number of training batches.*",
            ".*in eval mode at the start of training.*",  # frozen parts are, on purpose
            ".*validation_step.*no.*val_dataloader.*",
            ".*`srun` command is available.*",  # on a cluster's login node
            ".*LeafSpec.*is deprecated.*",  # between Lightning and torch; nothing a user can do
        ):
            warnings.filterwarnings("ignore", message=advice)
        yield


def usable_cores() -> int:
    """Return how many cores a container or a queue leaves this process."""
    asked = getattr(os, "sched_getaffinity", None)  # not every system tells
    return len(asked(0)) if asked else os.cpu_count() or 1
