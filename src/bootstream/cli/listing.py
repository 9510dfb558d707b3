"""``ls`` and ``show``."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import REF, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size, iso, percent, short_time, table
from bootstream.cli.remote import list_there, server_option

if TYPE_CHECKING:
    from bootstream.templates.catalogue import ListedBuild
    from bootstream.templates.manifest import Manifest


@verb(
    "ls",
    """
    bootstream ls
    bootstream ls debian --json
    """,
)
@click.argument("template", required=False)
@server_option
@json_option
@pass_cli
def ls(cli: Cli, template: str | None, server: str | None, as_json: bool) -> None:
    """List templates and their builds.

    Oldest first; with TEMPLATE, only that one's. SIZE is what a reader sees, STORED
    what the build keeps of its own; the rest it shares with builds before it.
    """
    if server is not None:
        builds = list_there(server, template)
    else:
        builds = [_summary(build) for build in cli.catalogue.builds(template)]
    if as_json:
        emit_json(builds)
        return
    rows = [
        (
            build["template_id"],
            ",".join(build["tags"]) or "-",
            build["build_id"],
            short_time(datetime.fromisoformat(build["created"])),
            human_size(build["size"]),
            human_size(build["stored_size"]),
        )
        for build in builds
    ]
    if rows:
        table(("TEMPLATE", "TAGS", "BUILD", "CREATED", "SIZE>", "STORED>"), rows)
    else:
        cli.tell("no builds here; 'bootstream build REF -t NAME' makes one")


def _summary(build: ListedBuild) -> dict[str, Any]:
    manifest = build.manifest
    return {
        "template_id": manifest.template_id,
        "build_id": manifest.build_id,
        "tags": list(build.tags),
        "created": iso(manifest.created),
        "size": manifest.size,
        "stored_size": manifest.stored_size,
        "parent": manifest.parent,
        "artifacts": sorted(manifest.artifacts),
    }


@verb(
    "show",
    """
    bootstream show debian
    bootstream show debian:12 --json | jq -r .build_id
    """,
)
@click.argument("ref", type=REF)
@json_option
@pass_cli
def show(cli: Cli, ref: str, as_json: bool) -> None:
    """Show one build.

    With --json, the build's manifest (docs/formats/manifest.md) and its tags.
    """
    manifest = cli.catalogue.resolve(ref)
    tags = sorted(
        tag
        for tag, build_id in cli.catalogue.tags(manifest.template_id).items()
        if build_id == manifest.build_id
    )
    if as_json:
        emit_json(json.loads(manifest.to_json()) | {"tags": tags})
        return
    _print_build(manifest, tags)


def _print_build(manifest: Manifest, tags: list[str]) -> None:
    image = manifest.image or {}
    facts = [
        ("template", manifest.template_id),
        ("tags", ", ".join(tags) or "none"),
        ("build", manifest.build_id),
        ("created", short_time(manifest.created)),
        ("parent", manifest.parent or "none"),
        ("reads from", ", ".join(manifest.depends_on) or "itself alone"),
        ("image", str(image.get("reference", "none"))),
        ("digest", str(image.get("digest", "-"))),
        ("platform", str(image.get("platform", "-"))),
        ("made by", manifest.tool or "-"),
    ]
    for name, value in facts:
        click.echo(f"{name + ':':<12}{value}")
    click.echo()
    rows = [
        (
            name,
            artifact.form,
            human_size(artifact.size),
            human_size(artifact.chunk_size),
            human_size(artifact.stored_size),
            percent(artifact.stored_size, artifact.size),
            human_size(artifact.index_size),
        )
        for name, artifact in sorted(manifest.artifacts.items())
    ]
    table(("ARTIFACT", "FORM", "SIZE>", "CHUNK>", "STORED>", "OF SIZE>", "INDEX>"), rows)
