"""Raw files in and out: any camera's format that LibRaw reads, TIFF, PNG and NPY; DNG for writing.

`read_raw` gives the sensor's own numbers: no demosaicing, no levels, no colour. What they mean is
said by the `Camera` beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rawpy
import tifffile

from r2l import libraw, plainfile
from r2l.camera import DRONE, MICROSCOPE, Camera
from r2l.dng import FULL_SCALE, TiffFacts, cfa_tags, tiff_facts
from r2l.files import R2LError, atomic_path

if TYPE_CHECKING:
    import torch

CAMERAS = {"microscope": MICROSCOPE, "drone": DRONE}

_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
# LibRaw takes a smaller DNG for a thumbnail and refuses it.
_MIN_DNG_SIDE = 22
_USE_BAYER = "Give the camera's original raw file, of a Bayer sensor, or the camera that fits it"
_USE_KNOWN = "Give a camera raw file (DNG, CR3, NEF, ARW ...), or a TIFF, PNG or NPY mosaic"
_NAME_CAMERA = (
    "Pass camera=... in Python, or --camera microscope|drone|file.json on the command line"
)
_FETCH_AGAIN = "It may be damaged or cut short: copy it again from the card or the source"


class RawFileError(R2LError, ValueError):
    """A file that is no usable Bayer frame."""


@dataclass(frozen=True, eq=False)
class RawFrame:
    """One exposure as the sensor gave it.

    Attributes:
        mosaic: float32 (H, W), even H and W, in [0, 1], *raw* domain: fraction of the container's
            full scale, black level still in it.
        camera: layout of ``mosaic`` (its top-left first) and calibration.
    """

    mosaic: np.ndarray
    camera: Camera

    def tensor(self) -> torch.Tensor:
        """Return a copy of the mosaic as a float32 tensor (1, 1, H, W), as the ISPs take it."""
        import torch  # slow to import, and reading files does without

        return torch.tensor(self.mosaic)[None, None]


def read_raw(path: str | Path, camera: Camera | None = None) -> RawFrame:
    """Read the mosaic of one exposure and its camera.

    Camera raw files (everything that LibRaw reads as one Bayer mosaic: DNG, CR2, CR3, NEF, ARW, RAF
    ...) give the visible area, cut to even size at the right and at the bottom, and turned upright
    by the file's orientation, together with layout and black level. Values and levels count as
    fractions of a 16-bit container, so 14-bit data fill a quarter of the range.

    TIFF, PNG and NPY files hold one channel (or the same channel several times, as grey saved in
    RGB) and no calibration: they need ``camera``. Integers count as fractions of their type's full
    scale. They are taken as they lie; orientation tags are ignored.

    Args:
        path: the file.
        camera: calibration to use instead of the file's own. It describes the mosaic as the file
            stores it, before it is turned upright.

    Raises:
        RawFileError: the file is missing, unreadable, damaged, not raw, not of a Bayer sensor
            (X-Trans, Foveon, monochrome, already demosaiced), has no calibration, or contradicts
            itself or ``camera``.
    """
    path = Path(path)
    head = _first_bytes(path)
    if head.startswith(_PNG):
        return _read_plain(path, "PNG", camera)
    if head.startswith(_NPY):
        return _read_plain(path, "NPY", camera)
    facts = tiff_facts(path)
    # Most cameras' formats are TIFF inside, so the name decides, unless the tags tell of a mosaic.
    has_mosaic = facts is not None and (facts.is_dng or facts.has_mosaic)
    if path.suffix.lower() in (".tif", ".tiff") and not has_mosaic:
        return _read_plain(path, "TIFF", camera)
    return _read_camera_file(path, facts, camera)


def write_dng(path: str | Path, mosaic: np.ndarray, camera: Camera) -> Path:
    """Write a mosaic as a 16-bit uncompressed CFA DNG, whole or not at all.

    `read_raw` gives back ``mosaic`` rounded to 16 bit and exactly ``camera``. Other programs find
    `r2l.dng.standard_form` of it, which develops to the same colours.

    Args:
        path: the file to write; one that exists is replaced.
        mosaic: (H, W), even, at least 22 each (LibRaw's limit), in [0, 1], *raw* domain.
        camera: layout and calibration of ``mosaic``.

    Returns:
        ``path``.

    Raises:
        ValueError: ``mosaic`` is not as described.
        OSError: the file can't be written.
    """
    path, mosaic = Path(path), np.asarray(mosaic)
    if (
        mosaic.ndim != 2
        or min(mosaic.shape) < _MIN_DNG_SIDE
        or mosaic.shape[0] % 2 + mosaic.shape[1] % 2
    ):
        raise ValueError(
            f"mosaic has shape {mosaic.shape}, expected (H, W), even and {_MIN_DNG_SIDE} or more"
        )
    if not (mosaic.min() >= 0 and mosaic.max() <= 1):
        raise ValueError(f"mosaic spans {mosaic.min()} to {mosaic.max()}, expected [0, 1]")
    steps = np.round(mosaic.astype(np.float64) * FULL_SCALE).astype(np.uint16)
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial,
            steps,
            photometric="cfa",
            extratags=cfa_tags(camera),
            metadata=None,
            software="r2l",
        )
    return path


def load_camera(name_or_path: str | Path) -> Camera:
    """Return a published camera by name, the one that a JSON file describes, or that of a raw file.

    Args:
        name_or_path: "microscope" or "drone", a JSON file with what `Camera.to_dict` returns, or a raw file
            that says of which camera it is.

    Raises:
        ValueError: neither a known name nor a readable camera description nor such a raw file.
    """
    known = CAMERAS.get(str(name_or_path).lower())
    if known is not None:
        return known
    if Path(name_or_path).suffix.lower() not in ("", ".json"):
        return read_raw(name_or_path).camera
    choices = f"choose from {', '.join(CAMERAS)}, a raw file, or a JSON file from Camera.to_dict()"
    try:
        return Camera.from_dict(json.loads(Path(name_or_path).read_text("utf-8")))
    except FileNotFoundError:
        raise ValueError(f"unknown camera {str(name_or_path)!r}; {choices}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name_or_path}: no camera description ({error}); {choices}") from None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise RawFileError(path, error.strerror, "Give the path of a readable raw file") from error
    if not head:
        raise RawFileError(path, "the file is empty", _FETCH_AGAIN)
    return head


def _read_plain(path: Path, kind: str, camera: Camera | None) -> RawFrame:
    try:
        mosaic = plainfile.read_mosaic(path, kind)
    except plainfile.UnusableError as error:
        raise RawFileError(path, *error.args) from None
    except Exception as error:
        # Decoders fail in many ways on damaged files.
        raise RawFileError(
            path, f"no readable {kind} file ({_brief(error)})", _FETCH_AGAIN
        ) from error
    if camera is None:
        raise RawFileError(path, f"a {kind} file does not say which camera took it", _NAME_CAMERA)
    return RawFrame(mosaic, camera)


def _read_camera_file(path: Path, facts: TiffFacts | None, camera: Camera | None) -> RawFrame:
    if facts and facts.missing_bytes:
        # Found before LibRaw would, which also prints to stderr.
        reason = f"truncated, {facts.missing_bytes} bytes of the picture are missing"
        raise RawFileError(path, reason, _FETCH_AGAIN)
    try:
        return RawFrame(*libraw.decode(path, facts, camera))
    except rawpy.LibRawFileUnsupportedError:
        raise RawFileError(path, "no raw file of a camera that LibRaw knows", _USE_KNOWN) from None
    except ValueError as error:
        raise RawFileError(path, str(error), _USE_BAYER) from None
    except (rawpy.LibRawError, NotImplementedError, OSError, MemoryError) as error:
        raise RawFileError(path, f"LibRaw can't read it ({_brief(error)})", _FETCH_AGAIN) from error


def _brief(error: Exception) -> str:
    """Return the first line of a decoder's message, which LibRaw gives as bytes."""
    text = error.args[0] if error.args and isinstance(error.args[0], bytes) else str(error).encode()
    return (text.decode().splitlines() or [type(error).__name__])[0].rstrip(".")
