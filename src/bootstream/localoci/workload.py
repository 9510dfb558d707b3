"""Where pods of a Kubernetes cluster get tokens: TLS, on a port of its own.

OCI's SDKs ask ``https://$KUBERNETES_SERVICE_HOST:12250/resourcePrincipalSessionTokens`` and trust
the certificate that a file beside the service account's token names. The plain port answers
the same path too.
"""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from bootstream.localoci.errors import ApiError
from bootstream.localoci.http import Body, BytesSource, Request, error_response

if TYPE_CHECKING:
    from bootstream.localoci.federation import Federation
    from bootstream.localoci.keys import Identity

_MAX_BODY = 65536


class WorkloadServer:
    """Answers pods on 127.0.0.1.

    Args:
        federation: gives out tokens.
        identity: whose certificate it shows.
        port: 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, federation: Federation, identity: Identity, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            """Answers one request."""

            timeout = 30

            def do_POST(self) -> None:
                """Give a token."""
                text = self.headers.get("content-length") or "0"
                length = int(text) if text.isascii() and text.isdigit() else _MAX_BODY + 1
                if length > _MAX_BODY:
                    self.send_error(413)
                    return
                data = self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = Body(BytesSource(data), len(data))
                try:
                    response = federation.handle(Request("POST", self.path, headers, body))
                except ApiError as error:
                    response = error_response(error)
                if response is None or not isinstance(response.body, bytes):
                    self.send_error(404)
                    return
                self.send_response(response.status)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.folder / "cluster.pem", identity.folder / "cluster.key")
        self._server = _Quiet(("127.0.0.1", port), Handler)
        # The handshake is left to the connection's own thread: a silent client holds up nobody.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def start(self) -> None:
        """Begin to answer; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering. Idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Quiet(ThreadingHTTPServer):
    """Clients that break off a handshake are their own business."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""
