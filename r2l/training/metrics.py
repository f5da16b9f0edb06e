"""What is asked of the data (class, number, mask), how answers are measured, and how far images are apart.

A task names the key of an item that holds the truth, the loss, and what is kept of each image. All else
in training is the same for the three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_msssim import ssim
from sklearn.metrics import precision_recall_fscore_support, r2_score
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_recall

from r2l.datasets.frames import EXACT
from r2l.files import choose

#: Of outputs and targets, with ``reduction="mean"`` (a scalar) or ``"none"`` ((B,) or (B, ...)).
Loss = Callable[..., Tensor]
#: l2: mean squared difference; ssim: 1 - SSIM, 0 to 2; psnr: decibels of a peak of 1, where *more* is nearer.
DISTANCES = ("l2", "ssim", "psnr")
_NUMBERS = "make_regressor(name, n_targets) makes a model with as many outputs as targets"
_LOGITS = "make_segmenter() makes a model with one logit a pixel, or one for each class"


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Attributes:
        key: where an item holds the truth: "label", "target" or "mask".
        loss: the default loss.
        answers: of outputs and targets: what is kept of each image, by the name of its column, (B,) each.
        remedy: for a model whose outputs don't fit.
    """

    name: str
    key: str
    loss: Loss
    answers: Callable[[Tensor, Tensor], dict[str, Tensor]]
    remedy: str = ""

    def targets(self, batch: dict[str, Any]) -> Tensor:
        """Return the truth of a batch: labels (B,), numbers (B, n), or masks (B, 1, H, W) of 0.0, 1.0, ..."""
        if self.key not in batch:
            there = [task.name for task in TASKS.values() if task.key in batch]
            fitting = f"; what they hold fits task={there[0]!r}" if there else ""
            raise ValueError(
                f"{self.name} needs items with {self.key!r}, these hold {', '.join(batch)}{fitting}"
            )
        truth = batch[self.key]
        if self.name == "classification":
            return truth
        if self.name == "regression":
            return truth.to(EXACT).reshape(len(truth), -1)
        return truth.float().reshape(len(truth), 1, *truth.shape[-2:])

    def check(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the outputs in full precision and the shape of the targets (labels: as they are)."""
        outputs = outputs.to(EXACT if self.name == "regression" else torch.float32)
        if self.name == "classification":
            return outputs
        if self.name == "regression":
            outputs = outputs.reshape(len(outputs), -1)
        several = self.name == "segmentation" and outputs.ndim == 4 and outputs.shape[1] > 1
        if (outputs[:, :1] if several else outputs).shape != targets.shape:
            raise ValueError(
                f"the model answers with shape {tuple(outputs.shape)}, but {self.name} has targets of shape "
                f"{tuple(targets.shape)}; {self.remedy}"
            )
        return outputs


def _entropy_dice(logits: Tensor, masks: Tensor, reduction: str = "mean") -> Tensor:
    """Return cross-entropy (mean over pixels, nats) plus one minus the soft Dice coefficient.

    Both of each image by itself, so that the loss of an image doesn't depend on what shares its batch.
    Dice says nothing of an image without foreground and counts nought there; cross-entropy still does.
    Of several classes it is the mean over them, nought for those that the image has not.

    Of logits (B, 1, H, W), or (B, C, H, W), one for each class, and masks (B, 1, H, W) of 0.0, 1.0, ....
    Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016 (soft Dice).
    """
    from segmentation_models_pytorch.losses._functional import soft_dice_score  # slow: only for masks

    if logits.shape[1] == 1:
        entropy, there = F.binary_cross_entropy_with_logits(logits, masks, reduction="none"), masks
        share = F.logsigmoid(logits).exp()
    else:
        labels = masks[:, 0].long()
        entropy = F.cross_entropy(logits, labels, reduction="none")
        there = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
        share = logits.softmax(1)
    share, there = share.flatten(2), there.flatten(2)
    dice = (1 - soft_dice_score(share, there.to(share), dims=2)) * (there.sum(2) > 0)
    values = entropy.flatten(1).mean(1) + dice.mean(1)
    return values if reduction == "none" else values.mean()


def per_image(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each image, (B,)."""
    values = loss(outputs, targets, reduction="none")
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _classified(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    prediction = logits.argmax(1)
    return {
        "label": labels,
        "prediction": prediction,
        "correct": prediction == labels,
        "p_true": logits.softmax(1).gather(1, labels[:, None])[:, 0],
    }


def _regressed(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    pairs = {"target": targets, "prediction": outputs}
    if targets.shape[1] == 1:
        return {name: values[:, 0] for name, values in pairs.items()}
    return {f"{n}_{i}": v[:, i] for n, v in pairs.items() for i in range(targets.shape[1])}


def _segmented(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    if logits.shape[1] > 1:
        return _segmented_by_class(logits.argmax(1).flatten(1), masks.flatten(1), logits.shape[1])
    found, there = (logits > 0).flatten(1), (masks > 0).flatten(1)
    intersection, union = (found & there).sum(1), (found | there).sum(1)
    return {
        # Nothing there and nothing found is right, not undefined: such tiles must not drop out.
        "iou": torch.where(union > 0, intersection / union.clamp_min(1), 1.0),
        "intersection": intersection,
        "union": union,
        "empty": ~there.any(1),
        "false_positives": (found & ~there).sum(1),
        "pixels": torch.full_like(union, there.shape[1]),
    }


def _segmented_by_class(found: Tensor, there: Tensor, n_classes: int) -> dict[str, Tensor]:
    pairs = [(found == number, there == number) for number in range(n_classes)]
    intersections = torch.stack([(one & other).sum(1) for one, other in pairs], 1)
    unions = torch.stack([(one | other).sum(1) for one, other in pairs], 1)
    columns = {"intersection": intersections.unbind(1), "union": unions.unbind(1)}
    return {
        # Over the classes that are there or were found.
        "iou": (intersections / unions.clamp_min(1)).sum(1) / (unions > 0).sum(1),
        "pixel_accuracy": (found == there).float().mean(1),
        **{f"{name}_{i}": v for name, values in columns.items() for i, v in enumerate(values)},
    }


TASKS = {
    task.name: task
    for task in (
        Task("classification", "label", F.cross_entropy, _classified),
        Task("regression", "target", F.mse_loss, _regressed, _NUMBERS),
        Task("segmentation", "mask", _entropy_dice, _segmented, _LOGITS),
    )
}


def image_distance(image: Tensor, reference: Tensor, kind: str = "l2") -> Tensor:
    """Return how far each image is from its reference, (B,), differentiable.

    A mean over pixels and channels, which depends on the size of neither batch nor images.

    Args:
        image, reference: (B, 3, H, W), display domain.
        kind: one of `DISTANCES`. SSIM has a Gaussian window of 11 pixels, sigma 1.5, and K 0.01 and 0.03
            (Wang et al., "Image quality assessment", IEEE TIP 2004).

    Raises:
        ValueError: an unknown kind, shapes that differ, or images too small for SSIM's window.
    """
    choose("distance", kind, DISTANCES)
    if image.shape != reference.shape or image.ndim != 4:
        shapes = f"{tuple(image.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"images have shapes {shapes}, expected the same (B, C, H, W)")
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

    - classification: ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that have images),
      ``macro_f1``, all in [0, 1];
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
        A frame indexed by the domain, in order of first appearance: the scores, and how many ``images``.

    Raises:
        ValueError: a classification without ``n_classes``, or a table that `predict` did not make.
    """
    if "label" not in table and not any(str(n).startswith(("intersection", "target")) for n in table):
        raise ValueError(f"no table of answers: columns {', '.join(map(str, table))}; predict() makes one")
    if "label" in table and n_classes is None:
        raise ValueError("scores of a classification need n_classes, the number of classes")
    domains = table.groupby(by, sort=False)
    rows = {domain: {**_measured(part, n_classes), "images": len(part)} for domain, part in domains}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.names = [by] if isinstance(by, str) else by
    return frame


def _measured(part: pd.DataFrame, n_classes: int | None) -> dict[str, float]:
    """Return the scores of one domain."""
    if "intersection" in part:
        intersection, union = int(part["intersection"].sum()), int(part["union"].sum())
        empty = part[part["empty"]]
        return {
            "iou": intersection / union if union else float("nan"),
            "dice": 2 * intersection / (union + intersection) if union else float("nan"),
            "empty": len(empty),
            "false_positives_on_empty": int(empty["false_positives"].sum()),
        }
    if "intersection_0" in part:
        return {"iou": np.nanmean(_iou_of_classes(part)), "pixel_accuracy": part["pixel_accuracy"].mean()}
    if "label" in part:
        pair = [torch.from_numpy(part[c].to_numpy(copy=True)) for c in ("prediction", "label")]
        recall = multiclass_recall(*pair, n_classes, average=None)[pair[1].unique()]  # others have no images
        return {
            "accuracy": multiclass_accuracy(*pair, n_classes, average="micro").item(),
            "balanced_accuracy": recall.mean().item(),
            # Of classes that occur in neither answers nor labels none counts.
            "macro_f1": multiclass_f1_score(*pair, n_classes, average="macro").item(),
        }
    prediction, target = (part.filter(regex=f"^{n}").to_numpy("float64") for n in ("prediction", "target"))
    return {
        "mae": float(np.abs(prediction - target).mean()),
        "rmse": float(np.square(prediction - target).mean() ** 0.5),
        "r2": float(r2_score(target, prediction)) if len(part) > 1 else float("nan"),
    }


def _iou_of_classes(part: pd.DataFrame) -> np.ndarray:
    """Return the IoU of each class over all images, NaN of one that is not there and was not found."""
    intersection, union = (part.filter(regex=f"^{n}_").sum().to_numpy() for n in ("intersection", "union"))
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)


def per_class(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return recall, precision and F1 of each class, and how many images it has.

    Args:
        table: what `predict` returns for a classification, or for several classes of masks; all its rows.
        classes: names, by label.

    Returns:
        A frame indexed by class with ``recall``, ``precision``, ``f1`` (in [0, 1]; NaN for the recall of a
        class without images and the precision of one that was never answered) and ``images``. Of masks of
        several classes it is ``iou`` alone.
    """
    if "intersection_0" in table:
        return pd.DataFrame({"iou": _iou_of_classes(table)}, index=pd.Index(classes, name="class"))
    precision, recall, f1, images = precision_recall_fscore_support(
        table["label"], table["prediction"], labels=range(len(classes)), zero_division=float("nan")
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
    return values.agg(mean="mean", spread="std", lowest="min", highest="max", folds="count").reset_index()
