"""An OCI image layout that images are copied into.

Format: OCI image specification 1.1, ``image-layout.md``. Blobs appear whole and checked, in
one step; ``index.json`` is replaced in one step, and last. Several processes may write to
one layout: they take turns at its index, by a lock on the folder that ends with its holder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied, StorageFull
from bootstream.images.files import read_error
from bootstream.images.layout import blob_path
from bootstream.images.manifest import (
    CONTAINERD_NAME,
    MAX_MANIFEST,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    parse_json,
)
from bootstream.images.passing import PassingBlob

_MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class LayoutTarget:
    """A folder; made when something is first put there. Safe for threads and processes.

    Args:
        folder: of the layout, existing or not; another's images in it stay.
        tag: the image's name in it; None: it has its digest only.
    """

    client = None

    def __init__(self, folder: Path | str, tag: str | None = None) -> None:
        self._folder = Path(folder)
        self._tag = tag

    @property
    def name(self) -> str:
        """See ``Target``."""
        return f"oci:{self._folder}" + (f":{self._tag}" if self._tag else "")

    def put_blob(self, blob: PassingBlob, neighbours: Sequence[str]) -> None:
        """See ``Target``."""
        del neighbours
        path = self._folder / blob_path(blob.descriptor)
        if self._has(path, blob.descriptor.size):
            blob.skip()
            return
        try:
            with self._mapped(path), self._new(path) as file:
                for piece in blob.pieces(0, blob.descriptor.size):
                    _write(file, piece)
                if not blob.descriptor.size:
                    blob.verify()
        finally:
            blob.close()

    def put_document(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target``."""
        path = self._folder / blob_path(descriptor)
        if not self._has(path, descriptor.size):
            with self._mapped(path), self._new(path) as file:
                _write(file, data)

    def put_root(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target``."""
        self.put_document(descriptor, data)
        with self._mapped(self._folder), self._locked():
            if not (self._folder / "oci-layout").exists():
                self._replace("oci-layout", _MARKER)
            index = self._index()
            others = self._others(index["manifests"], descriptor)
            index["manifests"] = [*others, self._entry(descriptor)]
            self._replace("index.json", json.dumps(index, separators=(",", ":")).encode())

    # -- the index ----------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        number = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def _index(self) -> dict[str, Any]:
        path = self._folder / "index.json"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_MANIFEST + 1)
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        document = parse_json(data, what=str(path)) if len(data) <= MAX_MANIFEST else None
        if not isinstance(document, dict) or not isinstance(
            document.setdefault("manifests", []), list
        ):
            raise InvalidInput(
                "its index.json is not an index",
                operation="write layout",
                object=str(self._folder),
                remedy="choose another folder",
            )
        return document

    def _others(self, entries: list[Any], descriptor: Descriptor) -> list[Any]:
        """Return the entries that stay: not the one of this name, nor this one without a name."""

        def stays(entry: Any) -> bool:
            annotations = entry.get("annotations") if isinstance(entry, dict) else None
            names = annotations if isinstance(annotations, dict) else {}
            name = names.get(REF_NAME) or names.get(CONTAINERD_NAME)
            if self._tag is not None and name == self._tag:
                return False
            return not (
                isinstance(entry, dict)
                and entry.get("digest") == descriptor.digest
                and not (name and name != self._tag)
            )

        return [entry for entry in entries if stays(entry)]

    def _entry(self, descriptor: Descriptor) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        }
        if self._tag is not None:
            entry["annotations"] = {REF_NAME: self._tag}
        return entry

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self._folder / f".{name}.{secrets.token_hex(6)}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    # -- blobs --------------------------------------------------------------------------------

    @staticmethod
    def _has(path: Path, size: int) -> bool:
        try:
            return path.stat().st_size == size
        except OSError:
            return False

    @contextmanager
    def _new(self, path: Path) -> Iterator[int]:
        """Yield a file that gets its name at the end, and vanishes on any failure."""
        path.parent.mkdir(parents=True, exist_ok=True)
        named: Path | None = None
        try:
            number = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
            named = path.parent / f".{path.name}.{secrets.token_hex(6)}"
            number = os.open(named, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            yield number
            os.fsync(number)
            if named is None:
                named = path.parent / f".{path.name}.{secrets.token_hex(6)}"
                # With a folder given, which an absolute path ignores, links are followed.
                os.link(f"/proc/self/fd/{number}", named, src_dir_fd=number)
            named.rename(path)
        finally:
            os.close(number)
            if named is not None:
                named.unlink(missing_ok=True)

    @contextmanager
    def _mapped(self, path: Path) -> Iterator[None]:
        """Map what the operating system says, once."""
        try:
            yield
        except OSError as error:
            raise self._error(error, path) from error

    def _error(self, error: OSError, path: Path) -> BootstreamError:
        what = error.strerror or str(error)
        if error.errno in _FULL:
            return StorageFull(
                what, operation="write layout", object=str(path), remedy="make room there"
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return PermissionDenied(what, operation="write layout", object=str(path))
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            return InvalidInput(
                what,
                operation="write layout",
                object=str(self._folder),
                remedy="name a folder, or where one can be made",
            )
        return read_error(error, str(path))


def _write(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
