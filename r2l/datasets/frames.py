"""A labelled set in memory, with what pipelines make of it: read once, developed once, a slice of memory.

Everything that trains models or asks them works on it.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from r2l.camera import Camera
from r2l.datasets.splits import RawDataset
from r2l.files import R2LError, check_groups
from r2l.isp import PIPELINES, develop_all, name_pipelines
from r2l.isp.grammar import Pipelines, open_pipelines
from r2l.progress import progress_bar
from r2l.rawfile.frame import look_at_picture

#: Bytes of frames, or of one pipeline's images, above which they are kept in a file instead of in memory.
_MEMORY_LIMIT = 2 * 2**30
#: Of measured numbers, which a small spread about a large mean can take all digits of. Apple's GPUs lack it.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64
_STEP_PIXELS = 400_000  # of the frames of a step: small enough for the caches of a small machine
# Key of an item's truth, by task.
_KEYS = {"segmentation": "mask", "regression": "target", "classification": "label"}


@dataclass(frozen=True, eq=False)
class Frames(Dataset):
    """Frames in memory, developed or not, with what is true of them; a data set for `fit` and `predict`.

    Items are ``dict(raw=(1, H, W) or image=(3, H, W); label=int, target=float or mask=(H, W) of 0 and 1;
    meta=dict(image, group, intensity, camera))``: the frame where there are raw frames, else the image of the
    only pipeline (`view`), whose name then is ``meta["pipeline"]``. Reading one copies nothing.

    >>> from r2l.datasets import SyntheticMicroscopy
    >>> frames = Frames.of(SyntheticMicroscopy(4, size=32), progress=False)
    >>> frames[0]["raw"].shape
    torch.Size([1, 32, 32])

    Attributes:
        raw: (N, 1, H, W), raw domain; None where only developed images are kept.
        truth: (N,) class of each frame (int), (N,) numbers (float), or (N, 1, H, W) masks of 0 and 1
            (of more classes: their numbers).
        groups: (N,) which share something; what folds keep on one side and intervals count.
        camera: whose they are.
        labels: (N,) what folds are stratified by; by default the classes, the highest class of a mask, or
            0, 1, 2 for low, middle and high numbers.
        classes: names of the classes; none for numbers.
        images: display RGB (N, 3, H, W) by name of the pipeline, in one order.
        names: (N,) a name of each frame, such as its file's; by default its number.
        intensity: exposure relative to the base exposure.
        skipped: why frames were left out as broken, a line each; see `RawFolder`'s ``skip_broken``.
    """

    raw: Tensor | None = field(repr=False)
    truth: Tensor = field(repr=False)
    groups: np.ndarray = field(repr=False)
    camera: Camera
    labels: np.ndarray = field(default=None, repr=False)
    classes: tuple[str, ...] = ()
    images: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    names: np.ndarray = field(default=None, repr=False)
    intensity: float = 1.0
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_groups(self.groups)
        for values in (*self.images.values(), *([] if self.raw is None else [self.raw])):
            if len(values) != len(self):
                raise ValueError(f"{len(values)} frames, but truth of {len(self)}")
        if self.labels is None:
            truth = self.truth.cpu()
            if self.task == "segmentation":
                truth = truth.flatten(1).amax(1).long()
            labels = tertiles(truth.double().numpy()) if self.task == "regression" else truth.numpy()
            object.__setattr__(self, "labels", labels)
        if self.names is None:
            object.__setattr__(self, "names", np.arange(len(self)).astype(str))

    @classmethod
    def of(
        cls,
        dataset: RawDataset,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        memory_limit: int = _MEMORY_LIMIT,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> Frames:
        """Read frames of a data set, all or those of ``indices``. Memory: 4 bytes a pixel, 5 with masks.

        Above ``memory_limit`` bytes they go to a memory-mapped temporary file, in ``folder`` or the system's.

        Raises:
            ValueError: no frames, or frames of several sizes.
            OSError: the file can't be written.
        """
        indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, int)
        if not len(indices):
            raise ValueError("nothing to load: no frames")
        raw, truth, rows, skipped = None, [], [], []
        with progress_bar(total=len(indices), desc="loading", disable=not progress) as bar:
            for index in indices.tolist():
                bar.update()
                try:
                    item = dataset[index]
                except R2LError as error:
                    if not getattr(dataset, "skip_broken", False):
                        raise
                    skipped.append(str(error).splitlines()[0])
                    continue
                frame = item["raw"]
                if raw is None:
                    raw = _allocate((len(indices), *frame.shape), memory_limit, folder)
                if frame.shape != raw.shape[1:]:
                    sizes = " and ".join(f"{s[-2]} x {s[-1]}" for s in (raw.shape, frame.shape))
                    raise ValueError(f"frames of several sizes ({sizes}) make no batch: crop them")
                raw[len(rows)] = frame
                key = next(key for key in _KEYS.values() if key in item)
                known = given = torch.as_tensor(item[key])
                if key != "target":
                    known = given.to(torch.uint8 if key == "mask" else torch.int64)  # an eighth of the memory
                    if (wrong := given[(given < 0) | (known != given)]).numel():
                        raise ValueError(f"a {key} of {wrong[0].item():g}, expected the number of a class")
                truth.append(known.reshape(1, *known.shape[-2:]) if key == "mask" else known)
                rows.append(index)
        if not rows:
            raise ValueError(f"none of {len(indices)} frames can be read: {skipped[0]}")
        names = getattr(dataset, "names", np.arange(len(dataset)).astype(str))
        labels, groups, names = (np.asarray(each)[rows] for each in (dataset.labels, dataset.groups, names))
        rest = {"names": names, "intensity": dataset.intensity, "skipped": tuple(skipped)}
        truth, classes = torch.stack(truth), tuple(dataset.classes)
        return cls(raw[: len(rows)], truth, groups, dataset.camera, labels, classes, **rest)

    @property
    def task(self) -> str:
        """What the truth asks for: "classification", "regression" or "segmentation"."""
        if self.truth.ndim == 4:
            return "segmentation"
        return "regression" if self.truth.is_floating_point() else "classification"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what an item holds."""
        shown = self.raw if self.raw is not None else next(iter(self.images.values()))
        return tuple(shown.shape[-2:])

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        meta = {"image": index, "group": int(self.groups[index]), "intensity": self.intensity}
        meta["camera"] = self.camera.name
        item = self.batch(index)
        if self.raw is None:
            meta["pipeline"] = next(iter(self.images))
        if self.task == "classification":
            item["label"] = int(item["label"])
        return {**item, "meta": meta}

    def batch(self, rows: int | slice | Tensor) -> dict[str, Tensor]:
        """Return some rows without ``meta``: ``raw`` or ``image``, and the truth under its task's key.

        Raises:
            ValueError: no raw frames, and several pipelines' images to choose from.
        """
        truth = {_KEYS[self.task]: self.truth[rows, 0] if self.truth.ndim == 4 else self.truth[rows]}
        if self.raw is not None:
            return {"raw": self.raw[rows], **truth}
        if len(self.images) != 1:
            raise ValueError(f"images of {list(self.images)}: choose one of them by view()")
        return {"image": next(iter(self.images.values()))[rows], **truth}

    def targets(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Return the truth, of all or some rows, as losses take it: masks and numbers as floats."""
        truth = self.truth[rows]
        return truth.float() if self.task == "segmentation" else truth

    def view(self, pipeline: str) -> Frames:
        """Return the images of one pipeline as a set of their own; copies nothing. Errors as `require`."""
        self.require([pipeline])
        return self.seen_as(self.images[pipeline], pipeline)

    def seen_as(self, images: Tensor, pipeline: str = "changed") -> Frames:
        """Return the same scenes as other images (N, 3, H, W) show them; copies nothing."""
        return replace(self, raw=None, images={pipeline: images})

    def require(self, pipelines: Sequence[str]) -> None:
        """Raise a ValueError that lists what is missing unless there are images of all these pipelines."""
        if missing := [name for name in pipelines if name not in self.images]:
            raise ValueError(f"views lack {missing}; they hold {list(self.images)}")

    def subset(self, indices: Sequence[int] | np.ndarray) -> Subset:
        """Return the items ``indices`` as a data set; each keeps its number as ``meta["image"]``."""
        return Subset(self, np.asarray(indices, int).tolist())

    def to(self, device: str | torch.device) -> Frames:
        """Return the frames on a device, where searches and scans then run."""
        return self._each(lambda values: values.to(device))

    def take(self, indices: Sequence[int] | np.ndarray) -> Frames:
        """Return some of the frames, numbered anew."""
        indices = np.asarray(indices)
        kept = torch.as_tensor(indices, device=self.truth.device)
        parts = {name: getattr(self, name)[indices] for name in ("groups", "labels", "names")}
        return replace(self._each(lambda values: values[kept]), **parts)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Frames:
        raw = None if self.raw is None else change(self.raw)
        images = {name: change(values) for name, values in self.images.items()}
        return replace(self, raw=raw, truth=change(self.truth), images=images)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Frames, Frames]:
        """Part the frames in two with whole groups on either side: ``share`` of them, and the rest.

        Raises:
            ValueError: one part would be empty.
        """
        names = np.unique(self.groups)
        count = round(share * len(names))
        if not 0 < count < len(names):
            raise ValueError(f"{len(names)} groups can't be parted {share:g} to {1 - share:g}")
        drawn = np.random.default_rng(seed).permutation(names)[:count]
        inside = np.isin(self.groups, drawn)
        return self.take(np.flatnonzero(inside)), self.take(np.flatnonzero(~inside))

    def steps(self) -> Iterator[slice]:
        """Cut the frames into steps that suit a small machine."""
        size = max(1, _STEP_PIXELS // (self.shape[0] * self.shape[1]))
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def fingerprint(self, rows: Sequence[int] | None = None) -> str:
        """Return a short hash of all that is known of the frames, or of some: other data, another hash."""
        digest = hashlib.sha256(repr([self.classes, self.camera, self.intensity]).encode())
        for values in (self.names, self.labels, self.groups):
            digest.update(repr((values if rows is None else values[rows]).tolist()).encode())
        held = {**({} if self.raw is None else {"raw": self.raw}), "truth": self.truth, **self.images}
        for name, values in held.items():
            digest.update(f"{name} {tuple(values.shape[1:])} {values.dtype}".encode())
            for row in range(len(self)) if rows is None else rows:
                digest.update(values[row].cpu().contiguous().numpy())
        return digest.hexdigest()[:16]


def tertiles(values: np.ndarray) -> np.ndarray:
    """Return 0, 1 or 2 for low, middle and high values, so that folds get some of each."""
    return np.searchsorted(np.quantile(values, (1 / 3, 2 / 3)), values)


def _allocate(shape: tuple[int, ...], limit: int, folder: str | Path | None) -> Tensor:
    """Return space for frames (N, C, H, W) in memory or, above ``limit`` bytes, in a file."""
    if 4 * int(np.prod(shape)) <= limit:
        return torch.empty(shape)
    # Without a name where the system can do so: a killed process leaves nothing. The map keeps it open.
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


@torch.no_grad()
def develop_views(
    data: RawDataset | Frames,
    pipelines: Pipelines = PIPELINES,
    *,
    variant: str = "corrected",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    memory_limit: int = _MEMORY_LIMIT,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Frames:
    """Develop every frame once by each of the pipelines; what codes share is done once for all of them.

    Memory: 12 bytes a pixel and pipeline (300 tiles of 64x64 by 4 pipelines: 59 MB).

    >>> from r2l.datasets import SyntheticMicroscopy
    >>> views = develop_views(SyntheticMicroscopy(4, size=32), ["bi,s,ga", "me,u,me"], progress=False)
    >>> {name: tuple(images.shape) for name, images in views.images.items()}
    {'bi,s,ga': (4, 3, 32, 32), 'me,u,me': (4, 3, 32, 32)}

    Args:
        data: a data set, which is read first (see `Frames.of`, also for the last three), or frames.
        pipelines: see `develop_all`. Where there are masks, smaller images are enlarged to fit.
        variant: of the codes, "corrected", "paper" or "camera", see `StaticISP`.
        batch_size, device: how many are developed at once, and where; the images are kept on the CPU.

    Returns:
        The frames with ``images`` of these pipelines, and of no others.

    Raises:
        ValueError: no frames, no pipelines, one named twice, or one that does not exist.
        OSError: a file for images can't be written.
    """
    named = name_pipelines(pipelines)
    if not named or len(named) < len(pipelines) or len(data) == 0:
        raise ValueError(f"nothing to develop, or twice: {len(data)} frames by {list(pipelines)}")
    storage = {"memory_limit": memory_limit, "folder": folder, "progress": progress}
    frames = data if isinstance(data, Frames) else Frames.of(data, **storage)
    if frames.raw is None:
        raise ValueError("nothing to develop: these frames hold developed images only")
    # Copied together: what several share stays shared.
    isps = copy.deepcopy(open_pipelines(named, frames.camera, variant))
    for isp in isps.values():
        isp.to(device).eval()
    images: dict[str, Tensor] = {}
    with progress_bar(total=len(frames), desc="developing", disable=not progress) as bar:
        for start in range(0, len(frames), batch_size):
            raw = frames.raw[start : start + batch_size].to(device)
            for name, view in develop_all(raw, frames.camera, isps).items():
                if frames.task == "segmentation" and view.shape[-2:] != raw.shape[-2:]:
                    # A pipeline that halves the size: masks are as large as the frames.
                    view = F.interpolate(view.float(), raw.shape[-2:], mode="bilinear")
                if name not in images:
                    look_at_picture(view, raw, frames.camera, name)
                    images[name] = _allocate((len(frames), *view.shape[1:]), memory_limit, folder)
                images[name][start : start + len(view)] = view
            bar.update(len(raw))
    return replace(frames, images=images)


def with_views(
    data: RawDataset | Frames, pipelines: Pipelines, *, variant: str = "corrected", progress: bool = True
) -> Frames:
    """Return frames with images of these pipelines: those that they hold, else `develop_views`.

    Raises:
        ValueError: frames that hold images, but not of all these pipelines; or as `develop_views`.
    """
    if isinstance(data, Frames) and data.images:
        data.require(list(name_pipelines(pipelines)))
        return data
    return develop_views(data, pipelines, variant=variant, progress=progress)
