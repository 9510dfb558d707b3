"""ECR: moto's API, docker-registry's images; passwords by age, errors of boto3 by kind."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bootstream.errors import BootstreamError, InvalidInput, PermissionDenied, Unavailable
from bootstream.progress import NO_PROGRESS
from bootstream.registry.aws import AWSArtifactsRegistry
from bootstream.registry.ecrtokens import EcrCredentials, EcrTokens
from bootstream.registry.protocol import ArtifactsRegistry
from bootstream.registry.remote import Access
from bootstream.testing.artifacts import ArtifactsRegistryConformance, new_build
from bootstream.testing.registry import DockerRegistry
from bootstream.testing.servers.ecr import REGION, USER, EcrFront
from bootstream.testing.servers.process import free_port
from bootstream.testing.servers.s3 import Moto


class _Cloud:
    def __init__(self, moto: Moto, front: EcrFront) -> None:
        self.moto, self.front = moto, front

    def open(self, access: Access, **changed: Any) -> AWSArtifactsRegistry:
        """A registry whose repositories nobody else uses."""
        arguments: dict[str, Any] = {
            "repository": f"e2bdev/r{new_build()}",
            "region": REGION,
            "endpoint": self.moto.url,
            "host": self.front.host,
            "access_key": "test",
            "secret_key": "test",
        }
        return AWSArtifactsRegistry(access, **(arguments | changed))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Cloud]:
    folder = tmp_path_factory.mktemp("ecr")
    with ExitStack() as stack:
        images = stack.enter_context(DockerRegistry(folder / "registry", htpasswd=USER))
        moto = stack.enter_context(Moto(folder / "moto"))
        front = stack.enter_context(EcrFront(images.host, moto.url))
        stack.callback(front.ecr.close)
        yield _Cloud(moto, front)


class TestConformance(ArtifactsRegistryConformance):
    """All of it."""

    def make_immutable(self, registry: ArtifactsRegistry) -> bool:
        assert isinstance(registry, AWSArtifactsRegistry)
        for name in list(registry.repositories()):
            if name.startswith(registry.names().prefix):
                registry._ecr.put_image_tag_mutability(
                    repositoryName=name, imageTagMutability="IMMUTABLE"
                )
        return True

    @pytest.fixture
    def registry(self, cloud: _Cloud, access: Access) -> Iterator[ArtifactsRegistry]:
        found = cloud.open(access)
        yield found
        found.close()

    @pytest.fixture
    def neighbour(self, cloud: _Cloud, access: Access) -> Iterator[ArtifactsRegistry]:
        found = cloud.open(access)
        yield found
        found.close()


def test_missing_repository_is_not_made(cloud: _Cloud, access: Access, tmp_path: Path) -> None:
    """Where it may not be made, the error says how."""
    registry = cloud.open(access, create=False)
    reference, _ = ArtifactsRegistryConformance.make(tmp_path / "images")
    with pytest.raises(BootstreamError) as raised:
        registry.push_image(reference, "py", new_build(), NO_PROGRESS)
    assert "aws ecr create-repository" in (raised.value.remedy or "")
    assert registry.names().prefix + "py" in (raised.value.remedy or "")
    registry.close()


def test_host_of_the_account(cloud: _Cloud, access: Access) -> None:
    """Without another host it is the one that the password is for."""
    registry = cloud.open(access, host=None, repository="e2bdev/base")
    build = new_build()
    assert registry.get_tag("py", build) == (
        f"123456789012.dkr.ecr.us-east-1.amazonaws.com/e2bdev/base/py:{build}"
    )
    registry.close()


def test_errors_of_the_service(access: Access) -> None:
    """Nobody there, no keys, one key: each is an error of its own."""
    arguments: dict[str, Any] = {"repository": "x", "region": REGION}
    nobody = AWSArtifactsRegistry(
        access,
        **arguments,
        endpoint=f"http://127.0.0.1:{free_port()}",
        access_key="a",
        secret_key="b",
    )
    nobody._ecr.meta.config.retries = None
    with pytest.raises(Unavailable):
        nobody.get_tag("py", new_build())
    nobody.close()
    with pytest.raises(InvalidInput) as raised:
        AWSArtifactsRegistry(access, **arguments, access_key="a")
    assert raised.value.object == "AWS_ACCESS_KEY_ID"
    with pytest.raises(InvalidInput):
        AWSArtifactsRegistry(access, **arguments, profile="no-such-profile")


class _FakeEcr:
    """Gives a new token each time."""

    def __init__(self, expires: datetime) -> None:
        self.count = 0
        self.expires = expires

    def get_authorization_token(self) -> dict[str, Any]:
        self.count += 1
        token = base64.b64encode(f"AWS:token-{self.count}".encode()).decode()
        return {
            "authorizationData": [
                {
                    "authorizationToken": token,
                    "expiresAt": self.expires,
                    "proxyEndpoint": "https://1.dkr.ecr.eu-west-1.amazonaws.com",
                }
            ]
        }


def test_tokens_are_renewed() -> None:
    """By age where the time of expiry is past, ahead of it where not, and when refused."""
    now = 1_700_000_000.0
    for expires, lasts in (
        (datetime(2015, 1, 1, tzinfo=UTC), 6 * 3600),
        (datetime.fromtimestamp(now + 12 * 3600, UTC), 6 * 3600),
        (datetime.fromtimestamp(now + 3600, UTC), 1800),
        (datetime.fromtimestamp(now + 10, UTC), 60),
    ):
        clock = [now]
        fake = _FakeEcr(expires)
        tokens = EcrTokens(fake, clock=lambda clock=clock: clock[0])  # type: ignore[misc]  # bound now
        first = tokens.token()
        assert first.credentials.password == "token-1"
        clock[0] = now + lasts - 1
        assert tokens.token() is first
        clock[0] = now + lasts + 1
        assert tokens.token().credentials.password == "token-2"
        clock[0] = now - 7 * 3600  # a clock that was set back
        assert tokens.token().credentials.password == "token-3"
        found = EcrCredentials(tokens)
        assert found.find("any") != found.find("any")  # asked again: it was refused
        assert fake.count == 4
        assert "token-" not in repr(tokens.token())


def test_permissions_are_named(cloud: _Cloud, access: Access, tmp_path: Path) -> None:
    """A registry that refuses the password says which permissions are missing."""
    registry = cloud.open(access)
    reference, _ = ArtifactsRegistryConformance.make(tmp_path / "images")
    registry.make_repository(registry.names().prefix + "py")
    refused = DockerRegistry(tmp_path / "other", htpasswd=("AWS", "something else"))
    with refused:
        other = cloud.open(access, host=refused.host)
        with pytest.raises(PermissionDenied) as raised:
            other.push_image(reference, "py", new_build(), NO_PROGRESS)
        assert "ecr:PutImage" in (raised.value.remedy or "")
        other.close()
    registry.close()
