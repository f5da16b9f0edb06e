"""How much faster a sweep is with two workers than with one: `python -m tools.scaling`.

The same runs, one thread each, into fresh folders; the two take turns. What is timed is the whole
command, its workers' start and its report included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

GRID = """
train: {dataset: SyntheticMicroscopy, n_images: 200, image_size: 64, classifier_network: SmallResNet,
        epochs: 10, lr: 0.003, n_splits: 3, accelerator: cpu, log_model: false}
grid: {pipeline: ["bi,s,ga", "ma,s,ga", "me,s,ga", "me,u,me"], fold: [0, 1, 2], seed: [1, 2]}
"""


def seconds(workers: int) -> float:
    """Return the seconds of a sweep of 24 runs."""
    with tempfile.TemporaryDirectory(prefix="r2l-") as folder:
        Path(folder, "grid.yaml").write_text(GRID, "utf-8")
        line = [sys.executable, "-m", "r2l.cli", "sweep", "grid.yaml", "--threads", "1"]
        start = time.perf_counter()
        subprocess.run(
            [*line, "--workers", str(workers)],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 1,
    workers: Annotated[int, typer.Option(min=2, help="Against one.")] = 2,
) -> None:
    """Time a sweep of 24 runs with one worker and with several, in turns."""
    times: dict[int, list[float]] = {1: [], workers: []}
    for _ in range(rounds):
        for number in times:
            times[number].append(seconds(number))
            print(f"{number} worker(s): {times[number][-1]:.1f} s", flush=True)
    one, several = (statistics.median(times[number]) for number in times)
    print(f"{workers} workers against 1: {one / several:.2f} times as fast, {os.cpu_count()} cores")


if __name__ == "__main__":
    typer.run(main)
