"""Going on with a multipart upload that was broken off: which one, and what it has.

ListMultipartUploadParts (GET ``/n/NS/b/BUCKET/u/OBJECT?uploadId=``) gives each part's number,
etag, size and md5. A part is taken for sent where size and md5 are those of the bytes that
would be sent. A token is ``PART-SIZE ID``: parts of another size would be left over, and those
that are neither committed nor excluded make a commit fail.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass
from urllib.parse import quote

from bootstream.errors import BootstreamError, BucketNotFound, NotFound, PermissionDenied
from bootstream.storage.oci.client import Client, Request
from bootstream.storage.oci.listing import pages
from bootstream.storage.resume import Checkpoint


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part that the service has."""

    size: int
    etag: str
    md5: bytes

    def is_of(self, data: memoryview) -> bool:
        """Tell whether it has these bytes."""
        if self.size != len(data):
            return False
        return hashlib.md5(data, usedforsecurity=False).digest() == self.md5


def broken_off(
    client: Client, path: str, checkpoint: Checkpoint, part_size: int
) -> tuple[str, dict[int, ListedPart]] | None:
    """Return the upload to go on with and its parts by number, None where one has to begin.

    An upload that the checkpoint says is outdated is aborted; if that fails it is left to the
    collection of uploads.
    """
    stale = checkpoint.outdated()
    token = checkpoint.recorded()
    known = _upload_of(token, part_size)
    if token is not None and known is None:
        stale = token
    if stale is not None:
        _abort(client, path, stale.partition(" ")[2])
    if known is None:
        return None
    try:
        return known, _parts(client, path, known)
    except BucketNotFound:
        raise
    except (NotFound, PermissionDenied):  # it is gone, or nobody may see what it has
        checkpoint.forget()
        return None


def token_of(upload: str, part_size: int) -> str:
    """Return what a checkpoint remembers of an upload."""
    return f"{part_size} {upload}"


def _upload_of(token: str | None, part_size: int) -> str | None:
    size, _, upload = (token or "").partition(" ")
    return upload if upload and size == str(part_size) else None


def _target(path: str, upload: str) -> str:
    return f"u/{quote(path)}?uploadId={quote(upload, safe='')}"


def _parts(client: Client, path: str, upload: str) -> dict[int, ListedPart]:
    found: dict[int, ListedPart] = {}
    for entry in pages(client, _target(path, upload), "list parts"):
        number, size, etag = entry.get("partNumber"), entry.get("size"), entry.get("etag")
        try:
            md5 = b64decode(str(entry.get("md5") or ""), validate=True)
        except (Base64Error, ValueError):
            continue  # it is sent again
        if isinstance(number, int) and isinstance(size, int) and isinstance(etag, str) and etag:
            found[number] = ListedPart(size, etag, md5)
    return found


def _abort(client: Client, path: str, upload: str) -> None:
    target = f"{client.base()}/{_target(path, upload)}"
    request = Request("DELETE", target, "abort upload", path, success=(200, 204, 404))
    try:
        client.call(request)
    except BootstreamError:
        return
