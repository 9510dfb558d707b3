"""The provider for OCI Object Storage: one bucket."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from bootstream.clouds.oci import Principal
from bootstream.errors import BucketNotFound, InvalidInput, PermissionDenied, Unavailable
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.storage.oci import listing
from bootstream.storage.oci.client import Answer, Client, Request
from bootstream.storage.oci.connection import TimeLimits
from bootstream.storage.oci.copying import copy_object
from bootstream.storage.oci.failures import http_time, par_policy
from bootstream.storage.oci.objects import OCIBucketStorageObjectProvider
from bootstream.storage.oci.pool import Pool
from bootstream.storage.paths import normalize_prefix, validate_copy, validate_path
from bootstream.storage.protocol import ObjectInfo, StorageDetails

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,256}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"objectstorage\.([a-z0-9-]+)\.")
_MAX_PARALLEL = 256
_MIN_PART, _MAX_PART = 64 << 10, 1 << 30


class OCIBucketStorageProvider:
    """One bucket of OCI Object Storage. Safe to use from several threads.

    Uploads and downloads share ``parallel`` threads; so many requests, and those that other
    threads make by themselves, are on their way at once. It repeats what only it can repeat
    (parts of uploads, the rest of a download); the rest is ``RetryStorageProvider``'s.

    Args:
        bucket: the bucket's name.
        namespace: its namespace; None: looked up on first use.
        principal: who signs.
        endpoint: ``https://host[:port]``, or ``http://`` for a loopback address.
        compartment: asked about when the namespace is looked up.
        parallel: how many requests one transfer makes at once.
        part_size: bytes of an upload's part, from 64 KiB to 1 GiB; None: chosen by size.
        ca_file: certificates to trust instead of the system's.
        limits: time limits of requests.
        proxies: the proxies of this process; the endpoint may be behind one.
        sleep: waits so many seconds, between attempts; it may raise, to stop waiting.

    Raises:
        InvalidInput: one of them cannot be.
    """

    def __init__(
        self,
        bucket: str,
        *,
        namespace: str | None,
        principal: Principal,
        endpoint: str,
        compartment: str | None = None,
        parallel: int = 16,
        part_size: int | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        limits: TimeLimits | None = None,
        proxies: Proxies = NO_PROXIES,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        for value, form, name in (
            (bucket, _BUCKET, "bucket"),
            (namespace, _NAMESPACE, "namespace"),
        ):
            if value is not None and form.fullmatch(value) is None:
                raise InvalidInput(
                    f"this cannot be the name of a {name}",
                    operation="open store",
                    object=ascii(value)[:80],
                    remedy="set TEMPLATE_BUCKET_NAME and OCI_NAMESPACE",
                )
        if not 1 <= parallel <= _MAX_PARALLEL:
            raise InvalidInput(f"parallel is 1 to {_MAX_PARALLEL}, not {parallel}")
        if part_size is not None and not _MIN_PART <= part_size <= _MAX_PART:
            raise InvalidInput(f"a part has {_MIN_PART} to {_MAX_PART} bytes, not {part_size}")
        keep = max(32, 2 * parallel)
        self._pool = Pool(endpoint, ca_file=ca_file, keep=keep, limits=limits, proxies=proxies)
        self._client = Client(self._pool, principal, bucket, namespace, compartment, sleep=sleep)
        self._parallel = parallel
        self._part_size = part_size
        self._executor = ThreadPoolExecutor(parallel, thread_name_prefix="oci-storage")

    def __repr__(self) -> str:
        return f"OCIBucketStorageProvider({self._client.bucket!r}, endpoint={self._pool.url!r})"

    def close(self) -> None:
        """Close idle connections and end the threads; also happens when it is forgotten."""
        self._executor.shutdown(wait=True)
        self._pool.close()

    def open_object(self, path: str) -> OCIBucketStorageObjectProvider:
        """Return a handle; touches nothing. Raises InvalidInput for a bad path."""
        return OCIBucketStorageObjectProvider(
            self._client, validate_path(path), self._executor, self._parallel, self._part_size
        )

    def list_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield everything below ``prefix`` in UTF-8 byte order; see the protocol."""
        return listing.list_objects(self._client, normalize_prefix(prefix))

    def copy_object(self, source: str, target: str) -> None:
        """Have the service copy an object, and wait for its work request; see the protocol."""
        validate_copy(source, target)
        copy_object(self._client, source, target, self._region(), sleep=self._client.sleep)

    def _region(self) -> str:
        match = _HOST.search(self._pool.host)
        region = match[1] if match else self._client.principal.region
        if not region:
            raise InvalidInput(
                "the bucket's region is not known, which copies need",
                operation="copy object",
                remedy="set OCI_REGION",
            )
        return region

    def delete_objects_with_prefix(self, prefix: str) -> int:
        """Delete everything below ``prefix``, 1000 objects a request; see the protocol."""
        wanted = normalize_prefix(prefix)
        if not wanted:
            raise InvalidInput("an empty prefix would delete the whole store", operation="delete")
        return listing.delete_prefix(self._client, wanted, self._executor)

    def signed_upload_url(self, path: str, ttl: timedelta) -> str:
        """Return a pre-authenticated request that writes ``path`` for ``ttl``; a secret."""
        validate_path(path)
        if ttl <= timedelta(0):
            raise InvalidInput("it must be valid for some time", operation="sign URL", object=path)
        try:
            expires = self.details().now + ttl
        except OverflowError:
            raise InvalidInput(
                "nothing lasts that long", operation="sign URL", object=path
            ) from None
        body = {
            "name": listing.PAR_NAME,
            "objectName": path,
            "accessType": "ObjectWrite",
            "timeExpires": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        request = Request(
            "POST",
            f"{self._client.base()}/p",
            "sign URL",
            path,
            body=json.dumps(body).encode(),
            signed_body=True,
            replay=False,
        )
        try:
            found = self._client.json(request)
        except (PermissionDenied, BucketNotFound) as error:
            error.remedy = par_policy(self._client.place)
            if isinstance(error, BucketNotFound):
                error.remedy = f"check the bucket's name and region; {error.remedy}"
            raise
        uri = found.get("accessUri") if isinstance(found, dict) else None
        if not isinstance(uri, str) or not uri.startswith("/"):
            raise Unavailable("the answer has no URL", operation="sign URL", object=path)
        return self._pool.url + uri

    def collect_uploads(self, older_than: timedelta, *, dry_run: bool = False) -> int:
        """Abort unfinished uploads that began before, and delete upload URLs that expired before.

        All multipart uploads of the bucket count, whoever began them; of the URLs only those
        that ``signed_upload_url`` made.
        """
        now = self.details().now
        return listing.collect_uploads(self._client, now, older_than, dry_run=dry_run)

    def details(self) -> StorageDetails:
        """Describe the store, by one request for the bucket; see the protocol."""
        client = self._client
        request = Request("GET", client.base(), "open store", client.bucket)
        answer = client.call(request)
        client.json_of(request, answer)
        region = _HOST.search(self._pool.host)
        where = region[1] if region else self._pool.host
        identity = f"oci://{where}/{client.namespace()}/{client.bucket}"
        return StorageDetails("OCIBucket", identity, _time_of(answer))


def _time_of(answer: Answer) -> datetime:
    """Return the service's clock, which every answer tells."""
    now = http_time(answer.headers.get("date"))
    if now is None:
        raise Unavailable(
            "the answer does not say what time it is",
            operation="open store",
            request_id=answer.headers.get("opc-request-id"),
        )
    return now
