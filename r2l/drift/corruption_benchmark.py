"""Pipelines against corruptions and other sensors: how much is lost, and how far the images had moved.

The published comparison sets the mean drop under other pipelines against that under corruptions of severity
3, and finds the latter "ten to four times" as large. How far each change moves the images is left open there.
`benchmark_corruptions` tries three sizes: the published constants, constants for the images' size, and
corruptions that move the images as far as the pipelines do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from r2l.datasets.frames import Frames
from r2l.datasets.splits import spread
from r2l.drift.corruptions import (
    PUBLISHED_CORRUPTIONS,
    SCALES,
    Corruption,
    Corruptions,
    corrupt,
    name_corruptions,
)
from r2l.drift.matrix import mean_drops
from r2l.drift.sensor_drift import SENSOR_DRIFTS, drift_sensor
from r2l.drift.statistics import interval_text
from r2l.files import choose
from r2l.isp import open_pipeline
from r2l.isp.grammar import PipelineLike
from r2l.progress import progress_bar
from r2l.sensor import NoiseModel
from r2l.training.metrics import DISTANCES, image_distance
from r2l.training.predict import Trained, answer_table, on_device, predict_columns, predict_matrix

_MATCHED = "matched"
_LEAST, _MOST = 1e-3, 64.0  # amounts that are tried
_SAME = 100.0  # dB; less than the steps of float32 at white
_BATCH = 64
_MATCH_IMAGES = 64  # of which amounts and distances are found
# What was changed (``train`` is the pipeline that it was changed in, ``kind``, ``severity``), and the images.
_Change = tuple[dict[str, Any], Tensor]


def distances(images: Tensor, references: Tensor, kind: str = "psnr") -> Tensor:
    """Return `r2l.training.metrics.image_distance` of images (N, 3, H, W), (N,), in batches; at most 100 dB.

    An image that has not changed would otherwise have hundreds, and lead every mean.
    """
    choose("distance", kind, DISTANCES)
    pairs = zip(images.split(_BATCH), references.split(_BATCH), strict=True)
    with torch.no_grad():
        apart = torch.cat([image_distance(a, b, kind) for a, b in pairs])
    return apart.clamp_max(_SAME) if kind == "psnr" else apart


def _pipeline_distance(views: Frames, code: str, kind: str = "psnr") -> float:
    """Return how far the other pipelines of ``views`` lie from ``code``: the mean over images."""
    others = [other for other in views.images if other != code]
    if not others:
        raise ValueError(f"no other pipeline to compare {code} with")
    some = spread(len(views), _MATCH_IMAGES)
    base = views.images[code][some]
    return float(np.mean([float(distances(views.images[o][some], base, kind).mean()) for o in others]))


def _match_amount(
    images: Tensor, kind: Corruption, target: float, distance: str = "psnr", **how: Any
) -> tuple[float, bool]:
    """Return how much of a corruption moves images as far as ``target`` on average, and whether it does.

    A root is bracketed (Brent's method) on a logarithmic scale, on which PSNR is nearly a line. Where the
    corruption can't move the images so far, or not so little, the nearest end is returned as not reached.
    """
    if not (np.isfinite(target) and target > 0):
        raise ValueError(f"nothing to match: the other pipelines' images lie {target:g} from the model's own")
    tried: dict[float, float] = {}

    def excess(log_amount: float) -> float:
        amount = float(np.exp(log_amount))
        tried[amount] = float(distances(corrupt(images, kind, amount=amount, **how), images, distance).mean())
        if distance == "psnr":
            return target - tried[amount]
        return float(np.log(max(tried[amount], 1e-30) / target))

    low, high = np.log(_LEAST), np.log(_MOST)
    if excess(low) < 0 < excess(high):
        brentq(excess, low, high, xtol=1e-3, rtol=1e-6)
    amount, moved = min(tried.items(), key=lambda pair: abs(pair[1] - target))
    return amount, abs(moved - target) <= (0.1 if distance == "psnr" else 0.02 * target)


def corruption_table(
    models: Sequence[Trained],
    views: Frames,
    kinds: Corruptions = PUBLISHED_CORRUPTIONS,
    severities: Sequence[int] = (3,),
    *,
    scale: str = "published",
    distance: str = "psnr",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask models about the images that they have not seen, corrupted, in the pipeline they know.

    Args:
        models: what `train_models` returned, or `Trained` made by hand.
        kinds: as in `corrupt`; or a mapping of names to them.
        scale: "published" or "image", see `corrupt`; or "matched": of each corruption so much (or little) of
            the severity's change (in constants for the images' size) that its mean distance is that of the
            other pipelines in ``views`` to the model's own.
        distance: "l2", "ssim" or "psnr", which images are matched in, and reported.
        device: where to ask, such as "cuda"; by default where each model is.

    Returns:
        One row an image, model and corruption: ``train``, ``test`` (scale, kind and severity in one),
        ``scale``, ``kind``, ``severity``, ``amount``, ``reached``, ``distance`` (of this image), ``seed``,
        ``fold`` and the answers as `predict_matrix` tells them. ``reached``: matched to 2 % (PSNR: .1 dB); a
        corruption can be unable to move images so far, or, like JPEG, know only steps.

    Raises:
        ValueError: an unknown kind, scale or distance; no models; or a pipeline that ``views`` lack.
    """
    codes, named = _codes(models, views), name_corruptions(kinds)
    some = spread(len(views), _MATCH_IMAGES)

    def changes() -> Iterator[_Change]:
        for code, (name, kind), severity in product(codes, named.items(), severities):
            images, how = views.images[code], {"severity": severity, "scale": scale, "seed": seed}
            amount, reached = 1.0, True
            if scale == _MATCHED:
                how["scale"] = "image"
                amount, reached = _match_amount(images[some], kind, targets[code], distance, ids=some, **how)
            cell = {"train": code, "kind": name, "severity": severity, "amount": amount, "reached": reached}
            yield cell, corrupt(images, kind, amount=amount, **how)

    targets = {c: _pipeline_distance(views, c, distance) for c in codes if scale == _MATCHED}
    total = len(codes) * len(kinds) * len(severities) if progress else 0
    return _ask_changed(models, views, scale, changes(), total, distance, device)


def sensor_table(
    models: Sequence[Trained],
    views: Frames,
    kinds: Sequence[str] = SENSOR_DRIFTS,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    pipelines: Mapping[str, PipelineLike] | None = None,
    variant: str = "corrected",
    noise: NoiseModel | None = None,
    distance: str = "psnr",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Return what `corruption_table` does, of frames that another sensor would have given; ``scale``:
    "sensor".

    Args:
        models, severities, distance, seed, device, progress: as in `corruption_table`.
        views: raw frames and their developments.
        pipelines: by name, those of the models that are not named by their code.
        variant: "corrected", "paper" or "camera", as the views.
        noise: of the sensor, see `drift_sensor`.
    """
    codes = _codes(models, views)
    if views.raw is None:
        raise ValueError("these views hold no raw frames, which another sensor would have recorded")
    isps = {code: open_pipeline((pipelines or {}).get(code, code), views.camera, variant) for code in codes}

    def changes() -> Iterator[_Change]:
        for kind, severity in product(kinds, severities):
            moved = drift_sensor(views.raw, views.camera, kind, severity, noise=noise, seed=seed)
            for code, isp in isps.items():
                with torch.no_grad():
                    changed = torch.cat([isp(batch) for batch in moved.split(64)])
                yield {"train": code, "kind": kind, "severity": severity}, changed

    total = len(codes) * len(kinds) * len(severities) if progress else 0
    return _ask_changed(models, views, "sensor", changes(), total, distance, device)


def _codes(models: Sequence[Trained], views: Frames) -> list[str]:
    if not models:
        raise ValueError("no models to test")
    codes = list(dict.fromkeys(trained.code for trained in models))
    views.require(codes)
    return codes


def _ask_changed(
    models: Sequence[Trained], views: Frames, scale: str, changes: Iterator[_Change], total: int,
    distance: str, device: str | None,
) -> pd.DataFrame:  # fmt: skip
    """Ask the models of each change's pipeline about the changed images; a bar shows a ``total``."""
    parts = []
    options = {"total": total, "desc": f"changed images, {scale}", "disable": not total}
    with progress_bar(iterable=changes, **options) as each:
        for cell, images in each:
            test = f"{scale}: {cell['kind']} {cell['severity']}"
            cell = {"train": cell["train"], "test": test, "scale": scale} | cell
            moved = distances(images, views.images[cell["train"]], distance).numpy()
            seen = views.seen_as(images)
            for trained in (t for t in models if t.code == cell["train"]):
                with on_device(trained.module, device):
                    answers = predict_columns(trained.module, seen, trained.test)
                run = {"seed": trained.seed, "fold": trained.fold}
                parts.append((cell | run, {"distance": moved[trained.test], **answers}))
    return answer_table(parts)


@dataclass(frozen=True)
class CorruptionBenchmark:
    """Mean drops under pipelines and under corruptions; `benchmark_corruptions` makes it, ``print`` tells it.

    Attributes:
        table: rows ``pipelines`` and, for each size of corruption, ``published``, ``image``, ``matched``;
            columns: mean ``distance`` of the changed images, ``kinds`` (how many corruptions are in the
            mean), ``drop`` with ``low`` and ``high``, ``ratio`` to the pipelines' with ``ratio_low`` and
            ``ratio_high`` (Fieller's), nan where the pipelines' drop can't be told from none.
        answers: of the models to the corrupted images, as `corruption_table` returns them.
        distance, metric: what images were matched in, and what was lost.
        left_out: corruptions that can't move the images as far (or as little) as the pipelines do, by
            pipeline; they are in the means of the other sizes alone.
    """

    table: pd.DataFrame
    answers: pd.DataFrame
    distance: str
    left_out: dict[str, list[str]]
    metric: str
    level: float

    def __str__(self) -> str:
        unit = " dB" if self.distance == "psnr" else ""
        lines = [f"mean loss of {self.metric}, intervals of {self.level:.0%} over groups"]
        for name, row in self.table.iterrows():
            ratio = "no ratio: the pipelines' drop can't be told from none"
            if not np.isnan(row["ratio"]):
                text = interval_text(*row[["ratio", "ratio_low", "ratio_high"]], ".1f")
                ratio = f"{text} times that of the pipelines"
            lost = interval_text(*row[["drop", "low", "high"]])
            lines.append(f"{name:>10}: {lost}, {ratio}; {self.distance} {row['distance']:.3g}{unit}")
        for code, kinds in self.left_out.items():
            lines.append(f"{code}: out of reach and not in the matched mean: {', '.join(kinds)}")
        return "\n".join(lines)


def benchmark_corruptions(
    models: Sequence[Trained],
    views: Frames,
    kinds: Corruptions = PUBLISHED_CORRUPTIONS,
    *,
    results: pd.DataFrame | None = None,
    severity: int = 3,
    distance: str = "psnr",
    value: str | None = None,
    level: float = 0.95,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> CorruptionBenchmark:
    """Set the mean drop under other pipelines against that under corruptions of three sizes.

    Args:
        models, kinds, seed, device, progress: as in `corruption_table`.
        views: the developed images, under all pipelines that are compared.
        results: what `predict_matrix` returned for these models and views; asked for here, if not given.
        severity: of the corruptions, 3 as published.
        distance: what "as far" means: "psnr", "ssim" or "l2".
        value, level: see `r2l.drift.summarise`.
    """
    if results is None:
        results = predict_matrix(models, views, list(views.images), device=device, progress=progress)
    options = {"distance": distance, "seed": seed, "device": device, "progress": progress}
    tables = [
        corruption_table(models, views, kinds, (severity,), scale=scale, **options)
        for scale in (*SCALES, _MATCHED)
    ]
    others = pd.concat(tables, ignore_index=True)
    groups = dict(iter(others[others["reached"]].groupby("scale", sort=False)))
    drops, ratios, metric = mean_drops(results, others, groups.values(), value, level)
    own = np.mean([_pipeline_distance(views, code, distance) for code in others["train"].unique()])
    moved = [own, *(rows["distance"].mean() for rows in groups.values())]
    used = [0, *(rows["kind"].nunique() for rows in groups.values())]
    table = pd.DataFrame({"distance": moved, "kinds": used}, index=["pipelines", *groups])
    table[["drop", "low", "high"]] = np.stack(drops[:3], axis=1)
    table[["ratio", "ratio_low", "ratio_high"]] = np.stack(ratios[:3], axis=1)
    missed = others[~others["reached"]].groupby("train", sort=False)["kind"]
    left_out = {code: list(kinds.unique()) for code, kinds in missed}
    return CorruptionBenchmark(table, others, distance, left_out, metric, level)
