"""The domains under which models are trained and tested: frames, and what develops them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets.frames import Frames
from r2l.isp import PIPELINES, StaticISP
from r2l.training import channel_statistics, make_classifier

#: (n_classes, mean, std) to a task model; mean and std normalise its input, display units.
ModelFactory = Callable[[int, Sequence[float], Sequence[float]], nn.Module]


@dataclass(frozen=True)
class Domain:
    """What a model meets: frames as some sensor recorded them, and the ISP that develops them.

    Attributes:
        frames: all domains of an experiment hold the same scenes in the same order.
        processor: raw (B, 1, H, W) to display RGB (B, 3, H, W).
        normalisation: channel means and standard deviations, display units, that a task model
            trained here subtracts and divides by. None measures them on the developed training
            images. Either way they are fixed: nothing is normalised image by image or batch by batch,
            so that a change of brightness or colour reaches the model.
    """

    frames: Frames
    processor: nn.Module
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None

    def statistics(self, indices: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
        """Return the normalisation of a model that is trained on the frames ``indices``."""
        if self.normalisation is not None:
            return self.normalisation
        return channel_statistics(develop(self.processor, self.frames.raw[indices]))


@torch.no_grad()
def develop(processor: nn.Module, raw: Tensor, batch_size: int = 64) -> Tensor:
    """Develop (N, 1, H, W) to (N, 3, H, W) in batches, without gradients."""
    return torch.cat([processor(batch) for batch in raw.split(batch_size)])


class RandomPipeline(nn.Module):
    """Develops each image by a pipeline drawn at random, anew each time; for training on all of them.

    Draws come from torch's global generator, which `r2l.training.fit` seeds and restores.

    Args:
        camera: layout and calibration.
        codes: pipelines to draw from, such as "ma,s,ga".
        variant: "corrected" or "paper", see `StaticISP`.
    """

    def __init__(
        self, camera: Camera, codes: Sequence[str] = PIPELINES, variant: str = "corrected"
    ) -> None:
        super().__init__()
        if not codes:
            raise ValueError("no pipelines to draw from")
        self.pipelines = nn.ModuleList(StaticISP.from_code(c, camera, variant) for c in codes)

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) to display (B, 3, H, W)."""
        drawn = torch.randint(len(self.pipelines), (len(raw),))
        images = raw.new_empty(len(raw), 3, *raw.shape[-2:])
        for number in drawn.unique().tolist():
            chosen = (drawn == number).to(raw.device)
            images[chosen] = self.pipelines[number](raw[chosen])
        return images


def model_factory(model: str | ModelFactory, settings: Mapping[str, Any]) -> ModelFactory:
    """Return a function of number of classes, mean and std.

    A name is one for `make_classifier`; where ``settings`` (arguments of `fit`) have the task
    "segmentation", it names the encoder of `make_segmenter`.
    """
    if not isinstance(model, str):
        return model
    if settings.get("task") == "segmentation":
        from r2l.training.models import make_segmenter

        return lambda _classes, mean, std: make_segmenter(encoder=model, mean=mean, std=std)
    return partial(make_classifier, model)


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


def mixed_seed(*place: int) -> int:
    """Return one seed for a place (seed, fold) in an experiment; no two places share their draws."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])
