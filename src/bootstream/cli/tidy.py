"""``prune``, ``gc`` and ``du``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import click

from bootstream.cli.base import AGE, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size, table
from bootstream.errors import TemplateNotFound
from bootstream.templates.collect import collect
from bootstream.templates.retention import superfluous
from bootstream.templates.usage import usage

dry_run_option = click.option("--dry-run", is_flag=True, help="Change nothing; say what would go.")


@verb(
    "prune",
    """
    bootstream prune debian --keep-last 5 --keep-tag stable
    bootstream prune debian --keep-tag 'v*' --dry-run
    """,
)
@click.argument("template")
@click.option("--keep-last", metavar="N", type=click.IntRange(min=0), help="The N newest stay.")
@click.option(
    "--keep-tag",
    "keep_tags",
    metavar="TAG",
    multiple=True,
    help="Builds with this tag stay; '*' and '?' match as in a shell. Repeatable.",
)
@dry_run_option
@json_option
@pass_cli
def prune(
    cli: Cli,
    template: str,
    keep_last: int | None,
    keep_tags: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove all but some builds of a template.

    What 'latest' names always stays. Tags of deleted builds go with them. Prints the ids
    of the deleted builds; 'bootstream gc' reclaims their bytes.
    """
    builds = cli.catalogue.builds(template)
    if not builds:
        raise TemplateNotFound(
            "there is no such template",
            operation="prune",
            object=template,
            remedy="'bootstream ls' lists the templates of this store",
        )
    deleted = []
    for build in superfluous(builds, keep_last=keep_last, keep_tags=keep_tags):
        if not dry_run:
            cli.catalogue.delete_build(build.manifest.build_id)
        deleted.append(build.manifest.build_id)
        if not as_json:
            click.echo(build.manifest.build_id)
    if as_json:
        kept = len(builds) - len(deleted)
        emit_json({"deleted": deleted, "kept": kept, "dry_run": dry_run})


@verb(
    "gc",
    """
    bootstream gc --dry-run
    bootstream gc --older-than 0s
    """,
)
@click.option(
    "--older-than",
    metavar="AGE",
    type=AGE,
    default="24h",
    show_default=True,
    help="Age that deleted and abandoned builds must have, e.g. 0s, 90m, 7d.",
)
@dry_run_option
@json_option
@pass_cli
def gc(cli: Cli, older_than: float, dry_run: bool, as_json: bool) -> None:
    """Reclaim what nobody reads any more.

    Deleted builds go once no build reads from them and no host serves them; so does
    what builders that crashed left behind. Any number of hosts may run it at once.
    """
    with cli.job() as progress:
        result = collect(
            cli.storage,
            older_than=timedelta(seconds=older_than),
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        emit_json(asdict(result))
        return
    verb = "would reclaim" if dry_run else "reclaimed"
    click.echo(
        f"{verb} {human_size(result.size)}: {len(result.builds)} builds, "
        f"{result.objects} objects, {result.uploads} unfinished uploads"
    )
    for build_id, reason in sorted(result.held.items()):
        click.echo(f"held {build_id}: {reason}")


@verb(
    "du",
    """
    bootstream du
    bootstream du debian --json
    """,
)
@click.argument("template", required=False)
@json_option
@pass_cli
def du(cli: Cli, template: str | None, as_json: bool) -> None:
    """Show own and shared bytes of builds.

    OWN is what a build keeps in its own folder of the store, SHARED what it reads from
    the packs of builds before it, FREES what deleting it would let 'gc' reclaim: nothing
    while another build reads from it.
    """
    builds = usage(cli.storage, template)
    if as_json:
        emit_json([asdict(build) for build in builds])
        return
    rows: list[tuple[str, ...]] = [
        (
            build.template_id or "-",
            build.build_id,
            build.state,
            human_size(build.size),
            human_size(build.own_size),
            human_size(build.shared_size),
            human_size(0 if build.dependents else build.own_size),
        )
        for build in builds
    ]
    own = sum(build.own_size for build in builds)
    if rows:
        rows.append(("total", "", "", "", human_size(own), "", ""))
        table(("TEMPLATE", "BUILD", "STATE", "SIZE>", "OWN>", "SHARED>", "FREES>"), rows)
    else:
        cli.tell("nothing is stored here")
