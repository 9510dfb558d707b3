"""Images that Docker or Podman of this host has, by the Docker Engine API.

``GET /images/{name}/get`` ("Export an image") on the engine's unix socket answers what
``docker save`` writes. Podman's service answers the same. It is kept in an unnamed file while
the image is read.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import quote

from bootstream.errors import ImageNotFound, InvalidInput, PermissionDenied, Unavailable
from bootstream.images.files import write_error
from bootstream.images.reference import DockerArchiveReference
from bootstream.images.sources import TransferSource, open_source

_SECONDS = 60.0  # of silence; the engine packs the image first
_PIECE = 1 << 20
_MAX_IMAGE = 1 << 40
_UNIX = "unix://"


def find_socket(docker_host: str | None) -> Path | None:
    """Return the engine's socket: what DOCKER_HOST names, or a usual one that is there.

    Engines that are asked over the network are passed over.
    """
    if docker_host is not None:
        return Path(docker_host.removeprefix(_UNIX)) if docker_host.startswith(_UNIX) else None
    usual = (
        Path("/var/run/docker.sock"),
        Path(f"/run/user/{os.getuid()}/podman/podman.sock"),
        Path("/run/podman/podman.sock"),
    )
    return next((path for path in usual if path.is_socket()), None)


class Engine:
    """An engine. Safe to use from several threads.

    Args:
        path: of its socket.
        scratch: returns a folder with room for an image.
    """

    def __init__(self, path: Path, *, scratch: Callable[[], Path]) -> None:
        self.path = path
        self._scratch = scratch

    def open(self, name: str) -> TransferSource | None:
        """Return an image by name and tag, to be read or copied; None: it has no such image.

        Raises:
            PermissionDenied: this user may not use the socket.
            Unavailable: the engine does not answer, or not to the end.
            StorageFull: the scratch folder has no room.
            Corrupt, InvalidInput: what it sends is no image.
        """
        connection = _Connection(self.path)
        try:
            connection.request("GET", f"/images/{quote(name, safe=':')}/get")
            answer = connection.getresponse()
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise Unavailable(
                    f"the engine answered {answer.status}",
                    operation="read image",
                    object=f"{self.path}, {name}",
                    transient=answer.status >= 500,
                )
            return self._keep(answer, name)
        except PermissionError as error:
            raise PermissionDenied(
                "this user may not use the engine's socket",
                operation="read image",
                object=str(self.path),
                remedy="join the group that owns it, or unset DOCKER_HOST",
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Unavailable(
                "no engine listens there",
                operation="read image",
                object=str(self.path),
                transient=False,
                remedy="start it, or unset DOCKER_HOST",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"the engine's answer broke off: {type(error).__name__}",
                operation="read image",
                object=f"{self.path}, {name}",
            ) from error
        finally:
            connection.close()

    def _keep(self, answer: http.client.HTTPResponse, name: str) -> TransferSource:
        folder = self._scratch()
        try:
            file = NamedTemporaryFile(dir=folder, suffix=".tar")  # noqa: SIM115 - closed below
        except OSError as error:
            raise write_error(error, str(folder)) from error
        with file:
            size = 0
            while piece := answer.read(_PIECE):
                size += len(piece)
                if size > _MAX_IMAGE:
                    raise InvalidInput("it is too large", operation="read image", object=name)
                try:
                    file.write(piece)
                    file.flush()
                except OSError as error:
                    raise write_error(error, str(folder)) from error
            try:
                return open_source(
                    DockerArchiveReference(file.name),
                    scratch=self._scratch,
                    credentials=_Nobody(),
                )
            except ImageNotFound as error:
                error.object = f"{self.path}, {name}"
                raise


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Nobody:
    """No credentials: nothing is asked over the network."""

    def find(self, registry: str, repository: str | None = None) -> None:
        """Return none."""
        del registry, repository
