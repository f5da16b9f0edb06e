"""What a train x test matrix costs beside the models' own work."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.calls import Call
from benchmarks.timing import Contender
from benchmarks.workload import CLASSES, Workload
from r2l.datasets import develop_views
from r2l.drift import Trained, predict_matrix
from r2l.isp import PIPELINES
from r2l.training import RawToLogits, make_classifier, predict, seeded

PURE = "models alone, on images that are ready"


class MatrixWorkload(Workload):
    """Frames that one model a pipeline is asked about in every pipeline; speed counts answers a second."""

    def __init__(self, count: int, side: int, model: str, rounds: int = 0, device: str = "cpu") -> None:
        where = "" if device == "cpu" else "GPU, "
        cells = f"{len(PIPELINES)} x {len(PIPELINES)}"
        name = f"{where}matrix {cells} of {model}, {count} x {side} x {side}"
        answers = count * len(PIPELINES) ** 2
        super().__init__(name, count, side, side, rounds, True, device, "answers/s", answers)
        self.model = model

    def models(self) -> list[Trained]:
        """Return a model for each pipeline, which may be asked about every frame."""
        indices = np.arange(self.shape[0])
        with seeded(0):
            made = [RawToLogits(make_classifier(self.model, CLASSES)) for _ in PIPELINES]
        return [
            Trained(module.to(self.device).eval(), code, indices)
            for code, module in zip(PIPELINES, made, strict=True)
        ]


def _pure(work: MatrixWorkload) -> Call:
    models = [trained.module.model for trained in work.models()]
    images = develop_views(work.frames(), progress=False).images
    ready = [view.to(work.device).split(128) for view in images.values()]

    def call() -> list[Tensor]:
        with torch.inference_mode():
            return [model(batch) for model in models for view in ready for batch in view]

    return call


def _matrix(work: MatrixWorkload) -> Call:
    return partial(predict_matrix, work.models(), work.frames(), progress=False)


def _loaders(work: MatrixWorkload) -> Call:
    models, frames = work.models(), work.frames()

    def call() -> list[object]:
        views = develop_views(frames, progress=False)
        held_out = {code: DataLoader(views.view(code), 128) for code in PIPELINES}
        accelerator = "cpu" if work.device == "cpu" else "gpu"
        return [predict(t.module, held_out, by="test", accelerator=accelerator) for t in models]

    return call


def matrix_contenders(work: MatrixWorkload) -> list[Contender]:
    """Return the ways to fill a matrix; developing the frames counts in full."""
    against = {"x models alone": PURE}
    return [
        work.contender(PURE, partial(_pure, work)),
        work.contender("r2l predict_matrix, developing included", partial(_matrix, work), against),
        work.contender("r2l predict, through loaders, developing included", partial(_loaders, work), against),
    ]


def matrix_workloads(quick: bool) -> list[MatrixWorkload]:
    """Return the matrices that `make bench` fills; ``quick`` makes them small."""
    if quick:
        return [MatrixWorkload(2, 32, "SmallResNet", rounds=1)]
    works = [MatrixWorkload(100, 64, "SmallResNet", rounds=5)]
    if torch.cuda.is_available():
        works.append(MatrixWorkload(512, 256, "ResNet18", rounds=5, device="cuda"))
    return works
