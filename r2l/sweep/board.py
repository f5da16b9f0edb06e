"""How far a sweep is, and the same as a table that a terminal shows live."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from r2l.sweep.job import Job
from r2l.sweep.work import Result

Status = Literal["waiting", "running", "finished", "kept", "failed"]
#: Colour of each, and a sign for those who don't see it.
_STYLES = {"running": "cyan", "finished": "green", "kept": "green", "failed": "red bold"}
_ROWS = 12


@dataclass
class Entry:
    """Where one run stands.

    Attributes:
        job: the run.
        folder: where it lies.
        status: "kept" is finished by an earlier sweep.
        result: how it ended.
        host: worker that has it.
        since: when it was first seen running, by `time.monotonic`.
        ended: when it ended.
    """

    job: Job
    folder: Path
    status: Status = "waiting"
    result: Result | None = None
    host: str = ""
    since: float | None = None
    ended: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether it needs no worker any more."""
        return self.status in ("finished", "kept", "failed")

    def start(self, host: str) -> None:
        """Note that a worker has it."""
        if self.status == "waiting":
            self.status, self.since = "running", time.monotonic()
        self.host = host

    def wait(self) -> None:
        """Note that its worker is lost."""
        if not self.is_done:
            self.status, self.since, self.host = "waiting", None, ""

    def end(self, result: Result) -> None:
        """Note how it ended."""
        self.result, self.ended = result, time.monotonic()
        self.status = "failed" if result.error else "finished"
        self.host = result.host

    @property
    def outcome(self) -> str:
        """Its error, or its first score; nothing before its end."""
        if self.result is None:
            return ""
        first = next(iter(self.result.scores.items()), None)
        return self.result.error or (f"{first[0]} {first[1]:.3f}" if first else "")

    def line(self) -> str:
        """Say in a line how it ended."""
        if self.result is None:
            return f"{self.status:8}  {self.job.name}"
        tail = f"{':' if self.result.error else ','} {self.outcome}" if self.outcome else ""
        return f"{self.status:8}  {self.job.name}  {self.result.seconds:.0f} s{tail}"


@dataclass
class Board:
    """All runs of a sweep and where each stands."""

    entries: list[Entry]
    notes: list[str] = field(default_factory=list)

    def count(self) -> Counter[str]:
        """Return how many runs are in each state."""
        return Counter(entry.status for entry in self.entries)

    @property
    def left(self) -> list[Entry]:
        """The runs that still need a worker."""
        return [entry for entry in self.entries if not entry.is_done]

    @property
    def failed(self) -> list[Entry]:
        """The runs that failed."""
        return [entry for entry in self.entries if entry.status == "failed"]

    def table(self, rows: int = _ROWS) -> Table:
        """Return those that run, failed or ended last, at most ``rows``."""
        shown = sorted(
            (e for e in self.entries if e.since or e.ended),
            key=lambda e: (e.status == "running", e.status == "failed", e.ended or 0),
        )[-rows:]
        table = Table(box=None, pad_edge=False)
        for name in ("run", "state", "worker", "seconds", ""):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for entry in shown:
            result = entry.result
            seconds = result.seconds if result else time.monotonic() - entry.since
            state = Text(entry.status, style=_STYLES.get(entry.status, ""))
            table.add_row(entry.job.name, state, entry.host, f"{seconds:.0f}", Text(entry.outcome))
        return table


Show = Callable[[Board], None]


@contextmanager
def live_view(board: Board, console: Console | None = None) -> Iterator[Show]:
    """Yield what shows a board: a table and a bar in a terminal, elsewhere a line for each run that ends."""
    console = console or Console()
    if not console.is_terminal:
        yield _printer(console)
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
    task = bar.add_task("runs", total=len(board.entries))

    def picture() -> Group:
        count = board.count()
        words = ", ".join(f"{n} {status}" for status, n in count.items())
        bar.update(task, completed=sum(e.is_done for e in board.entries), description=words)
        return Group(board.table(max(console.height - 6, 4)), *map(Text, board.notes[-2:]), bar)

    with Live(picture(), console=console, refresh_per_second=2) as live:
        yield lambda _: live.update(picture())
        live.update(picture())


def _printer(console: Console) -> Show:
    told: set[int] = set()
    notes = 0

    def show(board: Board) -> None:
        nonlocal notes
        for note in board.notes[notes:]:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        notes = len(board.notes)
        for number, entry in enumerate(board.entries):
            if entry.is_done and entry.status != "kept" and number not in told:
                told.add(number)
                kept = sum(e.status == "kept" for e in board.entries)
                line = f"[{kept + len(told)}/{len(board.entries)}] {entry.line()}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    return show
