"""A saved model in use: from where it lies to one module from raw to logits, and from frames to answers."""

import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets import Frames
from r2l.datasets.folder import in_levels, in_line, middle
from r2l.files import R2LError
from r2l.isp.saving import DESCRIPTION as ISP
from r2l.isp.saving import SavedModuleError, load_isp
from r2l.rawfile import RawFrame
from r2l.training.module import RawToLogits
from r2l.training.saving import DESCRIPTION, NORM, About, load_described, load_norm
from r2l.training.tracking import Records, resolve
from r2l.training.tracking.records import model_source

_WHOLE = "Give runs:/RUN_ID of a fold (`r2l lab runs` lists them), or its folder, made with --save_locally"
# What a matrix of one camera differs by from file to file: rounding, and the light it was made for.
_SAME_COLOURS = 0.02


class FrameError(R2LError, ValueError):
    """A frame, or a set of them, that a model can't be asked about."""


class SavedModel(RawToLogits):
    """A model as it was saved, in eval mode: raw (B, 1, H, W), of its own camera, to logits. `load` makes it.

    Attributes:
        about: task, names of the classes, camera, size of the frames that it was trained on.
        classes: the names, by label; numbers of a model that was saved without.
        camera: whose layout and levels its frames have.
    """

    def __init__(
        self, model: nn.Module, processor: nn.Module, about: About, norm: str | nn.Module = "none"
    ) -> None:
        super().__init__(model, processor, task=about.task, output_norm=norm)
        self.about, self.classes = about, about.classes
        self.camera: Camera = about.camera or processor.camera
        self.eval()

    def line_up(self, frame: RawFrame, *, crop: int | None = None, any_camera: bool = False) -> Tensor:
        """Return a frame as the model takes it, raw domain (1, H, W).

        As `r2l.RawFolder` does it: another layout is brought in line by cutting a row or a column off at
        either side; other black and white levels, as of another container, are mapped onto the camera's;
        colours to its white balance, if the model was trained so (``--own_colours``).

        Args:
            frame: of any size; a classifier's should show things as large as those it was trained on.
            crop: cut this many pixels (even) square out of the middle.
            any_camera: take frames of other cameras too, by white balance and matrix of the model's own.

        Raises:
            FrameError: a frame of another camera (another name, and another colour matrix), or smaller
                than the crop. A warning tells of another size than those that a classifier was trained on.
        """
        own, has = self.camera, frame.camera
        tolerance = _SAME_COLOURS * np.abs(own.colour_matrix).max()
        alike = np.allclose(has.colour_matrix, own.colour_matrix, rtol=0, atol=tolerance)
        if not (any_camera or alike or has.name == own.name):
            why = f"the model was trained for the colours of {own.name!r}"
            remedy = "Say any_camera=True (--any_camera) to have it developed by that one's white balance "
            remedy += "and matrix all the same"
            raise FrameError(f"a frame of the camera {has.name!r}", why, remedy)
        pixels = in_levels(frame, own, self.about.own_colours)
        pixels = pixels[in_line(frame.mosaic.shape, has.cfa, own.cfa)]
        if crop is not None:
            if crop < 2 or crop % 2 or crop > min(pixels.shape):
                why = f"the frame has {_size(pixels.shape)} pixels"
                raise FrameError(f"a crop of {crop}", why, "Crop less")
            pixels = pixels[middle(pixels.shape, crop)]
        trained = self.about.shape or pixels.shape
        if self.task.name != "segmentation" and max(np.abs(np.subtract(trained, pixels.shape))) > 2:
            sizes = f"frames of {_size(pixels.shape)}, and the model was trained on {_size(trained)}"
            warnings.warn(f"{sizes}: does it see things as large as then? (crop=..., --crop)", stacklevel=2)
        return torch.tensor(pixels, dtype=torch.float32)[None]

    @torch.inference_mode()
    def answer(self, raw: Tensor) -> list[Any]:
        """Return what is answered to each frame of a raw batch (B, 1, H, W), lined up.

        That is the probability of each class by its name; or the number, or numbers (n,); or the mask
        (H, W), uint8: 1 where the logit is positive or, of several classes, their numbers.
        """
        outputs = self(raw.to(next(self.parameters()).device)).float().cpu()
        if self.task.name == "segmentation":
            masks = outputs.argmax(1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
            return list(masks.to(torch.uint8).numpy())
        if self.task.name == "regression":
            return [row[0].item() if len(row) == 1 else row.numpy() for row in outputs]
        return [dict(zip(self.classes, p.tolist(), strict=True)) for p in outputs.softmax(1)]

    def predict(self, frame: RawFrame, **options: Any) -> Any:
        """Return what is answered to one frame (`r2l.read_raw`), as `answer` has it; options of `line_up`."""
        (answer,) = self.answer(self.line_up(frame, **options)[None])
        return answer

    def take(self, frames: Frames) -> Frames:
        """Return labelled frames as the model takes them: lined up, their classes numbered as its own.

        Raises:
            FrameError: frames of another task or camera, or with classes that the model does not know.
        """
        if frames.task != self.task.name:
            why = f"labels of {frames.task}, and the model answers with {self.task.name}"
            raise FrameError("the data set", why, "Give data of its own kind (see --task)")
        named = frames.task == "classification" or len(self.classes) > 2  # not what an object is called
        numbered = self.classes == tuple(map(str, range(len(frames.classes))))  # saved without names
        if named and numbered:
            frames = replace(frames, classes=self.classes)
        elif named and frames.classes != self.classes:
            if unknown := [name for name in frames.classes if name not in self.classes]:
                why = f"the model knows only {', '.join(self.classes)}"
                remedy = "Name the classes as it was trained with them"
                raise FrameError(f"the classes {', '.join(unknown)}", why, remedy)
            numbers = torch.tensor([self.classes.index(name) for name in frames.classes])
            truth = numbers[frames.truth.long()].to(frames.truth.dtype)
            frames = replace(frames, truth=truth, classes=self.classes)
        own, has = self.camera, frames.camera
        if all(getattr(own, n) == getattr(has, n) for n in ("name", "cfa", "black_level", "white_level")):
            return frames
        lined = [self.line_up(RawFrame(raw[0].numpy(), has)) for raw in frames.raw]
        truth, window = frames.truth, in_line(frames.shape, has.cfa, own.cfa)
        truth = truth[..., *window] if frames.task == "segmentation" else truth
        return replace(frames, raw=torch.stack(lined), truth=truth, camera=own)


def load(uri: str | Path, store: str | Path | None = None, trusted: Collection[str] = ()) -> SavedModel:
    """Return a saved model with its processor as one module from raw to logits, on the CPU, in eval mode.

    >>> import tempfile, r2l
    >>> from r2l.training.saving import About, save_model
    >>> folder = Path(tempfile.mkdtemp())
    >>> about = About("classification", ("cat", "dog"), r2l.DRONE).to_dict()
    >>> described = {"maker": "make_classifier", "arguments": {"name": "SmallResNet", "n_classes": 2}}
    >>> _ = r2l.save_isp(r2l.StaticISP(r2l.DRONE), folder / "processor")
    >>> _ = save_model(described | about, r2l.make_classifier("SmallResNet", 2), folder / "model")
    >>> model = r2l.load(folder)
    >>> list(model.predict(RawFrame(np.full((32, 32), 0.4, np.float32), r2l.DRONE)))
    ['cat', 'dog']

    Args:
        uri: a folder that holds ``processor`` and ``model``, such as ``fold_0`` of a run (or the run, if it
            has one fold); one of these two; ``runs:/RUN_ID`` of a fold, or its ``/model`` or ``/best``;
            ``models:/name/1`` or ``models:/name@alias``.
        store: where runs and models are looked up, see `r2l.training.tracking.store_address`.
        trusted: networks of one's own, ``module:function``, that may be called to make it again.

    Raises:
        R2LError: a network of one's own that is not trusted; as SavedModuleError no processor with it,
            several folds to choose from, or something damaged; as TrackingError a store that can't be opened.
        ValueError: no such folder, run or model; names those that exist.
    """
    text = str(uri)
    if text.startswith("models:"):
        text = model_source(text, store)
    if text.startswith("runs:"):
        base = text.rstrip("/").removesuffix("/model").removesuffix("/processor")
    else:
        folder = resolve(text)
        is_part = (folder / DESCRIPTION).exists() or (folder / ISP).exists()
        base = str(folder.resolve().parent if is_part else folder)
    parts = _parts(base, store)
    model, description = load_described(parts["model"], trusted)
    norm = load_norm(parts[NORM].parent) if NORM in parts else "none"
    return SavedModel(model, load_isp(parts["processor"]), About.of(description), norm)


def _parts(base: str, store: str | Path | None) -> dict[str, Path]:
    """Return where the parts of a model are below a folder or ``runs:/RUN_ID``, or its only fold."""
    parts, errors = {}, {}
    for name in ("processor", "model", NORM):  # most have no norm
        try:
            parts[name] = resolve(f"{base}/{name}", store)
        except ValueError as error:
            errors[name] = error
    if not errors.keys() & {"processor", "model"}:
        return parts
    why = f"no {' and no '.join(sorted(errors.keys() - {NORM}))} in it"
    if base.startswith("runs:"):
        why = f"no processor with a model ({next(iter(errors.values()))})"
        run_id = base.removeprefix("runs:").strip("/")
        folds = [] if "/" in run_id else [f"runs:/{i}" for i in Records(store).children(run_id).values()]
    else:
        folds = sorted(str(path.parent) for path in Path(base).glob("fold_*/model"))
    if len(folds) > 1:
        raise SavedModuleError(base, "a run of several folds", f"Give one, such as {folds[0]}")
    if not folds:
        raise SavedModuleError(base, why, _WHOLE)
    return _parts(folds[0], store)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
