"""Two experiments: is it worth to learn the ISP with the task model, and which adaptation helps?

`compare_processing` is the experiment of Oala et al., TMLR 2023, section on drift adjustment, with what makes
the arms comparable: equal folds, weights, order of images and normalisation; every answer kept; several
seeds; no choice of an epoch by looking. `adaptation_experiment` adapts trained models to a change, by each
method, and asks them about groups that neither has seen.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import LambdaCallback
from scipy import stats
from torch import Tensor, nn

from r2l.datasets.frames import Frames
from r2l.datasets.splits import Fold, group_folds
from r2l.drift.adjustment.methods import COMPARED, LABELLED, METHODS, adapt, describe_isp
from r2l.drift.adjustment.objectives import source_statistics
from r2l.drift.paired import paired_summary
from r2l.files import choose
from r2l.isp import PIPELINES, ParametrizedISP, open_pipeline
from r2l.isp.grammar import Pipelines, RandomPipeline
from r2l.progress import progress_bar
from r2l.training.checkpoints import mixed_seed, seeded
from r2l.training.folds import fresh_model, train_fold, training_statistics
from r2l.training.models import ModelFactory, Statistics
from r2l.training.module import RawToLogits
from r2l.training.predict import predict

_ARMS = ("frozen", "learned")


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
        with seeded(seed):  # some pipelines draw
            statistics = self.statistics(fold.train)
        fresh = fresh_model(model, self.frames, statistics)
        return train_fold(self.frames, fold, fresh, seed, processor=self.processor, **settings)


def _check_domains(domains: Sequence[Domain]) -> None:
    """Raise a ValueError unless images can be paired: equal labels and groups."""
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
    states: dict[tuple[str, str, int, int], list[dict[str, Tensor]]] = field(repr=False)

    def processor(
        self, domain: str, epoch: int = -1, *, arm: str = "learned", seed: int | None = None, fold: int = 0
    ) -> nn.Module:
        """Return the ISP of a training (by default of the first seed) after ``epoch``, 0: before the first;
        ValueError: there is no such.
        """
        seed = next(iter(self.states))[2] if seed is None else seed
        states = self.states.get((domain, arm, seed, fold))
        if states is None:
            raise ValueError(f"no training {(domain, arm, seed, fold)}; there are {[*self.states][:8]} ...")
        if not -len(states) <= epoch < len(states):
            raise ValueError(f"epoch {epoch}; choose from 0 to {len(states) - 1}, or -1")
        isp = copy.deepcopy(self.initial[domain])
        isp.load_state_dict(states[epoch])
        return isp.requires_grad_(False)

    def parameters(self, domain: str) -> pd.DataFrame:
        """Return what was learned in physical terms (`describe_isp`), over all seeds and folds.

        One row a quantity: ``initial``, and of the learned ISPs the ``mean``, ``lowest``, ``highest``. If
        they are no `ParametrizedISP`, or nothing was learned, it is a ValueError.
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

        Folds are averaged within a seed; the interval is Student's t over the seeds, of one seed its mean.
        """
        choose("column", column, self.curves)
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
        model: a name for `make_classifier`, or a function of number of classes, means and stds.
        n_splits: number of folds; every image is tested in one of them.
        seeds: of folds, initial weights and order; all is repeated with each.
        **settings: further arguments of `fit` (``epochs``, ``batch_size``, ``lr``, ``task``, ...).

    Raises:
        ValueError: an unknown arm, different scenes, or a processor without parameters that is to be learned.
    """
    if not (arms and seeds and domains):
        raise ValueError("nothing to compare: give domains, arms and seeds")
    for arm in arms:
        choose("arm", arm, _ARMS)
    _check_domains([*domains.values()])
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

            def keep(_trainer: object, module: RawToLogits, kept: list[Any] = kept) -> None:
                numbers = getattr(module.processor, "numbers", module.processor.state_dict)()
                kept.append({name: value.detach().cpu().clone() for name, value in numbers.items()})

            trained = domain.train(
                model, fold, mixed_seed(seed, number), validate=True, freeze_processor=arm == "frozen",
                callbacks=[LambdaCallback(on_train_start=keep, on_train_epoch_end=keep)], **settings,
            )  # fmt: skip
            curve = trained.history.reset_index(drop=True).assign(**cell)
            curve.insert(0, "epoch", np.arange(1, len(curve) + 1))
            curves.append(curve)
            told = predict(trained, {name: domain.frames.subset(fold.test)}, by="domain")
            answers.append(told.assign(**cell))
            bar.update()
    initial = {name: copy.deepcopy(domain.processor) for name, domain in domains.items()}
    return Learning(*(pd.concat(parts, ignore_index=True) for parts in (curves, answers)), initial, states)


def compare_adaptations(
    trained: RawToLogits,
    targets: Mapping[str, Domain],
    adapt_on: Sequence[int] | np.ndarray,
    test_on: Sequence[int] | np.ndarray,
    *,
    methods: Sequence[str] = COMPARED,
    batch_size: int | Sequence[int] = 32,
    equal_time: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Adapt one trained model to each target by each method, and ask it about other images.

    Args:
        trained: task model with the ISP it was trained with; it is not changed.
        targets: by name; each brings its frames and the ISP that develops them there.
        adapt_on, test_on: frames that methods adapt to and are tested on; of other groups.
        methods: of `METHODS`; by default one of each kind, and none that takes many times as long.
        batch_size: images a step; with several sizes, everything is repeated with each.
        equal_time: whether to repeat all with as many steps as each method takes in the time of TENT's.
        **settings: further arguments of `adapt`; ``steps`` may be given by method.

    Returns:
        One row for each target, method and image: ``target``, ``batch_size``, ``equal`` ("steps" or "time"),
        ``method``, what `predict` tells, and of the adaptation ``steps``, how many of them were ``skipped``
        for want of a reliable answer, ``seconds``, ``undone`` (see `adapt`), ``labelled`` (it saw labels).

    Raises:
        ValueError: a group on both sides, an unknown method, equal times without TENT, or as `adapt`.
    """
    if unknown := set(methods) - set(METHODS):
        raise ValueError(f"unknown methods {sorted(unknown)}; choose from {', '.join(METHODS)}")
    if equal_time and "tent" not in methods:
        raise ValueError("equal_time counts in TENT's time; add tent to the methods")
    adapt_on, test_on = np.asarray(adapt_on), np.asarray(test_on)
    _check_domains([*targets.values()])
    given, tables, took, placed = settings.pop("steps", 40), [], {}, {}
    for name, target in targets.items():
        groups = target.frames.groups
        if shared := set(groups[adapt_on]) & set(groups[test_on]):
            told = f"groups {sorted(shared)[:5]} are adapted to and tested on"
            raise ValueError(f"{told}; take other groups to test")
        placed[name] = copy.deepcopy(trained)
        placed[name].processor = target.processor  # which `adapt` leaves as it was
    sizes, budgets = np.atleast_1d(batch_size).tolist(), ("steps", "time")[: 1 + equal_time]
    for size, equal, (name, target), method in product(sizes, budgets, targets.items(), methods):
        steps = given[method] if isinstance(given, Mapping) else given
        if equal == "time":
            steps = max(1, round(took[size, name, "tent"] / took[size, name, method] * steps))
        options = settings | {"steps": steps, "batch_size": size}
        adapted = adapt(method, placed[name], target.frames.subset(adapt_on), **options)
        table = predict(adapted, {name: target.frames.subset(test_on)}, by="target")
        told = adapted.adaptation
        if equal == "steps":
            took[size, name, method] = told["seconds"]
        table = table.assign(batch_size=size, equal=equal, method=method, steps=told["steps"])
        table = table.assign(seconds=told["seconds"], skipped=int(np.isnan(told["losses"]).sum()))
        table = table.assign(undone=told.get("undone", False), labelled=method in LABELLED)
        tables.append(table.assign(**{f"isp_{k}": v for k, v in told.get("settings", {}).items()}))
    return pd.concat(tables, ignore_index=True)


def train_on_pipelines(
    source: Domain,
    indices: Sequence[int] | np.ndarray,
    *,
    codes: Pipelines = PIPELINES,
    model: str | ModelFactory = "SmallResNet",
    seed: int = 0,
    **settings: Any,
) -> RawToLogits:
    """Train on all pipelines, a `RandomPipeline` for ``source``'s; else as in `adaptation_experiment`."""
    frames, fold = source.frames, Fold(np.asarray(indices), np.array([], int))
    return Domain(frames, RandomPipeline(frames.camera, codes)).train(model, fold, seed, **settings)


def adaptation_experiment(
    source: Domain,
    targets: Mapping[str, Domain],
    *,
    methods: Sequence[str] = COMPARED,
    model: str | ModelFactory = "SmallResNet",
    n_splits: int = 4,
    seeds: Sequence[int] = (0,),
    codes: Pipelines = PIPELINES,
    adaptation: Mapping[str, Any] | None = None,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Train on the source, adapt to each target by each method, test on groups that neither has seen.

    The folds take turns: one is tested, the next is adapted to, the others are trained on, with the source's
    ISP frozen. So every image is tested once for each seed. Returned is what `compare_adaptations` returns,
    with ``seed`` and ``fold``.

    Args:
        source: what models are trained on; its normalisation is that of its training images, fixed.
        targets: by name; the source among them shows what a method does where nothing has changed.
        methods: of `METHODS`; "none" has to be among them for `summarise_adaptations`.
        model, n_splits, seeds, settings: as in `compare_processing`; at least 3 folds.
        codes: pipelines that the generalist is trained on.
        adaptation: arguments of `compare_adaptations` (``steps``, ``batch_size``, ``equal_time``).

    Raises:
        ValueError: fewer than three folds, different scenes, or as `compare_adaptations`.
    """
    if n_splits < 3:
        raise ValueError(f"n_splits is {n_splits}; to train, to adapt and to test takes 3 or more")
    _check_domains([source, *targets.values()])
    frames, tables = source.frames, []
    with progress_bar(total=n_splits * len(seeds), desc="folds", disable=not progress) as bar:
        for seed in seeds:
            folds = [f.test for f in group_folds(frames.labels, frames.groups, n_splits, seed)]
            for number, test_on in enumerate(folds):
                adapt_on = folds[(number + 1) % n_splits]
                training = np.setdiff1d(np.arange(len(frames)), [*test_on, *adapt_on])
                mixed, fold = mixed_seed(seed, number), Fold(training, test_on)
                trained = source.train(model, fold, mixed, freeze_processor=True, **settings)
                options = {"statistics": source_statistics(trained, frames.subset(training))}
                if "all_pipelines" in methods:
                    how = {"codes": codes, "model": model, "seed": mixed, **settings}
                    options["generalist"] = train_on_pipelines(source, training, **how)
                options |= {"methods": methods, "seed": mixed, **(adaptation or {})}
                table = compare_adaptations(trained, targets, adapt_on, test_on, **options)
                tables.append(table.assign(seed=seed, fold=number))
                bar.update()
    return pd.concat(tables, ignore_index=True)


def summarise_adaptations(
    answers: pd.DataFrame, *, baseline: str = "none", value: str = "correct", level: float = 0.95
) -> pd.DataFrame:
    """Return score and paired difference to the baseline of each target and method, see `paired_summary`.

    By sizes of batches and by equal steps or time, where there are several. Further columns: ``seconds``,
    ``steps``, ``skipped`` and ``undone`` (means of an adaptation), ``labelled``.
    """
    settings = [key for key in ("batch_size", "equal") if answers[key].nunique() > 1]
    keys = ["target", *settings, "method"]
    table = paired_summary(answers, arm="method", baseline=baseline, by=keys[:-1], value=value, level=level)
    costs = answers.groupby(keys)[["seconds", "steps", "skipped", "undone", "labelled"]].mean()
    return table.join(costs.astype({"labelled": bool}), on=keys)
