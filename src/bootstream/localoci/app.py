"""Object Storage as an application: which operation a request is, and who may ask for it.

Differences from the service, on purpose or not yet done:

- One namespace, one region. A copy goes to the same region; replication, retention rules,
  private endpoints, re-encryption and customer keys (``opc-sse-*``) are not there: 404 or, for
  the headers, without effect. Lifecycle rules are kept and given back, and nothing acts on them.
- A restoration takes ``restore_seconds``, where the service takes an hour.
- Writers of one object take turns, so ``ConcurrentObjectUpdate`` comes only of an upload that is
  committed twice at once, of a tier that is changed while the object is replaced, and of faults.
- Counts and sizes of buckets are exact, where the service's are approximate.
- The codes ``UploadNotFound`` and ``InvalidUploadPart``, and those of a checksum that is not
  base64, are not documented by the service.
- Of several ranges in one request none is answered (416); ``if-modified-since`` and its like have
  no effect, as the service does not document them.
- Data survives the end and the kill of the server; of a loss of power the newest objects may be
  lost.
"""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, TypeVar

from bootstream.localoci import actions, buckets, listing, multipart, objects, par, work
from bootstream.localoci.buckets import Buckets
from bootstream.localoci.database import Database
from bootstream.localoci.errors import ApiError
from bootstream.localoci.protocols import AllowAll, Caller, NoFaults, anyone
from bootstream.localoci.service import Call, Limits, Service, decode
from bootstream.localoci.store import Store
from bootstream.localoci.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bootstream.localoci.http import Request, Response
    from bootstream.localoci.protocols import Authenticate, Faults, Policies

    Operation = Callable[[Call, str], Response]
    ObjectOperation = Callable[[Call, str, str], Response]

T = TypeVar("T")

_BUCKET: Mapping[str, Operation] = {
    "GET": buckets.get_bucket,
    "HEAD": buckets.head_bucket,
    "POST": buckets.update_bucket,
    "DELETE": buckets.delete_bucket,
}
_COLLECTIONS: Mapping[str, Mapping[str, Operation]] = {
    "o": {"GET": listing.list_objects, "HEAD": listing.list_objects},
    "objectversions": {"GET": listing.list_object_versions},
    "u": {"GET": multipart.list_uploads, "POST": multipart.create_upload},
    "p": {"GET": par.list_pars, "POST": par.create_par},
    "l": {
        "GET": buckets.get_lifecycle,
        "PUT": buckets.put_lifecycle,
        "DELETE": buckets.delete_lifecycle,
    },
}
_ITEMS: Mapping[str, Mapping[str, ObjectOperation]] = {
    "o": {
        "GET": objects.get_object,
        "HEAD": objects.head_object,
        "PUT": objects.put_object,
        "DELETE": objects.delete_object,
    },
    "u": {
        "GET": multipart.list_parts,
        "PUT": multipart.upload_part,
        "POST": multipart.commit_upload,
        "DELETE": multipart.abort_upload,
    },
    "p": {"GET": par.get_par, "DELETE": par.delete_par},
}
_ACTIONS: Mapping[str, Operation] = {
    "copyObject": actions.copy_object,
    "renameObject": actions.rename_object,
    "restoreObjects": actions.restore_objects,
    "updateObjectStorageTier": actions.update_tier,
    "batchDeleteObjects": actions.batch_delete,
}
_WORK: Mapping[tuple[str, str], Operation] = {
    ("GET", ""): work.get_work,
    ("DELETE", ""): work.cancel_work,
    ("GET", "errors"): work.get_work_errors,
    ("GET", "logs"): work.get_work_logs,
}


class Application:
    """Object Storage over a data folder. Thread safe.

    Args:
        data: the folder; made when missing.
        authenticate: who a request is from; raises ApiError 401.
        policies: what a caller may do.
        faults: what goes wrong on purpose.
        clock: seconds of the epoch.
        namespace: the tenancy's namespace.
        region: the region's identifier.
        limits: sizes at which requests are refused.
        work_delay: seconds that each step of a work request takes.
        restore_seconds: how long an archived object is ``Restoring``.

    Raises:
        Conflict: another server has the folder.
        Corrupt: the folder's database is damaged, or of another version.
    """

    def __init__(
        self,
        data: Path,
        *,
        authenticate: Authenticate = anyone,
        policies: Policies | None = None,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.time,
        namespace: str = "local",
        region: str = "us-ashburn-1",
        limits: Limits | None = None,
        work_delay: float = 0.0,
        restore_seconds: float = 0.0,
    ) -> None:
        self._authenticate = authenticate
        self._faults = faults or NoFaults()
        data.mkdir(parents=True, exist_ok=True)
        database = Database(data)
        self._database = database
        limits = limits or Limits()
        self.service = Service(
            namespace,
            region,
            database,
            Store(database, clock, limits.item),
            Buckets(database),
            Work(database, clock, work_delay),
            policies or AllowAll(),
            clock,
            limits,
            restore_seconds,
        )

    def close(self) -> None:
        """End the work and close the folder; no request may be in work any more."""
        self.service.work.close()
        self._database.close()

    def ensure_bucket(self, name: str, compartment: str, creator: str = "") -> None:
        """Make a bucket where there is none of the name, without a request."""
        known = self.service.buckets
        try:
            known.get(name)
        except ApiError:
            known.create(name, buckets.new_details(self.service, name, compartment, creator, {}))

    def handle(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            ApiError: the answer is an error.
            Disconnect: there is no answer.
        """
        response = self._faults.before(request)
        if response is None:
            try:
                response = self._dispatch(request)
            except sqlite3.IntegrityError:  # a row that needs its bucket
                raise ApiError(404, "BucketNotFound", "The bucket was deleted meanwhile") from None
            except sqlite3.OperationalError as error:  # full, or not writable any more
                raise ApiError(
                    507, "InsufficientStorage", f"The data folder cannot be used: {error}"
                ) from error
        try:
            return self._faults.after(request, response)
        except BaseException:
            response.close()
            raise

    def _dispatch(self, request: Request) -> Response:
        if request.target.startswith("/p/"):
            return par.handle(self.service, request)
        parts = request.raw_path.split("/", 6)
        if (caller := self._public(request, parts)) is None:
            caller = self._authenticate(request)
        call = Call(self.service, request, caller, request.parameters(), self.service.policies)
        return self._operate(call, parts)

    def _public(self, request: Request, parts: list[str]) -> Caller | None:
        """The caller of an unsigned read of a public bucket."""
        if request.method not in {"GET", "HEAD"} or "authorization" in request.headers:
            return None
        if len(parts) < 6 or parts[1] != "n" or parts[3] != "b" or parts[5] != "o":
            return None
        try:
            access = self.service.buckets.get(decode(parts[4])).details["publicAccessType"]
        except ApiError:
            return None
        listed = len(parts) == 6 or not parts[6]
        if access == "ObjectRead" or (access == "ObjectReadWithoutList" and not listed):
            return Caller("", "", "anonymous")
        return None

    def _operate(self, call: Call, parts: list[str]) -> Response:
        """``/n/{n}/b/{b}/{kind}/{item}``, split; the item may have slashes."""
        method = call.request.method
        if parts[1] == "workRequests":
            return _work(call, parts[2:])
        if parts[1] != "n":
            raise _nothing()
        if len(parts) == 2 or (len(parts) == 3 and not parts[2]):
            return _choose({"GET": buckets.get_namespace}, method)(call)
        if decode(parts[2]) != self.service.namespace:
            raise ApiError(
                404, "NamespaceNotFound", f"You do not have authorization for '{decode(parts[2])}'"
            )
        if len(parts) == 3 or (len(parts) == 4 and not parts[3]):
            return _choose({"GET": buckets.get_namespace_metadata}, method)(call)
        if parts[3] != "b":
            raise _nothing()
        if len(parts) == 4 or (len(parts) == 5 and not parts[4]):
            return _choose({"GET": buckets.list_buckets, "POST": buckets.create_bucket}, method)(
                call
            )
        return _in_bucket(call, method, decode(parts[4]), parts[5:])


def _in_bucket(call: Call, method: str, bucket: str, rest: list[str]) -> Response:
    if not rest or rest == [""]:
        return _choose(_BUCKET, method)(call, bucket)
    kind, item = rest[0], rest[1] if len(rest) > 1 else ""
    if kind == "actions":
        if item not in _ACTIONS:
            raise _nothing()
        return _choose({"POST": _ACTIONS[item]}, method)(call, bucket)
    if not item:
        return _choose(_COLLECTIONS.get(kind), method)(call, bucket)
    return _choose(_ITEMS.get(kind), method)(call, bucket, decode(item))


def _work(call: Call, rest: list[str]) -> Response:
    if not rest or rest == [""]:
        return _choose({"GET": work.list_work}, call.request.method)(call)
    operation = _WORK.get((call.request.method, rest[1] if len(rest) > 1 else ""))
    if operation is None:
        raise _nothing()
    return operation(call, decode(rest[0]))


def _choose(operations: Mapping[str, T] | None, method: str) -> T:
    if operations is None:
        raise _nothing()
    if method not in operations:
        allowed = ", ".join(operations)
        raise ApiError(405, "MethodNotAllowed", f"{method} is not for this", {"allow": allowed})
    return operations[method]


def _nothing() -> ApiError:
    return ApiError(404, "NotFound", "There is nothing of this path")
