"""How much memory a tree of processes takes, watched from outside."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

MB = 1e6


def resident(process: psutil.Process) -> float:
    """Return the MB of a process that are in memory, shared or not; 0 if it has ended."""
    try:
        return process.memory_info().rss / MB
    except psutil.NoSuchProcess:
        return 0.0


def alone(process: psutil.Process) -> float:
    """Return the MB that a process shares with nobody (USS), all where the system won't tell."""
    try:
        return process.memory_full_info().uss / MB
    except psutil.AccessDenied:
        return resident(process)
    except psutil.NoSuchProcess:
        return 0.0


def used(processes: list[psutil.Process], at_least: float = 0.0) -> float:
    """Return the MB that processes hold together, or ``at_least`` if that is not less.

    What each holds alone is added up. What they share, libraries above all, counts once, as the
    largest share. PSS would divide a library by everybody on the machine who has it open, so that a
    notebook seemed the smaller the more others ran beside it. To ask who shares what stops a
    process for milliseconds, so it is asked only where the answer may be above ``at_least``.
    """
    all_of_it = [resident(process) for process in processes]
    if sum(all_of_it) <= at_least:
        return at_least
    if len(processes) == 1:
        return all_of_it[0]
    own = [alone(process) for process in processes]
    shared = (max(a - o, 0.0) for a, o in zip(all_of_it, own, strict=True))
    return max(sum(own) + max(shared), at_least)


def _listed(pid: int) -> Iterator[int]:
    """Yield the children of a process and theirs, as Linux lists them by the thread that started each."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # Threads and processes may end while they are asked.
            with suppress(FileNotFoundError, ProcessLookupError):
                for child in Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii").split():
                    yield int(child)
                    yield from _listed(int(child))


# psutil asks every process of the machine for its parent: milliseconds, ten times a second.
_LISTS = Path(f"/proc/self/task/{os.getpid()}/children").exists()


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return a process's children and theirs."""
    found = []
    if not _LISTS:
        with suppress(psutil.NoSuchProcess):
            found = process.children(recursive=True)
        return found
    for pid in _listed(process.pid):
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


class Watch:
    """Remember the highest sum of memory, in MB, of the children of a process, by name.

    ``watch.at = "first"`` says under which name to book what is seen from now on;
    ``watch.peaks`` is a dict from name to MB. A child counts from the second look at it: between
    fork and exec it still seems to hold all that its parent holds.

    Args:
        pid: the process whose children are watched (itself it is not); None: this one.
        every: seconds between two looks. What is held for a shorter time may be missed.
    """

    def __init__(self, pid: int | None = None, every: float = 0.1) -> None:
        self.process = psutil.Process(pid)
        self.every = every
        self.at: str | None = None
        self.peaks: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        known: set[psutil.Process] = set()
        while not self._ended.wait(self.every):
            if (name := self.at) is None:  # a look at all processes takes milliseconds
                known = set()
                continue
            now = children(self.process)
            self.peaks[name] = used([child for child in now if child in known], self.peaks.get(name, 0.0))
            known = set(now)

    def __enter__(self) -> Watch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()
