"""`r2l data`: fetch the published data sets, say what is there, and check it."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from r2l.cli.commands import EXIT_ERROR, option
from r2l.files import local_path

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

    notes = fetch_data(name, root, source=source, tiles=tiles, intensity=intensity)
    print(*notes, sep="\n")


@data.command()
def info(
    name: Annotated[_Name | None, typer.Argument(show_default=False)] = None, root: _Root = None
) -> None:
    """Tell what the data sets are, their licence and source, and what of them is there."""
    from r2l.datasets.verify import describe

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
