"""``storage check``: each permission by itself, and what would grant it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import exit_code
from bootstream.cli.output import emit_json, printable

if TYPE_CHECKING:
    from bootstream.doctor.storage import Step


@verb(
    "check",
    """
    bootstream storage check
    bootstream storage check --store oci://namespace@bucket/prefix --json
    """,
)
@json_option
@pass_cli
def check(cli: Cli, as_json: bool) -> int:
    """Try every permission; say which policy is missing.

    Writes, reads and removes a few small objects below bootstream-check/ in the store.
    Copying within the bucket and signed URLs are tried, too, but nothing fails without
    them. The exit code is that of the first failure.
    """
    from bootstream.doctor.storage import PermissionChecker  # noqa: PLC0415 - not for --help

    checker = PermissionChecker(cli.settings, cli.storage)
    with cli.job():
        steps = checker.run()
    failed = [step for step in steps if step.needed and step.error is not None]
    if as_json:
        emit_json({"store": checker.store, "ok": not failed, "steps": [_plain(s) for s in steps]})
    else:
        click.echo(f"store: {printable(checker.store)}")
        for step in steps:
            _print(step)
    first = failed[0].error if failed else None
    return 0 if first is None else exit_code(first)


def _plain(step: Step) -> dict[str, object]:
    error = step.error
    return {
        "name": step.name,
        "needed": step.needed,
        "state": step.state,
        "error": None if error is None else str(error),
        "remedy": step.remedy,
    }


def _print(step: Step) -> None:
    state = step.state if step.needed or step.state == "ok" else f"{step.state} (not needed)"
    click.echo(f"{step.name:<12}{state:<22}{step.what}")
    if step.error is not None and step.state != "none":
        click.echo(f"{'':12}{printable(str(step.error))}")
        if step.remedy:
            click.echo(f"{'':12}remedy: {printable(step.remedy)}")
