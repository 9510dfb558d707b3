"""``template-manager``, ``orchestrator`` and ``token``."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import AGE, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.errors import InvalidInput

if TYPE_CHECKING:
    from bootstream.services.settings import ServiceSettings


def _listening(function: Any) -> Any:
    options = [
        click.option("--host", metavar="ADDRESS", help="Where to listen; 127.0.0.1."),
        click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free port."),
        click.option(
            "--tokens",
            type=click.Path(path_type=Path, dir_okay=False),
            help="File of tokens that are let in.",
        ),
        click.option(
            "--state",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of what must survive a restart.",
        ),
        click.option("--ready-fd", metavar="N", type=int, help="Write the URL there when ready."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@verb(
    "template-manager",
    """
    bootstream template-manager
    bootstream template-manager --host 0.0.0.0 --tokens /etc/bootstream/tokens.json
    """,
)
@_listening
@pass_cli
def template_manager(cli: Cli, /, ready_fd: int | None, **options: Any) -> None:
    """Run the service that makes templates.

    It speaks HTTP on port 5009. Its settings are the variables of docs/services.md; options
    come before them. It listens on this host only unless --host says otherwise, and beyond it
    wants tokens and TLS. Builds run in processes of their own: they survive the service, and
    its next start finds them.
    """
    from bootstream.services.settings import TEMPLATE_MANAGER_PORT  # noqa: PLC0415 - not for help

    service = _settings(options, TEMPLATE_MANAGER_PORT)
    _needs_extra()
    from bootstream.services import logs, server  # noqa: PLC0415 - needs the extra
    from bootstream.services.manager import Manager, make_manager_app  # noqa: PLC0415

    logs.configure("template-manager", cli.settings.node_id)
    sock = server.listen(service.listen)
    with sock:
        manager = Manager(cli.settings, service, environ=os.environ, store=cli.store)
        try:
            server.run(
                make_manager_app(manager, service),
                sock,
                service.listen,
                on_ready=lambda url: _tell_ready(cli, url, ready_fd),
                on_stop=manager.stop,
            )
        finally:
            manager.close()


@verb(
    "orchestrator",
    """
    bootstream orchestrator
    bootstream orchestrator --host 10.0.0.7 --tokens /etc/bootstream/tokens.json
    """,
)
@_listening
@pass_cli
def orchestrator(cli: Cli, /, ready_fd: int | None, **options: Any) -> None:
    """Run the service that serves sandboxes.

    It speaks HTTP on port 5008, and runs on every host. Its settings are the variables of
    docs/services.md; options come before them. It listens on this host only unless --host
    says otherwise, and beyond it wants tokens and TLS. Sandboxes survive it: its next start
    serves them again, at the same sockets, with all that was written.
    """
    from bootstream.services.settings import ORCHESTRATOR_PORT  # noqa: PLC0415 - not for help

    service = _settings(options, ORCHESTRATOR_PORT)
    _needs_extra()
    from bootstream.services import logs, server  # noqa: PLC0415 - needs the extra
    from bootstream.services.orchestrator import (  # noqa: PLC0415
        Orchestrator,
        make_orchestrator_app,
    )

    logs.configure("orchestrator", cli.settings.node_id)
    sock = server.listen(service.listen)
    with sock:
        made = Orchestrator(cli.settings, service)
        try:
            server.run(
                make_orchestrator_app(made, service),
                sock,
                service.listen,
                on_ready=lambda url: _tell_ready(cli, url, ready_fd),
                on_stop=made.stop,
            )
        finally:
            made.close()


@verb(
    "token",
    """
    bootstream token ci --scope templates:read --scope templates:write --file tokens.json
    bootstream token prometheus --scope metrics --file tokens.json --expires 90d
    """,
)
@click.argument("name")
@click.option(
    "--file",
    "path",
    metavar="FILE",
    envvar="BOOTSTREAM_TOKENS_FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of tokens; made if missing.",
)
@click.option(
    "--scope", "scopes", metavar="SCOPE", multiple=True, required=True, help="Repeatable."
)
@click.option("--expires", type=AGE, help="For how long it is good; for ever if left out.")
def service_token(name: str, path: Path, scopes: tuple[str, ...], expires: float | None) -> None:
    r"""Make a token for a client.

    It is printed once; the file keeps its digest. Services that run read the file again by
    themselves when it changed.

    \b
    Scopes:
      templates:read    look at templates, builds and logs
      templates:write   start and cancel builds, set tags
      templates:delete  delete builds, drop tags
      sandboxes:read    look at sandboxes
      sandboxes:write   make, pause and delete sandboxes
      metrics           figures for Prometheus
      *                 everything
    """
    _needs_extra()
    from bootstream.services.tokens import add_token  # noqa: PLC0415 - not for --help

    until = None if expires is None else datetime.now(UTC) + timedelta(seconds=expires)
    click.echo(add_token(path, name, scopes, expires=until))


def _settings(options: dict[str, Any], port: int) -> ServiceSettings:
    """Read the environment, with the command's options in its place."""
    from bootstream.services.settings import ServiceSettings  # noqa: PLC0415 - not for --help

    service = ServiceSettings.from_environment(os.environ, port=port)
    given = {key: value for key, value in options.items() if value is not None}
    if "state" in given:
        service = replace(service, state=given.pop("state").absolute())
    return replace(service, listen=replace(service.listen, **given))


def _needs_extra() -> None:
    try:
        import fastapi  # noqa: F401, PLC0415 - whether it is there
        import prometheus_client  # noqa: F401, PLC0415
        import uvicorn  # noqa: F401, PLC0415
    except ImportError as error:
        raise InvalidInput(
            f"the services need {error.name}, which is not installed",
            operation="start service",
            remedy="pip install 'bootstream[server]'",
        ) from error


def _tell_ready(cli: Cli, url: str, descriptor: int | None) -> None:
    if descriptor is None:
        cli.tell(f"answers at {url}")
        return
    os.write(descriptor, url.encode() + b"\n")
    os.close(descriptor)
