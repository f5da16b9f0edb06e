"""Measures: how far two images are apart, and the scores of a table of answers (`predict`)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from pytorch_msssim import ssim
from sklearn.metrics import precision_recall_fscore_support, r2_score
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.functional import mean_absolute_error, mean_squared_error

from r2l.files import choose

#: l2: mean squared difference, from 0; ssim: 1 - SSIM, 0 to 2; psnr: decibels of a peak of 1, where *more*
#: is nearer.
DISTANCES = ("l2", "ssim", "psnr")


def image_distance(image: Tensor, reference: Tensor, kind: str = "l2") -> Tensor:
    """Return how far each image is from its reference, (B,), differentiable.

    A mean over pixels and channels, so that it depends on neither the size of the batch nor that of the
    images.

    Args:
        image: (B, 3, H, W), display domain.
        reference: as ``image``.
        kind: one of `DISTANCES`. SSIM has a Gaussian window of 11 pixels, sigma 1.5, and K 0.01 and 0.03
            (Wang et al., "Image quality assessment", IEEE TIP 2004).

    Raises:
        ValueError: an unknown kind, shapes that differ, or images too small for SSIM's window.
    """
    choose("distance", kind, DISTANCES)
    if image.shape != reference.shape or image.ndim != 4:
        raise ValueError(
            f"images have shapes {tuple(image.shape)} and {tuple(reference.shape)}, "
            "expected the same (B, C, H, W)"
        )
    if kind == "ssim":
        if min(image.shape[-2:]) < 11:
            raise ValueError(f"SSIM needs images of 11 x 11 pixels or more, got {image.shape[-2:]}")
        return 1 - ssim(image, reference, data_range=1.0, size_average=False)
    squares = (image - reference).square().mean(dim=(1, 2, 3))
    if kind == "l2":
        return squares
    return -10 * torch.log10(squares.clamp_min(torch.finfo(squares.dtype).tiny))


def scores(
    table: pd.DataFrame, n_classes: int | None = None, by: str | list[str] = "pipeline"
) -> pd.DataFrame:
    """Return one row of scores for each value of the column(s) ``by``.

    The columns of the table tell the task:

    - classification: ``accuracy``, ``balanced_accuracy``, ``macro_f1``, all in [0, 1];
    - segmentation: ``iou`` and ``dice`` of the data set (sums over all images, not means of images or
      batches; NaN if nothing is there nor found), ``empty`` (images without foreground) and
      ``false_positives_on_empty`` (pixels found in them, all together);
    - segmentation of several classes: ``iou``, the mean of the data set's over the classes that are there
      or were found, and ``pixel_accuracy``;
    - regression: ``mae``, ``rmse`` in units of the target, ``r2`` (1 is perfect, 0 as good as the mean;
      NaN for a single image). Several numbers an image are averaged over.

    Args:
        table: what `predict` returns.
        n_classes: number of classes; for classification only.
        by: column, or columns, that name the domain.

    Returns:
        A frame indexed by the domain, in order of first appearance, with the scores and ``images`` (how
        many).

    Raises:
        ValueError: a classification without ``n_classes``, or a table that `predict` did not make.
    """
    measure = _measure_of(table, n_classes)
    rows = {domain: {**measure(part), "images": len(part)} for domain, part in table.groupby(by, sort=False)}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.names = [by] if isinstance(by, str) else by
    return frame


def _measure_of(table: pd.DataFrame, n_classes: int | None):  # noqa: ANN202 - table to dict of scores
    if "intersection" in table:
        return _segmentation
    if "intersection_0" in table:
        return lambda part: {
            "iou": np.nanmean(_iou_of_classes(part)),
            "pixel_accuracy": part["pixel_accuracy"].mean(),
        }
    if any(str(name).startswith("target") for name in table):
        return _regression
    if "label" not in table:
        raise ValueError(f"no table of answers: columns {', '.join(map(str, table))}; predict() makes one")
    if n_classes is None:
        raise ValueError("scores of a classification need n_classes, the number of classes")
    # Of classes that occur in neither answers nor labels none counts.
    kinds = {
        "accuracy": MulticlassAccuracy(n_classes, average="micro"),
        "balanced_accuracy": MulticlassRecall(n_classes, average="macro"),
        "macro_f1": MulticlassF1Score(n_classes, average="macro"),
    }
    metrics = MetricCollection(kinds)

    def measure(part: pd.DataFrame) -> dict[str, float]:
        metrics.reset()
        pair = (torch.from_numpy(part[c].to_numpy(copy=True)) for c in ("prediction", "label"))
        return {name: value.item() for name, value in metrics(*pair).items()}

    return measure


def _segmentation(part: pd.DataFrame) -> dict[str, float]:
    intersection, union = int(part["intersection"].sum()), int(part["union"].sum())
    empty = part[part["empty"]]
    return {
        "iou": intersection / union if union else float("nan"),
        "dice": 2 * intersection / (union + intersection) if union else float("nan"),
        "empty": len(empty),
        "false_positives_on_empty": int(empty["false_positives"].sum()),
    }


def _iou_of_classes(part: pd.DataFrame) -> np.ndarray:
    """Return the IoU of each class over all images, NaN of one that is not there and was not found."""
    sums = (part.filter(regex=f"^{n}_").sum().to_numpy() for n in ("intersection", "union"))
    intersection, union = sums
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def _regression(part: pd.DataFrame) -> dict[str, float]:
    prediction, target = (
        torch.from_numpy(part.filter(regex=f"^{name}").to_numpy("float64").copy(order="C"))
        for name in ("prediction", "target")
    )
    # Not torchmetrics', which adds a number that small targets are smaller than.
    r2 = float(r2_score(target, prediction)) if len(part) > 1 else float("nan")
    return {
        "mae": mean_absolute_error(prediction, target).item(),
        "rmse": mean_squared_error(prediction, target, squared=False).item(),
        "r2": r2,
    }


def per_class(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return recall, precision and F1 of each class, and how many images it has.

    Recall is the share of the images *of* a class that were answered with it; precision the share of the
    answers with a class that were right. Of masks of several classes it is ``iou`` alone.

    Args:
        table: what `predict` returns for a classification, or for several classes of masks; all its rows.
        classes: names, by label.

    Returns:
        A frame indexed by class with ``recall``, ``precision``, ``f1`` (in [0, 1]; NaN for the recall of a
        class without images and the precision of one that was never answered) and ``images``.
    """
    if "intersection_0" in table:
        return pd.DataFrame({"iou": _iou_of_classes(table)}, index=pd.Index(classes, name="class"))
    numbers = range(len(classes))
    precision, recall, f1, images = precision_recall_fscore_support(
        table["label"], table["prediction"], labels=numbers, zero_division=float("nan")
    )
    columns = {"recall": recall, "precision": precision, "f1": np.nan_to_num(f1), "images": images}
    return pd.DataFrame(columns, index=pd.Index(classes, name="label"))


def fold_scores(table: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """Return the scores and the loss of a fold, one row; one for each ``processing`` where it has that."""
    by = "processing" if "processing" in table else "pipeline"
    frame = scores(table, n_classes or None, by=by)
    frame["loss"] = table.groupby(by, sort=False)["loss"].mean()
    return frame.reset_index(drop=by == "pipeline")


def describe_scores(table: pd.DataFrame, n_classes: int) -> str:
    """Return the first scores of a fold in a line."""
    parts = []
    for row in fold_scores(table, n_classes).to_dict("records"):
        before = f"{row.pop('processing')} processing, " if "processing" in row else ""
        name, value = next(iter(row.items()))
        parts.append(f"{before}{name} {value:.3f}, loss {row['loss']:.3f}")
    return "; ".join(parts)


def summarise_folds(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and spread (standard deviation, n - 1) of each score over the folds."""
    keys = ["processing"] if "processing" in scores else []
    long = scores.drop(columns=["fold", "images"]).melt(id_vars=keys, var_name="score")
    values = long.groupby([*keys, "score"], sort=False)["value"]
    table = values.agg(mean="mean", spread="std", lowest="min", highest="max", folds="count")
    return table.reset_index()
