"""Which adaptation helps, under which change, and how surely."""

import copy
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from r2l.datasets.splits import Fold, group_folds
from r2l.drift.adjustment.learning import Domain, RandomPipeline, check_domains
from r2l.drift.adjustment.methods import COMPARED, LABELLED, METHODS, adapt
from r2l.drift.adjustment.objectives import source_statistics
from r2l.drift.paired import paired_summary
from r2l.isp import PIPELINES
from r2l.isp.grammar import Pipelines
from r2l.progress import progress_bar
from r2l.training.checkpoints import mixed_seed, seeded
from r2l.training.folds import training_statistics
from r2l.training.models import ModelFactory
from r2l.training.module import RawToLogits
from r2l.training.predict import predict


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
        for want of a reliable answer, ``seconds``, ``undone`` (see `adapt`) and ``labelled`` (whether it saw
        labels).

    Raises:
        ValueError: a group on both sides, an unknown method, equal times without TENT, or as `adapt`.
    """
    if unknown := set(methods) - set(METHODS):
        raise ValueError(f"unknown methods {sorted(unknown)}; choose from {', '.join(METHODS)}")
    if equal_time and "tent" not in methods:
        raise ValueError("equal_time counts in TENT's time; add tent to the methods")
    adapt_on, test_on = np.asarray(adapt_on), np.asarray(test_on)
    check_domains([*targets.values()])
    for target in targets.values():
        groups = target.frames.groups
        if shared := set(groups[adapt_on]) & set(groups[test_on]):
            raise ValueError(
                f"groups {sorted(shared)[:5]} are adapted to and tested on; take other groups to test"
            )
    given, tables, took = settings.pop("steps", 40), [], {}
    sizes, budgets = np.atleast_1d(batch_size).tolist(), ("steps", "time")[: 1 + equal_time]
    for size, equal in product(sizes, budgets):
        for (name, target), method in product(targets.items(), methods):
            moved = copy.deepcopy(trained)
            moved.processor = copy.deepcopy(target.processor)
            steps = given[method] if isinstance(given, Mapping) else given
            if equal == "time":
                part = took[size, name, "tent"] / took[size, name, method]
                steps = max(1, round(part * steps))
            options = settings | {"steps": steps, "batch_size": size}
            adapted = adapt(method, moved, target.frames.subset(adapt_on), **options)
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
    """Train a task model on all pipelines: each image is developed by one drawn at random, each epoch.

    Of ``source`` the frames and their camera are used, not the ISP. The rest is as in `RandomPipeline` and
    `adaptation_experiment`.
    """
    processor = RandomPipeline(source.frames.camera, codes)
    frames, fold = source.frames, Fold(np.asarray(indices), np.array([], int))
    with seeded(seed):
        statistics = training_statistics(frames, fold.train, processor)
    return Domain(frames, processor, statistics).train(model, fold, seed, **settings)


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
        targets: by name; the source among them shows what a method does where nothing has changed. All hold
            the source's scenes, in its order.
        methods: of `METHODS`; "none" has to be among them for `summarise_adaptations`.
        model, n_splits, seeds: as in `compare_processing`; at least 3 folds.
        codes: pipelines that the generalist is trained on.
        adaptation: arguments of `compare_adaptations` (``steps``, ``batch_size``, ``equal_time``).
        **settings: further arguments of `fit` (``epochs``, ``batch_size``, ``lr``, ...).

    Raises:
        ValueError: fewer than three folds, different scenes, or as `compare_adaptations`.
    """
    if n_splits < 3:
        raise ValueError(f"n_splits is {n_splits}; to train, to adapt and to test takes 3 or more")
    check_domains([source, *targets.values()])
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
