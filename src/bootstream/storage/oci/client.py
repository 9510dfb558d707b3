"""Signed requests to one bucket: rendered, sent, and repeated only where this layer must.

What is repeated here, and nowhere else:

- a request on a connection that was idle and turns out to be closed, on a fresh one, where
  sending it twice does no harm;
- a request that got 401, once, with credentials that were refreshed and a date of now;
- a request that got 404 ``BucketNotFound``, which the service sometimes says of a bucket
  that is there: once, and once more if the bucket can be seen;
- a request that got 409 ``ConcurrentObjectUpdate``, some times: it says that nothing was
  written, so even a conditional write may be sent again after it.

All other repeating is the retry wrapper's, and that of ``upload`` (parts) and ``download``
(the rest of a body), as only they know what is already there.

Signing takes ten times as long as all else here together. It covers method, target and date
but no range, so the head of a read is kept, and signs all reads of one object for some
seconds; the service allows dates to be five minutes off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar
from urllib.parse import quote

from bootstream.clouds.oci import Credentials, Principal, http_date, sign
from bootstream.errors import BootstreamError, PermissionDenied, Unavailable
from bootstream.storage.oci.connection import Connection, Head, WireError, reason
from bootstream.storage.oci.failures import Interrupted, Place, Refusal, error_for, parse_refusal
from bootstream.storage.oci.pool import Pool
from bootstream.storage.oci.tunnel import Refused

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_JSON = 32 << 20
_MAX_REFUSAL = 64 << 10
_SIGNATURE_SECONDS = 20.0
_KEPT_HEADS = 2048
_STRAY_WAITS = (0.05, 0.25)
_CONTENDED_ATTEMPTS = 4


class Unsuitable(Exception):
    """An answer of a success's status whose form is not one; its text says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask. ``target`` is path and query as sent, encoded.

    ``headers`` are further header lines, each with its line end. ``signed_body`` is for
    every POST and not for uploads of bytes. ``replay``: sending it twice does no harm.
    ``success``: the statuses whose answers go to the receiver.
    """

    method: str
    target: str
    operation: str
    object: str
    headers: bytes = b""
    body: bytes | memoryview = b""
    signed_body: bool = False
    replay: bool = True
    success: tuple[int, ...] = (200,)


@dataclass(frozen=True, slots=True)
class Answer:
    """A success whose body was read."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Receiver(Protocol[T_co]):
    """Reads the body of a success, all of it; may raise WireError and Unsuitable."""

    def __call__(self, connection: Connection, head: Head, /) -> T_co:
        """Return what the exchange is to return."""
        ...


class Client:
    """Requests to one bucket. Thread safe.

    Args:
        pool: connections to the endpoint.
        principal: who signs.
        bucket: the bucket's name.
        namespace: its namespace; None: it is looked up on first use.
        compartment: asked about when the namespace is looked up.
        sleep: waits so many seconds, here and in whatever is made of these requests.
    """

    def __init__(
        self,
        pool: Pool,
        principal: Principal,
        bucket: str,
        namespace: str | None,
        compartment: str | None = None,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.pool = pool
        self.principal = principal
        self.bucket = bucket
        self._namespace = namespace
        self._compartment = compartment
        self.sleep = sleep
        self._lock = threading.Lock()
        self._base = ""
        self._heads: dict[tuple[str, str], tuple[Credentials, float, bytes]] = {}

    # -- names --------------------------------------------------------------------------------

    def namespace(self) -> str:
        """Return the namespace, looked up once."""
        if self._namespace is None:
            with self._lock:
                if self._namespace is None:
                    self._namespace = self._look_up_namespace()
        return self._namespace

    def _look_up_namespace(self) -> str:
        query = f"?compartmentId={quote(self._compartment, safe='')}" if self._compartment else ""
        request = Request("GET", f"/n{query}", "look up namespace", self.pool.host)
        found = self.json(request)
        if not isinstance(found, str) or not found:
            raise Unavailable(
                "the answer is no namespace",
                operation=request.operation,
                object=request.object,
                transient=False,
                remedy="set OCI_NAMESPACE; check OCI_OBJECT_STORAGE_ENDPOINT",
            )
        return found

    def base(self) -> str:
        """Return the bucket's path, ``/n/{namespace}/b/{bucket}``."""
        if not self._base:
            namespace, bucket = quote(self.namespace(), safe=""), quote(self.bucket, safe="")
            self._base = f"/n/{namespace}/b/{bucket}"
        return self._base

    def object_target(self, name: str) -> str:
        """Return an object's path; ``/`` stays as it is, as in the SDKs."""
        return f"{self.base()}/o/{quote(name)}"

    @property
    def place(self) -> Place:
        """Where and as whom requests go."""
        return Place(self.bucket, self._namespace or "?", self.principal.name)

    # -- exchanges ----------------------------------------------------------------------------

    def call(self, request: Request, limit: int = MAX_JSON) -> Answer:
        """Send a request and return the answer with its body of at most ``limit`` bytes."""

        def receive(connection: Connection, head: Head) -> Answer:
            body = connection.receive_body(head, limit) if request.method != "HEAD" else b""
            # HEAD may be told of an object that is a page itself; nothing else here has one.
            own = request.method == "HEAD" and "opc-request-id" in head.headers
            if "html" in head.headers.get("content-type", "").lower() and not own:
                raise Unsuitable("the answer is a page for people, not the storage's")
            return Answer(head.status, head.headers, body)

        return self.exchange(request, receive)

    def json(self, request: Request) -> object:
        """Send a request and return the JSON value in the answer's body."""
        return self.json_of(request, self.call(request))

    @staticmethod
    def json_of(request: Request, answer: Answer) -> object:
        """Return the JSON value in an answer's body; raises Unavailable where it is none."""
        try:
            value: object = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise Unavailable(
                "the answer is not JSON",
                operation=request.operation,
                object=request.object,
                request_id=answer.headers.get("opc-request-id"),
            ) from None
        return value

    def exchange(self, request: Request, receive: Receiver[T]) -> T:
        """Send a request; return what ``receive`` makes of its success, raise any failure."""
        renewed = False
        strays = contended = 0
        while True:
            credentials, head = self._render(request)
            outcome = self._once(request, head, receive)
            if not isinstance(outcome, Refusal):
                return outcome
            if outcome.status == 401 and not renewed:
                renewed = True
                self._heads.pop((request.method, request.target), None)
                self.principal.refresh(credentials)
                continue
            if outcome.status == 409 and outcome.code == "ConcurrentObjectUpdate":
                contended += 1
                if contended < _CONTENDED_ATTEMPTS:
                    self.sleep(random.uniform(0, 0.05 * 2**contended))  # noqa: S311 - jitter
                    continue
            there = False
            if outcome.status == 404 and outcome.code == "BucketNotFound":
                there = strays > 0 and self._bucket_is_there(request)
                if strays == 0 or (strays == 1 and there):
                    self.sleep(_STRAY_WAITS[strays])
                    strays += 1
                    continue
            raise error_for(
                outcome,
                operation=request.operation,
                object=request.object,
                place=self.place,
                bucket_is_there=there,
                of_bucket=request.target == self._base,
            )

    def _bucket_is_there(self, about: Request) -> bool:
        if not self._base or about.target == self._base:
            return False
        request = Request("HEAD", self._base, about.operation, about.object)
        _, head = self._render(request)
        try:
            return not isinstance(self._once(request, head, _ignore_body), Refusal)
        except BootstreamError:
            return False

    def _once(self, request: Request, head: bytes, receive: Receiver[T]) -> T | Refusal:
        """Send a request once, or again on a fresh connection where an idle one was closed."""
        fresh = False
        while True:
            connection = self._take(request, fresh=fresh)
            keep = False
            seen: list[str] = []
            try:
                result, keep = _answer(connection, request, head, receive, seen)
            except WireError as error:
                if error.before_answer and connection.reused and request.replay and not fresh:
                    fresh = True
                    continue
                raise _broken(request, str(error), error.received, seen) from error
            except OSError as error:
                raise _broken(request, reason(error), 0, seen) from error
            except Unsuitable as error:
                raise _broken(request, str(error), 0, seen) from error
            else:
                return result
            finally:
                if keep:
                    self.pool.give_back(connection)
                else:
                    connection.close()

    def _take(self, request: Request, *, fresh: bool) -> Connection:
        try:
            return self.pool.take(fresh=fresh)
        except Refused as error:
            raise self._refused(request, error) from error
        except OSError as error:
            distrusted = isinstance(error, ssl.SSLCertVerificationError)
            tunnel = self.pool.tunnel
            way = f" through the proxy {tunnel.name}" if tunnel else ""
            raise Unavailable(
                f"{self.pool.host} cannot be reached{way}: {reason(error)}",
                operation=request.operation,
                object=request.object,
                remedy="name the file of certificates to trust"
                if distrusted
                else "check HTTPS_PROXY, or name in NO_PROXY what needs no proxy"
                if tunnel
                else "check OCI_REGION, OCI_OBJECT_STORAGE_ENDPOINT and the network",
                transient=not distrusted,
            ) from error

    def _refused(self, request: Request, error: Refused) -> BootstreamError:
        """Return what a proxy's refusal is: its policy, or trouble that may pass."""
        assert self.pool.tunnel is not None
        said = f"the proxy {self.pool.tunnel.name} does not connect to {self.pool.host}: {error}"
        failure: BootstreamError
        if error.status in (401, 403, 407):
            failure = PermissionDenied(said)
        else:
            passing = error.status in (0, 429) or error.status >= 500
            failure = Unavailable(said, transient=passing)
        failure.operation, failure.object = request.operation, request.object
        failure.remedy = (
            "check user and password in HTTPS_PROXY, http://user:password@host:port"
            if error.status == 407
            else "let the proxy connect there, or name the host in NO_PROXY"
        )
        return failure

    # -- rendering ----------------------------------------------------------------------------

    def _render(self, request: Request) -> tuple[Credentials, bytes]:
        credentials = self.principal.credentials()
        if request.method != "GET":
            return credentials, self._render_fresh(request, credentials)
        key = (request.method, request.target)
        kept = self._heads.get(key)
        now = time.monotonic()
        if kept is None or kept[0] is not credentials or kept[1] < now:
            head = self._signed_head(request, credentials, None)
            if len(self._heads) >= _KEPT_HEADS:
                self._heads.clear()
            self._heads[key] = kept = (credentials, now + _SIGNATURE_SECONDS, head)
        return credentials, b"".join((kept[2], request.headers, b"\r\n"))

    def _render_fresh(self, request: Request, credentials: Credentials) -> bytes:
        hashed: dict[str, str] | None = None
        lines = b""
        if request.signed_body:
            digest = base64.b64encode(hashlib.sha256(request.body).digest()).decode()
            hashed = {
                "content-length": str(len(request.body)),
                "content-type": "application/json",
                "x-content-sha256": digest,
            }
            lines = _lines(hashed)
        elif request.method == "PUT":
            lines = b"content-length: %d\r\ncontent-type: application/octet-stream\r\n" % len(
                request.body
            )
        head = self._signed_head(request, credentials, hashed)
        return b"".join((head, lines, request.headers, b"\r\n"))

    def _signed_head(
        self, request: Request, credentials: Credentials, hashed: Mapping[str, str] | None
    ) -> bytes:
        date = http_date()
        authorization = sign(
            credentials,
            request.method,
            self.pool.host,
            request.target,
            date=date,
            body_headers=hashed,
        )
        return (
            f"{request.method} {request.target} HTTP/1.1\r\n"
            f"host: {self.pool.host}\r\n"
            f"date: {date}\r\n"
            f"authorization: {authorization}\r\n"
            "accept: */*\r\nuser-agent: bootstream\r\n"
        ).encode("latin-1", "replace")  # a key id that is no ASCII is refused by the service


def metadata_lines(metadata: Mapping[str, str]) -> bytes:
    """Return valid metadata as header lines."""
    return _lines({f"opc-meta-{key}": value for key, value in metadata.items()})


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def _ignore_body(connection: Connection, head: Head) -> None:
    connection.receive_body(head, _MAX_REFUSAL)


def _broken(request: Request, message: str, received: int, seen: list[str]) -> Unavailable:
    error = Interrupted(
        message,
        operation=request.operation,
        object=request.object,
        request_id=seen[0] if seen else None,
    )
    error.received = received
    return error


def _answer(
    connection: Connection, request: Request, head: bytes, receive: Receiver[T], seen: list[str]
) -> tuple[T | Refusal, bool]:
    """Send, and read the answer; return it, and whether the connection can go on.

    ``seen`` gets the service's id of the request as soon as that is known.
    """
    answer = _send(connection, request, head)
    if "opc-request-id" in answer.headers:
        seen.append(answer.headers["opc-request-id"])
    result: T | Refusal
    if answer.status in request.success:
        result = receive(connection, answer)
    else:
        try:
            body = connection.receive_body(answer, _MAX_REFUSAL)
        except (WireError, OSError):
            if answer.status != 429 and answer.status < 500:
                raise  # only the body tells what these mean
            return parse_refusal(answer.status, answer.headers, b""), False
        result = parse_refusal(answer.status, answer.headers, body)
    if not connection.clean:
        raise WireError("the body is longer than its length")
    return result, answer.keep and answer.length is not None


def _send(connection: Connection, request: Request, head: bytes) -> Head:
    """Send, and wait for the answer; one that comes before all was sent counts, too."""
    try:
        connection.send(head, request.body)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        try:
            answer = connection.receive_head(request.method)
        except (OSError, WireError):
            raise WireError(reason(error), before_answer=True) from error
        if answer.status < 300:
            raise WireError("an answer came before the request was sent") from error
        return Head(answer.status, answer.headers, answer.length, keep=False)
    try:
        return connection.receive_head(request.method)
    except ConnectionError as error:
        raise WireError(reason(error), before_answer=True) from error
