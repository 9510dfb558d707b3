"""The netlink socket to the kernel's NBD driver: one request, one answer."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.nbd.kernel import family, netlink
from bootstream.nbd.kernel.family import Connect, Family
from bootstream.nbd.kernel.netlink import Answer, NetlinkError, Verdict

_DRIVER = "the kernel's NBD driver"
_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK = 1, 10, 11
_DATAGRAM = 1 << 20
"""Bytes of the largest answer: the status of some 40,000 devices."""
_SECONDS = 60.0
"""CONNECT and DISCONNECT wait inside the kernel for requests that are under way."""


def open_netlink() -> socket.socket:
    """Return a generic netlink socket. Raises Unavailable where the host has none."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC)
        sock.bind((0, 0))
    except OSError as error:
        raise Unavailable(
            f"the kernel gives no netlink socket: {error.strerror}",
            operation="talk to",
            object=_DRIVER,
            transient=False,
        ) from error
    for option in (_CAP_ACK, _EXT_ACK):
        sock.setsockopt(_SOL_NETLINK, option, 1)
    sock.settimeout(_SECONDS)
    return sock


class Control:
    """The driver's requests as methods. Not thread safe; a thread has its own.

    Args:
        connect: gives the socket; what stands in for the kernel in tests.

    Every method raises:
        PermissionDenied: this process may not administer devices.
        Unavailable: the kernel says something else went wrong.

    Raises:
        NotFound: the kernel has no NBD driver, or it is not loaded.
    """

    def __init__(self, connect: Callable[[], socket.socket] = open_netlink) -> None:
        self._socket = connect()
        self._sequence = 0
        try:
            self._family = self._find(family.FAMILY)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; devices stay."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select``."""
        return self._socket.fileno()

    def connect(self, wanted: Connect) -> int:
        """Make a device; return its index.

        Raises:
            AlreadyExists: that index is taken.
            InvalidInput: no such index, or values that the kernel refuses.
        """
        where = "a free device" if wanted.index is None else f"/dev/nbd{wanted.index}"
        answers = self._ask(family.connect(wanted), "attach", where)
        for answer in answers:
            if answer.command == family.Command.CONNECT:
                with _understood():
                    return family.parse_connected(answer)
        if wanted.index is not None:
            return wanted.index
        raise _strange("the driver does not say which device it took")

    def reconfigure(self, index: int, sockets: Sequence[int], identifier: str) -> None:
        """Put connections in the place of dead ones; those that are too many are ignored.

        Raises:
            InvalidInput: the device is not connected, or has another identifier.
        """
        self._ask(family.reconfigure(index, sockets, identifier), "reconnect", f"/dev/nbd{index}")

    def disconnect(self, index: int) -> None:
        """End a device; nothing where it is not connected.

        Raises:
            InvalidInput: there is no such device.
        """
        self._ask(family.disconnect(index), "detach", f"/dev/nbd{index}")

    def status(self, index: int | None = None) -> Mapping[int, bool]:
        """Return, by index, whether devices are connected: all that there are, or the one."""
        devices: dict[int, bool] = {}
        for answer in self._ask(family.status(index), "look at", "the kernel's NBD devices"):
            if answer.command == family.Command.STATUS:
                with _understood():
                    devices |= family.parse_status(answer)
        return devices

    def subscribe(self) -> None:
        """Ask for notices of dead connections; then use :meth:`notices` alone."""
        group = self._family.groups.get(family.NOTICES)
        if group is None:
            raise _strange("the driver tells nobody of dead connections")
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._socket.setblocking(False)

    def notices(self) -> set[int] | None:
        """Return the indexes of devices that lost a connection since the last call.

        None means that notices were lost, so that any device may be meant. Never waits.
        """
        found: set[int] = set()
        while True:
            try:
                datagram = self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise _mapped(error.errno or 0, str(error), "watch", "devices") from error
            with _understood():
                for message in netlink.parse(datagram):
                    if message.kind != self._family.number:
                        continue
                    answer = netlink.parse_generic(message.payload)
                    if answer.command == family.Command.LINK_DEAD:
                        found.add(family.parse_connected(answer))

    # -- one request ----------------------------------------------------------------------

    def _find(self, name: str) -> Family:
        try:
            answers = self._request(family.CONTROLLER, family.get_family(name), "find", _DRIVER)
        except NotFound:
            raise NotFound(
                "the kernel has no NBD driver, or it is not loaded",
                operation="find",
                object=_DRIVER,
                remedy="load it with 'modprobe nbd', as root; where the kernel lacks it, use "
                "'bootstream mount' (FUSE) or 'bootstream serve' (QEMU reads its socket)",
            ) from None
        if not answers:
            raise _strange("the controller does not answer")
        with _understood():
            return family.parse_family(answers[0])

    def _ask(self, payload: bytes, operation: str, where: str) -> list[Answer]:
        return self._request(self._family.number, payload, operation, where)

    def _request(self, kind: int, payload: bytes, operation: str, where: str) -> list[Answer]:
        """Send one request, return the answers before its acknowledgement."""
        self._sequence += 1
        flags = netlink.REQUEST | netlink.ACK
        answers: list[Answer] = []
        try:
            self._socket.send(netlink.pack(kind, flags, self._sequence, payload))
            while True:
                for message in netlink.parse(self._socket.recv(_DATAGRAM)):
                    if message.sequence != self._sequence:
                        continue  # of a request that was given up
                    if message.kind == netlink.ERROR:
                        verdict = netlink.parse_error(message)
                        if verdict.errno:
                            raise _refused(verdict, operation, where)
                        return answers
                    if message.kind == kind:
                        answers.append(netlink.parse_generic(message.payload))
        except NetlinkError as error:
            raise _strange(str(error)) from error
        except TimeoutError as error:
            raise Unavailable(
                f"the kernel did not answer within {_SECONDS:.0f} seconds",
                operation=operation,
                object=where,
            ) from error
        except OSError as error:
            raise _mapped(error.errno or 0, str(error), operation, where) from error


@contextmanager
def _understood() -> Iterator[None]:
    """Turn an answer that has another form than the driver's into the package's error."""
    try:
        yield
    except NetlinkError as error:
        raise _strange(str(error)) from error


def _strange(what: str) -> Unavailable:
    return Unavailable(what, operation="talk to", object=_DRIVER, transient=False)


def _refused(verdict: Verdict, operation: str, where: str) -> BootstreamError:
    words = verdict.text or os.strerror(verdict.errno)
    return _mapped(verdict.errno, words, operation, where)


def _mapped(code: int, words: str, operation: str, where: str) -> BootstreamError:
    """Return the package's error for what the kernel answers."""
    match code:
        case errno.EPERM | errno.EACCES:
            return PermissionDenied(
                "only root may administer the kernel's NBD devices",
                operation=operation,
                object=where,
                remedy="run it as root (CAP_SYS_ADMIN), or use 'bootstream mount' or 'serve'",
            )
        case errno.EBUSY:
            return AlreadyExists(
                "it is in use",
                operation=operation,
                object=where,
                remedy="leave --device out to take a free one; "
                "'bootstream attach --list' shows what is attached",
            )
        case errno.ENOENT | errno.ENODEV:
            return NotFound("there is no such device", operation=operation, object=where)
        case errno.EINVAL | errno.ERANGE:
            return InvalidInput(
                f"the kernel refuses: {words}; its log (dmesg) says more",
                operation=operation,
                object=where,
            )
        case errno.EAGAIN:
            return Conflict("somebody else uses it just now", operation=operation, object=where)
        case _:
            return Unavailable(words, operation=operation, object=where, transient=False)
