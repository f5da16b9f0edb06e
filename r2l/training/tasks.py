"""What is asked of the data: a class, a number, or a mask; and how an answer is measured.

A task names the key of an item that holds the truth, the loss, and what is kept of each image. All else
in training is the same for the three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from r2l.datasets.frames import EXACT

#: Of outputs and targets, with ``reduction="mean"`` (a scalar) or ``"none"`` ((B,) or (B, ...)).
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Attributes:
        name: "classification", "regression" or "segmentation".
        key: where an item holds the truth: "label", "target" or "mask".
        metric: name of its measure in the history.
        loss: the default loss.
        answers: of outputs and targets: what is kept of each image, by the name of its column, (B,) each.
    """

    name: str
    key: str
    metric: str
    loss: Loss
    answers: Callable[[Tensor, Tensor], dict[str, Tensor]]

    def targets(self, batch: dict[str, Any]) -> Tensor:
        """Return the truth of a batch: labels (B,), numbers (B, n), or masks (B, 1, H, W) of 0.0, 1.0, ....

        Raises:
            ValueError: the items don't hold it.
        """
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
        """Return the outputs in full precision and the shape of the targets (labels: as they are).

        Raises:
            ValueError: a model that answers with something else than the task asks for.
        """
        # Under reduced precision the loss is computed in full.
        outputs = outputs.to(EXACT if self.name == "regression" else torch.float32)
        if self.name == "classification":
            return outputs
        if self.name == "regression":
            outputs = outputs.reshape(len(outputs), -1)
        several = self.name == "segmentation" and outputs.ndim == 4 and outputs.shape[1] > 1
        if (outputs[:, :1] if several else outputs).shape != targets.shape:
            raise ValueError(
                f"the model answers with shape {tuple(outputs.shape)}, but {self.name} has targets of shape "
                f"{tuple(targets.shape)}; {_REMEDY[self.name]}"
            )
        return outputs


_REMEDY = {
    "regression": "make_regressor(name, n_targets) makes a model with as many outputs as targets",
    "segmentation": "make_segmenter() makes a model with one logit a pixel, or one for each class",
}


def _entropy_dice(logits: Tensor, masks: Tensor, reduction: str = "mean") -> Tensor:
    """Return cross-entropy (mean over pixels, nats) plus one minus the soft Dice coefficient.

    Both of each image by itself, so that the loss of an image doesn't depend on what shares its batch.
    Dice says nothing of an image without foreground and counts nought there; cross-entropy still does.
    Of several classes it is the mean over them, nought for those that the image has not.

    Args:
        logits: (B, 1, H, W), one a pixel; or (B, C, H, W), one for each class.
        masks: (B, 1, H, W), 0.0 or 1.0, or numbers of classes.
        reduction: "mean" over the images, or "none" for (B,).

    Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016 (soft Dice), as in segmentation-models-pytorch.
    """
    # Images stand where Dice has classes, so that it sums over each by itself.
    if logits.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
        dice = _dice_of_classes()(logits.transpose(0, 1), masks.transpose(0, 1))
    else:
        labels = masks[:, 0].long()
        entropy = F.cross_entropy(logits, labels, reduction="none")
        there = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).flatten(0, 1).float()
        dice = _dice_of_classes(False)(logits.softmax(1).flatten(0, 1)[None], there[None])
        dice = dice.reshape(logits.shape[:2]).mean(1)
    values = entropy.flatten(1).mean(1) + dice
    return values if reduction == "none" else values.mean()


def _dice_of_classes(from_logits: bool = True) -> torch.nn.Module:
    from segmentation_models_pytorch.losses import DiceLoss  # takes seconds: only for masks

    class PerClass(DiceLoss):
        def aggregate_loss(self, loss: Tensor) -> Tensor:
            return loss

    return PerClass("multilabel", from_logits=from_logits)


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
        Task("classification", "label", "accuracy", F.cross_entropy, _classified),
        Task("regression", "target", "mae", F.mse_loss, _regressed),
        Task("segmentation", "mask", "iou", _entropy_dice, _segmented),
    )
}
