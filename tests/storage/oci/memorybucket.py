"""A bucket in memory behind the scripted server: as much of the service as faults need.

The local OCI is the real test; this one is here so that a test can break one answer of it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from urllib.parse import parse_qs, unquote

from tests.storage.oci.helpers import Seen, refusal, reply

from bootstream.localoci.checksums import crc32c


@dataclass
class Stored:
    data: bytes
    etag: str
    metadata: dict[str, str]
    multipart_md5: str | None = None
    modified: float = field(default_factory=time.time)


@dataclass
class MemoryBucket:
    """Answers requests for ``/n/ns/b/bucket``; ``batches`` tells whether it can batch deletes."""

    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = field(default_factory=dict)
    batches: bool = True
    page: int = 1000

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def __call__(self, seen: Seen) -> bytes:
        query = {key: values[0] for key, values in parse_qs(seen.target.partition("?")[2]).items()}
        with self._lock:
            if seen.path.startswith("/workRequests/"):
                return reply(200, b'{"status": "COMPLETED"}')
            if not seen.path.startswith("/n/ns/b/bucket"):
                return refusal(404, "BucketNotFound")
            kind, _, name = seen.path.removeprefix("/n/ns/b/bucket").lstrip("/").partition("/")
            name = unquote(name)
            if kind == "" and not name:
                return reply(200, b'{"name": "bucket"}', date=formatdate(usegmt=True))
            if kind == "o" and not name:
                return self._list(query)
            if kind == "o":
                return getattr(self, f"_{seen.method.lower()}")(seen, name)  # type: ignore[no-any-return]
            if kind == "u":
                return self._upload(seen, name, query)
            if name == "copyObject":
                return self._copy(seen)
            if name == "batchDeleteObjects" and self.batches:
                return self._batch(seen)
            if kind == "p":
                return reply(200, b"[]")
            return refusal(404, "NotFound")

    def _etag(self) -> str:
        return f"etag-{next(self._numbers)}"

    def _checked(self, seen: Seen) -> bytes | None:
        digest = base64.b64encode(hashlib.sha256(seen.body).digest()).decode()
        if seen.headers.get("opc-content-sha256", digest) != digest:
            return refusal(400, "UnmatchedContentSHA256")
        crc = base64.b64encode(crc32c(seen.body).to_bytes(4, "big")).decode()
        if seen.headers.get("opc-content-crc32c", crc) != crc:
            return refusal(400, "UnmatchedContentCRC32C")
        return None

    def _put(self, seen: Seen, name: str) -> bytes:
        if bad := self._checked(seen):
            return bad
        old = self.objects.get(name)
        if "if-none-match" in seen.headers and old:
            return refusal(412, "IfNoneMatchFailed")
        if "if-match" in seen.headers and (not old or old.etag != seen.headers["if-match"]):
            return refusal(412, "IfMatchFailed")
        metadata = {k: v for k, v in seen.headers.items() if k.startswith("opc-meta-")}
        stored = self.objects[name] = Stored(seen.body, self._etag(), metadata)
        return reply(200, etag=stored.etag, opc_content_md5=_md5(seen.body))

    def _get(self, seen: Seen, name: str) -> bytes:
        stored = self.objects.get(name)
        if stored is None:
            return refusal(404, "ObjectNotFound")
        if seen.headers.get("if-match", stored.etag) != stored.etag:
            return refusal(412, "IfMatchFailed")
        size = len(stored.data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("range", f"bytes=0-{size}"))
        assert match
        first, last = int(match[1]), min(int(match[2]), size - 1)
        if first >= size:
            return refusal(416, "InvalidRange")
        extra = dict(stored.metadata)
        if stored.multipart_md5 is None:
            extra["content-md5"] = _md5(stored.data)
        return reply(
            206,
            stored.data[first : last + 1],
            etag=stored.etag,
            content_range=f"bytes {first}-{last}/{size}",
            last_modified=formatdate(stored.modified, usegmt=True),
            fields=extra,
        )

    def _head(self, seen: Seen, name: str) -> bytes:
        stored = self.objects.get(name)
        if stored is None:
            return reply(404)
        extra = dict(stored.metadata)
        if stored.multipart_md5:
            extra["opc-multipart-md5"] = stored.multipart_md5
        return reply(
            200,
            length=len(stored.data),
            etag=stored.etag,
            last_modified=formatdate(stored.modified, usegmt=True),
            fields=extra,
        )

    def _delete(self, seen: Seen, name: str) -> bytes:
        if self.objects.pop(name, None) is None:
            return refusal(404, "ObjectNotFound")
        return b"HTTP/1.1 204 Gone\r\nopc-request-id: rid\r\n\r\n"

    def _list(self, query: dict[str, str]) -> bytes:
        names = sorted((n for n in self.objects if n.startswith(query.get("prefix", ""))),
                       key=str.encode)  # fmt: skip
        names = [n for n in names if n.encode() >= query.get("start", "").encode()]
        body: dict[str, object] = {
            "objects": [
                {
                    "name": n,
                    "size": len(self.objects[n].data),
                    "etag": self.objects[n].etag,
                    "timeModified": datetime.fromtimestamp(
                        self.objects[n].modified, UTC
                    ).isoformat(),
                }
                for n in names[: self.page]
            ]
        }
        if len(names) > self.page:
            body["nextStartWith"] = names[self.page]
        return reply(200, json.dumps(body).encode())

    def _copy(self, seen: Seen) -> bytes:
        asked = json.loads(seen.body)
        source = self.objects.get(asked["sourceObjectName"])
        if source is None:
            return refusal(404, "ObjectNotFound")
        name = asked["destinationObjectName"]
        self.objects[name] = Stored(
            source.data, self._etag(), source.metadata, source.multipart_md5
        )
        return reply(202, opc_work_request_id="work/1")

    def _batch(self, seen: Seen) -> bytes:
        names = [entry["objectName"] for entry in json.loads(seen.body)["objects"]]
        for name in names:
            self.objects.pop(name, None)
        body = {"deleted": [{"objectName": name} for name in names], "failed": []}
        return reply(200, json.dumps(body).encode())

    def _upload(self, seen: Seen, name: str, query: dict[str, str]) -> bytes:
        if not name and seen.method == "POST":
            asked = json.loads(seen.body)
            upload = f"upload {next(self._numbers)}"
            self.uploads[upload] = (asked["object"], asked.get("metadata", {}), {})
            return reply(200, json.dumps({"uploadId": upload}).encode())
        if not name:
            found = [
                {"object": entry[0], "uploadId": upload, "timeCreated": "1970-01-01T00:00:00Z"}
                for upload, entry in self.uploads.items()
            ]
            return reply(200, json.dumps(found).encode())
        upload = query["uploadId"]
        if upload not in self.uploads:
            return refusal(404, "NoSuchUpload")
        _, metadata, parts = self.uploads[upload]
        if seen.method == "PUT":
            if bad := self._checked(seen):
                return bad
            parts[int(query["uploadPartNum"])] = seen.body
            return reply(200, etag=_md5(seen.body), opc_content_md5=_md5(seen.body))
        del self.uploads[upload]
        if seen.method == "DELETE":
            return b"HTTP/1.1 204 Gone\r\nopc-request-id: rid\r\n\r\n"
        asked = json.loads(seen.body)["partsToCommit"]
        bodies = [parts[part["partNum"]] for part in sorted(asked, key=lambda p: p["partNum"])]
        assert [p["etag"] for p in asked] == [_md5(parts[p["partNum"]]) for p in asked]
        together = hashlib.md5(b"".join(hashlib.md5(b).digest() for b in bodies)).digest()
        md5 = f"{base64.b64encode(together).decode()}-{len(bodies)}"
        stored = Stored(b"".join(bodies), self._etag(), metadata, md5)
        self.objects[name] = stored
        return reply(200, etag=stored.etag, opc_multipart_md5=md5)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()
