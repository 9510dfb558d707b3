"""Objects as plain files below a folder: the object ``a/b`` is the file ``ROOT/a/b``.

Other tools may read the files, and put files there, whole, by renaming. What a file system
has and an object store has not, shows in four places:

- A component of a path has at most 255 bytes of UTF-8 (``InvalidInput``).
- A path cannot be an object and the folder of other objects at once: where ``a/b`` is,
  ``a`` cannot be written, and the other way round (``InvalidInput``).
- Metadata lies in the extended attribute ``user.bootstream.metadata`` of the file; where
  the file system has none, writing with metadata is refused (``InvalidInput``).
- Two names in the top folder are kept: ``lost+found`` and ``.bootstream-upload-…``.

Folders are made and removed with what is in them; a store whose objects are all deleted is
an empty folder. Symbolic links, devices and the like inside the store are no objects: they
are never followed, opened or listed. Files are made with mode 0666, folders with 0777,
less the umask; the store's own folder, where it was missing, with 0700.

Safe for any number of threads and processes of one host, on one local file system.
``bootstream.storage.staging`` says how a file becomes an object,
``bootstream.storage.folders`` how no path leaves the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from bootstream.errors import (
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    ObjectNotFound,
    Unavailable,
)
from bootstream.storage import staging
from bootstream.storage.folders import (
    Parts,
    folder,
    is_reserved,
    locked,
    open_regular,
    open_root,
    prune_downwards,
    prune_upwards,
    walk,
)
from bootstream.storage.localcopy import copy_descriptor, copy_file, write_all
from bootstream.storage.localmetadata import read_metadata, write_metadata
from bootstream.storage.metadata import validate_metadata
from bootstream.storage.objects import too_large
from bootstream.storage.oserrors import MOVE_STORE, storage_error
from bootstream.storage.paths import normalize_prefix, validate_copy, validate_path
from bootstream.storage.protocol import (
    Metadata,
    ObjectInfo,
    ObjectStat,
    ReadableBuffer,
    Sink,
    Source,
    StorageDetails,
    WritableBuffer,
)
from bootstream.storage.staging import Staged, etag_of

_PIECE = 1 << 20
_MAX_COMPONENT = 255
_LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class LocalStorageProvider:
    """A store in a folder, which is made by the first write.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | PathLike[str]) -> None:
        self.root = str(Path(root).absolute())
        self._unnamed = True  # tests turn it off, to stand for file systems without O_TMPFILE

    def __repr__(self) -> str:
        return f"LocalStorageProvider({self.root!r})"

    def open_object(self, path: str) -> LocalStorageObject:
        """Return a handle; touches nothing. Raises InvalidInput for a path that cannot be here."""
        return LocalStorageObject(self, path, _parts(validate_path(path)))

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix`` in UTF-8 byte order; see the protocol."""
        prefix = normalize_prefix(prefix)
        parts = _parts(prefix.removesuffix("/")) if prefix else ()
        return self._list(prefix, parts)

    def _list(self, prefix: str, parts: Parts) -> Iterator[ObjectInfo]:
        pages = walk(self.root, parts)
        while True:
            found: list[ObjectInfo] = []
            with self.mapped("list objects", prefix or self.root):
                page = next(pages, None)
                if page is None:
                    return
                here, names = page
                try:
                    with folder(self.root, here) as parent:
                        for name in names:
                            info = _info(parent, here, name)
                            if info is not None:
                                found.append(info)
                except FileNotFoundError:
                    continue
            yield from found

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object, by the kernel where it can (reflinks, too); see the protocol."""
        validate_copy(source, target)
        source_parts, target_parts = _parts(source), _parts(target)
        with self.mapped("copy object", source):
            descriptor, _ = open_regular(self.root, source_parts)
            try:
                metadata = read_metadata(descriptor)
                with self.mapped("copy object", target), self.stage() as staged:
                    copy_descriptor(descriptor, staged.descriptor, source)
                    write_metadata(staged.descriptor, metadata)
                    staged.publish(target_parts)
            finally:
                os.close(descriptor)

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``; return how many objects went."""
        prefix = normalize_prefix(prefix)
        if not prefix:
            raise InvalidInput("an empty prefix would delete the whole store", operation="delete")
        parts = _parts(prefix.removesuffix("/"))
        count = 0
        failed: dict[str, OSError] = {}
        with self.mapped("delete objects", prefix):
            for here, names in walk(self.root, parts):
                count += self._delete_page(here, names, failed)
            prune_downwards(self.root, parts)
            prune_upwards(self.root, parts)
        if failed:
            first = next(iter(failed.values()))
            error = storage_error(first, operation="delete objects", object=", ".join(failed))
            raise error from first
        return count

    def _delete_page(self, here: Parts, names: list[bytes], failed: dict[str, OSError]) -> int:
        count = 0
        try:
            with folder(self.root, ()) as top, folder(self.root, here) as parent:
                with locked(top, exclusive=False):
                    for name in names:
                        try:
                            os.unlink(name, dir_fd=parent)
                            count += 1
                        except (FileNotFoundError, IsADirectoryError):
                            continue
                        except OSError as error:
                            failed[b"/".join((*here, name)).decode()] = error
                os.fsync(parent)
        except FileNotFoundError:
            return count
        return count

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Files have no URLs that others could write to: raises InvalidInput."""
        del ttl
        raise InvalidInput("a local folder has no URLs", operation="sign URL", object=path)

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Remove the temporary files of dead writers, and empty folders; count the files."""
        with self.mapped("collect uploads", self.root):
            count = staging.collect(self.root, older_than.total_seconds(), dry_run=dry_run)
            if not dry_run:
                prune_downwards(self.root)
        return count

    def details(self) -> StorageDetails:
        """Describe the store. A folder that is missing is an empty store.

        Raises:
            BucketNotFound: something that is no folder is in its place.
            PermissionDenied: this user may not look into it.
        """
        with self.mapped("open store", self.root), suppress(FileNotFoundError):
            os.close(open_root(self.root))
        identity = "file://" + quote(os.fsencode(os.path.realpath(self.root)))
        return StorageDetails("Local", identity, datetime.now(UTC))

    def stage(self) -> Staged:
        """Begin a file that will become an object."""
        return Staged(self.root, unnamed=self._unnamed)

    @contextmanager
    def mapped(self, operation: str, object: str) -> Iterator[None]:
        """Within it, what goes wrong is said in the package's own errors, with the object."""
        try:
            yield
        except NotADirectoryError as error:
            raise BucketNotFound(
                "it is not a folder",
                operation="open store",
                object=self.root,
                remedy=MOVE_STORE,
            ) from error
        except OSError as error:
            raise storage_error(error, operation=operation, object=object) from error
        except BootstreamError as error:
            error.operation = error.operation or operation
            error.object = error.object or object
            raise


class LocalStorageObject:
    """One file, which need not exist yet."""

    __slots__ = ("_parts", "_path", "_provider")

    def __init__(self, provider: LocalStorageProvider, path: str, parts: Parts) -> None:
        self._provider = provider
        self._path = path
        self._parts = parts

    @property
    def path(self) -> str:
        """The object's path."""
        return self._path

    def write_from_file_system(
        self, path: str | PathLike[str], *, metadata: Metadata | None = None
    ) -> None:
        """Upload a local file, sparse as it is, by the kernel where it can (reflinks, too)."""
        kept = validate_metadata(metadata)
        with self._writing(), self._provider.stage() as staged:
            write_metadata(staged.descriptor, kept)
            copy_file(path, staged.descriptor)
            staged.publish(self._parts)

    def read_from(self, source: Source, *, metadata: Metadata | None = None) -> int:
        """Upload everything ``source`` has, in pieces of 1 MiB; see the protocol."""
        kept = validate_metadata(metadata)
        with self._writing():
            staged = self._provider.stage()
        count = 0
        with staged:
            with self._writing():
                write_metadata(staged.descriptor, kept)
            while piece := source.read(_PIECE):  # its errors are its own
                with self._writing():
                    count += write_all(staged.descriptor, piece)
            with self._writing():
                staged.publish(self._parts)
        return count

    def write_to(self, sink: Sink) -> int:
        """Download all of it in order; see the protocol."""
        with self._reading() as (descriptor, before):
            buffer = memoryview(bytearray(min(_PIECE, max(before.st_size, 1))))
            offset = 0
            while True:
                with self._provider.mapped("read object", self._path):
                    count = os.preadv(descriptor, [buffer], offset)
                if not count:
                    break
                sink.write(buffer[:count])  # its errors are its own
                offset += count
            if offset != before.st_size or etag_of(os.fstat(descriptor)) != etag_of(before):
                raise Unavailable(
                    "it was changed in place while it was read",
                    operation="read object",
                    object=self._path,
                )
            return offset

    def read_at(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; short only at the end."""
        if offset < 0:
            raise InvalidInput("negative offset", operation="read object", object=self._path)
        view = memoryview(buffer).cast("B")
        with self._reading() as (descriptor, status):
            if offset >= status.st_size:
                return 0
            with self._provider.mapped("read object", self._path):
                done = 0
                while done < len(view):
                    count = os.preadv(descriptor, [view[done:]], offset + done)
                    if not count:
                        break
                    done += count
            return done

    def get(self, limit: int) -> tuple[bytes, str]:
        """Read a small object whole; return its content and etag."""
        with self._reading() as (descriptor, before):
            if before.st_size > limit:
                raise too_large(before.st_size, limit, self._path)
            with self._provider.mapped("read object", self._path):
                data = os.pread(descriptor, before.st_size + 1, 0)
            if len(data) != before.st_size or etag_of(os.fstat(descriptor)) != etag_of(before):
                raise Unavailable(
                    "it was changed in place while it was read",
                    operation="read object",
                    object=self._path,
                )
            return data, etag_of(before)

    def put(
        self,
        data: ReadableBuffer,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        metadata: Metadata | None = None,
    ) -> str:
        """Write at once; see the protocol."""
        kept = validate_metadata(metadata)
        with self._writing(), self._provider.stage() as staged:
            write_metadata(staged.descriptor, kept)
            write_all(staged.descriptor, data)
            return staged.publish(self._parts, if_none_match=if_none_match, if_match=if_match)

    def stat(self) -> ObjectStat:
        """Return what is known of it."""
        with self._provider.mapped("stat object", self._path):
            descriptor, status = open_regular(self._provider.root, self._parts)
            try:
                metadata = read_metadata(descriptor)
            finally:
                os.close(descriptor)
            return ObjectStat(status.st_size, etag_of(status), _time(status), metadata)

    def size(self) -> int:
        """Return the size in bytes."""
        return self.stat().size

    def exists(self) -> bool:
        """Tell whether it exists."""
        try:
            self.stat()
        except ObjectNotFound:
            return False
        return True

    def delete(self) -> None:
        """Delete it, and the folders that become empty; what is not there is fine."""
        root, parts = self._provider.root, self._parts
        with self._provider.mapped("delete object", self._path):
            try:
                with folder(root, ()) as top, folder(root, parts[:-1]) as parent:
                    with locked(top, exclusive=False):
                        os.unlink(parts[-1], dir_fd=parent)
                    os.fsync(parent)
            except (FileNotFoundError, IsADirectoryError):
                pass
            prune_upwards(root, parts[:-1])

    def _writing(self) -> AbstractContextManager[None]:
        return self._provider.mapped("write object", self._path)

    @contextmanager
    def _reading(self) -> Iterator[tuple[int, os.stat_result]]:
        with self._provider.mapped("read object", self._path):
            descriptor, status = open_regular(self._provider.root, self._parts)
        try:
            yield descriptor, status
        finally:
            os.close(descriptor)


def _parts(path: str) -> Parts:
    """Return the components of a valid path; raises InvalidInput where a file cannot have it."""
    parts = tuple(part.encode() for part in path.split("/"))
    if any(len(part) > _MAX_COMPONENT for part in parts):
        problem = f"a component has more than {_MAX_COMPONENT} bytes"
    elif is_reserved(parts[0]):
        problem = "this name is kept for the store itself"
    else:
        return parts
    raise InvalidInput(
        f"{problem}, which a local store cannot hold",
        operation="open object",
        object=ascii(path)[:120],
        remedy="use another name",
    )


def _info(parent: int, here: Parts, name: bytes) -> ObjectInfo | None:
    try:
        status = os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    path = b"/".join((*here, name)).decode()
    return ObjectInfo(path, status.st_size, etag_of(status), _time(status))


def _time(status: os.stat_result) -> datetime:
    # Files that others put here may claim any time; not all are ones that datetime knows.
    return datetime.fromtimestamp(min(max(status.st_mtime, 0.0), _LAST_SECOND), UTC)
