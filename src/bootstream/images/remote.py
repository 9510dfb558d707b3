"""Images in registries, by the OCI distribution specification 1.1 ("Pull").

Manifests are asked for by tag or digest and always read anew; configurations and
layers come by digest and go through the blob cache. A download goes on where it
was cut, also by a process that died, with a Range request; a server that ignores
it starts over. Every byte is hashed as it comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bootstream.errors import BootstreamError, Cancelled, Corrupt, Unavailable
from bootstream.images.cache import BlobCache, Partial
from bootstream.images.client import RegistryClient
from bootstream.images.compression import RawReader
from bootstream.images.digest import digest_of, split_digest, verify
from bootstream.images.download import ask_blob, read_manifest
from bootstream.images.files import FileSlice, SharedFile, read_small
from bootstream.images.manifest import MAX_MANIFEST, Descriptor
from bootstream.images.reference import RegistryReference
from bootstream.images.retry import Retry
from bootstream.images.workers import Task, run_all
from bootstream.progress import Progress

__all__ = ["RegistryClient", "RemoteSource"]

_DOWNLOADS = 4
_PIECE = 64 << 10  # a slow server is heard of, and can be called off, this often
_RESTARTS = 2


class RemoteSource:
    """The ``BlobSource`` of a repository, through a cache."""

    def __init__(
        self,
        client: RegistryClient,
        reference: RegistryReference,
        cache: BlobCache,
        *,
        retry: Retry | None = None,
    ) -> None:
        self._client = client
        self._reference = reference
        self._cache = cache
        self._retry = retry or Retry()

    def root(self) -> tuple[bytes, str]:
        """Return what the reference names, a manifest or an index, and its media type.

        Raises:
            ImageNotFound: there is no such repository, tag or digest.
            Corrupt: it is not what a digest says.
        """
        return self._retry.run(
            lambda: read_manifest(self._client, self._reference.version, name=str(self._reference)),
            time.sleep,
        )

    def read_document(self, descriptor: Descriptor) -> bytes:
        """See ``BlobSource``."""
        if descriptor.size > MAX_MANIFEST:
            raise _too_large(descriptor, self._name(descriptor), MAX_MANIFEST)
        name = self._name(descriptor)
        data, _ = self._retry.run(
            lambda: read_manifest(self._client, descriptor.digest, name=name), time.sleep
        )
        return data

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """See ``BlobSource``."""
        if descriptor.size > limit:
            raise _too_large(descriptor, self._name(descriptor), limit)
        file = self._reach(descriptor)
        data = read_small(file, 0, file.size, limit)
        if digest_of(data, split_digest(descriptor.digest)[0]) != descriptor.digest:
            self._cache.remove(descriptor.digest)  # damaged on disk: it comes anew
            file = self._reach(descriptor)
            data = read_small(file, 0, file.size, limit)
        return verify(data, descriptor.digest, what=self._name(descriptor))

    def open(self, descriptor: Descriptor) -> RawReader:
        """See ``BlobSource``; downloads it first if it is not in the cache."""
        return FileSlice(self._reach(descriptor))

    def _reach(self, descriptor: Descriptor) -> SharedFile:
        """Return a blob's file; brings it into the cache if need be."""
        never = threading.Event()
        for _ in range(3):  # between download and use it may be evicted
            file = self._cache.find(descriptor)
            if file is not None:
                return file
            self._bring(descriptor, lambda _: None, never)
        raise Unavailable(
            "the blob vanishes from the cache as soon as it is there",
            operation="open",
            object=self._name(descriptor),
        )

    def fetch(self, descriptors: Sequence[Descriptor], progress: Progress) -> None:
        """Download what the cache lacks, a few at a time."""

        def advance(amount: int) -> None:
            progress.advance("pull", amount)

        def task(descriptor: Descriptor) -> Task:
            return lambda stop: self._bring(descriptor, advance, stop)

        tasks = [task(descriptor) for descriptor in descriptors]
        run_all(tasks, workers=_DOWNLOADS, poll=lambda: advance(0))
        if self._cache.limit is not None:
            self._cache.prune(self._cache.limit)

    def damaged(self, descriptor: Descriptor) -> str:
        """See ``BlobSource``: drops the cached copy."""
        self._cache.remove(descriptor.digest)
        return "the copy in the cache was dropped; try again, and it is downloaded anew"

    # -- one blob -----------------------------------------------------------------------------

    def _bring(
        self, descriptor: Descriptor, advance: Callable[[int], None], stop: threading.Event
    ) -> None:
        reported = 0

        def report(size: int) -> None:
            """Tell of new bytes; those of a download that starts over count once."""
            nonlocal reported
            _check(stop)
            advance(max(0, size - reported))
            reported = max(reported, size)

        if self._cache.find(descriptor) is not None:
            report(descriptor.size)
            return
        with self._cache.partial(descriptor, poll=lambda: report(0)) as partial:
            if partial is not None:
                partial.resume(lambda: report(0))
                report(partial.size)
                self._download(descriptor, partial, report, stop)
        report(descriptor.size)

    def _download(
        self,
        descriptor: Descriptor,
        partial: Partial,
        report: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        """Fill a partial blob and make it whole. What has come counts as progress."""
        failures, restarts = 0, 0
        started = time.monotonic()
        whole = False
        while not whole:
            before = partial.size
            try:
                self._transfer(descriptor, partial, report)
                partial.commit()
                whole = True
            except Corrupt as error:
                # What was left by an earlier process, or came through a bad proxy, may be
                # wrong once; the whole again, and that counts.
                restarts += 1
                if restarts > _RESTARTS:
                    error.object = self._name(descriptor)
                    raise
                partial.restart()
            except BootstreamError as error:
                if partial.size > before:
                    failures, started = 0, time.monotonic()
                failures += 1
                wait = self._retry.delay(failures, error, time.monotonic() - started)
                if wait is None:
                    raise
                stop.wait(wait)
                _check(stop)

    def _transfer(
        self, descriptor: Descriptor, partial: Partial, report: Callable[[int], None]
    ) -> None:
        """Ask for what is missing and take what comes; Unavailable if that is not all."""
        if partial.size == descriptor.size and descriptor.size:
            return
        answer, start = ask_blob(self._client, descriptor, partial.size)
        with answer:
            if start < partial.size:
                partial.restart()
            while data := answer.read(_PIECE):
                partial.write(data)
                report(partial.size)
        if partial.size < descriptor.size:
            raise Unavailable(
                f"the download ended after {partial.size} of {descriptor.size} bytes",
                operation="download",
                object=self._name(descriptor),
            )

    def _name(self, descriptor: Descriptor) -> str:
        return f"{self._reference.name}@{descriptor.digest}"


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Cancelled("it was stopped", operation="download")


def _too_large(descriptor: Descriptor, name: str, limit: int) -> Corrupt:
    return Corrupt(
        f"it has {descriptor.size} bytes where at most {limit} are possible",
        operation="read",
        object=name,
    )
