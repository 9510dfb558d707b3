"""``flatten`` and ``compact``: builds with the same bytes that read from fewer places."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import REF, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size
from bootstream.ids import is_build_id
from bootstream.templates.build import Published
from bootstream.templates.commit import set_tags
from bootstream.templates.commit_control import error_to_json
from bootstream.templates.flatten import BUDGET
from bootstream.templates.flatten import compact as compact_build
from bootstream.templates.flatten import flatten as flatten_build
from bootstream.templates.names import TemplateName

if TYPE_CHECKING:
    from bootstream.chunks.fragmentation import Fragmentation
    from bootstream.errors import BootstreamError
    from bootstream.templates.manifest import Manifest


def _options(function: Any) -> Any:
    """Options of both verbs."""
    options = [
        click.option(
            "--tag",
            "tags",
            metavar="TAG",
            multiple=True,
            help="Give the new build this tag. Repeatable. Left out: the tag that REF names.",
        ),
        click.option("--no-tag", is_flag=True, help="Give it no tag."),
        click.option("--build-id", metavar="UUID", help="Use this build id, never used before."),
        click.option("--level", type=int, help="Level of zstd compression."),
        click.option("--threads", type=click.IntRange(min=1), help="Compressors at a time."),
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@verb(
    "flatten",
    """
    bootstream flatten debian
    bootstream flatten vm7:next --tag stable --json
    """,
)
@click.argument("ref", type=REF)
@_options
@pass_cli
def flatten(
    cli: Cli, /, ref: str, tags: tuple[str, ...], no_tag: bool, as_json: bool, **options: Any
) -> None:
    """Make a build that reads from no other.

    A new build with the same bytes, whose own packs hold every chunk: its ancestors can be
    deleted. It takes over the tag that REF names, if that names the same build still. Prints
    the build id, alone, on stdout.
    """
    manifest = cli.catalogue.resolve(ref)
    with cli.job() as progress:
        published = flatten_build(
            cli.storage,
            manifest,
            node_id=cli.settings.node_id,
            scratch=cli.settings.cache_dir / "scratch",
            progress=progress,
            **options,
        )
        failed = _tag(cli, ref, manifest, published, tags, no_tag=no_tag)
        cli.interruption.settle()
    _print(cli, published, failed, {}, as_json=as_json)


@verb(
    "compact",
    """
    bootstream compact debian
    bootstream compact debian:12 --budget 1.2 --json
    """,
)
@click.argument("ref", type=REF)
@click.option(
    "--budget",
    type=float,
    default=BUDGET,
    show_default=True,
    help="Requests of a sequential read, as a multiple of the fewest that could be.",
)
@_options
@pass_cli
def compact(
    cli: Cli,
    /,
    ref: str,
    budget: float,
    tags: tuple[str, ...],
    no_tag: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Store anew what fragments reads.

    'inspect' shows a build's fragmentation. Where it is above the budget, a new build with
    the same bytes is made that keeps to it, at the price of the fewest bytes; it takes over
    the tag that REF names, if that names the same build still. Prints the id of the build
    that keeps to the budget: REF's own if nothing is to be done.
    """
    manifest = cli.catalogue.resolve(ref)
    with cli.job() as progress:
        done = compact_build(
            cli.storage,
            manifest,
            node_id=cli.settings.node_id,
            scratch=cli.settings.cache_dir / "scratch",
            budget=budget,
            progress=progress,
            **options,
        )
        failed = None
        if done.published is not None:
            failed = _tag(cli, ref, manifest, done.published, tags, no_tag=no_tag)
        cli.interruption.settle()
    more = {"before": _figures(done.before), "after": _figures(done.after)}
    for artifact, found in done.after.items():
        if found.figure > budget:
            cli.warn(
                f"{artifact} has a fragmentation of {found.figure:.2f}; chunks that are repeated "
                "within it can be stored in one place only"
            )
    _print(cli, done.published or Published(manifest, {}), failed, more, as_json=as_json)


def _figures(found: dict[str, Fragmentation]) -> dict[str, float]:
    return {artifact: round(each.figure, 3) for artifact, each in found.items()}


def _tag(
    cli: Cli,
    ref: str,
    manifest: Manifest,
    published: Published,
    tags: tuple[str, ...],
    *,
    no_tag: bool,
) -> BootstreamError | None:
    """Tag the new build: as asked, or in the place of the build that it was made from."""
    if no_tag:
        return None
    if tags:
        return set_tags(cli.storage, published.manifest, tags, None)
    if is_build_id(ref):
        return None
    tag = TemplateName.parse(ref).tag_or_default
    return set_tags(cli.storage, published.manifest, [tag], manifest.build_id)


def _print(
    cli: Cli,
    published: Published,
    failed: BootstreamError | None,
    more: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    manifest = published.manifest
    if as_json:
        emit_json(
            {
                "build_id": manifest.build_id,
                "template_id": manifest.template_id,
                "parent": manifest.parent,
                "size": manifest.size,
                "stored_size": manifest.stored_size,
                "artifacts": {name: asdict(each) for name, each in published.summaries.items()},
                "tag_error": None if failed is None else error_to_json(failed),
                **more,
            }
        )
    else:
        for artifact in more.get("before", ()):
            cli.tell(
                f"{artifact}: fragmentation {more['before'][artifact]:.2f}, "
                f"now {more['after'][artifact]:.2f}"
            )
        if published.summaries:
            cli.tell(f"{human_size(manifest.stored_size)} stored")
        click.echo(manifest.build_id)
    if failed is not None:
        raise failed
