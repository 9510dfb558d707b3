"""A real registry for tests: Debian's ``docker-registry`` on a free port of 127.0.0.1.

It may want TLS, a password, or bearer tokens, which a small token server beside it
gives out. Certificates and signatures are made by ``openssl``, password hashes by the
C library, images are pushed by ``skopeo``: nothing of ours judges itself.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import json
import secrets
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bootstream.testing.servers.process import answers, free_port

_STARTS = 3
_SERVICE = "bootstream-test"


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """How a token server behaves.

    Args:
        user: who may do everything; None: anybody may.
        password: of that user.
        anonymous_pull: whether others may pull.
        expires_in: seconds; what the server says, and for how long a token is good.
        field: the name of the answer's field with the token.
        realm: what the registry's challenge names, if not the token server's own URL.
    """

    user: str | None = None
    password: str = ""
    anonymous_pull: bool = False
    expires_in: int = 300
    field: str = "token"
    realm: str | None = None


class DockerRegistry:
    """A registry with its storage in ``folder``, running while the context lasts.

    Attributes:
        host: ``127.0.0.1:PORT``.
        ca_file: the authority of its certificate, with ``tls``.
        tokens: its token server, with ``token``.

    Args:
        folder: existing or not; everything it writes is below.
        tls: speak https.
        htpasswd: user and password to ask for.
        token: ask for bearer tokens.
        says_http: with ``tls``, call itself by http in answers, as registries do that do not
            know of a proxy before them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        says_http: bool = False,
        tls: bool = False,
        htpasswd: tuple[str, str] | None = None,
        token: TokenAuth | None = None,
    ) -> None:
        self._folder = folder
        self._tls = tls
        self._says_http = says_http
        self._htpasswd = htpasswd
        self._process: subprocess.Popen[bytes] | None = None
        self.host = ""
        self.ca_file = folder / "ca.pem"
        self.tokens: TokenServer | None = None
        self._token = token

    def __enter__(self) -> DockerRegistry:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._tls:
            make_certificates(self._folder)
        if self._htpasswd is not None:
            user, password = self._htpasswd
            (self._folder / "htpasswd").write_text(f"{user}:{bcrypt(password)}\n")
        if self._token is not None:
            self.tokens = TokenServer(self._folder, self._token)
            self.tokens.start()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        log = self._folder / "registry.log"
        for _ in range(_STARTS):  # another process may take the port first
            port = free_port()
            config = self._folder / "config.json"  # JSON is YAML
            config.write_text(json.dumps(self._config(port)))
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    ["docker-registry", "serve", str(config)], stdout=output, stderr=output
                )
            if answers(self._process, port):
                self.host = f"127.0.0.1:{port}"
                return
            self._stop()
        raise RuntimeError(f"docker-registry does not start:\n{log.read_text()[-2000:]}")

    def _config(self, port: int) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": f"127.0.0.1:{port}", "secret": secrets.token_hex(8)}
        if self._tls:
            files = {"certificate": "server.pem", "key": "server.key"}
            http["tls"] = {key: str(self._folder / name) for key, name in files.items()}
        if self._says_http:
            http["host"] = f"http://127.0.0.1:{port}"
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._folder / "data")},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self._htpasswd is not None:
            config["auth"] = {
                "htpasswd": {"realm": "tests, all", "path": str(self._folder / "htpasswd")}
            }
        if self.tokens is not None:
            config["auth"] = {
                "token": {
                    "realm": (self._token and self._token.realm) or self.tokens.url,
                    "service": _SERVICE,
                    "issuer": _SERVICE,
                    "rootcertbundle": str(self._folder / "token.pem"),
                }
            }
        return config

    def push(self, source: str, name: str, *options: str) -> str:
        """Copy an image into the registry with skopeo; return its reference there.

        Args:
            source: as skopeo names it, e.g. ``oci:DIR:TAG``.
            name: repository and tag.
            options: further ones for ``skopeo copy``, e.g. ``--all``.
        """
        reference = f"{self.host}/{name}"
        login = self._htpasswd or (
            (self._token.user, self._token.password) if self._token and self._token.user else None
        )
        credentials = ["--dest-creds", ":".join(login)] if login else []
        command = ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", "--quiet"]
        run(*command, *credentials, *options, source, f"docker://{reference}")
        return reference

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop everything that was started."""
        self._stop()
        if self.tokens is not None:
            self.tokens.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a client asked a token server for."""

    method: str
    query: dict[str, list[str]]
    authorization: str | None
    form: dict[str, list[str]] = field(default_factory=dict)


class TokenServer:
    """Gives out signed tokens for everything that is asked, if the asker may.

    Attributes:
        url: where it is asked.
        requests: what came, in order.
    """

    def __init__(self, folder: Path, behaviour: TokenAuth) -> None:
        self._key = folder / "token.key"
        self._certificate = folder / "token.pem"
        self._behaviour = behaviour
        self.requests: list[TokenRequest] = []
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=tokens", "-keyout", str(self._key), "-out", str(self._certificate)),
        )
        der = "".join(self._certificate.read_text().splitlines()[1:-1])
        self._header = _json64({"typ": "JWT", "alg": "RS256", "x5c": [der]})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one request."""

            def do_GET(self) -> None:
                """Give a token for a query."""
                outer.answer(self, {})

            def do_POST(self) -> None:
                """Give a token for a form."""
                length = min(int(self.headers.get("Content-Length") or 0), 1 << 16)
                outer.answer(self, parse_qs(self.rfile.read(length).decode()))

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, form: dict[str, list[str]]) -> None:
        """Answer one request; ``form`` is the body of a POST."""
        query = parse_qs(urlsplit(handler.path).query)
        authorization = handler.headers.get("Authorization")
        self.requests.append(TokenRequest(handler.command, query, authorization, form))
        scopes = query.get("scope", []) + form.get("scope", [])
        known = self._is_known(authorization, form)
        if known is False or (known is None and not self._behaviour.anonymous_pull):
            status, body = 401, {"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]}
        else:
            token = self.token(scopes, pull_only=known is None)
            status = 200
            body = {self._behaviour.field: token, "expires_in": self._behaviour.expires_in}  # type: ignore[dict-item]  # JSON
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _is_known(self, authorization: str | None, form: dict[str, list[str]]) -> bool | None:
        """Whether the asker is who may do everything; None for one who says nothing."""
        user, password = self._behaviour.user, self._behaviour.password
        if user is None:
            return True
        if "refresh_token" in form:
            return form["refresh_token"] == [password]
        if authorization is None:
            return None
        expected = base64.b64encode(f"{user}:{password}".encode()).decode()
        return authorization == f"Basic {expected}"

    def token(self, scopes: list[str], *, pull_only: bool = False) -> str:
        """Return a signed token for scopes like ``repository:a/b:pull,push``."""
        access = []
        for scope in " ".join(scopes).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            granted = [action for action in actions.split(",") if action == "pull" or not pull_only]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        claims = {
            "iss": _SERVICE,
            "sub": self._behaviour.user or "",
            "aud": _SERVICE,
            "exp": now + self._behaviour.expires_in,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = f"{self._header}.{_json64(claims)}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed.encode(),
            capture_output=True,
            check=True,
            timeout=20,
        ).stdout
        return f"{signed}.{_base64(signature)}"

    def close(self) -> None:
        """Stop answering."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def make_certificates(folder: Path) -> None:
    """Write ``ca.pem``, and ``server.pem`` with ``server.key`` for this host.

    It is for 127.0.0.1, localhost, and the name registry.invalid, which only a proxy finds.
    """
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    run(
        *("openssl", "req", "-x509", *key, "-subj", "/CN=test authority"),
        *("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem")),
    )
    run(
        *("openssl", "req", "-x509", *key, "-subj", "/CN=127.0.0.1"),
        *("-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key")),
        *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.invalid"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", str(folder / "server.key"), "-out", str(folder / "server.pem")),
    )


def bcrypt(password: str) -> str:
    """Return a password's bcrypt hash, made by the C library's ``crypt``."""
    library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    salt = base64.b64encode(secrets.token_bytes(16), altchars=b"./")[:21].decode() + "u"
    result: bytes | None = library.crypt(password.encode(), f"$2b$04${salt}".encode())
    if not result or not result.startswith(b"$2b$"):
        raise RuntimeError("this C library makes no bcrypt hashes")
    return result.decode()


def run(*command: str) -> str:
    """Run a program to its end, insist on success, return what it printed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=28)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _json64(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
