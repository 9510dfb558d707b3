"""Servers that speak S3: moto, nanio, rclone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import urllib3

from bootstream.storage.s3requests import Keys, Unsigned, signed_headers
from bootstream.testing.servers.process import ServerProcess, tool

REGION = "us-east-1"


class S3Server(ServerProcess):
    """Something that speaks S3, with one pair of keys.

    Attributes:
        keys: which it takes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys = Keys("test-access-key", "test-secret-key-of-some-length")

    def create_bucket(self, name: str) -> str:
        """Create a bucket; return its name."""
        self.request("PUT", f"/{name}")
        return name

    def request(self, method: str, path: str, query: str = "") -> bytes:
        """Send a signed request without a body; return the answer's body, insist on success."""
        host = urlsplit(self.url).netloc
        headers = signed_headers(
            self.keys, REGION, Unsigned(method, host, path, query), datetime.now(UTC)
        )
        target = f"{self.url}{path}?{query}" if query else f"{self.url}{path}"
        answer = urllib3.request(method, target, headers=headers, retries=False, timeout=20)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:500]!r}")
        return answer.data


class Moto(S3Server):
    """moto's S3: complete, conditions too; takes any keys."""

    def command(self, port: int) -> Sequence[str]:
        """See the base class."""
        return [tool("moto_server"), "-H", "127.0.0.1", "-p", str(port)]


class Nanio(S3Server):
    """nanio: checks signatures, and ignores conditions."""

    def command(self, port: int) -> Sequence[str]:
        """See the base class."""
        where = ["--host", "127.0.0.1", "--port", str(port)]
        data = ["--data-dir", str(self.folder / "data"), "--no-access-log"]
        return [tool("nanio"), "serve", *where, *data]

    def environment(self) -> dict[str, str]:
        """See the base class."""
        return {"NANIO_ACCESS_KEY": self.keys.access_key, "NANIO_SECRET_KEY": self.keys.secret_key}


class RcloneS3(S3Server):
    """rclone serving a folder: answers a request for a range with the whole object."""

    def command(self, port: int) -> Sequence[str]:
        """See the base class."""
        keys = f"{self.keys.access_key},{self.keys.secret_key}"
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        config = ["--config", str(self.folder / "rclone.conf")]
        address = ["--addr", f"127.0.0.1:{port}", "--auth-key", keys]
        return [tool("rclone"), "serve", "s3", *config, *address, str(data)]


class LocalBucket(S3Server):
    """localbucket: S3 in a folder; asked as Google's XML API, it ignores all conditions."""

    def command(self, port: int) -> Sequence[str]:
        """See the base class."""
        return [tool("localbucket"), "--port", str(port), str(self.folder / "data")]
