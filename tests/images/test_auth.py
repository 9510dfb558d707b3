"""Signing in: what challenges say, where credentials are kept, and whom they go to."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied, Unavailable
from bootstream.images import BlobCache, resolve
from bootstream.images.auth import Authenticator, are_related
from bootstream.images.challenge import Challenge, parse_challenges
from bootstream.images.credentials import CredentialFile, Credentials, open_keychain
from bootstream.images.image import Image
from bootstream.images.transport import Answer, Origin, Transport
from bootstream.images.validate import validate
from bootstream.progress import NO_PROGRESS
from bootstream.testing.registry import DockerRegistry, TokenAuth

Open = Callable[..., Image]


@pytest.fixture
def open_image(tmp_path: Path) -> Open:
    def open_(reference: str, **options: Any) -> Image:
        image = resolve(reference, cache=BlobCache(tmp_path / "cache"), **options)
        image.fetch(NO_PROGRESS)
        validate(image)
        return image

    return open_


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own credentials take no part."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# -- real registries -------------------------------------------------------------------------


def test_password(
    open_image: Open, layout: Path, tmp_path: Path, auth_file: Any, no_home: Path
) -> None:
    """Basic authentication: right, wrong and none; the file at its usual place is found."""
    with DockerRegistry(tmp_path / "r", htpasswd=("me", "pass:word")) as registry:
        reference = registry.push(f"oci:{layout}:x", "a:1")
        right = auth_file(registry.host, "me", "pass:word")
        image = open_image(reference, auth_file=right)
        (no_home / ".docker").mkdir(parents=True)
        (no_home / ".docker" / "config.json").write_bytes(right.read_bytes())
        assert open_image(reference).digest == image.digest
        (no_home / ".docker" / "config.json").unlink()
        wrong = auth_file(registry.host, "me", "secret-guess")
        for options in ({}, {"auth_file": wrong}):
            with pytest.raises(PermissionDenied) as caught:
                open_image(reference, **options)
            assert registry.host in str(caught.value)
            assert "login" in str(caught.value.remedy)
            assert "secret-guess" not in repr(vars(caught.value))


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_tokens(open_image: Open, layout: Path, tmp_path: Path, auth_file: Any, field: str) -> None:
    """A private repository: the token server is asked once, for the scope that is needed."""
    behaviour = TokenAuth("me", "pass", field=field)
    with DockerRegistry(tmp_path / "r", token=behaviour) as registry:
        assert registry.tokens is not None
        reference = registry.push(f"oci:{layout}:x", "team/a:1")
        registry.tokens.requests.clear()
        open_image(reference, auth_file=auth_file(registry.host, "me", "pass"))
        (request,) = registry.tokens.requests
        assert request.query["scope"] == ["repository:team/a:pull"]
        assert request.query["service"] == ["bootstream-test"]
        for options in ({}, {"auth_file": auth_file(registry.host, "me", "wrong-pass")}):
            with pytest.raises(PermissionDenied) as caught:
                open_image(reference, **options)
            assert "wrong-pass" not in repr(vars(caught.value))


def test_anonymous_and_identity_tokens(open_image: Open, layout: Path, tmp_path: Path) -> None:
    """A public repository needs a token too; an identity token is exchanged by POST."""
    with DockerRegistry(
        tmp_path / "r", token=TokenAuth("me", "refresh", anonymous_pull=True)
    ) as registry:
        assert registry.tokens is not None
        reference = registry.push(f"oci:{layout}:x", "a:1")
        open_image(reference)
        path = tmp_path / "auth.json"
        entry = {"auth": base64.b64encode(b"me:").decode(), "identitytoken": "refresh"}
        path.write_text(json.dumps({"auths": {registry.host: entry}}))
        open_image(reference, auth_file=path)
        last = registry.tokens.requests[-1]
        assert (last.method, last.authorization) == ("POST", None)
        assert last.form["grant_type"] == ["refresh_token"]
        path.write_text(
            json.dumps(
                {
                    "auths": {
                        registry.host: {
                            "registrytoken": registry.tokens.token(["repository:a:pull"])
                        }
                    }
                }
            )
        )
        count = len(registry.tokens.requests)
        open_image(reference, auth_file=path)
        assert len(registry.tokens.requests) == count


def test_tls(open_image: Open, layout: Path, tmp_path: Path) -> None:
    """With its authority; without it the error says what to do, and http is no way out."""
    with DockerRegistry(tmp_path / "r", tls=True) as registry:
        reference = registry.push(f"oci:{layout}:x", "a:1")
        open_image(reference, ca_file=str(registry.ca_file))
        with pytest.raises(Unavailable, match="certificate") as caught:
            open_image(reference)
        assert "--ca" in str(caught.value.remedy)
        assert not caught.value.transient
        with pytest.raises(BootstreamError, match="HTTPS"):
            open_image(reference, plain_http=True)
        with pytest.raises(InvalidInput):
            open_image(reference, ca_file=str(tmp_path / "none.pem"))


def test_a_realm_elsewhere_over_http_is_not_asked(
    open_image: Open, layout: Path, tmp_path: Path, auth_file: Any
) -> None:
    """A challenge cannot send the password to another host in the clear."""
    behaviour = TokenAuth("me", "pass", realm="http://192.0.2.1/token")
    with DockerRegistry(tmp_path / "r", token=behaviour) as registry:
        credentials = auth_file(registry.host, "me", "pass")
        with pytest.raises(PermissionDenied, match=r"192\.0\.2\.1"):
            open_image(f"{registry.host}/a:1", auth_file=credentials)


def test_helper_program(
    open_image: Open, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``credHelpers`` and ``credsStore`` name programs that are asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "docker-credential-test"
    program.write_text(
        "#!/bin/sh\n"
        'test "$1" = get || exit 1\n'
        "read -r server\n"
        'case "$server" in 127.*) ;; *) echo "credentials not found in native keychain"; exit 1;;'
        " esac\n"
        'echo \'{"ServerURL": "x", "Username": "me", "Secret": "pass"}\'\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    path = tmp_path / "auth.json"
    with DockerRegistry(tmp_path / "r", htpasswd=("me", "pass")) as registry:
        reference = registry.push(f"oci:{layout}:x", "a:1")
        for document in ({"credHelpers": {registry.host: "test"}}, {"credsStore": "test"}):
            path.write_text(json.dumps(document))
            open_image(reference, auth_file=path)
    path.write_text('{"credsStore": "test"}')
    assert CredentialFile(path).find("other.example") is None
    program.write_text("#!/bin/sh\necho broken; exit 3\n")
    with pytest.raises(PermissionDenied, match="broken"):
        CredentialFile(path).find("127.0.0.1:1")
    path.write_text('{"credsStore": "none"}')
    with pytest.raises(InvalidInput, match="docker-credential-none"):
        CredentialFile(path).find("127.0.0.1:1")
    path.write_text('{"credsStore": "../x"}')
    with pytest.raises(InvalidInput):
        CredentialFile(path).find("127.0.0.1:1")


# -- the credential file -------------------------------------------------------------------------


def entry(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_keys(tmp_path: Path) -> None:
    """Hosts, URLs as Docker wrote them, Docker Hub's many names, repositories and parts of them."""
    path = tmp_path / "auth.json"
    path.write_text(
        json.dumps(
            {
                "auths": {
                    "https://index.docker.io/v1/": entry("hub:1"),
                    "https://old.example/v1/": entry("old:2"),
                    "host.example:5000": entry("port:3"),
                    "host.example": entry("host:4"),
                    "host.example/team": entry("team:5"),
                    "host.example/team/app": {"username": "app", "password": "6"},
                    "empty.example": {},
                }
            }
        )
    )
    file = CredentialFile(path)

    def user(registry: str, repository: str | None = None) -> str | None:
        found = file.find(registry, repository)
        return found.username if found else None

    assert user("docker.io", "library/debian") == "hub"
    assert user("old.example") == "old"
    assert user("host.example:5000", "a") == "port"
    assert user("host.example", "other") == "host"
    assert user("host.example", "team/x") == "team"
    assert user("host.example", "team/app") == "app"
    assert user("host.example", "teams") == "host"
    assert user("empty.example") is None
    assert user("example") is None
    assert "hub" in repr(file.find("docker.io"))
    assert "password" not in repr(Credentials("a", "b"))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "\xff", '{"auths": {"h": {"auth": "%%%"}}}', '{"auths": {"h": {"auth": "YQ=="}}}'],
)
def test_malformed_files(tmp_path: Path, text: str) -> None:
    """An error that names the file."""
    path = tmp_path / "auth.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInput) as caught:
        CredentialFile(path).find("h")
    assert caught.value.object == str(path)


def test_missing_and_odd_files(tmp_path: Path) -> None:
    """A file that was named must be there; the usual one need not. Wrong types are nothing."""
    with pytest.raises(InvalidInput):
        CredentialFile(tmp_path / "none").find("h")
    with pytest.raises(InvalidInput):
        CredentialFile(tmp_path).find("h")
    assert CredentialFile(tmp_path / "none", required=False).find("h") is None
    assert open_keychain(None).find("h.invalid") is None
    path = tmp_path / "auth.json"
    for text in ("", "{}", '{"auths": 7, "credHelpers": [], "credsStore": 3}', '{"auths":{"h":1}}'):
        path.write_text(text)
        assert CredentialFile(path).find("h") is None


def test_usual_files(no_home: Path) -> None:
    """Podman's file and Docker's, the first that has an entry; a damaged one is not passed over."""
    for name, hosts in {
        ".config/containers": {"both.example": "podman:1", "one.example": "podman:2"},
        ".docker": {"both.example": "docker:3", "two.example": "docker:4"},
    }.items():
        (no_home / name).mkdir(parents=True)
        file = "auth.json" if "containers" in name else "config.json"
        auths = {host: entry(text) for host, text in hosts.items()}
        (no_home / name / file).write_text(json.dumps({"auths": auths}))
    keychain = open_keychain(None)
    found = [keychain.find(f"{name}.example") for name in ("both", "one", "two", "none")]
    assert [item.password if item else None for item in found] == ["1", "2", "4", None]
    (no_home / ".docker" / "config.json").write_text("{")
    with pytest.raises(InvalidInput):
        open_keychain(None).find("two.example")


# -- challenges -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/t",service="s, t",scope="r:a:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s, t", "scope": "r:a:pull,push"})],
        ),
        (
            ['BEARER Realm = "a\\"b" , error=invalid_token, Basic realm="c"'],
            [("bearer", {"realm": 'a"b', "error": "invalid_token"}), ("basic", {"realm": "c"})],
        ),
        (
            ["Negotiate", 'Negotiate YWJj==, Basic realm="x", NTLM'],
            [("negotiate", {}), ("negotiate", {}), ("basic", {"realm": "x"}), ("ntlm", {})],
        ),
        (["Bearer realm=https://a,b=s"], [("bearer", {"realm": "https://a", "b": "s"})]),
        (["", ",,", "="], []),
        (['Bearer realm="never ends'], [("bearer", {})]),
    ],
)  # fmt: skip
def test_challenges(values: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    """Quoted commas, escapes, several in one header, several headers, lumps of base64."""
    found = parse_challenges(values)
    assert [(item.scheme, dict(item.parameters)) for item in found] == expected


@given(st.lists(st.text('Basic realm="x", =\\\t;/é', max_size=60), max_size=3))
def test_any_header_is_a_list_of_challenges(values: list[str]) -> None:
    """Nothing is raised, and it ends."""
    assert all(item.scheme for item in parse_challenges(values))


WORD = st.text("abcdefgh", min_size=1, max_size=8)


@given(
    st.lists(st.tuples(WORD, st.dictionaries(WORD, st.text('ab ,="\\', max_size=9), min_size=1)))
)
def test_challenges_round_trip(challenges: list[tuple[str, dict[str, str]]]) -> None:
    """What is written with quotes is read the same."""

    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quote(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    found = parse_challenges([header])
    assert [(item.scheme, dict(item.parameters)) for item in found] == challenges


# -- whom credentials go to -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "related"),
    [
        ("auth.docker.io", "registry-1.docker.io", True),
        ("gitlab.com", "registry.gitlab.com", True),
        ("a.example.com", "a.example.com", True),
        ("evil.com", "registry.com", False),
        ("docker.io.evil.com", "docker.io", False),
        ("evildocker.io", "docker.io", False),
        ("a.co.uk", "b.co.uk", False),
        ("x.a.co.uk", "y.a.co.uk", True),
        ("auth.foo.io", "registry.foo.io", True),
        ("10.0.0.1", "11.0.0.1", False),
        ("[::1]", "[::2]", False),
        ("com", "registry.com", False),
        ("localhost", "localhost", True),
    ],
)
def test_related_hosts(one: str, other: str, related: bool) -> None:
    """One domain, not one ending."""
    assert are_related(one, other) is related
    assert are_related(other, one) is related


class RecordingTransport(Transport):
    """Answers nothing; keeps who was asked with what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str | None]] = []

    def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None,
        operation: str,
        allow_downgrade: bool = False,
        method: str = "GET",
    ) -> Answer:
        self.asked.append((url.partition("?")[0], authorization))
        raise Unavailable("nobody is there", transient=False)


@pytest.mark.parametrize(
    ("home", "realm", "sent"),
    [
        ("https://registry.example.com", "https://registry.example.com/token", "registry"),
        ("https://registry.example.com", "https://registry.example.com:8443/token", "registry"),
        ("https://registry.example.com", "https://auth.example.com/token", "registry"),
        ("https://registry.example.com", "https://evil.example.net/token", None),
        ("https://registry.example.com", "https://consented.example.org/token", "consented"),
        ("http://registry.example.com", "http://registry.example.com/token", "registry"),
        ("http://registry.example.com", "https://registry.example.com/token", "registry"),
        ("https://registry.example.com", "http://registry.example.com/token", "refused"),
        ("https://registry.example.com", "http://169.254.169.254/latest", "refused"),
        ("https://registry.example.com", "file:///etc/passwd", "refused"),
        ("https://registry.example.com", "https://registry.example.com@evil.net/t", "refused"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", "registry"),
        ("https://127.0.0.1:5000", "http://127.0.0.1:5001/token", "refused"),
    ],
)
def test_whom_credentials_go_to(tmp_path: Path, home: str, realm: str, sent: str | None) -> None:
    """The registry's host, its domain over https, or whom the file names; nobody else."""
    path = tmp_path / "auth.json"
    path.write_text(
        json.dumps(
            {
                "auths": {
                    "registry.example.com": entry("registry:p"),
                    "consented.example.org": entry("consented:p"),
                }
            }
        )
    )
    transport = RecordingTransport()
    authenticator = Authenticator(
        Origin.of(home),
        "registry.example.com",
        "a",
        credentials=CredentialFile(path),
        transport=transport,
        pause=lambda _: None,
    )
    challenge = Challenge("bearer", {"realm": realm})
    with pytest.raises(PermissionDenied if sent == "refused" else Unavailable):
        authenticator.renew([challenge], None)
    if sent == "refused":
        assert transport.asked == []
        return
    expected = Credentials(sent, "p").basic() if sent else None
    assert transport.asked == [(realm, expected)]
