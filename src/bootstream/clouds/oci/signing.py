"""Request signatures of Oracle Cloud Infrastructure ("Request Signatures", version 1).

The scheme is draft-cavage-http-signatures-08 with RSA PKCS #1 v1.5 and SHA-256: the
lines ``name: value`` of the signed headers, joined by line feeds, are signed, and the
``Authorization`` header names the headers in the same order. ``(request-target)`` is
the lower-case method, a space, and path and query as sent. The server compares what it
got, so nothing here may encode, sort or trim what the transport sends otherwise.

All requests sign ``date (request-target) host``. PUT, POST and PATCH add
``content-length content-type x-content-sha256``, except PutObject and UploadPart, which
do not hash their body. The federation service wants no ``host``.
"""

from __future__ import annotations

import hashlib
import re
import time
from base64 import b64encode
from collections.abc import Mapping
from email.utils import formatdate

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from bootstream.clouds.oci.credentials import Credentials
from bootstream.errors import InvalidInput

_PADDING = PKCS1v15()
_SHA256 = SHA256()
_BODY_HEADERS = ("content-length", "content-type", "x-content-sha256")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")

_last_date = (0, "")


def http_date() -> str:
    """Return the time now as an HTTP date (RFC 9110, 5.6.7); formatted once a second."""
    global _last_date  # noqa: PLW0603 - one tuple, replaced whole: safe without a lock
    now = int(time.time())
    second, text = _last_date
    if second != now:
        text = formatdate(now, usegmt=True)
        _last_date = (now, text)
    return text


def body_headers(body: bytes, content_type: str = "application/json") -> dict[str, str]:
    """Return the headers that a request with ``body`` sends and signs."""
    return {
        "content-length": str(len(body)),
        "content-type": content_type,
        "x-content-sha256": b64encode(hashlib.sha256(body).digest()).decode("ascii"),
    }


def sign(
    credentials: Credentials,
    method: str,
    host: str | None,
    target: str,
    *,
    date: str,
    body_headers: Mapping[str, str] | None = None,
) -> str:
    """Return the value of the ``Authorization`` header. Thread safe.

    Args:
        credentials: one snapshot; key and key id are used together.
        method: any case.
        host: the ``Host`` header as sent, with its port if it has one; None leaves it out.
        target: path and query exactly as sent, encoded.
        date: the ``Date`` header as sent; see ``http_date``.
        body_headers: ``content-length``, ``content-type``, ``x-content-sha256`` as sent,
            for requests whose body is signed.

    Raises:
        InvalidInput: a part holds a control character, which could forge another line.
    """
    target_line = f"{method.lower()} {target}"
    text = f"date: {date}\n(request-target): {target_line}"
    names = "date (request-target)"
    lines = 2
    if host is not None:
        text += f"\nhost: {host}"
        names += " host"
        lines += 1
    if body_headers is not None:
        for name in _BODY_HEADERS:
            text += f"\n{name}: {body_headers[name]}"
            names += f" {name}"
            lines += 1
    if text.count("\n") != lines - 1 or _CONTROL.search(text):
        raise InvalidInput(
            "the request's target or headers hold control characters",
            operation="sign request",
            remedy="encode object names before they become part of a URL",
        )
    signature = credentials.private_key.sign(text.encode(), _PADDING, _SHA256)
    return (
        f'Signature algorithm="rsa-sha256",headers="{names}",keyId="{credentials.key_id}",'
        f'signature="{b64encode(signature).decode("ascii")}",version="1"'
    )
