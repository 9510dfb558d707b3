"""Signatures: those of OCI's own SDK are taken, and everything else is refused with 401."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import oci  # type: ignore[import-untyped]  # it has no types
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st
from oci._vendor import requests  # type: ignore[import-untyped]  # the same

from bootstream.localoci.errors import ApiError
from bootstream.localoci.federation import Federation
from bootstream.localoci.http import Body, BytesSource, Request
from bootstream.localoci.keys import Identity, fingerprint, make_key, public_pem
from bootstream.localoci.services import Clock
from bootstream.localoci.signatures import Authenticator, Signature
from bootstream.localoci.tokens import Tokens

HOST = "127.0.0.1:9000"


class World:
    """An identity and what judges its signatures."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.identity = Identity(folder, region="us-ashburn-1", namespace="ns", clock=self.clock)
        self.tokens = Tokens(self.identity.token_key, clock=self.clock, lifetime=600)
        self.federation = Federation(self.identity, self.tokens, self.clock)
        self.authenticate = Authenticator(self.identity, self.tokens, self.clock)
        user = self.identity.user
        (print_,) = user.keys
        self.key_id = f"{self.identity.names.tenancy}/{user.ocid}/{print_}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("identity"))


def sdk_request(
    world: World, method: str, target: str, data: bytes = b"", *, body_signed: bool = True
) -> Request:
    """A request as the SDK's signer of an API key makes it."""
    tenancy, user, print_ = world.key_id.split("/")
    key_file = world.identity.folder / "user.key"
    signer = oci.signer.Signer(tenancy, user, print_, str(key_file))
    prepared = requests.Request(
        method, f"http://{HOST}{target}", data=data or None, headers={"date": now(world)}
    ).prepare()
    signed = signer(prepared, enforce_content_headers=body_signed)
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else value
        for name, value in signed.headers.items()
    }
    return Request(method, signed.path_url, headers, Body(BytesSource(data), len(data)))


def own_request(
    world: World,
    method: str = "GET",
    target: str = "/n/ns/b/x/o/y?versionId=1",
    *,
    names: str = "date (request-target) host",
    key: rsa.RSAPrivateKey | None = None,
    key_id: str | None = None,
    data: bytes = b"",
    **changed: str,
) -> Request:
    """A request signed by hand, of which anything may be wrong."""
    headers = {
        "host": HOST,
        "date": now(world),
        "content-length": str(len(data)),
        "content-type": "application/json",
        "x-content-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [
        f"{name}: {method.lower()} {target}" if name[0] == "(" else f"{name}: {headers[name]}"
        for name in names.split()
    ]
    signature = (key or world.identity.user_key).sign(
        "\n".join(lines).encode(), padding.PKCS1v15(), hashes.SHA256()
    )
    headers["authorization"] = (
        f'Signature version="1",keyId="{key_id or world.key_id}",algorithm="rsa-sha256",'
        f'headers="{names}",signature="{base64.b64encode(signature).decode()}"'
    )
    return Request(method, target, headers, Body(BytesSource(data), len(data)))


def now(world: World, offset: float = 0) -> str:
    return formatdate(world.clock() + offset, usegmt=True)


def refused(world: World, request: Request) -> str:
    """Have a request refused with 401, and return the reason."""
    with pytest.raises(ApiError) as caught:
        world.authenticate(request)
        request.content()
    assert (caught.value.status, caught.value.code) == (401, "NotAuthenticated")
    return caught.value.message


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_sdk_signature_without_body(world: World, method: str) -> None:
    """Escapes and the query are signed as they are sent."""
    caller = world.authenticate(
        sdk_request(world, method, "/n/ns/b/x/o/a%2Fb%20c?start=%25&limit=1")
    )
    assert caller.principal_ocid == world.identity.user.ocid
    assert caller.tenancy == world.identity.names.tenancy
    assert caller.kind == "user"


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_sdk_signature_with_body(world: World, method: str) -> None:
    """The body's hash is signed and checked."""
    request = sdk_request(world, method, "/n/ns/b", b'{"name": "x"}')
    world.authenticate(request)
    assert request.content() == b'{"name": "x"}'


@pytest.mark.parametrize("path", ["/n/ns/b/x/o/a/b", "/n/ns/b/x/u/a?uploadId=1&uploadPartNum=2"])
def test_data_may_leave_the_body_unsigned(world: World, path: str) -> None:
    """PutObject and UploadPart sign the basic headers only."""
    world.authenticate(sdk_request(world, "PUT", path, b"data", body_signed=False))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/n/ns/b"),
        ("POST", "/n/ns/b/x/u"),
        ("POST", "/n/ns/b/x/u/a?uploadId=1"),
        ("PUT", "/n/ns/b/x/p"),
        ("PUT", "/n/ns/b/x/o/"),
    ],
)
def test_others_must_sign_the_body(world: World, method: str, path: str) -> None:
    """Whatever else has a body signs its length, type and hash."""
    assert "not signed: content-length" in refused(
        world, sdk_request(world, method, path, b"{}", body_signed=False)
    )


def test_a_changed_body_is_refused(world: World) -> None:
    """The hash is of the body that came, of an upload too."""
    names = "date (request-target) host content-length content-type x-content-sha256"
    for method, target in (("POST", "/n/ns/b"), ("PUT", "/n/ns/b/x/o/y")):
        request = own_request(world, method, target, names=names, data=b"one")
        request.body = Body(BytesSource(b"two"), 3)
        assert "x-content-sha256" in refused(world, request)


def test_x_date_stands_for_date(world: World) -> None:
    """A client that cannot set ``date`` signs ``x-date``, and that one counts."""
    names = "x-date (request-target) host"
    world.authenticate(own_request(world, names=names, x_date=now(world), date="yesterday"))
    assert "off" in refused(world, own_request(world, names=names, x_date=now(world, -400)))


@pytest.mark.parametrize("offset", [-310, 310])
def test_clock_skew(world: World, offset: float) -> None:
    """More than five minutes off, in either direction."""
    assert "off" in refused(world, own_request(world, date=now(world, offset)))
    world.authenticate(own_request(world, date=now(world, offset * 0.95)))


@pytest.mark.parametrize("date", ["", "now", "Tue, 99 Nov 2026 00:00:00 GMT", "0" * 100])
def test_dates_that_are_none(world: World, date: str) -> None:
    """What is no date is refused, and breaks nothing."""
    assert "date" in refused(world, own_request(world, date=date))


@pytest.mark.parametrize("missing", ["date", "(request-target)", "host"])
def test_what_must_be_signed(world: World, missing: str) -> None:
    """Each of the three, for every method."""
    names = [name for name in ("date", "(request-target)", "host") if name != missing]
    assert f"not signed: {missing}" in refused(world, own_request(world, names=" ".join(names)))


def test_the_target_is_compared_raw(world: World) -> None:
    """An escape more or less, or another order of the query, is another target."""
    for other in ("/n/ns/b/x/o/%79?versionId=1", "/n/ns/b/x/o/y?versionId=1&", "/n/ns/b/x/o/y"):
        request = own_request(world)
        request.target = other
        assert "does not match" in refused(world, request)


def test_a_method_or_host_of_another_request(world: World) -> None:
    """A signature is good for one method at one host."""
    request = own_request(world)
    request.method = "DELETE"
    assert "does not match" in refused(world, request)
    request = own_request(world)
    request.headers = {**request.headers, "host": "example.com"}
    assert "does not match" in refused(world, request)


def test_unknown_and_wrong_keys(world: World) -> None:
    """A key id that nobody has, and a key that is not the one named."""
    tenancy, user, print_ = world.key_id.split("/")
    for key_id in (
        f"{tenancy}x/{user}/{print_}",
        f"{tenancy}/{user}/00:11",
        "a",
        "/",
        "ST$",
        "ST$a.b.c",
    ):
        refused(world, own_request(world, key_id=key_id))
    assert "does not match" in refused(world, own_request(world, key=make_key()))


def session(world: World, **claims: str) -> tuple[rsa.RSAPrivateKey, str]:
    """A session's key, and its key id."""
    key = make_key()
    body = {"sub": "ocid1.instance.x", "tenant": "t", "ptype": "instance", **claims}
    return key, "ST$" + world.tokens.issue(key.public_key(), body)


def test_session_tokens(world: World) -> None:
    """A token's own key signs, and its claims say who it is."""
    key, key_id = session(world)
    caller = world.authenticate(own_request(world, key=key, key_id=key_id))
    assert (caller.principal_ocid, caller.tenancy, caller.kind) == (
        "ocid1.instance.x",
        "t",
        "instance",
    )
    assert "does not match" in refused(world, own_request(world, key=make_key(), key_id=key_id))


def test_expired_token(tmp_path: Path, world: World) -> None:
    """A token is good until its expiry, not after."""
    offset = world.clock.offset
    key, key_id = session(world)
    try:
        world.clock.offset += 599
        world.authenticate(own_request(world, key=key, key_id=key_id))
        world.clock.offset += 2
        assert "expired" in refused(world, own_request(world, key=key, key_id=key_id))
    finally:
        world.clock.offset = offset


def test_forged_tokens(world: World) -> None:
    """Another issuer's token, one without a signature, and a changed one."""
    key, key_id = session(world)
    header, body, signature = key_id[3:].split(".")
    stranger = Tokens(make_key(), clock=world.clock, lifetime=600)
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    changed = body[:-4] + ("AAAA" if body[-4:] != "AAAA" else "BBBB")
    for token in (
        stranger.issue(key.public_key(), {"sub": "a", "tenant": "b"}),
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{header}.{changed}.{signature}",
        f"{header}.{body}",
        "x" * 20000,
    ):
        refused(world, own_request(world, key=key, key_id=f"ST${token}"))


def test_unsigned(world: World) -> None:
    """Nothing, and other schemes."""
    for value in (None, "", "Basic YTpi", "Bearer token", "Signature ", "Signature version"):
        request = own_request(world)
        headers = {**request.headers, "authorization": value or ""}
        refused(world, Request("GET", request.target, headers, Body(BytesSource(b""), 0)))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('version="1"', 'version="2"'),
        lambda text: text.replace('version="1",', ""),
        lambda text: text.replace("rsa-sha256", "rsa-sha1"),
        lambda text: text.replace('host"', 'host host"'),
        lambda text: text.replace('host"', 'host x-missing"'),
        lambda text: text.replace('signature="', 'signature="!'),
        lambda text: text + ',keyId="other"',
        lambda text: text[:-1],
        lambda text: text + "," * 40000,
    ],
)
def test_malformed(world: World, change: Callable[[str], str]) -> None:
    """Every field counts, once."""
    request = own_request(world)
    changed = change(request.headers["authorization"])
    assert changed != request.headers["authorization"]
    request.headers = {**request.headers, "authorization": changed}
    refused(world, request)


@given(st.text(max_size=200))
def test_any_header(text: str) -> None:
    """No text makes the parser fail otherwise than with 401."""
    for value in (text, "Signature " + text, f'Signature version="1",{text}'):
        with contextlib.suppress(ApiError):
            Signature.parse(value)


def test_field_order_and_spaces_do_not_matter(world: World) -> None:
    """Fields are named, not counted."""
    request = own_request(world)
    fields = request.headers["authorization"].removeprefix("Signature ").split(",")
    request.headers = {**request.headers, "authorization": "signature " + ", ".join(fields[::-1])}
    assert world.authenticate(request).kind == "user"


def test_a_second_start_knows_the_keys(world: World) -> None:
    """Keys are on disk, for their owner only."""
    data = world.identity.folder.parent
    again = Identity(data, region="other", namespace="other", clock=time.time)
    assert again.names == world.identity.names
    for path in world.identity.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_another_user(tmp_path: Path) -> None:
    """A user who is added to the file may sign from the next start on, with groups of its own."""
    world = World(tmp_path)
    path = world.identity.folder / "identity.json"
    document = json.loads(path.read_text())
    key = make_key()
    print_ = fingerprint(key.public_key())
    document["users"].append(
        {
            "ocid": "ocid1.user.oc1..another",
            "name": "another",
            "groups": ["Readers"],
            "keys": {print_: public_pem(key.public_key()).decode()},
        }
    )
    key_id = f"{document['tenancy']}/ocid1.user.oc1..another/{print_}"
    assert "known" in refused(world, own_request(world, key=key, key_id=key_id))
    path.write_text(json.dumps(document))
    again = World(tmp_path)
    caller = again.authenticate(own_request(again, key=key, key_id=key_id))
    assert caller.principal_ocid == "ocid1.user.oc1..another"
    assert caller.attributes["groups"] == "Readers"


def test_what_was_right_once_is_judged_again(world: World) -> None:
    """A signature that matched is good for what it signed, and as long as its date is."""
    good = own_request(world)
    first = world.authenticate(good)
    assert world.authenticate(own_request(world, date=good.headers["date"])) == first
    for method, target in (("DELETE", good.target), ("GET", good.target + "0")):
        other = Request(method, target, good.headers, Body(BytesSource(b""), 0))
        assert "match" in refused(world, other)
    for name, value in (("date", now(world, 7)), ("host", "127.0.0.1:9001")):
        other = Request("GET", good.target, {**good.headers, name: value}, good.body)
        assert "match" in refused(world, other)
    world.clock.offset = 301
    try:
        assert "off" in refused(world, good)
    finally:
        world.clock.offset = 0
    assert world.authenticate(good) == first


def test_a_token_that_was_good_once_expires(world: World) -> None:
    """Its end counts for each request."""
    key = make_key()
    token = world.tokens.issue(key.public_key(), {"sub": "s", "tenant": "t"}, lifetime=100)
    request = own_request(world, key=key, key_id=f"ST${token}")
    assert world.authenticate(request).principal_ocid == "s"
    assert world.authenticate(request).principal_ocid == "s"
    world.clock.offset = 101
    try:
        assert "expired" in refused(world, request)
    finally:
        world.clock.offset = 0
    assert "match" in refused(world, own_request(world, key_id=f"ST${token}"))
