"""What a train x test matrix costs beside the models' own work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.calls import Call
from benchmarks.timing import Contender, cuda_clock, wall_clock
from benchmarks.workload import Workload
from r2l.datasets import develop_views
from r2l.datasets.frames import Item, RawDataset
from r2l.drift import Trained, predict_matrix
from r2l.isp import PIPELINES
from r2l.training import RawToLogits, make_classifier, predict, seeded

PURE = "models alone, on images that are ready"
_CLASSES = 9


class MatrixWorkload(Workload):
    """Frames that one model a pipeline is asked about in every pipeline; speed counts answers a second."""

    def __init__(self, count: int, side: int, model: str, rounds: int = 0, device: str = "cpu") -> None:
        where = "" if device == "cpu" else "GPU, "
        cells = f"{len(PIPELINES)} x {len(PIPELINES)}"
        name = f"{where}matrix {cells} of {model}, {count} x {side} x {side}"
        super().__init__(name, count, side, side, rounds, lengthy=True, device=device)
        self.model = model

    @property
    def unit(self) -> str:
        """What speed counts."""
        return "answers/s"

    @property
    def amount(self) -> float:
        """How many answers a matrix has."""
        return self.shape[0] * len(PIPELINES) ** 2

    def models(self) -> list[Trained]:
        """Return a model for each pipeline, which may be asked about every frame."""
        indices = np.arange(self.shape[0])
        with seeded(0):
            made = [RawToLogits(make_classifier(self.model, _CLASSES)) for _ in PIPELINES]
        return [
            Trained(module.to(self.device).eval(), code, indices)
            for code, module in zip(PIPELINES, made, strict=True)
        ]


class _Frames(RawDataset):
    """A workload's frames, with labels that mean nothing."""

    def __init__(self, work: MatrixWorkload) -> None:
        self.camera, self.frames = work.camera, work.raw.cpu()
        self.classes = tuple(map(str, range(_CLASSES)))
        self.groups = np.arange(len(self.frames))
        self.labels = self.groups % _CLASSES

    def read(self, index: int) -> Item:
        """Return one frame."""
        return {"raw": self.frames[index], "label": int(self.labels[index])}


def _pure(work: MatrixWorkload) -> Call:
    models = [trained.module.model for trained in work.models()]
    images = develop_views(_Frames(work), progress=False).images
    ready = [view.to(work.device).split(128) for view in images.values()]

    def call() -> list[Tensor]:
        with torch.inference_mode():
            return [model(batch) for model in models for view in ready for batch in view]

    return call


def _matrix(work: MatrixWorkload) -> Call:
    return partial(predict_matrix, work.models(), _Frames(work), progress=False)


def _loaders(work: MatrixWorkload) -> Call:
    models, frames = work.models(), _Frames(work)

    def call() -> list[object]:
        views = develop_views(frames, progress=False)
        held_out = {code: DataLoader(views.view(code), 128) for code in PIPELINES}
        accelerator = "cpu" if work.device == "cpu" else "gpu"
        return [predict(t.module, held_out, by="test", accelerator=accelerator) for t in models]

    return call


def matrix_contenders(work: MatrixWorkload) -> list[Contender]:
    """Return the ways to fill a matrix; developing the frames counts in full."""
    clock = wall_clock if work.device == "cpu" else cuda_clock
    lines: tuple[tuple[str, Callable[[MatrixWorkload], Call]], ...] = (
        (PURE, _pure),
        ("r2l predict_matrix, developing included", _matrix),
        ("r2l predict, through loaders, developing included", _loaders),
    )
    return [
        Contender(
            work.name,
            name,
            work.amount,
            partial(setup, work),
            {} if name == PURE else {"x models alone": PURE},
            clock=clock,
        )
        for name, setup in lines
    ]


def matrix_workloads(quick: bool) -> list[MatrixWorkload]:
    """Return the matrices that `make bench` fills; ``quick`` makes them small."""
    if quick:
        return [MatrixWorkload(2, 32, "SmallResNet", rounds=1)]
    works = [MatrixWorkload(100, 64, "SmallResNet", rounds=5)]
    if torch.cuda.is_available():
        works.append(MatrixWorkload(512, 256, "ResNet18", rounds=5, device="cuda"))
    return works
