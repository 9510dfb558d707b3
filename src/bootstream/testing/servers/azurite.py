"""Azurite, Microsoft's own emulator of Azure Blob Storage."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from email.utils import formatdate

import urllib3

from bootstream.testing.servers.process import ServerProcess, tools_folder

_VERSION = "2023-11-03"


class Azurite(ServerProcess):
    """The emulator with its one account.

    Attributes:
        account: the account's name.
        account_key: its key, which Microsoft publishes: it opens nothing but emulators.
    """

    account = "devstoreaccount1"
    account_key = (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )

    @property
    def endpoint(self) -> str:
        """The URL of the account's blob service."""
        return f"{self.url}/{self.account}"

    def command(self, port: int) -> Sequence[str]:
        """See the base class."""
        program = tools_folder() / "npm" / "node_modules" / ".bin" / "azurite-blob"
        where = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
        data = ["--location", str(self.folder / "data"), "--disableTelemetry"]
        return [str(program), *where, *data, "--silent", "--skipApiVersionCheck"]

    def create_bucket(self, name: str) -> str:
        """Create a container, with a request signed by the account's key; return its name."""
        date = formatdate(usegmt=True)
        resource = f"/{self.account}/{self.account}/{name}\nrestype:container"
        text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{_VERSION}\n{resource}"
        digest = hmac.digest(base64.b64decode(self.account_key), text.encode(), hashlib.sha256)
        signature = base64.b64encode(digest).decode()
        headers = {
            "x-ms-date": date,
            "x-ms-version": _VERSION,
            "Authorization": f"SharedKey {self.account}:{signature}",
        }
        url = f"{self.endpoint}/{name}?restype=container"
        answer = urllib3.request("PUT", url, headers=headers, retries=False, timeout=20)
        if answer.status != 201:
            raise RuntimeError(f"container {name}: {answer.status} {answer.data[:500]!r}")
        return name
