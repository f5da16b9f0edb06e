"""One fold after the other: what is trained on what, what is kept of it, and how it is summed up."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from r2l.datasets import Frames, develop_views
from r2l.datasets.splits import Fold
from r2l.files import write_csv
from r2l.isp import StaticISP, save_isp
from r2l.isp.grammar import open_pipelines
from r2l.isp.saving import can_be_saved
from r2l.isp.static import pipeline_code
from r2l.options import Options
from r2l.training.adversarial import Adversary
from r2l.training.checkpoints import mixed_seed
from r2l.training.components import UNKNOWN, Components, build_model
from r2l.training.export import MetricTracker, StageTracker
from r2l.training.fit import Model, epoch_numbers
from r2l.training.folds import image_batches, train_fold
from r2l.training.metrics import fold_scores
from r2l.training.models import channel_statistics
from r2l.training.module import RawToLogits
from r2l.training.predict import Trained, predict, predict_matrix
from r2l.training.run_folder import TESTED
from r2l.training.saving import NORM, About, save_model, save_norm
from r2l.training.tracking import Run, resolve

# Options that `fit` takes under the same names.
_OF_FIT = ("epochs", "batch_size", "lr", "processor_lr", "weight_decay", "num_workers", "augmentation")
_OF_FIT += ("freeze_processor", "accelerator", "precision", "gradient_clip_val")


class _BestEpoch(Callback):
    """Keeps the weights of the epoch with the lowest loss on the validation images, on the CPU."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.loss, self.weights = float("inf"), {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = epoch_numbers(trainer).get("val_loss", float("inf"))
        if loss < self.loss:
            self.epoch, self.loss = trainer.current_epoch, loss
            state = pl_module.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)


@dataclass
class FoldTrainer:
    """Trains the folds of one experiment, of resolved options and raw frames."""

    options: Options
    data: Frames
    components: Components
    progress: bool = True

    @property
    def fixed(self) -> bool:
        """Whether the processing stays as it is, so that images can be developed once for all."""
        frozen = self.options.freeze_processor or self.components.mode in ("static", "none")
        return frozen and not self.options.adv_training

    @cached_property
    def images(self) -> Frames:
        """All images as the initial processor develops them."""
        on_gpu = self.options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        mode, device = self.components.mode, "cuda" if on_gpu else "cpu"
        pipelines = {mode: self.components.processor}
        return develop_views(self.data, pipelines, device=device, progress=self.progress).view(mode)

    def run(self, number: int, fold: Fold, record: Run, folder: Path) -> pd.DataFrame:
        """Train one fold and return the answers to its validation images, one row each.

        Checkpoints and, if asked for, models go to ``folder``, all else to ``record``.
        """
        seed = mixed_seed(self.options.seed, number)
        if self.options.adv_training:
            model, description = self._model(fold, self.images)
            trained, table = self._train_adversary(model, fold, seed, record, folder)
        else:
            data = self.images if self.fixed else self.data
            model, description = self._model(fold, data)
            best = _BestEpoch()
            callbacks = [best, *self._callbacks(fold, record)]
            trained = self._train(data, fold, seed, folder / "checkpoint", model, callbacks)
            table = self._answers(trained, data, fold)
            if best.epoch is not None and best.epoch < self.options.epochs - 1:
                # Beside the last, whose answers count: this one was chosen by the validation images.
                earlier = copy.deepcopy(trained)
                earlier.load_state_dict(best.weights)
                self._keep(earlier, description, record, folder / "best")
        table = table.assign(fold=number)
        self._keep(trained, description, record, folder)
        record.table(table, "predictions.csv")
        if self.options.tested_codes:
            self._test(trained, fold, number, record, folder)
        for row in fold_scores(table, len(self.data.classes)).to_dict("records"):
            prefix = f"{row.pop('processing')}." if "processing" in row else "final."
            record.metrics({prefix + name: value for name, value in row.items()})
        return table

    def _train_adversary(
        self, model: Model, fold: Fold, seed: int, record: Run, folder: Path
    ) -> tuple[RawToLogits, pd.DataFrame]:
        """Train the task model, if none was loaded, then search the processing under which it fails."""
        options = self.options
        if self.components.model is None:
            own = [MetricTracker(record, "task_model.")]  # it has curves of its own
            checkpoint = folder / "checkpoint_model"
            model = self._train(self.images, fold, seed, checkpoint, model, own, freeze_model=False).model
        adversary = Adversary(options.adv_aux_weight, options.adv_aux_loss, options.adversarial_parameters)
        settings = {"callbacks": self._callbacks(fold, record), "adversary": adversary}
        trained = self._train(self.data, fold, seed, folder / "checkpoint", model, **settings)
        original = RawToLogits(model, trained.reference, task=self.data.task)
        tables = [
            self._answers(module, self.data, fold).assign(processing=name)
            for name, module in (("original", original), ("adversarial", trained))
        ]
        return trained, pd.concat(tables, ignore_index=True)

    def _model(self, fold: Fold, data: Frames) -> tuple[Model, dict[str, Any]]:
        """Return the task model to begin with, or what makes it, and how it is described."""
        components = self.components
        if components.model is not None:
            return components.model, dict(components.description)
        if components.mode == "neural_network" and components.fresh and not self.fixed:
            statistics = UNKNOWN
        else:
            processor = None if data.raw is None else components.processor.eval()
            statistics = channel_statistics(image_batches(data, fold.train, processor))
        targets = self.data.truth[fold.train] if self.data.task == "regression" else None
        return build_model(self.options, self.data, *statistics, targets)

    def _train(
        self,
        data: Frames,
        fold: Fold,
        seed: int,
        checkpoint: Path,
        model: Model,
        callbacks: list[Callback],
        **special: Any,
    ) -> RawToLogits:
        """Train on raw frames, or on images that are ready, as the options and ``special`` settings say."""
        options, components = self.options, self.components
        settings = {name: getattr(options, name) for name in _OF_FIT} | {
            "processor": None if data.raw is None else components.processor,
            "output_norm": options.output_norm if components.norm is None else components.norm,
            "freeze_model": options.freeze_classifier,
            "validate_every": options.check_val_every_n_epoch,
            "checkpoint": checkpoint,
            "callbacks": callbacks,
            "progress": self.progress,
        }
        return train_fold(data, fold, model, seed, validate=True, **settings | special)

    def _callbacks(self, fold: Fold, record: Run) -> list[Callback]:
        options = self.options
        if not (options.track_processing or options.track_predictions):
            return [MetricTracker(record)]
        tracker = StageTracker(
            record,
            # Raw frames, also where training sees images that are ready.
            self.data.subset(fold.test),
            n_images=options.track_n_images,
            every_epoch=options.track_every_epoch,
            images=options.track_processing,
            gradients=options.track_processing_gradients,
            tensors=options.track_save_tensors,
            predictions=options.track_predictions,
            differences=options.adv_training and options.adv_track_differences,
            processor=self.components.processor if self.fixed else None,
        )
        return [MetricTracker(record), tracker]

    def _answers(self, module: RawToLogits, data: Frames, fold: Fold) -> pd.DataFrame:
        how = {name: getattr(self.options, name) for name in ("batch_size", "accelerator")}
        return self._named(predict(module, {self.components.mode: data.subset(fold.test)}, **how))

    def _named(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(name=self.data.names[table["image"].to_numpy()])

    def _test(self, trained: RawToLogits, fold: Fold, number: int, record: Run, folder: Path) -> None:
        """Ask the task model about the validation images as each of the test pipelines develops them."""
        isp, options = self.components.processor, self.options
        name = options.pipeline or self.components.mode
        if isinstance(isp, StaticISP) and not options.pipeline:
            name = pipeline_code(isp.demosaic, isp.sharpening, isp.denoising)
        # The other images are another fold's, and need not be developed.
        frames = self.data.take(fold.test)
        model = Trained(trained, name, np.arange(len(frames)), options.seed, number)
        isps = open_pipelines(
            options.tested_codes, frames.camera, fetch=lambda address: resolve(address, options.tracking_uri)
        )
        table = predict_matrix([model], frames, isps, batch_size=options.batch_size, progress=False)
        table = self._named(table.assign(image=fold.test[table["image"]]))
        write_csv(table, folder / TESTED)
        record.table(table, TESTED)

    def _keep(self, trained: RawToLogits, description: dict[str, Any], record: Run, folder: Path) -> None:
        """Save processor and task model where the options say."""
        options, data, processor = self.options, self.data, trained.processor
        if isinstance(processor, nn.Identity):
            processor = self.components.processor
        kept, has_norm = can_be_saved(processor), isinstance(trained.norm, nn.BatchNorm2d)
        how = options.own_colours, options.lens_corrections
        about = About(data.task, tuple(data.classes), data.camera, data.shape, *how)
        description = {**description, **about.to_dict()}
        if options.save_locally:
            if kept:
                save_isp(processor, folder / "processor")
            save_model(description, trained.model, folder / "model")
            if has_norm:
                save_norm(trained.norm, folder)
        if options.log_model:
            at = "best/" if folder.name == "best" else ""
            if kept:
                record.model(processor, f"{at}processor")
            record.model(trained.model, f"{at}model", description=description)
            if has_norm:
                record.tensors(trained.norm.state_dict(), f"{at}{NORM}")
