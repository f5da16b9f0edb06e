"""`r2l develop`: raw files to pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2l.cli.errors import for_each

if TYPE_CHECKING:
    import torch

    from r2l.camera import Camera
    from r2l.rawfile import RawLayout


def _headerless(text: str) -> Any:
    return typer.Option(help=f"Without a header: {text}", show_default=False)


def develop(
    photos: Annotated[
        list[Path],
        typer.Argument(
            metavar="PHOTO",
            help="Raw files: DNG, CR3, NEF, ARW and others; mosaics as TIFF, PNG, NPY; or frames without a "
            "header, which need --width, --height, --bits and --camera.",
            show_default=False,
        ),
    ],
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            metavar="CODE",
            help="Demosaicing, sharpening and denoising: bi, ma or me; s or u; me or ga.",
        ),
    ] = "bi,s,ga",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A file ending in .png for one photo, or a folder. Into a folder, PHOTO becomes "
            "PHOTO_bi-s-ga.png.  [default: the current folder]",
            show_default=False,
        ),
    ] = None,
    camera: Annotated[
        str | None,
        typer.Option(
            metavar="CAMERA",
            help="microscope, drone, a JSON file, or another raw file of the camera. Replaces what the "
            "file says; TIFF, PNG and NPY say nothing and need it.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str, typer.Option(help="corrected, or paper for the stages as published.")
    ] = "corrected",
    highlights: Annotated[
        str,
        typer.Option(
            help="clip: what saturates comes out white. keep: pass it on as recorded, which makes "
            "it pink; always so with the variant paper."
        ),
    ] = "clip",
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            help="Also write the picture after each stage, to OUTPUT.stages/. Those before gamma "
            "are brightened by the display's gamma, so that people can see them.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace pictures that exist.")
    ] = False,
    frame: Annotated[
        int | None, typer.Option(metavar="N", help="Which of several exposures of a DNG, from 0.")
    ] = None,
    allow_damaged: Annotated[
        bool,
        typer.Option("--allow_damaged", help="Develop what there is of a file that was cut short."),
    ] = False,
    width: Annotated[int | None, _headerless("pixels in a row.")] = None,
    height: Annotated[int | None, _headerless("rows.")] = None,
    bits: Annotated[int | None, _headerless("bits of a pixel.")] = None,
    packing: Annotated[
        str,
        _headerless(
            "u8, u16le, u16be, u16le_left, u16be_left, mipi10, mipi12, mipi14, mono12p, mono12packed."
        ),
    ] = "u16le",
    cfa: Annotated[str | None, _headerless("RGGB, BGGR, GRBG or GBRG.")] = None,
    offset: Annotated[int, _headerless("bytes before the first pixel.")] = 0,
    stride: Annotated[int | None, _headerless("bytes from one row to the next.")] = None,
) -> None:
    """Develop raw files to 8-bit PNG pictures.

    A photo that fails is reported, the others are still developed, and the exit status is 2.
    """
    layout = _layout(width, height, bits, packing, cfa, offset, stride)
    reading = {"layout": layout, "frame": frame, "allow_damaged": allow_damaged}
    developer = _Developer(pipeline, variant, camera, highlights, reading)
    targets = _targets(photos, output, pipeline)

    def develop_one(photo: Path, target: Path) -> None:
        for written in developer.develop(photo, target, stages=stages, force=force):
            print(written)

    for_each(develop_one, photos, targets)


def _layout(
    width: int | None, height: int | None, bits: int | None, packing: str, *others: Any
) -> RawLayout | None:
    """Return what the options say of a headerless frame; None if they say nothing."""
    from r2l.rawfile import RawLayout

    sizes = {"--width": width, "--height": height, "--bits": bits}
    missing = [name for name, value in sizes.items() if value is None]
    if len(missing) == len(sizes):
        return None
    if missing:
        raise ValueError(f"a frame without a header also needs {' and '.join(missing)}")
    return RawLayout(width, height, bits, packing, *others)


class _Developer:
    """The choices that hold for all photos of a call, checked before the first one is read."""

    def __init__(
        self, code: str, variant: str, camera: str | None, highlights: str, reading: dict[str, Any]
    ) -> None:
        from r2l.camera import DRONE
        from r2l.isp import StaticISP
        from r2l.rawfile import load_camera

        self.code, self.variant, self.reading = code, variant, reading
        self.camera: Camera | None = load_camera(camera) if camera else None
        StaticISP.from_code(code, DRONE, variant=variant)
        if highlights not in ("clip", "keep"):
            raise ValueError(f"unknown highlights {highlights!r}; choose from clip, keep")
        self.clip = highlights == "clip" and variant == "corrected"

    def develop(self, photo: Path, target: Path, *, stages: bool, force: bool) -> Iterator[Path]:
        """Develop one photo; yield each file as it is written."""
        import torch

        from r2l.isp import StaticISP
        from r2l.isp.functional import clip_highlights
        from r2l.rawfile import read_raw

        stage_folder = target.with_suffix(".stages")
        for place in (target, stage_folder) if stages else (target,):
            if place.exists() and not force:
                raise ValueError(f"{place} exists: --force replaces it, -o names another place")
        frame = read_raw(photo, self.camera, **self.reading)
        isp = StaticISP.from_code(self.code, frame.camera, variant=self.variant)
        with torch.inference_mode():
            raw = frame.tensor()
            raw = clip_highlights(raw, frame.camera) if self.clip else raw
            # All stages at once take several times the memory of the last.
            pictures = isp.stages(raw) if stages else {"gamma": isp(raw)}
        *before_gamma, final = pictures
        yield _write_png(target, pictures[final])
        if stages:
            for number, (name, picture) in enumerate(pictures.items(), start=1):
                shown = picture.clamp(0, 1) ** (1 / 2.2) if name in before_gamma else picture
                yield _write_png(stage_folder / f"{number:02d}_{name}.png", shown)


def _targets(photos: list[Path], output: Path | None, code: str) -> list[Path]:
    """Return where the picture of each photo goes.

    Raises:
        ValueError: several photos for one picture, a picture in the place of a photo, or a name
            that is neither a folder's nor a PNG's.
    """
    output = output or Path()
    if output.suffix.lower() == ".png" and not output.is_dir():
        if len(photos) > 1:
            raise ValueError(f"{output} is one file for {len(photos)} photos: give -o a folder")
        targets = [output]
    elif output.suffix and not output.is_dir():
        raise ValueError(f"{output}: pictures are written as PNG; end the name in .png")
    else:
        marks = code.replace(" ", "").replace(",", "-")
        targets = [output / f"{photo.stem}_{marks}.png" for photo in photos]
    _check_distinct(photos, targets)
    return targets


def _check_distinct(photos: list[Path], targets: list[Path]) -> None:
    sources = {photo.resolve() for photo in photos}
    taken: dict[Path, Path] = {}
    for photo, target in zip(photos, targets, strict=True):
        place = target.resolve()
        if place in sources:
            raise ValueError(f"{target} is one of the photos: choose another name with -o")
        if place in taken:
            raise ValueError(f"{taken[place]} and {photo} would both be written to {target}")
        taken[place] = photo


def _write_png(target: Path, picture: torch.Tensor) -> Path:
    """Write a (1, C, H, W) *display* picture in [0, 1], C 1 or 3, as 8-bit PNG, whole or not."""
    from PIL import Image

    from r2l.files import atomic_path

    values = picture[0].clamp(0, 1).mul(255).round().byte()
    values = values[0] if len(values) == 1 else values.permute(1, 2, 0)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial:
        Image.fromarray(values.numpy()).save(partial, format="PNG")
    return target
