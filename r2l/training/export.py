"""What a training tracks in a run, epoch by epoch: numbers, images and gradients; and figures of them."""

import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from r2l.files import atomic_path, to_uint8
from r2l.isp import stage_gradients
from r2l.training.checkpoints import seeded
from r2l.training.fit import epoch_numbers
from r2l.training.metrics import per_image
from r2l.training.module import RawToLogits, frames_of
from r2l.training.predict import on_device
from r2l.training.tracking import Records, Run
from r2l.training.tracking.records import missing

#: The text of a gradient's PNG that holds what white stands for; black is its negative, mid-grey nought.
SCALE = "scale"
# Of the gradients' magnitudes; the few beyond would leave all others grey.
_QUANTILE = 0.995
_GAP = 2  # pixels between the images of a strip
_MOST = 1 << 22  # values that a quantile is taken of
_PICTURE = re.compile(r"\w+/([^/]+)/epoch_(\d+)\.png$")
_GRADIENT = "gradient at "
_CAPTION = 22  # pixels above the picture
_LEAST_WIDTH = 480  # smaller pictures are enlarged, by whole pixels
_COLOURS, _EPOCH_MS = 256, 400


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
    """Keeps the weights of the epoch with the lowest loss on the validation images, on the CPU."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.loss, self.weights = float("inf"), {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep them if they are the best so far."""
        loss = epoch_numbers(trainer).get("val_loss", float("inf"))
        if loss < self.loss:
            self.epoch, self.loss = trainer.current_epoch, loss
            self.weights = {n: v.detach().cpu().clone() for n, v in pl_module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint is to hold."""
        return {"epoch": self.epoch, "loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
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
        what: which of "images", "gradients", "predictions" and "differences" to write; with "tensors" images
            and gradients, as far as asked for, as tensors too.
        every_epoch: after each epoch, or after the last only.
        processor: looked into instead of the module's own, where that trains on developed images: raw to
            what the module takes.

    Raises:
        ValueError: no images.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        what: Collection[str] = ("images",),
        *,
        n_images: int = 4,
        every_epoch: bool = False,
        processor: nn.Module | None = None,
    ) -> None:
        if n_images < 1 or len(data) == 0:
            raise ValueError(f"nothing to track: {n_images} images of {len(data)}")
        self.run, self.what, self.every_epoch, self.processor = run, set(what), every_epoch, processor
        with seeded(0):  # for transforms that draw
            items = [data[i] for i in range(min(n_images, len(data)))]
        self.numbers = [item.get("meta", {}).get("image", i) for i, item in enumerate(items)]
        self.batch = default_collate([{k: v for k, v in i.items() if k != "meta"} for i in items])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write this epoch, if it is the last or every one is asked for."""
        # Before the epoch's checkpoint: killed after the last one, a run has nothing more to train.
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        if (self.every_epoch or is_last) and trainer.is_global_zero:
            self.write(pl_module, trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last epoch where another callback or a limit ended the training before its time."""
        if not self.every_epoch and trainer.current_epoch != trainer.max_epochs and trainer.is_global_zero:
            self.write(pl_module, max(trainer.current_epoch - 1, 0))

    def write(self, module: RawToLogits, epoch: int) -> None:
        """Write the artefacts of one epoch; ``module`` is left as it is."""
        isp, home = self.processor or module.processor, module.device
        with seeded(0), on_device(module), on_device(isp, home):
            batch = move_data_to_device(self.batch, home)
            looked = _look(module, isp, batch, "gradients" in self.what)
            with torch.no_grad():
                developed = {} if self.processor is None else {"raw": isp(batch["raw"])}
                answers = module.predict_step({**batch, **developed}) if "predictions" in self.what else {}
                if "differences" in self.what:
                    changed = (module.processor(batch["raw"]) - module.reference(batch["raw"])).cpu()
        if "images" not in self.what:
            looked.pop("stages")
        name = f"epoch_{epoch:03d}"
        if "tensors" in self.what:
            flat = {f"{k}/{s}": v for k, stages in looked.items() for s, v in stages.items()}
            self.run.tensors(flat, f"tensors/{name}.npz")
        if "differences" in self.what:
            looked["differences"] = {"": changed}
        if looked:
            with self.run.files() as folder:
                for kind, stages in looked.items():
                    for stage, values in stages.items():
                        path = folder / kind / stage / f"{name}.png"
                        path.parent.mkdir(parents=True)
                        _save_strip(values, path, signed=kind != "stages")
        if answers:
            columns = {"image": self.numbers} | {n: v.cpu().numpy() for n, v in answers.items()}
            self.run.table(pd.DataFrame(columns), f"predictions/{name}.csv")


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


def _look(
    module: RawToLogits, isp: nn.Module, batch: dict[str, Any], gradients: bool
) -> dict[str, dict[str, Tensor]]:
    """Return stages, and gradients if asked for, by kind and by stage, on the CPU."""
    if not hasattr(isp, "stages"):  # images that come developed are the only stage
        isp = SimpleNamespace(stages=lambda raw: {"image": raw})
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


def curves(run: str, store: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """Return the metrics by epoch (``train_loss``, ``val_loss``, ...) of a run, or of each of its folds.

    Args and errors as of `animate`; a ValueError also where there is no loss.
    """
    records = Records(store)
    tables = {name: records.history(i) for name, i in _folds(records, run).items()}
    tables = {name: table for name, table in tables.items() if "train_loss" in table}
    if not tables:
        raise ValueError(f"run {run!r} holds no train_loss; nothing to draw")
    return tables


def animate(
    run: str,
    stage: str,
    out: str | Path,
    *,
    gradient: bool = False,
    store: str | Path | None = None,
    check: Callable[[Path], object] = bool,
) -> list[Path]:
    """Write a stage over the epochs as a GIF, one file a fold; return the files that were written.

    All frames share one palette and, for gradients, one scale; the epoch stands above the picture.

    Args:
        run: id or name of a run whose stages were tracked (`StageTracker`), or "latest".
        stage: name of a stage, such as "demosaic".
        out: the GIF; with several folds, each one's name is put before the suffix.
        gradient: the loss's gradient with respect to the stage instead of its image.
        store: see `r2l.training.tracking.store_address`.
        check: is called with each file before the first is drawn, and may raise where one is to stay.

    Raises:
        ValueError: no such run or stage; lists the stages that were tracked.
        OSError: a file can't be written; as TrackingError, the store can't be opened.
    """
    records, out = Records(store), Path(out)
    folds = _folds(records, run)
    tracked = {name: pictures(records, run_id) for name, run_id in folds.items()}
    what = f"{_GRADIENT * gradient}{stage}"
    shown = {name: by_what[what] for name, by_what in tracked.items() if what in by_what}
    if not shown:
        names = dict.fromkeys(name for by_what in tracked.values() for name in by_what)
        alike = [n.removeprefix(_GRADIENT) for n in names if n.startswith(_GRADIENT) == gradient]
        kind = "gradients" if gradient else "stages"
        none = f"none; train with --track_processing{'_gradients' * gradient}"
        raise missing(f"run {run!r} has no {kind} {stage!r}", alike, none)
    plain = {name: re.sub(r"[^\w.,=-]+", "_", name).strip("_") for name in shown}
    written = [out.with_stem(f"{out.stem}_{plain[name]}") if len(shown) > 1 else out for name in shown]
    for target in written:
        check(target)
    for target, (name, paths) in zip(written, shown.items(), strict=True):
        with tempfile.TemporaryDirectory(prefix="r2l-") as folder:
            files = {
                f"{what}, epoch {epoch}": records.local(folds[name], path)
                or records.call("download_artifacts", folds[name], path, folder)
                for epoch, path in paths.items()
            }
            scaled = _one_scale([Image.open(file) for file in files.values()])
            frames = [_captioned(p, caption) for caption, p in zip(files, scaled, strict=True)]
        first, *rest = frames if frames[0].mode == "L" else _one_palette(frames)
        how = {"duration": _EPOCH_MS, "loop": 0, "optimize": False}
        with atomic_path(target) as partial:
            first.save(partial, format="GIF", save_all=True, append_images=rest, **how)
    return written


def pictures(records: Records, run_id: str) -> dict[str, dict[int, str]]:
    """Return a run's pictures of stages by what they show and epoch, as paths of artefacts.

    What they show is a stage ("demosaic") or the gradient there ("gradient at demosaic").
    """
    shown: dict[str, dict[int, str]] = {}
    for kind, prefix in (("stages", ""), ("gradients", _GRADIENT)):
        for path in records.files(run_id, kind):
            if match := _PICTURE.match(path):
                shown.setdefault(prefix + match[1], {})[int(match[2])] = path
    return shown


def _folds(records: Records, run: str) -> dict[str, str]:
    """The runs below one by name; itself if there are none."""
    run_id = records.find(run)
    return records.children(run_id) or {records.call("get_run", run_id).info.run_name: run_id}


def _one_scale(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Gradients are stored each on its own scale; bring them to the largest. Images stay as they are."""
    scales = np.array([float(picture.info.get(SCALE, 1.0)) for picture in pictures])
    out = []
    for picture, share in zip(pictures, scales / scales.max(), strict=True):
        values = 127.5 + (np.asarray(picture, dtype=np.float32) - 127.5) * np.float32(share)
        out.append(picture if share == 1 else Image.fromarray(np.round(values).astype(np.uint8)))
    return out


def _one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """One for all, or a colour would change from frame to frame though the values don't."""
    sheet = Image.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for row, frame in enumerate(frames):
        sheet.paste(frame, (0, row * frame.height))
    palette = sheet.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=1)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    times = max(1, -(-_LEAST_WIDTH // picture.width))
    large = ImageOps.scale(picture, times, Image.Resampling.NEAREST)
    framed = ImageOps.expand(large, (0, _CAPTION, 0, 0), "white")
    ImageDraw.Draw(framed).text((4, 2), text, fill="black", font=ImageFont.load_default(size=14))
    return framed
