"""`r2l check`: does a camera lie inside what a model tolerates?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2l.cli.report import Failures

if TYPE_CHECKING:
    import pandas as pd

EXIT_OUTSIDE = 1


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
    failures = Failures()
    outside = False
    with failures.reported():
        from r2l.drift.forensics import ToleranceReport
        from r2l.rawfile import load_camera

        report = ToleranceReport.load(tolerances)
        print(
            f"{report.model} on {report.camera.name}, {report.pipeline}: {report.metric} "
            f"{report.score:.3f}, allowed to fall by {report.drop:g}"
        )
    failures.exit_if_any()
    for name in camera:
        with failures.reported():
            found = report.check(load_camera(name))
            outside |= bool((found["verdict"] == "outside").any())
            print(f"\n{name}: {_verdict(found)}\n{_text(found)}")
    failures.exit_if_any()
    if outside:
        raise typer.Exit(EXIT_OUTSIDE)


def _verdict(found: pd.DataFrame) -> str:
    counts = found["verdict"].value_counts()
    if "outside" in counts:
        return f"outside in {counts['outside']} of {len(found)} settings"
    unknown = counts.get("unknown", 0)
    rest = f"; of {unknown} settings a camera tells nothing" if unknown else ""
    return f"inside{rest}"


def _text(found: pd.DataFrame) -> str:
    lines = found.assign(
        tolerated=[
            f"{low:.4g} to {high:.4g} {unit}".rstrip()
            for low, high, unit in found[["safe_low", "safe_high", "unit"]].itertuples(index=False)
        ],
        value=found["value"].map(lambda v: "-" if v != v else f"{v:.4g}"),
    )
    return lines[["value", "tolerated", "verdict"]].rename_axis(None).to_string()
