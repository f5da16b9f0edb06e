"""What an adversarial search has changed in the images, epoch by epoch."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Dataset

from r2l.training.module import RawToLogits
from r2l.training.stages import save_strip
from r2l.training.tracking import Run


class DifferenceTracker(Callback):
    """Writes image minus original image, ``differences/epoch_003.png``, to a run.

    Grey is no difference; white and black are plus and minus what the PNG's text ``scale`` says.

    Args:
        run: where to.
        data: the images are the first ``n_images`` of it, items with ``raw`` (1, H, W).
        n_images: how many.
        every_epoch: after each epoch, or after the last only.
    """

    def __init__(self, run: Run, data: Dataset, n_images: int, every_epoch: bool) -> None:
        self.run, self.every_epoch = run, every_epoch
        self.raw = torch.stack([data[i]["raw"] for i in range(min(n_images, len(data)))])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write this epoch, if it is asked for."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.is_global_zero and (self.every_epoch or last):
            self.write(pl_module, trainer.current_epoch)

    @torch.no_grad()
    def write(self, module: RawToLogits, epoch: int) -> None:
        """Write the differences that ``module`` makes now; its ISPs have no modes and draw nothing."""
        raw = self.raw.to(module.device)
        difference = (module.processor(raw) - module.reference(raw)).cpu()
        with self.run.files() as folder:
            place = folder / "differences"
            place.mkdir()
            save_strip(difference, place / f"epoch_{epoch:03d}.png", signed=True)
