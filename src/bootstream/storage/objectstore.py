"""A bucket through obstore: what the providers for AWS, GCP and Azure share.

obstore (Rust) moves the bytes and signs; here are the protocol's promises:

- obstore's own retries are off, since the retry wrapper is the one layer that repeats. Parts
  of a multipart upload are the exception: nobody above could repeat a part alone, and a
  stream of gigabytes cannot be read again because one of its thousand parts met a 503.
- A read of more than one range is pinned to the etag of its first answer. Every answer's
  range and length are checked, so that a server that ignores ranges, or a body that is cut,
  is an error and never wrong bytes.
- etags are given without quotes, which the services add in some answers and not in others.
  Where the etag is a digest of the content (S3, GCS), writing the same bytes again gives the
  same etag: a condition then holds for the same content, whoever wrote it.
- The storage's clock is the ``Date`` header of an answer to an unsigned request at its
  endpoint; obstore shows no headers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BucketNotFound,
    Conflict,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    Unavailable,
)
from bootstream.storage.objectstore_engine import Engine, Traits
from bootstream.storage.objectstore_errors import Answer, parse, store_error
from bootstream.storage.objectstore_parts import in_order
from bootstream.storage.paths import normalize_prefix, validate_copy, validate_path
from bootstream.storage.protocol import ObjectInfo, StorageDetails
from bootstream.storage.s3requests import XmlBucket, http_pool

if TYPE_CHECKING:
    from bootstream.storage.objectstore_object import BucketObject

_BUCKET_SEEN_SECONDS = 60.0
_NOWHERE = ".bootstream-none"
_PROBE = ".bootstream-probe"
_NO_ETAG = "00000000000000000000000000000000"
_PAGE = 1000


class BucketProvider:
    """One bucket. Safe to use from several threads.

    Subclasses say how a cloud differs, and override what it alone can do.
    """

    def __init__(self, engine: Engine, traits: Traits) -> None:
        self.engine = engine
        self.traits = traits
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._bucket_seen = float("-inf")
        self._conditions: bool | None = None
        self._quoted = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine.bucket!r})"

    # -- the protocol -------------------------------------------------------------------------

    def open_object(self, path: str) -> BucketObject:
        """Return a handle; touches nothing."""
        from bootstream.storage.objectstore_object import BucketObject  # noqa: PLC0415 - a cycle

        return BucketObject(self, self.check_path(path))

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix`` in UTF-8 byte order, over all pages."""
        return self._list(normalize_prefix(prefix))

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        # obstore takes a prefix as whole components, and adds the slash itself.
        wanted = prefix.removesuffix("/") or None
        found = self._pages(wanted)
        last = b""
        for meta in in_utf8_order(found) if self.traits.utf16_order else found:
            name = meta["path"].encode()
            if name < last:
                raise InvalidInput(
                    "the storage lists its objects in no order",
                    operation="list objects",
                    object=self.engine.bucket,
                    remedy="use a general purpose bucket",
                )
            last = name
            if meta["path"].startswith(prefix):
                # Some lists tell fractions of a second, which no header of an object does.
                changed = meta["last_modified"].replace(microsecond=0)
                yield ObjectInfo(meta["path"], meta["size"], plain_etag(meta["e_tag"]), changed)

    def _pages(self, prefix: str | None) -> Iterator[Any]:
        about = prefix or self.engine.bucket
        with self.mapped("list objects", about):
            pages = iter(self.engine.obstore.list(self.engine.once, prefix, chunk_size=_PAGE))
        while True:
            with self.mapped("list objects", about):
                page = next(pages, None)
            if page is None:
                return
            yield from page

    def copy_object(self, source: str, target: str) -> None:
        """Copy an object within the bucket; see the protocol.

        What is larger than one request of the cloud can copy goes through this host.
        """
        validate_copy(source, target)
        origin, copy = self.open_object(source), self.open_object(target)
        stat = origin.stat()
        if self.traits.max_copy is not None and stat.size > self.traits.max_copy:
            origin.copy_through_here(copy, stat)
            return
        try:
            with self.mapped("copy object", source):
                self.engine.obstore.copy(self.engine.once, source, target)
        except Conflict as error:
            raise Unavailable(
                "the storage is busy with it", operation="copy object", object=source
            ) from error

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix`` in batches; return how many objects went."""
        wanted = normalize_prefix(prefix)
        if not wanted:
            raise InvalidInput("an empty prefix would delete the whole store", operation="delete")
        names = [info.path for info in self._list(wanted)]
        failed: list[tuple[str, BootstreamError]] = []
        for start in range(0, len(names), self.traits.delete_batch):
            failed += self._delete_batch(names[start : start + self.traits.delete_batch])
        if failed:
            raise _combined(failed, len(names))
        return len(names)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a URL for one ``PUT``; a secret.

        Raises:
            InvalidInput: ``ttl`` is not between a second and what the cloud allows.
        """
        path = self.check_path(path)
        if not timedelta(seconds=1) <= ttl <= self.traits.max_ttl:
            raise InvalidInput(
                f"a signed URL is good for between a second and {self.traits.max_ttl}",
                operation="sign URL",
                object=path,
            )
        with self.mapped("sign URL", path):
            url: str = self.engine.obstore.sign(self.engine.once, "PUT", path, ttl)
        return url

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Nothing here: the cloud itself drops what uploads left; see the subclasses."""
        del older_than, dry_run
        return 0

    def xml_requests(self) -> XmlBucket | None:
        """Return what sends requests of S3's XML API, None where that cannot be."""
        return None

    def details(self) -> StorageDetails:
        """Describe the store. Raises BucketNotFound when it is not there."""
        self.check_bucket("open store")
        create_only = self.keeps_conditions()
        return StorageDetails(self.traits.provider, self.engine.identity, self.now(), create_only)

    # -- what the parts of this package share -------------------------------------------------

    def check_path(self, path: str) -> str:
        """Return a path that can be a name here; raises InvalidInput."""
        validate_path(path)
        for character in self.traits.refused:
            if character in path:
                raise InvalidInput(
                    f"names cannot have {character} in them in this cloud",
                    operation="open object",
                    object=ascii(path)[:120],
                    remedy="use another name",
                )
        return path

    @contextmanager
    def mapped(self, operation: str, object: str) -> Iterator[None]:
        """Within it, what obstore raises becomes an error of the package, with the object."""
        try:
            yield
        except BootstreamError:
            raise
        except (self.engine.obstore.exceptions.BaseError, OSError, ValueError) as error:
            # Not chained: the original's text has whole URLs in it.
            raise self.error(parse(error), operation, object) from None

    def error(self, answer: Answer, operation: str, object: str) -> BootstreamError:
        """Return the error for an answer; asks whether the bucket is there where that is open."""
        if answer.missing and not answer.no_bucket and not answer.names_the_object:
            try:
                self.check_bucket(operation, fresh=False)
            except BucketNotFound as missing:
                return missing
            except BootstreamError:
                pass  # who may not list sees a missing object all the same
        return store_error(
            answer,
            operation=operation,
            object=object,
            bucket=self.engine.bucket,
            remedies=self.traits.remedies,
        )

    def check_bucket(self, operation: str, *, fresh: bool = True) -> None:
        """Raise BucketNotFound where the bucket is missing.

        Not ``fresh``: what was seen less than a minute ago counts.
        """
        with self._lock:
            seen = self._bucket_seen
        if not fresh and time.monotonic() - seen < _BUCKET_SEEN_SECONDS:
            return
        try:
            next(iter(self.engine.obstore.list(self.engine.once, _NOWHERE)), None)
        except (self.engine.obstore.exceptions.BaseError, OSError, ValueError) as error:
            answer = parse(error)
            if answer.status == 404 or answer.missing:
                raise BucketNotFound(
                    "this bucket does not exist",
                    operation=operation,
                    object=self.engine.bucket,
                    request_id=answer.request_id,
                    remedy=self.traits.remedies.bucket,
                ) from None
            raise store_error(
                answer,
                operation=operation,
                object=self.engine.bucket,
                bucket=self.engine.bucket,
                remedies=self.traits.remedies,
            ) from None
        with self._lock:
            self._bucket_seen = time.monotonic()

    def now(self) -> datetime:
        """Return the storage's clock, in whole seconds."""
        import urllib3  # noqa: PLC0415 - not needed for most

        engine = self.engine
        try:
            with http_pool(engine.endpoint, engine.ca_file, engine.proxies) as pool:
                answer = pool.request("HEAD", self.engine.endpoint, redirect=False)
            return parsedate_to_datetime(answer.headers["Date"]).astimezone(UTC)
        except (urllib3.exceptions.HTTPError, KeyError, TypeError, ValueError) as error:
            raise Unavailable(
                f"the storage does not tell the time ({type(error).__name__})",
                operation="open store",
                object=self.engine.bucket,
            ) from error

    def keeps_conditions(self) -> bool:
        """Tell whether conditional writes are what they say.

        Amazon, Google and Azure keep them. Others that speak S3 may ignore them without a
        word, so a store at any other endpoint is tried, once in a provider's life, with an
        object of a random name that is deleted at once.
        """
        with self._probing:
            if self._conditions is None:
                self._conditions = not self.needs_probe() or self._probe()
            return self._conditions

    def needs_probe(self) -> bool:
        """Tell whether this is a service that is not known to keep conditions."""
        return False

    def _probe(self) -> bool:
        obstore, store = self.engine.obstore, self.engine.once
        path = f"{_PROBE}/{uuid4().hex}"
        try:
            etag = plain_etag(obstore.put(store, path, b"1", mode="create")["e_tag"])
        except (obstore.exceptions.BaseError, OSError) as error:
            answer = parse(error)
            if answer.status in (400, 405, 501):
                return False  # it refuses what it does not know
            failure = self._probe_error(answer, path)
            if isinstance(failure, PermissionDenied):
                return True  # who may not write needs no conditions
            raise failure from None
        try:
            return self._refuses(path, "create") and self._knows_etags(path, etag)
        finally:
            with suppress(obstore.exceptions.BaseError, OSError):  # one that stays does no harm
                obstore.delete(store, path)

    def _knows_etags(self, path: str, etag: str) -> bool:
        """Tell whether an object is replaced by its own etag only, and learn how that is written.

        RFC 9110, section 13.1.1, has it in quotes; Ceph's radosgw of version 16 knows an etag
        in ``If-Match`` only without.
        """
        other = {"e_tag": f'"{_NO_ETAG}"', "version": "1"}
        if self.traits.versions or not etag:
            return self._refuses(path, other)
        if not self._refuses(path, {"e_tag": f'"{etag}"'}):
            return self._refuses(path, other)
        if self._refuses(path, {"e_tag": etag}) or not self._refuses(path, {"e_tag": _NO_ETAG}):
            return False
        self._quoted = False
        return True

    def condition(self, etag: str) -> str:
        """Return an etag as a condition of this store has it."""
        return f'"{etag}"' if self._quoted else etag

    def lost_race(self, answer: Answer) -> bool:
        """Tell whether a conditional write was refused because it met another one.

        Ceph's radosgw of version 16 then answers 500, ``UnknownError``, and has written
        nothing: its own code is ECANCELED, which it has no answer of S3's for. Known by what
        it alone does, an etag without quotes.
        """
        return not self._quoted and answer.status == 500 and answer.code == "UnknownError"

    def _probe_error(self, answer: Answer, object: str) -> BootstreamError:
        """Return the error for an answer, without any further request."""
        return store_error(
            answer,
            operation="open store",
            object=object,
            bucket=self.engine.bucket,
            remedies=self.traits.remedies,
        )

    def _refuses(self, path: str, mode: str | dict[str, str]) -> bool:
        obstore = self.engine.obstore
        try:
            obstore.put(self.engine.once, path, b"2", mode=mode)
        except (obstore.exceptions.BaseError, OSError) as error:
            answer = parse(error)
            if answer.condition_failed or answer.exists:
                return True
            if answer.status in (400, 405, 501):
                return False
            raise self._probe_error(answer, path) from None
        return False

    def require_conditions(self, path: str) -> None:
        """Raise InvalidInput where a conditional write would be none."""
        if not self.keeps_conditions():
            raise InvalidInput(
                "this storage ignores the conditions of a write, so that two writers would "
                "both believe to be the only one",
                operation="write object",
                object=path,
                remedy="publish to a storage that honours If-None-Match and If-Match",
            )

    def _delete_batch(self, names: Sequence[str]) -> list[tuple[str, BootstreamError]]:
        """Delete names in one request, and one by one what is left of it when it fails."""
        try:
            self.engine.obstore.delete(self.engine.once, list(names))
        except (self.engine.obstore.exceptions.BaseError, OSError, ValueError) as error:
            if parse(error).no_bucket:
                raise self.error(parse(error), "delete objects", names[0]) from None
        else:
            return []

        def delete(name: str) -> tuple[str, BootstreamError] | None:
            try:
                self.delete_one(name)
            except BootstreamError as failure:
                return name, failure
            return None

        def call(name: str) -> Callable[[], tuple[str, BootstreamError] | None]:
            return lambda: delete(name)

        parallel = self.engine.parallel
        results = in_order(iter([call(name) for name in names]), parallel, 4 * parallel)
        return [result for result in results if result is not None]

    def delete_one(self, path: str) -> None:
        """Delete an object; what is not there is fine, a missing bucket is not."""
        try:
            with self.mapped("delete object", path):
                self.engine.obstore.delete(self.engine.once, path)
        except ObjectNotFound:
            pass

    def conflict(self, error: BootstreamError, path: str, *, create: bool) -> BootstreamError:
        """Return what a refused condition means to who asked for it."""
        if create and isinstance(error, Conflict):
            return AlreadyExists(
                "it exists",
                operation="create object",
                object=path,
                request_id=error.request_id,
            )
        if isinstance(error, (Conflict, ObjectNotFound)):
            return PreconditionFailed(
                "it is not the version that was expected",
                operation="replace object",
                object=path,
                request_id=error.request_id,
            )
        return error


def in_utf8_order(found: Iterable[Any]) -> Iterator[Any]:
    """Yield entries that are sorted by the UTF-16 of their paths in the order of their UTF-8.

    Both orders agree on every character below the surrogates, so a name without any other
    has its place in both. Only runs of neighbours that have others are sorted.
    """
    run: list[Any] = []
    for meta in found:
        if max(meta["path"]) >= "\ud800":
            run.append(meta)
            continue
        yield from _sorted(run)
        run = []
        yield meta
    yield from _sorted(run)


def _sorted(run: list[Any]) -> list[Any]:
    return sorted(run, key=lambda meta: meta["path"].encode())


def plain_etag(etag: str | None) -> str:
    """Return an etag without its quotes."""
    return (etag or "").strip().strip('"')


def _combined(failed: list[tuple[str, BootstreamError]], count: int) -> BootstreamError:
    """Return one error that names every object that could not be deleted."""
    first = failed[0][1]
    names = ", ".join(name for name, _ in failed)
    return type(first)(
        f"{len(failed)} of {count} objects could not be deleted ({names}): {first.message}",
        operation="delete objects",
        object=failed[0][0],
        request_id=first.request_id,
        remedy=first.remedy,
        transient=all(error.transient for _, error in failed),
    )
