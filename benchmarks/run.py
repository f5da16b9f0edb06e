"""A whole run: every group in turn, then memory."""

from __future__ import annotations

import re

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks.calls import DEAREST
from benchmarks.contenders import contenders
from benchmarks.epochs import epoch_workloads
from benchmarks.evaluation import matrix_workloads
from benchmarks.memory import NAMES, peaks
from benchmarks.report import Report, environment
from benchmarks.scan import scan_workloads
from benchmarks.timing import Contender, SkippedError, interleave, summarise
from benchmarks.workload import Workload, standard_workloads

_LEAST_SECONDS = {True: 0.001, False: 0.1}


def run(
    quick: bool = False, only: str = "", rounds: int | None = None, workloads: list[Workload] | None = None
) -> Report:
    """Measure.

    Args:
        quick: small frames, one round, nothing compiled: to see that everything runs.
        only: a regular expression; contenders whose "group / name" doesn't match are left out.
        rounds: how often each has its turn; default 7, or 3 for large frames; 1 if ``quick``.
        workloads: what to work on; default `standard_workloads` and those of epochs, matrix and scan.

    Raises:
        ValueError: ``only`` is no regular expression or fits nothing; ``rounds`` is not positive.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected 1 or more")
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise ValueError(f"--only {only!r} is no regular expression: {error}") from None
    standard = [*standard_workloads(quick), *epoch_workloads(quick), *matrix_workloads(quick)]
    standard += scan_workloads(quick)
    works = standard if workloads is None else workloads
    groups = []
    for work in works:
        group = [c for c in contenders(work, quick) if wanted.search(f"{c.group} / {c.name}")]
        if group:
            groups.append((work, group))
    height, width = (1536, 2048) if quick else (3648, 5472)
    title = f"memory for a frame of {height * width / 1e6:.2g} MP"
    names = (f"r2l {DEAREST}",) if quick else NAMES
    remembered = tuple(name for name in names if wanted.search(f"{title} / {name}"))
    if not groups and not remembered:
        named = "they are named like 'frame of 2 MP / r2l bi,s,ga'"
        raise ValueError(f"--only {only!r} fits no contender; {named}")

    notes: list[str] = []
    if not torch.cuda.is_available():
        notes.append("GPU: left out, since torch finds no CUDA device.")
    seconds: dict[tuple[str, str], list[float]] = {}
    machine = environment()
    for work, group in groups:
        turns = rounds or work.rounds or (1 if quick else 7)
        for name, times in _measure(work, group, turns, quick, notes).items():
            seconds[work.name, name] = times
    everyone = [c for _, group in groups for c in group]
    rows = list(tqdm(peaks(height, width, remembered), title, len(remembered), leave=False))
    notes += [f"Memory of {row['contender']}: {row['note']}." for row in rows if "note" in row]
    return Report(
        machine,
        summarise(everyone, seconds),
        {work.name: work.unit for work in works},
        pd.DataFrame(rows, columns=["contender", "MiB", "x float32 picture"]),
        f"{title[0].upper()}{title[1:]}",
        notes,
        seconds,
    )


def _measure(
    work: Workload, group: list[Contender], rounds: int, quick: bool, notes: list[str]
) -> dict[str, list[float]]:
    """Set up the contenders of a group and let them take turns."""
    calls, left_out = {}, {}
    with tqdm(total=len(group) * (rounds + 2), desc=work.name, leave=False) as bar:

        def tick(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        try:
            for contender in group:
                try:
                    calls[contender.name] = contender.setup()
                except SkippedError as reason:
                    left_out.setdefault(str(reason), []).append(contender.name)
                tick(contender.name)
            for reason, names in left_out.items():
                notes.append(f"{work.name}: left out, since {reason}: {'; '.join(names)}.")
            present = [c for c in group if c.name in calls]
            return interleave(present, calls, rounds, _LEAST_SECONDS[quick], tick)
        finally:
            work.close()
            # Compiled code counts against a limit, past which torch silently stops compiling.
            torch.compiler.reset()
