"""Asking models about images: one table of answers, one row an image, wherever the images come from.

Frames in memory are asked about slice by slice, with nothing between them and the model. Whatever else is a
data set goes through a loader, item by item, which costs more than a small model itself does. The answers are
equal.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from r2l.datasets.frames import Frames, with_views
from r2l.datasets.splits import RawDataset
from r2l.files import choose
from r2l.isp import PIPELINES, name_pipelines
from r2l.isp.grammar import Pipelines
from r2l.progress import progress_bar
from r2l.training.module import RawToLogits

_PRECISIONS = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_BAR = {"desc": "testing", "unit": "image"}


def predict(
    model: nn.Module,
    data: Dataset | DataLoader | Mapping[str, Dataset],
    by: str = "pipeline",
    *,
    task: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = False,
    accelerator: str = "auto",
    precision: str = "32-true",
) -> pd.DataFrame:
    """Ask a model for its answer to every image, in every domain.

    >>> from r2l.datasets import SyntheticMicroscopy, develop_views
    >>> from r2l.training import make_classifier
    >>> views = develop_views(SyntheticMicroscopy(4, size=32), ["bi,s,ga"], progress=False)
    >>> answers = predict(make_classifier("SmallResNet", 9), views.view("bi,s,ga"))
    >>> answers["pipeline"].tolist()
    ['bi,s,ga', 'bi,s,ga', 'bi,s,ga', 'bi,s,ga']

    Args:
        model: what `fit` returned, or any module from ``raw`` (or ``image``) to logits.
        data: `Frames` or another data set (or a loader, whose data set is asked about in its own order), or a
            mapping from the name of a domain to its data set. ``meta`` of an item may hold ``image`` (its
            identity over all domains; otherwise its index) and ``group`` (otherwise every image is its own).
        by: name of the column that tells the domain. Without a mapping it is read from ``meta``.
        task: "classification", "regression" or "segmentation", for a model that `fit` did not return;
            one that it did knows its own. By default the task of `Frames`, else classification.
        num_workers: processes that load data which is not in memory.
        accelerator: one of Lightning's names for where to compute: "auto", "cpu", "gpu".
        precision: of the task model, "32-true", "16-mixed" or "bf16-mixed".

    Returns:
        One row for each image and domain, so that every comparison can be paired: ``image``, ``group``,
        the answers, ``loss`` (as the model's loss is, of the image), and the column ``by``. Answers are

        - classification: ``label``, ``prediction``, ``correct`` (bool), ``p_true`` (probability of the
          true class, [0, 1]);
        - regression: ``target``, ``prediction``; of several numbers ``target_0``, ..., ``prediction_0``, ...;
        - segmentation of several classes: ``iou`` (mean over those that are there or were found),
          ``pixel_accuracy``, and pixels of each class, ``intersection_0``, ..., ``union_0``, ...;
        - segmentation (foreground where the logit is positive): ``iou`` ([0, 1]; 1 where nothing is there
          and nothing was found), ``intersection`` and ``union`` (pixels), ``empty`` (bool: the mask has no
          foreground), ``false_positives`` (pixels found that are not there), ``pixels`` (of the image).

    Raises:
        ValueError: no domains, no images, ``meta`` without ``by``, or items that don't fit the task.
    """
    domains = data if isinstance(data, Mapping) else {None: data}
    held = [underneath(domain) for domain in domains.values()]
    if not held or not all(len(rows) for _, rows in held):
        raise ValueError("nothing to predict: no domains, or a domain without images")
    first = held[0][0]
    task = task or (first.task if isinstance(first, Frames) else "classification")
    module = model if isinstance(model, RawToLogits) else RawToLogits(model, task=task)
    device, dtype = device_of(accelerator), choose("precision", precision, _PRECISIONS)
    tables = []
    with (
        on_device(module, device),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        progress_bar(total=sum(len(rows) for _, rows in held), disable=not progress, **_BAR) as bar,
    ):
        for (name, domain), (below, rows) in zip(domains.items(), held, strict=True):
            if isinstance(below, Frames):
                columns = predict_columns(module, below, rows, batch_size, bar)
                names = _of_item(below[0]["meta"], by) if name is None else name
            else:
                meta, answers = _answers(module, _ordered(domain, batch_size, num_workers), bar)
                columns = {"image": rows, "group": rows}
                columns |= {key: _gathered(meta, key) for key in columns if key in meta[0]} | answers
                names = _gathered(meta, by) if name is None else name
            tables.append(pd.DataFrame(columns | {by: names}))
    return pd.concat(tables, ignore_index=True)


def underneath(data: Dataset | DataLoader) -> tuple[Dataset, np.ndarray]:
    """Return the data set below subsets, and indices into it, so that subsets of one can be paired."""
    if isinstance(data, DataLoader):
        return underneath(data.dataset)
    if not isinstance(data, Subset):
        return data, np.arange(len(data))
    below, indices = underneath(data.dataset)
    return below, indices[list(data.indices)]


@cache  # 8 ms each: Lightning looks through all that is installed for callbacks
def device_of(accelerator: str) -> torch.device:
    """Return the device of one of Lightning's names, such as auto, cpu or gpu; a ValueError lists them."""
    try:
        # Not as one of a cluster's tasks: it would be counted.
        return Fabric(accelerator=accelerator, devices=1, plugins=LightningEnvironment()).device
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"--accelerator {accelerator}: {error}") from None


@contextmanager
def on_device(module: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Put a model into eval mode and onto a device, by default where it is; and each part back at the end."""
    home = next((p.device for p in module.parameters()), torch.device("cpu"))
    device = torch.device(device) if device else home
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.to(device).eval()
        yield device
    finally:
        module.to(home)
        for part, mode in modes:
            part.training = mode


def predict_columns(
    module: RawToLogits, frames: Frames, indices: np.ndarray, batch_size: int = 128, bar: tqdm | None = None
) -> dict[str, np.ndarray]:
    """Return a model's answers to frames in memory: the columns of `predict` but its domain, (M,) each.

    Args:
        module: what `fit` returned, put `on_device`.
        frames: raw ones where the module has a processor, else a `view`.
        indices: which, (M,).
        bar: one that counts images, to be moved.

    Raises:
        ValueError: no indices, or labels of more classes than the model has.
    """
    indices = np.asarray(indices)
    if len(indices) == 0:
        raise ValueError(f"none of {len(frames)} images to ask about")

    def batch(rows: np.ndarray) -> dict[str, Any]:
        # Neighbours are a slice, which is not copied.
        together = (np.diff(rows) == 1).all()
        return frames.batch(slice(int(rows[0]), int(rows[-1]) + 1) if together else torch.from_numpy(rows))

    steps = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
    return {"image": indices, "group": frames.groups[indices], **_answers(module, map(batch, steps), bar)[1]}


@torch.inference_mode()
def _answers(
    module: RawToLogits, batches: Iterable[dict[str, Any]], bar: tqdm | None
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Return the ``meta`` of the batches, and the answers to all of them by name."""
    metas, answers = [], []
    for batch in batches:
        metas.append(batch.pop("meta", {}))
        batch = module.on_before_batch_transfer(batch)
        answers.append(module.predict_step(move_data_to_device(batch, module.device)))
        if bar is not None:
            bar.update(len(answers[-1]["loss"]))
    return metas, {name: torch.cat([a[name] for a in answers]).cpu().numpy() for name in answers[0]}


def _ordered(data: Dataset | DataLoader, batch_size: int, num_workers: int) -> DataLoader:
    # A generator of its own, since a loader draws from torch's otherwise, shuffling or not.
    options = {"batch_size": batch_size, "num_workers": num_workers, "generator": torch.Generator()}
    if isinstance(data, DataLoader):
        options["batch_size"] = data.batch_size or batch_size
        options |= {"num_workers": data.num_workers, "collate_fn": data.collate_fn}
        data = data.dataset
    return DataLoader(data, **options)


def _of_item(meta: Mapping[str, Any], by: str) -> Any:
    if by not in meta:
        raise ValueError(f"items carry no meta[{by!r}]; pass a mapping from {by} to data set")
    return meta[by]


def _gathered(batches: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    columns = [_of_item(batch, key) for batch in batches]
    return [v for c in columns for v in (c.tolist() if isinstance(c, Tensor) else c)]


def answer_table(parts: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """Lay parts below one another: of each what is the same in all its rows, and its columns.

    At once, since a frame for each cell of a matrix costs more than a small model's answers.
    """
    lengths = [len(next(iter(columns.values()))) for _, columns in parts]
    head = {name: np.repeat([cell[name] for cell, _ in parts], lengths) for name in parts[0][0]}
    body = {name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]}
    return pd.DataFrame({**head, **body})


@dataclass(frozen=True)
class Trained:
    """A trained model, the pipeline that it was trained under, and which images it has not seen (indices)."""

    module: RawToLogits
    code: str
    test: np.ndarray
    seed: int = 0
    fold: int = 0


def predict_matrix(
    models: Sequence[Trained],
    data: RawDataset | Frames,
    pipelines: Pipelines = PIPELINES,
    *,
    variant: str = "corrected",
    batch_size: int = 128,
    device: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask each model about the images that it has not seen, as each of the pipelines develops them.

    Every frame is developed once by each pipeline, however many models there are.

    >>> from r2l.datasets import SyntheticMicroscopy
    >>> from r2l.training import RawToLogits, make_classifier
    >>> trained = Trained(RawToLogits(make_classifier("SmallResNet", 9)), "bi,s,ga", np.arange(4))
    >>> twin, tests = SyntheticMicroscopy(4, size=32), ["bi,s,ga", "ma,s,ga"]
    >>> predict_matrix([trained], twin, tests, progress=False)["test"].value_counts().to_dict()
    {'bi,s,ga': 4, 'ma,s,ga': 4}

    Args:
        models: what `r2l.drift.train_models` returned, or `Trained` made by hand. A processor of their own
            (`r2l.load`) is left out, since each of ``pipelines`` stands in for it; to have it among them,
            name it there: ``{"own": model.processor, ...}``.
        data: raw frames, or views of them (which then must hold all ``pipelines``).
        pipelines: in the order of the matrix, see `develop_all`.
        variant: of the codes, "corrected", "paper" or "camera"; not used with views.
        device: where to ask, such as "cuda"; by default where each model is.

    Returns:
        One row for each image, training pipeline, test pipeline and seed: ``train``, ``test``,
        ``seed``, ``fold``, and what `predict` tells.

    Raises:
        ValueError: no models; views that lack a pipeline; or as `develop_views`.
    """
    if not models:
        raise ValueError("no models to test")
    frames = with_views(data, pipelines, variant=variant, progress=progress)
    views = {name: frames.view(name) for name in name_pipelines(pipelines)}
    parts = []
    total = sum(len(one.test) for one in models) * len(views)
    with progress_bar(total=total, disable=not progress, **_BAR) as bar:
        for trained in models:
            module = trained.module.without_processor()
            with on_device(module, device):
                for name, view in views.items():
                    cell = {"train": trained.code, "test": name, "seed": trained.seed, "fold": trained.fold}
                    parts.append((cell, predict_columns(module, view, trained.test, batch_size, bar)))
    return answer_table(parts)
