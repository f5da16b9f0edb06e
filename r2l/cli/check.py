"""`r2l check`: does a camera lie inside what a model tolerates?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2l.cli.errors import for_each

_EXIT_OUTSIDE = 1


def check(
    tolerances: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The report of a model's tolerances, JSON.", show_default=False
        ),
    ],
    camera: Annotated[
        list[str],
        typer.Option(
            metavar="CAMERA",
            help="A raw file of the camera, microscope, drone, or a JSON file; may be given again.",
            show_default=False,
        ),
    ],
) -> None:
    """Say for each setting whether cameras lie inside the tolerances of a model.

    Compared are the numbers that frames are developed with, one at a time: levels, gains, colour. Exit
    status: 0 all inside, 1 some outside, 2 an error.
    """
    from r2l.drift.forensics.tolerance_report import ToleranceReport, as_text
    from r2l.rawfile import load_camera

    report = ToleranceReport.load(tolerances)
    print(
        f"{report.model} on {report.camera.name}, {report.pipeline}: {report.metric} "
        f"{report.score:.3f}, allowed to fall by {report.drop:g}"
    )
    outside = []

    def check_one(name: str) -> None:
        checked = report.check(load_camera(name))
        outside.extend(checked.index[checked["verdict"] == "outside"])
        text = as_text(checked).rename_axis(None).to_string()
        print(f"\n{name}: {report.verdict(checked)}\n{text}")

    for_each(check_one, camera)
    if outside:
        raise typer.Exit(_EXIT_OUTSIDE)
