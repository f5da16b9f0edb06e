"""How fast r2l is on this machine, beside what others use: `python -m benchmarks --help`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from r2l.cli.commands import told

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small frames, one round: only to see that it runs.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="Measure only what matches this regular expression, such as '2 MP / .*bi,s,ga'.",
        ),
    ] = "",
    rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="How often each contender has its turn.  [default: 7, for large frames 3]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Threads of those that use several.  [default: one a core]",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything, each time too, as JSON.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown; - prints.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the tables between the lines <!-- bench:begin --> and <!-- bench:end -->.",
        ),
    ] = None,
) -> None:
    """Measure speed and memory of r2l and of other libraries on the same work, in turns.

    Takes about a quarter of an hour. The peers come with: pip install -e '.[bench]'
    """
    if threads:
        # Read when the libraries are first imported, which is below.
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with told():
        run = _prepared(threads)
        from benchmarks.report import check_markers, write_between_markers
        from r2l.files import atomic_path

        if readme:
            check_markers(readme)  # before the long work
        report = run(quick, only, rounds)
        is_printed = markdown == Path("-")
        print(report.markdown() if is_printed else report.text(), end="")
        for path, content in ((json, report.to_json()), (markdown, report.markdown())):
            if path and path != Path("-"):
                with atomic_path(path) as partial:
                    partial.write_text(content, "utf-8")
        if readme:
            write_between_markers(readme, report.markdown(folded=True))


def _prepared(threads: int | None) -> Callable[..., Any]:
    """Return what runs the benchmark, once the peers are seen to be installed and their threads set."""
    import torch

    try:
        import cv2

        from benchmarks.run import run
    except ModuleNotFoundError as error:
        peers = "the peers of the benchmark come with: pip install -e '.[bench]'"
        raise ValueError(f"{error.name} is missing; {peers}") from error
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    return run


if __name__ == "__main__":
    app()
