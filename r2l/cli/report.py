"""How a command tells of an error: one or two lines on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Failures:
    """Tells the user about errors as they come, and remembers that there were some."""

    def __init__(self) -> None:
        self.any = False

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn what can be the user's or the disk's fault into a message; let bugs through."""
        try:
            yield
        except (ValueError, OSError, MemoryError) as error:
            self.any = True
            print(f"error: {_describe(error)}", file=sys.stderr)
        except RuntimeError as error:
            # torch has no error class of its own for this.
            if "allocate memory" not in str(error):
                raise
            self.any = True
            print("error: not enough memory for a picture of this size", file=sys.stderr)

    def exit_if_any(self) -> None:
        """End the program with the status of an error if there was one."""
        if self.any:
            raise typer.Exit(EXIT_ERROR)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
