"""``serve``: templates as block devices over NBD."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream import wiring
from bootstream.cli.base import REF, verb
from bootstream.cli.bases import Base, Bases, writing_stats
from bootstream.cli.commit import Committable, serve_commits
from bootstream.cli.context import Cli, pass_cli
from bootstream.errors import InvalidInput
from bootstream.nbd.listen import MAX_PATH
from bootstream.nbd.server import Export, Server
from bootstream.templates.build import ROOTFS
from bootstream.templates.commit_control import SUFFIX
from bootstream.templates.traces import TraceMode

if TYPE_CHECKING:
    from bootstream.block.device import Device
    from bootstream.cli.interrupt import Interruption


@dataclass(frozen=True, slots=True)
class Served:
    """What is asked of a server: which builds, where, and what becomes of writes."""

    refs: tuple[str, ...]
    socket: Path | None = None
    tcp: str | None = None
    read_only: bool = False
    overlay: Path | None = None
    name: str | None = None
    control: Path | None = None
    trace: TraceMode = TraceMode.AUTO
    stats: Path | None = None


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
@click.option(
    "--ready-fd", metavar="N", type=int, help="Write a newline to this descriptor when it listens."
)
@click.option("--name", help="Export name of the first REF.")
@click.option(
    "--control",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Unix socket for 'commit' and 'report'; SOCKET.ctl if left out.",
)
@click.option(
    "--trace",
    type=click.Choice([mode.value for mode in TraceMode]),
    default=TraceMode.AUTO.value,
    show_default=True,
    help="Replay the stored trace of first touches, or else record one.",
)
@click.option(
    "--stats",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write statistics to FILE at the end, and at SIGUSR1.",
)
@pass_cli
def serve(cli: Cli, /, ready_fd: int | None, trace: str, **options: Any) -> None:
    r"""Serve templates as block devices over NBD.

    \b
    Exports:
      (default)       the root file system of the first REF
      REF             the root file system of that REF, named as it was written, or by --name
      REF/ARTIFACT    an artifact of it, e.g. debian:12/rootfs.ext4

    Writes go to overlays that are thrown away at the end, unless --read-only refuses them
    or --overlay keeps those of the default export (all others are then read-only).
    'bootstream commit SOCKET' makes a build of them meanwhile, by a socket of its own,
    SOCKET.ctl, or --control. A lease holds every build. Prints the default export's URI
    when it listens; SIGTERM or Ctrl-C ends it with exit code 0.

    What the first boot of a build touches is stored beside it as a trace, and fetched ahead
    at the start of later ones. --trace record makes another, --trace off does neither.
    """
    wanted = Served(**options, trace=TraceMode(trace))
    socket, control = wanted.socket, wanted.control
    if (socket is None) == (wanted.tcp is None):
        raise InvalidInput("give either --socket or --tcp", operation="serve")
    if wanted.overlay is not None and wanted.read_only:
        raise InvalidInput("--overlay and --read-only exclude each other", operation="serve")
    if ready_fd is not None:
        _check_descriptor(ready_fd)
    if control is None and socket is not None:
        beside = socket.absolute().with_name(socket.name + SUFFIX)
        if len(os.fsencode(beside)) <= MAX_PATH:
            control = beside
        else:
            cli.warn(f"no control socket: {beside} is too long; --control names another one")
    wanted = replace(wanted, control=control)
    with cli.interruption, serving(cli, wanted) as uri:
        if ready_fd is None:
            click.echo(uri)
            sys.stdout.flush()
        else:
            os.write(ready_fd, b"\n")
            os.close(ready_fd)
        wait_for_end(cli.interruption)


def _check_descriptor(number: int) -> None:
    """Refuse a descriptor that the caller did not pass, before anything is served."""
    try:
        os.fstat(number)
    except OSError as error:
        raise InvalidInput(
            "no such descriptor was passed",
            operation="serve --ready-fd",
            object=str(number),
            remedy="open it in the parent and let the child inherit it",
        ) from error


def wait_for_end(interruption: Interruption) -> None:
    """Return once Ctrl-C or SIGTERM came, which for a server is the regular end."""
    interruption.wait()
    interruption.signum = None


@contextmanager
def serving(cli: Cli, wanted: Served) -> Iterator[str]:
    """Serve while the block lasts; yield the default export's URI."""
    with serving_bases(cli, wanted) as (uri, _):
        yield uri


@contextmanager
def serving_bases(cli: Cli, wanted: Served) -> Iterator[tuple[str, Bases]]:
    """Serve while the block lasts; yield the default export's URI, and what exports lie on.

    Undone in the opposite order: the server stops before statistics are written and traces
    stored, that before devices are closed, devices before the cache, and the leases go last.
    """
    with ExitStack() as stack:
        cache = stack.enter_context(closing(wiring.open_node_cache(cli.settings)))
        bases = Bases(cli, cache, stack, wanted.trace)
        bases.look_up(wanted.refs)
        exports = _Exports(cli, wanted, bases, stack)
        for number, ref in enumerate(wanted.refs):
            exports.add(ref, first=number == 0)
        stack.enter_context(writing_stats(cli, bases, wanted.stats))
        server = Server(exports.by_name, default=exports.default)
        stack.callback(server.close)
        if wanted.socket is not None:
            uri = server.listen_unix(wanted.socket)
        else:
            uri = server.listen_tcp(*parse_address(wanted.tcp or ""))
        server.start()
        if wanted.control is not None:
            control = serve_commits(
                cli,
                wanted.control,
                exports.committable,
                exports.default,
                others={"stats": bases.answer},
            )
            stack.callback(control.close)
        yield uri, bases


class _Exports:
    """The exports of one server: each build held by a lease, each name on a device."""

    def __init__(self, cli: Cli, wanted: Served, bases: Bases, stack: ExitStack) -> None:
        self._cli = cli
        self._wanted = wanted
        self._bases = bases
        self._stack = stack
        self.by_name: dict[str, Export] = {}
        self.committable: dict[str, Committable] = {}
        self.default = ""

    def add(self, ref: str, *, first: bool) -> None:
        """Add the exports of one build: its root file system, and every artifact."""
        name = self._wanted.name if first and self._wanted.name is not None else ref
        manifest = self._bases.hold(ref)
        wanted = self._wanted
        writable = first if wanted.overlay is not None else not wanted.read_only
        path = wanted.overlay
        self._put(name, self._bases.open(manifest, ROOTFS), writable=writable, path=path)
        if first:
            self.default = name
        for artifact in manifest.artifacts:
            alone = not wanted.read_only and wanted.overlay is None
            self._put(f"{name}/{artifact}", self._bases.open(manifest, artifact), writable=alone)

    def _put(self, name: str, base: Base, *, writable: bool, path: Path | None = None) -> None:
        if name in self.by_name:
            raise InvalidInput(
                "two exports would have this name",
                operation="serve",
                object=name,
                remedy="name every template once, or give the first one another --name",
            )
        manifest, artifact = base.manifest, base.artifact
        device: Device = base.device
        if writable:
            overlay = wiring.open_overlay(
                self._cli.settings, device, path, manifest=manifest, artifact=artifact
            )
            self.committable[name] = Committable(overlay, manifest, artifact)
            device = self._stack.enter_context(closing(overlay))
        description = f"{manifest.template_id} {manifest.build_id} {artifact}"
        self.by_name[name] = Export(device, description)
        self._bases.exports[name] = base


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[HOST]:PORT``; raises InvalidInput."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidInput(
            "it is not HOST:PORT",
            operation="read --tcp",
            object=text,
            remedy="write e.g. 127.0.0.1:10809, or 127.0.0.1:0 for a free port",
        )
    return host.removeprefix("[").removesuffix("]"), int(port)
