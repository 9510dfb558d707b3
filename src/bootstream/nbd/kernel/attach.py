"""Exports as ``/dev/nbdN``: attached, kept connected, detached, and cleaned up after.

The handshake is done here, in user space, on as many sockets as are wanted; then the kernel
gets the sockets and does the rest, without this process: the device works on when the
process is gone, as long as the server is there. What the process is needed for is the day
the server goes: the kernel tells of dead connections (a multicast notice), requests wait for
``dead_timeout``, and once the server is back on its address, connections made anew take the
place of the dead ones (RECONFIGURE). Nobody above the device notices. A request that was
under way on a dead connection is sent again only after ``timeout``.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

from bootstream.errors import (
    BootstreamError,
    Conflict,
    InvalidInput,
    NotFound,
    Unavailable,
)
from bootstream.nbd.greeting import Agreement, negotiate
from bootstream.nbd.kernel.control import Control
from bootstream.nbd.kernel.family import Connect
from bootstream.nbd.kernel.records import Owned, Record, Records, carries, taken_over
from bootstream.nbd.kernel.sysfs import Sysfs
from bootstream.nbd.kernel.teardown import GONE_SECONDS, end, find_ours
from bootstream.nbd.protocol import ExportFlag
from bootstream.nbd.stream import Stream, mapped
from bootstream.nbd.uri import parse_uri

MAX_CONNECTIONS = 32
_DIAL_SECONDS = 30.0
_PAGE = 4096
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Options:
    """How an export is attached; see :class:`bootstream.nbd.kernel.family.Connect`.

    Attributes:
        index: of the device; None takes a free one.
        connections: most connections; one, where the server does not allow more.
        read_only: refuse writes, whatever the server allows.
        timeout, dead_timeout: seconds.
        block_size: the device's logical block in bytes; None takes the smallest, since a
            file system with smaller blocks than the device's cannot be mounted.
    """

    index: int | None = None
    connections: int = 2
    read_only: bool = False
    timeout: int = 30
    dead_timeout: int = 300
    block_size: int | None = None


@dataclass(slots=True)
class Attachment:
    """A device of this process; made by :func:`attach` and :func:`resume`.

    Attributes:
        index: of the device.
        record: what its file says.
    """

    owned: Owned
    options: Options
    control: Control
    sysfs: Sysfs = field(default_factory=Sysfs)

    @property
    def record(self) -> Record:
        """What its file says."""
        return self.owned.record

    @property
    def index(self) -> int:
        """The device's number."""
        assert self.record.index is not None
        return self.record.index

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/nbd{self.index}"

    @property
    def connected(self) -> bool:
        """Whether the device is there and ours; another program may have ended it."""
        return carries(self.sysfs.device(self.index), self.record)

    def users(self) -> list[str]:
        """Say who uses the device, see :meth:`Sysfs.users`."""
        return self.sysfs.users(self.index)

    def reconnect(self, control: Control | None = None) -> None:
        """Put new connections in the place of dead ones; harmless where none is dead.

        Args:
            control: of the calling thread, if it is another than the attachment's.

        Raises:
            InvalidInput: the export has another size now, or the device is not ours any more.
            BootstreamError: nobody answers there, as :func:`bootstream.nbd.client.connect`.
        """
        record = self.record
        with _dial(record.uri, record.connections) as (sockets, agreement):
            if agreement.size != record.size:
                raise InvalidInput(
                    f"the export has {agreement.size} bytes now, and had {record.size}",
                    operation="reconnect",
                    object=self.path,
                )
            descriptors = [sock.fileno() for sock in sockets]
            (control or self.control).reconfigure(self.index, descriptors, record.identifier)

    def detach(self, *, force: bool = False, timeout: float = GONE_SECONDS) -> None:
        """End the device and wait until it is gone; nothing where it went by itself.

        Raises:
            Conflict: it is in use, and not ``force``; nothing was changed.
            Unavailable: it is not gone in time.
        """
        if self.connected:
            end(self.control, self.sysfs, self.index, self.record, force=force, timeout=timeout)
        self.owned.close(remove=True)
        self.control.close()

    def abandon(self) -> None:
        """Leave the device as it is; its record stays, for :func:`resume` or :func:`clean`."""
        self.owned.close(remove=False)
        self.control.close()


def attach(
    uri: str,
    records: Records,
    options: Options | None = None,
    *,
    label: str | None = None,
    sysfs: Sysfs | None = None,
) -> Attachment:
    """Attach an export; return once the device is there.

    Args:
        uri: see ``nbd/uri.py``.
        records: where to leave word of it.
        options: how; None takes the defaults.
        label: what to call it in listings; None takes the URI.
        sysfs: where the kernel's files are.

    Raises:
        NotFound: the kernel has no NBD driver; or as :func:`bootstream.nbd.client.connect`.
        PermissionDenied: only root may; or as ``connect``.
        AlreadyExists: the device that was asked for is taken.
        InvalidInput: options or the export's size do not suit the kernel.
        Unavailable, Corrupt: as ``connect``.
    """
    options = options or Options()
    sysfs = sysfs or Sysfs()
    if not 1 <= options.connections <= MAX_CONNECTIONS:
        raise InvalidInput(
            f"from 1 to {MAX_CONNECTIONS} connections can be used, not {options.connections}",
            operation="attach",
            object=uri,
        )
    parse_uri(uri)
    with ExitStack() as undo:
        control = undo.enter_context(Control())
        owned = records.create(uri=uri, label=label or uri, thread=threading.get_native_id())
        undo.callback(_undo, control, sysfs, owned)
        with _dial(uri, options.connections) as (sockets, agreement):
            flags = int(agreement.flags) | (ExportFlag.READ_ONLY if options.read_only else 0)
            wanted = Connect(
                sockets=[sock.fileno() for sock in sockets],
                size=agreement.size,
                block_size=_block_size(uri, agreement, options.block_size),
                flags=int(flags),
                timeout=options.timeout,
                dead_timeout=options.dead_timeout,
                index=options.index,
                identifier=owned.record.identifier,
            )
            record = replace(
                owned.record,
                index=control.connect(wanted),
                size=agreement.size,
                connections=len(sockets),
                read_only=bool(flags & ExportFlag.READ_ONLY),
            )
        owned.update(record)
        undo.pop_all()
    return Attachment(owned, options, control, sysfs)


def resume(
    index: int, records: Records, *, uri: str | None = None, sysfs: Sysfs | None = None
) -> Attachment:
    """Take over a device whose owner died, and connect it anew.

    Args:
        index: of the device.
        records: where its owner left word of it.
        uri: where its export is now; None means where it was.
        sysfs: where the kernel's files are.

    Raises:
        NotFound: the device is not attached, or nothing is known of it here.
        Conflict: its owner lives.
        BootstreamError: as :meth:`Attachment.reconnect`; the device is left as it was.
    """
    sysfs = sysfs or Sysfs()
    name = f"/dev/nbd{index}"
    found = records.find(sysfs.device(index))
    if found is None or found.record is None:
        raise NotFound(
            "no device that was left behind has this number",
            operation="resume",
            object=name,
            remedy="'bootstream attach --list' shows what there is",
        )
    owned = None if found.owned else records.adopt(found.path)
    if owned is None:
        raise Conflict(
            f"process {found.record.pid} attached it, and lives", operation="resume", object=name
        )
    with ExitStack() as undo:
        undo.callback(owned.close, remove=False)
        control = undo.enter_context(Control())
        # The thread is what connected the device, which older kernels know it by.
        record = taken_over(owned.record, thread=owned.record.thread)
        attachment = Attachment(owned, Options(connections=record.connections), control, sysfs)
        owned.update(replace(record, uri=uri or record.uri, index=index))
        attachment.reconnect()
        undo.pop_all()
    return attachment


def _undo(control: Control, sysfs: Sysfs, owned: Owned) -> None:
    """After a failed attempt: no device may stay, nor its record."""
    device = find_ours(sysfs, owned.record)
    if device is not None:
        with suppress(BootstreamError):
            control.disconnect(device.index)
    owned.close(remove=device is None or not carries(sysfs.device(device.index), owned.record))


@contextmanager
def _dial(uri: str, connections: int) -> Iterator[tuple[Sequence[socket.socket], Agreement]]:
    """Yield connections in transmission, closed afterwards: the kernel keeps its own."""
    address = parse_uri(uri)
    name = str(address)
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        agreed: Agreement | None = None
        while len(sockets) < connections:
            with mapped("connect to", name):
                stream = Stream(address.connect(_DIAL_SECONDS))
                try:
                    agreement = negotiate(stream, address.name, name=name, structured=False)
                except BaseException:
                    stream.close()
                    raise
                sockets.append(stack.enter_context(stream.detach()))
            if agreed is not None and (agreed.size, agreed.flags) != (
                agreement.size,
                agreement.flags,
            ):
                raise Unavailable(
                    "the export changed between two connections", operation="attach", object=name
                )
            agreed = agreement
            if not agreement.flags & ExportFlag.CAN_MULTI_CONN:
                break
        assert agreed is not None
        yield sockets, agreed


def _block_size(uri: str, agreement: Agreement, wanted: int | None) -> int:
    """Return the logical block size: the kernel takes powers of two from 512 to a page."""
    size = agreement.size
    least = max(_SECTOR, agreement.minimum_block)
    block = least if wanted is None else wanted
    if not size or block & (block - 1) or not least <= block <= _PAGE or size % block:
        raise InvalidInput(
            f"an export of {size} bytes cannot be a device of {block} byte blocks: the kernel "
            f"takes powers of two from {least} to {_PAGE} that divide the size",
            operation="attach",
            object=uri,
            remedy="make its size a multiple of 4096",
        )
    return block
