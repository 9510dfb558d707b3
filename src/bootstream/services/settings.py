"""What the services read from the environment beside the library's own settings.

The table is in docs/services.md.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from bootstream.errors import InvalidInput

TEMPLATE_MANAGER_PORT = 5009
ORCHESTRATOR_PORT = 5008

_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where a service listens, and whom it lets in.

    ``plain_http``: also beyond loopback, for a service behind something that ends TLS.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tokens: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    plain_http: bool = False

    def check(self) -> None:
        """Raise InvalidInput where anybody on the network could come in, or listen in."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput(
                "a certificate and its key come together",
                operation="start service",
                object="BOOTSTREAM_TLS_CERT_FILE, BOOTSTREAM_TLS_KEY_FILE",
                remedy="set both, or neither",
            )
        if self.is_loopback:
            return
        if self.tokens is None:
            raise InvalidInput(
                "beyond this host the service needs tokens",
                operation="start service",
                object=self.host,
                remedy="make one with 'bootstream token', and name the file with "
                "--tokens or BOOTSTREAM_TOKENS_FILE; or listen on 127.0.0.1",
            )
        if self.certificate is None and not self.plain_http:
            raise InvalidInput(
                "beyond this host tokens would travel in the clear",
                operation="start service",
                object=self.host,
                remedy="name a certificate with BOOTSTREAM_TLS_CERT_FILE and "
                "BOOTSTREAM_TLS_KEY_FILE, or set BOOTSTREAM_PLAIN_HTTP=yes where a proxy "
                "in front of it ends TLS",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What both services need to know.

    ``allowed_hosts``: hosts, or HOST:PORT, that images and webhooks may name although their
    addresses are not public. ``builds``: at once. ``queue``: builds that wait at most.
    ``webhook_secret``: the file that signs webhooks; None: there are none.
    """

    state: Path
    listen: ListenSettings = ListenSettings()
    allowed_hosts: frozenset[str] = frozenset()
    builds: int = 2
    queue: int = 1000
    sandboxes: int = 256
    webhook_secret: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, port: int) -> ServiceSettings:
        """Read the variables; unset and empty mean the default. Raises InvalidInput."""

        def path(name: str) -> Path | None:
            text = environ.get(name)
            return Path(text).expanduser().absolute() if text else None

        listen = ListenSettings(
            host=environ.get("BOOTSTREAM_LISTEN_HOST") or "127.0.0.1",
            port=_number(environ, "BOOTSTREAM_LISTEN_PORT", port, 0, 65535),
            tokens=path("BOOTSTREAM_TOKENS_FILE"),
            certificate=path("BOOTSTREAM_TLS_CERT_FILE"),
            key=path("BOOTSTREAM_TLS_KEY_FILE"),
            plain_http=_yes(environ, "BOOTSTREAM_PLAIN_HTTP"),
        )
        return cls(
            state=path("BOOTSTREAM_STATE_DIR") or user_state_path("bootstream"),
            listen=listen,
            allowed_hosts=_hosts(environ.get("BOOTSTREAM_ALLOWED_HOSTS") or ""),
            builds=_number(environ, "BOOTSTREAM_BUILDS", 2, 1, 64),
            queue=_number(environ, "BOOTSTREAM_BUILD_QUEUE", 1000, 1, 100_000),
            sandboxes=_number(environ, "BOOTSTREAM_SANDBOXES", 256, 1, 4096),
            webhook_secret=path("BOOTSTREAM_WEBHOOK_SECRET_FILE"),
        )


def _hosts(text: str) -> frozenset[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if _HOST.fullmatch(name) is None:
            raise InvalidInput(
                f"{name[:80]!r} is not a host",
                operation="read",
                object="BOOTSTREAM_ALLOWED_HOSTS",
                remedy="write HOST or HOST:PORT, several with commas between them",
            )
    return frozenset(names)


def _number(environ: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise InvalidInput(
            f"{text[:40]!r} is not a number from {least} to {most}",
            operation="read",
            object=name,
            remedy="write such a number, or unset it",
        )
    return int(text)


def _yes(environ: Mapping[str, str], name: str) -> bool:
    text = (environ.get(name) or "no").strip().lower()
    if text not in ("yes", "no", "true", "false", "1", "0"):
        raise InvalidInput(
            f"{text[:40]!r} is neither yes nor no",
            operation="read",
            object=name,
            remedy="write yes or no",
        )
    return text in ("yes", "true", "1")
