"""Small files that are whole or not there, and that a crash does not lose."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Corrupt,
    PermissionDenied,
    StorageFull,
    Unavailable,
)

_MOST_BYTES = 4 << 20


def state_error(error: OSError, path: Path) -> BootstreamError:
    """Map an operating system error met in the folder of the service's state."""
    kind: type[BootstreamError] = Unavailable
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = StorageFull
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        kind = PermissionDenied
    return kind(
        error.strerror or str(error),
        operation="keep the service's state",
        object=str(path),
        remedy="BOOTSTREAM_STATE_DIR names the folder; it must have room and be ours",
    )


def write_json(path: Path, document: Mapping[str, Any], *, create_only: bool = False) -> None:
    """Make ``path`` hold a document, at once and for good.

    Raises:
        AlreadyExists: ``create_only``, and it is there.
        StorageFull, PermissionDenied, Unavailable: it could not be written.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(document, separators=(",", ":")).encode())
                file.flush()
                os.fsync(file.fileno())
            if create_only:
                os.link(fresh, path)
                fresh.unlink()
            else:
                fresh.replace(path)
            sync_folder(path.parent)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise AlreadyExists("it is there", operation="write", object=str(path)) from error
    except OSError as error:
        raise state_error(error, path) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the document of ``path``, None if there is none. Raises Corrupt, Unavailable."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise state_error(error, path) from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt("it is not JSON", operation="read", object=str(path)) from error
    if not isinstance(document, dict):
        raise Corrupt("it is no JSON object", operation="read", object=str(path))
    return document


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int | None:
    """Lock a file, which is made if missing; return its descriptor, None if another holds it.

    The lock is the descriptor's, and of those that processes inherit from it: it ends with the
    last of them. Raises OSError.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def wait_for_lock(path: Path) -> None:
    """Return once nobody holds the lock of ``path``. Raises OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def lock_state(folder: Path, name: str) -> int:
    """Make a service's folder, 0700, and lock it for this process; return the descriptor.

    Raises:
        AlreadyExists: another process works in it.
        StorageFull, PermissionDenied, Unavailable: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = take_lock(folder / f"{name}.lock")
    except OSError as error:
        raise state_error(error, folder) from error
    if descriptor is None:
        raise AlreadyExists(
            f"another {name} works in this folder",
            operation="start service",
            object=str(folder),
            remedy="end it, or name another folder with BOOTSTREAM_STATE_DIR",
        )
    return descriptor
