"""The same verbs, done by a template-manager: ``--server URL``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.output import emit_json, human_size, percent
from bootstream.errors import (
    BootstreamError,
    BuildNotFound,
    Conflict,
    InvalidInput,
    TemplateNotFound,
)
from bootstream.templates.commit_control import error_from_json
from bootstream.templates.names import TemplateName, is_build_id, new_build_id

if TYPE_CHECKING:
    from bootstream.cli.context import Cli
    from bootstream.client import TemplateManagerClient
    from bootstream.progress import Progress

_MOST_TOKEN = 4096


def server_option(function: Any) -> Any:
    """Where the work is done."""
    return click.option(
        "--server",
        metavar="URL",
        envvar="BOOTSTREAM_SERVER",
        help="Have a template-manager do it; BOOTSTREAM_TOKEN signs in.",
    )(function)


def open_client(server: str) -> TemplateManagerClient:
    """Return a client of a template-manager, signed in as the environment says."""
    from bootstream.client import TemplateManagerClient  # noqa: PLC0415 - only with --server

    token = os.environ.get("BOOTSTREAM_TOKEN") or None
    path = os.environ.get("BOOTSTREAM_TOKEN_FILE")
    if token is None and path:
        try:
            with Path(path).open(encoding="ascii") as file:
                token = file.read(_MOST_TOKEN).strip()
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"the token cannot be read: {error}", operation="sign in", object=path
            ) from error
    return TemplateManagerClient(
        server, token=token, ca_file=os.environ.get("BOOTSTREAM_SERVER_CA_FILE") or None
    )


def build_there(
    cli: Cli, server: str, target: TemplateName, build_id: str | None, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Have a build made, follow it, and return the service's document of it.

    Interrupted, it is cancelled there. Raises what it failed with.
    """
    build_id = build_id or new_build_id()
    wanted = {key: value for key, value in request.items() if value is not None}
    with open_client(server) as client, cli.job() as progress:
        client.start_build(
            target.template_id, build_id=build_id, tags=[target.tag_or_default], **wanted
        )
        try:
            _follow(client, target.template_id, build_id, progress)
        except BaseException as error:
            if cli.interruption.signum is not None:
                _cancel(client, target.template_id, build_id, error)
            raise
        cli.interruption.settle()
        build = client.get_build(target.template_id, build_id)
    if build.state == "published":
        return dict(build.document)
    failure = build.document.get("error") or {"message": f"the build is {build.state}"}
    raise error_from_json({"operation": "build", "object": build_id, **failure})


def _follow(
    client: TemplateManagerClient, template_id: str, build_id: str, progress: Progress
) -> None:
    """Show a build's log as the progress of work done here."""
    amounts: dict[str, int] = {}
    for event in client.events(template_id, build_id):
        match event.fields:
            case {"type": "phase", "name": str(name), "total": total, "unit": str(unit)}:
                amounts.setdefault(name, 0)
                progress.phase(name, total if isinstance(total, int) else None, unit)
            case {"type": "progress", "name": str(name), "done": int(done)}:
                progress.advance(name, done - amounts.get(name, 0))
                amounts[name] = done
            case {"type": "done", "name": str(name)}:
                progress.done(name)
            case {"type": "log", "message": str(message)}:
                progress.log(message)


def _cancel(
    client: TemplateManagerClient, template_id: str, build_id: str, error: BaseException
) -> None:
    try:
        client.cancel(template_id, build_id)
    except Conflict:
        return  # it has ended
    except BootstreamError as trouble:
        error.add_note(f"it could not be cancelled there: {trouble}")


def print_built(cli: Cli, document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the build's id, or the service's document."""
    if as_json:
        emit_json(document)
        return
    size, stored = int(document["size"]), int(document["stored_size"])
    cli.tell(f"stored {human_size(stored)} for {human_size(size)} ({percent(stored, size)})")
    click.echo(document["build_id"])


def list_there(server: str, template: str | None) -> list[dict[str, Any]]:
    """Return the published builds of one template, or of all, as ``ls --json`` has them."""
    with open_client(server) as client:
        names = list(client.templates()) if template is None else [template]
        try:
            found = [dict(each) for name in names for each in client.template(name).builds]
        except TemplateNotFound:
            found = []
    for each in found:
        each["artifacts"] = sorted(each["artifacts"])
        each.pop("image", None)
    return sorted(found, key=lambda each: (each["created"], each["build_id"]))


def remove_there(server: str, ref: str, *, everything: bool) -> list[str]:
    """Do what ``rm`` means; return the ids of the builds that were deleted.

    Raises:
        TemplateNotFound, BuildNotFound, Conflict: as for a store.
    """
    if is_build_id(ref):
        with open_client(server) as client:
            for template in client.templates():
                if any(each["build_id"] == ref for each in client.template(template).builds):
                    client.delete(template, ref)
                    return [ref]
        raise BuildNotFound("there is no such build", operation="rm", object=ref)
    name = TemplateName.parse(ref)
    with open_client(server) as client:
        tags = client.tags(name.template_id)
        if name.tag is not None:
            client.drop_tag(name.template_id, name.tag)
            build_id = tags.pop(name.tag, None)
            if build_id is None or build_id in tags.values():
                return []
            client.delete(name.template_id, build_id)
            return [build_id]
        others = sorted(set(tags) - {name.tag_or_default})
        if others and not everything:
            raise Conflict(
                f"the template has other tags: {', '.join(others[:20])}",
                operation="delete template",
                object=name.template_id,
                remedy=f"name one tag, as in {name.template_id}:{others[0]}, or pass --all",
            )
        builds = [str(each["build_id"]) for each in client.template(name.template_id).builds]
        for build_id in builds:
            client.delete(name.template_id, build_id)
        return builds
