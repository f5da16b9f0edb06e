"""Learned against frozen processing: does it help to train the ISP together with the task model?

The experiment of Oala et al., TMLR 2023, section on drift adjustment, with what makes the two arms
comparable: equal folds (groups kept whole), initial weights, order of images and normalisation; every answer
kept; several seeds; and no choice of an epoch by looking at the held-out images.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import LambdaCallback
from scipy import stats
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets.frames import Frames
from r2l.datasets.splits import Fold, group_folds
from r2l.drift.adjustment.methods import describe_isp
from r2l.drift.paired import paired_summary
from r2l.isp import PIPELINES, ParametrizedISP, open_pipeline
from r2l.isp.grammar import Pipelines, open_pipelines
from r2l.progress import progress_bar
from r2l.training.checkpoints import mixed_seed
from r2l.training.folds import fresh_model, train_fold, training_statistics
from r2l.training.models import ModelFactory, Statistics
from r2l.training.module import RawToLogits
from r2l.training.predict import predict

_ARMS = ("frozen", "learned")
_State = dict[str, Tensor]


@dataclass(frozen=True)
class Domain:
    """What a model meets: frames as some sensor recorded them, and the ISP that develops them.

    All domains of an experiment hold the same scenes in the same order.

    Attributes:
        processor: may be given as anything that `r2l.isp.open_pipeline` takes.
        normalisation: channel means and standard deviations, display units, that a task model trained here
            subtracts and divides by. None measures them on the developed training images. Either way they are
            fixed, so that a change of brightness or colour reaches the model.
    """

    frames: Frames
    processor: nn.Module
    normalisation: Statistics | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "processor", open_pipeline(self.processor, self.frames.camera))

    def statistics(self, indices: np.ndarray) -> Statistics:
        """Return the normalisation of a model that is trained on the frames ``indices``."""
        return self.normalisation or training_statistics(self.frames, indices, self.processor)

    def train(self, model: str | ModelFactory, fold: Fold, seed: int, **settings: Any) -> RawToLogits:
        """Train a fresh task model behind the ISP, see `train_fold`."""
        fresh = fresh_model(model, self.frames, self.statistics(fold.train))
        return train_fold(self.frames, fold, fresh, seed, processor=self.processor, **settings)


class RandomPipeline(nn.Module):
    """Develops each image by a pipeline drawn at random, anew each time; for training on all of them.

    Draws come from torch's global generator, which `r2l.training.fit` seeds and restores. The pipelines are
    as in `r2l.isp.develop_all`, all of one size of images.
    """

    def __init__(self, camera: Camera, codes: Pipelines = PIPELINES) -> None:
        super().__init__()
        if not codes:
            raise ValueError("no pipelines to draw from")
        self.pipelines = nn.ModuleList(open_pipelines(codes, camera).values())

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) to display (B, 3, H, W)."""
        drawn = torch.randint(len(self.pipelines), (len(raw),))
        parts = {}
        for number in drawn.unique().tolist():
            rows = (drawn == number).nonzero()[:, 0].to(raw.device)
            parts.update(zip(rows.tolist(), self.pipelines[number](raw[rows]), strict=True))
        if len(sizes := {tuple(image.shape[-2:]) for image in parts.values()}) > 1:
            raise ValueError(f"pipelines whose images are of several sizes make no batch: {sizes}")
        return torch.stack([parts[row] for row in range(len(raw))])


def check_domains(domains: Sequence[Domain]) -> None:
    """Raise a ValueError unless all domains hold the same labels and groups, so that images can be paired."""
    scenes = [(domain.frames.labels.tolist(), domain.frames.groups.tolist()) for domain in domains]
    if not scenes or any(scene != scenes[0] for scene in scenes):
        raise ValueError("domains hold different scenes: labels and groups have to be equal, in one order")


@dataclass(frozen=True)
class Learning:
    """What `compare_processing` found.

    Attributes:
        curves: one row for each domain, arm, seed, fold and epoch (from 1): ``train_loss``, ``val_accuracy``
            and so on, as `fit` logs them. Validation is on the held-out fold; nothing was chosen by it.
        answers: one row for each domain, arm, seed and image: what `predict` tells of the model of the last
            epoch, and ``fold``.
        initial: the ISP that each domain started from.
        states: the ISP's parameters before the first epoch and after each, by (domain, arm, seed, fold).
    """

    curves: pd.DataFrame
    answers: pd.DataFrame
    initial: dict[str, nn.Module]
    states: dict[tuple[str, str, int, int], list[_State]] = field(repr=False)

    def processor(
        self, domain: str, epoch: int = -1, *, arm: str = "learned", seed: int | None = None, fold: int = 0
    ) -> nn.Module:
        """Return the ISP of a training after ``epoch`` (0: before the first; -1: the last); of the first
        seed.

        Raises:
            ValueError: no such training, or epoch.
        """
        seed = next(iter(self.states))[2] if seed is None else seed
        states = self.states.get((domain, arm, seed, fold))
        if states is None:
            trainings = list(self.states)[:8]
            raise ValueError(f"no training {(domain, arm, seed, fold)}; there are {trainings} ...")
        if not -len(states) <= epoch < len(states):
            raise ValueError(f"epoch {epoch}; choose from 0 to {len(states) - 1}, or -1")
        isp = copy.deepcopy(self.initial[domain])
        isp.load_state_dict(states[epoch])
        return isp.requires_grad_(False)

    def parameters(self, domain: str) -> pd.DataFrame:
        """Return what was learned in physical terms (`describe_isp`), over all seeds and folds.

        One row a quantity: ``initial``, and of the learned ISPs the ``mean``, ``lowest``, ``highest``.

        Raises:
            ValueError: the ISP is no `ParametrizedISP`, or nothing was learned.
        """
        learnings = [key for key in self.states if key[:2] == (domain, "learned")]
        if not learnings or not isinstance(self.initial[domain], ParametrizedISP):
            raise ValueError(f"no ParametrizedISP was learned under {domain!r}")
        isps = [self.processor(domain, seed=seed, fold=fold) for *_, seed, fold in learnings]
        learned = pd.DataFrame([describe_isp(isp) for isp in isps]).agg(["mean", "min", "max"]).T
        learned.insert(0, "initial", pd.Series(describe_isp(self.initial[domain])))
        return learned.rename(columns={"min": "lowest", "max": "highest"})

    def summary(self, value: str = "correct", level: float = 0.95) -> pd.DataFrame:
        """Return score and paired difference to frozen of each domain, see `paired_summary`."""
        options = {"baseline": "frozen", "by": "domain", "value": value, "level": level}
        return paired_summary(self.answers, arm="arm", **options)

    def bands(self, column: str = "val_accuracy", level: float = 0.95) -> pd.DataFrame:
        """Return mean and interval of a learning curve at each epoch.

        Folds are averaged within a seed; the interval is Student's t over the seeds, of one seed its mean. A
        column that there is not is a ValueError.
        """
        if column not in self.curves:
            raise ValueError(f"no column {column!r}; choose from {', '.join(self.curves.columns)}")
        keys = ["domain", "arm", "epoch"]
        means = self.curves.groupby([*keys, "seed"], sort=False)[column].mean().unstack("seed")
        half = stats.t.ppf((1 + level) / 2, max(means.shape[1] - 1, 1)) * means.sem(axis=1).fillna(0)
        mean = means.mean(axis=1)
        return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half}).reset_index()


def compare_processing(
    domains: Mapping[str, Domain],
    *,
    arms: Sequence[str] = _ARMS,
    model: str | ModelFactory = "SmallResNet",
    n_splits: int = 5,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **settings: Any,
) -> Learning:
    """Train task models with the ISP learned along and with the ISP frozen at its initial values.

    Within a domain, fold and seed both arms start from the same weights and the same ISP, see the images in
    the same order and normalise by the same numbers (`Domain.normalisation`).

    Args:
        domains: by name; such as the same scenes at several intensities, or a pipeline whose initial values
            are off. Processors are `ParametrizedISP` or other modules with parameters.
        arms: "frozen", "learned".
        model: a name for `make_classifier`, or a function of number of classes, means and stds.
        n_splits: number of folds; every image is tested in one of them.
        seeds: of folds, initial weights and order; with several, everything is repeated.
        **settings: further arguments of `fit` (``epochs``, ``batch_size``, ``lr``, ``task``, ...).

    Raises:
        ValueError: an unknown arm, different scenes, or a processor without parameters that is to be learned.
    """
    if not arms or (unknown := set(arms) - set(_ARMS)):
        raise ValueError(f"unknown arms {sorted(unknown or [])}; choose from {', '.join(_ARMS)}")
    check_domains([*domains.values()])
    for name, domain in domains.items():
        if "learned" in arms and not [*domain.processor.parameters()]:
            kind = type(domain.processor).__name__
            raise ValueError(f"{name}: {kind} has nothing to learn; take a ParametrizedISP")
    frames = next(iter(domains.values())).frames
    folds = {seed: group_folds(frames.labels, frames.groups, n_splits, seed) for seed in seeds}
    jobs = [*product(seeds, range(n_splits), domains, arms)]
    curves, answers, states = [], [], {}
    with progress_bar(total=len(jobs), desc="training", disable=not progress) as bar:
        for seed, number, name, arm in jobs:
            cell = {"domain": name, "arm": arm, "seed": seed, "fold": number}
            bar.set_postfix_str(", ".join(map(str, cell.values())), refresh=False)
            domain, fold = domains[name], folds[seed][number]
            kept = states[name, arm, seed, number] = []

            def keep(_trainer: object, module: RawToLogits, kept: list[_State] = kept) -> None:
                numbers = getattr(module.processor, "numbers", module.processor.state_dict)()
                kept.append({name: value.detach().cpu().clone() for name, value in numbers.items()})

            trained = domain.train(
                model, fold, mixed_seed(seed, number), validate=True, freeze_processor=arm == "frozen",
                callbacks=[LambdaCallback(on_train_start=keep, on_train_epoch_end=keep)], **settings,
            )  # fmt: skip
            curve = trained.history.reset_index(drop=True).assign(**cell)
            curve.insert(0, "epoch", np.arange(1, len(curve) + 1))
            curves.append(curve)
            table = predict(trained, {name: domain.frames.subset(fold.test)}, by="domain")
            answers.append(table.assign(**cell))
            bar.update()
    initial = {name: copy.deepcopy(domain.processor) for name, domain in domains.items()}
    tables = (pd.concat(parts, ignore_index=True) for parts in (curves, answers))
    return Learning(*tables, initial, states)
