"""An HTTP server that answers as a function says, for what no server at hand does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""

Script = Callable[[str, str, dict[str, str], bytes], Reply]
"""Makes a reply of method, path with query, headers with lower-case names, and body."""

CUT = "x-cut"
"""A header of a reply: close the connection after so many bytes of the body."""


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """A server that answers as a function says; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        """Asks the function."""

        def handle_any(self) -> None:
            """Answer one request, whatever its method."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, answer, data = script(self.command, self.path, headers, body)
            self.send_response(status)
            cut = int(answer.pop(CUT, len(data)))
            for name, value in ({"Content-Length": str(len(data))} | answer).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:cut])
            self.close_connection = True

        do_GET = handle_any  # noqa: N815 - a name of the standard library's
        do_HEAD = handle_any  # noqa: N815
        do_PUT = handle_any  # noqa: N815 - a name of the standard library's
        do_POST = handle_any  # noqa: N815 - a name of the standard library's
        do_DELETE = handle_any  # noqa: N815 - a name of the standard library's

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
