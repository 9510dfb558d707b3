"""Blobs and manifests as a registry sends them; a cut download goes on where it ended.

OCI distribution specification 1.1, "Pull"; ranges as in RFC 9110, 14. A server that ignores
them sends everything again, and what is known already is passed over.
"""

from __future__ import annotations

import re
import threading
import time

from bootstream.errors import BootstreamError, Cancelled, Corrupt, ImageNotFound, Unavailable
from bootstream.images.client import RegistryClient
from bootstream.images.digest import is_digest, verify
from bootstream.images.manifest import ACCEPTED, MAX_MANIFEST, Descriptor
from bootstream.images.retry import Retry
from bootstream.images.transport import Answer

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")
_SKIP = 256 << 10


def blob_name(client: RegistryClient, descriptor: Descriptor) -> str:
    """Return a blob's name, for people."""
    return f"{client.name}@{descriptor.digest}"


def read_manifest(
    client: RegistryClient, version: str, *, name: str, media_type: str = ""
) -> tuple[bytes, str]:
    """Return a manifest or index and its media type; one attempt.

    Args:
        client: names the repository.
        version: a tag or a digest; also a digest that the registry tells is checked.
        name: for errors.
        media_type: one to accept beside those of images.

    Raises:
        ImageNotFound: there is no such repository, tag or digest.
        Corrupt: it is larger than ``MAX_MANIFEST``, or not what a digest says.
        PermissionDenied, Throttled, Unavailable, InvalidInput: as the registry answers.
    """
    accepted = dict.fromkeys(
        (*ACCEPTED, media_type) if _MEDIA_TYPE.fullmatch(media_type) else ACCEPTED
    )
    headers = {"Accept": ", ".join(accepted)}
    with client.get(
        f"manifests/{version}", headers=headers, operation="read manifest", object=name
    ) as answer:
        data = answer.read_all(MAX_MANIFEST)
        media_type = answer.header("Content-Type") or ""
        promised = answer.header("Docker-Content-Digest")
    if is_digest(version):
        promised = version
    if promised is not None and is_digest(promised):
        verify(data, promised, what=name)
    return data, media_type


def ask_blob(client: RegistryClient, descriptor: Descriptor, offset: int) -> tuple[Answer, int]:
    """Ask for a blob from ``offset`` on; return the answer, and where it really starts.

    That is ``offset``, or 0 where the server ignores ranges.

    Raises:
        ImageNotFound: the registry does not have it.
        Corrupt: it says that the blob has another size, or sends another range.
        PermissionDenied, Throttled, Unavailable, InvalidInput: as it answers.
    """
    name = blob_name(client, descriptor)
    headers = {"Accept": "*/*"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        answer = client.get(
            f"blobs/{descriptor.digest}",
            headers=headers,
            operation="download",
            object=name,
            verified=True,
        )
    except ImageNotFound as error:
        kind = "a non-distributable layer" if descriptor.nondistributable else "a part"
        raise ImageNotFound(
            f"the registry does not have {kind} of the image",
            operation="download",
            object=name,
            request_id=error.request_id,
            remedy="push the image again, with all of its layers",
        ) from error
    try:
        return answer, _start(answer, descriptor, offset, name)
    except BaseException:
        answer.close()
        raise


def _start(answer: Answer, descriptor: Descriptor, offset: int, name: str) -> int:
    length: str | None
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch((answer.header("Content-Range") or "").strip())
        if match is None or int(match[1]) != offset:
            raise Corrupt("it sends another range than was asked for", object=name)
        length = None if match[3] == "*" else match[3]
    else:
        offset = 0
        length = answer.header("Content-Length")
    if length is not None and length.isdigit() and int(length) != descriptor.size:
        raise Corrupt(
            f"the registry's blob has {length} bytes, not {descriptor.size} as promised",
            operation="download",
            object=name,
        )
    return offset


class RemoteReader:
    """A ``RawReader`` of a blob as it comes, unchecked, from ``offset`` on; for one thread.

    Args:
        client: names the repository.
        descriptor: the blob; not more than its size is ever read.
        offset: where to begin.
        retry: how a broken connection is tried again; what has come begins a new count.
        stop: ends the waits between attempts.

    It raises what ``ask_blob`` does, and Cancelled once ``stop`` is set.
    """

    def __init__(
        self,
        client: RegistryClient,
        descriptor: Descriptor,
        *,
        offset: int = 0,
        retry: Retry | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._client = client
        self._descriptor = descriptor
        self._position = offset
        self._retry = retry or Retry()
        self._stop = stop or threading.Event()
        self._answer: Answer | None = None
        self._failures = 0
        self._started = time.monotonic()

    def read(self, size: int, /) -> bytes:
        """Return 1 to ``size`` bytes, none at the end."""
        size = min(size, self._descriptor.size - self._position)
        if size <= 0:
            self.close()
            return b""
        while True:
            try:
                data = self._read(size)
            except BootstreamError as error:
                self.close()
                self._failures += 1
                elapsed = time.monotonic() - self._started
                wait = self._retry.delay(self._failures, error, elapsed)
                if wait is None:
                    error.object = blob_name(self._client, self._descriptor)
                    raise
                if self._stop.wait(wait):
                    raise Cancelled("it was stopped", operation="download") from error
            else:
                self._position += len(data)
                self._failures, self._started = 0, time.monotonic()
                return data

    def _read(self, size: int) -> bytes:
        if self._answer is None:
            self._answer, start = ask_blob(self._client, self._descriptor, self._position)
            while start < self._position:
                passed = self._answer.read(min(_SKIP, self._position - start))
                if not passed:
                    break
                start += len(passed)
        data = self._answer.read(size)
        if not data:
            raise Unavailable(
                f"the download ended after {self._position} of {self._descriptor.size} bytes",
                operation="download",
                object=blob_name(self._client, self._descriptor),
            )
        return data

    def close(self) -> None:
        """Let the connection go; idempotent."""
        if self._answer is not None:
            answer, self._answer = self._answer, None
            if self._position >= self._descriptor.size:
                with answer:
                    answer.drain()
            else:
                with answer:
                    pass
