"""One fold after the other: what is trained on what, what is kept of it, and how it is summed up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import Dataset, Subset

from r2l.datasets.splits import Fold
from r2l.files import atomic_path
from r2l.isp import StaticISP, save_isp
from r2l.options import Options
from r2l.training.adversarial import Adversary
from r2l.training.callbacks import DifferenceTracker, MetricTracker, StageTracker
from r2l.training.components import UNKNOWN, Components, build_model, image_statistics
from r2l.training.corpora import Corpus
from r2l.training.developed import Developed, develop
from r2l.training.fit import fit
from r2l.training.fold_scores import table_scores
from r2l.training.module import RawToLogits
from r2l.training.predict import predict
from r2l.training.run_folder import TESTED
from r2l.training.saving import NORM, save_model, save_norm
from r2l.training.tracking import Run


@dataclass
class FoldTrainer:
    """Trains the folds of one experiment.

    Args:
        options: resolved ones.
        corpus: the data.
        parts: processor and, if it was loaded, task model.
        progress: whether to show bars.
    """

    options: Options
    corpus: Corpus
    parts: Components
    progress: bool = True

    @property
    def fixed(self) -> bool:
        """Whether the processing stays as it is, so that images can be developed once for all."""
        frozen = self.options.freeze_processor or self.parts.mode in ("static", "none")
        return frozen and not self.options.adv_training

    @cached_property
    def images(self) -> Developed:
        """All images as the initial processor develops them."""
        on_gpu = self.options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        processor, device = self.parts.processor, "cuda" if on_gpu else "cpu"
        return develop(self.corpus.data, processor, device=device, progress=self.progress)

    @cached_property
    def frames(self) -> Developed:
        """All raw frames, read or drawn once."""
        return develop(self.corpus.data, progress=self.progress)

    def run(self, number: int, fold: Fold, record: Run, place: Path) -> pd.DataFrame:
        """Train one fold and return the answers to its validation images, one row each.

        Args:
            number: of the fold.
            fold: indices of its training and validation images.
            record: where to write about it.
            place: folder for checkpoints and, if asked for, models.
        """
        # Mixed, so that fold 1 of seed 0 does not share its draws with fold 0 of seed 1.
        seed = int(np.random.SeedSequence((self.options.seed, number)).generate_state(1)[0])
        model, description = self._model(fold)
        if self.options.adv_training:
            if self.parts.model is None:
                seen = [MetricTracker(record, "task_model.")]  # it has curves of its own
                first = self._fit(model, fold, seed, seen, place / "checkpoint_model", False)
                model = first.model
            seen = self._callbacks(fold, record)
            trained = self._fit(model, fold, seed, seen, place / "checkpoint", True)
            original = RawToLogits(model, trained.reference, task=self.corpus.task)
            tables = [
                self._answers(module, self.frames, fold).assign(processing=name)
                for name, module in (("original", original), ("adversarial", trained))
            ]
            table = pd.concat(tables, ignore_index=True)
        else:
            seen = self._callbacks(fold, record)
            trained = self._fit(model, fold, seed, seen, place / "checkpoint", False)
            table = self._answers(trained, self._data(False), fold)
        table = table.assign(fold=number)
        self._keep(trained, description, record, place)
        record.predictions(table)
        if self.options.tested_codes:
            self._test(trained, fold, number, record, place)
        for row in table_scores(self.corpus, table).to_dict("records"):
            prefix = f"{row.pop('processing')}." if "processing" in row else "final."
            record.metrics({prefix + name: value for name, value in row.items()})
        return table

    def _data(self, adversarial: bool) -> Developed:
        developed = self.fixed or (self.options.adv_training and not adversarial)
        return self.images if developed else self.frames

    def _model(self, fold: Fold) -> tuple[Any, dict[str, Any]]:
        """Return the task model to begin with, or what makes it, and how it is described."""
        if self.parts.model is not None:
            return self.parts.model, dict(self.parts.description)
        if self.parts.mode == "neural_network" and self.parts.fresh and not self.fixed:
            # What a fresh network's images will be like is not known before it is trained.
            statistics = UNKNOWN
        else:
            data = self._data(False)
            processor = self.parts.processor if data.key == "raw" else None
            statistics = image_statistics(data, fold.train, processor)
        return build_model(self.options, self.corpus, *statistics, self._targets(fold))

    def _targets(self, fold: Fold) -> torch.Tensor | None:
        """Return the numbers of the training images (N,), None where there are none."""
        if self.corpus.task != "regression":
            return None
        others = self._data(False).others
        return torch.stack([others[i]["target"] for i in fold.train.tolist()])

    def _fit(
        self,
        model: Any,
        fold: Fold,
        seed: int,
        callbacks: list[Callback],
        checkpoint: Path,
        adversarial: bool,
    ) -> RawToLogits:
        options, parts, data = self.options, self.parts, self._data(adversarial)
        adversary = Adversary(
            options.adv_aux_weight, options.adv_aux_loss, options.adversarial_parameters
        )
        first = options.adv_training and not adversarial
        return fit(
            model,
            Subset(data, fold.train.tolist()),
            processor=parts.processor if data.key == "raw" else None,
            validation=Subset(data, fold.test.tolist()),
            task=self.corpus.task,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            weight_decay=options.weight_decay,
            seed=seed,
            num_workers=options.num_workers,
            augmentation=options.augmentation,
            output_norm=options.output_norm if parts.norm is None else parts.norm,
            freeze_processor=options.freeze_processor and not adversarial,
            freeze_model=options.freeze_classifier and not first,
            adversary=adversary if adversarial else None,
            checkpoint=checkpoint,
            validate_every=options.check_val_every_n_epoch,
            progress=self.progress,
            callbacks=callbacks,
            **self._trainer(),
        )

    def _trainer(self) -> dict[str, Any]:
        options = self.options
        return {
            "accelerator": options.accelerator,
            "precision": options.precision,
            "gradient_clip_val": options.gradient_clip_val,
        }

    def _callbacks(self, fold: Fold, record: Run) -> list[Callback]:
        options = self.options
        callbacks: list[Callback] = [MetricTracker(record)]
        developed = self._data(options.adv_training).key == "image"
        # What is looked into are raw frames, also where training sees images that are ready.
        looked = Subset(self.corpus.data if developed else self.frames, fold.test.tolist())
        each = {"n_images": options.track_n_images, "every_epoch": options.track_every_epoch}
        if options.track_processing or options.track_predictions:
            tracker = StageTracker(
                record,
                looked,
                images=options.track_processing,
                gradients=options.track_processing_gradients,
                tensors=options.track_save_tensors,
                predictions=options.track_predictions,
                processor=self.parts.processor if developed else None,
                **each,
            )
            callbacks.append(tracker)
        if options.adv_training and options.adv_track_differences:
            callbacks.append(DifferenceTracker(record, looked, **each))
        return callbacks

    def _answers(
        self, module: RawToLogits, data: Dataset, fold: Fold, domain: str | None = None
    ) -> pd.DataFrame:
        part = Subset(data, fold.test.tolist())
        options = self.options
        table = predict(
            module,
            {domain or self.parts.mode: part},
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            accelerator=options.accelerator,
        )
        return table.assign(name=self.corpus.names[table["image"].to_numpy()])

    def _test(
        self, trained: RawToLogits, fold: Fold, number: int, record: Run, place: Path
    ) -> None:
        """Ask the task model about the validation images as each of the test pipelines develops them."""
        tables = []
        for code in self.options.tested_codes:
            isp = StaticISP.from_code(code, self.corpus.camera)
            module = RawToLogits(trained.model, isp, task=self.corpus.task)
            module.norm = trained.norm
            tables.append(self._answers(module, self.frames, fold, code))
        table = pd.concat(tables, ignore_index=True).assign(fold=number)
        table = table.rename(columns={"pipeline": "test"})
        with atomic_path(place / TESTED) as partial:
            table.to_csv(partial, index=False)
        record.table(table, TESTED)

    def _keep(
        self, trained: RawToLogits, description: dict[str, Any], record: Run, place: Path
    ) -> None:
        """Save processor and task model where the options say."""
        processor = trained.processor
        if isinstance(processor, nn.Identity):
            processor = self.parts.processor
        has_norm = isinstance(trained.norm, nn.BatchNorm2d)
        if self.options.save_locally:
            save_isp(processor, place / "processor")
            save_model(description, trained.model, place / "model")
            if has_norm:
                save_norm(trained.norm, place)
        if self.options.log_model:
            record.model(processor, "processor")
            record.model(trained.model, "model", description=description)
            if has_norm:
                record.tensors(trained.norm.state_dict(), NORM)
