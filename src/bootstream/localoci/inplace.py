"""Parts of an upload that are written where the object will have them.

Where the parts of an upload are put together is known only when it is committed. Nearly always,
though, all parts but the last are of one size, so the first that comes tells where each belongs:
part N at (N - 1) times that size of one file, its place. Where the committed parts fill that file
from its start without a gap, the file is the object and nothing is copied. Parts that do not fit,
or come a second time, have files of their own, and are copied as ever.

A place is taken by one writer at a time, and for good once its part is in the database: so a
writer that is late can only write behind the object's end, where nobody reads.

A part's file is named ``FILE@OFFSET`` where it is a place.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bootstream.localoci.database import Database

_LEAST = 64 << 10  # bytes of a part for which a place is worth the while


def split(name: str) -> tuple[str, int]:
    """The file of a part, and where in it the part is."""
    file, _, offset = name.partition("@")
    return file, int(offset or 0)


def whole(parts: Sequence[tuple[str, int]]) -> str | None:
    """The file that parts, by name and size, fill in order; None: they do not."""
    first, position = split(parts[0][0])[0], 0
    for name, size in parts:
        if name != f"{first}@{position}":
            return None
        position += size
    return first


@dataclass(slots=True)
class _Upload:
    file: str
    size: int  # of its parts
    taken: set[int] = field(default_factory=set)


class Places:
    """The places of all uploads. Thread safe.

    They are forgotten when the server ends; parts that are in the database stay good.
    """

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit  # bytes of a file
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def take(self, upload: str, number: int, size: int | None) -> str | None:
        """A place for a part, which nobody else gets; None: it needs a file of its own."""
        if not size:
            return None
        with self._lock:
            known = self._uploads.get(upload)
            if known is None:
                if size < _LEAST:
                    return None
                try:
                    known = _Upload(self._make(), size)
                except OSError:  # whoever makes the part's own file says why
                    return None
                self._uploads[upload] = known
            offset = (number - 1) * known.size
            if size > known.size or number in known.taken or offset + size > self._limit:
                return None
            known.taken.add(number)
            return f"{known.file}@{offset}"

    def _make(self) -> str:
        name = self._database.new_file()
        os.close(os.open(self._database.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return name

    def give_back(self, upload: str, number: int) -> None:
        """The part of a place did not come to be."""
        with self._lock:
            known = self._uploads.get(upload)
            if known is None:
                return
            known.taken.discard(number)
            if known.taken:
                return
            del self._uploads[upload]  # perhaps the upload ended, and nobody would ask again
        self._database.drop(known.file)

    def end(self, upload: str, parts: Iterable[str]) -> set[str]:
        """The upload has ended; the files of its parts."""
        with self._lock:
            known = self._uploads.pop(upload, None)
        files = {split(name)[0] for name in parts}
        return files if known is None else files | {known.file}
