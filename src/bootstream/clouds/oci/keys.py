"""Private keys: reading PEM, with errors that say what is wrong and never show the key."""

from __future__ import annotations

import base64
import hashlib
import logging
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from bootstream.errors import PermissionDenied

_LOG = logging.getLogger(__name__)
_MAX_FILE = 256 << 10
_MIN_BITS = 2048


def read_file(path: Path, what: str, *, secret: bool = False) -> bytes:
    """Return the content of a small file; a secret one readable by others is warned about.

    Raises PermissionDenied naming the file: missing, not readable, not a file, too large.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        problem, remedy = "the file does not exist", "correct the path, or create the file"
    except PermissionError:
        problem = "this user may not read the file"
        remedy = f"run as its owner, or: chown \"$USER\" '{path}' && chmod 600 '{path}'"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        problem, remedy = f"the file cannot be read: {reason}", "name a readable file"
    else:
        if len(data) <= _MAX_FILE:
            if secret and mode & 0o077:
                _LOG.warning("%s %s can be read by other users: chmod 600 it", what, path)
            return data
        problem, remedy = "the file is too large to be one", "check the path"
    raise PermissionDenied(problem, operation=f"read {what}", object=str(path), remedy=remedy)


def load_private_key(pem: bytes, pass_phrase: str | None, *, source: str) -> rsa.RSAPrivateKey:
    """Return the RSA key of a PEM text; ``source`` says in errors where it came from.

    A pass phrase is ignored for keys that have none: profiles inherit it from DEFAULT.
    Text around the PEM block, as the console writes it, does no harm. Raises PermissionDenied.
    """
    begin = pem.find(b"-----BEGIN ")
    block = pem[max(begin, 0) :]
    try:
        key = load_pem_private_key(block, None)
    except TypeError:
        if not pass_phrase:
            raise _bad(
                source, "the key is encrypted, and there is no pass phrase", _PASS_PHRASE
            ) from None
        try:
            key = load_pem_private_key(block, pass_phrase.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise _bad(source, "the pass phrase does not open the key", _PASS_PHRASE) from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's message may quote what it parsed: it stays here.
        if b"-----BEGIN PUBLIC KEY" in pem:
            raise _bad(
                source, "this is a public key; signing needs the private one", _PRIVATE
            ) from None
        raise _bad(source, "this is not a private key in PEM form", _PRIVATE) from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise _bad(source, "the key is not an RSA key", _PRIVATE)
    if key.key_size < _MIN_BITS:
        raise _bad(source, f"the key has {key.key_size} bits, OCI wants {_MIN_BITS}", _PRIVATE)
    return key


_PASS_PHRASE = "set pass_phrase in the profile, or OCI_CLI_PASSPHRASE"  # noqa: S105 - advice
_PRIVATE = "name the RSA private key (PEM) whose public half was uploaded: key_file in the profile"


def _bad(source: str, problem: str, remedy: str) -> PermissionDenied:
    return PermissionDenied(problem, operation="load key", object=source, remedy=remedy)


def new_session_key() -> rsa.RSAPrivateKey:
    """Return a new RSA key of 2048 bits (some 0.1 s of CPU, without the GIL)."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_der_base64(key: rsa.RSAPrivateKey) -> str:
    """Return the public half as SubjectPublicKeyInfo: PEM without armour and newlines."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode("ascii")


def fingerprint(key: rsa.RSAPrivateKey) -> str:
    """Return the fingerprint by which the console names an API key: MD5 of the public DER."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.md5(der, usedforsecurity=False).digest().hex(":")
