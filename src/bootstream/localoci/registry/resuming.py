"""Where an upload stands, also when its last piece broke off.

The real registry's address of an upload says how much it has (``_state``, signed with the
registry's secret: base64url of HMAC-SHA-256 and JSON), and after a piece that broke off that is not
so any more: it then refuses the address, and the upload is lost. The specification wants a client
to ask where the upload stands, and to go on from there ("Pushing a blob in chunks"). So the
state is made anew here, from the upload's file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from pathlib import Path

UPLOAD = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/.*)?")


class Uploaded:
    """What uploads have. Thread safe.

    Args:
        repositories: the real registry's folder of them.
        secret: with which it signs.
    """

    def __init__(self, repositories: Path, secret: str) -> None:
        self._repositories = repositories
        self._secret = secret.encode()

    def size(self, folder: str, upload: str) -> int | None:
        """The bytes that an upload has; None: there is no such upload."""
        if not UPLOAD.fullmatch(upload):
            return None
        place = self._repositories / folder / "_uploads" / upload
        try:
            return (place / "data").stat().st_size
        except OSError:
            return 0 if (place / "startedat").exists() else None

    def query(self, folder: str, upload: str, size: int) -> str:
        """The query of an address that says so."""
        try:
            place = self._repositories / folder / "_uploads" / upload
            started = (place / "startedat").read_text().strip()
        except OSError:
            started = "2000-01-01T00:00:00Z"
        state = {"Name": folder, "UUID": upload, "Offset": size, "StartedAt": started}
        text = json.dumps(state, separators=(",", ":")).encode()
        signature = hmac.digest(self._secret, text, hashlib.sha256)
        return urlencode({"_state": base64.urlsafe_b64encode(signature + text).decode()})


def start_of(content_range: str | None) -> int | None:
    """Where a piece begins, as its header says; None: it does not."""
    match = _RANGE.fullmatch(content_range or "")
    return None if match is None else int(match[1])
