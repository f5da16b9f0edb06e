"""`r2l train`: train a processor and a task model by cross-validation, with records of all."""

from __future__ import annotations

import inspect
import sys
from dataclasses import Field
from typing import Annotated, Any, get_type_hints

import typer

from r2l.cli.errors import EXIT_INTERRUPTED
from r2l.options import FIELDS, Options


def train(**given: Any) -> None:
    """Train a processor (ISP) and a task model, fold by fold, and keep records of it.

    Run with --test_run first. A run that was killed or interrupted goes on when the same command line is
    given again. Flags may be followed by True or False; of an option given twice the last counts.
    """
    try:
        # Takes seconds: not for those who only ask for help.
        from r2l.training.experiment import experiment

        experiment(Options(**given), say=_say)
    except KeyboardInterrupt:
        print(
            "interrupted: the run is marked as killed; the same command line goes on with it",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _say(text: str) -> None:
    print(text, flush=True)


def _parameter(option: Field, kind: Any) -> inspect.Parameter:
    """Return an option as the parameter of a function, as typer reads it."""
    names = [f"--{option.name}"]
    if option.default is True:
        names = [f"--{option.name}/--no_{option.name}"]
    info = typer.Option(
        *names,
        help=option.metadata["help"],
        rich_help_panel=option.metadata["group"],
        metavar=option.metadata.get("metavar", "URI" if option.name.endswith("_uri") else None),
        show_default=option.default not in (None, False),
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[kind, info],
    )


# Fifty options, of which Options knows the meaning: read from there, not listed as arguments.
_kinds = get_type_hints(Options)
_parameters = [_parameter(option, _kinds[name]) for name, option in FIELDS.items()]
train.__signature__ = inspect.Signature(_parameters)
train.__annotations__ = {p.name: p.annotation for p in _parameters}
