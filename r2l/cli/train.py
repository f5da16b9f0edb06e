"""`r2l train`: a processor and a task model by cross-validation; `learn-pipeline`: a camera's, from JPEGs."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from r2l.cli.commands import EXIT_INTERRUPTED, argument, replacing, with_options
from r2l.options import Options

_PICTURES = (".jpg", ".jpeg", ".png")


def train(**given: Any) -> None:
    """Train a processor (ISP) and a task model, fold by fold, and keep records of it.

    Run with --test_run first. A run that was killed or interrupted goes on when the same command line is
    given again. Flags may be followed by True or False; of an option given twice the last counts.
    """
    try:
        # Takes seconds: not for those who only ask for help.
        from r2l.training.experiment import experiment

        experiment(Options(**given), say=partial(print, flush=True))
    except KeyboardInterrupt:
        print(
            "interrupted: the run is marked as killed; the same command line goes on with it",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


with_options(train)


def learn_pipeline(
    photos: Annotated[
        list[Path],
        argument(
            "RAW JPEG ...",
            "Pairs, one after the other: a raw file and the camera's JPEG of the same exposure.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the pipeline goes.")
    ],
    seed: Annotated[int, typer.Option(help="Of the blocks that are fitted and judged.")] = 0,
    force: Annotated[bool, replacing("a pipeline that is there")] = False,
) -> None:
    """Learn a camera's pipeline from raw files and its own JPEGs of them.

    Into the folder go the pipeline, which stands wherever a pipeline's name can (--pipeline FOLDER),
    report.txt, scores.csv and a figure. Judged are blocks that were not fitted, beside the twelve published
    pipelines.
    """
    from r2l.files import atomic_path, write_csv
    from r2l.isp import save_isp
    from r2l.isp.saving import DESCRIPTION
    from r2l.learn import learn_pipeline as learn
    from r2l.viz import plot_learned

    if (output / DESCRIPTION).exists() and not force:
        raise ValueError(f"{output} holds a pipeline: --force replaces it, -o names another folder")
    learned = learn(_pairs(photos), seed=seed)
    save_isp(learned.isp, output)
    report = learned.report()
    with atomic_path(output / "report.txt") as partial:
        partial.write_text(report + "\n", "utf-8")
    write_csv(learned.scores.rename_axis("pipeline"), output / "scores.csv", index=True)
    with atomic_path(output / "learned.png") as partial:
        plot_learned(learned).savefig(partial, format="png", dpi=150)
    print(f"{report}\n{output}")


def _pairs(photos: list[Path]) -> list[tuple[Path, Path]]:
    """Return raw file and picture of each two that follow each other, in either order.

    Raises:
        ValueError: an odd number of files, or two of the same kind.
    """
    if len(photos) % 2:
        raise ValueError(
            f"{len(photos)} files are no pairs: give a raw file and its JPEG, and so on"
        )
    pairs = []
    for two in zip(photos[::2], photos[1::2], strict=True):
        raw, picture = sorted(two, key=lambda path: path.suffix.lower() in _PICTURES)
        if raw.suffix.lower() in _PICTURES or picture.suffix.lower() not in _PICTURES:
            raise ValueError(f"{two[0]} and {two[1]} are no raw file and its JPEG")
        pairs.append((raw, picture))
    return pairs
