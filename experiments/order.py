"""White balance before or after demosaicing, at a size and on a twin: what models lose under other pipelines.

    python experiments/order.py microscopy 256 --images 320 --epochs 12

Three pipelines, once in the published order and once in a camera's; a network that pools early, so that
256 pixels can be trained on one core; some minutes a seed.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from r2l import drift
from r2l.datasets import SyntheticDrone, SyntheticMicroscopy, develop_views
from r2l.drift.paired import paired_summary
from r2l.isp import StaticISP
from r2l.training.networks import _halving_block

CODES = ["bi,u,ga", "ma,u,ga", "ma,s,me"]


def early_pooling(n_outputs: int) -> nn.Module:
    """Return a residual network of 250,000 weights whose first layer quarters the size."""
    stem = nn.Conv2d(3, 16, 7, stride=4, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    blocks = [_halving_block(16, 32), _halving_block(32, 64), _halving_block(64, 96)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, n_outputs))


def lost(answers: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return for each seed and image the score under the own pipeline less that under the others."""
    part = answers[answers["train"].isin(names) & answers["test"].isin(names)]
    own = part["train"] == part["test"]
    print(part.groupby(["train", "test"])["correct"].mean().unstack().loc[names, names].round(3))
    keys = ["seed", "image", "group"]
    means = [part[rows].groupby(keys)["correct"].mean() for rows in (own, ~own)]
    print(f"own pipeline {means[0].mean():.3f}")
    return (means[0] - means[1]).rename("lost").reset_index()


def main() -> None:
    """Train, test, and print both matrices and the paired difference of what is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("twin", choices=["microscopy", "drone"])
    parser.add_argument("size", type=int)
    for name, value in {"images": 320, "epochs": 12, "seeds": 3, "folds": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.twin == "drone":
        data = SyntheticDrone(options.images, size=options.size, task="classification")
    else:
        data = SyntheticMicroscopy(options.images, size=options.size)
    pipelines = {code: StaticISP.from_code(code, data.camera) for code in CODES}
    for code in CODES[1:]:
        pipelines[f"{code} camera"] = StaticISP.from_code(code, data.camera, "camera")
    views = develop_views(data, pipelines, progress=False)
    tables = []
    for seed in range(options.seeds):
        models = drift.train_models(
            views, pipelines, model=f"{Path(__file__).stem}:early_pooling", n_splits=options.folds,
            seeds=[seed], epochs=options.epochs, batch_size=16, lr=0.003, progress=False,
        )  # fmt: skip
        tables.append(drift.predict_matrix(models, views, pipelines, progress=False))
        print("seed", seed, flush=True)
    answers = pd.concat(tables).astype({"correct": float})
    (folder := Path("runs/order")).mkdir(parents=True, exist_ok=True)
    answers.to_csv(folder / f"{options.twin}_{options.size}.csv", index=False)
    camera = [CODES[0], *(f"{code} camera" for code in CODES[1:])]
    orders = {"demosaic first": CODES, "balance first": camera}
    both = pd.concat([lost(answers, names).assign(order=o) for o, names in orders.items()])
    table = paired_summary(
        both.assign(what="drop"), arm="order", baseline="demosaic first", by="what", value="lost"
    )
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
