"""The one module that is trained: a processor (ISP), a task model, a loss; and what augments its images."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex

from r2l.files import choose
from r2l.options import check_precision
from r2l.training.adversarial import Adversary
from r2l.training.metrics import TASKS, Loss, image_distance, per_image
from r2l.training.models import Rescale, in_plain_order

if TYPE_CHECKING:
    from torchvision.transforms import v2

if not torch.cuda.is_available():
    # Lightning has torch look for NVIDIA's library on the disk at each step of an optimizer: 1 to 2 % of it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

#: Of images (B, 3, H, W), display domain, [0, 1], and masks (B, 1, H, W) or None: new ones.
_Augment = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
#: What may stand between processor and task model, by the name of the option.
OUTPUT_NORMS = {"none": nn.Identity, "batch": nn.BatchNorm2d}
# What `strong` may do on top; an image moves by less than a quarter of its side.
_DEGREES, _SHIFT, _SCALES, _JITTER, _BEYOND = 10, 0.05, (0.9, 1.1), 0.2, 4


class RawToLogits(L.LightningModule):
    """A processor (ISP) followed by a task model: ``model(norm(processor(frames)))``.

    Args:
        model: display RGB (B, 3, H, W) in [0, 1] to logits (B, n_classes), numbers (B, n_targets), or
            one logit a pixel (B, 1, H, W), of several classes one each (B, C, H, W).
        processor: raw (B, 1, H, W) to display RGB; None where the data are developed already. It works
            in float32 whatever ``precision`` the trainer has: a black level is lost in 16 bits.
        loss: of outputs and targets, averaged over the batch unless called with ``reduction="none"``; by
            default cross-entropy, mean squared error, or binary cross-entropy and Dice, as the task is.
        lr: peak learning rate of AdamW; one cycle of warming up and cosine decay.
        processor_lr: factor on it for the processor.
        weight_decay: of AdamW; an adversary has none.
        task: "classification", "regression" or "segmentation".
        augment: applied to developed images (and masks) in training, see `make_augment`.
        output_norm: "batch" puts a batch normalisation behind the processor, whichever it is; one that was
            trained before goes there as it is. It takes out differences of brightness and colour between
            the data it is trained on and, by its running statistics, leaves later ones in. It is part of
            neither processor nor model, and never frozen.
        freeze_processor, freeze_model: leave a part as it is, running statistics of batch normalisation too.
        adversary: searches processing that makes the task model fail, which it freezes.

    Attributes:
        history: one row an epoch, filled by `fit`: ``train_loss``, ``train_accuracy`` (``train_mae``,
            ``train_iou``) and, with validation data, ``val_loss``, ``val_accuracy`` (...).
        reference: with an adversary, the frozen copy of the processor it started from; else None.

    Raises:
        ValueError: an unknown task or norm; nothing to train; an adversary that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: nn.Module | None = None,
        loss: Loss | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        *,
        task: str = "classification",
        augment: _Augment | None = None,
        processor_lr: float = 1.0,
        output_norm: str | nn.BatchNorm2d = "none",
        freeze_processor: bool = False,
        freeze_model: bool = False,
        adversary: Adversary | None = None,
    ) -> None:
        super().__init__()
        self.task = choose("task", task, TASKS)
        self.processor = nn.Identity() if processor is None else processor
        given = isinstance(output_norm, nn.Module)
        self.norm = output_norm if given else choose("output_norm", output_norm, OUTPUT_NORMS)(3)
        self.model = model
        self.loss = loss or self.task.loss
        self.lr, self.processor_lr, self.weight_decay = lr, processor_lr, weight_decay
        self.augment, self.adversary = augment, adversary
        self.reference: nn.Module | None = None
        self.history = pd.DataFrame()
        self._most = 0  # classes that the labels of a batch tell of
        if adversary is not None:
            if output_norm != "none":
                raise ValueError(
                    "adversarial search needs output_norm='none': a batch normalisation that still learns "
                    "would take out what the search changes; for a model that was trained with one, pass "
                    "model=nn.Sequential(trained.norm, trained.model)"
                )
            self.reference = adversary.reference(self.processor)
        searches = adversary is not None
        parts = {"processor": freeze_processor and not searches, "model": freeze_model or searches}
        parts["reference"] = searches
        for name in (name for name, frozen in parts.items() if frozen):
            getattr(self, name).requires_grad_(False)
        self.frozen = [name for name in parts if parts[name] or _asks_for_nothing(getattr(self, name))]
        self.train(self.training)
        self.register_state_dict_post_hook(in_plain_order)
        if task == "segmentation":
            # Sums over the whole epoch: the mean of the batches' IoU is not the IoU of the data.
            self.ious = nn.ModuleDict({f"{s}_iou": BinaryJaccardIndex() for s in ("train", "val")})

    def train(self, mode: bool = True) -> RawToLogits:
        """Set the mode, of all but the frozen parts: those stay in eval, their statistics as they are."""
        super().train(mode)
        for name in getattr(self, "frozen", ()):
            getattr(self, name).eval()
        return self

    def develop(self, frames: Tensor) -> Tensor:
        """Return what the processor makes of frames, display RGB (B, 3, H, W), before `norm`."""
        with torch.autocast(frames.device.type, enabled=False):
            images = self.processor(frames)
        if self.task.name == "segmentation" and images.shape[-2:] != frames.shape[-2:]:
            # A processor that halves the size: masks are as large as the frames.
            images = F.interpolate(images, frames.shape[-2:], mode="bilinear")
        return images

    def without_processor(self) -> RawToLogits:
        """Return what stands behind the processor, norm and task model: itself, for developed images."""
        behind = RawToLogits(self.model, loss=self.loss, task=self.task.name)
        behind.norm = self.norm
        return behind.train(self.training)

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits of raw frames (B, 1, H, W), or of images (B, 3, H, W) if no processor."""
        return self.model(self.norm(self.develop(frames)))

    def setup(self, stage: str) -> None:
        """Refuse a trainer that would round raw data to half precision (`check_precision`)."""
        check_precision(self.trainer.precision)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Look at labels and masks while they are on the CPU: a ValueError tells of what are no classes."""
        if self.task.name == "regression":
            return batch
        targets = self.task.targets(batch)
        if self.task.name == "segmentation" and (targets.min() < 0 or targets.frac().any()):
            raise ValueError(
                f"masks hold the values {targets.unique().tolist()[:10]}, expected numbers of classes: 0 "
                "(background), 1 and so on; make them such by a transform of the data set"
            )
        self._most = int(targets.max()) + 1
        return batch

    def _answer(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the outputs, checked: on a GPU a label beyond them would end the process."""
        outputs = self.task.check(outputs, targets)
        logits = 2 if outputs.shape[1] == 1 else outputs.shape[1]
        if self.task.name != "regression" and logits < self._most:
            raise ValueError(
                f"the model tells {logits} classes apart, and there is a label {self._most - 1}: make it for "
                "as many as the data have, and number these from 0 on"
            )
        return outputs

    def _step(self, batch: dict[str, Any], stage: str) -> Tensor:
        frames, targets = frames_of(batch), self.task.targets(batch)
        images = seen = self.develop(frames)
        if stage == "train" and self.augment is not None:
            masked = self.task.name == "segmentation"
            seen, moved = self.augment(images, targets if masked else None)
            targets = moved if masked else targets
        outputs = self._answer(self.model(self.norm(seen)), targets)
        loss = self.loss(outputs, targets)
        measured = {"loss": loss, **self._measure(outputs, targets, stage)}
        if self.adversary is not None:
            distance = image_distance(images, self.reference(frames), self.adversary.distance).mean()
            loss = self.adversary.objective(self.task.name, outputs, targets, distance)
            measured |= {"objective": loss, "distance": distance}
        named = {f"{stage}_{name}": value for name, value in measured.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(targets), sync_dist=True)
        rescale = getattr(self.model, "rescale", None)
        if isinstance(rescale, Rescale) and self.adversary is None:
            # Steps don't depend on the targets' unit, whose square float32 may not hold.
            loss = loss / rescale.std.square().mean()
        return loss

    def _measure(self, outputs: Tensor, targets: Tensor, stage: str) -> dict[str, Any]:
        if self.task.name == "segmentation":
            several = outputs.shape[1] > 1
            if several and isinstance(self.ious["train_iou"], BinaryJaccardIndex):
                for name in self.ious:
                    self.ious[name] = MulticlassJaccardIndex(outputs.shape[1]).to(outputs.device)
            meter = self.ious[f"{stage}_iou"]
            meter.update(outputs, targets[:, 0].int() if several else targets.int())
            return {"iou": meter}
        if self.task.name == "regression":
            return {"mae": F.l1_loss(outputs, targets)}
        return {"accuracy": (outputs.argmax(1) == targets).float().mean()}

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean loss of one batch; with an adversary, its objective."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Log loss and measure of one batch."""
        self._step(batch, "val")

    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0) -> dict[str, Tensor]:
        """Return what is kept of each image: the answers of the task and the loss, (B,) each."""
        targets = self.task.targets(batch)
        outputs = self._answer(self(frames_of(batch)), targets)
        return self.task.answers(outputs, targets) | {"loss": per_image(self.loss, outputs, targets)}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Bring what an adversary searches back into its bounds after each step."""
        if self.adversary is not None:
            self.adversary.project_(self.processor)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW on whatever asks for gradients, stepped through one cycle; ValueError if none does."""
        learned, own = [p for p in self.parameters() if p.requires_grad], set(self.processor.parameters())
        weights = {"params": [p for p in learned if p not in own], "lr": self.lr}
        processor = {"params": [p for p in learned if p in own], "lr": self.lr * self.processor_lr}
        groups = [group for group in (weights, processor) if group["params"]]
        if not groups:
            raise ValueError("nothing to train: processor and task model are frozen")
        decay = self.weight_decay if self.adversary is None else 0.0
        # All weights at once, on a CPU too, where it is not the default.
        optimizer = torch.optim.AdamW(groups, weight_decay=decay, foreach=True)
        steps, rates = int(self.trainer.estimated_stepping_batches), [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def frames_of(batch: dict[str, Any]) -> Tensor:
    """Return the raw frames of a batch, or its images where the data are developed already."""
    return batch["raw"] if "raw" in batch else batch["image"]


def _asks_for_nothing(part: nn.Module | None) -> bool:
    """Whether a part has parameters and all of them were frozen before it came here."""
    asking = [] if part is None else [weight.requires_grad for weight in part.parameters()]
    return bool(asking) and not any(asking)


def make_augment(strength: str) -> _Augment | None:
    """Return what augments a batch, each image by a draw of its own; None for "none".

    It acts on the developed image, behind the processor, never on the mosaic: a flip or a quarter turn would
    shift the colours of a mosaic's 2x2 tile, and the processor would take red for blue. Draws are torch's,
    of its global generator, which `fit` seeds and a checkpoint keeps.

    - *weak*: one of the eight flips and quarter turns of a square (of an oblong: the four that keep its
      shape), all equally likely. It invents no pixels.
    - *strong*: that; then a turn by up to 10 degrees, a shift by up to 5 % of each side and a scale of 0.9
      to 1.1, bilinear (masks: nearest), the surroundings filled with the mirror image; then brightness,
      contrast and saturation by factors of 0.8 to 1.2. The jitter clips to [0, 1].

    Both are differentiable with respect to the images, and leave masks of 0 and 1 such. A ValueError lists
    the strengths where there is no such.
    """
    return choose("augmentation", strength, {"none": None, "weak": _turn, "strong": _turn_and_distort})


def _turn(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Flip and turn; all images of a batch that drew the same at once."""
    square = images.shape[-1] == images.shape[-2]
    moves = torch.randint(8 if square else 4, (len(images),))
    new = [None if old is None else torch.empty_like(old) for old in (images, masks)]
    for move in moves.unique().tolist():
        drawn = (moves == move).to(images.device)
        for target, source in zip(new, (images, masks), strict=True):
            if target is not None:
                part = source[drawn].flip(-1) if move % 2 else source[drawn]
                target[drawn] = torch.rot90(part, move // 2 * (1 if square else 2), (-2, -1))
    return new[0], new[1]


@lru_cache
def _distortion(height: int, width: int) -> v2.Compose:
    from torchvision.transforms import v2  # takes seconds: only for those who distort

    pad = v2.Pad((width // _BEYOND, height // _BEYOND), padding_mode="reflect")
    shift = _SHIFT / (1 + 2 / _BEYOND)  # of the padded side, which is half as long again
    how = {"translate": (shift, shift), "scale": _SCALES, "interpolation": v2.InterpolationMode.BILINEAR}
    # Nothing to fill; any colour would be put in by a step without gradient.
    move = v2.RandomAffine(_DEGREES, **how, fill=None)
    jitter = v2.ColorJitter(_JITTER, _JITTER, _JITTER)
    return v2.Compose([pad, move, v2.CenterCrop((height, width)), jitter])


def _turn_and_distort(images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    from torchvision import tv_tensors

    images, masks = _turn(images, masks)
    distort = _distortion(*images.shape[-2:])
    of_masks = [None] * len(images) if masks is None else map(tv_tensors.Mask, masks)
    pairs = [distort(tv_tensors.Image(image), mask) for image, mask in zip(images, of_masks, strict=True)]
    seen, moved = zip(*pairs, strict=True)
    seen = torch.stack([image.as_subclass(Tensor) for image in seen])
    return seen, None if masks is None else torch.stack([mask.as_subclass(Tensor) for mask in moved])
