"""``boot``: a template in a virtual machine, its root straight from our NBD server."""

from __future__ import annotations

import json
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import AGE, REF, SIZE, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import from_os_error
from bootstream.cli.output import emit_json
from bootstream.errors import BootstreamError, Corrupt, InvalidInput, NotFound

if TYPE_CHECKING:
    from bootstream.rootfs.ext4.reader import Ext4FileSystem
    from bootstream.vm.boot import Ended, Event, Plan
    from bootstream.vm.kernel import Files, Kernel

_MAX_FILE = 64 << 20
# Imports of the vm layer are inside: --help needs none of it.


@verb(
    "boot",
    """
    bootstream boot debian --kernel ./linux-image
    bootstream boot debian --cmd 'cat /etc/os-release'
    bootstream boot nbd+unix:///?socket=/run/debian.sock --memory 1G --cpus 2
    bootstream boot debian --print-firecracker --kernel vmlinux
    """,
)
@click.argument("ref", type=REF)
@click.option(
    "--kernel",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A vmlinuz or vmlinux, or the folder that a kernel's package was unpacked into.",
)
@click.option("--memory", type=SIZE, default="512M", show_default=True, help="Memory.")
@click.option("--cpus", type=click.IntRange(1, 256), default=1, show_default=True, help="Count.")
@click.option(
    "--cmd", "command", metavar="TEXT", help="Run this by the shell, then end with its exit code."
)
@click.option(
    "--file",
    "files",
    metavar="PATH[:NAME]",
    multiple=True,
    help="Put a file of this host into /run/bootstream of the guest. Repeatable.",
)
@click.option(
    "--module", "modules", metavar="NAME", multiple=True, help="Load this module. Repeatable."
)
@click.option("--network", is_flag=True, help="A network in which this host is 10.0.2.2.")
@click.option("--read-only", is_flag=True, help="Mount the root read-only.")
@click.option(
    "--overlay",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what the guest writes in FILE.",
)
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="KVM, or emulation; auto tries whether KVM works.",
)
@click.option(
    "--machine",
    "kind",
    type=click.Choice(["microvm", "pc"]),
    help="Kind of machine; what suits the kernel if left out.",
)
@click.option("--append", metavar="WORDS", default="", help="Further kernel arguments.")
@click.option("--time-limit", type=AGE, metavar="AGE", help="Give up after this time, e.g. 30s.")
@click.option(
    "--busybox", metavar="FILE", type=click.Path(path_type=Path), help="A static busybox."
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what happened when, as JSON.",
)
@click.option("--print-firecracker", is_flag=True, help="Print how Firecracker boots it instead.")
@click.option(
    "--device", default="/dev/nbd0", show_default=True, help="Device for --print-firecracker."
)
@json_option
@pass_cli
def boot(cli: Cli, /, ref: str, **options: Any) -> int:
    """Boot a template in a virtual machine.

    REF is a template, or the URI of an NBD export that is served already. QEMU reads the
    root straight from our server; only what the guest touches is fetched. Writes go to an
    overlay that is thrown away, unless --overlay keeps it.

    The kernel is --kernel's, else the newest in /boot of the template, else of this host.
    Its modules are found beside it. The template's /sbin/init runs, or a shell where there
    is none; the terminal is its console, and Ctrl-A X ends the machine. With --cmd the
    shell runs that instead, and the exit code is the command's. Needs qemu-system-x86 and
    a static busybox.
    """
    if options["overlay"] is not None and options["read_only"]:
        raise InvalidInput("--overlay and --read-only exclude each other", operation="boot")
    if options["print_firecracker"]:
        _print_firecracker(ref, options)
        return 0
    with cli.interruption, ExitStack() as stack:
        uri = stack.enter_context(exported(cli, ref, options))
        plan = _plan(cli, uri, stack, options)
        ended = _boot(cli, plan, ref)
    _report(ref, plan, ended, options)
    return ended.exit_code or 0


@contextmanager
def exported(cli: Cli, ref: str, options: dict[str, Any]) -> Iterator[str]:
    """Yield the URI of the template's export, on a private socket; or the URI that it is."""
    if is_uri(ref):
        if options["overlay"] is not None:
            raise InvalidInput("--overlay is the server's to keep", operation="use", object=ref)
        yield ref
        return
    from bootstream.cli.serve import Served, serving  # noqa: PLC0415 - a URI needs no store

    with tempfile.TemporaryDirectory(prefix="bootstream-nbd-") as folder:
        socket = Path(folder) / "nbd.sock"
        read_only, overlay = options["read_only"], options["overlay"]
        served = Served(refs=(ref,), socket=socket, read_only=read_only, overlay=overlay)
        with serving(cli, served) as uri:
            yield uri


def is_uri(ref: str) -> bool:
    """Whether a REF names an export that somebody serves."""
    return ref.startswith(("nbd:", "nbd+unix:", "nbds:"))


def _plan(cli: Cli, uri: str, stack: ExitStack, options: dict[str, Any]) -> Plan:
    from bootstream.vm import accel  # noqa: PLC0415 - not for --help
    from bootstream.vm.boot import Plan  # noqa: PLC0415
    from bootstream.vm.initrd import find_busybox  # noqa: PLC0415

    command: str | None = options["command"]
    plan = Plan(
        kernel=_kernel(options["kernel"], uri, stack),
        busybox=find_busybox(options["busybox"]),
        root=uri,
        command=command,
        files=dict(_file(text) for text in options["files"]),
        modules=options["modules"],
        kind=options["kind"],
        memory=options["memory"] >> 20,
        cpus=options["cpus"],
        network=options["network"],
        read_only=options["read_only"],
        interactive=command is None and sys.stdin.isatty(),
        append=options["append"],
        time_limit=options["time_limit"],
    )
    choice: str = options["accel"]
    if choice == "auto":
        choice = accel.choose(plan, remember=cli.settings.runtime_dir / "accel.json")
    return replace(plan, accel=choice)


def _kernel(path: Path | None, uri: str, stack: ExitStack) -> Kernel:
    """Return the kernel that is named, or one from the template, or from this host.

    Its modules are read later; ``stack`` closes what they are read through.
    """
    from bootstream.nbd.client import connect  # noqa: PLC0415 - as above
    from bootstream.rootfs.ext4.reader import Ext4FileSystem  # noqa: PLC0415
    from bootstream.vm.kernel import (  # noqa: PLC0415
        HostFiles,
        find_kernel,
        kernel_in,
        load_kernel,
    )

    if path is not None:
        return kernel_in(path) if path.is_dir() else load_kernel(path)
    client = stack.enter_context(connect(uri))
    trees: dict[str, Files] = {"this host": HostFiles(Path("/"))}
    try:
        inside = TemplateFiles(Ext4FileSystem(client.read_into, client.size))
    except Corrupt:  # no ext4: then it brings no kernel, and the guest says the rest
        return find_kernel(trees)
    return find_kernel({"the template": inside, **trees})


class TemplateFiles:
    """A template's file system as a tree that kernels are read from."""

    def __init__(self, system: Ext4FileSystem) -> None:
        self._system = system

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        name = path.encode()
        status = self._system.stat(name)
        if not stat.S_ISREG(status.mode):
            raise NotFound("there is no such file", operation="read", object=path)
        if status.size > _MAX_FILE:
            raise InvalidInput("it is too large for a kernel", operation="read", object=path)
        with self._system.open(name) as file:
            return file.read()

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        status = self._system.stat(path.encode())
        if not stat.S_ISDIR(status.mode):
            raise NotFound("there is no such folder", operation="list", object=path)
        return [name.decode("utf-8", "replace") for name in self._system.listdir(path.encode())]


def _file(text: str) -> tuple[str, bytes]:
    """Return name and content for ``PATH[:NAME]``."""
    path, colon, name = text.rpartition(":")
    if not colon or "/" in name:
        path, name = text, Path(text).name
    try:
        return name, Path(path).read_bytes()
    except OSError as error:
        raise from_os_error(error, operation="boot with --file", object=path) from error


def _boot(cli: Cli, plan: Plan, ref: str) -> Ended:
    from bootstream.vm.boot import boot as start  # noqa: PLC0415 - as above

    def heard(event: Event) -> None:
        if cli.verbose:
            cli.tell(f"{event.seconds:7.2f}s  {event.stage} {event.detail}".rstrip())

    cli.tell(f"booting {ref} with {plan.kernel.source} ({plan.accel})")
    if plan.interactive:
        cli.tell("Ctrl-A X ends the machine")
    try:
        ended = start(plan, on_event=heard)
    except BootstreamError:
        cli.interruption.check()  # QEMU heard Ctrl-C too
        raise
    return ended


def _report(ref: str, plan: Plan, ended: Ended, options: dict[str, Any]) -> None:
    document = {
        "ref": ref,
        "kernel": plan.kernel.source,
        "version": plan.kernel.version,
        "accel": plan.accel,
        "machine": ended.kind,
        "exit_code": ended.exit_code,
        "seconds": round(ended.seconds, 3),
        "events": [
            {
                "stage": str(event.stage),
                "seconds": round(event.seconds, 3),
                "uptime": event.uptime,
                "detail": event.detail,
            }
            for event in ended.events
        ],
    }
    path: Path | None = options["report"]
    if path is not None:
        try:
            path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
        except OSError as error:
            raise from_os_error(error, operation="write report", object=str(path)) from error
    if options["as_json"]:
        emit_json(document)


def _print_firecracker(ref: str, options: dict[str, Any]) -> None:
    from bootstream.vm.firecracker import MicroVM, configuration, script  # noqa: PLC0415

    machine = MicroVM(
        kernel=str(options["kernel"] or "vmlinux"),
        device=options["device"],
        memory=options["memory"] >> 20,
        cpus=options["cpus"],
        read_only=options["read_only"],
        append=options["append"],
        command=options["command"],
    )
    if options["as_json"]:
        emit_json(configuration(machine))
    else:
        click.echo(script(machine, ref), nl=False)
