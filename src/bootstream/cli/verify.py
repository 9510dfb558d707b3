"""``verify``."""

from __future__ import annotations

from dataclasses import asdict

import click

from bootstream.cli.base import REF, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import CORRUPT
from bootstream.cli.output import emit_json, human_size, printable
from bootstream.templates.verify import verify_build


@verb(
    "verify",
    """
    bootstream verify debian
    bootstream verify debian:12 --json
    """,
)
@click.argument("ref", type=REF)
@click.option("--threads", type=click.IntRange(min=1), help="Chunks checked at a time.")
@json_option
@pass_cli
def verify(cli: Cli, ref: str, threads: int | None, as_json: bool) -> int:
    """Fetch and check everything of a build.

    Its indexes, every distinct chunk against its sha256, in whichever build's pack it
    lies, and the marks that keep those packs. Every problem is listed; exit code 7 if
    there is one.
    """
    manifest = cli.catalogue.resolve(ref)
    with cli.job() as progress:
        result = verify_build(cli.storage, manifest, threads=threads, progress=progress)
    if as_json:
        emit_json(asdict(result) | {"ok": not result.problems})
    else:
        for problem in result.problems:
            click.echo(f"problem: {printable(problem)}")
        state = f"{len(result.problems)} problems" if result.problems else "sound"
        click.echo(
            f"{result.build_id}: {state}; {result.chunks} chunks checked, "
            f"{human_size(result.size)} of images"
        )
    return CORRUPT if result.problems else 0
