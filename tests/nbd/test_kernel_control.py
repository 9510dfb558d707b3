"""The netlink socket: against this host's kernel, and against one that answers as told."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.nbd.kernel import family, netlink
from bootstream.nbd.kernel.control import Control, open_netlink
from bootstream.nbd.kernel.family import Attribute, Command, Connect
from bootstream.nbd.kernel.netlink import Answer

NUMBER = 0x1C
Reply = Callable[[Answer], tuple[list[bytes], int]]


def wanted(index: int | None = None) -> Connect:
    return Connect([0], 1 << 20, 4096, 1, 30, 300, index=index, identifier="bootstream-1")


@contextmanager
def kernel(reply: Reply) -> Iterator[Control]:
    """A Control whose other end knows the family, and answers the rest by ``reply``."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def answer() -> None:
        while datagram := theirs.recv(1 << 16):
            (message,) = netlink.parse(datagram)
            request = netlink.parse_generic(message.payload)
            if message.kind == family.CONTROLLER:
                payloads = [
                    netlink.pack_generic(1, [netlink.attribute(1, struct.pack("=H", NUMBER))])
                ]
                code = 0
            else:
                payloads, code = reply(request)
            for payload in payloads:
                # An answer to an earlier request, given up, comes first.
                theirs.send(netlink.pack(message.kind, 0, message.sequence + 77, payload))
                theirs.send(netlink.pack(message.kind, 0, message.sequence, payload))
            verdict = struct.pack("=i", -code) + datagram[:16]
            theirs.send(netlink.pack(netlink.ERROR, 0x100, message.sequence, verdict))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with Control(lambda: ours) as control:
            yield control
    finally:
        theirs.shutdown(socket.SHUT_RDWR)
        thread.join()
        theirs.close()


def test_this_kernel_answers() -> None:
    """The real controller tells of itself; without the driver the error says what to do."""
    with open_netlink() as sock:
        question = family.get_family("nlctrl")
        sock.send(netlink.pack(family.CONTROLLER, netlink.REQUEST, 1, question))
        (message,) = netlink.parse(sock.recv(1 << 16))
    found = family.parse_family(netlink.parse_generic(message.payload))
    assert found.number == family.CONTROLLER
    if Path("/sys/module/nbd").exists():
        with Control() as control:
            assert all(index >= 0 for index in control.status())
    else:
        with pytest.raises(NotFound) as caught:
            Control()
        assert "modprobe nbd" in (caught.value.remedy or "")


def test_connect_returns_the_index_that_the_kernel_chose() -> None:
    """The answer before the acknowledgement counts; one to another request does not."""

    def reply(request: Answer) -> tuple[list[bytes], int]:
        assert request.command == Command.CONNECT
        return [netlink.pack_generic(Command.CONNECT, [netlink.u32(Attribute.INDEX, 5)])], 0

    with kernel(reply) as control:
        assert control.connect(wanted()) == 5


def test_status_lists_devices() -> None:
    """Index to whether it is connected."""

    def reply(request: Answer) -> tuple[list[bytes], int]:
        items = [netlink.nested(1, [netlink.u32(1, 0), netlink.u8(2, 1)])]
        return [
            netlink.pack_generic(request.command, [netlink.nested(Attribute.DEVICE_LIST, items)])
        ], 0

    with kernel(reply) as control:
        assert control.status() == {0: True}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPERM, PermissionDenied),
        (errno.EBUSY, AlreadyExists),
        (errno.EINVAL, InvalidInput),
        (errno.ENODEV, NotFound),
        (errno.ENOMEM, Unavailable),
    ],
)
def test_refusals_are_the_packages_errors(code: int, kind: type[BootstreamError]) -> None:
    """Each errno is an error that says what a person can do, and names the device."""
    with kernel(lambda request: ([], code)) as control:
        with pytest.raises(kind, match="/dev/nbd3"):
            control.connect(wanted(3))
        with pytest.raises(kind, match="/dev/nbd3"):
            control.reconfigure(3, [0], "bootstream-1")
        with pytest.raises(kind, match="/dev/nbd3"):
            control.disconnect(3)


def test_an_answer_that_is_none() -> None:
    """A driver of another form is Unavailable, not an exception of ours."""
    reply: Reply = lambda request: ([b"\x01\x01\0\0\x03\0\0\0"], 0)  # noqa: E731 - one line
    with kernel(reply) as control, pytest.raises(Unavailable, match="does not fit"):
        control.connect(wanted())
