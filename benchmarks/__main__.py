"""How fast r2l is on this machine, beside what others use: `python -m benchmarks --help`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from r2l.cli.commands import told

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small frames, few rounds: only to see that it runs.")
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
        _bench(quick, only, rounds, threads, json, markdown, readme)


def _bench(
    quick: bool,
    only: str,
    rounds: int | None,
    threads: int | None,
    json: Path | None,
    markdown: Path | None,
    readme: Path | None,
) -> None:
    import torch

    try:
        import cv2

        from benchmarks.report import check_markers, write_between_markers
        from benchmarks.run import run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is missing; the peers of the benchmark come with: pip install -e '.[bench]'"
        ) from error
    from r2l.files import atomic_path

    if readme:
        check_markers(readme)  # before the long work
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    report = run(quick, only, rounds)
    if markdown == Path("-"):
        print(report.markdown(), end="")
    else:
        print(report.text(), end="")
    written = [(json, report.to_json())]
    written.append((None if markdown == Path("-") else markdown, report.markdown()))
    for path, content in written:
        if path:
            with atomic_path(path) as partial:
                partial.write_text(content, "utf-8")
    if readme:
        write_between_markers(readme, report.markdown(folded=True))


if __name__ == "__main__":
    app()
