"""``doctor``: everything this host needs, what it lacks, and what mends it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bootstream.cli.base import AGE, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import OTHER, exit_code
from bootstream.cli.output import emit_json, printable

if TYPE_CHECKING:
    from bootstream.doctor.finding import Check, Finding

_COLOURS = {"ok": "green", "failed": "red", "lacking": "yellow"}


@verb(
    "doctor",
    """
    bootstream doctor
    bootstream doctor --only storage --only registry
    bootstream doctor --skip kvm --strict --json
    """,
)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this one. Repeatable.")
@click.option("--skip", multiple=True, metavar="CHECK", help="All but this one. Repeatable.")
@click.option("--strict", is_flag=True, help="What is lacking fails, too.")
@click.option(
    "--kernel",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Try KVM with this kernel, or the folder that one's package was unpacked into.",
)
@click.option("--time-limit", type=AGE, metavar="AGE", help="Of each check; else its own.")
@json_option
@pass_cli
def doctor(
    cli: Cli,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    strict: bool,
    kernel: Path | None,
    time_limit: float | None,
    as_json: bool,
) -> int:
    """Check what this host needs; say what mends it.

    Looks at the clock, at who signs in to the cloud, at the bucket with each permission, at
    the registry, and at the kernel, disk and programs of this host, all at once. A few small
    objects are written below bootstream-check/ and removed again.

    What fails decides the exit code, the first of all. What is lacking is told, and much
    works without it; --strict makes it count.
    """
    from bootstream.doctor.checks import CHECKS, PORTS  # noqa: PLC0415 - not for --help
    from bootstream.doctor.finding import Context, State  # noqa: PLC0415
    from bootstream.doctor.run import choose, examine  # noqa: PLC0415

    checks = choose(CHECKS, only, skip)
    if time_limit is not None:
        checks = [replace(check, limit=time_limit) for check in checks]
    context = Context(cli.settings, kernel=kernel, ports=PORTS)

    def done(check: Check) -> None:
        if cli.verbose:
            cli.tell(f"{check.name}: done")

    with cli.job():
        findings = examine(checks, context, on_done=done, stop=cli.interruption.check)
    bad = (State.FAILED, State.LACKING) if strict else (State.FAILED,)
    failed = [finding for finding in findings if finding.state in bad]
    if as_json:
        emit_json(
            {
                "node_id": cli.settings.node_id,
                "ok": not failed,
                "findings": [_plain(finding) for finding in findings],
            }
        )
    else:
        _print(findings)
    if not failed:
        return 0
    error = failed[0].error
    return OTHER if error is None else exit_code(error)


def _plain(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "state": finding.state.value,
        "detail": finding.detail,
        "remedy": finding.remedy,
    }


def _print(findings: list[Finding]) -> None:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        state = f"{finding.state.value:<8}"
        if coloured:
            state = click.style(state, fg=_COLOURS.get(finding.state.value), bold=True)
        click.echo(f"{finding.name:<{width}}  {state}  {printable(finding.detail)}")
        if finding.remedy and finding.state.value in ("failed", "lacking"):
            click.echo(f"{'':<{width}}  {'':8}  remedy: {printable(finding.remedy)}")
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.state.value] = counts.get(finding.state.value, 0) + 1
    click.echo(", ".join(f"{number} {state}" for state, number in counts.items()))
