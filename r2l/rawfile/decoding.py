"""Raw pictures decoded: DNGs by their tags, and cameras' files through LibRaw, and their `Camera`.

LibRaw decodes most DNGs too, but takes of the levels what fits its own form. So those are read from the tags
(`r2l.rawfile.dng_picture`), and pictures that LibRaw can't decode are decoded here.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rawpy
import tifffile

from r2l.camera import CFA, Camera
from r2l.rawfile.dng_picture import CFA_PHOTOMETRIC, LINEAR_RAW, RawPicture
from r2l.rawfile.dng_tags import FULL_SCALE, XYZ_FROM_SRGB, exact_camera
from r2l.rawfile.frame import FETCH_AGAIN, USE_BAYER, RawFileError, RawFrame, check_layout
from r2l.rawfile.raster import check_promise

# By the orientation of TIFF, the turn as `upright` has it.
_FLIPS = {1: 0, 2: 1, 3: 3, 4: 2, 5: 4, 6: 6, 7: 7, 8: 5}
# Cameras write a handful.
_MOST_PAGES = 50
_DNG_VERSION, _MODEL, _UNIQUE_CAMERA_MODEL = 50706, 272, 50708


@dataclass(frozen=True, eq=False)
class TiffFacts:
    """What the tags of a TIFF-like file (DNG, and most cameras' formats) say beyond LibRaw."""

    path: Path
    is_dng: bool
    has_mosaic: bool  # one of its pictures is a colour filter array
    model: str  # of the camera, "" where the file doesn't say
    pictures: list[RawPicture]  # of a DNG, the full-size raw ones, largest first
    flip: int  # how a DNG is turned upright, as `upright` takes it
    tags: dict[int, Any]  # of the first page of a DNG, rationals as floats
    exact_camera: Camera | None  # which `write_dng` was given

    def picture(self, frame: int | None) -> RawPicture:
        """Return number ``frame`` of a DNG's largest raw pictures; None is the only one."""
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
    """Read a file's tags; None if it is not TIFF-like or they are broken, an error if it can't be read."""
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first.tags
            is_dng = _DNG_VERSION in first
            pages = _pages(tiff)
            kinds = [int(page.photometric or 0) for page in pages]
            pictures = [
                _picture(path, number, page)
                for number, (page, kind) in enumerate(zip(pages, kinds, strict=True))
                if is_dng and kind in (CFA_PHOTOMETRIC, LINEAR_RAW) and not page.is_reduced
            ]
            model = first.valueof(_MODEL) or first.valueof(_UNIQUE_CAMERA_MODEL) or ""
            model = model.decode("utf-8", "replace") if isinstance(model, bytes) else str(model)
            return TiffFacts(
                path=path,
                is_dng=is_dng,
                has_mosaic=CFA_PHOTOMETRIC in kinds,
                model=model.strip("\0 "),
                pictures=sorted(pictures, key=lambda p: -math.prod(p.shape)),
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


def decode_dng(picture: RawPicture) -> np.ndarray:
    """Decode a raw picture that LibRaw can't, or not in full: (H, W), as stored, linearized."""
    compression = picture.compression
    uncompressed = "save it uncompressed with Adobe's DNG Converter"
    with tifffile.TiffFile(picture.path) as tiff:
        page = _pages(tiff)[picture.index]
        try:
            check_promise(page, page.nbytes, tiff.filehandle.size)
            samples = page.asarray()
        except Exception as error:  # decoders fail in many ways
            reason = f"damaged, or compressed by {compression} in a way that nothing here decodes"
            remedy = FETCH_AGAIN
            if "imagecodecs" in str(error):
                reason = f"a DNG compressed by {compression}, which needs the package imagecodecs"
                remedy = "pip install 'r2l[codecs]'"
            raise picture.unusable(reason, f"{remedy}, or {uncompressed}") from error
    table = picture.linearization
    if table is not None:
        samples = table[np.minimum(samples, len(table) - 1)]
    if samples.shape != picture.shape:
        raise picture.unusable(f"samples of shape {samples.shape}, expected {picture.shape}")
    return samples


def libraw_samples(path: Path) -> np.ndarray | None:
    """Return all samples of a raw picture as LibRaw decodes them, (H, W) uint16; None if it can't."""
    try:
        with _opened(path) as raw:
            return raw.raw_image.copy() if raw.raw_type == rawpy.RawType.Flat else None
    except (rawpy.LibRawError, NotImplementedError, OSError, MemoryError):
        return None


def _opened(path: Path) -> rawpy.RawPy:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # LibRaw takes names as UTF-8 only; with the content it does without a name.
        with path.open("rb") as file:
            return rawpy.imread(file)
    return rawpy.imread(str(path))


def decode_camera_file(path: Path, model: str, camera: Camera | None, allow_damaged: bool) -> RawFrame:
    """Return the visible mosaic of a camera raw file that is no DNG, and its camera, both upright.

    Arguments are those of `read_raw`, and the camera's model, "" where the file doesn't say. Raises a
    RawFileError for too few bytes or another layout, a ValueError for no Bayer mosaic, and what LibRaw does.
    """
    with _opened(path) as raw:
        cfa = _layout(raw)
        steps, size = raw.raw_image_visible, path.stat().st_size
        # No camera's encoding needs less than a bit a pixel.
        if steps.size > 8 * size and not allow_damaged:
            raise RawFileError(path, f"truncated, {size} bytes can't hold {steps.size} pixels", FETCH_AGAIN)
        camera = camera or _camera(raw, cfa, model or f"camera of {path.name}")
        check_layout(path, cfa, camera)
        # Cut where it leaves the phase of the layout alone.
        height, width = (side // 2 * 2 for side in steps.shape)
        mosaic = steps[:height, :width].astype(np.float32) / np.float32(FULL_SCALE)
        return upright_frame(mosaic, camera, raw.sizes.flip)


def upright_frame(mosaic: np.ndarray, camera: Camera, flip: int) -> RawFrame:
    """Return a frame of even size turned by LibRaw's code: see `upright`."""
    order = upright(np.arange(4).reshape(2, 2), flip).ravel()
    tile, black = (tuple(values[i] for i in order) for values in (camera.cfa.value, camera.black_level))
    camera = replace(camera, cfa=CFA(tile), black_level=black)
    return RawFrame(np.ascontiguousarray(upright(mosaic, flip)), camera)


def upright(mosaic: np.ndarray, flip: int) -> np.ndarray:
    """Turn an (H, W) array by LibRaw's code: 1 mirrors columns, 2 rows, and 4 then transposes."""
    rows, columns = (-1 if flip & 2 else 1), (-1 if flip & 1 else 1)
    turned = mosaic[::rows, ::columns]
    return turned.T if flip & 4 else turned


def _layout(raw: rawpy.RawPy) -> CFA:
    if raw.raw_type != rawpy.RawType.Flat:
        raise ValueError("several values at each pixel: already demosaiced, or no Bayer sensor")
    pattern, names = raw.raw_pattern, raw.color_desc.decode()
    if pattern.size == 1:
        raise ValueError("a monochrome picture, without a mosaic of colours")
    if pattern.shape == (6, 6):
        raise ValueError("the mosaic of an X-Trans sensor, not Bayer")
    colours = "".join(names[index] for index in pattern.ravel())
    if colours not in CFA.__members__:
        raise ValueError(f"a sensor with the layout {colours}, not Bayer")
    return CFA[colours]


def _camera(raw: rawpy.RawPy, cfa: CFA, name: str) -> Camera:
    """Return the calibration of a file, for the visible area before it is turned upright."""
    # LibRaw keeps black levels by colour index, and gives the second green an index of its own.
    black = [raw.black_level_per_channel[index] for index in raw.raw_pattern.ravel()]
    # LibRaw's white is often the container's, and the sensor saturates below: then the lowest of the levels
    # that the maker notes give keeps highlights neutral.
    white = min(raw.camera_white_level_per_channel or (raw.white_level,))
    white = white if max(black) < white < raw.white_level else raw.white_level
    levels = tuple(level / FULL_SCALE for level in black), white / FULL_SCALE
    return Camera(name, cfa, *levels, _white_balance(raw), _colour_matrix(raw))


def _white_balance(raw: rawpy.RawPy) -> tuple[float, float, float]:
    """Return gains relative to green: as shot, else for daylight, else none."""
    for gains in (raw.camera_whitebalance, raw.daylight_whitebalance):
        red, green, blue, second_green = gains
        if min(red, green, blue) > 0 and np.isfinite(gains).all():
            # 0 says that the second green is like the first.
            green = (green + second_green) / 2 if second_green > 0 else green
            return red / green, 1.0, blue / green
    return 1.0, 1.0, 1.0


def _colour_matrix(raw: rawpy.RawPy) -> tuple[tuple[float, ...], ...]:
    """Return white-balanced camera colours to linear sRGB, with rows that sum to 1; else identity."""
    matrix = raw.color_matrix[:, :3].astype(np.float64)
    if not matrix.any() and raw.rgb_xyz_matrix[:3].any():
        camera_from_srgb = raw.rgb_xyz_matrix[:3].astype(np.float64) @ XYZ_FROM_SRGB
        matrix = np.linalg.inv(camera_from_srgb / camera_from_srgb.sum(axis=1, keepdims=True))
    sums = matrix.sum(axis=1, keepdims=True)
    usable = np.isfinite(matrix).all() and (sums > 0).all()
    return tuple(map(tuple, matrix / sums if usable else np.eye(3)))
