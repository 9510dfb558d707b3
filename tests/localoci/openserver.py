"""Object Storage alone on a port: nobody signs in, and its parts can be replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bootstream.localoci.app import Application
from bootstream.localoci.httpserver import HttpServer

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class OpenServer:
    """Serves a data folder on a loopback address; a context manager that starts and closes.

    Args:
        data: the folder that keeps everything.
        port: 0 takes a free one.
        host: a loopback address.
        **options: the application's, see :class:`~bootstream.localoci.app.Application`.

    Raises:
        InvalidInput: the address is not a loopback address.
        OSError: the port is taken.
        Conflict: another server has the folder.
    """

    def __init__(
        self, data: Path, port: int = 0, *, host: str = "127.0.0.1", **options: Any
    ) -> None:
        self.application = Application(data, **options)
        try:
            self._server = HttpServer(self.application.handle, host, port)
        except BaseException:
            self.application.close()
            raise
        self.url = self._server.url
        self.port = self._server.port
        self._closed = False

    def start(self) -> None:
        """Serve, in threads; returns at once."""
        self._server.start()

    def close(self) -> None:
        """Stop: requests in work may end first. Idempotent."""
        if not self._closed:
            self._closed = True
            self._server.close()
            self.application.close()

    def __enter__(self) -> OpenServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
