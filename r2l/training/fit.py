"""The loop: raw data through a processor and a task model to logits, on Lightning.

One module, `RawToLogits`, holds what is trained, and `fit` trains it. A data set is anything with
a length whose items are ``dict(raw or image, label, meta)``; for ``meta`` see `evaluate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from r2l.training.quiet import progress_bar, quiet_lightning, seeded

Model = nn.Module | Callable[[], nn.Module]


class RawToLogits(L.LightningModule):
    """A processor (ISP) followed by a task model.

    Args:
        model: display RGB (B, 3, H, W) in [0, 1] to logits (B, n_classes).
        processor: raw (B, 1, H, W) to display RGB; None where the data are developed already.
        loss: of logits (B, n_classes) and labels (B,), averaged over the batch unless called with
            ``reduction="none"``; cross-entropy by default.
        lr: peak learning rate of AdamW; one cycle of warming up and cosine decay.
        weight_decay: of AdamW.

    Attributes:
        history: one row an epoch, filled by `fit`: ``train_loss``, ``train_accuracy`` and, with
            validation data, ``val_loss``, ``val_accuracy``.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: nn.Module | None = None,
        loss: Callable[..., Tensor] = F.cross_entropy,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        self.processor = nn.Identity() if processor is None else processor
        self.model = model
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.history = pd.DataFrame()

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits (B, n_classes) of raw frames (B, 1, H, W), or of images if no processor."""
        return self.model(self.processor(frames))

    def _step(self, batch: dict[str, Any], stage: str) -> Tensor:
        logits, labels = self(_frames(batch)), batch["label"]
        loss = self.loss(logits, labels)
        measured = {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}
        for name, value in measured.items():
            self.log(f"{stage}_{name}", value, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean loss of one batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Log loss and accuracy of one batch."""
        self._step(batch, "val")

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int = 0, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Return what is kept of each image: answer, probability of the true class, loss (B,)."""
        logits, labels = self(_frames(batch)), batch["label"]
        return {
            "label": labels,
            "prediction": logits.argmax(1),
            "p_true": logits.softmax(1).gather(1, labels[:, None])[:, 0],
            "loss": self.loss(logits, labels, reduction="none"),
            "meta": batch.get("meta", {}),
        }

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW on whatever asks for gradients, stepped through one cycle."""
        weights = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _frames(batch: dict[str, Any]) -> Tensor:
    return batch["raw"] if "raw" in batch else batch["image"]


class _Epochs(Callback):
    """Keeps the logged numbers of each epoch and moves the progress bar."""

    def __init__(self, epochs: int, progress: bool) -> None:
        self.rows: list[dict[str, float]] = []
        self.bar = progress_bar(total=epochs, desc="epochs", disable=not progress)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rows.append({k: v.item() for k, v in trainer.callback_metrics.items()})
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in self.rows[-1].items()}, refresh=False)
        self.bar.update()


def make_trainer(**options: Any) -> L.Trainer:
    """Return a Lightning trainer that writes and prints nothing unless ``options`` ask for it."""
    defaults = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**defaults, **options})


def fit(
    model: Model,
    data: Dataset,
    *,
    processor: nn.Module | None = None,
    validation: Dataset | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    loss: Callable[..., Tensor] = F.cross_entropy,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
    callbacks: list[Callback] | None = None,
    **trainer: Any,
) -> RawToLogits:
    """Train a task model, and the processor's parameters if it has any that ask for gradients.

    Equal arguments give equal weights on a CPU. Copies are trained: ``model`` and ``processor``
    stay as they were, and so do the global random generators.

    Args:
        model: the task model, or a function without arguments that makes one. The function is
            called after seeding, so that the initial weights follow from ``seed``.
        data: items ``dict(raw=(1, H, W) or image=(3, H, W), label=int)``.
        processor: ISP from raw to display RGB; None where ``data`` holds images.
        validation: as ``data``; its loss and accuracy enter the history after each epoch.
        epochs: passes over the data.
        batch_size: images a step.
        lr: peak learning rate, see `RawToLogits`.
        weight_decay: of AdamW.
        loss: see `RawToLogits`.
        seed: of initial weights, order of the images and dropout.
        num_workers: processes that load data; 0 loads in this one.
        progress: whether to show a bar that counts epochs.
        callbacks: further callbacks of Lightning.
        **trainer: further arguments of `lightning.Trainer` (``accelerator``, ``precision``, ...).

    Returns:
        The trained module, in eval mode, on the CPU.

    Raises:
        ValueError: no data, or no epochs.
    """
    if len(data) == 0 or epochs < 1:
        raise ValueError(f"nothing to train on: {len(data)} images, {epochs} epochs")
    counter = _Epochs(epochs, progress)
    with seeded(seed), quiet_lightning(), counter.bar:
        network = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
        module = RawToLogits(network, copy.deepcopy(processor), loss, lr, weight_decay)
        shuffled = DataLoader(
            data,
            batch_size,
            shuffle=True,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(seed),
            # A last batch of one image has no variance for batch normalisation to divide by.
            drop_last=len(data) > batch_size and len(data) % batch_size == 1,
        )
        ordered = (
            None
            if validation is None
            else DataLoader(validation, batch_size, num_workers=num_workers)
        )
        runner = make_trainer(max_epochs=epochs, callbacks=[counter, *(callbacks or [])], **trainer)
        runner.fit(module, shuffled, ordered)
    module.history = pd.DataFrame(counter.rows).rename_axis("epoch")
    module.trainer = None  # it holds on to the data
    return module.cpu().eval()
