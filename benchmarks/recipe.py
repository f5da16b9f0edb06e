"""The published static pipelines, put together from independent libraries, in float64 numpy.

colour-demosaicing, scikit-image and scipy by the published recipe (Oala et al., TMLR 2023): the truth that
``variant="paper"`` has to meet, and the peer of the benchmark.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.signal import convolve2d
from skimage.color import rgb2yuv, yuv2rgb

from r2l.camera import Camera

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from colour_demosaicing import (
        demosaicing_CFA_Bayer_bilinear,
        demosaicing_CFA_Bayer_Malvar2004,
        demosaicing_CFA_Bayer_Menon2007,
    )

DEMOSAIC = {
    "bi": demosaicing_CFA_Bayer_bilinear,
    "ma": demosaicing_CFA_Bayer_Malvar2004,
    "me": demosaicing_CFA_Bayer_Menon2007,
}


def _unsharp_columns(y: np.ndarray) -> np.ndarray:
    """Each column sharpened by itself: what a channel-axis slip made of unsharp masking."""
    return y + (y - ndimage.gaussian_filter1d(y, 1.0, axis=0))


LUMA: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "s": lambda y: convolve2d(y, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]], "same"),
    "u": _unsharp_columns,
    "me": lambda y: ndimage.median_filter(y, 3),
    "ga": lambda y: ndimage.gaussian_filter(y, 0.5),
}


def on_luma(rgb: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply ``change`` to Y of YUV of an image (H, W, 3)."""
    yuv = rgb2yuv(rgb)
    yuv[..., 0] = change(yuv[..., 0])
    return yuv2rgb(yuv)


def published(mosaic: np.ndarray, camera: Camera, code: str) -> np.ndarray:
    """Develop a mosaic (H, W), raw domain, by a pipeline code to (H, W, 3), display domain."""
    demosaic, sharpening, denoising = code.split(",")
    levels = np.tile(np.reshape(camera.black_level, (2, 2)), np.array(mosaic.shape) // 2)
    rgb = DEMOSAIC[demosaic](mosaic.astype(np.float64) - levels, camera.cfa.name)
    rgb = np.einsum("ijk,lk->ijl", rgb * camera.white_balance, np.array(camera.colour_matrix))
    for name in (sharpening, denoising):
        rgb = on_luma(rgb, LUMA[name])
    return np.clip(rgb, 0, 1) ** (1 / 2.2)
