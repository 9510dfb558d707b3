"""A verb that has verbs of its own, which are imported when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import click

from bootstream.cli.base import CommonOptions

Table = Mapping[str, tuple[str, str, str]]
"""By name: the module below ``bootstream.cli``, the attribute, and what the overview says."""


class Group(CommonOptions, click.Group):
    """Finds verbs in a table; the common options are not repeated in its help."""

    def __init__(self, *args: Any, verbs: Table, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs
        for parameter in self.params[-4:]:
            if isinstance(parameter, click.Option):
                parameter.hidden = True

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click has it
        """Return all verbs, in the table's order."""
        return list(self._verbs)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click has it
        cmd_name: str,
    ) -> click.Command | None:
        """Import the verb's module and return it."""
        if cmd_name not in self._verbs:
            return None
        module, attribute, _ = self._verbs[cmd_name]
        command: click.Command = getattr(
            importlib.import_module(f"bootstream.cli.{module}"), attribute
        )
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click has it
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the overview without importing a verb."""
        with formatter.section("Verbs"):
            rows = [(name, line) for name, (_, _, line) in self._verbs.items()]
            formatter.write_dl(rows, col_max=12)


def group(name: str, verbs: Table, epilog: str) -> Callable[[Callable[..., Any]], click.Group]:
    """Return a decorator that makes a function the group of a table's verbs.

    The function's docstring is the group's help; it is called with the context, and prints
    that help where no verb was named.
    """
    return click.group(name, cls=Group, verbs=verbs, epilog=epilog, invoke_without_command=True)
