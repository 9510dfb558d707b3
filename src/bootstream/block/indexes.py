"""Indexes on this host's disk, so that a build that was served before is ready at once.

An index is named by its sha256, which the build's manifest says, and is hashed whenever it is
loaded: a file here is the index or it is nothing, and nobody has to trust the folder. What
cannot be kept or read here comes from the store, and nobody is told.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

from bootstream.chunks.index import Index
from bootstream.chunks.names import index_path
from bootstream.chunks.reader import load_index
from bootstream.errors import BootstreamError
from bootstream.storage.protocol import StorageProvider

_log = logging.getLogger(__name__)

_SUFFIX = ".index"
_NEW = ".new"
_STALE_SECONDS = 60.0


class IndexCache:
    """A folder of indexes. Safe to use from several threads and processes.

    Args:
        folder: made, private, when the first one is kept.
        limit: bytes that all may take together; an index of more than half of it is not kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def load(
        self, storage: StorageProvider, build_id: str, artifact: str, *, sha256: str, size: int
    ) -> Index:
        """Return the index of an artifact: from here, else from the store, and then keep it.

        Args and errors are those of ``bootstream.chunks.reader.load_index``.
        """
        path = self._folder / f"{sha256}{_SUFFIX}"
        index = self._find(path, sha256, size, index_path(build_id, artifact))
        if index is not None:
            return index

        def keep(data: memoryview) -> None:
            try:
                self._keep(path, data)
            except OSError as error:
                _log.debug("an index is not kept: %s", error)

        return load_index(storage, build_id, artifact, sha256=sha256, size=size, keep=keep)

    def _find(self, path: Path, sha256: str, size: int, name: str) -> Index | None:
        try:
            data = path.read_bytes()
            if len(data) == size:
                index = Index.parse(data, name=name)
                if index.digest == sha256:
                    os.utime(path)
                    return index
            path.unlink()
        except FileNotFoundError:
            pass
        except (OSError, BootstreamError) as error:
            _log.debug("an index that was kept cannot be used: %s", error)
        return None

    def _keep(self, path: Path, data: memoryview) -> None:
        """Put an index into the folder, and take out those used longest ago. Raises OSError."""
        if len(data) > self._limit // 2:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(suffix=_NEW, dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        self._trim(path)

    def _trim(self, latest: Path) -> None:
        used = 0
        found = sorted(
            ((entry.stat(), Path(entry.path)) for entry in os.scandir(self._folder)),
            key=lambda one: one[0].st_mtime_ns,
            reverse=True,
        )
        for status, path in found:
            if path.suffix == _NEW:  # a killed process left it, unless it is quite young
                if status.st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink(missing_ok=True)
                continue
            used += status.st_size
            if used > self._limit and path != latest:
                path.unlink(missing_ok=True)
