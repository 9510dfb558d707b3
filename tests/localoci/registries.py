"""What the registry's tests share: requests that are signed or show a token, and small images."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import oci  # type: ignore[import-untyped]  # it has no types
from tests.localoci.client import Answer, Client

from bootstream.clouds.oci import http_date, sign

if TYPE_CHECKING:
    from bootstream.clouds.oci import Principal
    from bootstream.testing.localoci import LocalOciServer

TOKEN_PATH = "/20180419/docker/token"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Docker:
    """A client of the registry, over one connection."""

    server: LocalOciServer
    client: Client
    token: str = ""

    @property
    def name(self) -> str:
        """The repository that is there."""
        return f"{self.server.namespace}/{self.server.repository}"

    def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """Send a request with the token."""
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        return self.client.ask(method, target, body, **headers)

    def get_token(self, *scopes: str, user: str | None = None, password: str = "") -> Answer:
        """Ask the token service as a user, by default the one that is there."""
        if user is None:
            user, password = self.server.registry_user, self.server.registry_password
        authorization = basic(user, password)
        return self.client.ask("GET", token_target(*scopes), authorization=authorization)

    def get_signed(self, principal: Principal, *scopes: str) -> Answer:
        """Ask the token service with a signature."""
        target, date, host = token_target(*scopes), http_date(), self.server.registry_host
        authorization = sign(principal.credentials(), "GET", host, target, date=date)
        return self.client.ask("GET", target, authorization=authorization, date=date, host=host)

    def sign_in(self, actions: str = "pull,push", name: str | None = None) -> None:
        """Use a token for a repository from now on."""
        answer = self.get_token(f"repository:{name or self.name}:{actions}")
        assert answer.status == 200, answer.body
        self.token = answer.json()["token"]

    def upload(self, data: bytes, name: str | None = None) -> str:
        """Push a blob; return its digest."""
        started = self.ask("POST", f"/v2/{name or self.name}/blobs/uploads/")
        assert started.status == 202, started.body
        digest = digest_of(data)
        answer = self.ask("PUT", f"{place(started)}&digest={quote(digest)}", data)
        assert answer.status == 201, answer.body
        return digest

    def manifest(self, content: bytes, name: str | None = None) -> bytes:
        """Push an image's blobs; return its manifest."""
        config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        blobs = [(CONFIG, config), (LAYER, content)]
        configuration, layer = (
            {"mediaType": kind, "digest": self.upload(data, name), "size": len(data)}
            for kind, data in blobs
        )
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": configuration,
            "layers": [layer],
        }
        return json.dumps(document).encode()

    def put(self, tag: str, manifest: bytes, name: str | None = None) -> Answer:
        """Push a manifest by a tag, or by a digest."""
        target = f"/v2/{name or self.name}/manifests/{tag}"
        return self.ask("PUT", target, manifest, content_type=MANIFEST)

    def push(self, tag: str, content: bytes, name: str | None = None) -> str:
        """Push an image; return its digest."""
        answer = self.put(tag, self.manifest(content, name), name)
        assert answer.status == 201, answer.body
        return answer.headers["docker-content-digest"]

    def get(self, reference: str, name: str | None = None) -> Answer:
        """Get a manifest."""
        return self.ask("GET", f"/v2/{name or self.name}/manifests/{reference}")


def token_target(*scopes: str) -> str:
    query = "&".join(["service=any", *(f"scope={quote(scope)}" for scope in scopes)])
    return f"{TOKEN_PATH}?{query}"


def place(answer: Answer) -> str:
    """Path and query of an answer's location."""
    parts = urlsplit(answer.headers["location"])
    return f"{parts.path}?{parts.query}"


def code_of(answer: Answer) -> str:
    """The registry's code of an error."""
    (error,) = answer.json()["errors"]
    return str(error["code"])


def skopeo(*arguments: str) -> str:
    """Run it, insist on success, return what it prints."""
    command = ["skopeo", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=25)
    assert result.returncode == 0, result.stderr
    return result.stdout


def tenancy_of(server: LocalOciServer) -> str:
    """The OCID of the tenancy, which is the root compartment's."""
    return str(oci.config.from_file(str(server.config_file))["tenancy"])


def artifacts(server: LocalOciServer) -> Any:
    """The SDK's client of the Artifacts API."""
    config = oci.config.from_file(str(server.config_file))
    return oci.artifacts.ArtifactsClient(
        config,
        service_endpoint=server.variables["OCI_ARTIFACTS_ENDPOINT"],
        retry_strategy=oci.retry.NoneRetryStrategy(),  # it waits long for a state to change
    )
