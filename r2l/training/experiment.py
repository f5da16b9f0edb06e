"""The experiment behind `r2l train`: folds, training, answers, records; and going on after a kill."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from r2l.datasets import Frames
from r2l.datasets.splits import Fold
from r2l.files import write_csv
from r2l.options import Options, resolve_options
from r2l.training import metrics
from r2l.training.components import Say, make_folds, open_components, open_data
from r2l.training.crossval import FoldTrainer
from r2l.training.metrics import describe_scores, fold_scores, per_class, summarise_folds
from r2l.training.models import n_outputs
from r2l.training.predict import device_of
from r2l.training.run_folder import TESTED, RunFolder, run_folder
from r2l.training.tracking import Run, TrackingError, open_client, store_address, track


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
    for line in (*lines, *_about(data, folds, options)):
        say(line)
    open_client(options.tracking_uri)  # likewise
    components = open_components(options, data, say)
    with run_folder(options, data.fingerprint()) as folder, _record(options, data, folder, say) as run:
        # Of a resumed run too: the process before may have been killed just before.
        run.values(data.camera.to_dict(), "camera.json")
        trainer = FoldTrainer(options, data, components, progress)
        tables = {}
        for number in numbers:
            table = folder.answers(number)
            if table is None:
                # An interrupted one's record is opened again.
                known = folder.note["folds"].get(str(number))
                with run.nested(f"fold {number}", {"fold": number}, known) as record:
                    folder.keep(folds={**folder.note["folds"], str(number): record.run_id})
                    record.values({"train": folds[number].train, "val": folds[number].test}, "split.json")
                    table = trainer.run(number, folds[number], record, folder.fold(number))
                table = folder.finish_fold(number, table)
            say(f"fold {number}: {describe_scores(table, len(data.classes))}")
            tables[number] = table
        outcome = _conclude(data, tables, run, folder)
    for line in _closing(options, data, folder, outcome):
        say(line)
    return outcome


def _about(data: Frames, folds: list[Fold], options: Options) -> Iterator[str]:
    camera, (height, width) = data.camera, data.shape
    classes = f", {len(data.classes)} classes" if data.classes else ""
    number = "1 split" if len(folds) == 1 else f"{len(folds)} folds"
    number += "" if options.fold is None else f", number {options.fold} alone"
    yield (
        f"{options.dataset}: {len(data)} images of {height} x {width}, {data.task}{classes}; {number} "
        f"({len(folds[0].train)} to train, {len(folds[0].test)} to validate)"
    )
    balance = " ".join(f"{gain:.4g}" for gain in camera.white_balance)
    whose = "each file's own scaled to its" if options.own_colours else "its"
    yield f"camera {camera.name}, {camera.cfa.name}, {whose} white balance {balance}"
    if data.skipped:
        yield f"{len(data.skipped)} left out as broken: {'; '.join(data.skipped)}"
    if data.task == "classification" and len(folds) > 1:
        counts = np.bincount(data.labels, minlength=len(data.classes)).tolist()
        few = [f"{c} ({n})" for c, n in zip(data.classes, counts, strict=True) if n < len(folds)]
        if few:
            yield f"fewer images than folds, so that some folds don't test them: {', '.join(few)}"


@contextmanager
def _record(options: Options, data: Frames, folder: RunFolder, say: Say) -> Iterator[Run]:
    """Open the record of a run, an interrupted one's again if it is still there."""
    known = folder.note.get("run_id")
    if folder.resumed and known:
        done = sum(folder.answers(n) is not None for n in range(options.n_splits))
        say(
            f"going on with the run in {folder.path}, {done} of {options.n_splits} folds finished "
            "(--no_resume begins a new one)"
        )
        again = track(options.experiment_name, store=options.tracking_uri, run_id=known)
        with ExitStack() as stack:
            try:
                run = stack.enter_context(again)
            except TrackingError:
                say(f"its record {known} is not in the store any more: a new one")
            else:
                yield run
                return
    settings = asdict(options) | {"images": len(data), "resolved_task": data.task}
    tags = {"r2l.folder": str(folder.path.resolve())}
    about = options.run_name, settings | {"skipped": len(data.skipped)}, tags
    with track(options.experiment_name, *about, options.tracking_uri) as run:
        folder.keep(run_id=run.run_id, folds={})
        yield run


def _conclude(data: Frames, tables: dict[int, pd.DataFrame], run: Run, folder: RunFolder) -> Outcome:
    scores = pd.concat(
        [fold_scores(t, len(data.classes)).assign(fold=n) for n, t in tables.items()], ignore_index=True
    )
    predictions = pd.concat(tables.values(), ignore_index=True)
    tested = [t for n in tables if (t := folder.answers(n, TESTED)) is not None]
    for row in scores.to_dict("records"):
        prefix = f"{row.pop('processing')}." if "processing" in row else ""
        run.metrics({prefix + k: v for k, v in row.items() if k != "fold"}, step=row["fold"])
    run.table(scores, "scores.csv")
    run.table(summarise_folds(scores), "summary.csv")
    run.table(predictions, "predictions.csv")
    write_csv(scores, folder.path / "scores.csv")
    under = pd.concat(tested, ignore_index=True) if tested else None
    if under is not None:
        table = metrics.scores(under, len(data.classes) or None, by="test")
        run.table(table, "tested_scores.csv", index=True)
        for code, row in table.drop(columns="images").iterrows():
            run.metrics({f"test.{code}.{name}": value for name, value in row.items()})
    return Outcome(run.run_id, folder.path, scores, predictions, under)


def _closing(options: Options, data: Frames, folder: RunFolder, outcome: Outcome) -> Iterator[str]:
    layout: dict[str, Any] = {"float_format": "{:.4g}".format}
    yield "\n" + summarise_folds(outcome.scores).to_string(index=False, **layout) + "\n"
    several = data.task == "classification" or n_outputs(data.task, len(data.classes)) > 1
    if several and not options.adv_training:
        yield per_class(outcome.predictions, data.classes).to_string(**layout) + "\n"
    if outcome.tested is not None:
        table = metrics.scores(outcome.tested, len(data.classes) or None, by="test")
        yield "under the test pipelines:\n" + table.to_string(**layout) + "\n"
    if options.splits == "published" and options.n_splits > 1:
        yield "the splits overlap and share groups, as published: the scores are too good"
    yield f"run {outcome.run_id} in {store_address(options.tracking_uri)}; folder {outcome.folder}"
    if options.log_model:
        number, record = next(iter(folder.note["folds"].items()))
        again = f"--processor_uri runs:/{record}/processor --classifier_uri runs:/{record}/model"
        if options.output_norm != "none":
            # What lies between the two comes with both only.
            again = f"--state_dict_uri runs:/{record} --output_norm {options.output_norm}"
        yield f"fold {number} again: {again} --n_splits {options.n_splits} --fold {number}"
        output = "masks" if data.task == "segmentation" else "answers.csv"
        yield f"fold {number} in use: r2l predict runs:/{record} PHOTOS -o {output}"
