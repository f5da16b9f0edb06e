"""Using a saved model: `r2l predict` on raw files, `r2l evaluate` and `r2l tolerances` on labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2l.cli.commands import (
    EXIT_ERROR,
    argument,
    check_free,
    check_targets,
    option,
    replacing,
    told,
    with_options,
)
from r2l.cli.raw import CAMERA, HEADERLESS, headerless_layout
from r2l.option_fields import TASK_OF
from r2l.options import FIELDS, Options

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from r2l.datasets import Frames
    from r2l.rawfile import RawLayout
    from r2l.training.loading import SavedModel

#: Those of the `Options` that say how a model is asked, with what differs from their meaning in training.
_HOW = {"batch_size": {"help": "Images at a time.", "group": None}}
_HOW |= {"accelerator": {"group": None}, "tracking_uri": {"group": None}}
#: And about which labelled images.
_ASKING = {n: {} for n, option in FIELDS.items() if option.metadata["group"] in ("Data", "Splits")}
_ASKING |= _HOW | {
    "skip_broken": {"help": "RawFolder: leave out files that can't be read."},
    "n_splits": {"help": "Folds of the training; 1: it made one split."},
    "train_size": {"help": "Share of training images in that one split."},
    "splits": {"help": "groups or published, as in the training."},
    "fold": {"help": "Only the images that this fold validated.  [default: all images]"},
    "seed": {"help": "Of the training's splits.", "group": "Splits"},
}

_MODEL = "runs:/RUN_ID of a fold, its folder (--save_locally), models:/name/1 or models:/name@alias."
_DATA = "A data set's name, or a folder of raw files: short for --dataset and --root."
_TRUSTED = "A network of your own, module:function, that may be run."
_Model = Annotated[str, argument("MODEL", _MODEL)]
_Data = Annotated[str | None, argument("DATA", _DATA)]
_Trusted = Annotated[list[str] | None, option(_TRUSTED, metavar="NAME")]
_Force = Annotated[bool, replacing("files that exist")]


def _output(help: str) -> Any:
    return option(help, "--output", "-o", metavar="PATH")


def predict(
    model: _Model,
    photos: Annotated[list[Path], argument("PHOTO", "Raw files, or folders of them.")],
    output: Annotated[Path, _output("A CSV; for segmentation the folder of the masks.")],
    camera: Annotated[str | None, CAMERA] = None,
    layout: Annotated[
        str | None, option("JSON that describes frames without a header.", metavar="FILE")
    ] = None,
    crop: Annotated[int | None, option("Cut this many pixels square out of the middle.")] = None,
    any_camera: Annotated[
        bool, option("Take other cameras' frames, in the model's colours.", "--any_camera")
    ] = False,
    trusted: _Trusted = None,
    force: _Force = False,
    **given: Any,
) -> None:
    """Ask a saved model about raw files: the probability of each class by name, or numbers, or masks.

    The CSV has a row a file: file, prediction and, for classes, p_NAME of each. A mask is a PNG: 255 where
    the object is or, of more classes than two, their numbers. Another layout and other levels than those of
    the model's camera are lined up; frames of another camera are refused. A file that fails is reported and
    skipped, and the exit status is 2.
    """
    from PIL import Image

    from r2l.datasets.labels import HEADERLESS as UNDESCRIBED
    from r2l.datasets.labels import raw_files
    from r2l.files import atomic_path
    from r2l.rawfile import RawLayout, load_camera, read_raw
    from r2l.training.loading import load
    from r2l.training.predict import device_of

    layout = _layout(given) or (RawLayout.from_file(layout) if layout else None)
    options = Options(**given)
    files = [file for path in photos for file in (raw_files(path) if path.is_dir() else [path])]
    files = list(dict.fromkeys(files))
    known = load_camera(camera) if camera else None
    asked = load(model, options.tracking_uri, trusted or ()).to(device_of(options.accelerator))
    targets = _targets(files, output, asked.task.name == "segmentation", force)
    failed: list[Path] = []

    def lined_up(path: Path) -> Tensor | None:
        try:
            with told(path):
                # Among frames without a header there may be others.
                described = layout if path.suffix.lower() in UNDESCRIBED else None
                frame = read_raw(path, known, described, lens_corrections=asked.about.lens_corrections)
                return asked.line_up(frame, crop=crop, any_camera=any_camera)
        except typer.Exit:
            failed.append(path)
            return None

    rows = []
    for path, answer in _answered(asked, files, lined_up, options.batch_size):
        if targets:
            mask = Image.fromarray(answer if len(asked.classes) > 2 else answer * 255)
            targets[path].parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(targets[path]) as partial:
                mask.save(partial, format="PNG")
        else:
            rows.append({"file": str(path), **_cells(answer)})
    if rows:
        _write_table(rows, output)
    where = output if len(failed) < len(files) else "nothing is written"
    print(f"{len(files) - len(failed)} of {len(files)} files answered: {where}")
    if failed:
        raise typer.Exit(EXIT_ERROR)


def evaluate(
    model: _Model,
    data: _Data = None,
    output: Annotated[Path | None, _output("Keep the answers, a row an image, as CSV.")] = None,
    trusted: _Trusted = None,
    force: _Force = False,
    **given: Any,
) -> None:
    """Test a saved model on labelled images, without training: scores, and those of each class.

    All images are asked about; with --fold those alone that this fold of --n_splits and --seed validates,
    as `r2l train` makes it. Frames of another layout or other levels are lined up, of another camera refused.
    """
    from r2l.training.metrics import fold_scores, per_class
    from r2l.training.models import n_outputs
    from r2l.training.predict import predict as ask

    options = _options(data, given)
    if output:
        check_free(output, force)
    asked, frames, indices = _open(model, options, trusted)
    how = {"batch_size": options.batch_size, "accelerator": options.accelerator, "progress": True}
    table = ask(asked, {options.dataset: frames.subset(indices)}, **how)
    layout = {"float_format": "{:.4g}".format}
    print(f"{len(table)} images of {options.dataset}, {asked.camera.name}\n")
    print(fold_scores(table, len(asked.classes)).to_string(index=False, **layout))
    if n_outputs(asked.task.name, len(asked.classes)) > 1:
        print(f"\n{per_class(table, asked.classes).to_string(**layout)}")
    if output:
        _write_table(table.assign(name=frames.names[table["image"]]), output)
        print(f"\n{output}")


def tolerances(
    model: _Model,
    output: Annotated[Path, _output("The report, JSON.")],
    data: _Data = None,
    drop: Annotated[float, typer.Option(help="By how much the metric may fall.")] = 0.05,
    metric: Annotated[str | None, option("accuracy, p_true or iou.  [default: as the task is]")] = None,
    points: Annotated[int, typer.Option(min=3, help="Values of a setting that are tried.")] = 21,
    pipeline: Annotated[
        str | None, option("Another than the model's own, as bi,s,ga.", metavar="CODE")
    ] = None,
    trusted: _Trusted = None,
    force: _Force = False,
    **given: Any,
) -> None:
    """Find how far each setting of a model's own processor may go, and write what `r2l check` reads.

    Give images that it was not trained on: those of its data set that --fold validates (see evaluate), say.
    """
    from r2l.drift.forensics import tolerance_report
    from r2l.drift.statistics import few_groups_text
    from r2l.training.predict import device_of

    options = _options(data, given)
    check_free(output, force)
    asked, frames, indices = _open(model, options, trusted)
    metric = metric or ("iou" if asked.task.name == "segmentation" else "accuracy")
    frames = frames.take(indices).to(device_of(options.accelerator))
    report = tolerance_report(asked, frames, pipeline, drop=drop, metric=metric, points=points, name=model)
    report.save(output)
    print(f"{report.metric} {report.score:.3f}, allowed to fall by {drop:g}")
    shown = report.table[["label", "value", "safe_low", "safe_high", "unit"]]
    print(shown.to_string(index=False, float_format="{:.4g}".format))
    then = f"{output}: r2l check --tolerances {output} --camera CAMERA"
    print(few_groups_text(report.groups), then, sep="\n")


with_options(predict, _HOW, HEADERLESS)
for _command in (evaluate, tolerances):
    with_options(_command, _ASKING, HEADERLESS)


def _layout(given: dict[str, Any]) -> RawLayout | None:
    """Take out of the options what they say of frames without a header."""
    return headerless_layout(**{name: given.pop(name) for name in HEADERLESS})


def _options(data: str | None, given: dict[str, Any]) -> Options:
    """Return the options, with what a positional argument says of the data."""
    if layout := _layout(given):
        given["layout"] = layout.to_json()
    if data is not None:
        given |= {"dataset": data} if data in TASK_OF else {"dataset": "RawFolder", "root": data}
    return Options(**given)


def _open(model: str, options: Options, trusted: list[str] | None) -> tuple[SavedModel, Frames, np.ndarray]:
    """Return model, data as the model takes them, and which of these are asked about."""
    import numpy as np

    from r2l.training.components import make_folds, open_data
    from r2l.training.loading import load

    asked = load(model, options.tracking_uri, trusted or ())
    if options.dataset == "RawFolder" and options.own_colours != asked.about.own_colours:
        how = "with" if asked.about.own_colours else "without"
        raise ValueError(f"{model} was trained {how} --own_colours: do so here too")
    data = open_data(options)
    fold = None if options.fold is None else make_folds(data, options)[options.fold]
    return asked, asked.take(data), np.arange(len(data)) if fold is None else fold.test


def _targets(files: list[Path], output: Path, masks: bool, force: bool) -> dict[Path, Path]:
    """Return where the mask of each file goes, if there are masks; see that nothing is replaced unasked."""
    if masks and output.suffix and not output.is_dir():
        raise ValueError(f"{output}: the model answers with masks: give -o a folder for them")
    if not masks:
        check_free(output, force)
        return {}
    targets = {path: output / f"{path.stem}.png" for path in files}
    check_targets(files, targets.values(), "folder")
    for target in targets.values():
        check_free(target, force)
    return targets


def _answered(
    model: SavedModel, files: list[Path], read: Callable[[Path], Tensor | None], batch_size: int
) -> Iterator[tuple[Path, Any]]:
    """Yield each file that can be read, in order, with its answer; frames of one size go together."""
    import torch

    from r2l.progress import progress_bar

    frames = ((path, read(path)) for path in progress_bar(iterable=files, desc="predicting"))
    readable = ((path, frame) for path, frame in frames if frame is not None)
    for _, alike in groupby(readable, key=lambda pair: pair[1].shape):
        while batch := list(islice(alike, batch_size)):
            paths, raw = zip(*batch, strict=True)
            yield from zip(paths, model.answer(torch.stack(raw)), strict=True)


def _cells(answer: Any) -> dict[str, Any]:
    """Return an answer as cells of a row: of classes the most probable, and the probability of each."""
    if isinstance(answer, dict):
        best = max(answer, key=answer.__getitem__)
        return {"prediction": best, **{f"p_{name}": value for name, value in answer.items()}}
    if isinstance(answer, float):
        return {"prediction": answer}
    return {f"prediction_{number}": value for number, value in enumerate(answer.tolist())}


def _write_table(rows: list[dict[str, Any]] | pd.DataFrame, path: Path) -> None:
    import pandas as pd

    from r2l.files import write_csv

    table = pd.DataFrame(rows)
    # In full, but no longer than they are: a model's numbers are of single precision.
    numbers = table.select_dtypes("float64").columns
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(table.astype(dict.fromkeys(numbers, "float32")), path)
