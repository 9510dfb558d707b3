"""``serve``: templates as block devices over NBD."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import click

from bootstream import wiring
from bootstream.block.cache import NodeCache
from bootstream.block.device import Device
from bootstream.block.overlay import Overlay
from bootstream.cli.base import REF, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.errors import InvalidInput
from bootstream.nbd.server import Server
from bootstream.templates.build import ROOTFS
from bootstream.templates.leases import Lease


@dataclass(frozen=True, slots=True)
class Served:
    """What is asked of a server: which builds, where, and what becomes of writes."""

    refs: tuple[str, ...]
    socket: Path | None = None
    tcp: str | None = None
    read_only: bool = False
    overlay: Path | None = None
    name: str | None = None


@verb(
    "serve",
    """
    bootstream serve debian --socket /run/debian.sock
    bootstream serve debian:12 py311 --tcp 127.0.0.1:10809 --read-only
    """,
)
@click.argument("refs", metavar="REF...", nargs=-1, required=True, type=REF)
@click.option("--socket", metavar="PATH", type=click.Path(path_type=Path), help="Unix socket.")
@click.option("--tcp", metavar="HOST:PORT", help="Loopback address and port; 0 takes a free port.")
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "--overlay",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what is written to the default export in FILE.",
)
@click.option("--ready-fd", metavar="N", type=int, help="Write a newline to this descriptor when it listens.")
@click.option("--name", help="Export name of the first REF.")
@pass_cli
def serve(
    cli: Cli,
    refs: tuple[str, ...],
    socket: Path | None,
    tcp: str | None,
    read_only: bool,
    overlay: Path | None,
    ready_fd: int | None,
    name: str | None,
) -> None:
    """Serve templates as block devices over NBD.

    \b
    Exports:
      (default)       the root file system of the first REF
      REF             the root file system of that REF, named as it was written, or by --name
      REF/ARTIFACT    an artifact of it, e.g. debian:12/rootfs.ext4

    Writes go to overlays that are thrown away at the end, unless --read-only refuses them
    or --overlay keeps those of the default export (all others are then read-only). A
    lease holds every build. Prints the default export's URI when it listens; SIGTERM or
    Ctrl-C ends it with exit code 0.
    """
    if (socket is None) == (tcp is None):
        raise InvalidInput("give either --socket or --tcp", operation="serve")
    if overlay is not None and read_only:
        raise InvalidInput("--overlay and --read-only exclude each other", operation="serve")
    if ready_fd is not None:
        _check_descriptor(ready_fd)
    wanted = Served(refs, socket, tcp, read_only, overlay, name)
    with cli.interruption, serving(cli, wanted) as uri:
        if ready_fd is None:
            click.echo(uri)
            click.get_text_stream("stdout").flush()
        else:
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
        cli.interruption.wait()
