"""The application as a whole: whatever is asked, the answer is the service's kind of answer."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstream.localoci.app import Application
from bootstream.localoci.errors import ApiError, Disconnect
from bootstream.localoci.http import Body, BytesSource, Request, Response, error_response

if TYPE_CHECKING:
    from collections.abc import Iterator

SEGMENTS = st.sampled_from(
    [
        *("n", "local", "b", "o", "u", "p", "l", "objectversions", "actions", "workRequests"),
        *("copyObject", "renameObject", "restoreObjects", "updateObjectStorageTier"),
        *("batchDeleteObjects", "k", "", "%2F", "%00", "%FF", "%zz", "é", "errors", "id", "1"),
    ]
)
PATHS = st.one_of(
    st.lists(SEGMENTS, max_size=9).map(lambda parts: "/" + "/".join(parts)),
    st.lists(SEGMENTS, max_size=3).map(lambda parts: "/n/local/b/b/" + "/".join(parts)),
    SEGMENTS.map(lambda last: "/n/local/b/b/actions/" + last),
)
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["limit", "page", "start", "end", "startAfter", "prefix", "delimiter", "fields",
         "uploadId", "uploadPartNum", "versionId", "compartmentId", "httpResponseContentType"]
    ),
    st.sampled_from(["", "1", "0", "-1", "a", "/", "%00", "%FF", "%F4%8F%BF%BF", "name,size",
                     "9" * 30, "%C2%B2", "*", "MA", "MSBr",
                     "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkgaw", "0" * 5000]),
    max_size=4,
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        ["range", "if-match", "if-none-match", "content-md5", "opc-checksum-algorithm",
         "opc-content-crc32c", "storage-tier", "opc-meta-a", "content-type", "opc-multipart"]
    ),
    st.sampled_from(["", "*", "bytes=0-", "bytes=-1", "bytes=9-8", "x", "AAAA", "\xff", "CRC32C",
                     "Archive", ",", '"', "true", "x" * 5000, "bytes=99999999999999999999-"]),
    max_size=4,
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["k", "", "b", "local", "us-ashburn-1", "Standard", "\0", "a\r\nb", "\ud800",
                       "AnyObjectReadWrite", "ListObjects", "2099-01-01T00:00:00Z", "9999-12-31"])
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(
        st.sampled_from(["partNum", "etag", "objectName", "ifMatch", "opc-meta-a", "é"]),
        inner,
        max_size=3,
    ),
    max_leaves=4,
)  # fmt: skip
BODIES = st.dictionaries(
    st.sampled_from(
        ["name", "compartmentId", "object", "objectName", "sourceName", "newName", "metadata",
         "sourceObjectName", "destinationObjectName", "destinationBucket", "destinationRegion",
         "destinationNamespace", "destinationObjectMetadata", "sourceVersionId", "versioning",
         "destinationObjectIfNoneMatchETag", "destinationObjectIfMatchETag", "publicAccessType",
         "sourceObjectIfMatchETag", "srcObjIfMatchETag", "hours", "storageTier", "objects",
         "isSkipDeletedResult", "partsToCommit", "partsToExclude", "accessType", "timeExpires",
         "bucketListingAction", "contentType", "items", "freeformTags"]
    ),
    VALUES,
    max_size=8,
).map(lambda value: json.dumps(value).encode())  # fmt: skip


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    """One application for all questions; what they do to it stays."""
    with TemporaryDirectory() as folder:
        application = Application(Path(folder))
        yield application
        application.close()


def ask(
    application: Application, method: str, target: str, body: bytes = b"", **headers: str
) -> Response:
    sent = {"host": "x", "content-length": str(len(body)), **headers}
    request = Request(method, target, sent, Body(BytesSource(body), len(body)))
    try:
        return application.handle(request)
    except ApiError as error:
        return error_response(error)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"]),
    PATHS,
    PARAMETERS,
    HEADERS,
    st.binary(max_size=20) | BODIES,
)
def test_every_question_has_an_answer(
    application: Application,
    method: str,
    path: str,
    parameters: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    """No path, query, header or body is a defect, and no answer has a broken header."""
    application.ensure_bucket("b", "c")
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    target = path.encode().decode("latin-1") + ("?" + query if query else "")
    response = ask(application, method, target, body, **headers)
    try:
        assert 200 <= response.status < 500 or response.status == 501
        for name, value in response.headers.items():
            assert "\n" not in name + value
            assert "\r" not in name + value
            (name + value).encode("latin-1", "replace")
    finally:
        response.close()


BAD = [
    *(True, 0, -1, 10**30, 1.5, float("nan"), "", "x", "\0", "a\r\nb: c", "\ud800", "é" * 600),
    *([], [1], ["k"], [{}], {}, {"a": 1}, {"a": {"b": []}}, {"partNum": 1}),
    *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"),
]
GOOD: dict[str, dict[str, Any]] = {
    "/n/local/b": {
        "name": "new", "compartmentId": "c", "metadata": {"a": "b"}, "freeformTags": {"a": "b"},
        "definedTags": {}, "storageTier": "Standard", "publicAccessType": "ObjectRead",
        "versioning": "Disabled", "objectEventsEnabled": False, "kmsKeyId": "k",
    },
    "/n/local/b/b": {"compartmentId": "c", "metadata": {"a": "b"}, "autoTiering": "Disabled"},
    "/n/local/b/b/u": {
        "object": "k", "contentType": "a/b", "storageTier": "Standard", "metadata": {"a": "b"},
        "cacheControl": "no-store",
    },
    "/n/local/b/b/p": {
        "name": "p", "accessType": "AnyObjectRead", "bucketListingAction": "ListObjects",
        "objectName": "k", "timeExpires": "2099-01-01T00:00:00Z",
    },
    "/n/local/b/b/actions/copyObject": {
        "sourceObjectName": "k", "destinationRegion": "us-ashburn-1", "destinationBucket": "b",
        "destinationNamespace": "local", "destinationObjectName": "l", "sourceVersionId": None,
        "sourceObjectIfMatchETag": "*", "destinationObjectIfMatchETag": None,
        "destinationObjectIfNoneMatchETag": None, "destinationObjectMetadata": {"a": "b"},
        "destinationObjectStorageTier": "Standard",
    },
    "/n/local/b/b/actions/renameObject": {
        "sourceName": "k", "newName": "k", "srcObjIfMatchETag": "*", "newObjIfMatchETag": "*",
        "newObjIfNoneMatchETag": None,
    },
    "/n/local/b/b/actions/restoreObjects": {"objectName": "cold", "hours": 1},
    "/n/local/b/b/actions/updateObjectStorageTier": {
        "objectName": "k", "storageTier": "Standard",
    },
    "/n/local/b/b/actions/batchDeleteObjects": {
        "objects": [{"objectName": "none", "ifMatch": None}], "isSkipDeletedResult": False,
    },
    "/n/local/b/b/u/k?uploadId=UPLOAD": {
        "partsToCommit": [{"partNum": 1, "etag": "x"}], "partsToExclude": [],
    },
}  # fmt: skip


@pytest.mark.parametrize("target", list(GOOD))
def test_no_field_is_trusted(tmp_path: Path, target: str) -> None:
    """Each field of each body, replaced by what it should not be, is refused or does no harm."""
    application = Application(tmp_path)
    try:
        application.ensure_bucket("b", "c")
        ask(application, "PUT", "/n/local/b/b/o/k", b"x")
        ask(application, "PUT", "/n/local/b/b/o/cold", b"x", **{"storage-tier": "Archive"})
        begun = ask(application, "POST", "/n/local/b/b/u", b'{"object": "k"}')
        assert isinstance(begun.body, bytes)
        upload = json.loads(begun.body)["uploadId"]
        ask(application, "PUT", f"/n/local/b/b/u/k?uploadId={upload}&uploadPartNum=1", b"x")
        target_now = target.replace("UPLOAD", upload)
        good = GOOD[target]
        for field in good:
            for bad in BAD:
                changed = json.dumps({**good, field: bad}).encode()
                response = ask(application, "POST", target_now, changed)
                assert response.status < 500, (field, bad)
                for name, value in response.headers.items():
                    assert "\n" not in name + value
        listed = ask(application, "GET", "/n/local/b/b/o?fields=name,size,md5")
        assert listed.status == 200
        last = ask(application, "POST", target_now, json.dumps(good).encode())
        assert last.status in {200, 202, 400, 409}
        application.service.work.hurry()
    finally:
        application.close()


class Once:
    """Faults that were chosen by a test."""

    def __init__(self) -> None:
        self.instead: Response | None = None
        self.lost = False

    def before(self, request: Request) -> Response | None:
        """Answer instead, where that was chosen."""
        return self.instead

    def after(self, request: Request, response: Response) -> Response:
        """Lose the answer, where that was chosen."""
        if self.lost:
            raise Disconnect
        return response


def test_faults(tmp_path: Path) -> None:
    """An answer can stand for a request that has no effect, or be lost after it has its effect."""
    faults = Once()
    application = Application(tmp_path, faults=faults)
    try:
        application.ensure_bucket("b", "c")
        faults.instead = Response(503)
        assert ask(application, "PUT", "/n/local/b/b/o/k", b"x").status == 503
        faults.instead = None
        assert ask(application, "HEAD", "/n/local/b/b/o/k").status == 404
        faults.lost = True
        with pytest.raises(Disconnect):
            ask(application, "PUT", "/n/local/b/b/o/k", b"x")
        with pytest.raises(Disconnect):
            ask(application, "GET", "/n/local/b/b/o/k")
        faults.lost = False
        assert ask(application, "HEAD", "/n/local/b/b/o/k").status == 200
    finally:
        application.close()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is 507, and nothing of it stays."""
    application = Application(tmp_path)
    try:
        application.ensure_bucket("b", "c")
        (tmp_path / "files").chmod(0o500)
        real: Any = application.service.database.path
        monkeypatch.setattr(application.service.database, "path", lambda name: "/dev/full")
        monkeypatch.setattr(application.service.database, "drop", lambda *names: None)
        response = ask(application, "PUT", "/n/local/b/b/o/k", b"x")
        assert response.status == 507
        monkeypatch.setattr(application.service.database, "path", real)
        assert ask(application, "HEAD", "/n/local/b/b/o/k").status == 404
    finally:
        (tmp_path / "files").chmod(0o700)
        application.close()
