"""One request to a service: JSON out, JSON in, problems as errors of the package."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import urllib3
from urllib3.exceptions import HTTPError

from bootstream import errors
from bootstream.errors import BootstreamError, Corrupt, InvalidInput, PermissionDenied, Unavailable

_CONNECT_SECONDS = 10.0
_MOST_BYTES = 64 << 20
_TRIES = 4
_WAIT_SECONDS = 0.2
_MOST_WAIT = 10.0
_SAFE = frozenset({"GET", "PUT", "DELETE"})


class Connection:
    """Requests to one service. Thread safe.

    Args:
        url: of the service, without a path.
        token: sent with each request.
        ca_file: certificates (PEM) to trust in the place of the system's.
        silence: seconds to wait for an answer to begin, and to go on.
    """

    def __init__(self, url: str, *, token: str | None, ca_file: str | None, silence: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(
                "it is no http or https URL", operation="connect to service", object=url[:200]
            )
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": "bootstream", "Accept": "*/*"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        context = ssl.create_default_context(cafile=ca_file) if url.startswith("https") else None
        self._pool = urllib3.PoolManager(num_pools=2, maxsize=16, ssl_context=context)
        self._silence = silence

    def call(
        self,
        method: str,
        parts: tuple[str, ...],
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = False,
        silence: float | None = None,
    ) -> Any:
        """Send a request and return the answer's JSON, None if it has no body.

        Requests that may be repeated are, where the service is busy or away: reads, PUT and
        DELETE, and with ``repeat`` others. Raises BootstreamError.
        """
        tries = _TRIES if repeat or method in _SAFE else 1
        for number in range(tries):
            try:
                with self.open(
                    method, parts, query=query, body=body, headers=headers, silence=silence
                ) as answer:
                    data = answer.read(_MOST_BYTES)
                return json.loads(data) if data else None
            except (HTTPError, OSError) as error:
                trouble: BootstreamError = self._network(error)
            except ValueError as error:
                raise Corrupt("the answer is not JSON", operation="ask service") from error
            except BootstreamError as error:
                if not error.transient:
                    raise
                trouble = error
            if number + 1 == tries:
                raise trouble
            time.sleep(min(_MOST_WAIT, trouble.retry_after or _WAIT_SECONDS * 2**number))
        raise AssertionError

    @contextmanager
    def open(
        self,
        method: str,
        parts: tuple[str, ...],
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request and yield the answer if it is a success. Raises BootstreamError."""
        url = f"{self._url}/" + "/".join(quote(part, safe="") for part in parts)
        given = {key: value for key, value in (query or {}).items() if value is not None}
        if given:
            url += "?" + urlencode(given)
        sent = {**self._headers, **(headers or {})}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            answer = self._pool.urlopen(
                method,
                url,
                body=data,
                headers=sent,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=silence or self._silence),
            )
        except (HTTPError, OSError) as error:
            raise self._network(error) from error
        try:
            if not 200 <= answer.status < 300:
                raise _problem(answer)
            yield answer
        finally:
            answer.drain_conn() if answer.status >= 300 else answer.close()
            answer.release_conn()

    def _network(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the service cannot be reached: {error}"[:300],
            operation="ask service",
            object=self._url,
        )

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()


def _problem(answer: urllib3.BaseHTTPResponse) -> BootstreamError:
    """Return the error that an answer describes: RFC 9457, with the class's name as ``kind``."""
    try:
        document = json.loads(answer.read(1 << 20))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    kind: Any = getattr(errors, str(document.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, BootstreamError)):
        kind = PermissionDenied if answer.status in (401, 403) else BootstreamError
        kind = Unavailable if answer.status >= 500 else kind
    wait = answer.headers.get("Retry-After", "")
    texts = {
        key: None if document.get(key) is None else str(document[key])
        for key in ("operation", "object", "remedy", "request_id")
    }
    error: BootstreamError = kind(
        str(document.get("detail") or f"the service answered {answer.status}"),
        retry_after=float(wait) if wait.isdecimal() else None,
        **texts,
    )
    return error


class ServiceClient:
    """What asks one of the services. Thread safe; a context manager.

    Args:
        url: of the service, such as ``https://host.example:5009``.
        token: that it knows; None where it wants none.
        ca_file: certificates (PEM) to trust in the place of the system's.
        silence: seconds to wait for an answer to begin, and to go on.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: str | None = None,
        silence: float = 60.0,
    ) -> None:
        self._connection = Connection(url, token=token, ca_file=ca_file, silence=silence)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._connection.close()
