"""What trains: `r2l train`, `r2l sweep` for many runs on many machines, `r2l learn-pipeline`."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2l.cli.commands import EXIT_INTERRUPTED, argument, check_free, option, replacing, with_options
from r2l.files import local_path
from r2l.options import FIELDS, Options

if TYPE_CHECKING:
    from r2l.sweep.engine import Engine
    from r2l.sweep.jobs import Sweep

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
        how = "the run is marked as killed; the same command line goes on with it"
        print(f"interrupted: {how}", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


with_options(train, {name: {} for name in FIELDS})


def learn_pipeline(
    photos: Annotated[
        list[Path],
        argument(
            "RAW JPEG", "Pairs, one after the other: a raw file and the camera's JPEG of the same exposure."
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

    check_free(output / DESCRIPTION, force)
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
    """Return raw file and picture of each two that follow each other, in either order."""
    if len(photos) % 2:
        raise ValueError(f"{len(photos)} files are no pairs: give a raw file and its JPEG, and so on")
    pairs = []
    for two in zip(photos[::2], photos[1::2], strict=True):
        raw, picture = sorted(two, key=lambda path: path.suffix.lower() in _PICTURES)
        if raw.suffix.lower() in _PICTURES or picture.suffix.lower() not in _PICTURES:
            raise ValueError(f"{two[0]} and {two[1]} are no raw file and its JPEG")
        pairs.append((raw, picture))
    return pairs


_FILES = "Grids of runs, such as experiments/small.yaml, or parameter files of notebooks."
_PLAN = "Say what is left and, by the runs that are finished, what it costs (hours, disk); run nothing."
_WORKERS = "Runs at a time.  [default: one a GPU; without a GPU one a core, at most 8]"
_THREADS = "Threads of each run.  [default: the cores shared out]"
_SCHEDULER = "A Dask scheduler that runs already, tcp://HOST:8786."
_CLUSTER = "SLURM or Kubernetes, see experiments/clusters/."
_WAIT = "Seconds to wait for a scheduler and a first worker."
_DEATHS = "Workers that a run may kill before it is given up."
_FOLDER = "One folder for each FILE is made in it."
_STORE = "Store of the records.  [default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here]"
_PARAMETER = "For all runs, in place of the file's."
_ANY_CODE = "Also take runs that other versions of the code finished."


def sweep(
    files: Annotated[list[Path], argument("FILE", _FILES)],
    plan: Annotated[bool, typer.Option("--plan", help=_PLAN)] = False,
    workers: Annotated[int | None, option(_WORKERS)] = None,
    threads: Annotated[int | None, option(_THREADS)] = None,
    scheduler: Annotated[str | None, option(_SCHEDULER, metavar="ADDRESS")] = None,
    cluster: Annotated[Path | None, option(_CLUSTER, metavar="FILE")] = None,
    wait: Annotated[float, typer.Option(min=1, help=_WAIT)] = 600.0,
    deaths: Annotated[int, typer.Option(min=1, help=_DEATHS)] = 3,
    folder: Annotated[Path, typer.Option("--output", "-o", "--folder", help=_FOLDER)] = Path("runs/sweeps"),
    store: Annotated[str | None, option(_STORE, "--tracking_uri", metavar="URI")] = None,
    parameter: Annotated[
        list[str] | None, option(_PARAMETER, "--parameter", "-p", metavar="NAME=VALUE")
    ] = None,
    limit: Annotated[int | None, option("At most so many of the runs that are left.", min=1)] = None,
    any_code: Annotated[bool, typer.Option("--any_code", help=_ANY_CODE)] = False,
) -> None:
    """Carry out a grid of trainings or notebooks, several at a time, here or on a cluster.

    Runs that are finished are found by their parameters and the version of the code, and not done again:
    after whatever stopped it, give the same command again. A run that fails does not stop the others. At
    the end report.html in the sweep's folder shows the matrix, and says what failed and why.
    """
    failed = 0
    try:
        # Takes seconds: not for those who only ask for help.
        from r2l.sweep import open_engine, read_sweep

        engine = open_engine(
            workers=workers, threads=threads, scheduler=scheduler, cluster=cluster, wait=wait, deaths=deaths
        )
        if not plan:
            engine.prepare()  # while the files are read, for which torch is imported
        given = _parameters(parameter or [])
        sweeps, folder = [read_sweep(path, given) for path in files], local_path(folder)
        if len({one.name for one in sweeps}) < len(sweeps):
            raise ValueError(
                f"{', '.join(map(str, files))}: files of one name would share a folder in {folder}; rename "
                "one, or give each a command and --folder of its own"
            )
        for one in sweeps:
            place = folder / one.name
            if plan:
                from r2l.sweep import report

                print(f"{one.name}: {one.about}" if one.about else one.name, f"on {engine.about}", sep="\n")
                print(report.plan(report.read_outcomes(one, place, any_code=any_code), engine.workers, place))
            else:
                failed += _carry_out(one, place, engine, any_code, store=store, limit=limit)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is left", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if failed:
        raise typer.Exit(1)


def _parameters(texts: list[str]) -> dict[str, Any]:
    from yaml import YAMLError

    from r2l.sweep.jobs import parse_yaml

    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--parameter {text}: NAME=VALUE is expected")
        try:
            given[name] = parse_yaml(value)
        except YAMLError as error:
            raise ValueError(f"--parameter {text}: {error}") from error
    return given


def _carry_out(sweep: Sweep, folder: Path, engine: Engine, any_code: bool, **how: Any) -> int:
    """Carry out a sweep, and return how many of its runs failed."""
    from r2l.sweep import run_sweep

    print(f"{sweep.name}: {len(sweep.jobs)} run(s) on {engine.about}", flush=True)
    outcomes = run_sweep(sweep, folder, engine, any_code=any_code, **how)
    count = Counter(run.state for run in outcomes)
    print(", ".join(f"{number} {state}" for state, number in count.items()))
    for run in outcomes:
        if run.error:
            print(f"{run.job.name}: {run.error}\n  {run.folder}", file=sys.stderr)
    print(f"report  {folder / 'report.html'}")
    return count["failed"]
