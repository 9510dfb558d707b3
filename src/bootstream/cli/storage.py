"""``storage``: a group of verbs about the bucket itself, which are imported when they are used."""

from __future__ import annotations

import click

from bootstream.cli.group import group

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


@group("storage", VERBS, _EPILOG)
@click.pass_context
def storage(context: click.Context) -> None:
    """List, copy, check and measure the bucket.

    Everything here is about objects, below templates and builds: for those, 'bootstream
    ls', 'rm' and 'gc' know what belongs together.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
