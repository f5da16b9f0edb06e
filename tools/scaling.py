"""How much faster a sweep is with two workers than with one: `python -m tools.scaling`.

The same runs, one thread each, into fresh folders; the two take turns. Timed are the whole command, its
workers' start and its report included, and of that the time from the first run's begin to the last
one's end. A run takes some seconds: real ones are longer, so that the start weighs less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from r2l.sweep.jobs import RESULT

GRID = """
train: {dataset: SyntheticMicroscopy, n_images: 200, image_size: 64, classifier_network: SmallResNet,
        epochs: 6, lr: 0.003, n_splits: 3, accelerator: cpu, log_model: false}
grid: {pipeline: ["bi,s,ga", "ma,s,ga", "me,s,ga", "me,u,me"], fold: [0, 1, 2], seed: [1, 2]}
"""


def seconds(workers: int) -> tuple[float, float]:
    """Return the seconds of a sweep of 24 runs: of the whole command, and of the runs alone."""
    with tempfile.TemporaryDirectory(prefix="r2l-") as folder:
        Path(folder, "grid.yaml").write_text(GRID, "utf-8")
        line = [sys.executable, "-m", "r2l", "sweep", "grid.yaml", "--threads", "1"]
        start = time.perf_counter()
        subprocess.run(
            [*line, "--workers", str(workers)],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start, _runs(Path(folder))


def _runs(folder: Path) -> float:
    # A run writes its result last of all.
    ends = {path: path.stat().st_mtime for path in folder.rglob(RESULT)}
    starts = [end - json.loads(path.read_text("utf-8"))["seconds"] for path, end in ends.items()]
    return max(ends.values()) - min(starts)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 1,
    workers: Annotated[int, typer.Option(min=2, help="Against one.")] = 2,
) -> None:
    """Time a sweep of 24 runs with one worker and with several, in turns."""
    times: dict[int, list[tuple[float, float]]] = {1: [], workers: []}
    for _ in range(rounds):
        for number in times:
            whole, runs = seconds(number)
            times[number].append((whole, runs))
            print(f"{number} worker(s): {whole:.1f} s, the runs alone {runs:.1f} s", flush=True)
    one, several = ([statistics.median(column) for column in zip(*times[n], strict=True)] for n in times)
    whole, runs = (a / b for a, b in zip(one, several, strict=True))
    print(
        f"{workers} workers against 1, {os.cpu_count()} cores: {whole:.2f} times as fast, "
        f"the runs alone {runs:.2f}"
    )


if __name__ == "__main__":
    typer.run(main)
