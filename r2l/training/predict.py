"""Asking models about images: one table of answers, one row an image, wherever the images come from.

Frames in memory are asked about slice by slice, with nothing between them and the model. Whatever else is a
data set goes through loaders, item by item, which costs more than a small model itself does. The answers are
equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from r2l.datasets.frames import Frames, RawDataset
from r2l.datasets.views import with_views
from r2l.isp import PIPELINES, name_pipelines
from r2l.isp.grammar import Pipelines
from r2l.progress import progress_bar, quiet_lightning
from r2l.training.fit import make_trainer
from r2l.training.module import RawToLogits


def predict(
    model: nn.Module,
    data: Dataset | DataLoader | Mapping[str, Dataset],
    by: str = "pipeline",
    *,
    task: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = False,
    **trainer: Any,
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
        data: `Frames` or another data set (or a loader, of which only data set and batch size are used: the
            order is always that of the data set), or a mapping from the name of a domain to its data set.
            ``meta`` of an item may hold ``image`` (its identity over all domains; otherwise its
            index) and ``group`` (otherwise every image is its own).
        by: name of the column that tells the domain. Without a mapping it is read from ``meta``.
        task: "classification", "regression" or "segmentation", for a model that `fit` did not return;
            one that it did knows its own. By default the task of `Frames`, else classification.
        batch_size: images a step; not used with a loader.
        num_workers: processes that load data which is not in memory.
        progress: whether to show a bar that counts images, of frames in memory.
        **trainer: further arguments of `lightning.Trainer`, such as ``accelerator``.

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
    if not domains or any(len(_items(domain)) == 0 for domain in domains.values()):
        raise ValueError("nothing to predict: no domains, or a domain without images")
    held = [_underneath(domain) for domain in domains.values()]
    in_memory = all(isinstance(below, Frames) for below, _ in held)
    if task is None:
        task = held[0][0].task if in_memory else "classification"
    module = model if isinstance(model, RawToLogits) else RawToLogits(model, task=task)
    # Where Lightning would ask; what else it is told, and other devices, are its own business.
    own = in_memory and not set(trainer) - {"accelerator"}
    device = device_of(trainer.get("accelerator", "auto")) if own else None
    if device is None or device.type not in ("cpu", "cuda"):
        tables = _through_loaders(module, domains, by, (batch_size, num_workers), trainer)
        return pd.concat(tables, ignore_index=True)
    tables = []
    with on_device(module, device), _image_bar(sum(len(i) for _, i in held), progress) as bar:
        for name, (frames, indices) in zip(domains, held, strict=True):
            columns = predict_columns(module, frames, indices, batch_size, device, bar)
            tables.append(pd.DataFrame(columns))
            tables[-1][by] = _of_item(frames[0]["meta"], by) if name is None else name
    return pd.concat(tables, ignore_index=True)


def _image_bar(total: int, progress: bool) -> tqdm:
    return progress_bar(total=total, desc="testing", unit="image", disable=not progress)


def _items(data: Dataset | DataLoader) -> Dataset:
    return data.dataset if isinstance(data, DataLoader) else data


def _underneath(data: Dataset | DataLoader) -> tuple[Dataset, np.ndarray]:
    """Return the data set below subsets, and indices into it, so that subsets of one can be paired."""
    if not isinstance(data, Subset):
        return data, np.arange(len(data))
    below, indices = _underneath(data.dataset)
    return below, indices[list(data.indices)]


def device_of(accelerator: str) -> torch.device:
    """Return the device that one of Lightning's names stands for, such as auto, cpu or gpu.

    Raises:
        ValueError: no such name, or none here; says which there are.
    """
    try:
        # Not as one of a cluster's tasks: it would be counted.
        return Fabric(accelerator=accelerator, devices=1, plugins=LightningEnvironment()).device
    except (ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"--accelerator {accelerator}: {error}") from None


@contextmanager
def on_device(module: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Put a model into eval mode and onto a device, by default where it is; and back at the end."""
    home = next((p.device for p in module.parameters()), torch.device("cpu"))
    device = torch.device(device) if device else home
    training = module.training
    try:
        module.to(device).eval()
        yield device
    finally:
        module.to(home).train(training)


def predict_columns(
    module: RawToLogits,
    frames: Frames,
    indices: np.ndarray,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    bar: tqdm | None = None,
) -> dict[str, np.ndarray]:
    """Return a model's answers to frames in memory, a column for each kind of number.

    Args:
        module: what `fit` returned, put `on_device`.
        frames: raw ones where the module has a processor, else a `view`.
        indices: which, (M,).
        batch_size: images a step.
        device: where the model is.
        bar: one that counts images, to be moved.

    Returns:
        ``image``, ``group`` and the answers, (M,) each, as `predict` has them.

    Raises:
        ValueError: no indices, or labels of more classes than the model has.
    """
    indices = np.asarray(indices)
    if len(indices) == 0:
        raise ValueError(f"none of {len(frames)} images to ask about")
    batches = [_rows(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    answers = []
    with torch.inference_mode():
        for rows in batches:
            batch = module.on_before_batch_transfer(frames.batch(rows))
            answers.append(module.predict_step({k: v.to(device) for k, v in batch.items()}))
            if bar is not None:
                bar.update(len(next(iter(batch.values()))))
    return {"image": indices, "group": frames.groups[indices], **_joined(answers)}


def _rows(indices: np.ndarray) -> slice | Tensor:
    # Neighbours are a slice, which is not copied.
    together = len(indices) == indices[-1] - indices[0] + 1 and (np.diff(indices) == 1).all()
    return slice(int(indices[0]), int(indices[-1]) + 1) if together else torch.from_numpy(indices)


def _joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    names = [name for name in batches[0] if name != "meta"]
    return {name: torch.cat([b[name] for b in batches]).cpu().numpy() for name in names}


def answer_table(parts: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """Lay parts below one another: of each what is the same in all its rows, and its columns.

    At once, since a frame for each cell of a matrix costs more than a small model's answers.
    """
    lengths = [len(next(iter(columns.values()))) for _, columns in parts]
    head = {name: np.repeat([cell[name] for cell, _ in parts], lengths) for name in parts[0][0]}
    body = {name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]}
    return pd.DataFrame({**head, **body})


def _through_loaders(
    module: RawToLogits,
    domains: Mapping[str | None, Dataset | DataLoader],
    by: str,
    loading: tuple[int, int],
    trainer: Mapping[str, Any],
) -> list[pd.DataFrame]:
    loaders = [_ordered(domain, *loading) for domain in domains.values()]
    with quiet_lightning():
        outputs = make_trainer(**trainer).predict(module, loaders)
    module.trainer = None
    outputs = outputs if len(loaders) > 1 else [outputs]
    tables = []
    for name, loader, batches in zip(domains, loaders, outputs, strict=True):
        meta, ids = [batch["meta"] for batch in batches], _underneath(_items(loader))[1]
        head = {"image": ids, "group": ids}
        head |= {key: _gathered(meta, key) for key in head if key in meta[0]}
        domain = _gathered(meta, by) if name is None else name
        tables.append(pd.DataFrame({**head, **_joined(batches), by: domain}))
    return tables


def _ordered(data: Dataset | DataLoader, batch_size: int, num_workers: int) -> DataLoader:
    # A generator of its own, since a loader draws from torch's otherwise, shuffling or not.
    options = {"num_workers": num_workers, "generator": torch.Generator()}
    if isinstance(data, DataLoader):
        batch_size = data.batch_size or batch_size
        options |= {"num_workers": data.num_workers, "collate_fn": data.collate_fn}
    return DataLoader(_items(data), batch_size, **options)


def _of_item(meta: Mapping[str, Any], by: str) -> Any:
    if by not in meta:
        raise ValueError(f"items carry no meta[{by!r}]; pass a mapping from {by} to data set")
    return meta[by]


def _gathered(batches: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    columns = [_of_item(batch, key) for batch in batches]
    return [v for c in columns for v in (c.tolist() if isinstance(c, Tensor) else c)]


@dataclass(frozen=True)
class Trained:
    """A trained model, and which images it may be asked about.

    Attributes:
        module: from images to answers, in eval mode.
        code: name of the pipeline that it was trained under.
        test: indices of the images that it has not seen.
        seed: of the repetition.
        fold: number of the fold.
    """

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

    Every frame is developed once by each pipeline, however many models there are, and batches are
    slices of what was developed, so that little is done but ask the models.

    Args:
        models: what `r2l.drift.train_models` returned, or `Trained` made by hand. A processor of their own
            (`r2l.load`) is left out, since each of ``pipelines`` stands in for it; to have it among them,
            name it there: ``{"own": model.processor, ...}``.
        data: raw frames, or views of them (which then must hold all ``pipelines``).
        pipelines: in the order of the matrix, see `develop_all`.
        variant: of the codes, "corrected", "paper" or "camera"; not used with views.
        batch_size: images a step.
        device: where to ask, such as "cuda"; by default where each model is.
        progress: whether to show a bar.

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
    with _image_bar(sum(len(one.test) for one in models) * len(views), progress) as bar:
        for trained in models:
            module = trained.module.without_processor()
            with on_device(module, device) as there:
                for name, view in views.items():
                    cell = {"train": trained.code, "test": name}
                    cell |= {"seed": trained.seed, "fold": trained.fold}
                    answers = predict_columns(module, view, trained.test, batch_size, there, bar)
                    parts.append((cell, answers))
    return answer_table(parts)
