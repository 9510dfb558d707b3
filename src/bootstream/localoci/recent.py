"""Objects and files that were asked for lately, so that the next reader need not ask for them.

The database belongs to one server, so its own writers are the only ones that can make a row
obsolete. A writer takes what it touches out before it commits, and nothing is put in until it
has: ``writes`` is odd while there is one, and a reader keeps a row only if ``writes`` was even
before its query and is the same after it. Hence an object that a reader has seen replaced is
never seen as it was by a later one.

Files never change; an open one may be read by many, at offsets of their own.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from bootstream.localoci.memo import Memo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bootstream.localoci.store import StoredObject

    Key = tuple[int, str]  # a bucket's id, and an object's name

OBJECTS = 4096
FILES = 128


class RecentObjects:
    """Current versions of objects. Thread safe; of writers there is one at a time."""

    def __init__(self) -> None:
        self._items: Memo[Key, StoredObject] = Memo(OBJECTS)
        self._lock = threading.Lock()
        self.writes = 0
        self._new: list[tuple[int, StoredObject]] = []  # of the writer

    def get(self, bucket: int, name: str) -> StoredObject | None:
        """An object as the database has it, or None: ask the database."""
        return self._items.get((bucket, name))

    def keep(self, bucket: int, item: StoredObject, writes: int) -> None:
        """Keep what a query gave; ``writes`` is what it was before the query."""
        if not writes & 1:
            with self._lock:
                if writes == self.writes:
                    self._items.keep((bucket, item.name), item)

    def becomes(self, bucket: int, item: StoredObject) -> None:
        """A writer says what an object is once it has committed."""
        self._new.append((bucket, item))

    def begin(self, touched: Iterable[Key] | None) -> None:
        """A writer begins: it touches these objects, or None, any."""
        with self._lock:
            self.writes += 1
            self._new.clear()
            if touched is None:
                self._items.clear()
            else:
                for key in touched:
                    self._items.drop(key)

    def end(self, *, kept: bool) -> None:
        """The writer has committed, or given up."""
        with self._lock:
            self.writes += 1
            for bucket, item in self._new if kept else ():
                self._items.keep((bucket, item.name), item)


class OpenFile:
    """An open file; closed when nobody refers to it, or to its ``release``, any more."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def release(self) -> None:
        """Say that one reader is done; others may not be."""

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class RecentFiles:
    """Files that are open. Thread safe."""

    def __init__(self) -> None:
        self._files: Memo[str, OpenFile] = Memo(FILES)
        self._gone: Memo[str, bool] = Memo(FILES)

    def open(self, name: str, path: str) -> OpenFile:
        """The file of a name.

        Raises:
            FileNotFoundError: it is gone.
        """
        file = self._files.get(name)
        if file is None:
            file = OpenFile(path)
            self._files.keep(name, file)
            if self._gone.get(name):  # removed while it was opened: its space is wanted back
                self._files.drop(name)
        return file

    def drop(self, name: str) -> None:
        """Let go of a file before it is removed. Idempotent."""
        self._gone.keep(name, value=True)
        self._files.drop(name)

    def clear(self) -> None:
        """Let go of all."""
        self._files.clear()
