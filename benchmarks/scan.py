"""What a scan of one setting costs, beside the inference that it can't do without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.timing import Contender
from benchmarks.workload import CLASSES, Workload
from r2l.drift.forensics import Prober, scan, task_model
from r2l.training import make_classifier, seeded

ALONE = "ResNet18 alone"


class ScanWorkload(Workload):
    """Frames that a ResNet18 is asked about under each value of a setting; speed counts images a second."""

    def __init__(self, count: int, side: int, points: int) -> None:
        name = f"scan of {points} points, ResNet18, {count} x {side} x {side}"
        super().__init__(name, count, side, side, 1, True, unit="images/s", amount=count * points)
        self.points = points


def scan_contenders(work: ScanWorkload) -> list[Contender]:
    """Return a scan of the exposure from nothing to its table, and one pass of inference alone."""
    with seeded(0):
        model = make_classifier("ResNet18", CLASSES)

    def whole() -> Callable[[], object]:
        return lambda: scan(Prober(model, work.frames()), "exposure", work.points)

    def alone() -> Callable[[], object]:
        images = work.raw.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return partial(_infer, task_model(model), images, list(work.frames().steps()))

    return [
        work.contender("r2l scan of exposure", whole, {f"x {ALONE}": ALONE}),
        work.contender(ALONE, alone, amount=work.shape[0]),
    ]


def _infer(task: torch.nn.Module, images: torch.Tensor, steps: list[slice]) -> None:
    with torch.inference_mode():
        for step in steps:
            task(images[step])


def scan_workloads(quick: bool) -> list[ScanWorkload]:
    """Return the scan that `make bench` measures; ``quick`` makes it small."""
    return [ScanWorkload(10, 32, 3) if quick else ScanWorkload(200, 128, 21)]
