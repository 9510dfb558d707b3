"""The fault matrix: every operation of the storage protocol under every fault, by seed.

A seed's text decides everything: data, sizes, which requests fail, how, and how often. A
case prepares objects without faults, acts once through the stack that wiring assembles, and
then looks at what is really there, again without faults. An act ends in what the protocol
promises, or in an error of the tree that names operation and object; in both cases there are
no half objects, no bytes that nobody wrote, and no parts that nobody will ever commit.
"""

from __future__ import annotations

import io
import json
import random
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bootstream.clouds.oci import Principal
from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Conflict,
    ObjectNotFound,
    PreconditionFailed,
)
from bootstream.storage.oci import OCIBucketStorageProvider
from bootstream.storage.oci.client import Client, Request
from bootstream.storage.oci.connection import TimeLimits
from bootstream.storage.oci.listing import unfinished_uploads
from bootstream.storage.oci.pool import Pool
from bootstream.storage.retry import RetryPolicy, RetryStorageProvider
from bootstream.testing.localoci import LocalOciServer

PART = 64 << 10
LARGE = "matrix-large"
LARGE_SIZE = (13 << 20) + 4321  # beyond what one request reads, and several pieces of a download
_SILENCE = 0.3
_ABORTS = 5  # attempts at an abort: so much trouble leaves parts for the next collection
_LATE = timedelta(seconds=-5)  # older than this is everything

Act = Callable[[], Any]
Check = Callable[[Any, BootstreamError | None], None]


def nap(seconds: float) -> None:
    """Wait, but not as long as somebody wants to."""
    time.sleep(min(seconds, 0.002))


class Stage:
    """What all cases share: the server, a store that meets its faults, and one that checks."""

    def __init__(self, oci: LocalOciServer, principal: Principal, folder: Path) -> None:
        self.oci = oci
        self.folder = folder
        self._pool = Pool(oci.endpoint)
        self.client = Client(self._pool, principal, oci.bucket, oci.namespace)
        self._clean = OCIBucketStorageProvider(
            oci.bucket, namespace=oci.namespace, principal=principal, endpoint=oci.endpoint
        )
        self.clean = RetryStorageProvider(self._clean)
        self._troubled = OCIBucketStorageProvider(
            oci.bucket,
            namespace=oci.namespace,
            principal=principal,
            endpoint=oci.endpoint,
            parallel=4,
            part_size=PART,
            limits=TimeLimits(connect=2, first_byte=_SILENCE, progress=_SILENCE),
            sleep=nap,
        )
        self.large = random.Random("large").randbytes(LARGE_SIZE)
        self.clean.open_object(LARGE).read_from(io.BytesIO(self.large))

    def store(self, rng: random.Random) -> RetryStorageProvider:
        """Return the store that is tried, as wiring assembles it, with short waits."""
        policy = RetryPolicy(first_wait=0.01)
        return RetryStorageProvider(self._troubled, policy, sleep=nap, rng=rng)

    def set_faults(self, rules: list[dict[str, Any]]) -> None:
        """Replace all faults."""
        self.oci.administer("PUT", "faults", rules)

    def close(self) -> None:
        """Close all connections."""
        self._troubled.close()
        self._clean.close()
        self._pool.close()


@dataclass
class Case:
    """One seed: its objects have names of their own."""

    stage: Stage
    seed: str
    rng: random.Random
    store: RetryStorageProvider
    key: str
    rules: list[dict[str, Any]] = field(default_factory=list)
    met: list[dict[str, Any]] = field(default_factory=list)  # the same, with their hits

    def data(self, least: int, most: int) -> bytes:
        """Return random bytes."""
        return self.rng.randbytes(self.rng.randint(least, most))

    def write(self, key: str, data: bytes) -> str:
        """Write an object without trouble; return its etag."""
        return self.stage.clean.open_object(key).put(data)

    def content(self, key: str) -> bytes | None:
        """Return an object's content as it is; None: it does not exist."""
        sink = io.BytesIO()
        try:
            self.stage.clean.open_object(key).write_to(sink)
        except ObjectNotFound:
            return None
        return sink.getvalue()

    def names(self) -> list[str]:
        """Return what there is below the case's key."""
        return [info.path for info in self.stage.clean.list_objects(self.key)]

    @property
    def flipped(self) -> bool:
        """Whether a bit of an answer's body may fall over: no layer here can see that in JSON."""
        return any(rule["effect"] == "flip" and not rule.get("upload") for rule in self.rules)

    def hits(self, *, operation: str | None = None, effect: str | None = None) -> int:
        """Return how often the faults of a request, or of a kind, took effect."""
        return sum(
            rule["hits"]
            for rule in self.met
            if operation is None or rule["operation"] in (operation, "*")
            if effect is None or rule["effect"] == effect
        )

    def parts(self, name: str, upload_id: str) -> list[object]:
        """Return the parts of an upload that is not finished."""
        client = self.stage.client
        target = f"{client.base()}/u/{quote(name)}?uploadId={quote(upload_id, safe='')}"
        found = client.json(Request("GET", target, "test", name))
        assert isinstance(found, list)
        return found

    def assert_read(self, got: bytes | bytearray, expected: bytes) -> None:
        """Check bytes of a range, which have no checksum here: a flipped bit is one, no more."""
        if self.flipped:
            assert len(got) == len(expected)
            assert sum(a != b for a, b in zip(got, expected, strict=True)) <= self.hits(
                effect="flip"
            )
        else:
            assert got == expected


Operation = Callable[[Case], tuple[Act, Check]]


# -- operations: what they prepare, do, and promise ----------------------------------------------


def put(case: Case) -> tuple[Act, Check]:
    """A plain write, over an object or over none."""
    old = case.data(0, 1000) if case.rng.random() < 0.5 else None
    new = case.data(0, 100_000)
    if old is not None:
        case.write(case.key, old)

    def check(_: Any, error: BootstreamError | None) -> None:
        assert not isinstance(error, Conflict)
        assert case.content(case.key) in ((new,) if error is None else (old, new))

    return lambda: case.store.open_object(case.key).put(new), check


def put_create(case: Case) -> tuple[Act, Check]:
    """A create-only write: it is ours, or the other's."""
    other = case.data(1, 1000) if case.rng.random() < 0.5 else None
    new = case.data(1001, 100_000)
    if other is not None:
        case.write(case.key, other)

    def check(_: Any, error: BootstreamError | None) -> None:
        content = case.content(case.key)
        if other is not None:
            assert error is not None
            assert content == other
        else:
            assert content in ((new,) if error is None else (None, new))
            assert case.flipped or not isinstance(error, AlreadyExists), "it is our own"

    return lambda: case.store.open_object(case.key).put(new, if_none_match=True), check


def put_match(case: Case) -> tuple[Act, Check]:
    """A write over one version, which is there, is not any more, or is gone."""
    old, new = case.data(1, 1000), case.data(1001, 100_000)
    etag = case.write(case.key, old)
    found: bytes | None = old
    state = case.rng.choice(["there", "there", "replaced", "gone"])
    if state == "replaced":
        found = case.data(1, 1000)
        case.write(case.key, found)
    elif state == "gone":
        found = None
        case.stage.clean.open_object(case.key).delete()

    def check(_: Any, error: BootstreamError | None) -> None:
        content = case.content(case.key)
        if state != "there":
            assert error is not None
            assert content == found
        else:
            assert content in ((new,) if error is None else (old, new))
            assert case.flipped or not isinstance(error, PreconditionFailed), "it is our own"

    return lambda: case.store.open_object(case.key).put(new, if_match=etag), check


def read_small(case: Case) -> tuple[Act, Check]:
    """A part of an object, up to and beyond its end."""
    data = case.data(1, 200_000)
    case.write(case.key, data)
    offset = case.rng.randrange(len(data) + 10)
    buffer = bytearray(case.rng.randint(1, 100_000))

    def check(count: Any, error: BootstreamError | None) -> None:
        if error is None:
            case.assert_read(buffer[:count], data[offset : offset + len(buffer)])

    return lambda: case.store.open_object(case.key).read_at(buffer, offset), check


def get(case: Case) -> tuple[Act, Check]:
    """A small object at once; what it was stored with proves its bytes."""
    data = case.data(0, 100_000)
    case.write(case.key, data)

    def check(found: Any, error: BootstreamError | None) -> None:
        if error is None:
            assert found[0] == data

    return lambda: case.store.open_object(case.key).get(100_000), check


def read_large(case: Case) -> tuple[Act, Check]:
    """So much of an object that several requests bring it."""
    data = case.stage.large
    offset = case.rng.randrange(2 << 20)
    buffer = bytearray(12 << 20)

    def check(count: Any, error: BootstreamError | None) -> None:
        if error is None:
            case.assert_read(buffer[:count], data[offset : offset + len(buffer)])

    return lambda: case.store.open_object(LARGE).read_at(buffer, offset), check


def _download(case: Case, key: str, data: bytes, *, whole: bool) -> tuple[Act, Check]:
    sink = io.BytesIO()

    def check(count: Any, error: BootstreamError | None) -> None:
        got = sink.getvalue()
        expected = data[: len(got)]
        if error is None:
            assert count == len(got) == len(data)
        if whole:
            assert got == expected
        else:
            case.assert_read(got, expected)

    return lambda: case.store.open_object(key).write_to(sink), check


def download_small(case: Case) -> tuple[Act, Check]:
    """A whole object that has a checksum: not one bit is wrong."""
    data = case.data(0, 200_000)
    case.write(case.key, data)
    return _download(case, case.key, data, whole=True)


def download_large(case: Case) -> tuple[Act, Check]:
    """A whole object in pieces."""
    return _download(case, LARGE, case.stage.large, whole=False)


def _upload(case: Case, new: bytes, act: Act) -> tuple[Act, Check]:
    old = case.data(0, 1000) if case.rng.random() < 0.5 else None
    if old is not None:
        case.write(case.key, old)

    def check(_: Any, error: BootstreamError | None) -> None:
        assert case.content(case.key) in ((new,) if error is None else (old, new))
        left = [one for one in unfinished_uploads(case.stage.client) if one.name == case.key]
        notes = " ".join(getattr(error, "__notes__", ()))
        given_up = case.hits(operation="AbortMultipartUpload") >= _ABORTS
        if not given_up and "could not be removed" not in notes:
            # An upload whose id was lost with an answer has no parts, and costs nothing.
            assert case.hits(operation="CreateMultipartUpload") >= len(left), "an upload is left"
            for upload in left:
                assert not case.parts(upload.name, upload.upload_id), "parts are left"

    return act, check


def upload_small(case: Case) -> tuple[Act, Check]:
    """A stream that one request takes."""
    new = case.data(0, PART - 1)
    return _upload(
        case, new, lambda: case.store.open_object(case.key).read_from(_stream(case, new))
    )


def upload_parts(case: Case) -> tuple[Act, Check]:
    """A stream in several parts."""
    new = case.data(PART, 6 * PART)
    return _upload(
        case, new, lambda: case.store.open_object(case.key).read_from(_stream(case, new))
    )


def upload_file(case: Case) -> tuple[Act, Check]:
    """A file, in one part or several."""
    new = case.data(PART // 2, 5 * PART)
    path = case.stage.folder / "file"
    path.write_bytes(new)
    return _upload(case, new, lambda: case.store.open_object(case.key).write_from_file_system(path))


class _Pipe:
    """A source that cannot be rewound."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, 50_000))


def _stream(case: Case, data: bytes) -> io.BytesIO | _Pipe:
    return io.BytesIO(data) if case.rng.random() < 0.7 else _Pipe(data)


def stat(case: Case) -> tuple[Act, Check]:
    """What is known of an object."""
    data = case.data(0, 1000)
    etag = case.stage.clean.open_object(case.key).put(data, metadata={"name": "value"})

    def check(found: Any, error: BootstreamError | None) -> None:
        assert not isinstance(error, ObjectNotFound)
        if error is None:
            assert (found.size, found.etag) == (len(data), etag)
            assert found.metadata == {"name": "value"}

    return lambda: case.store.open_object(case.key).stat(), check


def exists(case: Case) -> tuple[Act, Check]:
    """Whether there is an object: trouble is neither yes nor no."""
    there = case.rng.random() < 0.5
    if there:
        case.write(case.key, b"data")

    def check(found: Any, error: BootstreamError | None) -> None:
        assert error is not None or found is there

    return lambda: case.store.open_object(case.key).exists(), check


def listing(case: Case) -> tuple[Act, Check]:
    """All objects, or an error after some of them."""
    names = sorted(f"{case.key}/{number}" for number in range(case.rng.randint(0, 12)))
    for name in names:
        case.write(name, b"data")
    seen: list[str] = []

    def act() -> None:
        for info in case.store.list_objects(case.key):
            seen.append(info.path)

    def check(_: Any, error: BootstreamError | None) -> None:
        if not case.flipped:
            assert seen == names[: len(seen)]
            assert error is not None or len(seen) == len(names)

    return act, check


def delete(case: Case) -> tuple[Act, Check]:
    """One object, or none."""
    data = case.data(0, 1000) if case.rng.random() < 0.7 else None
    if data is not None:
        case.write(case.key, data)

    def check(_: Any, error: BootstreamError | None) -> None:
        assert case.content(case.key) in ((None,) if error is None else (None, data))

    return lambda: case.store.open_object(case.key).delete(), check


def delete_prefix(case: Case) -> tuple[Act, Check]:
    """All below a prefix, and nothing beside it."""
    for number in range(case.rng.randint(0, 12)):
        case.write(f"{case.key}/in/{number}", b"data")
    beside = [f"{case.key}/i", f"{case.key}/in", f"{case.key}/inn/a"]
    for name in beside:
        case.write(name, b"data")

    def check(_: Any, error: BootstreamError | None) -> None:
        names = case.names()
        assert set(names) >= set(beside)
        assert error is not None or case.flipped or names == beside

    return lambda: case.store.delete_objects_with_prefix(f"{case.key}/in"), check


def copy(case: Case) -> tuple[Act, Check]:
    """A copy within the store, over an object or over none."""
    data = case.data(0, 100_000)
    old = case.data(0, 1000) if case.rng.random() < 0.5 else None
    case.write(f"{case.key}/a", data)
    if old is not None:
        case.write(f"{case.key}/b", old)

    def check(_: Any, error: BootstreamError | None) -> None:
        assert not isinstance(error, ObjectNotFound)
        assert case.content(f"{case.key}/a") == data
        assert case.content(f"{case.key}/b") in ((data,) if error is None else (old, data))

    return lambda: case.store.copy_object(f"{case.key}/a", f"{case.key}/b"), check


def sign_url(case: Case) -> tuple[Act, Check]:
    """A URL that is good."""
    data = case.data(1, 1000)

    def check(url: Any, error: BootstreamError | None) -> None:
        if error is None and not case.flipped:
            request = urllib.request.Request(url, data=data, method="PUT")
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200
            assert case.content(case.key) == data

    return lambda: case.store.signed_upload_url(case.key, timedelta(hours=1)), check


def details(case: Case) -> tuple[Act, Check]:
    """What the store is."""
    expected = case.stage.clean.details()

    def check(found: Any, error: BootstreamError | None) -> None:
        if error is None:
            assert found.identity == expected.identity
            assert abs(found.now - expected.now) < timedelta(minutes=1)

    return case.store.details, check


def collect(case: Case) -> tuple[Act, Check]:
    """Uploads that others left go; objects stay."""
    client = case.stage.client
    case.write(case.key, b"data")
    for number in range(case.rng.randint(1, 4)):
        body = json.dumps({"object": f"{case.key}/{number}"}).encode()
        client.json(
            Request("POST", f"{client.base()}/u", "test", "upload", body=body, signed_body=True)
        )

    def check(_: Any, error: BootstreamError | None) -> None:
        left = [one for one in unfinished_uploads(client) if one.name.startswith(f"{case.key}/")]
        assert error is not None or case.flipped or not left
        assert case.content(case.key) == b"data"

    return lambda: case.store.collect_uploads(_LATE), check


_PARTS = ["CreateMultipartUpload", "UploadPart", "CommitMultipartUpload"]
OPERATIONS: dict[str, tuple[Operation, list[str]]] = {
    "put": (put, ["PutObject"]),
    "put create-only": (put_create, ["PutObject"]),
    "put if-match": (put_match, ["PutObject"]),
    "read small": (read_small, ["GetObject"]),
    "get": (get, ["GetObject"]),
    "read large": (read_large, ["GetObject"]),
    "download small": (download_small, ["GetObject", "GetObject", "HeadObject"]),
    "download large": (download_large, ["GetObject", "GetObject", "HeadObject"]),
    "upload small": (upload_small, ["PutObject"]),
    "upload in parts": (upload_parts, _PARTS),
    "upload file": (upload_file, [*_PARTS, "UploadPart", "AbortMultipartUpload"]),
    "stat": (stat, ["HeadObject"]),
    "exists": (exists, ["HeadObject", "GetObject"]),
    "list": (listing, ["ListObjects"]),
    "delete": (delete, ["DeleteObject"]),
    "delete prefix": (delete_prefix, ["ListObjects", "BatchDeleteObjects", "DeleteObject"]),
    "copy": (copy, ["CopyObject", "GetWorkRequest"]),
    "sign URL": (sign_url, ["GetBucket", "CreatePreauthenticatedRequest"]),
    "details": (details, ["GetBucket"]),
    "collect uploads": (collect, ["ListMultipartUploads", "AbortMultipartUpload"]),
}

# -- faults --------------------------------------------------------------------------------------

FAULTS = (
    "latency",
    "429",
    "5xx",
    "reset",
    "reset body",
    "cut",
    "short",
    "long",
    "flip",
    "stall",
    "html",
    "expired",
    "stray",
    "contended",
    "upload reset",
    "upload cut",
    "upload stall",
    "upload flip",
)


def draw_rule(kind: str, requests: list[str], rng: random.Random) -> dict[str, Any]:
    """Make a rule of a kind: for which requests, at which of them, and how often."""
    lasting: list[int | None] = [1, 1, 2, 3, None]
    brief: list[int | None] = [1, 1, 2]
    late = rng.random() < 0.4
    after = rng.choice([None, 0, 1, rng.randrange(100_000)])
    counts = lasting
    rule: dict[str, Any] = {"effect": kind}
    match kind:
        case "latency":
            rule |= {"seconds": rng.choice([0.01, 0.05, 2 * _SILENCE]), "jitter": 0.02}
            counts = brief
        case "429":
            rule |= {"effect": "status", "status": 429, "retry_after": rng.choice([None, 0, 1, 5])}
        case "5xx":
            rule |= {"effect": "status", "status": rng.choice([500, 502, 503, 504]), "late": late}
        case "reset":
            rule |= {"late": late}
        case "reset body":
            rule |= {"effect": "reset", "after": after or 0}
        case "cut" | "flip":
            rule |= {"after": after}
        case "stall":
            rule |= {"after": after, "seconds": 3 * _SILENCE}
            counts = brief
        case "html":
            rule |= {"status": rng.choice([200, 403, 502, 503]), "late": late}
        case "contended":
            rule |= {"effect": "status", "status": 409, "code": "ConcurrentObjectUpdate"}
        case _ if kind.startswith("upload "):
            rule |= {"effect": kind.removeprefix("upload "), "upload": True, "after": after}
            if kind == "upload stall":
                rule["seconds"] = 3 * _SILENCE
                counts = brief
    rule["operation"] = rng.choice([*requests, *requests, "*"])
    rule["count"] = rng.choice(counts)
    rule["skip"] = rng.choice([0, 0, 0, 0, 1, 3])
    if rng.random() < 0.1:
        rule |= {"probability": 0.5, "seed": rng.randrange(1 << 30)}
    return rule


def draw_rules(kind: str, requests: list[str], rng: random.Random) -> list[dict[str, Any]]:
    """Make the faults of a case: one of the kind, now and then with another one."""
    rules = [draw_rule(kind, requests, rng)]
    if rng.random() < 0.3:
        rules.append(draw_rule(rng.choice(FAULTS), requests, rng))
    return rules


# -- running -------------------------------------------------------------------------------------


def run(stage: Stage, seed: str, rules: list[dict[str, Any]] | None = None) -> None:
    """Run the case of a seed, which is ``OPERATION/FAULT/NUMBER``; under ``rules``, if given.

    What it finds is an AssertionError.
    """
    operation, kind, _ = seed.split("/")
    rng = random.Random(seed)
    stage.set_faults([])
    case = Case(stage, seed, rng, stage.store(rng), "m/" + seed.replace(" ", "-"))
    prepare, requests = OPERATIONS[operation]
    act, check = prepare(case)
    case.rules = draw_rules(kind, requests, rng) if rules is None else rules
    stage.set_faults(case.rules)
    result, error = None, None
    try:
        result = act()
    except BootstreamError as raised:
        error = raised
        assert error.operation, f"{error!r} has no operation"
        assert error.object, f"{error!r} has no object"
    finally:
        case.met = stage.oci.faults.rules()
        stage.set_faults([])
    check(result, error)
    stage.clean.open_object(case.key).delete()
    stage.clean.delete_objects_with_prefix(case.key)
    stage.clean.collect_uploads(_LATE)
    left = [one.name for one in unfinished_uploads(stage.client)]
    assert case.key not in left, "collecting leaves it"
