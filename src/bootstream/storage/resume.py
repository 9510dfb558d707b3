"""Uploads that another run goes on with: what is there already is not sent again.

A store that takes large objects in parts keeps the parts of an upload that was broken off,
even by the end of the process, until the upload is committed or aborted. ``upload`` goes on
with such an upload:

- Which one it is, the caller's ``Checkpoint`` says: the store gives an upload no other name
  than its id, and nothing in the store tells what its bytes and its metadata were to be. So a
  checkpoint is kept with a digest of the whole source, and vouches for both.
- Every part that the store lists is compared with the source, size and digest, before it is
  taken for sent; a part that differs is sent again. So no checkpoint, old or wrong, can make
  an object of other bytes than the source has.
- An upload that is gone, or was cut into parts otherwise, is begun anew.

What a store has no uploads of parts for (a folder, or a bucket that this package reaches in
another way) is uploaded as always.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from bootstream.storage.protocol import Metadata, Source, StorageObject


class Checkpoint(Protocol):
    """Where an upload is written down. Used by one upload at a time.

    An upload is named by a token, some hundred printable characters that only the store
    understands; a token is never a secret that would let anybody write.
    """

    @property
    def keep(self) -> bool:
        """Whether an upload that fails stays, to be gone on with; else it is aborted."""
        ...

    def recorded(self) -> str | None:
        """Return the token of an upload of the same bytes and metadata, None without one."""
        ...

    def outdated(self) -> str | None:
        """Return the token of an upload of other bytes, which is to be aborted, or None."""
        ...

    def record(self, token: str) -> None:
        """Remember an upload that has begun, in the place of any other, before its parts go."""
        ...

    def forget(self) -> None:
        """Forget the upload: it was committed, or aborted."""
        ...

    def found(self, size: int) -> None:
        """Hear that a part of ``size`` bytes was there already; called from any thread."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An object whose uploads can be gone on with."""

    def resume_from(
        self, source: Source, size: int, *, metadata: Metadata | None, checkpoint: Checkpoint
    ) -> int:
        """Upload ``size`` bytes of ``source``; return the count of bytes that it had.

        As ``read_from``, but for parts that are there already, and for what is left behind
        by a failure where ``checkpoint.keep``.
        """
        ...


def upload(
    target: StorageObject,
    source: Source,
    size: int,
    *,
    metadata: Metadata | None,
    checkpoint: Checkpoint,
) -> int:
    """Upload ``source``, going on with an upload that was broken off where that can be.

    Args:
        target: the object.
        source: all of it is read, also what is not sent again.
        size: how many bytes it has.
        metadata: of the object; the same as at the first time, for which the checkpoint vouches.
        checkpoint: where the upload is written down.

    Returns:
        The count of bytes that the source had.
    """
    if isinstance(target, Resumable):
        return target.resume_from(source, size, metadata=metadata, checkpoint=checkpoint)
    return target.read_from(source, metadata=metadata)
