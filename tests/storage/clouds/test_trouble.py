"""Servers that misbehave: never wrong bytes, never a lost error, nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import io
import random
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from bootstream.errors import (
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    Throttled,
    Unavailable,
)
from bootstream.storage import objectstore_engine
from bootstream.storage.aws import AWSBucketStorageProvider
from bootstream.storage.gcp import GCPBucketStorageProvider
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.testing.servers import LocalBucket, Moto, RcloneS3
from bootstream.testing.servers.scripted import CUT, Reply, Script, scripted
from bootstream.testing.storage import HashingSink, PatternSource, content, paths


def over(url: str, bucket: str = "bucket") -> AWSBucketStorageProvider:
    return AWSBucketStorageProvider(
        bucket, endpoint=url, access_key="test-key", secret_key="test-secret"
    )


DATE = {"Last-Modified": "Tue, 24 Nov 2026 23:00:00 GMT", "ETag": '"0123"'}


def xml(code: str, message: str = "some words") -> bytes:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>REQ-1</RequestId>"
    return (text + "</Error>").encode()


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with Moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


def through(moto: Moto, wrong: Callable[[str, str], Reply | None]) -> Script:
    """A script that passes requests on, but for those that ``wrong`` answers."""
    host = urlsplit(moto.url).netloc

    def script(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        answer = wrong(method, path)
        if answer is not None:
            return answer
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            headers.pop("connection", None)
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            data = reply.read()
            kept = {
                name: value
                for name, value in reply.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "date", "server")
            }
            if method != "HEAD":
                kept.pop("Content-Length", None)
            return reply.status, kept, data
        finally:
            connection.close()

    return script


# -- bodies and ranges ----------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 99])
def test_cut_body(cut: int) -> None:
    """A body that ends early is an error that can be repeated, never a short count."""
    headers = DATE | {"Content-Range": "bytes 0-99/1000", CUT: str(cut)}
    with scripted(lambda *_: (206, dict(headers), bytes(100))) as url:
        target = over(url).open_object("a/b")
        with pytest.raises(Unavailable) as raised:
            target.read_at(bytearray(100), 0)
        assert raised.value.transient
        assert raised.value.object == "a/b"
        with pytest.raises(Unavailable):
            target.write_to(io.BytesIO())


@pytest.mark.parametrize(
    ("status", "content_range", "size"),
    [
        (206, "bytes 10-109/1000", 100),
        (206, "bytes 0-49/1000", 50),
        (206, "bytes 0-199/1000", 200),
        (206, "bytes 0-99/50", 100),
        (206, "nonsense", 100),
        (206, None, 100),
        (200, None, 1000),
        (204, None, 0),
    ],
)
def test_wrong_range(status: int, content_range: str | None, size: int) -> None:
    """Bytes from elsewhere, or more or fewer of them, are refused."""
    headers = DATE | ({"Content-Range": content_range} if content_range else {})
    with scripted(lambda *_: (status, dict(headers), bytes(size))) as url:
        with pytest.raises(BootstreamError) as raised:
            over(url).open_object("a/b").read_at(bytearray(100), 0)
        assert isinstance(raised.value, Unavailable)
        with pytest.raises(Unavailable):
            over(url).open_object("a/b").write_to(io.BytesIO())


def test_ranges_ignored(tmp_path_factory: pytest.TempPathFactory) -> None:
    """rclone answers a request for a range with the whole object: said, and not repeated."""
    with RcloneS3(tmp_path_factory.mktemp("rclone")) as server:
        server.create_bucket("bucket")
        provider = AWSBucketStorageProvider(
            "bucket",
            endpoint=server.url,
            access_key=server.keys.access_key,
            secret_key=server.keys.secret_key,
        )
        target = provider.open_object("a/b")
        target.put(b"0123456789")
        for offset, length in ((0, 5), (2, 3), (0, 10), (0, 20), (5, 100)):
            buffer = bytearray(b"." * length)
            with pytest.raises(Unavailable, match="part of an object") as raised:
                target.read_at(buffer, offset)
            assert not raised.value.transient
            assert "ranges" in (raised.value.remedy or "")
            assert bytes(buffer) == b"." * length
        with pytest.raises(Unavailable):
            target.write_to(io.BytesIO())
        assert target.read_at(bytearray(4), 10) == 0
        assert provider.details().create_only is False
        with pytest.raises(InvalidInput):
            target.put(b"", if_none_match=True)


def test_google_without_generations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """localbucket takes Google's requests and ignores their conditions: refused, not believed."""
    with LocalBucket(tmp_path_factory.mktemp("localbucket")) as server:
        server.create_bucket("bucket")
        provider = GCPBucketStorageProvider("bucket", endpoint=server.url, anonymous=True)
        assert provider.details().create_only is False
        target = provider.open_object("a/b")
        etag = target.put(b"first")
        attempts: tuple[Callable[[], str], ...] = (
            lambda: target.put(b"second", if_none_match=True),
            lambda: target.put(b"second", if_match=etag),
        )
        for attempt in attempts:
            with pytest.raises(InvalidInput, match="ignores the conditions"):
                attempt()
        assert content(provider, "a/b") == b"first"
        sink = HashingSink()
        source = PatternSource(20 << 20)
        provider.open_object("big").read_from(source)
        assert provider.open_object("big").write_to(sink) == 20 << 20
        assert sink.digest.digest() == source.digest.digest()
        assert paths(provider) == ["a/b", "big"]


def test_large_reads_are_of_one_version(moto: Moto) -> None:
    """Several ranges, while the object is replaced: all of them from one version, or an error."""
    provider = over(moto.url, moto.create_bucket(f"bucket-{uuid4().hex[:8]}"))
    target, size = provider.open_object("big"), (18 << 20) + 5
    target.read_from(io.BytesIO(b"\1" * size))
    buffer = bytearray(size + 10)
    assert target.read_at(buffer, 0) == size
    assert buffer.count(b"\1") == size
    assert target.read_at(memoryview(buffer)[:-20], 20) == size - 20
    replaced = threading.Event()

    class Sink:
        def write(self, data: memoryview, /) -> None:
            if not replaced.is_set():
                target.read_from(io.BytesIO(b"\2" * size))
                replaced.set()
            seen.add(data[0])
            seen.add(data[-1])

    seen: set[int] = set()
    with contextlib.suppress(Unavailable):
        target.write_to(Sink())
    assert replaced.is_set()
    assert seen == {1}


def test_files_are_filled_at_their_place(moto: Moto, tmp_path: Path) -> None:
    """All of it arrives; after a failure, the file ends where the bytes in order do."""
    bucket, size = moto.create_bucket("bucket-" + uuid4().hex[:8]), 30_000_001
    data = random.Random(3).randbytes(size)
    over(moto.url, bucket).open_object("large").read_from(io.BytesIO(data))
    with (tmp_path / "whole").open("wb") as file:
        file.write(b"before")
        assert over(moto.url, bucket).open_object("large").write_to(file) == size
        assert file.tell() == size + 6
    assert (tmp_path / "whole").read_bytes() == b"before" + data

    def script(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        if headers.get("range", "").startswith(f"bytes={16 << 20}-"):
            return 503, {}, b""
        return through(moto, lambda _method, _path: None)(method, path, headers, body)

    with scripted(script) as url, (tmp_path / "part").open("wb", buffering=0) as part:
        with pytest.raises(Unavailable):
            over(url, bucket).open_object("large").write_to(part)
        assert part.tell() == 16 << 20
    assert (tmp_path / "part").read_bytes() == data[: 16 << 20]
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="space"):
        over(moto.url, bucket).open_object("large").write_to(full)


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after a time without progress, which can be repeated."""
    monkeypatch.setattr(objectstore_engine, "PROGRESS_TIMEOUT", timedelta(seconds=0.3))
    go_on = threading.Event()

    def script(*_: object) -> Reply:
        go_on.wait(10)
        return 200, dict(DATE), b""

    with scripted(script) as url:
        target = over(url).open_object("a/b")
        try:
            for use in (target.stat, lambda: target.read_at(bytearray(1), 0)):
                with pytest.raises(Unavailable) as raised:
                    use()
                assert raised.value.transient
        finally:
            go_on.set()


def test_nobody_there() -> None:
    """A refused connection can be repeated; no URL is in the message."""
    with scripted(lambda *_: (200, {}, b"")) as url:
        pass
    with pytest.raises(Unavailable, match="cannot be reached") as raised:
        over(url).open_object("a/b").size()
    assert raised.value.transient
    assert "http" not in str(raised.value).replace("HTTP error", "")


# -- what servers say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "transient"),
    [
        (503, "SlowDown", Throttled, True),
        (429, "TooManyRequests", Throttled, True),
        (500, "InternalError", Unavailable, True),
        (502, "", Unavailable, True),
        (501, "NotImplemented", Unavailable, False),
        (400, "RequestTimeout", Unavailable, True),
        (409, "OperationAborted", Unavailable, True),
        (409, "ConditionalRequestConflict", Unavailable, True),
        (403, "AccessDenied", PermissionDenied, False),
        (403, "SignatureDoesNotMatch", PermissionDenied, False),
        (403, "RequestTimeTooSkewed", PermissionDenied, False),
        (401, "Unauthorized", PermissionDenied, False),
        (400, "AuthorizationHeaderMalformed", InvalidInput, False),
        (301, "PermanentRedirect", InvalidInput, False),
        (400, "InvalidArgument", InvalidInput, False),
        (404, "NoSuchBucket", BucketNotFound, False),
    ],
)
def test_answers(status: int, code: str, kind: type[BootstreamError], transient: bool) -> None:
    """Each has its error, with what is known of the request."""
    with scripted(lambda *_: (status, {}, xml(code))) as url:
        with pytest.raises(kind) as raised:
            over(url).open_object("a/b").put(b"x")
        assert type(raised.value) is kind
        assert raised.value.transient is transient
        if status != 301:
            assert raised.value.request_id == "REQ-1"
        assert raised.value.operation == "write object"
        if kind in (PermissionDenied, InvalidInput, BucketNotFound) and code != "InvalidArgument":
            assert raised.value.remedy
        assert "test-secret" not in str(raised.value)


def test_region_and_clock_remedies() -> None:
    """What to set is named."""
    for status, code, words in (
        (301, "PermanentRedirect", "AWS_REGION"),
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "s3:PutObject"),
    ):
        with scripted(lambda *_, s=status, c=code: (s, {}, xml(c))) as url:
            with pytest.raises(BootstreamError) as raised:
                over(url).open_object("a/b").put(b"x")
            assert words in (raised.value.remedy or "")


def test_a_hidden_bucket_is_no_missing_object() -> None:
    """A 404 without words is looked into; who may not list still learns of the object."""

    def script(method: str, path: str, *_: object) -> Reply:
        if "list-type" in path:
            return listing[0], {}, xml(listing[1])
        return 404, {}, b""

    with scripted(script) as url:
        listing = (404, "NoSuchBucket")
        with pytest.raises(BucketNotFound):
            over(url).open_object("a/b").exists()
        listing = (403, "AccessDenied")
        assert not over(url).open_object("a/b").exists()
        with pytest.raises(ObjectNotFound):
            over(url).open_object("a/b").stat()


def test_trouble_is_never_taken_for_absence() -> None:
    """``exists`` raises what stands in its way."""
    with scripted(lambda *_: (503, {}, b"")) as url:
        with pytest.raises((Unavailable, Throttled)):
            over(url).open_object("a/b").exists()
        with pytest.raises((Unavailable, Throttled)):
            over(url).details()


# -- uploads --------------------------------------------------------------------------------------


def test_parts_are_repeated(moto: Moto) -> None:
    """A part that fails is sent again, without the stream being read again."""
    bucket = moto.create_bucket(f"bucket-{uuid4().hex[:8]}")
    failed: set[str] = set()
    lock = threading.Lock()

    def wrong(method: str, path: str) -> Reply | None:
        part = re.search(r"partNumber=\d+", path)
        with lock:
            if part is None or part[0] in failed:
                return None
            failed.add(part[0])
        return 503, {}, xml("SlowDown")

    with scripted(through(moto, wrong)) as url:
        provider = over(url, bucket)
        source, sink = PatternSource(20 << 20), HashingSink()
        assert provider.open_object("big").read_from(source) == 20 << 20
        assert len(failed) == 3
        assert provider.open_object("big").write_to(sink) == 20 << 20
        assert sink.digest.digest() == source.digest.digest()


def test_failed_upload_leaves_nothing(moto: Moto) -> None:
    """A part that is refused fails the upload, which is aborted."""
    bucket = moto.create_bucket(f"bucket-{uuid4().hex[:8]}")

    def wrong(method: str, path: str) -> Reply | None:
        return (403, {}, xml("AccessDenied")) if "partNumber=2" in path else None

    with scripted(through(moto, wrong)) as url, pytest.raises(PermissionDenied):
        over(url, bucket).open_object("big").read_from(PatternSource(20 << 20))
    assert paths(over(moto.url, bucket)) == []
    assert over(moto.url, bucket).collect_uploads(timedelta(0), dry_run=True) == 0


def test_upload_that_comes_out_short(moto: Moto) -> None:
    """The size is looked at afterwards."""
    bucket = moto.create_bucket(f"bucket-{uuid4().hex[:8]}")

    honest = through(moto, lambda *_: None)

    def script(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        status, answer, data = honest(method, path, headers, body)
        if method == "HEAD":
            answer = {name: v for name, v in answer.items() if name.lower() != "content-length"}
            answer["Content-Length"] = "7"
        return status, answer, data

    with scripted(script) as url:
        with pytest.raises(Unavailable, match="7 bytes after an upload of") as raised:
            over(url, bucket).open_object("big").read_from(PatternSource(9 << 20))
        assert raised.value.transient


def test_wrapped_in_retries(moto: Moto) -> None:
    """The retry wrapper repeats what this layer calls transient."""
    bucket = moto.create_bucket(f"bucket-{uuid4().hex[:8]}")
    count = iter(range(1000))

    def wrong(method: str, path: str) -> Reply | None:
        return (503, {}, xml("SlowDown")) if next(count) % 3 == 0 else None

    with scripted(through(moto, wrong)) as url:
        provider = RetryStorageProvider(
            over(url, bucket), RetryPolicy(first_wait=0.001, longest_wait=0.01)
        )
        provider.open_object("a").put(b"content")
        assert content(provider, "a") == b"content"
        assert paths(provider) == ["a"]
        assert provider.delete_objects_with_prefix("x") == 0


# -- deleting -------------------------------------------------------------------------------------


def test_failed_deletions_are_named(moto: Moto) -> None:
    """Every object that stays is in the error; the others go."""
    bucket = moto.create_bucket(f"bucket-{uuid4().hex[:8]}")
    for name in ("p/1", "p/2", "p/3", "p/4"):
        over(moto.url, bucket).open_object(name).put(b"x")

    def script(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        if "delete" in path:
            keys = re.findall(rb"<Key>([^<]*)</Key>", body)
            kept = [key for key in keys if key in (b"p/2", b"p/4")]
            for key in set(keys) - set(kept):
                over(moto.url, bucket).open_object(key.decode()).delete()
            errors = b"".join(
                b"<Error><Key>%s</Key><Code>AccessDenied</Code><Message>no</Message></Error>" % key
                for key in kept
            )
            gone = b"".join(
                b"<Deleted><Key>%s</Key></Deleted>" % key for key in keys if key not in kept
            )
            return 200, {}, b"<DeleteResult>%s%s</DeleteResult>" % (gone, errors)
        return through(moto, lambda *_: None)(method, path, headers, body)

    with scripted(script) as url:
        with pytest.raises(PermissionDenied) as raised:
            over(url, bucket).delete_objects_with_prefix("p")
        assert "2 of 4" in str(raised.value)
        assert "p/2" in str(raised.value)
        assert "p/4" in str(raised.value)
        assert "p/1" not in str(raised.value)
    assert paths(over(moto.url, bucket)) == ["p/2", "p/4"]
