"""``commit``: what was written to an export, or kept in an overlay file, becomes a build."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from bootstream import wiring
from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size
from bootstream.errors import InvalidInput, NotFound
from bootstream.ids import is_build_id
from bootstream.templates.build import ROOTFS
from bootstream.templates.commit import Commit, CommitOptions, commit, find_base
from bootstream.templates.commit_control import (
    SUFFIX,
    ControlServer,
    Handler,
    ask,
    error_from_json,
    error_to_json,
)
from bootstream.templates.leases import Lease

if TYPE_CHECKING:
    from bootstream.block.overlay import Overlay
    from bootstream.progress import Progress
    from bootstream.templates.manifest import Manifest


@verb(
    "commit",
    """
    bootstream commit /run/debian.sock --tag next
    bootstream commit ./vm7.overlay --template vm7 --json
    """,
)
@click.argument("target", metavar="SOCKET|FILE", type=click.Path(path_type=Path))
@click.option("--export", metavar="NAME", default="", help="Export of SOCKET; the default one.")
@click.option("--template", metavar="NAME", help="Template of the new build; the base's own.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Give it this tag. Repeatable.")
@click.option("--if-current", metavar="BUILD", help="Tag only if the tag names this build now.")
@click.option("--parent", metavar="REF", help="The build that FILE lies on; found by its index.")
@click.option("--flat", is_flag=True, help="Store every chunk: the build needs no other one.")
@click.option(
    "--keep",
    metavar="ARTIFACT",
    multiple=True,
    help="Take another artifact of the parent over, e.g. memfile. Repeatable.",
)
@click.option("--build-id", metavar="UUID", help="Use this build id, never used before.")
@click.option("--level", type=int, help="Level of zstd compression.")
@click.option("--threads", type=click.IntRange(min=1), help="Compressors at a time.")
@json_option
@pass_cli
def commit_(
    cli: Cli,
    /,
    target: Path,
    export: str,
    parent: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a build of what was written to an export.

    SOCKET is that of a running 'serve', which goes on; FILE is an --overlay file that
    nobody serves. Only what was written is read and stored. A memory snapshot of the
    parent is left out: it belongs to the disk as it was. Prints the build id, alone, on
    stdout.
    """
    request = _request(options)
    live = _is_socket(target)
    if live and parent is not None:
        raise InvalidInput("--parent is for overlay files", operation="commit", object=str(target))
    with cli.job() as progress:
        if live:
            beside = target.with_name(target.name + SUFFIX)
            path = beside if beside.exists() else target
            request |= {"op": "commit", "export": export}
            result = ask(path, request, progress)
        else:
            result = _commit_file(cli, target, parent, request, progress)
        cli.interruption.settle()
    _print(cli, result, as_json=as_json)


def _request(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "template": options["template"],
        "tags": list(options["tags"]),
        "if_current": options["if_current"],
        "flat": options["flat"],
        "keep": list(options["keep"]),
        "build_id": options["build_id"],
        "level": options["level"],
        "threads": options["threads"],
    }


def _is_socket(target: Path) -> bool:
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            "there is no such socket or file",
            operation="commit",
            object=str(target),
            remedy="name the socket that 'bootstream serve' was given, or its --overlay file",
        ) from None
    return stat.S_ISSOCK(mode)


def _commit_file(
    cli: Cli, path: Path, parent: str | None, request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Commit an overlay that nobody serves; its lock says whether that is so."""
    from bootstream.block.overlay_file import read_base  # noqa: PLC0415 - for files alone

    digest, _, _ = read_base(path)
    base = find_base(cli.storage, digest) if parent is None else cli.catalogue.resolve(parent)
    with ExitStack() as stack:
        stack.enter_context(Lease(cli.storage, base.build_id, cli.settings.node_id))
        cache = stack.enter_context(closing(wiring.open_node_cache(cli.settings)))
        device = wiring.open_device(cli.storage, cache, base, ROOTFS)
        stack.enter_context(closing(device))
        overlay = wiring.open_overlay(cli.settings, device, path, manifest=base, artifact=ROOTFS)
        stack.enter_context(closing(overlay))
        return _commit_overlay(cli, Committable(overlay, base, ROOTFS), request, progress)


@dataclass(frozen=True, slots=True)
class Committable:
    """An overlay, and the artifact of the build that it lies on."""

    overlay: Overlay
    base: Manifest
    artifact: str


def serve_commits(
    cli: Cli,
    path: Path,
    exports: Mapping[str, Committable],
    default: str,
    *,
    others: Mapping[str, Handler] = MappingProxyType({}),
) -> ControlServer:
    """Listen at ``path`` for commits of exports, and other requests; close it before them.

    Raises InvalidInput, NotFound, AlreadyExists, PermissionDenied of the path.
    """

    def handle(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        name = str(request.get("export") or default)
        found = exports.get(name)
        if found is None:
            raise NotFound(
                "there is no export of this name that can be written to",
                operation="commit",
                object=name,
                remedy=f"there are: {', '.join(sorted(exports)) or 'none'}",
            )
        return _commit_overlay(cli, found, request, progress)

    return ControlServer(path, {"commit": handle, **others})


def _commit_overlay(
    cli: Cli, found: Committable, request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    if_current = _text(request, "if_current")
    if if_current is not None and not is_build_id(if_current):
        if_current = cli.catalogue.resolve(if_current).build_id
    options = CommitOptions(
        template_id=_text(request, "template"),
        build_id=_text(request, "build_id"),
        artifact=found.artifact,
        flat=request.get("flat") is True,
        carry=_texts(request, "keep"),
        tags=_texts(request, "tags"),
        if_current=if_current,
        level=_number(request, "level"),
        threads=_number(request, "threads"),
    )
    with found.overlay.freeze() as frozen:
        done = commit(
            cli.storage,
            frozen,
            found.base,
            node_id=cli.settings.node_id,
            scratch=cli.settings.cache_dir / "scratch",
            options=options,
            progress=progress,
        )
    return _to_json(done)


def _to_json(done: Commit) -> dict[str, Any]:
    manifest = done.published.manifest
    return {
        "build_id": manifest.build_id,
        "template_id": manifest.template_id,
        "parent": done.parent,
        "changed_bytes": done.bytes_changed,
        "size": manifest.size,
        "stored_size": manifest.stored_size,
        "artifacts": {name: asdict(each) for name, each in done.published.summaries.items()},
        "tag_error": None if done.tag_error is None else error_to_json(done.tag_error),
    }


def _print(cli: Cli, result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the build's id in any case; then fail if it did not get its tag."""
    if as_json:
        emit_json(result)
    else:
        counts = [each for each in result["artifacts"].values() if each["form"] == "chunked"]
        cli.tell(
            f"{human_size(result['changed_bytes'])} changed, "
            f"{human_size(result['stored_size'])} stored: "
            f"{sum(each['new_chunks'] for each in counts)} new chunks, "
            f"{sum(each['zero_chunks'] for each in counts)} zeros, "
            f"{sum(each['parent_chunks'] for each in counts)} of the parent"
        )
        click.echo(result["build_id"])
    if result["tag_error"] is not None:
        raise error_from_json(result["tag_error"])


def _text(request: Mapping[str, Any], key: str) -> str | None:
    value = request.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(key, "text")


def _texts(request: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = request.get(key) or []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong(key, "a list of texts")


def _number(request: Mapping[str, Any], key: str) -> int | None:
    value = request.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _wrong(key, "a number")


def _wrong(key: str, what: str) -> InvalidInput:
    return InvalidInput(f"{key} must be {what}", operation="commit")
