"""Demosaicing by other programs: LibRaw and OpenCV, on the mosaic that r2l has levelled and balanced.

Both take and give whole numbers, so values below black are black, those above the largest gain saturate, and
no gradient passes. Both let other threads run meanwhile (measured), so a batch is shared among threads.
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from r2l.camera import Camera
from r2l.files import R2LError
from r2l.isp.filters import crop, pad
from r2l.isp.functional import signed_columns
from r2l.isp.packing import is_recorded

# Whole tiles of the frame's mirror image around it: LibRaw takes no fewer than 22 pixels, and both programs
# do something else within a few pixels of the border.
_MARGIN = 10
_OneFrame = Callable[[np.ndarray], np.ndarray]


def demosaic_by(mosaic: Tensor, engine: str, method: str, camera: Camera) -> Tensor:
    """Demosaic (B, 1, H, W), linear and balanced, to (B, 3, H, W), balanced camera colours.

    Of the camera count the layout; gains, of which the largest saturates; and the matrix, by which LibRaw's
    ahd judges which of two directions looks smoother. Engines are those of `r2l.isp.static.ENGINES`.

    Raises:
        ValueError: gradients are wanted.
        R2LError: OpenCV is not installed.
    """
    if is_recorded(mosaic):
        raise ValueError(
            f"{engine}:{method} passes no gradients, so it can't be attacked or trained through: take one of "
            "r2l's own, such as 'ma,s,ga@camera', or learn_pipeline's copy of it; or torch.no_grad()"
        )
    frame = (_libraw if engine == "libraw" else _opencv)(method, camera)
    # OpenCV's VNG takes bytes only.
    steps = 255 if (engine, method) == ("opencv", "vng") else 65535
    peak = max(map(abs, camera.white_balance)) / steps
    padded = pad(mosaic.detach(), (_MARGIN,) * 2, (_MARGIN,) * 2, "mirror")[:, 0].cpu().double()
    whole = (padded / peak).round().clamp(0, steps).numpy()
    whole = whole.astype(np.uint8 if steps == 255 else np.uint16)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        images = np.stack(list(threads.map(frame, whole)))
    image = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) * peak
    return crop(image, _MARGIN).to(mosaic).contiguous()


def _libraw(method: str, camera: Camera) -> _OneFrame:
    """Return LibRaw's demosaicing: nothing else that it does to a picture is left on."""
    import rawpy

    from r2l.rawfile.dng_tags import encode_dng

    plain = {"black_level": (0.0,) * 4, "white_level": 1.0, "white_balance": (1.0,) * 3}
    plain["colour_matrix"] = signed_columns(camera.colour_matrix, camera.white_balance)
    settings = {
        "demosaic_algorithm": rawpy.DemosaicAlgorithm[method.upper()],
        "output_color": rawpy.ColorSpace.raw,
        "output_bps": 16,
        "gamma": (1, 1),
        "user_wb": [1.0] * 4,
        "no_auto_bright": True,
        # Otherwise the brightest pixel of a frame would set its white.
        "adjust_maximum_thr": 0.0,
    }

    def frame(steps: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        encode_dng(file, steps, replace(camera, **plain))
        file.seek(0)
        with rawpy.imread(file) as raw:
            return raw.postprocess(**settings)

    return frame


def _opencv(method: str, camera: Camera) -> _OneFrame:
    try:
        import cv2
    except ImportError as error:
        remedy = "pip install opencv-python-headless"
        raise R2LError(f"opencv:{method}", "OpenCV is not installed", remedy) from error
    suffix = {"bilinear": "", "ea": "_EA", "vng": "_VNG"}[method]
    # OpenCV names a layout by the second row: its BG is RGGB.
    second = {"RGGB": "BG", "BGGR": "RG", "GRBG": "GB", "GBRG": "GR"}[camera.cfa.name]
    code = getattr(cv2, f"COLOR_Bayer{second}2RGB{suffix}")
    return lambda steps: cv2.demosaicing(steps, code)
