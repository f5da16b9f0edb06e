"""A command whose flags take a value where one is given, and whose help is in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

_VALUES = {"true": True, "yes": True, "on": True, "1": True}
_VALUES |= {"false": False, "no": False, "off": False, "0": False}


class GroupedCommand(TyperCommand):
    """A command without arguments, so that what follows a flag can be its value.

    ``--log_model``, ``--log_model True`` and ``--log_model=false`` all work; the last one given counts. The
    help lists options under the headings of their ``rich_help_panel``.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Read the flags' values, then let typer do the rest."""
        flags = {o: p for p in self.params if getattr(p, "is_flag", False) for o in p.opts}
        return super().parse_args(ctx, _without_values(args, flags))

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:
        """Write the options by group, in the order of the groups' first options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record:
                title = getattr(param, "rich_help_panel", None) or "Help"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


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
        if equals and value.lower() not in _VALUES:
            raise typer.BadParameter(f"{name} takes True or False, not {value!r}.")
        chosen[name] = _VALUES[value.lower()] if equals else True
    for name, value in chosen.items():
        rest += [name] if value else flags[name].secondary_opts[:1]
    return rest
