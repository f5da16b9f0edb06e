"""The measurement: contenders take turns, round by round, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

#: Calls the first argument so many times in a row and returns the seconds that took.
Clock = Callable[[Callable[[], object], int], float]


class SkippedError(Exception):
    """A contender that can't run here; the text says why."""


def wall_clock(call: Callable[[], object], times: int) -> float:
    """Time by the clock on the wall."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - start


def cuda_clock(call: Callable[[], object], times: int) -> float:
    """Time by events on the GPU, from when it is idle until it is idle again."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        group: the workload; contenders of a group take turns.
        name: unique within the group.
        amount: what one call gets done, in the unit of the group, such as megapixels.
        setup: makes the call to be timed; may raise `SkippedError`.
        against: peers in the group by title of a column that shows this one's speed as a multiple of
            theirs; a peer that is not there leaves the column empty.
        clock: how calls are timed.
    """

    group: str
    name: str
    amount: float
    setup: Callable[[], Callable[[], object]]
    against: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = wall_clock


def interleave(
    contenders: Sequence[Contender],
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    least_seconds: float = 0.1,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Time all contenders once a round; each round another one begins.

    A contender that is quicker than ``least_seconds`` runs several times in a row in its turn, after one
    call that doesn't count, since the one before it has left its own data in the caches.

    Args:
        contenders: whom to time.
        calls: what their ``setup`` returned, by name.
        rounds: how often each has its turn.
        least_seconds: how long a turn lasts at least.
        tick: told the name of each contender whose turn is over, rounds and the first trial alike.

    Returns:
        The seconds of one call, by name, in the order of the rounds.
    """
    repeats, times = {}, {c.name: [] for c in contenders}
    for contender in contenders:
        # The first call loads and allocates what later ones find; that hardly matters to a long one.
        once = contender.clock(calls[contender.name], 1)
        if once < 1:
            once = contender.clock(calls[contender.name], 1)
        repeats[contender.name] = max(1, round(least_seconds / max(once, 1e-9)))
        tick(contender.name)
    for turn in range(rounds):
        first = turn % max(len(contenders), 1)
        for contender in (*contenders[first:], *contenders[:first]):
            call, count = calls[contender.name], repeats[contender.name]
            if count > 1:
                call()
            times[contender.name].append(contender.clock(call, count) / count)
            tick(contender.name)
    return times


def summarise(
    contenders: Sequence[Contender], times: Mapping[tuple[str, str], Sequence[float]]
) -> pd.DataFrame:
    """Tabulate speeds: one row a contender that has times.

    Args:
        contenders: whom; those without times are left out.
        times: seconds of one call by (group, name), in the order of the rounds.

    Returns:
        Columns group, contender, speed (median), low and high (quartiles), then one a title of
        ``against``: the median over rounds of the ratio of speeds within a round.
    """
    speeds = {
        (c.group, c.name): c.amount / np.asarray(times[c.group, c.name])
        for c in contenders
        if (c.group, c.name) in times
    }
    rows = []
    for contender in contenders:
        own = speeds.get((contender.group, contender.name))
        if own is None:
            continue
        low, median, high = np.percentile(own, (25, 50, 75))
        row = {"group": contender.group, "contender": contender.name}
        row |= {"speed": median, "low": low, "high": high}
        for title, peer in contender.against.items():
            if (contender.group, peer) in speeds:
                row[title] = float(np.median(own / speeds[contender.group, peer]))
        rows.append(row)
    return pd.DataFrame(rows)
