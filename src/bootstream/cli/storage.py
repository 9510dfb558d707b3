"""``storage``: a group of verbs about the bucket itself, which are imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from bootstream.cli.base import CommonOptions

VERBS: dict[str, tuple[str, str, str]] = {
    "ls": ("storagelist", "ls", "List objects."),
    "cp": ("storagecopy", "cp", "Copy objects and files, checked."),
    "rm": ("storagelist", "rm", "Remove objects."),
    "check": ("storagecheck", "check", "Try every permission; say which policy is missing."),
    "bench": ("storagebench", "bench", "Measure the bucket from this host."),
}

_EPILOG = """\b
Examples:
  bootstream storage check
  bootstream storage ls oci://namespace@bucket/prefix -l
  bootstream storage cp -r s3://bucket/builds ./builds

\b
WHERE is an address (oci://NAMESPACE@BUCKET/PATH, s3://BUCKET/PATH, gs://, az://,
file:///FOLDER), or a path in the store that --store and the settings name.
"""


class _Group(CommonOptions, click.Group):
    """Finds verbs in the table; the common options are not repeated in its help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params[-4:]:
            if isinstance(parameter, click.Option):
                parameter.hidden = True

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click has it
        """Return all verbs, in the table's order."""
        return list(VERBS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click has it
        cmd_name: str,
    ) -> click.Command | None:
        """Import the verb's module and return it."""
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
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
            formatter.write_dl([(name, line) for name, (_, _, line) in VERBS.items()], col_max=12)


@click.group("storage", cls=_Group, epilog=_EPILOG, invoke_without_command=True)
@click.pass_context
def storage(context: click.Context) -> None:
    """List, copy, check and measure the bucket.

    Everything here is about objects, below templates and builds: for those, 'bootstream
    ls', 'rm' and 'gc' know what belongs together.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
