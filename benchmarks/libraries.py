"""Calls into the libraries that others develop raw data with. Needs the extra `bench`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import rawpy
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kornia

from benchmarks import recipe
from benchmarks.calls import forward_call
from benchmarks.timing import SkippedError
from benchmarks.workload import Workload

# Both name a layout by its second row and column: their BG is RGGB.
_KORNIA_CFA = {"RGGB": "BG", "GRBG": "GB", "BGGR": "RG", "GBRG": "GR"}


def recipe_call(work: Workload, codes: Sequence[str]) -> Callable[[], list[np.ndarray]]:
    """Return a call that develops each frame by the composed recipe."""
    return lambda: [recipe.published(m, work.camera, code) for m in work.mosaics for code in codes]


def colour_demosaicing_call(work: Workload, name: str) -> Callable[[], list[np.ndarray]]:
    """Return a call that only demosaics: bilinear, Malvar2004 or Menon2007."""
    demosaic = recipe.DEMOSAIC[name[:2].lower()]
    return lambda: [demosaic(m, work.camera.cfa.name) for m in work.mosaics]


def kornia_call(work: Workload) -> Callable[[], Tensor]:
    """Return a call that only demosaics, bilinear, float32, the whole batch."""
    cfa = kornia.color.CFA[_KORNIA_CFA[work.camera.cfa.name]]
    return lambda: kornia.color.raw_to_rgb(work.raw, cfa)


def debayer_call(work: Workload, name: str) -> Callable[[], object]:
    """Return a call of pytorch-debayer that only demosaics: Debayer3x3, bilinear, or Debayer5x5, Malvar.

    Raises:
        SkippedError: it is not installed; no package index has it.
    """
    try:
        from debayer import layouts, modules
    except ImportError:
        raise SkippedError("pytorch-debayer (github.com/cheind/pytorch-debayer) is not installed") from None
    layout = layouts.Layout[work.camera.cfa.name]
    return forward_call(getattr(modules, name)(layout).to(work.device), work.raw)


def opencv_call(work: Workload) -> Callable[[], list[np.ndarray]]:
    """Return a call that only demosaics, bilinear, uint16."""
    code = getattr(cv2, f"COLOR_Bayer{work.camera.cfa.name}2RGB")
    return lambda: [cv2.demosaicing(frame, code) for frame in work.counts]


def libraw_call(work: Workload, name: str, opening: bool = False) -> Callable[[], np.ndarray]:
    """Return a call of LibRaw's whole development to 8-bit sRGB.

    Args:
        work: whose frame is developed.
        name: LINEAR, PPG or AHD.
        opening: whether the file is opened and read anew each time.
    """
    options = {
        "demosaic_algorithm": rawpy.DemosaicAlgorithm[name],
        "use_camera_wb": True,
        "no_auto_bright": True,
    }
    path = str(work.dng)
    if not opening:
        raw = rawpy.imread(path)
        raw.unpack()
        return lambda: raw.postprocess(**options)

    def call() -> np.ndarray:
        with rawpy.imread(path) as fresh:
            return fresh.postprocess(**options)

    return call
