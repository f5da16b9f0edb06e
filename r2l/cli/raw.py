"""Raw files: `r2l develop` makes pictures of them, `r2l data` fetches and checks sets of them; their cameras.

`r2l check` says whether a camera suits a model, `r2l camera show` what it is.
"""

from __future__ import annotations

import inspect
import json
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from r2l.cli.commands import (
    EXIT_ERROR,
    argument,
    check_free,
    check_targets,
    for_each,
    option,
    replacing,
    with_options,
)
from r2l.files import atomic_path, choose, local_path, to_uint8
from r2l.options import Options

if TYPE_CHECKING:
    import torch

_EXIT_OUTSIDE = 1
_PACKING = "u8, u16le, u16be, u16le_left, u16be_left, mipi10, mipi12, mipi14, mono12p, mono12packed."


def _headerless(text: str) -> Any:
    return option(f"Without a header: {text}", rich_help_panel="Data")


def headerless_layout(
    width: Annotated[int | None, _headerless("pixels in a row.")] = None,
    height: Annotated[int | None, _headerless("rows.")] = None,
    bits: Annotated[int | None, _headerless("bits of a pixel.")] = None,
    packing: Annotated[str, _headerless(_PACKING)] = "u16le",
    cfa: Annotated[str | None, _headerless("RGGB, BGGR, GRBG or GBRG.")] = None,
    offset: Annotated[int, _headerless("bytes before the first pixel.")] = 0,
    stride: Annotated[int | None, _headerless("bytes from one row to the next.")] = None,
) -> Any:
    """Return the `RawLayout` that the options of a command describe; None if they say nothing."""
    sizes = {"--width": width, "--height": height, "--bits": bits}
    missing = [name for name, value in sizes.items() if value is None]
    if len(missing) == len(sizes):
        return None
    if missing:
        raise ValueError(f"a frame without a header also needs {' and '.join(missing)}")
    from r2l.rawfile import RawLayout

    return RawLayout(width, height, bits, packing, cfa, offset, stride)


#: Its options, for `with_options`.
HEADERLESS = inspect.signature(headerless_layout, eval_str=True).parameters

_CAMERA = (
    "microscope, drone, a JSON file, or another raw file of the camera. Replaces what files say; TIFF, PNG "
    "and NPY say nothing and need it."
)
#: The option of commands that read raw files.
CAMERA = option(_CAMERA, metavar="CAMERA")

_PHOTO = (
    "Raw files: DNG, CR3, NEF, ARW and others; mosaics as TIFF, PNG, NPY; or frames without a header, which "
    "need --width, --height, --bits and --camera."
)
_PIPELINE = (
    "Demosaicing, sharpening and denoising: bi, ma or me; s or u; me, ga or fft. Or another program's "
    "demosaicing (libraw:ahd, opencv:ea), a saved ISP's folder or runs:/..., module:function of your own; "
    "with mosaic stages before and display stages behind: defects:0.1+ma,s,ga+jpeg:75."
)
_OUTPUT = (
    "A file ending in .png for one photo, or a folder. Into a folder, PHOTO becomes PHOTO_bi-s-ga.png.  "
    "[default: the current folder]"
)
_VARIANT = "corrected; paper: as published; camera: white balance first."
_HIGHLIGHTS = (
    "clip: what saturates comes out white. keep: pass it on as recorded, which makes it pink; always so with "
    "the variant paper."
)
_STAGES = (
    "Also write the picture after each stage, to OUTPUT.stages/. Those before gamma are brightened by the "
    "display's gamma, so that people can see them."
)
_DAMAGED = "Develop what there is of a file that was cut short."
_LENS = "Apply the corrections that a DNG carries: bad pixels, gain maps, vignetting."
_DEFECTS = (
    "Replace hot and dead pixels: those that differ from all neighbours of their colour by more than this "
    "share of the range, such as 0.1."
)


def develop(
    photos: Annotated[list[Path], argument("PHOTO", _PHOTO)],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", metavar="PIPELINE", help=_PIPELINE)
    ] = "bi,s,ga",
    output: Annotated[Path | None, option(_OUTPUT, "--output", "-o", metavar="PATH")] = None,
    camera: Annotated[str | None, CAMERA] = None,
    variant: Annotated[str, typer.Option(help=_VARIANT)] = "corrected",
    highlights: Annotated[str, typer.Option(help=_HIGHLIGHTS)] = "clip",
    stages: Annotated[bool, typer.Option("--stages", help=_STAGES)] = False,
    force: Annotated[bool, replacing("pictures that exist")] = False,
    frame: Annotated[int | None, option("Which of several exposures of a DNG, from 0.", metavar="N")] = None,
    allow_damaged: Annotated[bool, typer.Option("--allow_damaged", help=_DAMAGED)] = False,
    lens_corrections: Annotated[bool, typer.Option("--lens_corrections", help=_LENS)] = False,
    defects: Annotated[float | None, option(_DEFECTS, metavar="T")] = None,
    **headerless: Any,
) -> None:
    """Develop raw files to 8-bit PNG pictures.

    A photo that fails is reported, the others are still developed, and the exit status is 2.
    """
    import torch

    from r2l.isp import open_pipeline
    from r2l.isp.added_stages import clip_highlights, correct_defects
    from r2l.isp.grammar import linear_stages
    from r2l.rawfile import load_camera, read_raw
    from r2l.rawfile.frame import look_at_picture

    # What is wrong for all photos is noticed before the first one is read.
    layout = headerless_layout(**headerless)
    given = load_camera(camera) if camera else None
    Options(pipeline=pipeline, variant=variant)
    clip = choose("highlights", highlights, ["clip", "keep"]) == "clip"
    targets = _targets(photos, output, pipeline)

    def develop_one(photo: Path, target: Path) -> None:
        stage_folder = target.with_suffix(".stages")
        check_free(target, force)
        if stages:
            check_free(stage_folder, force, folder=True)
        how = {"allow_damaged": allow_damaged, "lens_corrections": lens_corrections}
        recorded = read_raw(photo, given, layout=layout, frame=frame, **how)
        isp = open_pipeline(pipeline, recorded.camera, variant)
        as_published = getattr(getattr(isp, "base", isp), "variant", None) == "paper"
        with torch.inference_mode():
            raw = recorded.tensor()
            raw = raw if defects is None else correct_defects(raw, recorded.camera, defects)
            raw = clip_highlights(raw, recorded.camera) if clip and not as_published else raw
            # All stages at once take several times the memory of the last.
            pictures = isp.stages(raw) if stages else {"gamma": isp(raw)}
        final, linear = list(pictures)[-1], linear_stages(pictures)
        look_at_picture(pictures[final], recorded.mosaic, recorded.camera, photo.name)
        _write_png(target, pictures[final])
        for number, (name, picture) in enumerate(pictures.items() if stages else (), start=1):
            shown = picture.clamp(0, 1) ** (1 / 2.2) if name in linear else picture
            _write_png(stage_folder / f"{number:02d}_{name}.png", shown)

    # While one is read or written another is developed; more than four would fill the memory.
    for_each(develop_one, photos, targets, at_once=min(torch.get_num_threads(), 4))


with_options(develop, {}, HEADERLESS)

_CAMERAS = "A raw file of the camera, microscope, drone, or a JSON file; may be given again."


def check(
    tolerances: Annotated[Path, option("The report of a model's tolerances, JSON.", metavar="FILE")],
    camera: Annotated[list[str], option(_CAMERAS, metavar="CAMERA")],
) -> None:
    """Say for each setting whether cameras lie inside the tolerances of a model.

    Compared are the numbers that frames are developed with, one at a time: levels, gains, colour; and what a
    raw file shows of its sensor's defects, if the report has tolerances of them.
    Exit status: 0 all inside, 1 some outside, 2 an error.
    """
    from r2l.drift.forensics.sensitivity import ToleranceReport, as_text
    from r2l.isp.added_stages import measure_defects
    from r2l.rawfile import load_camera, read_raw

    report = ToleranceReport.load(tolerances)
    print(
        f"{report.model} on {report.camera.name}, {report.pipeline}: {report.metric} "
        f"{report.score:.3f}, allowed to fall by {report.drop:g}"
    )
    outside = []

    def check_one(name: str) -> None:
        frame = read_raw(name) if Path(name).suffix.lower() not in ("", ".json") else None
        defects = measure_defects(frame.tensor(), frame.camera) if frame else {}
        checked = report.check(frame.camera if frame else load_camera(name), defects)
        outside.extend(checked.index[checked["verdict"] == "outside"])
        print(f"\n{name}: {report.verdict(checked)}\n{as_text(checked).rename_axis(None).to_string()}")
        if frame:
            told = ", ".join(f"{what} {share:.3%}" for what, share in defects.items())
            print(f"measured in this photo: {told} of the range")

    for_each(check_one, camera)
    if outside:
        raise typer.Exit(_EXIT_OUTSIDE)


def show(
    source: Annotated[str, argument("FILE", "A raw file, a JSON file, microscope or drone.")],
    output: Annotated[Path | None, option("Write it there.", "--output", "-o", metavar="FILE")] = None,
    force: Annotated[bool, replacing("a file that exists")] = False,
) -> None:
    """Print a camera as JSON, or write it to a file that --camera takes.

    Levels are fractions of the container's full scale: 1.0 is 65535 of 16 bit. A file written by hand may
    have a data sheet's counts instead: "bits": 12, "black_level": 256, "white_level": 4095.
    """
    from r2l.rawfile import load_camera

    text = json.dumps(load_camera(source).to_dict(), indent=2)
    if output is None:
        print(text)
        return
    check_free(output, force)
    with atomic_path(output) as partial:
        partial.write_text(text + "\n", "utf-8")
    print(output)


def _targets(photos: list[Path], output: Path | None, code: str) -> list[Path]:
    """Return where the picture of each photo goes; a ValueError where that can't be."""
    output = output or Path()
    if output.suffix.lower() == ".png" and not output.is_dir():
        if len(photos) > 1:
            raise ValueError(f"{output} is one file for {len(photos)} photos: give -o a folder")
        targets = [output]
    elif output.suffix and not output.is_dir():
        raise ValueError(f"{output}: pictures are written as PNG; end the name in .png")
    else:
        marks = re.sub(r"[^\w.+@=-]+", "-", code.replace(" ", "")).strip("-")
        targets = [output / f"{photo.stem}_{marks}.png" for photo in photos]
    check_targets(photos, targets, "name")
    return targets


def _write_png(target: Path, picture: torch.Tensor) -> None:
    """Write a (1, C, H, W) *display* picture, C 1 or 3, as 8-bit PNG, whole or not; print its name."""
    from PIL import Image
    from tqdm import tqdm

    values = picture[0, 0] if picture.shape[1] == 1 else picture[0].permute(1, 2, 0)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        # Runs are all that repeats in a noisy picture: half the time of a search, and a tenth fewer bytes.
        Image.fromarray(to_uint8(values.numpy())).save(partial, format="PNG", compress_type=zlib.Z_RLE)
    with tqdm.external_write_mode():  # not behind a bar
        print(target)


data = typer.Typer(no_args_is_help=True, help="Fetch, describe and check the published data sets.")

_Name = Literal["microscopy", "drone"]
_ROOT = "Where data lie.  [default: the variable R2L_DATA, else ./data]"
_Root = Annotated[Path | None, option(_ROOT, metavar="FOLDER")]


@data.command()
def fetch(
    name: Annotated[_Name, typer.Argument(show_default=False)],
    root: _Root = None,
    source: Annotated[
        Literal["zenodo", "b2"],
        typer.Option(help="b2 needs B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY to be set."),
    ] = "zenodo",
    tiles: Annotated[
        int | None, option("Fetch N images only, with their labels or masks.", metavar="N")
    ] = None,
    intensity: Annotated[float, typer.Option(help="Of the images that --tiles fetches.")] = 1.0,
) -> None:
    """Download a data set. Run again, it goes on where it was; nothing is replaced or deleted."""
    from r2l.datasets.fetch.download import fetch as fetch_data

    print(*fetch_data(name, root, source=source, tiles=tiles, intensity=intensity), sep="\n")


@data.command()
def info(
    name: Annotated[_Name | None, typer.Argument(show_default=False)] = None, root: _Root = None
) -> None:
    """Tell what the data sets are, their licence and source, and what of them is there."""
    from r2l.datasets.layout import describe

    for kind in (name,) if name else ("microscopy", "drone"):
        print(*describe(kind, root), sep="\n")


@data.command()
def verify(
    name: Annotated[_Name | None, typer.Argument(show_default=False)] = None,
    root: _Root = None,
    labels: Annotated[Path | None, option("Of an own folder: CSV.", metavar="FILE")] = None,
    masks: Annotated[Path | None, option("Of an own folder.", metavar="FOLDER")] = None,
    camera: Annotated[str | None, option("Of own files that don't say.")] = None,
    layout: Annotated[Path | None, option("Of headerless files.", metavar="FILE")] = None,
) -> None:
    """Check that data are whole: published sets, or any folder of raw files (--root), each file read.

    Without a name: the published sets that are there, else the folder.
    """
    from r2l.datasets.layout import data_root
    from r2l.datasets.verify import verify as verify_data
    from r2l.datasets.verify import verify_folder
    from r2l.rawfile import RawLayout, load_camera

    place = data_root(root)
    published = [name] if name else [k for k in get_args(_Name) if (place / k).is_dir()]
    if published and not (labels or masks):
        results = [verify_data(kind, root) for kind in published]
    elif root is None:
        raise ValueError(f"nothing in {place}: fetch a data set, or give the folder of own files (--root)")
    else:
        drawn = labels and local_path(labels), masks and local_path(masks)
        given = camera and load_camera(camera), layout and RawLayout.from_file(layout)
        results = [verify_folder(place, *drawn, *given)]
    fine, wrong = ([line for some in each for line in some] for each in zip(*results, strict=True))
    print(*(f"ok     {line}" for line in fine), *(f"wrong  {line}" for line in wrong), sep="\n")
    if wrong:
        raise typer.Exit(EXIT_ERROR)
