"""`r2l lab`: the virtual lab, which shows runs, draws figures from them, and sends them on."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

lab = typer.Typer(
    invoke_without_command=True,
    help="Look at the runs; without a command, as a page in the browser.",
)

_Store = Annotated[
    str | None,
    typer.Option(
        metavar="STORE",
        help="A SQLite file, its folder, or a server's address.  "
        "[default: the variable MLFLOW_TRACKING_URI, else mlflow.db in the working folder]",
        show_default=False,
    ),
]


@lab.callback()
def page(
    context: typer.Context,
    store: _Store = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page answers.")] = 5000,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 shows the page to everybody who reaches this machine.")
    ] = "127.0.0.1",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether to open the page.")
    ] = True,
) -> None:
    """Look at the runs; without a command, as a page in the browser until Ctrl-C."""
    if context.invoked_subcommand:
        context.obj = store
        return
    from r2l.training.tracking import serve

    with serve(store, host, port) as server:
        print(f"The lab is at {server.address} (Ctrl-C ends it).", flush=True)
        if browser:
            webbrowser.open(server.address)
        server.wait()


@lab.command()
def runs(context: typer.Context, store: _Store = None) -> None:
    """List the runs, the newest first."""
    from r2l.training.tracking import Records

    table = Records(store or context.obj).table()
    shown = ["run_id", "experiment", "name", "status", "start"]
    print(table[shown].to_string(index=False) if len(table) else "no runs yet")


@lab.command()
def sql(
    context: typer.Context,
    statement: Annotated[str, typer.Argument(metavar="SELECT", show_default=False)],
    store: _Store = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Comma-separated, for other programs.")
    ] = False,
) -> None:
    """Ask the local store in SQL; it can't be changed by that."""
    from r2l.training.export import query

    table = query(statement, store or context.obj)
    text = table.to_csv(index=False) if csv else table.to_string(index=False)
    print(text.removesuffix("\n"))


@lab.command()
def export(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's id or name, or 'latest'.", show_default=False),
    ],
    gif: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Animate a stage, such as demosaic, over the epochs."),
    ] = None,
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Animate the loss's gradient at that stage.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The GIF.  [default: STAGE.gif]",
            show_default=False,
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw training against validation (PNG, PDF, SVG)."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What --curves draws: loss, accuracy, iou ...")
    ] = "loss",
    store: _Store = None,
) -> None:
    """Draw figures from a run; from each fold, where it has folds."""
    if not gif and not curves:
        raise ValueError("nothing to export; give --gif STAGE, --curves FILE, or both")
    from r2l.files import atomic_path
    from r2l.training.export import animate
    from r2l.training.export import curves as read_curves
    from r2l.viz import plot_curves

    store = store or context.obj
    if gif:
        print(*animate(run, gif, out or f"{gif}.gif", gradient=gradient, store=store), sep="\n")
    if curves:
        figure = plot_curves(read_curves(run, store), metric)
        with atomic_path(curves) as partial:
            figure.savefig(partial, format=curves.suffix.removeprefix(".") or "png", dpi=150)
        print(curves)


@lab.command()
def upload(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The local store: runs_kept, say, or a SQLite file.", show_default=False
        ),
    ],
    tracking_uri: Annotated[
        str, typer.Option("--tracking_uri", "--tracking-uri", help="Where to.", show_default=False)
    ],
) -> None:
    """Send local runs to a server: those kept when it failed join the runs that it has.

    Broken off, it goes on when called again; what was sent whole is passed over.
    """
    from r2l.training import tracking

    sent = tracking.upload(folder, tracking_uri, progress=print)
    print(f"{len(sent)} runs sent to {tracking_uri}")
