"""Raw files in: camera formats through LibRaw, DNG by its tags, headerless frames, TIFF, PNG and NPY.

`read_raw` gives the sensor's own numbers: no demosaicing, no levels, no colour. What they mean is
said by the `Camera` beside them. Nothing is guessed: what a file does not say, the caller has to.
"""

import json
from pathlib import Path

import rawpy

from r2l.camera import DRONE, MICROSCOPE, Camera
from r2l.rawfile import decoding, opcodes, raster
from r2l.rawfile.dng_tags import colours, same_calibration, standard_form
from r2l.rawfile.frame import (
    FETCH_AGAIN,
    USE_BAYER,
    RawFileError,
    RawFrame,
    check_layout,
    check_whole,
    look_at,
)
from r2l.rawfile.raster import RawLayout

CAMERAS = {"microscope": MICROSCOPE, "drone": DRONE}

#: How files begin that hold pixels and no calibration.
_PLAIN = {"PNG": b"\x89PNG\r\n\x1a\n", "NPY": b"\x93NUMPY", "JPEG": b"\xff\xd8\xff"}
_USE_KNOWN = "Give a camera raw file (DNG, CR3, NEF, ARW ...), or a TIFF, PNG or NPY mosaic"
_DESCRIBE = (
    "If it is a frame without a header, say what it is: layout=RawLayout(...) in Python, --width, "
    "--height, --bits and --packing on the command line, or NAME.json beside it; and the camera"
)
_NAME_CAMERA = "Pass camera=... in Python, or --camera microscope|drone|file.json on the command line"
#: How files begin that LibRaw may be given, and where: their content says what they are. LibRaw itself
#: takes some others for a camera's by their length alone. Source: LibRaw's identify.cpp, and libmagic.
_MAGIC = (
    *((0, magic) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),  # TIFF, BigTIFF, and most
    *((0, magic) for magic in (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")),  # Olympus, Panasonic
    *((0, magic) for magic in (b"IIII", b"MMMM")),  # Phase One
    (4, b"ftypcrx "),  # Canon CR3
    (6, b"HEAPCCDR"),  # Canon CRW
    *((0, magic) for magic in (b"FUJIFILM", b"FOVb", b"\0MRM")),  # Fujifilm, Sigma, Minolta
    *((0, magic) for magic in (b"DSC-Image", b"qktk", b"qktn", b"NOKIARAW", b"ARRI")),
    *((4, magic) for magic in (b"RED1", b"RED2")),  # Redcode
)


def read_raw(
    path: str | Path,
    camera: Camera | None = None,
    layout: RawLayout | None = None,
    *,
    frame: int | None = None,
    allow_damaged: bool = False,
    lens_corrections: bool = False,
) -> RawFrame:
    """Read the mosaic of one exposure and its camera.

    Camera raw files (everything that LibRaw reads as one Bayer mosaic: DNG, CR2, CR3, NEF, ARW, RAF ...) give
    the visible area, cut to even size at the right and at the bottom, and turned upright by the file's
    orientation, together with layout and black level. Values and levels count as fractions of a 16-bit
    container, so 14-bit data fill a quarter of the range.

    TIFF, PNG and NPY files hold one channel (or the same channel several times, as grey saved in RGB) and no
    calibration: they need ``camera``. Integers count as fractions of their type's full scale. They are taken
    as they lie; orientation tags are ignored. Headerless files need ``layout`` and ``camera``.

    >>> import tempfile
    >>> import numpy as np
    >>> from r2l.camera import DRONE
    >>> from r2l.rawfile import write_dng
    >>> photo = Path(tempfile.mkdtemp()) / "photo.dng"
    >>> _ = write_dng(photo, np.full((24, 32), 0.25), DRONE)
    >>> read_raw(photo).mosaic.shape
    (24, 32)

    Args:
        path: the file.
        camera: calibration to use instead of the file's own, for the mosaic before it is turned upright.
        layout: what a headerless file holds; None looks for ``NAME.json`` beside ``NAME``.
        frame: which of several exposures of a DNG, from 0.
        allow_damaged: read what there is of a frame whose data are cut short.
        lens_corrections: apply what a DNG carries to correct lens and sensor: bad pixels, gain maps,
            vignetting (opcodes FixBadPixelsConstant, FixBadPixelsList, GainMap, FixVignetteRadial). Light
            that they lift beyond the white level is clipped there.

    Raises:
        RawFileError: the file is missing, unreadable, damaged, not raw, not of a Bayer sensor (X-Trans,
            Foveon, monochrome, already demosaiced), has no calibration, or contradicts itself or an argument.

    Warns:
        RawFileWarning: levels that can't be those of the pixels; once a camera. With
            ``lens_corrections``, once a folder: a file that carries none, or others than these, such as of
            distortion (WarpRectilinear), which are named; any file that is no DNG.
    """
    path = Path(path)
    result = read_frame(path, camera, layout, frame, allow_damaged, lens_corrections)
    if not allow_damaged:
        check_whole(path, result)
    look_at(path, result)
    return result


def read_frame(
    path: Path,
    camera: Camera | None = None,
    layout: RawLayout | None = None,
    frame: int | None = None,
    allow_damaged: bool = False,
    lens_corrections: bool = False,
) -> RawFrame:
    """Read as `read_raw` does, without a look whether pixels are whole and levels fit."""
    head = _first_bytes(path)
    kind = next((kind for kind, magic in _PLAIN.items() if head.startswith(magic)), "")
    is_known = any(head[at:].startswith(magic) for at, magic in _MAGIC)
    if layout is None and not kind and not is_known:
        layout = _layout_beside(path)
    facts = None if layout or kind else decoding.tiff_facts(path)
    if lens_corrections and not (facts and facts.is_dng):
        opcodes.warn_of(path, "not applied, only those of DNGs are read")
    if layout is not None:
        if camera is None:
            raise RawFileError(path, "a headerless file does not say which camera took it", _NAME_CAMERA)
        check_layout(path, layout.cfa or camera.cfa, camera)
        return RawFrame(raster.read_headerless(path, layout), camera)
    if kind == "JPEG":
        raise RawFileError(path, "a JPEG picture, already developed", USE_BAYER)
    # Most cameras' formats are TIFF inside, so the name decides, unless the tags tell of a mosaic.
    has_mosaic = facts is not None and (facts.is_dng or facts.has_mosaic)
    if kind or (path.suffix.lower() in (".tif", ".tiff") and not has_mosaic):
        return _read_raster(path, kind or "TIFF", camera)
    if not is_known:
        raise RawFileError(path, "headerless: no raw format begins like this", _DESCRIBE)
    if facts is not None and facts.is_dng:
        return _read_dng(facts, camera, frame, allow_damaged, lens_corrections)
    return _read_camera_file(path, facts.model if facts else "", camera, allow_damaged)


def _layout_beside(path: Path) -> RawLayout | None:
    """Return the layout in ``NAME.json`` beside a file that does not say what it is."""
    beside = path.with_name(f"{path.name}.json")
    try:
        return RawLayout.from_file(beside) if beside.is_file() else None
    except (ValueError, OSError) as error:
        raise RawFileError(path, f"its description can't be read ({error})", _DESCRIBE) from None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        within = f"Give the raw files in it, such as {path / '*.dng'}"
        remedy = within if path.is_dir() else "Give the path of a readable raw file"
        raise RawFileError(path, error.strerror, remedy) from error
    if not head:
        raise RawFileError(path, "the file is empty", FETCH_AGAIN)
    return head


def _read_raster(path: Path, kind: str, camera: Camera | None) -> RawFrame:
    try:
        mosaic = raster.read_mosaic(path, kind)
    except RawFileError:
        raise
    except Exception as error:
        # Decoders fail in many ways on damaged files.
        raise RawFileError(path, f"no readable {kind} file ({_brief(error)})", FETCH_AGAIN) from error
    if camera is None:
        raise RawFileError(path, f"a {kind} file does not say which camera took it", _NAME_CAMERA)
    return RawFrame(mosaic, camera)


def _read_dng(
    facts: decoding.TiffFacts,
    camera: Camera | None,
    frame: int | None,
    allow_damaged: bool,
    lens_corrections: bool,
) -> RawFrame:
    picture = facts.picture(frame)
    cfa = picture.layout()
    if not allow_damaged:
        picture.check_bytes()
    samples = None
    if picture.libraw_decodes and len(facts.pictures) == 1:
        samples = decoding.libraw_samples(picture.path)
    if samples is None or samples.shape != picture.shape:
        samples = decoding.decode_dng(picture)
    if lens_corrections:
        samples = opcodes.fix_bad_pixels(picture, samples)
    if camera is not None:
        check_layout(picture.path, cfa, camera)
        mosaic, *_ = picture.levelled(samples, None)
    else:
        mosaic, black, white = picture.levelled(samples, picture.black())
        name = facts.model or f"camera of {picture.path.name}"
        try:
            read = Camera(name, cfa, tuple(black.ravel()), white, *colours(facts.tags))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            # What a damaged tag holds can be anything.
            raise picture.unusable(str(error)) from None
        exact = facts.exact_camera
        # The standard tags win where someone has edited them since.
        camera = exact if exact and same_calibration(standard_form(exact), read) else read
    if lens_corrections:
        mosaic = opcodes.apply_gains(picture, mosaic, camera)
        opcodes.warn_of_rest(picture)
    return decoding.upright_frame(mosaic, camera, facts.flip)


def _read_camera_file(path: Path, model: str, camera: Camera | None, allow_damaged: bool) -> RawFrame:
    try:
        return decoding.decode_camera_file(path, model, camera, allow_damaged)
    except rawpy.LibRawFileUnsupportedError:
        raise RawFileError(path, "no raw file of a camera that LibRaw knows", _USE_KNOWN) from None
    except RawFileError:
        raise
    except ValueError as error:
        raise RawFileError(path, str(error), USE_BAYER) from None
    except (rawpy.LibRawError, NotImplementedError, OSError, MemoryError) as error:
        raise RawFileError(path, f"LibRaw can't read it ({_brief(error)})", FETCH_AGAIN) from error


def _brief(error: Exception) -> str:
    """Return the first line of a decoder's message, which LibRaw gives as bytes."""
    text = error.args[0] if error.args and isinstance(error.args[0], bytes) else str(error).encode()
    return (text.decode(errors="replace").splitlines() or [type(error).__name__])[0].rstrip(".")


def load_camera(name_or_path: str | Path) -> Camera:
    """Return a published camera by name, the one that a JSON file describes, or that of a raw file.

    >>> load_camera("drone").cfa.name
    'RGGB'

    Raises:
        ValueError: neither "microscope" nor "drone", nor a readable JSON file from `Camera.to_dict`, nor a
            raw file that says of which camera it is.
    """
    if (published := CAMERAS.get(str(name_or_path).lower())) is not None:
        return published
    if Path(name_or_path).suffix.lower() not in ("", ".json"):
        return read_raw(name_or_path).camera
    choices = f"choose from {', '.join(CAMERAS)}, a raw file, or a JSON file from Camera.to_dict()"
    try:
        return Camera.from_dict(json.loads(Path(name_or_path).read_text("utf-8")))
    except FileNotFoundError:
        raise ValueError(f"unknown camera {str(name_or_path)!r}; {choices}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name_or_path}: no camera description ({error}); {choices}") from None
