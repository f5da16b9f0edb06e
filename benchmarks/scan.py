"""What a scan of one setting costs, beside the inference that it can't do without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.timing import Contender, cuda_clock, wall_clock
from benchmarks.workload import Workload
from r2l.drift.forensics import Frames, Prober, scan, task_model
from r2l.training import make_classifier, seeded

ALONE = "ResNet18 alone"
_CLASSES = 9


class ScanWorkload(Workload):
    """Frames that a ResNet18 is asked about under each value of a setting; speed counts images a second."""

    def __init__(self, count: int, side: int, points: int) -> None:
        name = f"scan of {points} points, ResNet18, {count} x {side} x {side}"
        super().__init__(name, count, side, side, rounds=1, lengthy=True)
        self.points = points

    @property
    def unit(self) -> str:
        """What speed counts."""
        return "images/s"

    @property
    def amount(self) -> float:
        """How many images the model is asked about."""
        return self.shape[0] * self.points

    def frames(self) -> Frames:
        """Return the frames, with labels that mean nothing, in groups of five."""
        count = self.shape[0]
        truth = torch.arange(count) % _CLASSES
        return Frames(self.raw, truth, np.arange(count) // 5, self.camera)


def scan_contenders(work: ScanWorkload) -> list[Contender]:
    """Return a scan of the exposure from nothing to its table, and one pass of inference alone."""
    with seeded(0):
        model = make_classifier("ResNet18", _CLASSES)

    def whole() -> Callable[[], object]:
        return lambda: scan(Prober(model, work.frames()), "exposure", work.points)

    def alone() -> Callable[[], object]:
        images = work.raw.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return partial(_infer, task_model(model), images, list(work.frames().steps()))

    clock = wall_clock if work.device == "cpu" else cuda_clock
    against = {f"x {ALONE}": ALONE}
    return [
        Contender(work.name, "r2l scan of exposure", work.amount, whole, against, clock=clock),
        Contender(work.name, ALONE, work.shape[0], alone, clock=clock),
    ]


def _infer(task: torch.nn.Module, images: torch.Tensor, steps: list[slice]) -> None:
    with torch.inference_mode():
        for step in steps:
            task(images[step])


def scan_workloads(quick: bool) -> list[ScanWorkload]:
    """Return the scan that `make bench` measures; ``quick`` makes it small."""
    return [ScanWorkload(10, 32, 3) if quick else ScanWorkload(200, 128, 21)]
