"""What is said to the kernel's NBD driver, and what it answers; no sockets.

Sources: Linux, ``include/uapi/linux/nbd-netlink.h`` and ``nbd.h`` for the numbers,
``drivers/block/nbd.c`` for what they do; ``Documentation/networking/generic_netlink.rst``
and ``genetlink.h`` for the controller, which tells a family's number by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from bootstream.nbd.kernel import netlink
from bootstream.nbd.kernel.netlink import Answer, NetlinkError

FAMILY = "nbd"
NOTICES = "nbd_mc_group"
"""The multicast group on which the driver tells of connections that died."""
CONTROLLER = 0x10
"""GENL_ID_CTRL: the one family whose number is fixed."""

_GET_FAMILY = 3
_FAMILY_ID, _FAMILY_NAME, _GROUPS = 1, 2, 7
_GROUP_NAME, _GROUP_ID = 1, 2


class Command(IntEnum):
    """Requests and notices: NBD_CMD_*."""

    CONNECT = 1
    DISCONNECT = 2
    RECONFIGURE = 3
    LINK_DEAD = 4
    STATUS = 5


class Attribute(IntEnum):
    """Their attributes: NBD_ATTR_*."""

    INDEX = 1
    SIZE_BYTES = 2
    BLOCK_SIZE_BYTES = 3
    TIMEOUT = 4
    SERVER_FLAGS = 5
    CLIENT_FLAGS = 6
    SOCKETS = 7
    DEAD_CONN_TIMEOUT = 8
    DEVICE_LIST = 9
    BACKEND_IDENTIFIER = 10


class ClientFlag(IntFlag):
    """What becomes of a device: NBD_CFLAG_*."""

    DESTROY_ON_DISCONNECT = 1
    DISCONNECT_ON_CLOSE = 2


_ITEM = 1
"""NBD_SOCK_ITEM, NBD_DEVICE_ITEM."""
_SOCKET_DESCRIPTOR = 1
_DEVICE_INDEX, _DEVICE_CONNECTED = 1, 2


@dataclass(frozen=True, slots=True)
class Family:
    """Where the driver is found: its number, and its multicast groups' by name."""

    number: int
    groups: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Connect:
    """A device to make.

    Attributes:
        sockets: descriptors of connections in transmission; the kernel keeps its own.
        size, block_size: bytes.
        flags: what the server said that the export can do.
        timeout: seconds until a request without a reply is sent again on another
            connection; 0 waits forever.
        dead_timeout: seconds that requests wait for a new connection once all are dead; 0
            fails them at once.
        index: the number of the device; None takes a free one.
        identifier: names who is behind the device; only who says it may reconfigure it.
    """

    sockets: Sequence[int]
    size: int
    block_size: int
    flags: int
    timeout: int
    dead_timeout: int
    index: int | None = None
    identifier: str = ""


def get_family(name: str) -> bytes:
    """Return the question to the controller which number a family has."""
    return netlink.pack_generic(_GET_FAMILY, [netlink.string(_FAMILY_NAME, name)])


def parse_family(answer: Answer) -> Family:
    """Return what the controller says of a family.

    Raises:
        NetlinkError: it does not say the number, or not in its form.
    """
    number: int | None = None
    groups: dict[str, int] = {}
    for kind, value in answer.attributes:
        if kind == _FAMILY_ID:
            number = netlink.number(value)
        elif kind == _GROUPS:
            for group in netlink.parse_attributes(value):
                fields = dict(netlink.parse_attributes(group.value))
                if _GROUP_NAME in fields and _GROUP_ID in fields:
                    groups[netlink.text(fields[_GROUP_NAME])] = netlink.number(fields[_GROUP_ID])
    if number is None:
        raise NetlinkError("the controller does not say the family's number")
    return Family(number, groups)


def connect(wanted: Connect) -> bytes:
    """Return the request for a device; the answer is read by :func:`parse_connected`."""
    parts = [] if wanted.index is None else [netlink.u32(Attribute.INDEX, wanted.index)]
    parts += [
        netlink.u64(Attribute.SIZE_BYTES, wanted.size),
        netlink.u64(Attribute.BLOCK_SIZE_BYTES, wanted.block_size),
        netlink.u64(Attribute.SERVER_FLAGS, wanted.flags),
        netlink.u64(Attribute.TIMEOUT, wanted.timeout),
        netlink.u64(Attribute.DEAD_CONN_TIMEOUT, wanted.dead_timeout),
        _sockets(wanted.sockets),
    ]
    if wanted.identifier:
        parts.append(netlink.string(Attribute.BACKEND_IDENTIFIER, wanted.identifier))
    return netlink.pack_generic(Command.CONNECT, parts)


def reconfigure(index: int, sockets: Sequence[int], identifier: str) -> bytes:
    """Return the request to put connections in the place of dead ones.

    Sockets that find no dead one are ignored by the kernel.
    """
    parts = [netlink.u32(Attribute.INDEX, index), _sockets(sockets)]
    if identifier:
        parts.append(netlink.string(Attribute.BACKEND_IDENTIFIER, identifier))
    return netlink.pack_generic(Command.RECONFIGURE, parts)


def disconnect(index: int) -> bytes:
    """Return the request to end a device; the kernel asks for no identifier here."""
    return netlink.pack_generic(Command.DISCONNECT, [netlink.u32(Attribute.INDEX, index)])


def status(index: int | None = None) -> bytes:
    """Return the question which devices there are, or whether one is connected."""
    parts = [] if index is None else [netlink.u32(Attribute.INDEX, index)]
    return netlink.pack_generic(Command.STATUS, parts)


def parse_connected(answer: Answer) -> int:
    """Return the index in an answer to CONNECT, or in a notice LINK_DEAD.

    Raises:
        NetlinkError: there is none in it.
    """
    for kind, value in answer.attributes:
        if kind == Attribute.INDEX:
            return netlink.number(value)
    raise NetlinkError("the driver does not say which device it is")


def parse_status(answer: Answer) -> dict[int, bool]:
    """Return, by index, whether a device is connected.

    Raises:
        NetlinkError: the answer has another form.
    """
    devices: dict[int, bool] = {}
    for kind, value in answer.attributes:
        if kind != Attribute.DEVICE_LIST:
            continue
        for item in netlink.parse_attributes(value):
            fields = dict(netlink.parse_attributes(item.value))
            if _DEVICE_INDEX not in fields:
                raise NetlinkError("the driver lists a device without its number")
            connected = netlink.number(fields.get(_DEVICE_CONNECTED, b"\0"))
            devices[netlink.number(fields[_DEVICE_INDEX])] = bool(connected)
    return devices


def _sockets(descriptors: Sequence[int]) -> bytes:
    items = [
        netlink.nested(_ITEM, [netlink.u32(_SOCKET_DESCRIPTOR, descriptor)])
        for descriptor in descriptors
    ]
    return netlink.nested(Attribute.SOCKETS, items)
