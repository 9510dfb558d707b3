"""Local files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bootstream.cli.errors import from_os_error
from bootstream.errors import AlreadyExists, InvalidInput


@contextmanager
def appearing(target: Path, *, operation: str, replace: bool) -> Iterator[Path]:
    """Yield a path next to ``target`` to write to; it becomes ``target`` at the end.

    Whatever ends the block early, only what was there before is left.

    Raises:
        AlreadyExists: there is a file and ``replace`` was not asked for.
        InvalidInput: there is something that is no regular file.
    """
    try:
        if target.exists() and not target.is_file():
            raise InvalidInput("it is not a regular file", operation=operation, object=str(target))
        if target.exists() and not replace:
            raise _exists(target, operation)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    except OSError as error:
        raise from_os_error(error, operation=operation, object=str(target)) from error
    os.fchmod(descriptor, 0o666 & ~umask())  # as for any new file, not as for secrets
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        if replace:
            temporary.replace(target)
        else:
            os.link(temporary, target)
            temporary.unlink()
    except FileExistsError as error:
        raise _exists(target, operation) from error
    except OSError as error:
        raise from_os_error(error, operation=operation, object=str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _exists(target: Path, operation: str) -> AlreadyExists:
    return AlreadyExists(
        "there is a file already",
        operation=operation,
        object=str(target),
        remedy="name another file, or pass --force",
    )


def umask() -> int:
    """Return the process's mask of permissions for new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
