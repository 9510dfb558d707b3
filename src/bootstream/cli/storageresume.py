"""Where ``storage cp`` writes down its uploads, so that a later run can go on with them.

A small file for each upload that is under way, below the cache's folder: if it is lost, the
upload is sent anew, and collecting uploads removes what was left. It is JSON::

    {"digest": SHA256 of the source, "size": bytes, "token": what the store calls the upload}

A run holds a lock on its file, which the kernel takes away with the process however that
ends. So of two runs that upload to one place at a time only the first writes anything down.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

_LIMIT = 64 << 10


class UploadRecord:
    """The checkpoint of one upload to one place; a context manager. See ``storage.resume``.

    Nothing is written, or locked, before the store says that it begins an upload of parts.
    Trouble with the file is no trouble of the upload: it then cannot be gone on with.

    Args:
        folder: where the records are.
        place: the upload's destination, as a name.
        digest: SHA256 of all that is uploaded.
        size: its bytes.
        resume: go on with what an earlier run left, and leave what this one leaves.

    Attributes:
        changed: whether an earlier run was uploading something else.
    """

    def __init__(self, folder: Path, place: str, *, digest: str, size: int, resume: bool) -> None:
        self._path = folder / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
        self._content = {"digest": digest, "size": size}
        self._resume = resume
        self._descriptor: int | None = None
        self._looked = False
        self._token: str | None = None
        self._stale: str | None = None
        self._lock = threading.Lock()
        self._there = 0
        self.changed = False

    @property
    def keep(self) -> bool:
        """Whether an upload that fails stays."""
        return self._resume and self._descriptor is not None

    @property
    def there(self) -> int:
        """How many bytes were there already."""
        return self._there

    def recorded(self) -> str | None:
        """Return the token of the upload to go on with."""
        self._look()
        with self._lock:
            self._there = 0  # a new attempt, or the first one
        return self._token

    def outdated(self) -> str | None:
        """Return, once, the token of an upload that is no longer wanted."""
        self._look()
        stale, self._stale = self._stale, None
        return stale

    def record(self, token: str) -> None:
        """Write an upload down."""
        self._look()
        self._token = token
        if self._descriptor is not None:
            data = json.dumps(self._content | {"token": token}).encode()
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, data, 0)

    def forget(self) -> None:
        """Take the file away."""
        self._token = None
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)

    def found(self, size: int) -> None:
        """Count a part that was there."""
        with self._lock:
            self._there += size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                if self._token is None:  # while the lock is held
                    self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _look(self) -> None:
        """Open and lock the file, and read what an earlier run left, once."""
        if self._looked:
            return
        self._looked = True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
        except OSError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = _parse(os.pread(descriptor, _LIMIT, 0))
        except OSError:
            os.close(descriptor)
            return
        self._descriptor = descriptor
        token = left.get("token")
        if not isinstance(token, str) or not token:
            return
        same = {name: left.get(name) for name in self._content} == self._content
        self.changed = self._resume and not same
        if self._resume and same:
            self._token = token
        else:
            self._stale = token


def _parse(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
