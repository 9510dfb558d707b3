"""What goes wrong in HTTP, in our own words: the one place that maps errors of the network.

Three kinds come from a server: no answer at all (``network_error``), an answer that is
no success (``status_error``), and a time to wait that it asks for (``retry_after``).
URLs may carry signatures, so errors name hosts only.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import parse_url

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Corrupt,
    ImageNotFound,
    InvalidInput,
    PermissionDenied,
    Throttled,
    Unavailable,
)

if TYPE_CHECKING:
    from bootstream.images.transport import Answer

CONNECT_SECONDS = 4.0
SILENCE_SECONDS = 20.0
MAX_ERROR_BODY = 64 << 10
_TRANSIENT = frozenset({408, 425, 500, 502, 503, 504})
_TAG_REFUSALS = frozenset({400, 403, 405, 409, 412})
_IMMUTABLE = re.compile(
    r"immutab|already.?exists|cannot be overwritten|not be overwritten|TAG_LOCKED"
    r"|disallowed on this registry, repository or image",
    re.IGNORECASE,
)
"""Amazon's ``ImageTagAlreadyExistsException`` and text, Azure's lock, and the many who say so."""
_MISSING = {
    "NAME_UNKNOWN": "repository",
    "BLOB_UNKNOWN": "blob",
    "MANIFEST_BLOB_UNKNOWN": "blob",
    "MANIFEST_UNKNOWN": "image",
}
_REMEDIES = {
    "UNSUPPORTED": "the registry does not do this; it may have to be switched on there",
    "TAG_INVALID": "choose another tag",
    "NAME_INVALID": "choose another repository",
    "413": "it is larger than the registry, or a proxy before it, takes",
}


class NotTls(Unavailable):
    """The other side does not speak TLS; some registries of this host speak http."""

    transient = False


def host_of(url: str) -> str:
    """Return host and port of a URL, for people; the query may be a secret."""
    try:
        parts = parse_url(url)
    except LocationParseError:
        return "an unreadable URL"
    return f"{parts.host}:{parts.port}" if parts.port else f"{parts.host}"


def network_error(error: Exception, url: str, operation: str) -> BootstreamError:
    """Map what urllib3 or a socket raised."""
    where = host_of(url)
    cause = error
    if isinstance(error, SSLError) and error.args and isinstance(error.args[0], Exception):
        cause = error.args[0]
    if isinstance(cause, (ssl.SSLError, SSLError)):
        return _tls_error(cause, where, operation)
    if isinstance(error, ProxyError):
        reason_text = _reason(error)
        return Unavailable(
            f"the proxy did not pass it on: {reason_text}",
            operation=operation,
            object=where,
            transient=not re.search(r"Tunnel connection failed: 4", reason_text),
            remedy="check HTTPS_PROXY and HTTP_PROXY, or name the host in NO_PROXY",
        )
    if isinstance(error, NameResolutionError):
        reason = error.__cause__
        known = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
        return Unavailable(
            f"the name of the host {where} does not resolve",
            operation=operation,
            object=where,
            transient=not known,
            remedy="check the registry's name and this host's resolver",
        )
    if isinstance(error, ConnectTimeoutError):
        problem = f"it did not take a connection within {CONNECT_SECONDS:g} s"
    elif isinstance(error, NewConnectionError):
        problem = f"no connection: {_reason(error)}"
    elif isinstance(error, (ReadTimeoutError, TimeoutError)):
        problem = f"it kept silent for {SILENCE_SECONDS:g} s"
    elif isinstance(error, (LocationParseError, LocationValueError)):
        return InvalidInput("it is not a URL", operation=operation, object=where)
    else:
        problem = f"the connection broke: {_reason(error)}"
    return Unavailable(problem, operation=operation, object=where)


def _reason(error: Exception) -> str:
    """The innermost cause's own words."""
    inner: BaseException = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__ if not str(inner) else str(inner)[:200]


def _tls_error(error: Exception, where: str, operation: str) -> BootstreamError:
    text = str(error)
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in text:
        detail = getattr(error, "verify_message", "") or text[:200]
        return Unavailable(
            f"its certificate is not trusted: {detail}",
            operation=operation,
            object=where,
            transient=False,
            remedy="give the certificate of its authority with --ca FILE",
        )
    marks = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")
    upper = text.upper().replace(" ", "_")
    if any(mark in upper for mark in marks) or isinstance(error, ssl.SSLEOFError):
        return NotTls(
            "it does not speak https",
            operation=operation,
            object=where,
            remedy="if it is meant to speak http, say --plain-http",
        )
    return Unavailable(
        f"TLS failed: {text[:200]}", operation=operation, object=where, transient=False
    )


class UploadGone(Unavailable):
    """The registry forgot an upload session (``BLOB_UPLOAD_UNKNOWN``): begin another one."""


class TooLarge(InvalidInput):
    """A request's body is larger than the registry, or a proxy before it, takes (413)."""


class UploadOutOfStep(Unavailable):
    """The registry has another part of an upload than was thought: ask it which."""


def status_error(
    answer: Answer, *, operation: str, object: str, tagging: bool = False
) -> BootstreamError:
    """Map an answer that is not a success; reads what its body says.

    Codes are those of the OCI distribution specification 1.1, "Error Codes". What registries
    say where tags may not be overwritten differs from one to the next; with ``tagging`` the
    request would have set a tag, and such an answer is ``AlreadyExists``.
    """
    code, said = _said(answer)
    detail = f": {said}" if said else ""
    status = answer.status
    where = host_of(answer.url)
    request = answer.header("x-request-id")
    if tagging and status in _TAG_REFUSALS and _IMMUTABLE.search(f"{code} {said}"):
        return AlreadyExists(
            f"{where} does not overwrite this tag{detail}",
            operation=operation,
            object=object,
            request_id=request,
            remedy="tags are immutable there: push another tag, or delete this one first",
        )
    if status in (401, 403):
        return PermissionDenied(
            f"{where} refused it ({status}){detail}",
            operation=operation,
            object=object,
            request_id=request,
            remedy=f"check the name, and log in: docker login {where}, or skopeo login {where}",
        )
    if status == 404 and code == "BLOB_UPLOAD_UNKNOWN":
        return UploadGone(
            f"{where} knows the upload no more{detail}",
            operation=operation,
            object=object,
            request_id=request,
        )
    if status == 404:
        return ImageNotFound(
            f"{where} has no such {_MISSING.get(code, 'image')}{detail}",
            operation=operation,
            object=object,
            request_id=request,
            remedy="check name and tag; some registries say this of images that need a login",
        )
    if status == 429 or code == "TOOMANYREQUESTS":
        return Throttled(
            f"{where} allows no more requests now{detail}",
            operation=operation,
            object=object,
            request_id=request,
            retry_after=retry_after(answer.header("Retry-After")),
            remedy="try again later, or log in for a higher limit",
        )
    if status == 416:
        return UploadOutOfStep(
            f"{where} wants another range{detail}",
            operation=operation,
            object=object,
            request_id=request,
        )
    if status in _TRANSIENT or status >= 500:
        return Unavailable(
            f"{where} answered {status}{detail}",
            operation=operation,
            object=object,
            request_id=request,
            transient=status in _TRANSIENT,
            retry_after=retry_after(answer.header("Retry-After")),
        )
    if code == "DIGEST_INVALID":
        return Corrupt(
            f"{where} received other bytes than were promised{detail}",
            operation=operation,
            object=object,
            request_id=request,
        )
    kind = TooLarge if status == 413 else InvalidInput
    return kind(
        f"{where} answered {status}{detail}",
        operation=operation,
        object=object,
        request_id=request,
        remedy=_REMEDIES.get(code) or _REMEDIES.get(str(status)),
    )


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3); None if it has none."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), 1e6) or None
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time()) or None


def _said(answer: Answer) -> tuple[str, str]:
    """Return the first error's code and text of a registry's body, or a line, printable."""
    code = ""
    try:
        data = answer.read_all(MAX_ERROR_BODY)
        kind = answer.header("Content-Type") or "text/plain"
        if kind.startswith("text/plain") and not data.startswith(b"{"):
            text = data[:400].decode("utf-8", "replace").strip()
        else:
            first = json.loads(data)["errors"][0]
            code = str(first.get("code") or "")[:80]
            text = str(first.get("message") or code)
    except (BootstreamError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""
    except RecursionError:
        return "", ""
    return code, "".join(c if c.isprintable() else "?" for c in text.rstrip("."))[:200]
