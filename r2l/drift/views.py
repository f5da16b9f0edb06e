"""A data set developed by several pipelines, once, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from r2l.camera import Camera
from r2l.datasets import RawDataset
from r2l.isp import PIPELINES, develop_all
from r2l.training.quiet import progress_bar


@dataclass(frozen=True)
class Views:
    """A whole data set developed by several pipelines, in memory.

    Attributes:
        images: display RGB (N, 3, H, W) float32 of each pipeline, by its code, in one order.
        labels: class of each image (N,).
        groups: group of each image (N,).
        classes: names of the classes.
        camera: whose frames they were.
        masks: class of each pixel (N, H, W) or (N, 1, H, W), as the data set has them; None where the
            task is classification.
    """

    images: dict[str, Tensor]
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    camera: Camera
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def dataset(self, code: str, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return the images ``indices`` as pipeline ``code`` develops them, as a data set."""
        return _View(self, code, np.asarray(indices))


class _View(Dataset):
    """Items ``dict(image=(3, H, W), label=int | mask, meta=dict(image, group, pipeline))``."""

    def __init__(self, views: Views, code: str, indices: np.ndarray) -> None:
        self.views, self.code, self.indices = views, code, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self.indices[position])
        masks = self.views.masks
        answer = (
            {"label": int(self.views.labels[index])} if masks is None else {"mask": masks[index]}
        )
        return {
            "image": self.views.images[self.code][index],
            **answer,
            "meta": {
                "image": index,
                "group": int(self.views.groups[index]),
                "pipeline": self.code,
            },
        }


def develop_views(
    dataset: RawDataset,
    codes: Sequence[str] = PIPELINES,
    *,
    variant: str = "corrected",
    batch_size: int = 64,
    progress: bool = True,
) -> Views:
    """Develop every frame of ``dataset`` once by each of the pipelines ``codes``.

    Memory: 12 bytes a pixel and pipeline (300 tiles of 64x64 by 4 pipelines: 59 MB).

    Args:
        dataset: frames of one size, with ``camera``, ``labels``, ``groups`` and ``classes``.
        codes: pipelines such as "ma,s,ga".
        variant: "corrected" or "paper", see `StaticISP`.
        batch_size: frames developed at once.
        progress: whether to show a bar.

    Raises:
        ValueError: no frames, no codes, a code named twice, or one that does not exist.
    """
    codes = list(codes)
    if not codes or len(set(codes)) < len(codes) or len(dataset) == 0:
        raise ValueError(f"nothing to develop, or twice: {len(dataset)} frames by {codes}")
    images: dict[str, Tensor] = {}
    masks: list[Tensor] = []
    with progress_bar(total=len(dataset), desc="developing", disable=not progress) as bar:
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            items = [dataset[i] for i in indices]
            raw = torch.stack([item["raw"] for item in items])
            masks += [item["mask"] for item in items if "mask" in item]
            for code, view in develop_all(raw, dataset.camera, codes, variant).items():
                if code not in images:
                    images[code] = view.new_empty(len(dataset), *view.shape[1:])
                images[code][indices.start : indices.stop] = view
            bar.update(len(indices))
    return Views(
        images,
        dataset.labels,
        dataset.groups,
        tuple(dataset.classes),
        dataset.camera,
        torch.stack(masks) if masks else None,
    )
