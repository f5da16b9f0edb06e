"""How a command tells of an error: one or two lines on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from r2l.files import R2LError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Commands(TyperGroup):
    """Commands whose errors are told in words; see `told`."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Call the command."""
        with told():
            return super().invoke(ctx)


@contextmanager
def told(about: object = "") -> Iterator[None]:
    """Turn what can be the user's or the disk's fault into a message and an exit; let bugs through.

    Args:
        about: the file that it is about, for messages that don't name it.
    """
    try:
        yield
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        if str(about) not in message:
            message = f"{about}: {message}"
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(EXIT_ERROR) from None


def for_each(action: Callable[..., None], *items: Iterable[Any]) -> None:
    """Call ``action`` with each item, or each pair. One that fails is told of, the others have their turn.

    Raises:
        typer.Exit: at the end, if one failed.
    """
    failed = False
    for item in zip(*items, strict=True):
        try:
            with told():
                action(*item)
        except typer.Exit:
            failed = True
    if failed:
        raise typer.Exit(EXIT_ERROR)


def _message(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (R2LError, ValueError, OSError, MemoryError)):
        return str(error) or type(error).__name__
    # torch has no error class of its own for this.
    if isinstance(error, RuntimeError) and "allocate memory" in str(error):
        return "not enough memory for a picture of this size"
    return None
