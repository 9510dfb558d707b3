"""``tag`` and ``rm``."""

from __future__ import annotations

import click

from bootstream.cli.base import REF, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json
from bootstream.cli.remote import remove_there, server_option
from bootstream.errors import InvalidInput
from bootstream.templates.names import TemplateName, is_build_id


@verb(
    "tag",
    """
    bootstream tag debian:candidate debian:stable
    bootstream tag BUILD_ID debian:stable --if-current OTHER_BUILD_ID
    """,
)
@click.argument("ref", type=REF)
@click.argument("name", metavar="NAME[:TAG]")
@click.option(
    "--if-current", metavar="BUILD", help="Only if the tag names this build (or REF) now."
)
@pass_cli
def tag(cli: Cli, ref: str, name: str, if_current: str | None) -> None:
    """Give a build another name.

    NAME must be the build's own template. Without a TAG, it is 'latest'. The last writer
    wins, unless --if-current names the build that the tag must name now.
    """
    target = TemplateName.parse(name)
    manifest = cli.catalogue.resolve(ref)
    if manifest.template_id != target.template_id:
        raise InvalidInput(
            f"the build belongs to template {manifest.template_id}; a tag stays in its template",
            operation="tag",
            object=str(target),
            remedy=f"write {manifest.template_id}:{target.tag_or_default}",
        )
    current = if_current  # a build id may well be gone: what counts is what the tag says
    if if_current is not None and not is_build_id(if_current):
        current = cli.catalogue.resolve(if_current).build_id
    cli.catalogue.set_tag(
        target.template_id, target.tag_or_default, manifest.build_id, if_current=current
    )
    cli.tell(f"{target.template_id}:{target.tag_or_default} is {manifest.build_id}")


@verb(
    "rm",
    """
    bootstream rm debian:candidate
    bootstream rm debian --all && bootstream gc --older-than 0s
    """,
)
@click.argument("refs", nargs=-1, required=True, type=REF)
@click.option("--all", "everything", is_flag=True, help="A template with all its tags and builds.")
@server_option
@json_option
@pass_cli
def rm(
    cli: Cli, refs: tuple[str, ...], everything: bool, server: str | None, as_json: bool
) -> None:
    """Remove tags and builds.

    NAME:TAG drops the tag, and deletes its build if no tag is left on it. NAME deletes
    the template's builds; with other tags than 'latest' that needs --all. A build id
    deletes that build. Deleted builds leave listings now; 'bootstream gc' reclaims their
    bytes once nobody reads them. Prints the ids of the deleted builds.
    """
    deleted: list[str] = []
    for ref in refs:
        if server is not None:
            gone = remove_there(server, ref, everything=everything)
        else:
            gone = cli.catalogue.remove(ref, everything=everything)
        deleted.extend(gone)
        if not as_json:
            for build_id in gone:
                click.echo(build_id)
            if not gone:
                cli.tell(f"{ref}: the tag is gone; its build keeps other tags")
    if as_json:
        emit_json({"deleted": deleted})
