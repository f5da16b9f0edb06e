"""Does learning the processing help? The long runs behind docs/statistics.md, on the microscopy twin.

    python experiments/learned_processing.py published helps control black_level raw_units containers
    python experiments/learned_processing.py adaptation collapse

Each writes `runs/learned_processing/NAME.csv`, one row an image and training, and prints what it sums up to;
together some forty minutes on one core. Notebook 05 shows short forms of the first three and of the last.
"""

import copy
import dataclasses
import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from r2l.camera import DRONE
from r2l.datasets import Frames, SyntheticMicroscopy
from r2l.drift import adjustment
from r2l.drift.adjustment import Domain, adaptation_experiment, compare_processing, summarise_adaptations
from r2l.drift.adjustment.self_training import SELF_TRAINING
from r2l.drift.paired import paired_summary
from r2l.isp import ParametrizedISP
from r2l.training import fit, make_classifier

FOLDER = Path("runs/learned_processing")
SEEDS = (0, 1, 2)
SETTINGS = {"n_splits": 2, "batch_size": 32, "lr": 0.003, "progress": False}
SHOWN = ["score", "difference", "difference_low", "difference_high", "p_holm"]
AS_IT_IS = ((0.0,) * 3, (1.0,) * 3)


def twin(intensity: float = 1.0, n: int = 300, seed: int = 0, size: int = 48) -> Frames:
    """Return frames of the microscopy twin."""
    data = SyntheticMicroscopy(n, seed=seed, size=size, intensity=intensity)
    return Frames.of(data, progress=False)


def report(name: str, answers: pd.DataFrame, by: str, arm: str, baseline: str) -> None:
    """Keep the answers and print scores and paired differences, over images and training runs."""
    answers.to_csv(FOLDER / f"{name}.csv", index=False)
    table = paired_summary(answers, arm=arm, baseline=baseline, by=by).set_index([by, arm])
    print(f"\n{name}, against {baseline}\n{table[SHOWN].round(3).to_string()}", flush=True)


def published() -> None:
    """Take the published gain at low light apart: normalisation, or learning."""
    low = twin(0.01)
    isp = ParametrizedISP(low.camera)
    # Pictures as they are; a batch normalisation behind the ISP, as published; fixed channel statistics.
    arms = {
        "dark": (Domain(low, isp, AS_IT_IS), {}),
        "batch": (Domain(low, isp, AS_IT_IS), {"output_norm": "batch"}),
        "normalised": (Domain(low, isp), {}),
    }
    tables = []
    for epochs in (8, 24):
        for name, (domain, options) in arms.items():
            options = SETTINGS | options | {"epochs": epochs, "seeds": SEEDS}
            table = compare_processing({"low": domain}, **options).answers
            tables.append(table.assign(input=name, how=name + ", " + table["arm"], epochs=epochs))
    answers = pd.concat(tables, ignore_index=True)
    report("published", answers, "epochs", "how", "dark, frozen")
    for name, part in answers.groupby("input", sort=False):
        report(f"published_{name}", part, "epochs", "arm", "frozen")


class Denoised(nn.Module):
    """A small residual denoiser of 1,800 weights behind an ISP; at first it does nothing."""

    def __init__(self, isp: nn.Module) -> None:
        super().__init__()
        self.isp, self.camera = isp, isp.camera
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 5, padding=2, padding_mode="reflect"), nn.ReLU(),
            nn.Conv2d(12, 3, 5, padding=2, padding_mode="reflect"),
        )  # fmt: skip
        nn.init.zeros_(self.layers[2].weight)
        nn.init.zeros_(self.layers[2].bias)

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) and denoise it: display RGB (B, 3, H, W)."""
        image = self.isp(raw)
        return (image + self.layers(image)).clamp(0, 1)


def helps() -> None:
    """Frozen against learned where there might be something to gain; inputs are normalised."""
    base, low, noisy = twin(), twin(0.01), twin(0.03)
    isp = ParametrizedISP(base.camera)

    def wrong(**numbers: Tensor) -> ParametrizedISP:
        return copy.deepcopy(isp).set_(**numbers)

    gains = isp.white_balance.detach() * torch.tensor([2.0, 1.0, 0.5])
    domains = {
        "calibrated, full light": Domain(base, isp),
        "low light": Domain(low, isp),
        "wrong white balance": Domain(base, wrong(white_balance=gains)),
        "another sensor's matrix": Domain(base, wrong(colour_matrix=torch.tensor(DRONE.colour_matrix))),
        "noise, learned denoiser": Domain(noisy, Denoised(copy.deepcopy(isp))),
    }
    answers = compare_processing(domains, epochs=16, seeds=range(5), **SETTINGS).answers
    # What is to learn most has three times as many steps beside.
    longer = {"noise, three times as long": domains["noise, learned denoiser"]}
    more = compare_processing(longer, epochs=48, seeds=SEEDS, **SETTINGS).answers
    report("helps", pd.concat([answers, more]), "domain", "arm", "frozen")


class RawUnits(nn.Module):
    """The same numbers as plain parameters, as published: a step means in each what it happens to mean."""

    def __init__(self, isp: ParametrizedISP) -> None:
        super().__init__()
        self.isp, self.camera = copy.deepcopy(isp).requires_grad_(False), isp.camera
        numbers = {name: nn.Parameter(value.clone()) for name, value in isp.numbers().items()}
        self.values = nn.ParameterDict(numbers)

    def forward(self, raw: Tensor) -> Tensor:
        """Develop raw (B, 1, H, W) to display RGB (B, 3, H, W), levels kept below white."""
        numbers = dict(self.values)
        numbers["black_level"] = numbers["black_level"].clamp(max=0.9 * self.camera.white_level)
        return self.isp.develop(raw, numbers | {"gamma": numbers["gamma"].clamp(0.2, 5)})


def control() -> None:
    """Positive controls: a black level that starts at the mean signal, in three parametrizations."""
    low = twin(0.01)
    isp = ParametrizedISP(low.camera)
    signal = nn.functional.pixel_unshuffle(low.raw, 2).mean((0, 2, 3))
    off = copy.deepcopy(isp).set_(black_level=signal)
    # Where each starts, and the arms that are not those of another.
    starts = {
        "calibrated": (isp, ["frozen"]),
        "black level off": (off, ["frozen", "learned"]),
        "black level off, raw units": (RawUnits(off), ["learned"]),
    }
    tables = []
    for name, (processor, arms) in starts.items():
        domain = Domain(low, processor)
        options = SETTINGS | {"seeds": SEEDS, "epochs": 40, "arms": arms}
        answers = compare_processing({name: domain}, **options).answers
        tables.append(answers.assign(start=name + ", " + answers["arm"], light="x 0.01"))
    report("control", pd.concat(tables), "light", "start", "black level off, frozen")


def black_level() -> None:
    """Fifty trainings at low light: does a learned black level rise above the signal?"""
    rows = []
    for seed in range(50):
        data = twin(0.01, n=48, seed=seed, size=32)
        mean = nn.functional.pixel_unshuffle(data.raw, 2).mean((0, 2, 3))
        black = torch.tensor(data.camera.black_level)
        trained = fit(
            lambda: make_classifier("SmallResNet", 9), data, seed=seed, lr=0.02, epochs=6,
            processor=ParametrizedISP(data.camera), processor_lr=10.0, output_norm="batch",
            batch_size=8, progress=False,
        )  # fmt: skip
        level = trained.processor.black_level.detach()
        parts = (level - black) / (mean - black)
        rows.append({"seed": seed, "lowest": float(parts.min()), "highest": float(parts.max())})
    table = pd.DataFrame(rows)
    table.to_csv(FOLDER / "black_level.csv", index=False)
    print(f"\nblack level, parts of the signal\n{table.describe().round(3).to_string()}", flush=True)


def raw_units() -> None:
    """From the right calibration at low light: where do black levels in raw units end?"""
    data, rows = twin(0.01), []
    mean = nn.functional.pixel_unshuffle(data.raw, 2).mean((0, 2, 3))
    black = torch.tensor(data.camera.black_level)
    for epochs, seed in itertools.product((6, 18), SEEDS):
        trained = fit(
            lambda: make_classifier("SmallResNet", 9), data, seed=seed, lr=0.003, epochs=epochs,
            processor=RawUnits(ParametrizedISP(data.camera)), output_norm="batch", progress=False,
        )  # fmt: skip
        level = trained.processor.values["black_level"].detach()
        parts = ((level - black) / (mean - black)).tolist()
        rows.append({"epochs": epochs, "seed": seed} | {f"site {n}": part for n, part in enumerate(parts)})
    table = pd.DataFrame(rows)
    table.to_csv(FOLDER / "raw_units.csv", index=False)
    print(f"\nblack level in raw units, parts of the signal\n{table.round(2).to_string()}", flush=True)


def containers() -> None:
    """Long trainings on counts of 12, 14 and 16 bit in a container of 16: are they alike?"""
    data, rows = twin(0.05, n=160), []
    statistics = Domain(data, ParametrizedISP(data.camera)).statistics(np.arange(160))
    for seed in SEEDS:
        for bits in (16, 14, 12):
            scale = (2**bits - 1) / 65535
            black = tuple(scale * level for level in data.camera.black_level)
            camera = dataclasses.replace(data.camera, black_level=black, white_level=scale)
            frames = dataclasses.replace(data, raw=scale * data.raw, camera=camera)
            start = ParametrizedISP(camera)
            trained = fit(
                lambda: make_classifier("SmallResNet", 9, *statistics), frames, processor=start, seed=seed,
                epochs=40, lr=0.003, batch_size=16, progress=False, processor_lr=10.0,
            )  # fmt: skip
            numbers = {k: v.detach() for k, v in trained.processor.numbers().items()}
            numbers["black_level"] = numbers["black_level"] / scale
            flat = {f"{k}{i}": float(x) for k, v in numbers.items() for i, x in enumerate(v.view(-1))}
            loss = trained.history["train_loss"].iloc[-1]
            rows.append({"seed": seed, "bits": bits, "loss": loss, **flat})
    table = pd.DataFrame(rows)
    table.to_csv(FOLDER / "containers.csv", index=False)
    wide = table.set_index(["seed", "bits"])
    first = numbers_of_start(data)
    for name in ("black_level", "white_balance", "colour_matrix", "gamma"):
        part = wide[[c for c in wide if c.startswith(name)]]
        moved = (part - first[part.columns]).abs().max().max()
        bits = max(part.xs(s).sub(part.loc[s, 16]).abs().max().max() for s in SEEDS)
        seeds = (part.groupby("bits").max() - part.groupby("bits").min()).max().max()
        print(f"{name}: moved {moved:.2g}, between containers {bits:.2g}, between seeds {seeds:.2g}")
    print(wide["loss"].unstack().round(4).to_string(), flush=True)


def adaptation() -> None:
    """Test-time methods at equal steps and at equal time, in batches of one and of sixteen."""
    methods = ["none", "bn_statistics", *SELF_TRAINING, "isp_alignment"]
    _adaptation("adaptation", methods, batch_size=(1, 16), equal_time=True)


def collapse() -> None:
    """Ten times the rate in batches of one: what TENT does with and without the guard."""
    for undo_below in (0.0, 0.5):
        options = {"batch_size": 1, "steps": 100, "lr": 0.01, "undo_below": undo_below}
        _adaptation(f"collapse_{undo_below}", ["none", "bn_statistics", "tent"], **options)


def _adaptation(name: str, methods: list[str], **options: object) -> None:
    # Beside other work the clock says little; the processor's time is what counts here.
    adjustment.methods.time = SimpleNamespace(perf_counter=time.process_time)
    base, dim = twin(n=600), twin(0.25, n=600)
    isp = ParametrizedISP(base.camera)
    gains = isp.white_balance.detach() * torch.tensor([1.2, 1.0, 0.8])
    off = copy.deepcopy(isp).set_(white_balance=gains)
    targets = {"white balance": Domain(base, off), "dim": Domain(dim, isp)}
    settings = SETTINGS | {"n_splits": 3, "epochs": 24, "methods": methods, "adaptation": options}
    tables = []
    for seed in SEEDS:
        part = adaptation_experiment(Domain(base, isp), targets, seeds=[seed], **settings)
        tables.append(part)
        answers = pd.concat(tables)
        answers.to_csv(FOLDER / f"{name}.csv", index=False)
        table = summarise_adaptations(answers, baseline="bn_statistics")
        keys = ["target", *(k for k in ("batch_size", "equal") if k in table), "method"]
        costs = ["steps", "seconds", "skipped", "undone"]
        print(f"\n{name}, seeds to {seed}\n{table.set_index(keys)[SHOWN + costs].round(3).to_string()}")
        sys.stdout.flush()


def numbers_of_start(data: Frames) -> pd.Series:
    """Return the camera's numbers by the columns of `containers`."""
    numbers = ParametrizedISP(data.camera).numbers().items()
    return pd.Series({f"{k}{i}": float(x) for k, v in numbers for i, x in enumerate(v.view(-1))})


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for experiment in sys.argv[1:]:
        globals()[experiment]()
