"""Figures of runs, drawn from what a training has tracked."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from r2l.files import atomic_path
from r2l.training.callbacks import SCALE
from r2l.training.tracking import Records
from r2l.training.tracking.records import missing

_PICTURE = re.compile(r"\w+/([^/]+)/epoch_(\d+)\.png$")
_GRADIENT = "gradient at "
_CAPTION = 22  # pixels above the picture
_LEAST_WIDTH = 480  # smaller pictures are enlarged, by whole pixels
_COLOURS = 256


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
    milliseconds: int = 400,
) -> list[Path]:
    """Write a stage over the epochs as a GIF; one file a fold, where a run has several.

    All frames share one palette and, for gradients, one scale; the epoch stands above the picture.

    Args:
        run: id or name of a run whose stages were tracked (`r2l.training.callbacks`), or "latest".
        stage: name of a stage, such as "demosaic".
        out: the GIF; with several folds, each one's name is put before the suffix.
        gradient: the loss's gradient with respect to the stage instead of its image.
        store: see `r2l.training.tracking.store_address`.
        milliseconds: how long an epoch shows.

    Returns:
        The files written.

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
    written = []
    for name, paths in shown.items():
        plain = re.sub(r"[^\w.,=-]+", "_", name).strip("_")
        written.append(out if len(shown) == 1 else out.with_stem(f"{out.stem}_{plain}"))
        with tempfile.TemporaryDirectory(prefix="r2l-") as folder:
            files = {
                f"{what}, epoch {epoch}": records.local(folds[name], path)
                or records.fetch(folds[name], path, Path(folder))
                for epoch, path in paths.items()
            }
            _write_gif(files, written[-1], milliseconds)
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
    name = records.call("get_run", run_id).info.run_name
    return records.children(run_id) or {name: run_id}


def _write_gif(files: Mapping[str, Path], out: Path, milliseconds: int) -> None:
    """Write pictures, by their captions, as one animation."""
    scaled = _one_scale([Image.open(file) for file in files.values()])
    frames = [_captioned(p, caption) for caption, p in zip(files, scaled, strict=True)]
    first, *rest = frames if frames[0].mode == "L" else _one_palette(frames)
    how = {"duration": milliseconds, "loop": 0, "optimize": False}
    with atomic_path(out) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, **how)


def _one_scale(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Gradients are stored each on its own scale; bring them to the largest. Images stay as they are."""
    scales = [float(picture.info.get(SCALE, 1.0)) for picture in pictures]
    out = []
    for picture, scale in zip(pictures, scales, strict=True):
        share = scale / max(scales)
        if share < 1:
            values = 127.5 + (np.asarray(picture, dtype=np.float32) - 127.5) * share
            picture = Image.fromarray(np.round(values).astype(np.uint8))
        out.append(picture)
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
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(framed).text((4, 2), text, fill="black", font=font)
    return framed
