"""One blob into a registry: OCI distribution specification 1.1, "Pushing blobs".

::

    HEAD blob ── there ──▶ done
      │
    POST uploads ── 201: mounted from another repository ──▶ done
      │ 202: a session, at Location
      ├─ small: PUT the whole
      └─ PATCH the whole, or chunk by chunk ──▶ PUT
            │ broken, 416
            └─▶ GET the session: how much is there? PATCH from there on

A request that is too large (413) is sent again in smaller chunks; a registry that takes no
PATCH gets everything by PUT. A session that the registry forgot, or says nothing useful of,
is begun anew. After a PUT without an answer the blob may be there: it is looked for before
anything is sent again.

distribution 2.8 itself cannot go on after a broken PATCH: its sessions know their offset by
a signed state in the Location that only a whole PATCH renews. It says that the session is
invalid (404), and the blob begins anew. ``0-0`` as a session's range may mean one byte or
none there: such a session is given up too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import quote, urlencode

from bootstream.errors import (
    BootstreamError,
    Cancelled,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    PermissionDenied,
    Unavailable,
)
from bootstream.images.client import RegistryClient
from bootstream.images.download import blob_name
from bootstream.images.httperrors import TooLarge, UploadGone
from bootstream.images.passing import PassingBlob
from bootstream.images.retry import Retry
from bootstream.images.scopes import PULL, PUSH, repository_scope
from bootstream.images.transport import COMMIT_SECONDS, Answer

SMALL = 1 << 20
_RESTARTS = 2
_SMALLER = (90 << 20, 16 << 20, 4 << 20, 900 << 10)
"""Chunks for those who take no larger requests: usual limits of proxies are 100 MB and 1 MB."""
_RANGE = re.compile(r"(?:bytes[= ])?0-(\d{1,19})")
_TYPE = {"Content-Type": "application/octet-stream"}
_OPERATION = "push blob"

_T = TypeVar("_T")


class BlobUpload:
    """Brings one blob into the client's repository; for one thread.

    Args:
        client: names the repository.
        blob: what is sent.
        chunk: bytes of a PATCH at most; None: as much as there is. A registry that wants
            larger ones (``OCI-Chunk-Min-Length``) gets them.
        mount_from: other repositories of the registry that may have it.
        retry: how trouble is tried again; whenever some bytes got there the count is new.
    """

    def __init__(
        self,
        client: RegistryClient,
        blob: PassingBlob,
        *,
        chunk: int | None = None,
        mount_from: Sequence[str] = (),
        retry: Retry | None = None,
    ) -> None:
        self._client = client
        self._blob = blob
        self._size = blob.descriptor.size
        self._digest = blob.descriptor.digest
        self._name = blob_name(client, blob.descriptor)
        self._chunk = chunk
        self._mount_from = tuple(mount_from)
        self._retry = retry or Retry()
        self._scopes: tuple[str, ...] = (repository_scope(client.repository, PUSH),)
        self._location: str | None = None
        self._offset = 0
        self._unsure = False  # how much of the session is there
        self._finishing = False  # a PUT was begun, so the blob may be there
        self._patches = True
        self.refused_mounts: set[str] = set()

    def run(self) -> None:
        """Return once the blob is in the registry.

        Raises:
            Corrupt: the source has other bytes, or the registry says it received such.
            PermissionDenied: it may not be pushed.
            NotFound: the repository is missing, or the source's blob.
            Throttled, Unavailable: of the registry, after retries, or of the source.
            InvalidInput: the registry does not take it.
            Cancelled: it was stopped.
        """
        failures = restarts = 0
        furthest, started = 0, time.monotonic()
        while True:
            self._blob.check()
            try:
                self._attempt()
            except BootstreamError as error:
                if self._blob.failure is not None or isinstance(error, Cancelled):
                    self._abandon()
                    raise
                if isinstance(error, Corrupt):  # on its way, not here: it was checked
                    restarts += 1
                    if restarts > _RESTARTS:
                        raise
                    self._forget()
                    continue
                if self._other_way(error):
                    continue
                if self._offset > furthest:
                    furthest = self._offset
                    failures, started = 0, time.monotonic()
                failures += 1
                wait = self._retry.delay(failures, error, time.monotonic() - started)
                if wait is None:
                    self._abandon()
                    raise
                if isinstance(error, UploadGone) or not self._in_parts:
                    self._forget()
                self._unsure = True
                self._blob.stop.wait(wait)
            else:
                return
            finally:
                self._blob.close()

    def _attempt(self) -> None:
        """Go on from where the last attempt ended."""
        if self._finishing and self.exists():
            return
        if self._location is not None and self._unsure:
            self._ask()
        if self._location is None and not self._start():
            self._blob.skip()
            return
        self._unsure = False
        if self._in_parts:
            while self._offset < self._size:
                self._send_chunk()
        self._finish()

    def exists(self) -> bool:
        """Whether the registry has the blob."""
        try:
            with self._request("HEAD", f"blobs/{self._digest}") as answer:
                length = answer.header("Content-Length") or ""
        except (ImageNotFound, InvalidInput):  # not there, or not to be asked for
            return False
        return not length.isdigit() or int(length) in (0, self._size)

    @property
    def _in_parts(self) -> bool:
        """Whether it goes by PATCH, and can go on where that broke."""
        return self._patches and self._size > min(SMALL, self._chunk or SMALL)

    def _other_way(self, error: BootstreamError) -> bool:
        """Find another way to send it than the one that was refused; False if there is none."""
        if isinstance(error, TooLarge):
            return self._shrink()
        if isinstance(error, InvalidInput) and self._location is not None and self._in_parts:
            self._patches = False
            self._abandon()
            return True
        return False

    def _shrink(self) -> bool:
        """Send smaller chunks from now on; False if they are small already."""
        largest = min(self._size, self._chunk or self._size)
        smaller = [size for size in _SMALLER if size < largest]
        if not smaller or self._location is None:
            return False
        self._chunk = smaller[0]
        self._abandon()
        return True

    # -- sessions -----------------------------------------------------------------------------

    def _start(self) -> bool:
        """Begin a session; False if the blob was mounted instead."""
        self._offset = 0
        for repository in self._mount_from:
            if repository in self.refused_mounts:
                continue
            try:
                if not self._post(repository):
                    return False
            except (PermissionDenied, ImageNotFound, InvalidInput):
                self.refused_mounts.add(repository)
            else:
                return True
        self._post(None)
        return True

    def _post(self, repository: str | None) -> bool:
        """Ask for a session, or for the blob out of another repository."""
        target, scopes = "blobs/uploads/", self._scopes
        if repository is not None:
            # The specification's slashes stand as they are.
            target += f"?mount={self._digest}&from={quote(repository, safe='/')}"
            scopes = (*scopes, repository_scope(repository, PULL))
        headers = {"Content-Length": "0"}
        with self._request("POST", target, headers=headers, scopes=scopes) as answer:
            answer.drain()
            if answer.status == 201:
                return False
            self._location = self._client.locate(answer, operation=_OPERATION)
            least = answer.header("OCI-Chunk-Min-Length") or ""
            if self._chunk is not None and least.isascii() and least.isdigit():
                self._chunk = max(self._chunk, int(least[:12]))
            return True

    def _ask(self) -> None:
        """Find out how much of the session is there."""
        assert self._location is not None
        try:
            with self._request("GET", self._location) as answer:
                answer.drain()
                there = _there(answer)
                self._follow(answer)
        except (UploadGone, ImageNotFound, InvalidInput):
            there = None
        if there is None or there <= 1 or there > self._blob.passed:
            self._abandon()
            return
        self._offset = there

    def _forget(self) -> None:
        self._location, self._offset = None, 0

    def _abandon(self) -> None:
        """Give a session up, and say so; what becomes of that does not matter."""
        location = self._location
        self._forget()
        if location is None or self._blob.stop.is_set():
            return
        try:
            with self._request("DELETE", location) as answer:
                answer.drain()
        except BootstreamError:
            pass

    def _follow(self, answer: Answer) -> None:
        if answer.header("Location"):
            self._location = self._client.locate(answer, operation=_OPERATION)

    # -- bytes --------------------------------------------------------------------------------

    def _send_chunk(self) -> None:
        assert self._location is not None
        start = self._offset
        end = self._size if self._chunk is None else min(self._size, start + self._chunk)
        headers = _TYPE | {
            "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
        }
        with self._request(
            "PATCH",
            self._location,
            headers=headers,
            body=lambda: self._blob.pieces(start, end),
        ) as answer:
            answer.drain()
            self._follow(answer)
            there = _there(answer)
        if there is None or there == end:
            self._offset = end
            return
        self._unsure = True
        raise Unavailable(
            f"it took {there} of {end} bytes", operation=_OPERATION, object=self._name
        )

    def _finish(self) -> None:
        """Close the session, with all bytes where there are few."""
        assert self._location is not None
        url = self._location
        url += ("&" if "?" in url else "?") + urlencode({"digest": self._digest}, safe=":")
        left = self._size - self._offset
        headers = _TYPE | {"Content-Length": str(left)}
        if not self._size:
            self._blob.verify()
        self._finishing = True
        with self._request(
            "PUT", url, headers=headers, body=lambda: self._blob.pieces(self._offset, self._size)
        ) as answer:
            answer.drain()
            said = answer.header("Docker-Content-Digest")
        if said is not None and said != self._digest and said.startswith(self._digest[:7]):
            raise Corrupt(f"the registry calls it {said}", operation=_OPERATION, object=self._name)

    def _request(
        self,
        method: str,
        target: str,
        *,
        headers: dict[str, str] | None = None,
        body: Callable[[], object] | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> Answer:
        return self._client.request(
            method,
            target,
            operation=_OPERATION,
            object=self._name,
            headers=headers,
            body=body,  # type: ignore[arg-type]  # pieces
            scopes=self._scopes if scopes is None else scopes,
            silence=COMMIT_SECONDS,
        )


def _there(answer: Answer) -> int | None:
    """Return how many bytes a session has, by its Range header; None if it does not say."""
    match = _RANGE.fullmatch((answer.header("Range") or "").strip())
    return None if match is None else int(match[1]) + 1
