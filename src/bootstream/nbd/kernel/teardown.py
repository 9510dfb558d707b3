"""What is ours among the kernel's devices, and how it is ended: by its owner or after it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from bootstream.errors import Conflict, NotFound, Unavailable
from bootstream.nbd.kernel.control import Control
from bootstream.nbd.kernel.records import Record, Records, carries
from bootstream.nbd.kernel.sysfs import Device, Sysfs

GONE_SECONDS = 30.0
"""How long the kernel may take to let go of a device."""
_POLL_SECONDS = 0.02


def find_ours(sysfs: Sysfs, record: Record) -> Device | None:
    """Return the connected device that carries a record's identifier."""
    return next((device for device in sysfs.devices() if carries(device, record)), None)


def end(
    control: Control, sysfs: Sysfs, index: int, record: Record, *, force: bool, timeout: float
) -> None:
    """Disconnect a device that is ours, and wait until the kernel let go of it.

    Raises:
        Conflict: it is in use, and not ``force``; nothing was changed.
        Unavailable: it is not gone after ``timeout`` seconds.
    """
    name = f"/dev/nbd{index}"
    users = sysfs.users(index)
    if users and not force:
        raise Conflict(
            f"it is in use: {', '.join(users)}",
            operation="detach",
            object=name,
            remedy="unmount it and end what has it open, or lose their data with --force",
        )
    control.disconnect(index)
    limit = time.monotonic() + timeout
    while carries(sysfs.device(index), record):
        if time.monotonic() > limit:
            users = sysfs.users(index)
            who = f": {', '.join(users)}" if users else ""
            raise Unavailable(
                f"it is disconnected, but somebody still holds it{who}",
                operation="detach",
                object=name,
                transient=False,
            )
        time.sleep(_POLL_SECONDS)


def detach(
    index: int,
    records: Records,
    *,
    force: bool = False,
    timeout: float = GONE_SECONDS,
    sysfs: Sysfs | None = None,
) -> Record:
    """End a device, whoever of this program attached it; wait until it is gone.

    A process that watches it notices, and ends its part. Returns what was known of it.

    Raises:
        NotFound: it is not attached.
        Conflict: it is in use (and not ``force``), or was not attached by this program.
        PermissionDenied, Unavailable: as the kernel has it.
    """
    sysfs = sysfs or Sysfs()
    name = f"/dev/nbd{index}"
    with Control() as control:
        device = sysfs.device(index)
        if device.pid is None:
            raise NotFound(
                "it is not attached",
                operation="detach",
                object=name,
                remedy="'bootstream attach --list' shows what is",
            )
        found = records.find(device)
        if found is None or found.record is None:
            raise Conflict(
                "another program attached it",
                operation="detach",
                object=name,
                remedy=f"end it with that program, or with 'nbd-client -d {name}'",
            )
        end(control, sysfs, index, found.record, force=force, timeout=timeout)
    owned = records.adopt(found.path)
    if owned is not None:
        owned.close(remove=True)
    return found.record


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of one that was left: ``detached``, ``busy``, or ``gone`` by itself."""

    record: Record
    state: str
    users: tuple[str, ...] = ()


def clean(records: Records, *, force: bool = False, sysfs: Sysfs | None = None) -> list[Cleaned]:
    """End the devices that dead processes left, except those in use unless ``force``.

    Devices of live processes, of other programs and of other containers are never touched.

    Raises:
        NotFound, PermissionDenied, Unavailable: as the kernel has it.
    """
    sysfs = sysfs or Sysfs()
    done: list[Cleaned] = []
    for owned in records.abandoned():
        remove = False
        try:
            cleaned = _clean(owned.record, sysfs, force=force)
            remove = cleaned.state != "busy"
            done.append(cleaned)
        finally:
            owned.close(remove=remove)
    return done


def _clean(record: Record, sysfs: Sysfs, *, force: bool) -> Cleaned:
    device = find_ours(sysfs, record)
    if device is None:
        return Cleaned(record, "gone")
    record = replace(record, index=device.index)
    users = sysfs.users(device.index)
    if users and not force:
        return Cleaned(record, "busy", tuple(users))
    with Control() as control:
        end(control, sysfs, device.index, record, force=force, timeout=GONE_SECONDS)
    return Cleaned(record, "detached", tuple(users))
