"""What Ceph's radosgw 16 does otherwise than Amazon, spoken by a small server of our own.

``tests/storage/radosgw`` has the real one; this keeps what was learned from it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from bootstream.errors import OutcomeUnknown, PreconditionFailed, Throttled
from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.testing.servers.scripted import CUT, Reply, scripted
from bootstream.testing.storage import content

NAMES = ["plain", "with space/é+&%2F", "100%25"]


class Ceph:
    """Objects with conditions and a list of uploads, as Ceph 16 has them.

    Attributes:
        races: how many conditional writes from now on meet another one, which ``other`` makes.
        cuts: how many conditional writes from now on are applied, and their answers lost.
        aborted: the names whose uploads were aborted.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.races = 0
        self.cuts = 0
        self.other = b"another's"
        self.aborted: list[str] = []
        self._lock = threading.Lock()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        """Answer one request."""
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path.removeprefix("/bucket").lstrip("/"))
        with self._lock:
            if "uploads" in query:
                return self._uploads(encode="encoding-type" in query)
            if method == "DELETE" and "uploadId" in query:
                self.aborted.append(key)
                return 204, {}, b""
            if method == "PUT":
                return self._put(key, headers, body)
            if method == "DELETE":
                self.objects.pop(key, None)
                return 204, {}, b""
            if key not in self.objects:
                return refused(404, "NoSuchKey")
            data = self.objects[key]
            found = {"ETag": f'"{etag_of(data)}"', "Last-Modified": "Tue, 24 Nov 2026 23:00:00 GMT"}
            if "range" not in headers:
                return 200, found, data
            first, last = headers["range"].removeprefix("bytes=").split("-")
            piece = data[int(first) : int(last) + 1]
            end = int(first) + len(piece) - 1
            return 206, found | {"Content-Range": f"bytes {first}-{end}/{len(data)}"}, piece

    def _put(self, key: str, headers: dict[str, str], body: bytes) -> Reply:
        wanted, absent = headers.get("if-match"), headers.get("if-none-match")
        there = self.objects.get(key)
        if absent == "*" and there is not None:
            return refused(412, "PreconditionFailed")
        if wanted is not None and (there is None or wanted != etag_of(there)):
            return refused(412, "PreconditionFailed")  # also for the right etag in quotes
        conditional = wanted is not None or absent is not None
        if conditional and self.races:
            self.races -= 1
            self.objects[key] = self.other
            return refused(500, "UnknownError")
        self.objects[key] = body
        if conditional and self.cuts:
            self.cuts -= 1
            return 200, {"ETag": f'"{etag_of(body)}"', CUT: "0", "Content-Length": "1000"}, b"x"
        return 200, {"ETag": f'"{etag_of(body)}"'}, b""

    def _uploads(self, *, encode: bool) -> Reply:
        """List uploads: it encodes as it was asked to, and does not say that it did."""
        began = datetime.now(UTC) - timedelta(hours=1)
        items = "".join(
            f"<Upload><Key>{quote(name) if encode else name.replace('&', '&amp;')}</Key>"
            f"<UploadId>2~abc</UploadId><Initiated>{began.isoformat()}</Initiated></Upload>"
            for name in NAMES
        )
        text = f"<ListMultipartUploadsResult>{items}<IsTruncated>false</IsTruncated>"
        return 200, {}, f"{text}</ListMultipartUploadsResult>".encode()


def etag_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def refused(status: int, code: str) -> Reply:
    text = f"<Error><Code>{code}</Code><RequestId>tx00-default</RequestId></Error>"
    return status, {"Content-Type": "application/xml"}, text.encode()


@pytest.fixture
def ceph() -> Ceph:
    return Ceph()


@pytest.fixture
def provider(ceph: Ceph) -> Iterator[AWSBucketStorageProvider]:
    with scripted(ceph.answer) as url:
        yield AWSBucketStorageProvider("bucket", endpoint=url, access_key="a", secret_key="b")


def patient(provider: AWSBucketStorageProvider) -> RetryStorageProvider:
    return RetryStorageProvider(provider, RetryPolicy(first_wait=0.001, longest_wait=0.01))


def test_etags_without_quotes(provider: AWSBucketStorageProvider) -> None:
    """A condition names the etag as this service does; its conditions are found to hold."""
    target = provider.open_object("a")
    first = target.put(b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        target.put(b"2", if_match="0" * 32)
    assert content(provider, "a") == b"1"
    second = target.put(b"2", if_match=first)
    assert second == target.stat().etag != first


def test_names_that_are_encoded_without_a_word(
    ceph: Ceph, provider: AWSBucketStorageProvider
) -> None:
    """Uploads are aborted under the names that they have."""
    assert provider.collect_uploads(timedelta(0)) == len(NAMES)
    assert ceph.aborted == NAMES


def test_a_lost_race_wrote_nothing(ceph: Ceph, provider: AWSBucketStorageProvider) -> None:
    """The 500 of a conditional write that met another is certain: equal bytes are the other's.

    With the outcome taken for unknown, both of two writers of the same bytes had written them.
    """
    assert provider.keeps_conditions(), "which is found out by a first trial"
    target = provider.open_object("counter")
    before = target.put(b"0")
    ceph.races, ceph.other = 1, b"1"
    with pytest.raises(Throttled, match="another write") as raised:
        target.put(b"1", if_match=before)
    assert raised.value.request_id == "tx00-default"
    before = target.put(b"0")
    ceph.races = 1
    with pytest.raises(PreconditionFailed) as refusal:
        patient(provider).open_object("counter").put(b"1", if_match=before)
    assert not isinstance(refusal.value, OutcomeUnknown)


def test_a_lost_answer_is_settled(ceph: Ceph, provider: AWSBucketStorageProvider) -> None:
    """A write that was applied, its answer lost, is found by its bytes."""
    target = patient(provider).open_object("token")
    before = target.put(b"old")
    target.put(b"first", if_match=before)  # the service's conditions are known from here on
    ceph.cuts = 1
    after = target.put(b"ours alone", if_match=etag_of(b"first"))
    assert after == target.stat().etag == etag_of(b"ours alone")
    assert ceph.cuts == 0
