"""Images developed once, before training, where the processing does not change during it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from r2l.progress import progress_bar

#: Bytes of images above which they are kept in a file instead of in memory.
MEMORY_LIMIT = 2 * 2**30


class Developed(Dataset):
    """The items of a data set of raw frames with their images, made beforehand by `develop`.

    Items are those of the data set with ``image`` (3, H, W), *display*, in the place of ``raw``. Reading one
    copies nothing.

    Attributes:
        images: (N, C, H, W) float32, in memory or in a temporary file that goes with them.
        others: what else each item holds.
        key: what an item's image is called: "image", or "raw" if nothing was developed.
    """

    def __init__(self, images: Tensor, others: list[dict[str, Any]], key: str = "image") -> None:
        self.images, self.others, self.key = images, others, key

    def __len__(self) -> int:
        return len(self.others)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.others[index], self.key: self.images[index]}


@torch.no_grad()
def develop(
    data: Dataset,
    isp: nn.Module | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    memory_limit: int = MEMORY_LIMIT,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Developed:
    """Develop each frame of a data set once, in batches.

    Args:
        data: items with ``raw`` (1, H, W), raw domain, all of one size.
        isp: raw (B, 1, H, W) to images (B, C, h, w); where items hold masks, smaller images are enlarged
            to fit. None keeps the frames as they are, for data sets that draw or decode each anew.
        batch_size: frames developed at once.
        device: where; the images are kept on the CPU.
        memory_limit: bytes of images above which they go to a memory-mapped temporary file.
        folder: of that file; the system's place for temporary files by default.
        progress: whether to show a bar.

    Raises:
        ValueError: no frames, or frames of several sizes.
        OSError: the file can't be written.
    """
    if len(data) == 0:
        raise ValueError("nothing to develop: no images")
    images, others = None, []
    isp = None if isp is None else copy.deepcopy(isp).to(device).eval()
    with progress_bar(total=len(data), desc="developing", disable=not progress) as bar:
        for start, raw, rest in _batches(data, batch_size):
            made = raw if isp is None else isp(raw.to(device)).float()
            if "mask" in rest[0] and made.shape[-2:] != raw.shape[-2:]:
                # A processor that halves the size: masks are as large as the frames.
                made = F.interpolate(made, raw.shape[-2:], mode="bilinear")
            if images is None:
                images = _room((len(data), *made.shape[1:]), memory_limit, folder)
            images[start : start + len(made)] = made
            others += rest
            bar.update(len(made))
    return Developed(images, others, "raw" if isp is None else "image")


def _batches(data: Dataset, size: int) -> Iterator[tuple[int, Tensor, list[dict[str, Any]]]]:
    """Yield first index, frames (B, 1, H, W) and what else their items hold."""
    shape = None
    for start in range(0, len(data), size):
        items = [dict(data[i]) for i in range(start, min(start + size, len(data)))]
        frames = [item.pop("raw") for item in items]
        for item in items:
            if "mask" in item:
                item["mask"] = item["mask"].to(torch.uint8)  # an eighth of the memory
        shape = shape or frames[0].shape
        for frame in frames:
            if frame.shape != shape:
                found = " and ".join(f"{s[-2]} x {s[-1]}" for s in (shape, frame.shape))
                raise ValueError(f"frames of several sizes ({found}) make no batch: crop them")
        yield start, default_collate(frames), items


def _room(shape: tuple[int, ...], limit: int, folder: str | Path | None) -> Tensor:
    """Return space for images (N, C, H, W) in memory or, above ``limit`` bytes, in a file."""
    if 4 * int(np.prod(shape)) <= limit:
        return torch.empty(shape)
    # Without a name where the system can do so: a killed process leaves nothing. The map keeps it open.
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
