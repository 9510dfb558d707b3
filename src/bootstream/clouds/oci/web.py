"""The few small requests by which tokens are had: bounded, timed, retried with full jitter.

Through a proxy only where the caller hands in some (the metadata service is the host's own)
and never following a redirect (what is sent is a credential). Connections are closed after
each use: the next is due in half an hour.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import urllib3

from bootstream.errors import BootstreamError, PermissionDenied, Throttled, Unavailable
from bootstream.proxies import NO_PROXIES, Proxies, proxy_authorization, without_credentials

_MAX_BODY = 256 << 10
_BASE = 0.2
_CAP = 5.0
_TUNNEL = re.compile(r"[Tt]unnel connection failed: ([0-9]{3})")
_SKEW = 300.0  # seconds: what Oracle's services tolerate
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; ``headers`` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    connect: float = 5.0,
    read: float = 20.0,
    ca_file: str | None = None,
    proxies: Proxies = NO_PROXIES,
    operation: str,
) -> Answer:
    """Send one request and read the answer, whatever its status. Times in seconds.

    Raises Unavailable where nobody answers, or too much, and PermissionDenied where the
    server's certificate is not trusted or a proxy refuses to connect.
    """
    where = url.split("?", maxsplit=1)[0]
    proxy = proxies.for_url(url)
    try:
        with _manager(proxy, ca_file) as pool:
            response = pool.request(
                method,
                url,
                headers=dict(headers),
                body=body,
                timeout=urllib3.Timeout(connect=connect, read=read),
                preload_content=False,
                redirect=False,
            )
            try:
                data = response.read(_MAX_BODY + 1)
            finally:
                response.close()
    except urllib3.exceptions.SSLError as error:
        raise PermissionDenied(
            f"the connection is not secure: {error}",
            operation=operation,
            object=where,
            remedy="trust the server's authority: OCI_CLI_CERT_BUNDLE names a file with it",
        ) from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        if proxy is not None:
            raise _behind(proxy, error, operation=operation, object=where) from error
        raise Unavailable(
            f"no answer: {_reason(error)}",
            operation=operation,
            object=where,
            remedy="see that the address is right and can be reached from here",
        ) from error
    if len(data) > _MAX_BODY:
        raise Unavailable("the answer is too long", operation=operation, object=where)
    names = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, names, data)


def _manager(proxy: str | None, ca_file: str | None) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(num_pools=1, retries=False, ca_certs=ca_file)
    authorization = proxy_authorization(proxy)
    return urllib3.ProxyManager(
        without_credentials(proxy),
        num_pools=1,
        retries=False,
        ca_certs=ca_file,
        proxy_headers={"proxy-authorization": authorization} if authorization else None,
    )


def _behind(proxy: str, error: Exception, *, operation: str, object: str) -> BootstreamError:
    """Return what failed on the way through a proxy; a refusal by it is final."""
    cause = getattr(error, "original_error", None) or error.__cause__ or error
    match = _TUNNEL.search(str(cause))
    said = f"it answers {match[1]}" if match else _reason(cause)
    kind = PermissionDenied if match and match[1] in ("401", "403", "407") else Unavailable
    return kind(
        f"no answer through the proxy {without_credentials(proxy)}: {said}",
        operation=operation,
        object=object,
        remedy="check HTTPS_PROXY with its user and password, or name the host in NO_PROXY",
    )


def _reason(error: BaseException) -> str:
    """A short cause: urllib3's own words hold object addresses."""
    if not isinstance(error, urllib3.exceptions.NewConnectionError):  # which is a timeout, too
        if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
            return "connecting took too long"
        if isinstance(error, urllib3.exceptions.TimeoutError):
            return "it took too long"
    cause = error.__cause__ or error
    return getattr(cause, "strerror", None) or type(cause).__name__


def check(answer: Answer, *, operation: str, object: str, remedy: str | None = None) -> Answer:
    """Return a good answer; raise for another.

    429 is Throttled; 404 and 5xx are Unavailable (the metadata service answers so while an
    instance starts); all else is PermissionDenied, with the clock's error where it is one.
    """
    if 200 <= answer.status < 300:
        return answer
    error: BootstreamError
    said = f"the server answered {answer.status}"
    if answer.status == 429:
        error = Throttled(said)
    elif answer.status == 404 or answer.status >= 500:
        error = Unavailable(said, remedy=remedy)
    else:
        error = PermissionDenied(said, remedy=clock_hint(answer.headers.get("date")) or remedy)
    wait = answer.headers.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,6}", wait):
        error.retry_after = float(wait)
    error.operation = operation
    error.object = object
    error.request_id = answer.headers.get("opc-request-id")
    raise error


def clock_offset(date: str | None, *, now: float | None = None) -> float | None:
    """Return by how many seconds this machine's clock is ahead of a ``Date`` header's."""
    if not date:
        return None
    try:
        there = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return (time.time() if now is None else now) - there


def clock_hint(date: str | None, *, now: float | None = None) -> str | None:
    """Return a remedy where a 401 is explained by a clock more than five minutes off."""
    offset = clock_offset(date, now=now)
    if offset is None or abs(offset) <= _SKEW:
        return None
    way = "ahead of" if offset > 0 else "behind"
    return (
        f"this machine's clock is {abs(offset):.0f} seconds {way} the server's, and more than "
        "300 are refused: set it (timedatectl, chronyc makestep)"
    )


def retry(
    call: Callable[[], _T],
    *,
    patience: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> _T:
    """Call until it succeeds or fails for good, for ``patience`` seconds at most.

    Waits are drawn from zero to a doubling bound of at most five seconds (full jitter).
    """
    end = clock() + patience
    bound = _BASE
    while True:
        try:
            return call()
        except BootstreamError as error:
            wait = bound * random.random()  # noqa: S311 - no secret
            if error.retry_after is not None:
                wait += min(error.retry_after, _CAP)
            if not error.transient or clock() + wait >= end:
                raise
        sleep(wait)
        bound = min(bound * 2, _CAP)


def target_of(url: str) -> str:
    """Return path and query of a URL, as the transport sends them."""
    return urllib3.util.parse_url(url).request_uri
