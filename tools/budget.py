"""A pytest plugin: two cores and 2 GB for each notebook, and a table of what it took.

`pytest -p tools.budget --nbval-lax notebooks` runs every notebook at its defaults, on two cores of
those that there are, adds up the memory of its kernel and the kernel's children, and fails when a
notebook takes more than ``--notebook-mb``. Where it runs, torch may be a build with CUDA, which
takes about 300 MB more than the CPU build on Binder; Jupyter's server, about 130 MB, is not in it.
With `-n 2 --dist loadfile` two notebooks run side by side, and each is booked as it is alone.
Seconds depend on the machine: they are shown, and marked above ``--notebook-seconds``, no more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tools.memory import Watch

CORES = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two limits."""
    group = parser.getgroup("notebooks' budget")
    group.addoption("--notebook-mb", type=float, default=2000.0, help="fail above (2000)")
    group.addoption("--notebook-seconds", type=float, default=180.0, help="mark above (180)")


@contextmanager
def two_cores() -> Iterator[None]:
    """Take two cores, which a kernel that is started inherits, where the system lets one choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Budget:
    """Book the time and the memory of each notebook."""

    def __init__(self, mb: float, seconds: float) -> None:
        self.mb = mb
        self.seconds = seconds
        self.watch = Watch()
        self.times: dict[str, float] = {}

    def over(self) -> list[str]:
        """Return the notebooks that took too much memory."""
        return [name for name, peak in self.watch.peaks.items() if peak > self.mb]

    def pytest_testnodedown(self, node: Any) -> None:
        """Take over the books of one of xdist's processes, which ran some of the notebooks."""
        books = getattr(node, "workeroutput", {}).get("budget", {})
        self.times |= books.get("times", {})
        self.watch.peaks |= books.get("peaks", {})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        """Watch while the tests run."""
        with self.watch:
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Book a cell's time, the kernel's start and end included, under its notebook; leave other tests."""
        name = self.watch.at = item.path.name if item.path.suffix == ".ipynb" else None
        if name is None:
            return (yield)
        start = time.perf_counter()
        try:
            with two_cores():
                return (yield)
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the whole run if a notebook took too much; one of xdist's processes hands over its books."""
        if hasattr(session.config, "workeroutput"):
            books = {"times": self.times, "peaks": self.watch.peaks}
            session.config.workeroutput["budget"] = books
            return
        if self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        terminalreporter.section("notebooks: seconds and peak MB")
        for name, seconds in sorted(self.times.items()):
            slow = f"  over {self.seconds:.0f} s" if seconds > self.seconds else ""
            big = f"  OVER {self.mb:.0f} MB" if name in self.over() else ""
            peak = self.watch.peaks.get(name, 0.0)
            terminalreporter.line(f"{name:40s} {seconds:7.1f} s {peak:7.0f} MB{slow}{big}")
        terminalreporter.line(f"{'all':40s} {sum(self.times.values()):7.1f} s")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the books."""
    config.pluginmanager.register(
        Budget(config.getoption("notebook_mb"), config.getoption("notebook_seconds")), "budget"
    )
