"""Multipart uploads that never finished: listed and aborted in the XML API's own words.

GET with ``uploads`` (ListMultipartUploads), DELETE with ``uploadId`` (AbortMultipartUpload);
Amazon, what speaks like it, and Google have both. obstore has no operation for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_plus

from bootstream.errors import Unavailable
from bootstream.storage.s3requests import XmlBucket, XmlSession, parse_xml

_SECOND = timedelta(seconds=1)  # the service's clock is told in whole ones
_OPERATION = "collect uploads"


@dataclass(frozen=True, slots=True)
class _Upload:
    key: str
    upload_id: str
    initiated: datetime


def collect_uploads(bucket: XmlBucket, older_than: timedelta, *, dry_run: bool) -> int:
    """Abort what began longer ago, by the service's clock; return how many there were.

    Without anything to sign with, there are none that anybody could see.
    """
    if not bucket.can_sign():
        return 0
    with bucket.session() as session:
        stale = [
            upload
            for upload, now in _uploads(session)
            if now + _SECOND - upload.initiated >= older_than
        ]
        for upload in stale:
            if not dry_run:
                query = {"uploadId": upload.upload_id}
                session.send(
                    "DELETE", upload.key, query, operation=_OPERATION, fine=(200, 204, 404)
                )  # one that is gone by now is fine
    return len(stale)


def _uploads(session: XmlSession) -> Iterator[tuple[_Upload, datetime]]:
    """Yield every upload, and the service's clock when it was listed."""
    query = {"uploads": "", "encoding-type": "url"}
    while True:
        reply = session.send("GET", "", query, operation=_OPERATION)
        root = parse_xml(reply.body, _OPERATION)
        encoded = root.findtext("EncodingType") == "url"
        if not encoded and "encoding-type" in query:
            del query["encoding-type"]
            continue  # some then encode names in silence (Ceph), others do not (nanio)
        decode = unquote_plus if encoded else str
        for item in root.findall("Upload"):
            key = decode(item.findtext("Key", ""))
            began = _time(item.findtext("Initiated", ""))
            yield _Upload(key, item.findtext("UploadId", ""), began), reply.date
        following = root.findtext("NextKeyMarker", ""), root.findtext("NextUploadIdMarker", "")
        before = query.get("key-marker"), query.get("upload-id-marker")
        if root.findtext("IsTruncated", "") != "true" or following == before:
            return
        query["key-marker"], query["upload-id-marker"] = decode(following[0]), following[1]


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Unavailable(
            f"the storage's list of uploads has the time {ascii(text)[:40]}",
            operation=_OPERATION,
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
