"""What the contenders work on: the same frame or batch for all, made once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Contender, cuda_clock, wall_clock
from r2l.camera import DRONE, Camera
from r2l.datasets import Frames
from r2l.rawfile import write_dng
from r2l.rawfile.dng_tags import FULL_SCALE

#: Classes of the labels that mean nothing.
CLASSES = 9


class Workload:
    """A batch of raw frames of one size, in the forms that different contenders take.

    Args:
        name: heads the table.
        batch: number of frames.
        height, width: of a frame.
        rounds: how often each contender has its turn; 0 for what the run says.
        lengthy: whether contenders that take minutes or gigabytes on it are left out.
        device: where the tensor lies.
        unit: what speed counts: by default megapixels of raw data, on a GPU images, a second.
        amount: how much of it there is.
    """

    camera: Camera = DRONE

    def __init__(
        self,
        name: str,
        batch: int,
        height: int,
        width: int,
        rounds: int = 0,
        lengthy: bool = False,
        device: str = "cpu",
        unit: str = "",
        amount: float = 0,
    ) -> None:
        self.name, self.rounds, self.lengthy, self.device = name, rounds, lengthy, device
        self.shape = (batch, 1, height, width)
        self.pixels = batch * height * width
        self.unit = unit or ("MP/s" if device == "cpu" else "images/s")
        self.amount = amount or (self.pixels / 1e6 if device == "cpu" else batch)
        self._folder: tempfile.TemporaryDirectory | None = None

    def contender(
        self,
        name: str,
        setup: Callable[[], Callable[[], object]],
        against: Mapping[str, str] = MappingProxyType({}),
        amount: float = 0,
    ) -> Contender:
        """Return one that works on this, timed by the clock of the device."""
        clock = wall_clock if self.device == "cpu" else cuda_clock
        return Contender(self.name, name, amount or self.amount, setup, against, clock)

    def frames(self) -> Frames:
        """Return the frames as a data set, with labels that mean nothing, in groups of five."""
        numbers = np.arange(len(self.raw))
        return Frames(self.raw.cpu(), torch.from_numpy(numbers % CLASSES), numbers // 5, self.camera)

    @cached_property
    def raw(self) -> Tensor:
        """(B, 1, H, W), raw domain: patches of grey with noise, in 16-bit steps."""
        rng = np.random.default_rng(0)
        batch, _, height, width = self.shape
        patches = rng.random((batch, 1, -(-height // 16), -(-width // 16)), dtype=np.float32)
        scene = patches.repeat(16, 2).repeat(16, 3)[..., :height, :width]
        scene = 0.08 + 0.3 * scene + 0.02 * rng.random(self.shape, dtype=np.float32)
        return torch.from_numpy(np.round(scene * FULL_SCALE) / np.float32(FULL_SCALE)).to(self.device)

    @cached_property
    def mosaics(self) -> list[np.ndarray]:
        """Each frame as (H, W) float32."""
        return list(self.raw[:, 0].cpu().numpy())

    @cached_property
    def counts(self) -> list[np.ndarray]:
        """Each frame as (H, W) uint16."""
        return [np.round(m * FULL_SCALE).astype(np.uint16) for m in self.mosaics]

    @cached_property
    def gradient(self) -> Tensor:
        """(B, 3, H, W): what comes back from a loss."""
        batch, _, *size = self.shape
        return torch.full((batch, 3, *size), 1 / (3 * self.pixels), device=self.device)

    @cached_property
    def dng(self) -> Path:
        """The first frame as a DNG, there until `close`."""
        self._folder = tempfile.TemporaryDirectory(prefix="r2l-bench-")
        return write_dng(Path(self._folder.name) / "frame.dng", self.mosaics[0], self.camera)

    def close(self) -> None:
        """Remove the file and let the memory go."""
        if self._folder is not None:
            self._folder.cleanup()
        for name in ("raw", "mosaics", "counts", "gradient", "dng", "files"):
            self.__dict__.pop(name, None)


def standard_workloads(quick: bool) -> list[Workload]:
    """Return what `make bench` measures on; ``quick`` keeps the groups and shrinks the frames."""
    if quick:
        cpu = [Workload("batch of 2 x 64 x 64", 2, 64, 64), Workload("frame of 0.05 MP", 1, 192, 256)]
        cpu.append(Workload("frame of 0.1 MP", 1, 256, 384, rounds=1, lengthy=True))
    else:
        cpu = [
            Workload("batch of 8 x 256 x 256", 8, 256, 256),
            Workload("frame of 2 MP", 1, 1152, 1728),
            Workload("frame of 20 MP", 1, 3648, 5472, rounds=3, lengthy=True),
        ]
    if torch.cuda.is_available():
        batch = 8 if quick else 64
        cpu.append(Workload(f"GPU, batch of {batch} x 256 x 256", batch, 256, 256, device="cuda"))
        if not quick:
            cpu.append(Workload("GPU, frame of 5 MP", 1, 1920, 2560, device="cuda"))
    return cpu
