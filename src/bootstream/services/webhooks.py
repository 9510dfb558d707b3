"""Telling somebody how a build ended: a signed POST, tried again a bounded number of times.

The body is the build's document. ``X-Bootstream-Signature: t=SECONDS,v1=HEX`` has the HMAC-SHA256,
with the service's secret, of ``SECONDS.BODY``; the receiver compares it, and refuses old times.
``X-Bootstream-Delivery`` is the build's id and state: a receiver may get it more than once.
Redirects are not followed. Whether it was told is kept, so a restart goes on with it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from pathlib import Path

from bootstream.errors import BootstreamError, InvalidInput, Unavailable
from bootstream.images.transport import Transport
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.services.addresses import AddressPolicy

log = logging.getLogger("bootstream.services")

WAITS = (0.0, 2.0, 10.0, 60.0, 300.0, 900.0)
SILENCE_SECONDS = 15.0
_LEAST_SECRET = 16


def read_secret(path: Path) -> bytes:
    """Return the secret of a file, without white space around it. Raises InvalidInput."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise InvalidInput(
            error.strerror or str(error), operation="read secret", object=str(path)
        ) from error
    if len(secret) < _LEAST_SECRET:
        raise InvalidInput(
            f"a secret has {_LEAST_SECRET} bytes at least",
            operation="read secret",
            object=str(path),
            remedy="openssl rand -hex 32",
        )
    return secret


def sign(secret: bytes, seconds: int, body: bytes) -> str:
    """Return the signature's header."""
    mac = hmac.new(secret, f"{seconds}.".encode() + body, hashlib.sha256)
    return f"t={seconds},v1={mac.hexdigest()}"


class Webhooks:
    """Delivers. Thread safe.

    Args:
        secret: signs.
        policy: which hosts may be told.
        proxies: which requests go through which proxy.
        waits: seconds before each try.
    """

    def __init__(
        self,
        secret: bytes,
        policy: AddressPolicy,
        *,
        proxies: Proxies = NO_PROXIES,
        waits: tuple[float, ...] = WAITS,
    ) -> None:
        self._secret = secret
        self._policy = policy
        self._transport = Transport(proxies=proxies, guard=policy.check_address)
        self._waits = waits
        self._stop = threading.Event()

    def deliver(self, url: str, body: bytes, delivery: str) -> bool | None:
        """Tell ``url``, blocking; return whether it heard, None if we were stopped before."""
        for wait in self._waits:
            if self._stop.wait(wait):
                return None
            try:
                self._policy.check_webhook(url)
                self._try(url, body, delivery)
            except InvalidInput as error:
                log.warning("webhook of %s: %s", delivery, error)
                return False
            except BootstreamError as error:
                log.warning("webhook of %s: %s", delivery, error)
                continue
            return True
        return False

    def _try(self, url: str, body: bytes, delivery: str) -> None:
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Bootstream-Delivery": delivery,
            "X-Bootstream-Signature": sign(self._secret, int(time.time()), body),
        }
        with self._transport.send(
            "POST",
            url,
            headers=headers,
            operation="tell webhook",
            body=body,
            silence=SILENCE_SECONDS,
        ) as answer:
            answer.drain()
        if not 200 <= answer.status < 300:
            raise Unavailable(f"it answered {answer.status}", operation="tell webhook")

    def close(self) -> None:
        """Give up waiting; what is not told is told after the next start."""
        self._stop.set()
        self._transport.close()
