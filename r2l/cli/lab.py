"""`r2l lab`: the virtual lab, which shows runs, draws figures from them, and sends them on."""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2l.cli.commands import argument, check_free, option, replacing

if TYPE_CHECKING:
    import pandas as pd

lab = typer.Typer(
    invoke_without_command=True, help="Look at the runs; without a command, as a page in the browser."
)

_STORE = "A SQLite file, its folder, or a server.  [default: MLFLOW_TRACKING_URI, else mlflow.db here]"


def _given(context: typer.Context, store: str | None) -> str | None:
    """Return a command's store, or that of `r2l lab` before it."""
    return store or context.obj


_Store = Annotated[str | None, option(_STORE, metavar="STORE", callback=_given)]
_DRAWN = "What --curves draws: loss, accuracy, iou ..."
_EVERYBODY = "0.0.0.0 shows the page to everybody who reaches this machine."


@lab.callback()
def page(
    context: typer.Context,
    store: _Store = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page answers.")] = 5000,
    host: Annotated[str, typer.Option(help=_EVERYBODY)] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Whether to open the page.")] = True,
) -> None:
    """Look at the runs; without a command, as a page in the browser until Ctrl-C."""
    if context.invoked_subcommand:
        context.obj = store
        return
    from r2l.training.tracking import serve

    with serve(store, host, port) as (address, process), suppress(KeyboardInterrupt):
        print(f"The lab is at {address} (Ctrl-C ends it).", flush=True)
        if browser:
            webbrowser.open(address)
        if process:
            process.wait()


@lab.command()
def runs(store: _Store = None) -> None:
    """List the runs, the newest first, with their data and scores (of several folds the mean)."""
    from r2l.training.tracking import Records

    table = Records(store).table()
    print(_listed(table).to_string(index=False) if len(table) else "no runs yet")


def _listed(table: pd.DataFrame) -> pd.DataFrame:
    """Return runs with what people look for: names, status, data set, and the final scores of each."""
    final = {n: n.removeprefix("final.") for n in table if str(n).startswith("final.")}
    scores = table[list(final)]
    means = scores.groupby(table["parent"].where(table["parent"] != "")).mean()
    # A run above its folds has no scores of its own, but those of the last one.
    scores = means.reindex(table["run_id"]).set_axis(table.index).combine_first(scores).rename(columns=final)
    scores = scores.drop(columns="images", errors="ignore").dropna(axis=1, how="all")
    shown = ["run_id", "experiment", "name", "status", "start", "dataset"]
    return table[shown].fillna("").join(scores.round(4).astype(object).where(scores.notna(), ""))


@lab.command()
def compare(
    first: Annotated[str, argument("RUN", "A run's id or name.")],
    second: Annotated[str, argument("RUN", "What it is compared to.")],
    store: _Store = None,
) -> None:
    """Compare two runs image by image, on those that both answered: scores, difference, interval."""
    import numpy as np
    import pandas as pd

    from r2l.drift.paired import paired_scores
    from r2l.drift.statistics import few_groups_text, interval_text

    tables = [_answers(run, store) for run in (first, second)]
    truths = [t.set_index("name").filter(regex="^(label|target)").groupby("name").first() for t in tables]
    both = truths[0].index.intersection(truths[1].index)
    if both.empty or not truths[0].loc[both].equals(truths[1].loc[both]):
        why = "labelled otherwise in one of them" if len(both) else "none that both have answered"
        raise ValueError(f"{first} and {second}: of their images there are {why}, so nothing to compare")
    # Their names may be equal, as those of two runs of one command line are.
    answers = pd.concat([table[table["name"].isin(both)].assign(run=n) for n, table in enumerate(tables)])
    value = "absolute_error" if "absolute_error" in answers else None
    paired = paired_scores(answers.assign(image=answers["name"]), "run", value)
    scores = paired.jackknife(0.95)
    print(f"{paired.metric} of {len(both)} images in {len(np.unique(paired.groups))} groups")
    for name, score, low, high in zip((first, second), *scores.shares()[:3], strict=True):
        print(f"{name}: {interval_text(score, low, high, '.3f')}")
    difference, low, high, p = (float(part[0]) for part in scores.interval(lambda s: s[..., :1] - s[..., 1:]))
    print(f"difference: {interval_text(difference, low, high)}, p = {p:.3g}")
    if few := few_groups_text(scores.effective_groups):
        print(few)


def _answers(run: str, store: str | None) -> pd.DataFrame:
    """Return the answers of a run to its validation images, of an adversarial one those after the search."""
    from r2l.files import read_csv
    from r2l.training.tracking import Records, resolve

    table = read_csv(resolve(f"runs:/{Records(store).find(run)}/predictions.csv", store))
    if "processing" in table:
        table = table[table["processing"] == "adversarial"]
    if "target" in table:
        table["absolute_error"] = (table["prediction"] - table["target"]).abs()
    return table


@lab.command()
def sql(
    statement: Annotated[str, typer.Argument(metavar="SELECT", show_default=False)],
    store: _Store = None,
    csv: Annotated[bool, option("Comma-separated, for other programs.", "--csv")] = False,
) -> None:
    """Ask the local store in SQL; it can't be changed by that."""
    from r2l.files import csv_text
    from r2l.training.tracking.records import query

    table = query(statement, store)
    text = csv_text(table) if csv else table.to_string(index=False)
    print(text.removesuffix("\n"))


@lab.command()
def export(
    run: Annotated[str, argument("RUN", "A run's id or name, or 'latest'.")],
    gif: Annotated[
        str | None, option("Animate a stage, such as demosaic, over the epochs.", metavar="STAGE")
    ] = None,
    gradient: Annotated[bool, option("Animate the loss's gradient at that stage.", "--gradient")] = False,
    out: Annotated[
        Path | None, option("The GIF.  [default: STAGE.gif]", "--output", "-o", metavar="FILE")
    ] = None,
    curves: Annotated[
        Path | None, option("Draw training against validation (PNG, PDF, SVG).", metavar="FILE")
    ] = None,
    metric: Annotated[str, typer.Option(help=_DRAWN)] = "loss",
    force: Annotated[bool, replacing("figures that exist")] = False,
    store: _Store = None,
) -> None:
    """Draw figures from a run; from each fold, where it has folds."""
    if not gif and not curves:
        raise ValueError("nothing to export; give --gif STAGE, --curves FILE, or both")
    from r2l.files import atomic_path
    from r2l.training.export import animate
    from r2l.training.export import curves as read_curves
    from r2l.viz import plot_curves

    if curves:
        check_free(curves, force, by="--curves")
    if gif:
        how = {"gradient": gradient, "store": store, "check": lambda path: check_free(path, force)}
        print(*animate(run, gif, out or f"{gif}.gif", **how), sep="\n")
    if curves:
        figure = plot_curves(read_curves(run, store), metric)
        with atomic_path(curves) as partial:
            figure.savefig(partial, format=curves.suffix.removeprefix(".") or "png", dpi=150)
        print(curves)


@lab.command()
def upload(
    folder: Annotated[Path, argument(None, "The local store: runs_kept, say, or a SQLite file.")],
    tracking_uri: Annotated[str, option("Where to.", "--tracking_uri", "--tracking-uri")],
) -> None:
    """Send local runs to a server: those kept when it failed join the runs that it has.

    Broken off, it goes on when called again; what was sent whole is passed over.
    """
    from r2l.training import tracking

    sent = tracking.upload(folder, tracking_uri, progress=print)
    print(f"{len(sent)} runs sent to {tracking_uri}")
