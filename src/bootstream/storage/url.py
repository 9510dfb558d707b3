"""Where a store is, in one line: ``oci://namespace@bucket/prefix``, or a folder.

::

    oci://[NAMESPACE@]BUCKET[/PREFIX]   OCI Object Storage; the namespace is looked up if absent
    s3://BUCKET[/PREFIX]                AWS S3 and what speaks like it
    gs://BUCKET[/PREFIX]                Google Cloud Storage
    az://CONTAINER[/PREFIX]             Azure Blob Storage, of the account in the settings
    file:///FOLDER                      a folder, absolute, percent-encoded (RFC 8089)
    FOLDER                              any text without ``://``

In the first four, what follows the bucket is a name as it is: nothing is decoded, ``?`` and
``#`` and ``%`` are characters like others, as in the clouds' own tools. Nothing here is ever
a secret: credentials in a URL are refused, and not repeated in the error.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from bootstream.errors import InvalidInput
from bootstream.storage.paths import normalize_prefix

SCHEMES = {"oci": "OCIBucket", "s3": "AWSBucket", "gs": "GCPBucket", "az": "AzureBlob"}
_OF_PROVIDER = {provider: scheme for scheme, provider in SCHEMES.items()}

_BUCKETS = {
    "oci": (
        re.compile(r"[A-Za-z0-9._-]{1,256}"),
        "1 to 256 letters, digits, '.', '_' and '-'",
    ),
    "s3": (
        # Wider than today's rule: old buckets of AWS, and other services, have such names.
        re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]"),
        "3 to 255 letters, digits, '.', '_' and '-', a letter or digit at both ends",
    ),
    "gs": (
        re.compile(r"(?=.{3,222}$)(?!.*\.\.)[a-z0-9][a-z0-9._-]*[a-z0-9]"),
        "3 to 222 lower-case letters, digits, '.', '_' and '-', a letter or digit at both ends",
    ),
    "az": (
        re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*"),
        "3 to 63 lower-case letters, digits and single '-', a letter or digit at both ends",
    ),
}
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Which store, and which part of it.

    ``provider`` is a value of STORAGE_PROVIDER. For ``Local``, ``folder`` is set and the
    rest is empty; for the others ``bucket``, maybe ``prefix`` (no slash at its end), and for
    OCI maybe ``namespace``.
    """

    provider: str
    bucket: str = ""
    prefix: str = ""
    namespace: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        """Return the URL; parsing it gives this address again."""
        if self.provider == "Local":
            return "file://" + quote(os.fsencode(self.folder))
        owner = f"{self.namespace}@" if self.namespace else ""
        tail = f"/{self.prefix}" if self.prefix else ""
        return f"{_OF_PROVIDER[self.provider]}://{owner}{self.bucket}{tail}"


def is_url(text: str) -> bool:
    """Tell whether ``text`` is meant as a URL, right or wrong, and not as a folder."""
    return "://" in text


def parse_store(text: str) -> StoreAddress:
    """Read the address of a store; a folder that is not a URL is taken from here.

    Raises:
        InvalidInput: no such scheme, or a name that the cloud cannot have.
    """
    if not is_url(text):
        if not text or "\0" in text:
            raise _bad("the name of the folder is empty or has a zero byte", text)
        return StoreAddress("Local", folder=str(Path(text).absolute()))
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme == "file":
        return _parse_file(rest, text)
    if scheme not in SCHEMES:
        raise _bad("no store has URLs that begin so", f"{scheme}://")
    return _parse_bucket(scheme, rest)


def _parse_file(rest: str, text: str) -> StoreAddress:
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise _bad("the folder is not absolute: write file:///folder", text)
    if "?" in path or "#" in path or _ESCAPE.search(path):
        raise _bad("'?', '#' and '%' stand for themselves only as %3F, %23 and %25", text)
    try:
        folder = os.fsdecode(unquote_to_bytes(path.encode("utf-8", "surrogateescape")))
    except UnicodeEncodeError:
        raise _bad("it is not valid Unicode", text) from None
    if "\0" in folder:
        raise _bad("the name of the folder has a zero byte", text)
    return StoreAddress("Local", folder=str(Path("/" + folder)))


def _parse_bucket(scheme: str, rest: str) -> StoreAddress:
    authority, _, tail = rest.partition("/")
    namespace: str | None = None
    if "@" in authority or ":" in authority:
        namespace, at, bucket = authority.partition("@")
        if scheme != "oci" or not at or not _NAMESPACE.fullmatch(namespace):
            # It may be a password: not repeated.
            raise _bad("credentials and ports cannot be in the address of a store", f"{scheme}://…")
    else:
        bucket = authority
    pattern, rule = _BUCKETS[scheme]
    if not pattern.fullmatch(bucket):
        raise _bad(f"{ascii(bucket)[:80]} cannot be a bucket here: {rule}", f"{scheme}://…")
    prefix = normalize_prefix(tail).removesuffix("/")
    return StoreAddress(SCHEMES[scheme], bucket, prefix, namespace)


def _bad(problem: str, text: str) -> InvalidInput:
    return InvalidInput(
        problem,
        operation="read address of store",
        object=ascii(text)[1:-1][:120] or None,
        remedy="write oci://namespace@bucket/prefix, s3://bucket/prefix, gs://bucket/prefix, "
        "az://container/prefix, file:///folder, or a folder",
    )
