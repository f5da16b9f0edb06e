"""`r2l sweep`: many runs on many machines, until all are finished."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r2l.cli.commands import EXIT_INTERRUPTED
from r2l.files import local_path

if TYPE_CHECKING:
    from r2l.sweep.engine import Engine
    from r2l.sweep.jobs import Sweep

_EXIT_FAILED = 1

_FILES = "Grids of runs, such as experiments/small.yaml, or parameter files of notebooks."
_PLAN = (
    "Say what is left and, by the runs that are finished, what it costs (hours, disk); run nothing."
)
_WORKERS = "Runs at a time.  [default: one a GPU; without a GPU one a core, at most 8]"
_THREADS = "Threads of each run.  [default: the cores shared out]"
_SCHEDULER = "A Dask scheduler that runs already, tcp://HOST:8786."
_CLUSTER = "SLURM or Kubernetes, see experiments/clusters/."
_WAIT = "Seconds to wait for a scheduler and a first worker."
_DEATHS = "Workers that a run may kill before it is given up."
_FOLDER = "One folder for each FILE is made in it."
_STORE = "Store of the records.  [default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here]"
_PARAMETER = "For all runs, in place of the file's."
_LIMIT = "At most so many of the runs that are left."
_ANY_CODE = "Also take runs that other versions of the code finished."


# Whose default is said in words.
_own = partial(typer.Option, show_default=False)


def sweep(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help=_FILES, show_default=False)
    ],
    plan: Annotated[bool, typer.Option("--plan", help=_PLAN)] = False,
    workers: Annotated[int | None, _own(help=_WORKERS)] = None,
    threads: Annotated[int | None, _own(help=_THREADS)] = None,
    scheduler: Annotated[str | None, _own(metavar="ADDRESS", help=_SCHEDULER)] = None,
    cluster: Annotated[Path | None, _own(metavar="FILE", help=_CLUSTER)] = None,
    wait: Annotated[float, typer.Option(help=_WAIT)] = 600.0,
    deaths: Annotated[int, typer.Option(min=1, help=_DEATHS)] = 3,
    folder: Annotated[Path, typer.Option("--output", "-o", "--folder", help=_FOLDER)] = Path(
        "runs/sweeps"
    ),
    store: Annotated[str | None, _own("--tracking_uri", metavar="URI", help=_STORE)] = None,
    parameter: Annotated[
        list[str] | None, _own("--parameter", "-p", metavar="NAME=VALUE", help=_PARAMETER)
    ] = None,
    limit: Annotated[int | None, _own(min=1, help=_LIMIT)] = None,
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
        from r2l.sweep.driver import read_outcomes
        from r2l.sweep.report import plan as costs

        given = _parameters(parameter or [])
        sweeps = [read_sweep(path, given) for path in files]
        folder = local_path(folder)
        if len({one.name for one in sweeps}) < len(sweeps):
            raise ValueError(
                f"{', '.join(map(str, files))}: files of one name would share a folder in {folder}; rename "
                "one, or give each a command and --folder of its own"
            )
        engine = open_engine(
            workers=workers,
            threads=threads,
            scheduler=scheduler,
            cluster=cluster,
            wait=wait,
            deaths=deaths,
        )
        for one in sweeps:
            place = folder / one.name
            if plan:
                print(f"{one.name}: {one.about}\non {engine.about}")
                outcomes = read_outcomes(one, place, any_code=any_code)
                print(costs(outcomes, engine.workers, place))
            else:
                failed += _carry_out(one, place, engine, any_code, store=store, limit=limit)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is left", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if failed:
        raise typer.Exit(_EXIT_FAILED)


def _parameters(texts: list[str]) -> dict[str, Any]:
    from yaml import YAMLError

    from r2l.sweep.notebook import parse_yaml

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

    print(f"{sweep.name}: {len(sweep.jobs)} runs on {engine.about}", flush=True)
    outcomes = run_sweep(sweep, folder, engine, any_code=any_code, **how)
    count = Counter(run.state for run in outcomes)
    print(", ".join(f"{number} {state}" for state, number in count.items()))
    for run in outcomes:
        if run.error:
            print(f"{run.job.name}: {run.error}\n  {run.folder}", file=sys.stderr)
    print(f"report  {folder / 'report.html'}")
    return count["failed"]
