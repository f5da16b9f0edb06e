"""What the tags of a DNG say: which raw pictures it holds, how they are turned, and whose camera it was.

LibRaw decodes most DNGs (see `r2l.rawfile.libraw`), but takes of the levels what fits its own form. So
they are read from the tags (`r2l.rawfile.dng_picture`), and pictures that LibRaw can't decode are decoded
here.
"""

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from r2l.camera import Camera
from r2l.rawfile.dng_picture import CFA_PHOTOMETRIC, LINEAR_RAW, RawPicture
from r2l.rawfile.dng_tags import exact_camera
from r2l.rawfile.frame import FETCH_AGAIN, USE_BAYER, RawFileError
from r2l.rawfile.raster import check_promise

# By the orientation of TIFF, the turn as `upright` in `r2l.rawfile.libraw` has it.
_FLIPS = {1: 0, 2: 1, 3: 3, 4: 2, 5: 4, 6: 6, 7: 7, 8: 5}
# Cameras write a handful.
_MOST_PAGES = 50
_DNG_VERSION, _MODEL, _UNIQUE_CAMERA_MODEL = 50706, 272, 50708


@dataclass(frozen=True, eq=False)
class TiffFacts:
    """What the tags of a TIFF-like file (DNG, and most cameras' formats) say beyond LibRaw.

    Attributes:
        path: of the file.
        is_dng: it declares a DNG version.
        has_mosaic: one of its pictures is a colour filter array.
        model: the camera's model, "" where the file doesn't say.
        pictures: the full-size raw pictures of a DNG, largest first.
        flip: how a DNG is turned upright, as `r2l.rawfile.libraw.upright` takes it.
        tags: of the first page of a DNG by number, rationals as floats.
        exact_camera: the camera that `write_dng` was given, for its files.
    """

    path: Path
    is_dng: bool
    has_mosaic: bool
    model: str
    pictures: tuple[RawPicture, ...]
    flip: int
    tags: dict[int, Any]
    exact_camera: Camera | None

    def picture(self, frame: int | None) -> RawPicture:
        """Return the raw picture of a DNG, number ``frame`` of those of its largest size.

        Raises:
            RawFileError: none, or several and ``frame`` does not say which.
        """
        if not self.pictures:
            raise RawFileError(self.path, "a DNG without a raw picture", USE_BAYER)
        same = [p for p in self.pictures if p.shape == self.pictures[0].shape]
        if frame is None and len(same) > 1:
            raise same[0].unusable(
                f"{len(same)} exposures of {same[0].shape[1]} x {same[0].shape[0]} pixels",
                f"Say which: frame=0 to {len(same) - 1}",
            )
        if not 0 <= (frame or 0) < len(same):
            raise same[0].unusable(f"no frame {frame}: there are {len(same)}, counted from 0")
        return same[frame or 0]


def tiff_facts(path: Path) -> TiffFacts | None:
    """Read the tags of ``path``; None if it is no TIFF-like file or its tags are broken.

    Raises:
        RawFileError: the file can't be read at all: it is gone, or its disk fails.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first.tags
            is_dng = _DNG_VERSION in first
            pages = _pages(tiff)
            raws = [(i, page) for i, page in enumerate(pages) if is_dng and _is_raw(page)]
            pictures = [_picture(path, i, page) for i, page in raws]
            return TiffFacts(
                path=path,
                is_dng=is_dng,
                has_mosaic=any(int(p.photometric or 0) == CFA_PHOTOMETRIC for p in pages),
                model=_text(first.valueof(_MODEL) or first.valueof(_UNIQUE_CAMERA_MODEL)),
                pictures=tuple(sorted(pictures, key=lambda p: -math.prod(p.shape))),
                # Codes that do not exist count as upright.
                flip=_FLIPS.get(first.valueof(274, 1), 0),
                tags={tag.code: _plain(tag) for tag in first} if is_dng else {},
                exact_camera=exact_camera(first),
            )
    except OSError as error:
        if error.errno is None:  # a decoder's, not the system's
            return None
        raise RawFileError(path, f"it can't be read ({error.strerror})", FETCH_AGAIN) from error
    except Exception:
        # Broken tags fail in many ways; what is wrong with the file is then LibRaw's to say.
        return None


def _pages(tiff: tifffile.TiffFile) -> list[Any]:
    """Return the pages of a file; the mosaic of a DNG often sits below a thumbnail."""
    tops = islice(tiff.pages, _MOST_PAGES)
    pages = [page for top in tops for page in (top, *islice(top.pages or (), _MOST_PAGES))]
    # In a damaged file the last can lead back to the first.
    return list({page.offset: page for page in pages}.values())


def _is_raw(page: Any) -> bool:
    return int(page.photometric or 0) in (CFA_PHOTOMETRIC, LINEAR_RAW) and not page.is_reduced


def _picture(path: Path, index: int, page: Any) -> RawPicture:
    tags = {tag.code: _plain(tag) for tag in page.tags}
    shape = (int(page.imagelength), int(page.imagewidth))
    area = tuple(int(v) for v in np.ravel(tags.get(50829, (0, 0, *shape))))
    top, left, bottom, right = area
    if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
        area = (0, 0, *shape)
    return RawPicture(path, index, shape, area, tags)


def _plain(tag: Any) -> Any:
    """Return a tag's value, rationals as floats."""
    if tag.dtype not in (5, 10):
        return tag.value
    numbers = np.array(tag.value, np.float64).reshape(-1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return numbers[:, 0] / numbers[:, 1]


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip("\0 ")


def decode(picture: RawPicture) -> np.ndarray:
    """Decode a raw picture that LibRaw can't, or not in full: (H, W), as stored, linearized.

    Raises:
        RawFileError: no decoder for its compression, or damaged data.
    """
    compression = picture.compression
    uncompressed = "save it uncompressed with Adobe's DNG Converter"
    with tifffile.TiffFile(picture.path) as tiff:
        page = _pages(tiff)[picture.index]
        try:
            check_promise(page, page.nbytes, tiff.filehandle.size)
            samples = page.asarray()
        except Exception as error:  # decoders fail in many ways
            if "imagecodecs" in str(error):
                reason = f"a DNG compressed by {compression}, which needs the package imagecodecs"
                remedy = f"pip install 'r2l[codecs]', or {uncompressed}"
            else:
                reason = (
                    f"damaged, or compressed by {compression} in a way that nothing here decodes"
                )
                remedy = f"{FETCH_AGAIN}, or {uncompressed}"
            raise picture.unusable(reason, remedy) from error
    table = picture.linearization
    if table is not None:
        samples = table[np.minimum(samples, len(table) - 1)]
    if samples.shape != picture.shape:
        raise picture.unusable(f"samples of shape {samples.shape}, expected {picture.shape}")
    return samples
