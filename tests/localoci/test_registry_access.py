"""Who may do what at the registry: tokens, auth tokens, policies, public repositories."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import oci  # type: ignore[import-untyped]  # it has no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.localoci.client import Client
from tests.localoci.registries import (
    Docker,
    artifacts,
    basic,
    code_of,
    digest_of,
    tenancy_of,
    token_target,
)

from bootstream.errors import Corrupt, InvalidInput
from bootstream.localoci.cloud import LocalCloud, Plan
from bootstream.localoci.protocols import Caller
from bootstream.localoci.registry.tokens import Access, RegistryTokens
from bootstream.localoci.tokens import TokenError
from bootstream.testing.localoci import LocalOciServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GUIDE = (  # what the deployment's policy grants its hosts
    "Allow dynamic-group hosts to manage repos in compartment C where all "
    "{target.repo.name='e2b-templates', any {request.permission='REPOSITORY_INSPECT', "
    "request.permission='REPOSITORY_READ', request.permission='REPOSITORY_UPDATE'}}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    folder = tmp_path_factory.mktemp("oci")
    with LocalOciServer(folder, registry=True, registry_token_seconds=200) as running:
        yield running


@pytest.fixture
def docker(server: LocalOciServer) -> Iterator[Docker]:
    with Client(int(server.registry_host.rpartition(":")[2])) as client:
        yield Docker(server, client)
    server.set_policies(None)


def granted(docker: Docker, kind: str, name: str) -> str:
    """The scope that a principal of a kind gets for pull and push."""
    scope = f"repository:{name}:pull,push"
    return str(docker.get_signed(docker.server.principal(kind), scope).json()["scope"])


def test_principals_sign(server: LocalOciServer, docker: Docker) -> None:
    """A signature of any principal gets a token, with the fields that clients read."""
    scope = f"repository:{docker.name}:pull,push"
    for kind in ("api_key", "instance_principal", "resource_principal"):
        answer = docker.get_signed(server.principal(kind), scope)
        assert answer.status == 200
        value = answer.json()
        assert value["token"] == value["access_token"]
        assert (value["scope"], value["expires_in"]) == (scope, 200)
        docker.token = value["token"]
        assert docker.ask("GET", "/v2/").status == 200


def test_user_names(server: LocalOciServer, docker: Docker) -> None:
    """A user with an auth token, with and without a domain; everybody else is refused."""
    password = server.registry_password
    for user in ("local/local", "local/Default/local"):
        assert docker.get_token(user=user, password=password).status == 200
    for user, wrong in (
        ("local/local", "wrong"),
        ("local/local", ""),
        ("other/local", password),
        ("local", password),
        ("local/nobody", password),
        ("", ""),
        ("BEARER_TOKEN", password),
    ):
        answer = docker.get_token(user=user, password=wrong)
        assert (answer.status, code_of(answer)) == (401, "UNAUTHORIZED"), user


def test_wrong_credentials(docker: Docker) -> None:
    """What is no signature, no Basic, and no scope."""
    for authorization in ("Basic ***", "Basic", "Bearer x", "Signature x", ""):
        answer = docker.client.ask("GET", token_target(), authorization=authorization)
        assert answer.status == 401, authorization
    for scope in ("repository", "repository:x", ":x:"):
        assert docker.get_token(scope).status == 400
    assert docker.get_token(*["repository:a/b:pull"] * 33).status == 400
    assert docker.client.ask("POST", token_target(), {"grant_type": "password"}).status == 405


def test_token_as_password(server: LocalOciServer, docker: Docker) -> None:
    """A token got with a signature logs in; one for pulling gets no more than that."""
    scope = f"repository:{docker.name}:pull,push"
    principal = server.principal("instance_principal")
    whole = docker.get_signed(principal).json()["token"]
    answer = docker.get_token(scope, user="BEARER_TOKEN", password=whole)
    assert answer.json()["scope"] == scope
    narrow = docker.get_signed(principal, f"repository:{docker.name}:pull").json()["token"]
    answer = docker.get_token(scope, user="BEARER_TOKEN", password=narrow)
    assert answer.json()["scope"] == f"repository:{docker.name}:pull"
    docker.token = whole
    assert docker.push("whole", b"by the token itself")


def test_token_got_by_a_token_ends_with_it(server: LocalOciServer, docker: Docker) -> None:
    """Nobody prolongs a token by itself."""
    whole = docker.get_token().json()["token"]
    server.set_clock(150)
    try:
        answer = docker.get_token(user="BEARER_TOKEN", password=whole)
        assert 40 <= answer.json()["expires_in"] <= 50
        server.set_clock(201)
        assert docker.get_token(user="BEARER_TOKEN", password=whole).status == 401
    finally:
        server.set_clock(0)


def test_security_token_is_no_registry_token(server: LocalOciServer, docker: Docker) -> None:
    """What signs requests does not open the registry, and the other way round."""
    session = (server.config_file.parent / "session.token").read_text()
    docker.token = session
    assert docker.ask("GET", "/v2/").status == 401
    assert docker.get_token(user="BEARER_TOKEN", password=session).status == 401


def test_scopes(docker: Docker) -> None:
    """Several, in several parameters or in one; what is not a repository is left out."""
    one, two = f"repository:{docker.name}:pull", "repository:local/b:pull"
    assert docker.get_token(one, two).json()["scope"] == f"{one} {two}"
    assert docker.get_token(f"{one} {two}").json()["scope"] == f"{one} {two}"
    assert docker.get_token("registry:catalog:*").json()["scope"] == ""
    both = f"repository:{docker.name}:pull,push"
    assert docker.get_token(one, f"repository:{docker.name}:push").json()["scope"] == both
    assert docker.get_token(f"repository:{docker.name}:*").json()["scope"] == both
    assert docker.get_token("repository:other/x:pull").json()["scope"] == "repository:other/x:"


def test_token_is_asked_for_too_little(docker: Docker) -> None:
    """A token for pulling is told to be got anew for pushing: that is not a denial."""
    docker.sign_in("pull")
    answer = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    assert answer.status == 401
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert f'scope="repository:{docker.name}:pull,push"' in answer.headers["www-authenticate"]


def test_the_guides_policy(server: LocalOciServer, docker: Docker) -> None:
    """Hosts pull and push in their repository, and make no other one."""
    server.set_policies({"groups": {"hosts": ["instance"]}, "statements": [GUIDE]})
    assert granted(docker, "instance_principal", docker.name).endswith(":pull,push")
    assert granted(docker, "instance_principal", "local/other") == "repository:local/other:"
    assert granted(docker, "api_key", docker.name) == f"repository:{docker.name}:"
    docker.token = docker.get_signed(server.principal("instance_principal")).json()["token"]
    docker.push("allowed", b"allowed")
    answer = docker.ask("POST", "/v2/local/other/blobs/uploads/")
    assert (answer.status, code_of(answer)) == (403, "DENIED")


def test_denied_with_a_token(server: LocalOciServer, docker: Docker) -> None:
    """Fewer rights than were asked for make a token; the registry then denies."""
    server.set_policies({"statements": ["Allow any-user to read repos in tenancy"]})
    scope = f"repository:{docker.name}:pull,push"
    answer = docker.get_signed(server.principal("api_key"), scope)
    assert answer.json()["scope"] == f"repository:{docker.name}:pull"
    docker.token = answer.json()["token"]
    answer = docker.ask("POST", f"/v2/{docker.name}/blobs/uploads/")
    assert (answer.status, code_of(answer)) == (403, "DENIED")
    assert docker.get("none").status == 404  # pulling is granted


@pytest.mark.parametrize(
    ("statement", "made"),
    [
        ("Allow any-user to manage repos in tenancy", True),
        ("Allow any-user to manage repos in tenancy where target.repo.name='first/push'", True),
        ("Allow any-user to manage repos in compartment C", False),
        ("Allow any-user to use repos in tenancy", False),
        (
            "Allow any-user to {REPOSITORY_READ, REPOSITORY_UPDATE} in tenancy",
            False,
        ),
    ],
)
def test_first_push(server: LocalOciServer, docker: Docker, statement: str, made: bool) -> None:
    """It makes a repository in the root compartment, which a compartment's policy does not."""
    server.set_policies({"statements": [statement]})
    answer = docker.get_token("repository:local/first/push:pull,push")
    assert answer.json()["scope"].endswith(":pull,push") is made
    docker.token = docker.get_token().json()["token"]
    answer = docker.ask("POST", "/v2/local/first/push/blobs/uploads/")
    assert answer.status == (202 if made else 403)
    server.set_policies(None)
    client = artifacts(server)
    found = client.list_container_repositories(tenancy_of(server), display_name="first/push")
    assert [(one.compartment_id, one.is_public) for one in found.data.items] == (
        [(tenancy_of(server), False)] if made else []
    )
    for one in found.data.items:
        client.delete_container_repository(one.id)


def test_public_repository(server: LocalOciServer, docker: Docker) -> None:
    """Everybody pulls from it, with a token for nobody; nobody pushes to it so."""
    models, client = oci.artifacts.models, artifacts(server)
    name = "local/open"
    docker.sign_in(name=name)
    digest = docker.push("x", b"open", name)
    (repository,) = client.list_container_repositories(
        tenancy_of(server), display_name="open"
    ).data.items
    scope = f"repository:{name}:pull,push"
    docker.token = docker.client.ask("GET", token_target(scope)).json()["token"]
    answer = docker.get("x", name)
    assert (answer.status, code_of(answer)) == (403, "DENIED")
    client.update_container_repository(
        repository.id, models.UpdateContainerRepositoryDetails(is_public=True)
    )
    answer = docker.client.ask("GET", token_target(scope))
    assert answer.json()["scope"] == f"repository:{name}:pull"
    docker.token = answer.json()["token"]
    assert docker.get("x", name).headers["docker-content-digest"] == digest
    assert docker.ask("GET", f"/v2/{name}/blobs/{digest_of(b'open')}").body == b"open"
    answer = docker.ask("POST", f"/v2/{name}/blobs/uploads/")
    assert (answer.status, code_of(answer)) == (403, "DENIED")


def test_immutable(server: LocalOciServer, docker: Docker) -> None:
    """A tag that names an image stays there; naming it again is no change."""
    models, client = oci.artifacts.models, artifacts(server)
    client.create_container_repository(
        models.CreateContainerRepositoryDetails(
            compartment_id=server.compartment, display_name="fixed", is_immutable=True
        )
    )
    name = "local/fixed"
    docker.sign_in(name=name)
    manifest = docker.manifest(b"first", name)
    assert docker.put("x", manifest, name).status == 201
    assert docker.put("x", manifest, name).status == 201
    other = docker.manifest(b"second", name)
    answer = docker.put("x", other, name)
    assert (answer.status, code_of(answer)) == (403, "DENIED")
    assert "immutable" in answer.json()["errors"][0]["message"]
    assert docker.get("x", name).body == manifest
    assert docker.put("y", other, name).status == 201


def tokens_of(folder: Path, lifetime: float = 10.0) -> RegistryTokens:
    return RegistryTokens(folder, clock=lambda: 1000.0, lifetime=lifetime)


def test_tokens_say_what_was_put_in(tmp_path: Path) -> None:
    """Who, and what for; another start checks them too, another folder does not."""
    caller = Caller("ocid", "tenancy", "instance", {"groups": "a b"})
    access = {"n/r": Access(frozenset({"pull", "push"}), frozenset({"pull"}))}
    token, seconds = tokens_of(tmp_path).issue(caller, access)
    holder = tokens_of(tmp_path).holder(token)
    assert (holder.caller, holder.access, holder.expires, seconds) == (caller, access, 1010, 10)
    assert (tmp_path / "registry-token.key").stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(TokenError):
        tokens_of(other).holder(token)
    expired, _ = tokens_of(tmp_path, 0).issue(caller, None)
    with pytest.raises(TokenError):
        tokens_of(tmp_path).holder(expired)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=90).map(lambda data: data.decode("latin-1")))
def test_foreign_tokens(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever comes is refused, and nothing else happens."""
    tokens = tokens_of(tmp_path_factory.getbasetemp())
    good, _ = tokens.issue(Caller("o", "t"), None)
    head, body, signature = good.split(".")
    for token in (text, f"{head}.{text}.{signature}", f"{head}.{body}.{text}", good + text):
        if token != good:
            with pytest.raises(TokenError):
                tokens.holder(token)


def test_no_algorithm(tmp_path: Path) -> None:
    """A token that says it needs no signature is refused."""
    claims = {"sub": "o", "tenant": "t", "ptype": "user", "groups": "", "exp": 1e12}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "none"}, claims)
    ]
    with pytest.raises(TokenError):
        tokens_of(tmp_path).holder(".".join([*parts, ""]))


def test_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what to install, and nothing is left running."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidInput) as caught:
        LocalCloud(Plan(tmp_path / "data", registry=True))
    assert "apt-get install docker-registry" in (caught.value.remedy or "")
    with LocalCloud(Plan(tmp_path / "data")):  # the folder is free
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b'{"local": 1}', b"\xff"])
def test_damaged_auth_tokens(tmp_path: Path, content: bytes) -> None:
    """The error says what to remove."""
    LocalCloud(Plan(tmp_path, registry=True)).close()
    path = tmp_path / "identity" / "auth-tokens.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        LocalCloud(Plan(tmp_path, registry=True))
    assert str(path) in str(caught.value)


def test_damaged_database(tmp_path: Path) -> None:
    """The same of the registry's database."""
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "registry.db").write_bytes(b"no database" * 100)
    with pytest.raises(Corrupt):
        LocalCloud(Plan(tmp_path, registry=True))


def test_basic_is_for_the_token_service(docker: Docker) -> None:
    """The registry itself takes bearer tokens only."""
    authorization = basic(docker.server.registry_user, docker.server.registry_password)
    answer = docker.client.ask("GET", "/v2/", authorization=authorization)
    assert answer.status == 401
