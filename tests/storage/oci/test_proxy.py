"""The bucket behind an HTTP proxy: a real tunnel, with TLS in it."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from tests.connectproxy import ConnectProxy
from tests.storage.oci.helpers import KEY, ScriptedServer, StubPrincipal, reply

from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied, Unavailable
from bootstream.proxies import Proxies
from bootstream.storage.oci import OCIBucketStorageProvider
from bootstream.storage.oci.connection import TimeLimits

HOST = "storage.example"  # exists nowhere: only the proxy can find it
BODY = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its own certificate, for the storage's name and the proxy's."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(HOST), x509.DNSName("localhost")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(KEY, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    key = KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(key + made.public_bytes(serialization.Encoding.PEM))
    return path


def tls(certificate: Path) -> ssl.SSLContext:
    """The server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@contextlib.contextmanager
def storage(certificate: Path) -> Iterator[tuple[str, int]]:
    """A storage of one object behind TLS, for one connection."""
    context = tls(certificate)
    fields = {"content-range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}", "etag": "e"}

    def serve() -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock, context.wrap_socket(sock, server_side=True) as wrapped:
                received = b""
                while data := wrapped.recv(65536):
                    received += data
                    if received.endswith(b"\r\n\r\n"):
                        wrapped.sendall(reply(206, BODY, fields=fields))
                        received = b""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield listener.getsockname()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        server.join(10)


@contextlib.contextmanager
def bucket(
    proxy: str, certificate: Path | None = None, limits: TimeLimits | None = None
) -> Iterator[OCIBucketStorageProvider]:
    """The bucket, through a proxy."""
    provider = OCIBucketStorageProvider(
        "b",
        namespace="n",
        principal=StubPrincipal(),
        endpoint=f"https://{HOST}",
        ca_file=certificate,
        proxies=Proxies(https=proxy),
        limits=limits,
    )
    yield provider
    provider.close()


def read(provider: OCIBucketStorageProvider) -> bytes:
    """Read the object."""
    buffer = bytearray(len(BODY))
    assert provider.open_object("a").read_at(buffer, 0) == len(BODY)
    return bytes(buffer)


def failure(proxy: ConnectProxy, user: str = "") -> BootstreamError:
    """What a read through the proxy fails with."""
    with bucket(proxy.url(user)) as provider, pytest.raises(BootstreamError) as caught:
        read(provider)
    return caught.value


def test_the_endpoint_is_reached_through_a_tunnel(certificate: Path) -> None:
    """One CONNECT serves all requests of a connection; only the proxy sees the password."""
    with (
        storage(certificate) as address,
        ConnectProxy(address) as proxy,
        bucket(proxy.url("us%20er:pass"), certificate) as provider,
    ):
        assert read(provider) == read(provider) == BODY
        assert "pass" not in repr(provider)
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\nhost: {HOST}:443\r\n")
    assert "\r\nproxy-authorization: Basic dXMgZXI6cGFzcw==" in head
    assert "authorization: Signature" not in head


def test_a_proxy_behind_tls_of_its_own(certificate: Path) -> None:
    """TLS to the storage runs within TLS to the proxy."""
    with (
        storage(certificate) as address,
        ConnectProxy(address, tls=tls(certificate)) as proxy,
        bucket(proxy.url().replace("127.0.0.1", "localhost"), certificate) as provider,
    ):
        assert read(provider) == read(provider) == BODY
    assert len(proxy.heads) == 1


def test_loopback_needs_no_proxy() -> None:
    """A storage on this machine is asked directly."""
    fields = {"content-range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}", "etag": "e"}
    with ScriptedServer(lambda _: reply(206, BODY, fields=fields)) as server:
        provider = OCIBucketStorageProvider(
            "b",
            namespace="n",
            principal=StubPrincipal(),
            endpoint=server.url,
            proxies=Proxies("http://127.0.0.1:9", "http://127.0.0.1:9"),
        )
        assert read(provider) == BODY
        provider.close()


@pytest.mark.parametrize(
    ("status", "kind", "transient"),
    [
        (407, PermissionDenied, False),
        (403, PermissionDenied, False),
        (502, Unavailable, True),
        (405, Unavailable, False),
    ],
)
def test_a_refusal(status: int, kind: type[BootstreamError], transient: bool) -> None:
    """What the proxy answers is told with its name, and without the password."""
    with ConnectProxy(("127.0.0.1", 9), refuse=status) as proxy:
        error = failure(proxy, "user:secret")
    assert isinstance(error, kind)
    assert error.transient == transient
    assert f"the proxy http://127.0.0.1:{proxy.port} does not connect" in str(error)
    assert str(status) in str(error)
    assert (error.operation, error.object) == ("read object", "a")
    assert "secret" not in f"{error} {error.remedy}"
    assert "PROXY" in (error.remedy or "")


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nmore", b"HTTP/1.1 200 OK\r\n" * 9000]
)
def test_what_is_no_proxy(garbage: bytes) -> None:
    """An answer that is none, or more than one, is trouble that names the proxy."""
    with ConnectProxy(("127.0.0.1", 9), garbage=garbage) as proxy:
        error = failure(proxy)
    assert isinstance(error, Unavailable)
    assert f"127.0.0.1:{proxy.port}" in str(error)


def test_no_proxy_there(certificate: Path) -> None:
    """A proxy that cannot be reached is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        bucket(f"http://u:secret@127.0.0.1:{port}") as provider,
        pytest.raises(Unavailable, match=f"through the proxy http://127.0.0.1:{port}") as caught,
    ):
        read(provider)
    assert "secret" not in str(caught.value)
    assert caught.value.transient


def test_a_silent_proxy() -> None:
    """One that takes the request and says nothing is given up."""
    limits = TimeLimits(0.2, 0.2, 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        bucket(f"http://127.0.0.1:{listener.getsockname()[1]}", limits=limits) as provider,
        pytest.raises(Unavailable, match="stands still"),
    ):
        read(provider)


def test_socks_is_refused_at_once() -> None:
    """A proxy of another kind is an error when the bucket is opened."""
    with pytest.raises(InvalidInput, match="HTTP proxy"), bucket("socks5://127.0.0.1:1080"):
        pass
