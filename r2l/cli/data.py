"""`r2l data`: fetch the published data sets, say what is there, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from r2l.cli.errors import EXIT_ERROR

data = typer.Typer(no_args_is_help=True, help="Fetch, describe and check the published data sets.")

_Name = Literal["microscopy", "drone"]
_Root = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where data lie.  [default: the variable R2L_DATA, else ./data]",
        show_default=False,
    ),
]


@data.command()
def fetch(
    name: Annotated[_Name, typer.Argument(show_default=False)],
    root: _Root = None,
    source: Annotated[
        Literal["zenodo", "b2"],
        typer.Option(help="b2 needs B2_APPLICATION_KEY_ID and B2_APPLICATION_KEY to be set."),
    ] = "zenodo",
    tiles: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Fetch N images only, with their labels or masks.", show_default=False
        ),
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
def verify(name: Annotated[_Name, typer.Argument(show_default=False)], root: _Root = None) -> None:
    """Check that a data set is whole: checksums, counts, and that each image decodes."""
    from r2l.datasets.verify import verify as verify_data

    fine, wrong = verify_data(name, root)
    print(*(f"ok     {line}" for line in fine), *(f"wrong  {line}" for line in wrong), sep="\n")
    if wrong:
        raise typer.Exit(EXIT_ERROR)
