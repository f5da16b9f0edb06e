"""Callbacks that write to a run, epoch by epoch: numbers, images and gradients of the ISP's stages."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from r2l.files import to_uint8
from r2l.isp import stage_gradients
from r2l.training.checkpoints import seeded
from r2l.training.fit import epoch_numbers
from r2l.training.metrics import per_image
from r2l.training.module import RawToLogits, frames_of
from r2l.training.predict import on_device
from r2l.training.tracking import Run

#: The text of a gradient's PNG that holds what white stands for; black is its negative, mid-grey nought.
SCALE = "scale"
# Of the gradients' magnitudes; the few beyond would leave all others grey.
_QUANTILE = 0.995
_GAP = 2  # pixels between the images of a strip
_MOST = 1 << 22  # values that a quantile is taken of


class MetricTracker(Callback):
    """Writes each epoch's numbers to a run, at the epoch's step, with ``prefix`` before their names."""

    def __init__(self, run: Run, prefix: str = "") -> None:
        self.run, self.prefix = run, prefix

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write them, once for all devices."""
        if trainer.is_global_zero:
            numbers = {f"{self.prefix}{k}": v for k, v in epoch_numbers(trainer).items()}
            self.run.metrics(numbers, step=trainer.current_epoch)


class BestEpoch(Callback):
    """Keeps the ``weights`` of the ``epoch`` with the lowest loss on the validation images, on the CPU."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.loss, self.weights = float("inf"), {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the weights, if this epoch is the best so far."""
        loss = epoch_numbers(trainer).get("val_loss", float("inf"))
        if loss < self.loss:
            self.epoch, self.loss = trainer.current_epoch, loss
            state = pl_module.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a run that goes on knows the best epoch before."""
        return {"epoch": self.epoch, "loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        vars(self).update(state_dict)


class StageTracker(Callback):
    """Writes what the ISP makes of a few images, and what the loss wants changed in it, to a run.

    The artefacts, one an epoch, with the images of a stage side by side::

        stages/demosaic/epoch_003.png      what leaves [0, 1] is drawn as 0 or 1
        gradients/demosaic/epoch_003.png   grey is 0, white and black are plus and minus the PNG's ``scale``
        tensors/epoch_003.npz              stages/demosaic, gradients/demosaic, ...: (n, C, H, W) float32
        differences/epoch_003.png          image minus original image of an adversarial search, drawn likewise
        predictions/epoch_003.csv          one row an image, with its number in the data set

    Training does not notice: everything runs in eval mode, in which batch normalisation keeps its
    statistics; parameters' gradients and the global random generators stay as they were, and each module
    gets back the mode it had. Gradients are those of each image's own loss, not of a mean over a batch.

    Args:
        run: where to.
        data: the images are the first ``n_images`` of it, items as in `fit`; read once.
        every_epoch: after each epoch, or after the last only.
        images, gradients, predictions, differences: which of these to write.
        tensors: write images and gradients, as far as asked for, as tensors too.
        processor: looked into instead of the module's own, where that trains on developed images: raw to
            what the module takes.

    Raises:
        ValueError: no images.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        *,
        n_images: int = 4,
        every_epoch: bool = False,
        images: bool = True,
        gradients: bool = False,
        tensors: bool = False,
        predictions: bool = False,
        differences: bool = False,
        processor: nn.Module | None = None,
    ) -> None:
        if n_images < 1 or len(data) == 0:
            raise ValueError(f"nothing to track: {n_images} images of {len(data)}")
        self.run, self.every_epoch, self.processor = run, every_epoch, processor
        self.images, self.gradients = images, gradients
        self.tensors, self.predictions, self.differences = tensors, predictions, differences
        with seeded(0):  # for transforms that draw
            items = [data[i] for i in range(min(n_images, len(data)))]
        self.numbers = [item.get("meta", {}).get("image", i) for i, item in enumerate(items)]
        self.batch = default_collate([{k: v for k, v in i.items() if k != "meta"} for i in items])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write this epoch, if every epoch is asked for."""
        if self.every_epoch and trainer.is_global_zero:
            self.write(pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last epoch, whichever it became."""
        if not self.every_epoch and trainer.is_global_zero:
            self.write(pl_module, max(trainer.current_epoch - 1, 0))

    def write(self, module: RawToLogits, epoch: int) -> None:
        """Write the artefacts of one epoch; ``module`` is left as it is."""
        isp, home = self.processor or module.processor, module.device
        with seeded(0), on_device(module), on_device(isp, home):
            batch = move_data_to_device(self.batch, home)
            looked = _look(module, isp, batch, self.gradients)
            answers = self._answers(module, batch) if self.predictions else None
        if not self.images:
            looked.pop("stages")
        name = f"epoch_{epoch:03d}"
        if self.tensors:
            flat = {f"{k}/{s}": v for k, stages in looked.items() for s, v in stages.items()}
            self.run.tensors(flat, f"tensors/{name}.npz")
        if self.differences:
            looked["differences"] = {"": self._difference(module)}
        if looked:
            with self.run.files() as folder:
                for kind, stages in looked.items():
                    for stage, values in stages.items():
                        path = folder / kind / stage / f"{name}.png"
                        path.parent.mkdir(parents=True)
                        _save_strip(values, path, signed=kind != "stages")
        if answers is not None:
            self.run.table(answers, f"predictions/{name}.csv")

    @torch.no_grad()
    def _difference(self, module: RawToLogits) -> Tensor:
        raw = self.batch["raw"].to(module.device)
        return (module.processor(raw) - module.reference(raw)).cpu()

    @torch.no_grad()
    def _answers(self, module: RawToLogits, batch: dict[str, Any]) -> pd.DataFrame:
        if self.processor is not None:
            batch = {**batch, "raw": self.processor(batch["raw"])}
        table = {name: values.cpu().numpy() for name, values in module.predict_step(batch).items()}
        return pd.DataFrame({"image": self.numbers, **table})


def _save_strip(images: Tensor, path: Path, signed: bool = False) -> None:
    """Write images (N, C, H, W), C 1 or 3, display domain, side by side as a PNG.

    ``signed`` ones are any values around 0, which is drawn as mid-grey; what white stands for goes into the
    PNG's text `SCALE`.
    """
    values, info = images.float().cpu().numpy(), PngInfo()
    if signed:
        magnitudes = np.abs(values).ravel()
        step = -(-magnitudes.size // _MOST)
        scale = float(np.quantile(magnitudes[::step], _QUANTILE)) or float(magnitudes.max()) or 1.0
        values = 0.5 + 0.5 * values / scale
        info.add_text(SCALE, repr(scale))
    gap = 128 if signed else 255  # a gradient of 0 stays grey on any scale
    steps = np.pad(to_uint8(values), ((0, 0), (0, 0), (0, 0), (0, _GAP)), constant_values=gap)
    strip = np.concatenate(list(steps), axis=2)[..., :-_GAP]
    strip = strip[0] if len(strip) == 1 else strip.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(strip)).save(path, pnginfo=info)


class _Developed(nn.Module):
    """The ISP where there is none: images that come developed are its only stage."""

    def stages(self, raw: Tensor) -> dict[str, Tensor]:
        return {"image": raw}


def _look(
    module: RawToLogits, isp: nn.Module, batch: dict[str, Any], gradients: bool
) -> dict[str, dict[str, Tensor]]:
    """Return stages, and gradients if asked for, by kind and by stage, on the CPU."""
    isp = isp if hasattr(isp, "stages") else _Developed()
    frames, targets = frames_of(batch), module.task.targets(batch)

    def loss(image: Tensor) -> Tensor:
        if module.task.name == "segmentation" and image.shape[-2:] != frames.shape[-2:]:
            image = F.interpolate(image, frames.shape[-2:], mode="bilinear")  # as in `develop`
        outputs = module.task.check(module.model(module.norm(image)), targets)
        return per_image(module.loss, outputs, targets).sum()

    if gradients:
        pairs = stage_gradients(isp, frames, loss)
        return {
            "stages": {name: pair.image.cpu() for name, pair in pairs.items()},
            "gradients": {name: pair.gradient.cpu() for name, pair in pairs.items()},
        }
    with torch.no_grad():
        return {"stages": {name: image.cpu() for name, image in isp.stages(frames).items()}}
