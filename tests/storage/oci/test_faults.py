"""What servers and networks do wrong: a clear error each time, and never wrong bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tests.storage.oci.helpers import (
    Script,
    ScriptedServer,
    Seen,
    StubPrincipal,
    provider_for,
    refusal,
    reply,
)
from tests.storage.oci.memorybucket import MemoryBucket

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    Throttled,
    Unavailable,
)
from bootstream.localoci.checksums import crc32c
from bootstream.storage.oci import OCIBucketStorageProvider, checksums
from bootstream.storage.oci.connection import TimeLimits
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider

DATA = random.Random(7).randbytes(3 << 20)


def _ranged(body: bytes = DATA[:100], content_range: str = "") -> bytes:
    fields = {"content-range": f"bytes 0-{len(body) - 1}/{len(DATA)}", "etag": "e"}
    if content_range:
        fields["content-range"] = content_range
    return reply(206, body, fields=fields)


def _read(script: Script, size: int = 100, offset: int = 0) -> bytes:
    with ScriptedServer(script) as server:
        provider = provider_for(server)
        try:
            buffer = bytearray(size)
            count = provider.open_object("a/b").read_at(buffer, offset)
            return bytes(buffer[:count])
        finally:
            provider.close()


BAD_ANSWERS: dict[str, bytes] = {
    "cut short": reply(206, DATA[:50], length=100, content_range=f"bytes 0-99/{1 << 20}", etag="e")
    + ScriptedServer.CLOSE,
    "cut in the head": b"HTTP/1.1 206 Par" + ScriptedServer.CLOSE,
    "over-long": _ranged() + b"more",
    "shorter than its range": _ranged(DATA[:50], "bytes 0-99/1000"),
    "longer than its range": _ranged(DATA[:100], "bytes 0-49/1000"),
    "another range": _ranged(content_range="bytes 1-100/1000"),
    "less than the range though there is more": _ranged(DATA[:50], "bytes 0-49/1000"),
    "no range": reply(206, DATA[:100], etag="e"),
    "range with stars": _ranged(content_range="bytes 0-99/*"),
    "no etag": reply(206, DATA[:100], content_range="bytes 0-99/1000"),
    "all of it": reply(200, DATA[:200], etag="e"),
    "a page": reply(200, b"<html>Sign in</html>", content_type="text/html", request_id=None),
    "a page with an etag": reply(
        200, b"<html>Sign in</html>", content_type="text/html", etag="e", request_id=None
    ),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n" + ScriptedServer.CLOSE,
    "negative length": b"HTTP/1.1 206 x\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"HTTP/1.1 206 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "unknown coding": b"HTTP/1.1 206 x\r\nTransfer-Encoding: gzip\r\n\r\n",
    "endless head": b"HTTP/1.1 206 x\r\n" + b"a: b\r\n" * 20_000,
    "bad chunks": b"HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\ncontent-range: bytes 0-99/999"
    b"\r\netag: e\r\n\r\nzz\r\n",
    "huge chunk": b"HTTP/1.1 206 x\r\nTransfer-Encoding: chunked\r\ncontent-range: bytes 0-99/999"
    b"\r\netag: e\r\n\r\nffffffffffff\r\n",
    "past the end, it claims": refusal(416, "InvalidRange", content_range="bytes */1000"),
    "nothing": ScriptedServer.CLOSE,
    "trouble": refusal(503, "ServiceUnavailable"),
    "trouble in HTML": reply(502, b"<html>Bad gateway</html>", request_id=None),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers_to_a_read(name: str) -> None:
    """Each is Unavailable and worth another try, and no byte of it counts."""
    with pytest.raises(Unavailable) as raised:
        _read(lambda _: BAD_ANSWERS[name])
    assert raised.value.transient
    assert raised.value.object == "a/b"
    assert raised.value.operation == "read object"


@pytest.mark.parametrize("status", [301, 302, 307, 407])
def test_go_elsewhere(status: int) -> None:
    """Redirects are not followed: a signed request goes to the endpoint alone."""
    with pytest.raises(Unavailable, match="between us") as raised:
        _read(lambda _: reply(status, location="http://127.0.0.1:1/"))
    assert not raised.value.transient


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(404, "ObjectNotFound"), ObjectNotFound, ""),
        (refusal(404, "NamespaceNotFound"), BucketNotFound, "OCI_NAMESPACE"),
        (refusal(404, "BucketNotFound"), BucketNotFound, "manage objects"),
        (refusal(404, "NotAuthorizedOrNotFound"), BucketNotFound, "manage objects"),
        (refusal(403, "NotAllowed"), PermissionDenied, "manage objects"),
        (refusal(401, "NotAuthenticated"), PermissionDenied, "fingerprint"),
        (refusal(409, "NotRestored"), Unavailable, "oci os object restore"),
        (refusal(413, "RequestEntityTooLarge"), InvalidInput, ""),
        (refusal(400, "InvalidParameter"), InvalidInput, ""),
        (refusal(501, "NotImplemented"), Unavailable, ""),
        (reply(404, b"<html>nginx</html>", request_id=None), Unavailable, "ENDPOINT"),
        (reply(403, b"<html>No!</html>", request_id=None), Unavailable, "ENDPOINT"),
    ],
)
def test_refusals(answer: bytes, kind: type[BootstreamError], words: str) -> None:
    """The kind of each, its remedy and the request's id; none is worth another try."""
    with pytest.raises(kind) as raised:
        _read(lambda _: answer)
    assert type(raised.value) is kind
    assert not raised.value.transient
    assert words in (raised.value.remedy or "")
    if b"rid-1" in answer:
        assert raised.value.request_id == "rid-1"


def test_throttled() -> None:
    """The wait that the service asked for is on the error."""
    with pytest.raises(Throttled) as raised:
        _read(lambda _: refusal(429, "TooManyRequests", retry_after="7"))
    assert raised.value.retry_after == 7
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    with pytest.raises(Unavailable) as unavailable:
        _read(lambda _: refusal(503, "Busy", retry_after=later))
    assert 80 < (unavailable.value.retry_after or 0) <= 90


def test_past_the_end_without_a_size() -> None:
    """The size is looked up, since the answer does not tell it."""

    def script(seen: Seen) -> bytes:
        if seen.method == "HEAD":
            return reply(200, length=100, etag="e")
        return refusal(416, "InvalidRange")

    assert _read(script, offset=100) == b""
    with pytest.raises(Unavailable):
        _read(script, offset=99)


@pytest.mark.parametrize("stalled", [b"", b"HTTP/1.1 206", _ranged()[:-50]])
def test_standing_still(stalled: bytes) -> None:
    """A server that says nothing more is left, wherever it stops."""
    with ScriptedServer(lambda _: stalled + ScriptedServer.STALL) as server:
        provider = provider_for(server, limits=TimeLimits(5, 0.2, 0.2))
        with pytest.raises(Unavailable, match="stands still"):
            provider.open_object("a").read_at(bytearray(100), 0)
        provider.close()


def test_nobody_there() -> None:
    """A refused connection names the host and what to check."""
    with ScriptedServer(lambda _: b"") as server:
        provider = provider_for(server)
    with pytest.raises(Unavailable, match="cannot be reached") as raised:
        provider.open_object("a").stat()
    assert "OCI_REGION" in (raised.value.remedy or "")
    provider.close()


def test_closed_while_idle() -> None:
    """A kept connection that the server closed is replaced, and nobody notices."""
    bucket = MemoryBucket()
    with ScriptedServer(lambda seen: bucket(seen) + ScriptedServer.CLOSE) as server:
        provider = provider_for(server)
        target = provider.open_object("a")
        for number in range(20):
            target.put(bytes([number]))
            assert target.size() == 1
            assert target.exists()
        provider.close()
        assert len(server.seen) == 60


# -- signatures -----------------------------------------------------------------------------------


def test_one_refresh_for_many_threads() -> None:
    """A 401 for all of 16 threads refreshes once, and every request gets through."""
    bucket = MemoryBucket()
    expired = threading.Event()
    waiting = threading.Barrier(16)

    def script(seen: Seen) -> bytes:
        if expired.is_set() and "tenancy/user/0" in seen.headers["authorization"]:
            waiting.wait(10)
            return refusal(401, "NotAuthenticated")
        return bucket(seen)

    with ScriptedServer(script) as server:
        principal = StubPrincipal()
        provider = provider_for(server, principal)
        provider.open_object("a").put(DATA)
        expired.set()

        def read(number: int) -> bool:
            buffer = bytearray(1000)
            provider.open_object("a").read_at(buffer, number)
            return bytes(buffer) == DATA[number : number + 1000]

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(read, range(16)))
        provider.close()
        assert principal.refreshes == 1
        assert sum("user/1" in seen.headers["authorization"] for seen in server.seen) == 16


def test_clock_skew() -> None:
    """A 401 because of this host's clock says so, by how much, and what to do."""
    theirs = format_datetime(datetime.now(UTC) - timedelta(seconds=900), usegmt=True)
    with pytest.raises(PermissionDenied, match=r"90[0-9] s ahead") as raised:
        _read(lambda _: refusal(401, "NotAuthenticated", date=theirs))
    assert "clock" in (raised.value.remedy or "")


def test_uploads_are_sent_again_with_fresh_credentials() -> None:
    """Also the body, after a 401."""
    bucket = MemoryBucket()

    def script(seen: Seen) -> bytes:
        if "tenancy/user/0" in seen.headers["authorization"]:
            return refusal(401, "NotAuthenticated")
        return bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server, part_size=1 << 20)
        assert provider.open_object("a").read_from(io.BytesIO(DATA)) == len(DATA)
        provider.close()
    assert bucket.objects["a"].data == DATA


# -- missing, or hidden ---------------------------------------------------------------------------


def test_stray_bucket_not_found() -> None:
    """The service sometimes denies a bucket that is there: asked once more, it is found."""
    bucket = MemoryBucket()
    turns = iter(range(1000))

    def script(seen: Seen) -> bytes:
        return refusal(404, "BucketNotFound") if next(turns) % 2 == 0 else bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        provider.open_object("a").put(b"x", if_none_match=True)
        buffer = bytearray(1)
        assert provider.open_object("a").read_at(buffer, 0) == 1
        provider.close()


def test_denied_in_a_bucket_that_is_there() -> None:
    """A bucket that can be seen is not missing: a permission is, and is named."""

    def script(seen: Seen) -> bytes:
        if seen.path == "/n/ns/b/bucket":
            body = b"{}" if seen.method == "GET" else b""
            return reply(200, body, date=format_datetime(datetime.now(UTC), usegmt=True))
        return reply(404) if seen.method == "HEAD" else refusal(404, "BucketNotFound")

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        for use in (
            lambda: provider.open_object("a").stat(),
            lambda: provider.open_object("a").put(b""),
            lambda: list(provider.list_objects()),
        ):
            with pytest.raises(PermissionDenied) as raised:
                use()
            assert "to manage objects in compartment" in (raised.value.remedy or "")
            assert "target.bucket.name='bucket'" in (raised.value.remedy or "")
        with pytest.raises(PermissionDenied) as raised:
            provider.signed_upload_url("a", timedelta(hours=1))
        assert "PAR_MANAGE" in (raised.value.remedy or "")
        provider.close()


# -- downloads ------------------------------------------------------------------------------------


class _Breaking:
    """A bucket whose answers to GET are cut at random places, each with the chance ``odds``."""

    def __init__(self, odds: float) -> None:
        self.bucket = MemoryBucket()
        self._odds = odds
        self._random = random.Random(3)
        self.broken = 0

    def __call__(self, seen: Seen) -> bytes:
        answer = self.bucket(seen)
        if seen.method == "GET" and self._random.random() < self._odds:
            self.broken += 1
            return answer[: self._random.randrange(len(answer))] + ScriptedServer.CLOSE
        return answer


def test_download_goes_on_where_it_broke_off() -> None:
    """Bodies that break anywhere add up to the right bytes, in order."""
    breaking = _Breaking(0.5)
    data = DATA * 8
    with ScriptedServer(breaking) as server:
        provider = provider_for(server)
        provider.open_object("a").read_from(io.BytesIO(data))
        sink = io.BytesIO()
        assert provider.open_object("a").write_to(sink) == len(data)
        provider.close()
    assert sink.getvalue() == data
    assert breaking.broken


def test_object_replaced_while_it_is_downloaded() -> None:
    """Never a mixture: the download ends with an error that says why."""
    bucket = MemoryBucket()
    data = DATA * 8
    reads = iter(range(1000))

    def script(seen: Seen) -> bytes:
        if seen.method == "GET" and next(reads) == 3:
            bucket.objects["a"].etag = "another"
        return bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        provider.open_object("a").read_from(io.BytesIO(data))
        sink = io.BytesIO()
        with pytest.raises(Unavailable, match="replaced while it was read"):
            provider.open_object("a").write_to(sink)
        provider.close()
    assert data.startswith(sink.getvalue())


def test_large_read_of_a_replaced_object() -> None:
    """A read by several requests is of one version, or of none."""
    bucket = MemoryBucket()
    size = 16 << 20
    turn = iter(range(100_000))

    def script(seen: Seen) -> bytes:
        if seen.method == "GET" and next(turn) in (1, 2):
            bucket.objects["a"].data = b"\1" * size
            bucket.objects["a"].etag = "another"
        return bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        provider.open_object("a").read_from(io.BytesIO(b"\0" * size))
        buffer = bytearray(size + 1000)
        assert provider.open_object("a").read_at(buffer, 0) == size
        provider.close()
    assert buffer[:size] == b"\1" * size


def test_damaged_on_the_way_down() -> None:
    """A whole object that does not match its checksum is fetched again, then refused."""
    bucket = MemoryBucket()
    left = [1]

    def script(seen: Seen) -> bytes:
        answer = bucket(seen)
        if seen.method == "GET" and left[0]:
            left[0] -= 1
            return answer[:-1] + bytes([answer[-1] ^ 1])
        return answer

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        provider.open_object("a").put(DATA)
        sink = io.BytesIO()
        provider.open_object("a").write_to(sink)
        assert sink.getvalue() == DATA
        left[0] = 100
        with pytest.raises(Unavailable, match="damaged"):
            provider.open_object("a").write_to(io.BytesIO())
        retrying = RetryStorageProvider(provider, RetryPolicy(3, first_wait=0.001))
        sink = io.BytesIO()
        with pytest.raises(Unavailable, match="damaged"):
            retrying.open_object("a").write_to(sink)
        assert sink.getvalue() == b"", "nothing that is damaged passes"
        provider.close()


def test_damaged_in_a_download_that_broke_off() -> None:
    """What was gone on with is compared, too: the first answer's head had the checksum."""
    bucket = MemoryBucket()
    reads = [0]

    def script(seen: Seen) -> bytes:
        answer = bucket(seen)
        if seen.method == "GET":
            reads[0] += 1
            if reads[0] == 1:
                return answer[:-1000] + ScriptedServer.CLOSE
            if reads[0] == 2:
                return answer[:-1] + bytes([answer[-1] ^ 1])
        return answer

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        provider.open_object("a").put(DATA)
        sink = io.BytesIO()
        provider.open_object("a").write_to(sink)
        assert sink.getvalue() == DATA
        assert reads[0] == 3
        provider.close()


# -- uploads --------------------------------------------------------------------------------------


def _upload(script: Script, part_size: int = 256 << 10) -> None:
    with ScriptedServer(script) as server:
        provider = provider_for(server, part_size=part_size)
        try:
            provider.open_object("a").read_from(io.BytesIO(DATA))
        finally:
            provider.close()


def test_parts_are_sent_again() -> None:
    """Each part may fail some times, in any way, and the object is right in the end."""
    bucket = MemoryBucket()
    rng = random.Random(5)
    tries: dict[str, int] = {}

    def script(seen: Seen) -> bytes:
        tries[seen.target] = tries.get(seen.target, 0) + 1
        if tries[seen.target] < 3 and "uploadPartNum" in seen.target:
            return rng.choice(
                [
                    refusal(503, "ServiceUnavailable"),
                    refusal(429, "TooManyRequests", retry_after="0"),
                    refusal(409, "ConcurrentObjectUpdate"),
                    refusal(400, "UnmatchedContentSHA256"),
                    ScriptedServer.CLOSE,
                    reply(200),
                ]
            )
        return bucket(seen)

    _upload(script, 1 << 20)
    assert bucket.objects["a"].data == DATA
    assert not bucket.uploads


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(403, "NotAllowed"), PermissionDenied),
        (refusal(500, "InternalServerError"), Unavailable),
    ],
)
def test_failed_upload_leaves_nothing(answer: bytes, kind: type[BootstreamError]) -> None:
    """It is aborted when a part fails for good, and its error is the part's."""
    bucket = MemoryBucket()

    def script(seen: Seen) -> bytes:
        return answer if "uploadPartNum=5" in seen.target else bucket(seen)

    with pytest.raises(kind):
        _upload(script)
    assert not bucket.objects
    assert not bucket.uploads


def test_lost_answer_to_the_commit() -> None:
    """When only the answer was lost, the object is recognised as this upload's."""
    bucket = MemoryBucket()
    commits = iter(range(100))

    def script(seen: Seen) -> bytes:
        answer = bucket(seen)
        if seen.method == "POST" and "uploadId" in seen.target and next(commits) == 0:
            return ScriptedServer.CLOSE
        return answer

    _upload(script)
    assert bucket.objects["a"].data == DATA


def test_upload_aborted_by_others() -> None:
    """A part of an upload that is gone is an error, and not that the object is missing."""
    bucket = MemoryBucket()

    def script(seen: Seen) -> bytes:
        if seen.method == "POST" and "uploadId" in seen.target:
            bucket.uploads.clear()
        return bucket(seen)

    with pytest.raises(Unavailable, match="aborted"):
        _upload(script)

    def earlier(seen: Seen) -> bytes:
        if "uploadPartNum=3" in seen.target:
            bucket.uploads.clear()
        return bucket(seen)

    with pytest.raises(Unavailable, match="aborted"):
        _upload(earlier)


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256"])
def test_other_bytes_were_stored(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum in the answer counts, also an md5 where ours is not known."""
    if algorithm == "SHA256":
        monkeypatch.setattr(checksums, "_CRC32C", None)
    assert checksums.algorithm() == algorithm
    md5 = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    sha = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    crc = base64.b64encode(crc32c(b"other").to_bytes(4, "big")).decode()
    own = {"SHA256": {"opc-content-sha256": sha}, "CRC32C": {"opc-content-crc32c": crc}}
    for fields in ({"opc-content-md5": md5}, own[algorithm]):
        with ScriptedServer(lambda _, f=fields: reply(200, etag="e", fields=f)) as server:  # type: ignore[misc]  # bound now
            provider = provider_for(server)
            with pytest.raises(Unavailable, match="other bytes"):
                provider.open_object("a").put(b"mine")
            provider.open_object("a").put(b"other")
            provider.close()


def test_conditions_are_sent_once_and_contended_ones_again() -> None:
    """409 says that nothing was written: the only refusal after which a condition is repeated."""
    bucket = MemoryBucket()
    turns = iter(range(100))

    def script(seen: Seen) -> bytes:
        return refusal(409, "ConcurrentObjectUpdate") if next(turns) < 2 else bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        etag = provider.open_object("a").put(b"1", if_none_match=True)
        with pytest.raises(AlreadyExists):
            provider.open_object("a").put(b"2", if_none_match=True)
        with pytest.raises(PreconditionFailed):
            provider.open_object("a").put(b"2", if_match="bad\r\nx-injected: 1")
        provider.open_object("a").put(b"2", if_match=etag)
        provider.close()


# -- listings and deletions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"", b"null", b"{}", b'{"objects": 1}', b'{"objects": [1]}',
        b'{"objects": [{"name": "other"}]}', b"<html></html>", b"[" * 100_000,
        b'{"objects": [{"name": "p/b"}, {"name": "p/a"}]}',
        b'{"objects": [{"name": "p/a"}, {"name": "p/a"}]}',
        b'{"objects": [{"name": "p/a", "size": 1, "etag": "e", "timeModified": "?"}]}',
        b'{"objects": [{"name": "p/a"}], "nextStartWith": "p/a"}',
        b'{"objects": [], "nextStartWith": 5}',
        b'{"objects": [{"name": "p/\\ud800"}]}',
    ],
)  # fmt: skip
def test_bad_listings(body: bytes) -> None:
    """What is no listing, or would never end, is Unavailable."""
    with ScriptedServer(lambda _: reply(200, body)) as server:
        provider = provider_for(server)
        with pytest.raises(Unavailable):
            list(provider.list_objects("p"))
        provider.close()


def test_foreign_names_are_not_listed_but_deleted() -> None:
    """A folder's marker of another tool is no path, and goes with its prefix."""
    bucket = MemoryBucket()
    with ScriptedServer(bucket) as server:
        provider = provider_for(server)
        provider.open_object("p/a").put(b"")
        bucket.objects["p/"] = bucket.objects["p//x"] = bucket.objects["p/a"]
        assert [info.path for info in provider.list_objects("p")] == ["p/a"]
        assert provider.delete_objects_with_prefix("p") == 3
        provider.close()
    assert not bucket.objects


def test_keys_that_cannot_be_deleted_are_named() -> None:
    """All of them, after everything else went."""
    bucket = MemoryBucket()

    def script(seen: Seen) -> bytes:
        if seen.path.endswith("batchDeleteObjects"):
            bucket.objects.pop("p/0", None)
            return reply(200, b'{"deleted": [{"objectName": "p/0"}], "failed": []}')
        if seen.method == "DELETE" and seen.path[-1] in "37":
            return refusal(403, "NotAllowed")
        return bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        for number in range(10):
            provider.open_object(f"p/{number}").put(b"")
        with pytest.raises(PermissionDenied, match="2 objects") as raised:
            provider.delete_objects_with_prefix("p")
        assert raised.value.object == "p/3, p/7"
        provider.close()
    assert sorted(bucket.objects) == ["p/3", "p/7"]


def test_collecting() -> None:
    """Old uploads are aborted, our expired URLs deleted, and everything else stays."""
    bucket = MemoryBucket()
    pars = {
        "old": b'{"id": "old", "name": "bootstream-upload", "timeExpires": "2001-01-01T00:00:00Z"}',
        "new": b'{"id": "new", "name": "bootstream-upload", "timeExpires": "2999-01-01T00:00:00Z"}',
        "theirs": b'{"id": "theirs", "name": "x", "timeExpires": "2001-01-01T00:00:00Z"}',
    }

    def script(seen: Seen) -> bytes:
        if "/p/" in seen.path:
            del pars[seen.path.rpartition("/")[2]]
            return reply(204)
        if seen.path.endswith("/p"):
            return reply(200, b"[" + b",".join(pars.values()) + b"]")
        return bucket(seen)

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        bucket.uploads["left over"] = ("a/ü", {}, {})
        assert provider.collect_uploads(timedelta(days=1), dry_run=True) == 2
        assert bucket.uploads
        assert provider.collect_uploads(timedelta(days=1)) == 2
        assert provider.collect_uploads(timedelta(days=1)) == 0
        provider.close()
    assert not bucket.uploads
    assert sorted(pars) == ["new", "theirs"]


# -- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ObjectNotFound", ObjectNotFound),
        ("NotAuthorizedOrNotFound", PermissionDenied),
        ("InternalError", Unavailable),
    ],
)
def test_failed_copies(code: str, kind: type[BootstreamError]) -> None:
    """The work request's error is the copy's; a missing policy for the service is named."""
    states = iter(["ACCEPTED", "IN_PROGRESS", "FAILED"])

    def script(seen: Seen) -> bytes:
        if seen.path.endswith("/copyObject"):
            return reply(202, opc_work_request_id="w/1")
        if seen.path == "/workRequests/w%2F1/errors":
            return reply(200, b'{"items": [{"code": "%s", "message": "m"}]}' % code.encode())
        assert seen.path == "/workRequests/w%2F1"
        return reply(200, b'{"status": "%s"}' % next(states).encode())

    with ScriptedServer(script) as server:
        provider = provider_for(server)
        with pytest.raises(kind) as raised:
            provider.copy_object("a", "b")
        if kind is PermissionDenied:
            assert "service objectstorage-us-ashburn-1" in (raised.value.remedy or "")
        provider.close()


def test_behind_retries() -> None:
    """With the retry wrapper around, a server that fails half of the time is good enough."""
    bucket = MemoryBucket()
    rng = random.Random(11)

    def script(seen: Seen) -> bytes:
        return rng.choice([bucket(seen), refusal(503, "Busy"), ScriptedServer.CLOSE])

    with ScriptedServer(script) as server:
        inner = provider_for(server)
        policy = RetryPolicy(attempts=50, first_wait=0.001, longest_wait=0.01)
        provider = RetryStorageProvider(inner, policy)
        target = provider.open_object("a")
        target.put(b"unique", if_none_match=True)
        assert target.size() == 6
        buffer = bytearray(6)
        assert target.read_at(buffer, 0) == 6
        assert [info.path for info in provider.list_objects()] == ["a"]
        target.delete()
        assert not target.exists()
        inner.close()


def test_names_of_buckets_and_endpoints() -> None:
    """What cannot be one is refused before anything is sent."""

    def make(**given: object) -> Callable[[], object]:
        fields = {"bucket": "b", "namespace": "n", "endpoint": "https://h"} | given
        return lambda: OCIBucketStorageProvider(
            str(fields.pop("bucket")),
            principal=StubPrincipal(),
            **fields,  # type: ignore[arg-type]  # wrong on purpose
        )

    for bad in (
        {"bucket": "a/b"},
        {"bucket": ""},
        {"namespace": "a b"},
        {"endpoint": "http://objectstorage.example"},
        {"endpoint": "https://user:secret@host"},
        {"endpoint": "https://host/path"},
        {"endpoint": "ftp://host"},
        {"endpoint": "https://host:99999999"},
        {"parallel": 0},
        {"part_size": 1},
        {"ca_file": "/nonexistent/ca.pem"},
    ):
        with pytest.raises(InvalidInput) as raised:
            make(**bad)()
        assert "secret" not in str(raised.value)
