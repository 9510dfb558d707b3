"""What a bucket is reached with: obstore's stores for it, and how its cloud differs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bootstream.errors import InvalidInput
from bootstream.proxies import NO_PROXIES, Proxies
from bootstream.storage.objectstore_errors import Remedies

_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,221}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_ENDPOINT = re.compile(
    r"https?://([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?"
)

CONNECT_TIMEOUT = timedelta(seconds=10)
PROGRESS_TIMEOUT = timedelta(seconds=60)
"""How long an answer, or the next bytes of one, may take."""


@dataclass(frozen=True, slots=True)
class Traits:
    """How a cloud differs from the others.

    ``max_parts``: of one upload. ``delete_batch``: names in one request to delete.
    ``max_copy``: bytes that one copy request can move, None without a limit.
    ``max_ttl``: of a signed URL. ``versions``: conditions name a version, not an etag.
    ``utf16_order``: listings are sorted by UTF-16 code units.
    ``metadata_dash``: what stands for ``-`` in keys of metadata. ``refused``: characters that
    names cannot have here.
    """

    provider: str
    extra: str
    remedies: Remedies
    max_parts: int = 10_000
    delete_batch: int = 1000
    max_copy: int | None = None
    max_ttl: timedelta = timedelta(days=7)
    versions: bool = False
    utf16_order: bool = False
    metadata_dash: str = "-"
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """The stores of obstore for one bucket.

    ``once`` repeats nothing; ``parts`` repeats single parts of uploads. ``endpoint`` is a
    URL at which the service answers something, whatever it is. ``ca_file`` and ``proxies`` are
    for what obstore has no operation for.
    """

    obstore: Any
    once: Any
    parts: Any
    endpoint: str
    bucket: str
    identity: str
    parallel: int = 16
    ca_file: str | None = None
    proxies: Proxies = NO_PROXIES


def load_obstore(extra: str) -> Any:
    """Return the module obstore; raises InvalidInput where it is not installed."""
    try:
        import obstore  # noqa: PLC0415 - an extra, and a large one
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError:
        raise InvalidInput(
            "the package obstore, which speaks to this cloud, is not installed",
            operation="open store",
            remedy=f"pip install 'bootstream[{extra}]'",
        ) from None
    return obstore


def check_names(bucket: str, endpoint: str | None = None, **names: str | None) -> None:
    """Raise InvalidInput for what makes no URL: obstore panics at the first request with it.

    Args:
        bucket: or container.
        endpoint: ``http`` or ``https``, a host, perhaps a port and a path; nothing else.
        names: others that become a part of a host, e.g. a region.
    """
    if _BUCKET.fullmatch(bucket) is None:
        raise InvalidInput(
            "this cannot be the name of a bucket",
            operation="open store",
            object=ascii(bucket)[:120],
            remedy="set TEMPLATE_BUCKET_NAME to the bucket's name alone",
        )
    for what, name in names.items():
        if name is not None and _NAME.fullmatch(name) is None:
            raise InvalidInput(
                f"this cannot be the name of a {what}",
                operation="open store",
                object=ascii(name)[:120],
            )
    if endpoint is not None and _ENDPOINT.fullmatch(endpoint) is None:
        raise InvalidInput(
            "this is no endpoint",
            operation="open store",
            object=bucket,
            remedy="write it like https://HOST[:PORT]",
        )


def client_options(endpoint: str | None, ca_file: str | None = None) -> dict[str, Any]:
    """Return obstore's options of the HTTP client: limits on lack of progress, not on size."""
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": PROGRESS_TIMEOUT,
        "timeout": timedelta(days=1),  # of a whole transfer: none, which cannot be said
        "default_content_type": "application/octet-stream",
        "user_agent": "bootstream",
    }
    if endpoint is not None and endpoint.startswith("http://"):
        options["allow_http"] = True
    if ca_file is not None:
        try:
            options["root_certificate"] = Path(ca_file).read_bytes()
        except OSError as error:
            raise InvalidInput(
                f"the certificates cannot be read: {(error.strerror or str(error)).lower()}",
                operation="open store",
                object=ca_file,
                remedy="point BOOTSTREAM_STORAGE_CA_FILE at a file in PEM",
            ) from error
    return options


def no_retries() -> dict[str, Any]:
    """Return obstore's retry settings for everything but parts of uploads."""
    return {"max_retries": 0, "retry_timeout": timedelta(0)}


def part_retries() -> dict[str, Any]:
    """Return obstore's retry settings for parts of uploads."""
    return {"max_retries": 5, "retry_timeout": timedelta(minutes=2)}
