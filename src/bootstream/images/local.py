"""Blobs in files of this host: a folder, or the members of a tar that is never unpacked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bootstream.errors import Corrupt, ImageNotFound
from bootstream.images.compression import RawReader
from bootstream.images.digest import new_hash, split_digest, verify
from bootstream.images.files import FileSlice, SharedFile, read_small
from bootstream.images.manifest import MAX_MANIFEST, Descriptor
from bootstream.images.workers import Task, run_all
from bootstream.progress import Progress

_PIECE = 1 << 20
_VERIFIERS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a file's bytes are."""

    file: SharedFile
    offset: int
    size: int


class FileTree(Protocol):
    """Regular files by relative, ``/``-separated name."""

    @property
    def name(self) -> str:
        """The path of the folder or archive, for errors."""
        ...

    def locate(self, name: str) -> Piece:
        """Return where a file is. Raises ImageNotFound if there is none of that name."""
        ...


class Folder:
    """The files below a folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """See ``FileTree``."""
        return self._path

    def locate(self, name: str) -> Piece:
        """See ``FileTree``."""
        file = SharedFile.open(os.path.join(self._path, name), what="a regular file")
        return Piece(file, 0, file.size)


def read_file(tree: FileTree, name: str, limit: int) -> bytes:
    """Return a small file's content; raises Corrupt where it is larger than ``limit``."""
    piece = tree.locate(name)
    return read_small(piece.file, piece.offset, piece.size, limit)


class LocalSource:
    """The ``BlobSource`` of files that are there already: nothing is copied.

    Args:
        tree: where the files are.
        path_of: the name of a blob's file.
    """

    def __init__(self, tree: FileTree, path_of: Callable[[Descriptor], str]) -> None:
        self._tree = tree
        self._path_of = path_of

    def read_document(self, descriptor: Descriptor) -> bytes:
        """See ``BlobSource``."""
        return self.read(descriptor, MAX_MANIFEST)

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """See ``BlobSource``."""
        piece = self._locate(descriptor)
        data = read_small(piece.file, piece.offset, piece.size, limit)
        return verify(data, descriptor.digest, what=self._name(descriptor))

    def open(self, descriptor: Descriptor) -> RawReader:
        """See ``BlobSource``."""
        piece = self._locate(descriptor)
        return FileSlice(piece.file, piece.offset, piece.size)

    def open_at(
        self, descriptor: Descriptor, offset: int, stop: threading.Event | None = None
    ) -> RawReader:
        """See ``StreamSource``."""
        del stop
        piece = self._locate(descriptor)
        return FileSlice(piece.file, piece.offset + offset, piece.size - offset)

    def fetch(self, descriptors: Sequence[Descriptor], progress: Progress) -> None:
        """Check every blob's digest where it lies."""

        def task(descriptor: Descriptor) -> Task:
            return lambda stop: self._verify(descriptor, progress, stop)

        tasks = [task(descriptor) for descriptor in descriptors]
        run_all(tasks, workers=_VERIFIERS, poll=lambda: progress.advance("pull", 0))

    def _verify(self, descriptor: Descriptor, progress: Progress, stop: threading.Event) -> None:
        digest = new_hash(descriptor.digest)
        reader = self.open(descriptor)
        while not stop.is_set():
            data = reader.read(_PIECE)
            if not data:
                break
            digest.update(data)
            progress.advance("pull", len(data))
        else:
            return
        found = f"{split_digest(descriptor.digest)[0]}:{digest.hexdigest()}"
        if found != descriptor.digest:
            raise Corrupt(
                f"its digest is {found}, not {descriptor.digest} as promised",
                operation="verify",
                object=self._name(descriptor),
                remedy=self.damaged(descriptor),
            )

    def damaged(self, descriptor: Descriptor) -> str:
        """See ``BlobSource``."""
        del descriptor
        return f"copy the image to {self._tree.name} again"

    def _locate(self, descriptor: Descriptor) -> Piece:
        try:
            piece = self._tree.locate(self._path_of(descriptor))
        except ImageNotFound as error:
            foreign = " (it is a non-distributable one)" if descriptor.nondistributable else ""
            raise ImageNotFound(
                f"the blob {descriptor.digest} of the image is missing{foreign}",
                operation="open",
                object=self._tree.name,
                remedy=self.damaged(descriptor),
            ) from error
        if piece.size != descriptor.size:
            raise Corrupt(
                f"it has {piece.size} bytes, not {descriptor.size} as promised",
                operation="open",
                object=self._name(descriptor),
                remedy=self.damaged(descriptor),
            )
        return piece

    def _name(self, descriptor: Descriptor) -> str:
        return f"{self._tree.name}, blob {descriptor.digest}"
