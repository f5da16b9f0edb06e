"""A labelled set as pipelines develop it: once, in batches, in memory or in a mapped file."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from r2l.datasets.frames import MEMORY_LIMIT, Frames, RawDataset, allocate
from r2l.isp import PIPELINES, develop_all, name_pipelines
from r2l.isp.grammar import Pipelines, open_pipelines
from r2l.progress import progress_bar
from r2l.rawfile.frame import look_at_picture


@torch.no_grad()
def develop_views(
    data: RawDataset | Frames,
    pipelines: Pipelines = PIPELINES,
    *,
    variant: str = "corrected",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    memory_limit: int = MEMORY_LIMIT,
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
                    images[name] = allocate((len(frames), *view.shape[1:]), memory_limit, folder)
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
