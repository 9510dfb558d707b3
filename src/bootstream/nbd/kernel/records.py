"""What is attached, and by whom: one locked file for each attachment.

A device outlives the process that attached it, so a process that is killed leaves one
behind. Its record says so: the file is there, and nobody holds its lock (``flock``, which
the kernel drops with the process, however it ends). The record is written and locked before
the device is made, with an identifier that nobody else has; the device carries it. So
whatever moment the process dies at, a device without an owner can be told from everybody
else's: by an identifier that is in a record whose lock is free. Devices without a record
here (of another container, of other programs) are nobody's business.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bootstream.errors import AlreadyExists, PermissionDenied, Unavailable
from bootstream.nbd.kernel.sysfs import Device

PREFIX = "bootstream-"
_NAME = re.compile(r"bootstream-[0-9a-f-]{36}\.json")
_MAX_RECORD = 1 << 16


@dataclass(frozen=True, slots=True)
class Record:
    """An attachment as its file has it.

    Attributes:
        identifier: what the device carries.
        uri: where the export is.
        label: what people call it: the template, or the URI.
        pid, thread: of who attached it.
        index: of the device; None before it is made.
        size: bytes.
        connections: how many.
        read_only: whether writes are refused.
    """

    identifier: str
    uri: str
    label: str
    pid: int
    thread: int
    index: int | None = None
    size: int = 0
    connections: int = 1
    read_only: bool = False


class Owned:
    """A record whose lock this process holds, until :meth:`close` or its end."""

    def __init__(self, path: Path, descriptor: int, record: Record) -> None:
        self.path = path
        self.record = record
        self._descriptor = descriptor

    def update(self, record: Record) -> None:
        """Write another record in the place of this one."""
        data = json.dumps(asdict(record)).encode()
        # In place, so that the lock stays on the file that has the name. One write of
        # less than a page: a reader sees the old or the new one, or nothing that parses.
        os.pwrite(self._descriptor, data.ljust(os.fstat(self._descriptor).st_size), 0)
        self.record = record

    def close(self, *, remove: bool) -> None:
        """Drop the lock; with ``remove``, the attachment is no more."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class Found:
    """A record as others see it; ``owned`` while its process lives."""

    path: Path
    record: Record | None
    owned: bool


class Records:
    """The records of this host.

    Args:
        folder: where they are; made, with mode 0700, when the first is written.

    Raises, every method that writes:
        PermissionDenied, Unavailable: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, *, uri: str, label: str, thread: int) -> Owned:
        """Write a record with an identifier of its own, and hold its lock."""
        with _mapped(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                identifier = f"{PREFIX}{uuid.uuid4()}"
                path = self.folder / f"{identifier}.json"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                    # Who cleans up may have come between the two and taken it for dead.
                    if os.fstat(descriptor).st_nlink:
                        record = Record(identifier, uri, label, os.getpid(), thread)
                        owned = Owned(path, descriptor, record)
                        owned.update(record)
                        return owned
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def all(self) -> list[Found]:
        """Return every record, in no order; none where there is no folder."""
        found = []
        for path in self._paths():
            with suppress(FileNotFoundError), _mapped(path), self._try(path) as descriptor:
                if descriptor is not None:
                    found.append(Found(path, _read(descriptor), owned=False))
                    continue
                reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    found.append(Found(path, _read(reader), owned=True))
                finally:
                    os.close(reader)
        return found

    def find(self, device: Device) -> Found | None:
        """Return the record of a device that is connected; None for others' devices."""
        for found in self.all():
            if found.record is not None and carries(device, found.record):
                return found
        return None

    def abandoned(self) -> Iterator[Owned]:
        """Yield the records that nobody holds, each locked; the caller closes each.

        Those that do not parse are of processes that died before they attached anything:
        they are removed here.
        """
        for path in self._paths():
            owned = self.adopt(path)
            if owned is not None:
                yield owned

    def adopt(self, path: Path) -> Owned | None:
        """Take over a record that nobody holds; None if somebody does, or it is gone."""
        with _mapped(path):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            record = None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    record = _read(descriptor)
                    if record is None:
                        path.unlink(missing_ok=True)
            except BlockingIOError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            if record is None:
                os.close(descriptor)
                return None
            return Owned(path, descriptor, record)

    def _paths(self) -> list[Path]:
        try:
            with _mapped(self.folder):
                return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))
        except FileNotFoundError:
            return []

    @contextmanager
    def _try(self, path: Path) -> Iterator[int | None]:
        """Yield a descriptor with the lock held, None where somebody holds it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)


def carries(device: Device, record: Record) -> bool:
    """Whether a device is the one of a record, and connected.

    By its identifier; on kernels that show none, by number and by who connected it.
    """
    if device.pid is None:
        return False
    if device.backend is not None:
        return device.backend == record.identifier
    return device.index == record.index and device.pid == record.thread


def taken_over(record: Record, *, thread: int) -> Record:
    """Return a record whose owner is this process."""
    return replace(record, pid=os.getpid(), thread=thread)


def _read(descriptor: int) -> Record | None:
    """Parse a record; None for what is none."""
    try:
        data = json.loads(os.pread(descriptor, _MAX_RECORD, 0))
        record = Record(**data)
    except (ValueError, TypeError):
        return None
    texts = (record.identifier, record.uri, record.label)
    numbers = (record.pid, record.thread, record.size, record.connections)
    fits = (
        all(isinstance(value, str) for value in texts)
        and all(type(value) is int for value in numbers)
        and (record.index is None or (type(record.index) is int and record.index >= 0))
        and record.identifier.startswith(PREFIX)
    )
    return record if fits else None


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Turn what the folder's file system says into the package's errors."""
    try:
        yield
    except FileNotFoundError:
        raise  # it went meanwhile: the caller knows what that means
    except PermissionError as error:
        raise PermissionDenied(
            error.strerror or "not allowed", operation="keep record in", object=str(path)
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise AlreadyExists(
            "something that is no folder is there", operation="keep record in", object=str(path)
        ) from error
    except OSError as error:
        raise Unavailable(
            error.strerror or str(error), operation="keep record in", object=str(path)
        ) from error
