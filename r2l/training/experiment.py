"""The experiment behind `r2l train`: folds, training, answers, records; and going on after a kill."""

import copy
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

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
from r2l.options import Options, resolve_options
from r2l.training.adversarial import Adversary
from r2l.training.checkpoints import mixed_seed
from r2l.training.components import (
    UNKNOWN,
    Components,
    Say,
    about_data,
    build_model,
    make_folds,
    open_components,
    open_data,
)
from r2l.training.export import BestEpoch, MetricTracker, StageTracker
from r2l.training.fit import Model
from r2l.training.folds import image_batches, train_fold
from r2l.training.metrics import describe_scores, fold_scores, per_class, scores, summarise_folds
from r2l.training.models import channel_statistics, n_outputs
from r2l.training.module import RawToLogits
from r2l.training.predict import Trained, device_of, predict, predict_matrix
from r2l.training.run_folder import TESTED, RunFolder, run_folder
from r2l.training.saving import About, save_model, save_norm
from r2l.training.tracking import Run, find_run, open_client, resolve, store_address, track

# Options that `fit` takes under the same names.
_OF_FIT = ("epochs", "batch_size", "lr", "processor_lr", "weight_decay", "num_workers", "augmentation")
_OF_FIT += ("freeze_processor", "accelerator", "precision", "gradient_clip_val")


@dataclass(frozen=True)
class Outcome:
    """What came out of an experiment: the id of its record, and what it left on disk.

    Attributes:
        scores: one row a fold (with adversarial processing two: before and after).
        predictions: one row a validation image, see `predict`; with ``fold`` and ``name``.
        tested: the same under each of the ``test_pipelines``, in the column ``test``; None without.
    """

    run_id: str
    folder: Path
    scores: pd.DataFrame
    predictions: pd.DataFrame
    tested: pd.DataFrame | None = None


def experiment(options: Options, say: Say = print, progress: bool = True) -> Outcome:
    """Train and validate, fold by fold, with a record of each; go on where an interrupted run stopped.

    All that can be wrong with options, data, addresses, weights and store is found before the training.

    ``say`` is told in lines what follows from the options, how each fold went, and the summary.

    Raises:
        ValueError: options that contradict each other or don't fit the data; what is at an address isn't
            what is wanted.
        OSError: data, weights or store that aren't there.
        KeyboardInterrupt: the record is marked as killed, the checkpoint stays.
    """
    options, lines = resolve_options(options)
    device_of(options.accelerator)  # noticed now, and not after the work
    data = open_data(options, progress)
    folds = make_folds(data, options)
    numbers = range(len(folds)) if options.fold is None else [options.fold]
    for line in (*lines, *about_data(data, folds, options)):
        say(line)
    open_client(options.tracking_uri)  # likewise
    components = open_components(options, data, say)
    with run_folder(options, data.fingerprint()) as folder, ExitStack() as stack:
        run = _record(options, data, folder, say, stack)
        # Of a resumed run too: the process before may have been killed just before.
        run.values(data.camera.to_dict(), "camera.json")
        trainer = _FoldTrainer(options, data, components, progress)
        tables = {}
        for number in numbers:
            table = folder.answers(number)
            if table is None:
                # An interrupted one's record is opened again.
                known = folder.note["folds"].get(str(number))
                own = {"run_id": known, "folder": folder.fold(number)}
                with run.nested(f"fold {number}", {"fold": number}, **own) as record:
                    folder.keep(folds={**folder.note["folds"], str(number): record.run_id})
                    record.values({"train": folds[number].train, "val": folds[number].test}, "split.json")
                    table = trainer.run(number, folds[number], record, folder.fold(number))
                table = folder.finish_fold(number, table)
            say(f"fold {number}: {describe_scores(table, len(data.classes))}")
            tables[number] = table
        outcome, lines = _conclude(options, data, tables, run, folder)
    for line in lines:
        say(line)
    return outcome


def _record(options: Options, data: Frames, folder: RunFolder, say: Say, stack: ExitStack) -> Run:
    """Open the record of a run, an interrupted one's again if it is still there."""
    known, folds = folder.note.get("run_id"), folder.note.get("folds", {})
    if folder.resumed:
        done = sum(folder.answers(n) is not None for n in range(options.n_splits))
        say(
            f"going on with the run in {folder.path}, {done} of {options.n_splits} folds finished "
            "(--no_resume begins a new one)"
        )
        # A store that fails now still has the record, and those of the finished folds.
        if known and not find_run(open_client(options.tracking_uri), known):
            say(f"its record {known} is not in the store any more: a new one")
            known, folds = None, {}
    found = {"images": len(data), "skipped": len(data.skipped), "resolved_task": data.task}
    # A record's settings can't be changed, and the number of workers may be another now.
    settings = None if known else asdict(options) | found
    where = {"store": options.tracking_uri, "run_id": known, "folder": folder.path}
    run = stack.enter_context(track(options.experiment_name, options.run_name, settings, **where))
    folder.keep(run_id=run.run_id, folds=folds)
    return run


def _conclude(
    options: Options, data: Frames, tables: dict[int, pd.DataFrame], run: Run, folder: RunFolder
) -> tuple[Outcome, list[str]]:
    """Record what came out of all folds; return it, and what is to be said of it."""
    n_classes, layout = len(data.classes), {"float_format": "{:.4g}".format}
    rows = [fold_scores(t, n_classes).assign(fold=n) for n, t in tables.items()]
    folds, answers = pd.concat(rows, ignore_index=True), pd.concat(tables.values(), ignore_index=True)
    for row in folds.to_dict("records"):
        prefix = f"{row.pop('processing')}." if "processing" in row else ""
        run.metrics({prefix + k: v for k, v in row.items() if k != "fold"}, step=row["fold"])
    summary = summarise_folds(folds)
    for name, table in {"scores": folds, "summary": summary, "predictions": answers}.items():
        run.table(table, f"{name}.csv")
    write_csv(folds, folder.path / "scores.csv")
    lines = ["\n" + summary.to_string(index=False, **layout) + "\n"]
    several = data.task == "classification" or n_outputs(data.task, n_classes) > 1
    if several and not options.adv_training:
        lines.append(per_class(answers, data.classes).to_string(**layout) + "\n")
    parts = [t for n in tables if (t := folder.answers(n, TESTED)) is not None]
    tested = pd.concat(parts, ignore_index=True) if parts else None
    if tested is not None:
        table = scores(tested, n_classes or None, by="test")
        run.table(table, "tested_scores.csv", index=True)
        for code, row in table.drop(columns="images").iterrows():
            run.metrics({f"test.{code}.{name}": value for name, value in row.items()})
        lines.append("under the test pipelines:\n" + table.to_string(**layout) + "\n")
    if options.splits == "published" and options.n_splits > 1:
        lines.append("the splits overlap and share groups, as published: the scores are too good")
    lines.append(f"run {run.run_id} in {store_address(options.tracking_uri)}; folder {folder.path}")
    if options.log_model:
        number, record = next(iter(folder.note["folds"].items()))
        again = f"--processor_uri runs:/{record}/processor --classifier_uri runs:/{record}/model"
        if options.output_norm != "none":
            # What lies between the two comes with both only.
            again = f"--state_dict_uri runs:/{record} --output_norm {options.output_norm}"
        lines.append(f"fold {number} again: {again} --n_splits {options.n_splits} --fold {number}")
        output = "masks" if data.task == "segmentation" else "answers.csv"
        lines.append(f"fold {number} in use: r2l predict runs:/{record} PHOTOS -o {output}")
    return Outcome(run.run_id, folder.path, folds, answers, tested), lines


@dataclass
class _FoldTrainer:
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
        seed, callbacks = mixed_seed(self.options.seed, number), self._callbacks(fold, record)
        how = {"seed": seed, "checkpoint": folder / "checkpoint", "callbacks": callbacks}
        data = self.images if self.fixed or self.options.adv_training else self.data
        model, description = self._model(fold, data)
        if self.options.adv_training:
            trained, table = self._train_adversary(model, fold, record, how)
        else:
            best = BestEpoch()
            callbacks.insert(0, best)
            trained = self._train(data, fold, model, **how)
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
        self, model: Model, fold: Fold, record: Run, how: dict[str, Any]
    ) -> tuple[RawToLogits, pd.DataFrame]:
        """Train the task model, if none was loaded, then search the processing under which it fails."""
        options = self.options
        if self.components.model is None:
            own = {"callbacks": [MetricTracker(record, "task_model.")]}  # it has curves of its own
            own |= {"checkpoint": how["checkpoint"].with_name("checkpoint_model"), "freeze_model": False}
            model = self._train(self.images, fold, model, **how | own).model
        adversary = Adversary(options.adv_aux_weight, options.adv_aux_loss, options.adversarial_parameters)
        trained = self._train(self.data, fold, model, adversary=adversary, **how)
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
        is_fresh = not (self.options.processor_uri or self.options.state_dict_uri)
        if components.mode == "neural_network" and is_fresh and not self.fixed:
            statistics = UNKNOWN
        else:
            processor = None if data.raw is None else components.processor.eval()
            statistics = channel_statistics(image_batches(data, fold.train, processor))
        targets = self.data.truth[fold.train] if self.data.task == "regression" else None
        return build_model(self.options, self.data, *statistics, targets)

    def _train(self, data: Frames, fold: Fold, model: Model, **special: Any) -> RawToLogits:
        """Train on raw frames, or on images that are ready, as the options and ``special`` settings say."""
        options, components = self.options, self.components
        settings = {name: getattr(options, name) for name in _OF_FIT} | {
            "processor": None if data.raw is None else components.processor,
            "output_norm": options.output_norm if components.norm is None else components.norm,
            "freeze_model": options.freeze_classifier,
            "validate_every": options.check_val_every_n_epoch,
            "progress": self.progress,
        }
        return train_fold(data, fold, model, validate=True, **settings | special)

    def _callbacks(self, fold: Fold, record: Run) -> list[Callback]:
        options = self.options
        if not (options.track_processing or options.track_predictions):
            return [MetricTracker(record)]
        what = {
            "images": options.track_processing,
            "gradients": options.track_processing_gradients,
            "tensors": options.track_save_tensors,
            "predictions": options.track_predictions,
            "differences": options.adv_training and options.adv_track_differences,
        }
        tracker = StageTracker(
            record,
            # Raw frames, also where training sees images that are ready.
            self.data.subset(fold.test),
            [name for name, asked in what.items() if asked],
            n_images=options.track_n_images,
            every_epoch=options.track_every_epoch,
            processor=self.components.processor if self.fixed else None,
        )
        return [MetricTracker(record), tracker]

    def _answers(self, module: RawToLogits, data: Frames, fold: Fold) -> pd.DataFrame:
        how = {name: getattr(self.options, name) for name in ("batch_size", "accelerator")}
        table = predict(module, {self.components.mode: data.subset(fold.test)}, **how)
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
        fetch = partial(resolve, store=options.tracking_uri)
        isps = open_pipelines(options.tested_codes, frames.camera, fetch=fetch)
        table = predict_matrix([model], frames, isps, batch_size=options.batch_size, progress=False)
        image = fold.test[table["image"]]
        table = table.assign(image=image, name=self.data.names[image])
        write_csv(table, folder / TESTED)
        record.table(table, TESTED)

    def _keep(self, trained: RawToLogits, description: dict[str, Any], record: Run, folder: Path) -> None:
        """Save processor and task model where the options say."""
        options, data, processor = self.options, self.data, trained.processor
        if isinstance(processor, nn.Identity):
            processor = self.components.processor
        how = options.own_colours, options.lens_corrections
        about = About(data.task, tuple(data.classes), data.camera, data.shape, *how)
        description = {**description, **about.to_dict()}

        def save(home: Path) -> None:
            save_model(description, trained.model, home / "model")
            if can_be_saved(processor):
                save_isp(processor, home / "processor")
            if isinstance(trained.norm, nn.BatchNorm2d):
                save_norm(trained.norm, home)

        if options.save_locally:
            save(folder)
        if options.log_model:
            with record.files() as home:
                save(home / ("best" if folder.name == "best" else ""))
