"""The domains under which models are trained and tested: frames, and what develops them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets.frames import Frames
from r2l.datasets.splits import Fold
from r2l.isp import PIPELINES, open_pipeline
from r2l.isp.grammar import Pipelines, open_pipelines
from r2l.training.folds import fresh_model, train_fold, training_statistics
from r2l.training.models import ModelFactory, Statistics
from r2l.training.module import RawToLogits


@dataclass(frozen=True)
class Domain:
    """What a model meets: frames as some sensor recorded them, and the ISP that develops them.

    Attributes:
        frames: all domains of an experiment hold the same scenes in the same order.
        processor: raw (B, 1, H, W) to display RGB (B, 3, H, W); may be given as anything that
            `r2l.isp.open_pipeline` takes.
        normalisation: channel means and standard deviations, display units, that a task model
            trained here subtracts and divides by. None measures them on the developed training
            images. Either way they are fixed: nothing is normalised image by image or batch by batch,
            so that a change of brightness or colour reaches the model.
    """

    frames: Frames
    processor: nn.Module
    normalisation: Statistics | None = None

    def __post_init__(self) -> None:
        opened = open_pipeline(self.processor, self.frames.camera)
        object.__setattr__(self, "processor", opened)

    def statistics(self, indices: np.ndarray) -> Statistics:
        """Return the normalisation of a model that is trained on the frames ``indices``."""
        return self.normalisation or training_statistics(self.frames, indices, self.processor)

    def train(self, model: str | ModelFactory, fold: Fold, seed: int, **settings: Any) -> RawToLogits:
        """Train a fresh task model behind the ISP, see `train_fold`."""
        fresh = fresh_model(model, self.frames, self.statistics(fold.train))
        return train_fold(self.frames, fold, fresh, seed, processor=self.processor, **settings)


class RandomPipeline(nn.Module):
    """Develops each image by a pipeline drawn at random, anew each time; for training on all of them.

    Draws come from torch's global generator, which `r2l.training.fit` seeds and restores.

    Args:
        camera: layout and calibration.
        codes: pipelines to draw from, see `r2l.isp.develop_all`; all of one size of images.
        variant: "corrected", "paper" or "camera", see `StaticISP`.
    """

    def __init__(self, camera: Camera, codes: Pipelines = PIPELINES, variant: str = "corrected") -> None:
        super().__init__()
        if not codes:
            raise ValueError("no pipelines to draw from")
        self.pipelines = nn.ModuleList(open_pipelines(codes, camera, variant).values())

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) to display (B, 3, H, W)."""
        drawn = torch.randint(len(self.pipelines), (len(raw),))
        parts = {}
        for number in drawn.unique().tolist():
            chosen = (drawn == number).nonzero()[:, 0].to(raw.device)
            parts.update(zip(chosen.tolist(), self.pipelines[number](raw[chosen]), strict=True))
        if len(sizes := {tuple(image.shape[-2:]) for image in parts.values()}) > 1:
            raise ValueError(f"pipelines whose images are of several sizes make no batch: {sizes}")
        return torch.stack([parts[row] for row in range(len(raw))])


def check_domains(domains: Sequence[Domain]) -> None:
    """Raise unless all domains hold the same labels and groups, so that images can be paired.

    Raises:
        ValueError: they do not, or there are none.
    """
    if not domains:
        raise ValueError("no domains")
    first = domains[0].frames
    for other in (domain.frames for domain in domains):
        same = np.array_equal(first.labels, other.labels)
        if not same or not np.array_equal(first.groups, other.groups):
            raise ValueError(
                "domains hold different scenes: labels and groups have to be equal, in one order"
            )
