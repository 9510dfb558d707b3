"""Whose certificates are trusted, and which are shown: the system's, a file, a host's folder.

Docker and the container tools keep what belongs to one registry in a folder named like it,
``HOST`` or ``HOST:PORT`` (``containers-certs.d(5)``): ``*.crt`` are authorities to trust
beside the system's, ``NAME.cert`` with ``NAME.key`` is what this client shows of itself. The
first place that has such a folder counts.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from bootstream.errors import InvalidInput

_MAX_FILES = 64


def usual_folders() -> tuple[Path, ...]:
    """Return where the container tools and Docker look, in order."""
    return (
        Path("~/.config/containers/certs.d").expanduser(),
        Path("/etc/containers/certs.d"),
        Path("/etc/docker/certs.d"),
    )


def host_folder(folders: Sequence[Path], host: str, port: int) -> Path | None:
    """Return the folder with the certificates for a host's port, if there is one."""
    names = [f"{host}:{port}", *([host] if port == 443 else [])]
    for folder in folders:
        for name in names:
            if os.path.isdir(folder / name):  # noqa: PTH112 - False where it may not be looked at
                return folder / name
    return None


def make_context(ca_file: str | None, folder: Path | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the system's authorities and those given.

    Raises:
        InvalidInput: a file has no certificates that can be read.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        _trust(context, ca_file)
    if folder is None:
        return context
    for file in sorted(folder.glob("*.crt"))[:_MAX_FILES]:
        _trust(context, str(file))
    for file in sorted(folder.glob("*.cert"))[:1]:
        try:
            context.load_cert_chain(file, file.with_suffix(".key"))
        except (OSError, ValueError) as error:
            raise InvalidInput(
                "it cannot be used with its key",
                operation="read certificates",
                object=str(file),
                remedy=f"put the key into {file.with_suffix('.key')}, both in PEM form",
            ) from error
    return context


def _trust(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "it has no certificates that can be read",
            operation="read certificates",
            object=file,
            remedy="give a file in PEM form",
        ) from error
