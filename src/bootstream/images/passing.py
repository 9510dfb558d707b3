"""A blob on its way from a source to a target: opened where need be, hashed as it goes by.

A target may have to be sent a part again, after its connection broke. Bytes that went by
once are not hashed again; the digest is compared before the last of them is handed over, so
that no target ever has the whole of a wrong blob.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from bootstream.errors import BootstreamError, Cancelled, Corrupt, ImageNotFound
from bootstream.images.compression import RawReader
from bootstream.images.digest import new_hash, split_digest
from bootstream.images.manifest import Descriptor
from bootstream.images.sources import StreamSource

PIECE = 256 << 10


class PassingBlob:
    """For one thread.

    Args:
        source: where it comes from.
        descriptor: what it is.
        report: called with how many bytes went by for the first time; may raise.
        stop: once it is set, the transfer ends with Cancelled.

    Attributes:
        failure: what the source raised, if it did: not the target's fault.
    """

    def __init__(
        self,
        source: StreamSource,
        descriptor: Descriptor,
        *,
        report: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self.descriptor = descriptor
        self.stop = stop
        self.failure: BaseException | None = None
        self._source = source
        self._report = report
        self._hash = new_hash(descriptor.digest)
        self._passed = 0
        self._reader: RawReader | None = None
        self._position = 0

    @property
    def passed(self) -> int:
        """How many bytes were handed over so far, each counted once."""
        return self._passed

    def check(self) -> None:
        """Raise Cancelled if the transfer is to end."""
        if self.stop.is_set():
            raise Cancelled("it was stopped", operation="copy")

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end``; ``start`` is at most ``passed``.

        Raises:
            Corrupt: the blob has another digest than it should, or ends early.
            ImageNotFound, Unavailable and others: of the source.
            Cancelled: it was stopped.
        """
        try:
            if self._reader is None or self._position != start:
                self.close()
                self._reader = self._source.open_at(self.descriptor, start, self.stop)
                self._position = start
            while self._position < end:
                self.check()
                data = self._reader.read(min(PIECE, end - self._position))
                self._take(data)
                yield data
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            self.close()
            raise

    def _take(self, data: bytes) -> None:
        if not data:
            raise self._wrong(f"it ends after {self._position} bytes")
        before = self._position
        self._position += len(data)
        if self._position <= self._passed:
            return
        new = data if before == self._passed else memoryview(data)[self._passed - before :]
        self._hash.update(new)
        count = self._position - self._passed
        self._passed = self._position
        if self._passed == self.descriptor.size:
            self.verify()
        self._report(count)

    def verify(self) -> None:
        """Raise Corrupt if what went by is not what the digest says; all has to have."""
        found = f"{split_digest(self.descriptor.digest)[0]}:{self._hash.hexdigest()}"
        if found != self.descriptor.digest:
            raise self._wrong(f"its digest is {found}")

    def _wrong(self, problem: str) -> BootstreamError:
        return Corrupt(
            f"{problem}, not {self.descriptor.size} bytes with {self.descriptor.digest} "
            "as promised",
            operation="copy",
            object=self.descriptor.digest,
        )

    def skip(self) -> None:
        """It is there already: count it as done."""
        if self._passed < self.descriptor.size:
            count = self.descriptor.size - self._passed
            self._passed = self.descriptor.size
            self._report(count)

    def is_missing(self) -> bool:
        """Whether the source does not have it; it is asked for the first byte."""
        try:
            reader = self._source.open_at(self.descriptor, 0, self.stop)
            reader.read(1)
            reader.close()
        except ImageNotFound:
            return True
        return False

    def close(self) -> None:
        """Let go of the source; idempotent."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
