"""The checksum that goes with every body, for the service to compare before it stores it.

CRC32C where the processor computes it, by the ``crc32c`` package that Oracle's SDK brings: next
to nothing, for what may happen to bytes on their way. SHA256 else. ``docs/decisions/
oci-checksums.md`` has the figures. In both, the value of ``opc-content-…`` is base64 of the
digest, highest byte first.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from bootstream.errors import Unavailable
from bootstream.storage.oci.client import Answer, Request


def _load_crc32c() -> Callable[[memoryview], int] | None:
    try:
        module = import_module("crc32c")
    except ImportError:  # not installed, or told not to work without hardware
        return None
    found: Callable[[memoryview], int] | None = getattr(module, "crc32c", None)
    return found if getattr(module, "hardware_based", False) else None


_CRC32C = _load_crc32c()


@dataclass(frozen=True, slots=True)
class Checksum:
    """A body's checksum: the algorithm's name in the API, and the digest in base64."""

    algorithm: str
    value: str

    @property
    def lines(self) -> bytes:
        """The header lines that make the service compare."""
        return f"{algorithm_line(self.algorithm)}{self.field}: {self.value}\r\n".encode()

    @property
    def field(self) -> str:
        """The header field that holds it, in requests and answers."""
        return f"opc-content-{self.algorithm.lower()}"


def algorithm() -> str:
    """Return the algorithm that this host uses: CRC32C or SHA256."""
    return "SHA256" if _CRC32C is None else "CRC32C"


def algorithm_line(name: str) -> str:
    """Return the header line that names an algorithm."""
    return f"opc-checksum-algorithm: {name}\r\n"


def checksum_of(data: memoryview) -> Checksum:
    """Return the checksum of a body."""
    crc = _CRC32C
    digest = hashlib.sha256(data).digest() if crc is None else crc(data).to_bytes(4, "big")
    return Checksum(algorithm(), b64encode(digest).decode())


def check_answer(request: Request, answer: Answer, data: memoryview, checksum: Checksum) -> str:
    """Compare the checksum the service computed with ours; return the new etag.

    A service that does not know the algorithm here still answers with the md5 it computed.
    """
    etag = answer.headers.get("etag", "")
    stored = answer.headers.get(checksum.field)
    if stored is not None:
        same = stored == checksum.value
    else:
        md5 = answer.headers.get("opc-content-md5")
        ours = hashlib.md5(data, usedforsecurity=False).digest() if md5 else b""
        same = md5 is None or md5 == b64encode(ours).decode()
    if not etag or not same:
        raise Unavailable(
            "the storage received other bytes than were sent"
            if etag
            else "the answer does not say what was written",
            operation=request.operation,
            object=request.object,
            request_id=answer.headers.get("opc-request-id"),
        )
    return etag
