"""What processing, and `fit` itself, add to training: epochs beside one on images that are ready."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import Dataset

from benchmarks.timing import Contender
from benchmarks.workload import CLASSES, Workload
from r2l.datasets import Frames, RawFolder, develop_views
from r2l.isp import ParametrizedISP, StaticISP
from r2l.training import fit, make_classifier

READY, STATIC = "images that are ready", "bi,s,ga"
BARE = "a bare loop of torch, images that are ready"


class EpochWorkload(Workload):
    """Frames to be trained on, ``batch_size`` at a time; speed counts images a second.

    Args:
        count: how many frames.
        side: of each, in pixels.
        batch_size: frames a step.
        rounds: as of `Workload`.
        device: "cpu" or "cuda".
        network: what is trained.
        precision: of Lightning's trainer, such as "bf16-mixed".
    """

    def __init__(
        self,
        count: int,
        side: int,
        batch_size: int,
        rounds: int = 0,
        device: str = "cpu",
        network: str = "ResNet18",
        precision: str = "32-true",
    ) -> None:
        where = "" if device == "cpu" else "GPU, "
        name = f"{where}epoch of {network}, {count} x {side} x {side}, batches of {batch_size}"
        name += "" if precision == "32-true" else f", {precision}"
        super().__init__(name, count, side, side, rounds, True, device, "images/s", count)
        self.batch_size, self.network, self.precision = batch_size, network, precision

    @property
    def device_type(self) -> str:
        """What torch and Lightning call the device."""
        return torch.device(self.device).type

    @cached_property
    def files(self) -> RawFolder:
        """The frames as a folder of files, decoded in its cache; there until `close`."""
        self._folder = tempfile.TemporaryDirectory(prefix="r2l-bench-")
        root = Path(self._folder.name)
        for n, counts in enumerate(self.counts):
            path = root / "frames" / str(n % CLASSES) / f"{n}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, counts)
        folder = RawFolder(root / "frames", camera=self.camera, cache=root / "cache")
        for n in range(len(folder)):
            folder[n]
        return folder


def ready_images(frames: Frames) -> Frames:
    """Return images that need no processing: the frames themselves, as three equal channels."""
    return frames.seen_as(frames.raw.expand(-1, 3, -1, -1).contiguous())


class _Stopwatch(Callback):
    """Times the epoch by itself, without what `fit` does before and after."""

    seconds = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        _wait()
        self._start = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        _wait()
        self.seconds = time.perf_counter() - self._start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _train(work: EpochWorkload, data: Dataset, processor: nn.Module | None = None) -> float:
    """Train for an epoch and return its seconds."""
    watch = _Stopwatch()
    fit(
        partial(make_classifier, work.network, CLASSES),
        data,
        processor=processor,
        epochs=1,
        batch_size=work.batch_size,
        progress=False,
        callbacks=[watch],
        accelerator=work.device_type,
        precision=work.precision,
    )
    return watch.seconds


def _train_bare(work: EpochWorkload, data: Frames) -> float:
    """Do the same by the least that trains, and return its seconds."""
    model = make_classifier(work.network, CLASSES)
    model = model.to(work.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    reduced = work.precision == "bf16-mixed"
    _wait()
    start = time.perf_counter()
    for rows in torch.randperm(len(data)).split(work.batch_size):
        batch = {name: part.to(work.device) for name, part in data.batch(rows).items()}
        with torch.autocast(work.device_type, torch.bfloat16, enabled=reduced):
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _wait()
    return time.perf_counter() - start


def own_clock(call: Callable[[], float], times: int) -> float:
    """Add up the seconds that the calls say they took."""
    return sum(call() for _ in range(times))


def epoch_contenders(work: EpochWorkload) -> list[Contender]:
    """Return the epochs to compare; developing once counts in full against the one that needs it."""

    def ready() -> Callable[[], float]:
        return partial(_train, work, ready_images(work.frames()))

    def bare() -> Callable[[], float]:
        return partial(_train_bare, work, ready_images(work.frames()))

    def static() -> Callable[[], float]:
        isp, frames = StaticISP.from_code(STATIC, work.camera), work.frames()

        def call() -> float:
            start = time.perf_counter()
            views = develop_views(frames, {STATIC: isp}, device=work.device, progress=False)
            _wait()
            return time.perf_counter() - start + _train(work, views.view(STATIC))

        return call

    def static_anew() -> Callable[[], float]:
        return partial(_train, work, work.frames(), StaticISP.from_code(STATIC, work.camera))

    def parametrized(files: bool = False) -> Callable[[], float]:
        return partial(_train, work, work.files if files else work.frames(), ParametrizedISP(work.camera))

    lines = {
        READY: ready,
        BARE: bare,
        f"r2l {STATIC}, developed once, that included": static,
        f"r2l {STATIC}, in each step": static_anew,
        "r2l parametrized, trained too": parametrized,
        "r2l parametrized, trained too, frames from a cache of files": partial(parametrized, files=True),
    }
    against = {"x images ready": READY}
    return [
        Contender(work.name, name, work.amount, setup, {} if name == READY else against, own_clock)
        for name, setup in lines.items()
    ]


def epoch_workloads(quick: bool) -> list[EpochWorkload]:
    """Return the epochs that `make bench` measures; ``quick`` makes them small."""
    if quick:
        return [EpochWorkload(4, 32, 2, rounds=1, network="SmallResNet")]
    works = [EpochWorkload(32, 256, 8, rounds=3), EpochWorkload(640, 64, 32, rounds=7, network="SmallResNet")]
    if torch.cuda.is_available():
        works.append(EpochWorkload(512, 256, 64, rounds=5, device="cuda"))
        works.append(EpochWorkload(2048, 256, 256, rounds=5, device="cuda", precision="bf16-mixed"))
    return works
