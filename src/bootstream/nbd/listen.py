"""Listening sockets: who may connect, and what happens to what is there already.

A unix socket has the mode 0600 from its creation on: Linux takes the mode of a socket's
name from the socket itself, minus the umask, so ``fchmod`` before ``bind`` needs neither a
change of the process's umask nor a folder to hide in.

A server that was killed leaves its name behind. Who finds one that nobody listens on may
replace it, but looking and replacing are two steps: they are done holding a lock (``flock``)
on the folder, which leaves no file behind, from the look until the new socket listens. So
no other server finds it between ``bind`` and ``listen`` and takes it for a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)

_OPERATION = "listen on"
_BACKLOG = 128
MAX_PATH = 107
"""Bytes of a unix socket's path: ``sun_path`` holds 108, the last of which is a zero."""
_LOCK_WAIT = 10.0
_TAKEN = "another server listens there"


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A listening unix socket and the identity of the name that it made."""

    socket: socket.socket
    path: str
    identity: tuple[int, int]

    def remove(self) -> None:
        """Remove the name, if it is still the one that was made; idempotent."""
        # An error means that the folder went, or is somebody else's now: so is the name.
        with suppress(OSError, BootstreamError), _locked(os.path.dirname(self.path)):
            if _identity(self.path) == self.identity:
                Path(self.path).unlink()


def listen_unix(path: str | os.PathLike[str]) -> UnixListener:
    """Listen on a unix socket at ``path``, which only its owner may connect to.

    Raises:
        InvalidInput: no path for a socket: too long, empty, or below what is no folder.
        NotFound: the folder is missing.
        AlreadyExists: a server listens there, or it is no socket.
        PermissionDenied: the folder may not be written to.
    """
    given = os.fspath(path)
    absolute = str(Path(given).absolute()) if given else ""
    if not absolute or "\0" in absolute:
        raise InvalidInput("no path for a socket", operation=_OPERATION, object=repr(given))
    if len(os.fsencode(absolute)) > MAX_PATH:
        raise InvalidInput(
            f"the path is longer than the {MAX_PATH} bytes that a unix socket may have",
            operation=_OPERATION,
            object=absolute,
            remedy="use a shorter path, e.g. below /run or /tmp",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)
        with _locked(os.path.dirname(absolute)):
            _make_room(absolute)
            sock.bind(absolute)
            sock.listen(_BACKLOG)
            identity = _identity(absolute)
        if identity is None:
            raise Unavailable("it was removed at once", operation=_OPERATION, object=absolute)
    except OSError as error:
        sock.close()
        raise _mapped(error, absolute) from error
    except BootstreamError:
        sock.close()
        raise
    return UnixListener(sock, absolute, identity)


def listen_tcp(host: str, port: int) -> socket.socket:
    """Listen on a loopback address; port 0 takes a free one.

    Raises:
        InvalidInput: not a loopback address, or no port.
        AlreadyExists: another server listens there.
        PermissionDenied: the port is reserved.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not 0 <= port <= 65535:
        raise InvalidInput("there is no such port", operation=_OPERATION, object=where)
    address = _loopback(host, where)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _mapped(error, where) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _mapped(error, where) from error
    return sock


def _loopback(host: str, where: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address of ``host``, which must be this host to itself."""
    text = "127.0.0.1" if host.lower() == "localhost" else host
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise InvalidInput(
            "plain TCP is for loopback addresses only; beyond them NBD needs TLS",
            operation=_OPERATION,
            object=where,
            remedy="use 127.0.0.1, [::1] or a unix socket, and a tunnel to reach it from afar",
        )
    return address


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the lock of a folder; everyone who looks for dead sockets there waits."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        "its folder stays locked by another process",
                        operation=_OPERATION,
                        object=folder,
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _make_room(path: str) -> None:
    """Remove a socket that nobody listens on; raise where there is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AlreadyExists("it exists and is no socket", operation=_OPERATION, object=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except BlockingIOError:
            pass  # it listens, and its queue is full
    raise AlreadyExists(
        _TAKEN, operation=_OPERATION, object=path, remedy="stop that server, or use another path"
    )


def _mapped(error: OSError, where: str) -> BootstreamError:
    """Return the package's error for one of binding and listening."""
    text = error.strerror or str(error)
    match error.errno:
        case errno.ENOENT:
            return NotFound("the folder does not exist", operation=_OPERATION, object=where)
        case errno.EADDRINUSE:
            return AlreadyExists(_TAKEN, operation=_OPERATION, object=where)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied(text, operation=_OPERATION, object=where)
        case errno.ENOTDIR | errno.ELOOP | errno.EINVAL | errno.ENAMETOOLONG:
            return InvalidInput(text, operation=_OPERATION, object=where)
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return InvalidInput(
                "this host does not have that address", operation=_OPERATION, object=where
            )
        case _:
            return Unavailable(text, operation=_OPERATION, object=where, transient=False)
