"""The command line `r2l`, a module for each command, or for two that belong together.

Each command imports what it needs when it runs, so that `r2l --help` answers at once. A mistake of
the user ends in one or two lines on stderr and exit status 2, never in a traceback.
"""

import logging
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from r2l.cli.commands import Commands, GroupedCommand, TrainCommand
from r2l.cli.lab import lab
from r2l.cli.predict import evaluate, predict, tolerances
from r2l.cli.raw import check, data, develop, show
from r2l.cli.train import learn_pipeline, sweep, train

app = typer.Typer(
    name="r2l",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"r2l {version('r2l')}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell it, and end.")
    ] = False,
) -> None:
    """From raw sensor data to logits: controlled dataset drift with camera pipelines."""
    # It logs each oddity of a damaged file, where one message says what is wrong.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


_kinds = {train: TrainCommand, evaluate: GroupedCommand, tolerances: GroupedCommand}
for _command in (develop, check, learn_pipeline, train, predict, evaluate, tolerances, sweep):
    app.command(cls=_kinds.get(_command))(_command)
camera = typer.Typer(no_args_is_help=True, help="Say what is known of a camera.")
camera.command()(show)
app.add_typer(camera, name="camera")
app.add_typer(data, name="data")
app.add_typer(lab, name="lab")


def main() -> None:
    """Run the console script `r2l`."""
    # A line for whoever called, without the place in the source that it comes from.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app()
