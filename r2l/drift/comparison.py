"""The same models under corrupted pictures and under another sensor: answers, and how far images moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from r2l.datasets import RawDataset
from r2l.datasets.frames import Frames
from r2l.drift.asking import as_table, ask, ready
from r2l.drift.corruptions import PUBLISHED_CORRUPTIONS, corrupt
from r2l.drift.matched_severity import distances, match_amount, pipeline_distance
from r2l.drift.sensor_drift import SENSOR_DRIFTS, drift_sensor
from r2l.drift.synthesis import Trained
from r2l.isp import StaticISP
from r2l.progress import progress_bar
from r2l.sensor import NoiseModel

MATCHED = "matched"
MATCH_IMAGES = 64  # of which the matching amount is found


def corruption_table(
    models: Sequence[Trained],
    views: Frames,
    kinds: Sequence[str] = PUBLISHED_CORRUPTIONS,
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
        views: the developed images.
        kinds: of `CORRUPTIONS`.
        severities: 1 to 5.
        scale: "published" or "image", see `corrupt`; or "matched": of each corruption so much (or little)
            of the severity's change (in constants for the images' size) that its mean distance is that of
            the other pipelines in ``views`` to the model's own. Severities then are without effect but for
            the starting point.
        distance: "l2", "ssim" or "psnr", which images are matched in, and reported.
        seed: of all chance.
        device: where to ask, such as "cuda"; by default where each model is.
        progress: whether to show a bar.

    Returns:
        One row an image, model and corruption: ``train``, ``test`` (scale, kind and severity in one),
        ``scale``, ``kind``, ``severity``, ``amount``, ``reached`` (see `Match`), ``distance`` (of this
        image), ``seed``, ``fold`` and the answers as `ask_models` tells them.

    Raises:
        ValueError: an unknown kind, scale or distance; no models; or a pipeline that ``views`` lack.
    """
    codes = _codes(models, views)
    jobs = [(code, kind, severity) for code in codes for kind in kinds for severity in severities]
    some, targets = spread(len(views)), {}
    if scale == MATCHED:
        targets = {c: pipeline_distance(views, c, kind=distance, indices=some) for c in codes}
    parts = []
    with progress_bar(total=len(jobs), desc=f"corrupting, {scale}", disable=not progress) as bar:
        for code, kind, severity in jobs:
            images = views.images[code]
            used, amount, reached = scale, 1.0, True
            if scale == MATCHED:
                used = "image"
                found = match_amount(
                    images[some], kind, targets[code], distance=distance, severity=severity, scale=used,
                    seed=seed, ids=some,
                )  # fmt: skip
                amount, reached = found.amount, found.reached
            changed = corrupt(images, kind, severity, amount=amount, scale=used, seed=seed)
            place = {"train": code, "test": f"{scale}: {kind} {severity}", "scale": scale}
            place |= {"kind": kind, "severity": severity, "amount": amount, "reached": reached}
            parts += _answers(models, views, changed, images, place, distance, device)
            bar.update()
    return as_table(parts)


def sensor_table(
    models: Sequence[Trained],
    views: Frames,
    dataset: RawDataset,
    kinds: Sequence[str] = SENSOR_DRIFTS,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    variant: str = "corrected",
    noise: NoiseModel | None = None,
    distance: str = "psnr",
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask models about frames that another sensor would have given, developed as the models know it.

    Args:
        models, views, distance, seed, device, progress: as in `corruption_table`.
        dataset: whose frames ``views`` were developed from.
        kinds: of `SENSOR_DRIFTS`.
        severities: 1 to 5.
        variant: "corrected" or "paper", as the views.
        noise: of the sensor, see `drift_sensor`.

    Returns:
        As `corruption_table`, with "sensor" for ``scale``.

    Raises:
        ValueError: as `corruption_table` and `drift_sensor`; or a data set that is not that of the views.
    """
    if len(dataset) != len(views):
        raise ValueError(f"{len(dataset)} frames, but views of {len(views)}")
    codes = _codes(models, views)
    raw = torch.stack([dataset[i]["raw"] for i in range(len(dataset))])
    isps = {code: StaticISP.from_code(code, dataset.camera, variant) for code in codes}
    parts = []
    total = len(kinds) * len(severities)
    with progress_bar(total=total, desc="drifting sensors", disable=not progress) as bar:
        for kind in kinds:
            for severity in severities:
                moved = drift_sensor(raw, dataset.camera, kind, severity, noise=noise, seed=seed)
                for code, isp in isps.items():
                    with torch.no_grad():
                        changed = torch.cat([isp(batch) for batch in moved.split(64)])
                    place = {"train": code, "test": f"sensor: {kind} {severity}"}
                    place |= {"scale": "sensor", "kind": kind, "severity": severity}
                    parts += _answers(
                        models, views, changed, views.images[code], place, distance, device
                    )
                bar.update()
    return as_table(parts)


def _codes(models: Sequence[Trained], views: Frames) -> list[str]:
    codes = list(dict.fromkeys(trained.code for trained in models))
    if not codes:
        raise ValueError("no models to test")
    if missing := [code for code in codes if code not in views.images]:
        raise ValueError(f"views lack {missing}; they hold {list(views.images)}")
    return codes


def _answers(
    models: Sequence[Trained],
    views: Frames,
    changed: Tensor,
    images: Tensor,
    change: dict[str, Any],
    distance: str,
    device: str | None,
) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Ask the models of one pipeline about changed images."""
    moved = distances(changed, images, distance).numpy()
    parts = []
    for trained in (t for t in models if t.code == change["train"]):
        with ready(trained.module, device) as place:
            answers = ask(trained.module, changed, views, trained.test, device=place)
        cell = {**change, "seed": trained.seed, "fold": trained.fold}
        parts.append((cell, {"distance": moved[trained.test], **answers}))
    return parts


def spread(total: int, most: int = MATCH_IMAGES) -> np.ndarray:
    """Return at most so many indices, evenly spread: the images that distances are matched on."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(int))
