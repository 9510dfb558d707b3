"""``attach`` and ``detach``: a template as a block device of this host's kernel."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import AGE, REF, json_option, verb
from bootstream.cli.boot import exported
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size, table
from bootstream.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from bootstream.nbd.kernel.attach import Attachment
    from bootstream.nbd.kernel.records import Records
    from bootstream.nbd.kernel.teardown import Cleaned

_DEVICE = re.compile(r"(?:/dev/)?nbd(\d{1,6})")
_POLL_SECONDS = 0.1
# Imports of the kernel's client are inside: --help needs none of it.


@verb(
    "attach",
    """
    bootstream attach debian
    bootstream attach debian --device /dev/nbd3 --overlay debian.overlay --connections 4
    bootstream attach nbd+unix:///?socket=/run/debian.sock --read-only
    bootstream attach --list
    bootstream attach --clean
    """,
)
@click.argument("ref", required=False, type=REF)
@click.option("--device", metavar="/dev/nbdN", help="This device; a free one if left out.")
@click.option(
    "--connections",
    type=click.IntRange(1, 32),
    default=2,
    show_default=True,
    help="Connections between kernel and server.",
)
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option(
    "--overlay",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what is written in FILE.",
)
@click.option(
    "--timeout",
    type=AGE,
    metavar="AGE",
    default="30s",
    show_default=True,
    help="Send a request again that had no reply for so long.",
)
@click.option(
    "--dead-timeout",
    type=AGE,
    metavar="AGE",
    default="5m",
    show_default=True,
    help="Let requests wait so long for a server that is gone.",
)
@click.option(
    "--block-size", type=click.INT, metavar="BYTES", help="Logical block: 512, up to 4096."
)
@click.option("--resume", is_flag=True, help="Take over --device, whose process was killed.")
@click.option("--list", "list_", is_flag=True, help="List the devices that are attached.")
@click.option("--clean", "clean_", is_flag=True, help="Detach what killed processes left.")
@click.option("--force", is_flag=True, help="With --clean: also devices that are in use.")
@json_option
@pass_cli
def attach(cli: Cli, /, ref: str | None, **options: Any) -> None:
    """Attach a template as a block device, /dev/nbdN.

    REF is a template, which is served for as long as this runs, or the URI of an NBD export
    that is served already. Prints the device when it is there, stays in the foreground, and
    detaches on Ctrl-C or SIGTERM; a device that is in use then is detached as soon as it is
    free. When the server goes, requests wait (--dead-timeout); once it is back on its
    address, the device is connected again and nobody notices.

    Needs root and the kernel's driver (modprobe nbd). Without it, see 'bootstream mount'
    and 'bootstream boot'.
    """
    from bootstream.nbd.kernel.records import Records  # noqa: PLC0415 - not for --help

    records = Records(cli.settings.runtime_dir / "attachments")
    modes = [name for name in ("list_", "clean_") if options[name]]
    if len(modes) + (ref is not None) != 1:
        raise InvalidInput("give a REF, or --list, or --clean", operation="attach")
    if options["list_"]:
        _list(records, as_json=options["as_json"])
    elif options["clean_"]:
        _clean(cli, records, force=options["force"], as_json=options["as_json"])
    else:
        assert ref is not None
        _attach(cli, ref, records, options)


@verb(
    "detach",
    """
    bootstream detach /dev/nbd0
    bootstream detach nbd0 --force
    """,
)
@click.argument("device", metavar="/dev/nbdN")
@click.option("--force", is_flag=True, help="Even if it is in use: its users get errors.")
@click.option(
    "--timeout",
    type=AGE,
    metavar="AGE",
    default="30s",
    show_default=True,
    help="Wait so long for the kernel to let go of it.",
)
@json_option
@pass_cli
def detach(cli: Cli, device: str, force: bool, timeout: float, as_json: bool) -> None:
    """Detach a block device.

    Of 'bootstream attach', whose process then ends too. A device that is mounted or open is
    left alone without --force; devices of other programs always are. Returns once the kernel
    let go of it.
    """
    from bootstream.nbd.kernel.records import Records  # noqa: PLC0415 - not for --help
    from bootstream.nbd.kernel.teardown import detach as end  # noqa: PLC0415

    index = _index(device)
    records = Records(cli.settings.runtime_dir / "attachments")
    record = end(index, records, force=force, timeout=timeout)
    if as_json:
        emit_json({"device": f"/dev/nbd{index}", "label": record.label})
    else:
        cli.tell(f"detached {record.label} from /dev/nbd{index}")


def _attach(cli: Cli, ref: str, records: Records, options: dict[str, Any]) -> None:
    from bootstream.nbd.kernel.attach import Options, resume  # noqa: PLC0415 - as above
    from bootstream.nbd.kernel.attach import attach as begin  # noqa: PLC0415
    from bootstream.nbd.kernel.control import Control  # noqa: PLC0415
    from bootstream.nbd.kernel.watch import Watch  # noqa: PLC0415

    index = None if options["device"] is None else _index(options["device"])
    if options["overlay"] is not None and options["read_only"]:
        raise InvalidInput("--overlay and --read-only exclude each other", operation="attach")
    if options["resume"] and index is None:
        raise InvalidInput("--resume needs --device", operation="attach")
    Control().close()  # says what is missing before anything is served
    with cli.interruption, ExitStack() as stack:
        uri = stack.enter_context(exported(cli, ref, options))
        if options["resume"]:
            assert index is not None
            attachment = resume(index, records, uri=uri)
        else:
            attachment = begin(
                uri,
                records,
                Options(
                    index=index,
                    connections=options["connections"],
                    read_only=options["read_only"],
                    timeout=max(1, round(options["timeout"])),
                    dead_timeout=round(options["dead_timeout"]),
                    block_size=options["block_size"],
                ),
                label=ref,
            )
        with ExitStack() as undo:
            undo.callback(attachment.abandon)
            name = attachment.path
            watch = Watch(
                attachment,
                on_lost=lambda: cli.warn(f"{name} lost its server; requests wait for it"),
                on_back=lambda: cli.warn(f"{name} is connected again"),
                # As if somebody had asked: the device is gone, so this may end.
                on_gone=lambda: os.kill(os.getpid(), signal.SIGTERM),
            )
            with watch:
                _announce(attachment, as_json=options["as_json"])
                cli.interruption.wait()
                _free(cli, attachment)
            attachment.detach(force=True)
            undo.pop_all()
        cli.interruption.signum = None


def _announce(attachment: Attachment, *, as_json: bool) -> None:
    if as_json:
        record = attachment.record
        emit_json(
            {
                "device": attachment.path,
                "size": record.size,
                "connections": record.connections,
                "read_only": record.read_only,
                "uri": record.uri,
            }
        )
    else:
        click.echo(attachment.path)
    sys.stdout.flush()


def _free(cli: Cli, attachment: Attachment) -> None:
    """Wait until nobody uses the device; a second signal ends this process at once."""
    said: list[str] = []
    while attachment.connected and (users := attachment.users()):
        if users != said:
            said = users
            cli.warn(
                f"{attachment.path} is {', '.join(users)}; it is detached once it is free "
                "(a second Ctrl-C leaves it behind, for 'bootstream attach --clean')"
            )
        time.sleep(_POLL_SECONDS)


def _list(records: Records, *, as_json: bool) -> None:
    from bootstream.nbd.kernel.sysfs import Sysfs  # noqa: PLC0415 - as above

    sysfs = Sysfs()
    rows: list[dict[str, Any]] = []
    for device in sysfs.devices():
        if device.pid is None:
            continue
        found = records.find(device)
        record = None if found is None else found.record
        state = "other" if found is None else "attached" if found.owned else "abandoned"
        rows.append(
            {
                "device": device.path,
                "state": state,
                "size": device.size,
                "read_only": device.read_only,
                "label": None if record is None else record.label,
                "uri": None if record is None else record.uri,
                "pid": device.pid if record is None else record.pid,
                "users": sysfs.users(device.index),
            }
        )
    if as_json:
        emit_json(rows)
    elif rows:
        table(
            ("DEVICE", "STATE", "SIZE>", "PID>", "WHAT", "USED"),
            [
                (
                    row["device"],
                    row["state"],
                    human_size(row["size"]),
                    str(row["pid"]),
                    row["label"] or "-",
                    ", ".join(row["users"]) or "-",
                )
                for row in rows
            ],
        )


def _clean(cli: Cli, records: Records, *, force: bool, as_json: bool) -> None:
    from bootstream.nbd.kernel.teardown import clean  # noqa: PLC0415 - as above

    done = clean(records, force=force)
    if as_json:
        emit_json([_cleaned(one) for one in done])
    for one in done:
        cli.tell(f"{_name(one)}: {one.state}")
    busy = [one for one in done if one.state == "busy"]
    if busy:
        raise Conflict(
            "; ".join(f"{_name(one)} is {', '.join(one.users)}" for one in busy),
            operation="clean",
            remedy="unmount and close them first, or lose their data with --force",
        )


def _cleaned(one: Cleaned) -> dict[str, Any]:
    return {
        "device": None if one.record.index is None else f"/dev/nbd{one.record.index}",
        "state": one.state,
        "label": one.record.label,
        "users": list(one.users),
    }


def _name(one: Cleaned) -> str:
    return one.record.label if one.record.index is None else f"/dev/nbd{one.record.index}"


def _index(text: str) -> int:
    match = _DEVICE.fullmatch(text)
    if match is None:
        raise InvalidInput(
            "it is not an NBD device",
            operation="use device",
            object=text,
            remedy="write e.g. /dev/nbd0",
        )
    return int(match[1])
