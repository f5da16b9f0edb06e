"""How commands take options, and how they tell of errors: in a line or two, with exit status 2."""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from r2l.files import R2LError
from r2l.options import FIELDS, Options

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FLAG_VALUES = {"true": True, "yes": True, "on": True, "1": True}
_FLAG_VALUES |= {"false": False, "no": False, "off": False, "0": False}


def option(help: str, *names: str, **more: Any) -> Any:
    """Return an option of a command; what its default is, is said in words or not at all."""
    return typer.Option(*names, help=help, show_default=False, **more)


def argument(metavar: str | None, help: str) -> Any:
    """Return an argument of a command."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


def replacing(what: str) -> Any:
    """Return the option that lets files be replaced."""
    return typer.Option("--force", "-f", help=f"Replace {what}.")


class Commands(TyperGroup):
    """Commands whose errors are told in words; see `told`."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Call the command."""
        with told():
            return super().invoke(ctx)


@contextmanager
def told(about: object = "") -> Iterator[None]:
    """Turn what can be the user's or the disk's fault, ``about`` a file, into a message and an exit."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        elif isinstance(error, (R2LError, ValueError, OSError, MemoryError)):
            message = str(error) or type(error).__name__
        # torch has no error class of its own for this.
        elif isinstance(error, RuntimeError) and "allocate memory" in str(error):
            message = "not enough memory for a picture of this size"
        else:
            raise
        if str(about) not in message:
            message = f"{about}: {message}"
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(EXIT_ERROR) from None


def for_each(action: Callable[..., None], *items: Sequence[Any], at_once: int = 1) -> None:
    """Call ``action`` with each item, or each pair, ``at_once`` of them at a time.

    One that fails is told of, the others have their turn, and a typer.Exit comes at the end.
    """
    from r2l.progress import progress_bar

    def succeeds(*item: Any) -> bool:
        try:
            with told():
                action(*item)
        except typer.Exit:
            return False
        return True

    count, threads = len(items[0]), ThreadPoolExecutor(at_once)
    try:
        # In this thread, where one is enough, and a bar only for those who wait for several.
        successes = (threads.map if min(at_once, count) > 1 else map)(succeeds, *items)
        fine = all([*progress_bar(iterable=successes, total=count, disable=None if count > 1 else True)])
    finally:
        threads.shutdown(cancel_futures=True)
    if not fine:
        raise typer.Exit(EXIT_ERROR)


def check_targets(photos: Iterable[Path], targets: Iterable[Path], what: str) -> None:
    """Raise a ValueError where what is made of a photo would go to a photo, or where another's goes."""
    sources, taken = {photo.resolve() for photo in photos}, {}
    for photo, target in zip(photos, targets, strict=True):
        if (path := target.resolve()) in sources:
            raise ValueError(f"{target} is one of the photos: choose another {what} with -o")
        if path in taken:
            raise ValueError(f"{taken[path]} and {photo} would both be written to {target}")
        taken[path] = photo


def check_free(path: Path, force: bool, folder: bool = False, by: str = "-o") -> None:
    """Raise a ValueError, before the work, where something is not to be replaced or can't be written."""
    if path.is_dir() and not folder:
        raise ValueError(f"{path} is a folder")
    if path.exists() and not force:
        raise ValueError(f"{path} exists: --force replaces it, {by} names another place")
    there = next(above for above in path.parents if above.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{path}: nothing can be written into {there}; {by} names another place")


class GroupedCommand(TyperCommand):
    """A command whose help lists options under the headings of their ``rich_help_panel``."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:
        """Write the options by group, in the order of the groups' first options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record:
                title = getattr(param, "rich_help_panel", None) or "This command"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


class TrainCommand(GroupedCommand):
    """A command without arguments, so that what follows a flag can be its value.

    ``--log_model``, ``--log_model True`` and ``--log_model=false`` all work; the last one given counts.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Read the flags' values, then let typer do the rest."""
        flags = {o: p for p in self.params if getattr(p, "is_flag", False) for o in p.opts}
        return super().parse_args(ctx, _without_values(args, flags))


def _without_values(args: Sequence[str], flags: dict[str, Any]) -> list[str]:
    """Return arguments in which each flag stands alone, or, if it was set false, not at all."""
    rest, chosen = [], {}
    queue = list(args)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if name not in flags:
            rest.append(word)
            # The value of any other option, even one that is spelt like a flag.
            if word.startswith("--") and not equals and queue and not queue[0].startswith("--"):
                rest.append(queue.pop(0))
            continue
        if not equals and queue and not queue[0].startswith("-"):
            equals, value = "=", queue.pop(0)
        if equals and value.lower() not in _FLAG_VALUES:
            raise typer.BadParameter(f"{name} takes True or False, not {value!r}.")
        chosen[name] = _FLAG_VALUES[value.lower()] if equals else True
    for name, value in chosen.items():
        rest += [name] if value else flags[name].secondary_opts[:1]
    return rest


def _parameter(option: Field, kind: Any, changes: Mapping[str, Any]) -> inspect.Parameter:
    """Return an option, some of its metadata changed, as the parameter of a function, as typer reads it."""
    names = [f"--{option.name}"]
    if option.default is True:
        names = [f"--{option.name}/--no_{option.name}"]
    about = {**option.metadata, **changes}
    info = typer.Option(
        *names,
        help=about["help"],
        rich_help_panel=about["group"],
        metavar=about.get("metavar", "URI" if option.name.endswith("_uri") else None),
        show_default=option.default not in (None, False),
    )
    hint, kind_of = Annotated[kind, info], inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind_of, default=option.default, annotation=hint)


def with_options(
    command: Callable[..., None],
    asked: Mapping[str, Mapping[str, Any]],
    more: Mapping[str, inspect.Parameter] | None = None,
) -> None:
    """Let a command take some `Options`, with changes of their metadata, and ``more`` for its ``**given``."""
    kinds, own = get_type_hints(Options), get_type_hints(command, include_extras=True)
    parameters = [
        p.replace(annotation=own[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in inspect.signature(command).parameters.items()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters += [_parameter(FIELDS[name], kinds[name], changes) for name, changes in asked.items()]
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (more or {}).values()]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
