"""Writing: one PutObject for what fits into it, a multipart upload for the rest.

Every PutObject and every part carries a checksum of its bytes, which the service compares
before it stores them (``checksums``), and the answer's own checksum is compared again. A
multipart upload is committed with the etags of exactly the parts that were sent; the answer's
``opc-multipart-md5`` must be that of the parts.

A part that fails is sent again here, some times, because no other layer has its bytes. When
the upload fails, it is aborted after the last part has come to rest, since a part that
arrives after the abort would stay.

Memory is bounded: parts share a budget. An object has 10,000 parts at most, so parts of a
file beyond 40 GB are larger, and those of a stream of unknown length grow; a few of those
are held whatever the budget, as one alone would wait for each round trip.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import stat as stat_module
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from os import PathLike
from typing import TypeVar
from urllib.parse import quote

from bootstream.errors import (
    BootstreamError,
    Conflict,
    InvalidInput,
    NotFound,
    ObjectNotFound,
    Unavailable,
)
from bootstream.storage.oci import resume
from bootstream.storage.oci.checksums import (
    algorithm,
    algorithm_line,
    check_answer,
    checksum_of,
)
from bootstream.storage.oci.client import Client, Request, metadata_lines
from bootstream.storage.oci.sources import Buffer, FileReader, Reader, StreamReader
from bootstream.storage.oserrors import source_error
from bootstream.storage.protocol import Source
from bootstream.storage.resume import Checkpoint

MAX_PARTS = 10_000
MAX_OBJECT = 10 << 40
PART = 4 << 20  # and so much is sent by one PutObject
PARALLEL_SAFE = 64
_BUDGET = 40 << 20  # bytes of parts in memory, but for
_AT_LEAST, _LARGE_PART = 3, 128 << 20  # so many parts, as long as none is larger than that
_GROW_EVERY = 800  # parts of one size, in a stream of unknown length
_ATTEMPTS = 5
_ROUND = 1 << 20
_LONGEST_WAIT = 30.0
_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Aborted(Unavailable):
    """The multipart upload is gone: its parts need not be sent again, all of it may be."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the service has: its number, etag, and md5 where it told that."""

    number: int
    etag: str
    md5: bytes | None


def put_bytes(client: Client, request: Request, data: memoryview, *, conditional: bool) -> str:
    """PUT ``data`` as a whole object; return its etag.

    A conditional write is not sent again on a fresh connection: the second might be refused
    because of the first.
    """
    checksum = checksum_of(data)
    request = replace(
        request,
        headers=request.headers + checksum.lines,
        body=data,
        replay=not conditional,
    )
    return check_answer(request, client.call(request), data, checksum)


def part_bytes(number: int, size: int | None, least: int) -> int:
    """Return how large part ``number`` is, of an object of ``size`` bytes, or unknown.

    Parts of a known size are equal, and ``least`` bytes unless there would be too many. Those
    of an unknown size start with that and double now and then; ``MAX_PARTS`` of 4 MiB and up
    are enough for the largest object.
    """
    if size is None:
        return least << ((number - 1) // _GROW_EVERY)
    needed = -(-size // (MAX_PARTS - 1))
    return least if needed <= least else -(-needed // _ROUND) * _ROUND


class Uploader:
    """Uploads one object from a file or a stream.

    Args:
        client: requests to the bucket.
        path: the object's name.
        metadata: valid metadata of the object.
        executor: runs the sending of parts.
        parallel: how many parts are sent at once, memory permitting.
        part_size: bytes of a part; None: by size. Large objects have larger ones anyway.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        metadata: Mapping[str, str],
        executor: Executor,
        parallel: int,
        part_size: int | None,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._path = path
        self._metadata = metadata
        self._executor = executor
        self._parallel = max(1, parallel)
        self._part_size = part_size or PART
        self._sleep = sleep
        self._given_up = False
        self._checkpoint: Checkpoint | None = None
        self._there: Mapping[int, resume.ListedPart] = {}

    def file(self, path: str | PathLike[str]) -> None:
        """Upload a local file; one that changes meanwhile is refused."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise source_error(error, path) from error
        try:
            before = os.fstat(descriptor)
            if not stat_module.S_ISREG(before.st_mode):
                raise InvalidInput(
                    "it is not a file", operation="read file", object=os.fspath(path)
                )
            reader = FileReader(descriptor, before, path)
            self._upload(reader, before.st_size, reader.check)
        finally:
            os.close(descriptor)

    def stream(self, source: Source) -> int:
        """Upload everything ``source`` has; return the count of bytes."""
        return self._upload(StreamReader(source), None, lambda: None)

    def resume(self, source: Source, size: int, checkpoint: Checkpoint) -> int:
        """Upload ``size`` bytes of ``source``, of which parts may be there; return their count."""
        self._checkpoint = checkpoint
        return self._upload(StreamReader(source), size, lambda: None)

    def _upload(self, reader: Reader, size: int | None, finish: Callable[[], None]) -> int:
        self._check_length(0, size or 0)
        buffer = Buffer(part_bytes(1, size, self._part_size))
        data = reader.fill(buffer)
        if len(data) < buffer.size or len(data) == size:
            finish()
            self._put(data)
            return len(data)
        return self._multipart(reader, buffer, data, size, finish)

    def _put(self, data: memoryview) -> None:
        request = Request(
            "PUT",
            self._client.object_target(self._path),
            "write object",
            self._path,
            headers=metadata_lines(self._metadata),
        )
        put_bytes(self._client, request, data, conditional=False)

    # -- multipart ----------------------------------------------------------------------------

    def _multipart(
        self,
        reader: Reader,
        buffer: Buffer,
        data: memoryview,
        size: int | None,
        finish: Callable[[], None],
    ) -> int:
        upload = self._begin(buffer.size)
        running: deque[tuple[Future[Part], Buffer]] = deque()
        parts: list[Part] = []
        spare: list[Buffer] = []
        count = 0
        try:
            number = 1
            while len(data):
                count += len(data)
                self._check_length(number, count)
                future = self._executor.submit(self._send_part, upload, number, data)
                running.append((future, buffer))
                number += 1
                wanted = part_bytes(number, size, self._part_size)
                while running and (running[0][0].done() or self._full(running, wanted)):
                    future, buffer = running.popleft()
                    parts.append(future.result())
                    spare.append(buffer)
                spare = [one for one in spare if one.size == wanted]
                buffer = spare.pop() if spare else Buffer(wanted)
                data = reader.fill(buffer)
            finish()
            parts += [future.result() for future, _ in running]
            running.clear()
            self._commit(upload, parts)
        except BaseException as error:
            self._given_up = True
            for future, _ in running:
                future.cancel()
            wait([future for future, _ in running])
            self._given_up = False
            self._end(upload, error)
            raise
        if self._checkpoint is not None:
            self._checkpoint.forget()
        return count

    def _begin(self, part_size: int) -> str:
        """Return the upload to send parts to: a new one, or one that was broken off."""
        if self._checkpoint is None:
            return self._create()
        known = resume.broken_off(self._client, self._path, self._checkpoint, part_size)
        if known is not None:
            upload, self._there = known
            return upload
        self._there = {}
        upload = self._create()
        self._checkpoint.record(resume.token_of(upload, part_size))
        return upload

    def _end(self, upload: str, error: BaseException) -> None:
        """Abort an upload that failed, unless another run is to go on with it."""
        if self._checkpoint is None:
            self._abort(upload, error)
        elif not self._checkpoint.keep:
            self._abort(upload, error)
            self._checkpoint.forget()

    def _check_length(self, parts: int, size: int) -> None:
        if parts > MAX_PARTS or size > MAX_OBJECT:
            raise InvalidInput(
                f"it is longer than the {MAX_OBJECT} bytes that an object can have",
                operation="write object",
                object=self._path,
            )

    def _full(self, running: deque[tuple[Future[Part], Buffer]], wanted: int) -> bool:
        if len(running) < min(self._parallel, _AT_LEAST) and wanted <= _LARGE_PART:
            return False
        held = sum(buffer.size for _, buffer in running)
        return len(running) >= self._parallel or held + wanted > _BUDGET

    def _create(self) -> str:
        metadata = {f"opc-meta-{key}": value for key, value in self._metadata.items()}
        body = json.dumps({"object": self._path, "metadata": metadata}).encode()
        request = Request(
            "POST",
            f"{self._client.base()}/u",
            "write object",
            self._path,
            headers=algorithm_line(algorithm()).encode(),
            body=body,
            signed_body=True,
            replay=False,
        )
        found = self._patiently(lambda: self._client.json(request))
        upload = found.get("uploadId") if isinstance(found, dict) else None
        if not isinstance(upload, str) or not upload:
            raise Unavailable(
                "the answer names no upload", operation="write object", object=self._path
            )
        return upload

    def _send_part(self, upload: str, number: int, data: memoryview) -> Part:
        there = self._there.get(number)
        if there is not None and self._checkpoint is not None and there.is_of(data):
            self._checkpoint.found(len(data))
            return Part(number, there.etag, there.md5)
        checksum = checksum_of(data)
        request = Request(
            "PUT",
            f"{self._upload_target(upload)}&uploadPartNum={number}",
            "write object",
            self._path,
            headers=checksum.lines,
            body=data,
        )

        def send() -> Part:
            try:
                answer = self._client.call(request)
            except ObjectNotFound as error:
                raise self._aborted(error) from error
            etag = check_answer(request, answer, data, checksum)
            return Part(number, etag, _md5_of(answer.headers.get("opc-content-md5")))

        return self._patiently(send)

    def _commit(self, upload: str, parts: list[Part]) -> None:
        listed = [{"partNum": part.number, "etag": part.etag} for part in parts]
        request = Request(
            "POST",
            self._upload_target(upload),
            "write object",
            self._path,
            body=json.dumps({"partsToCommit": listed, "partsToExclude": []}).encode(),
            signed_body=True,
            replay=False,
        )
        expected = _multipart_md5(parts)
        unknown = False

        def commit() -> None:
            nonlocal unknown
            try:
                answer = self._client.call(request)
            except (NotFound, Conflict, InvalidInput):
                # The answer to an attempt before this one may have been lost.
                if unknown and self._is_committed(expected):
                    return
                raise
            except BootstreamError:
                unknown = True
                raise
            found = answer.headers.get("opc-multipart-md5")
            if expected and found and found != expected:
                raise Unavailable(
                    "the storage assembled other parts than were sent",
                    operation="write object",
                    object=self._path,
                    request_id=answer.headers.get("opc-request-id"),
                    transient=False,
                )

        try:
            self._patiently(commit)
        except ObjectNotFound as error:
            raise self._aborted(error) from error

    def _aborted(self, error: ObjectNotFound) -> Aborted:
        return Aborted(
            "the upload was aborted by somebody else",
            operation="write object",
            object=self._path,
            request_id=error.request_id,
        )

    def _is_committed(self, expected: str) -> bool:
        request = Request(
            "HEAD", self._client.object_target(self._path), "write object", self._path
        )
        try:
            found = self._client.call(request).headers.get("opc-multipart-md5")
        except BootstreamError:
            return False
        return bool(expected) and found == expected

    def _abort(self, upload: str, error: BaseException) -> None:
        request = Request(
            "DELETE",
            self._upload_target(upload),
            "abort upload",
            self._path,
            success=(200, 204, 404),
        )
        try:
            self._patiently(lambda: self._client.call(request))
        except BootstreamError as trouble:
            message = f"its parts could not be removed ({trouble}); collecting uploads removes them"
            error.add_note(message)
            _LOG.warning("%s: %s", self._path, message)  # the error may be repeated away

    def _upload_target(self, upload: str) -> str:
        base = self._client.base()
        return f"{base}/u/{quote(self._path)}?uploadId={quote(upload, safe='')}"

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns; some times again after transient errors."""
        failed = 0
        while True:
            try:
                return call()
            except BootstreamError as error:
                failed += 1
                over = failed >= _ATTEMPTS or self._given_up or isinstance(error, Aborted)
                if over or not error.transient:
                    raise
                jitter = random.uniform(0, 0.1 * 2**failed)  # noqa: S311 - no secret
                self._sleep(jitter + min(error.retry_after or 0.0, _LONGEST_WAIT))


def _md5_of(text: str | None) -> bytes | None:
    with contextlib.suppress(Base64Error, ValueError):
        value = b64decode(text or "", validate=True)
        return value if len(value) == 16 else None
    return None


def _multipart_md5(parts: list[Part]) -> str:
    """Return what ``opc-multipart-md5`` of these parts is, or nothing where one has no md5."""
    digests = [part.md5 for part in parts if part.md5 is not None]
    if len(digests) != len(parts):
        return ""
    digest = hashlib.md5(b"".join(digests), usedforsecurity=False).digest()
    return f"{b64encode(digest).decode()}-{len(parts)}"
