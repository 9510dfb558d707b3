"""From variables to a registry that works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bootstream.config import Settings
from bootstream.errors import InvalidInput
from bootstream.progress import NO_PROGRESS
from bootstream.registry.local import LocalArtifactsRegistry
from bootstream.testing.artifacts import ArtifactsRegistryConformance, new_build
from bootstream.testing.localoci import LocalOciServer
from bootstream.wiring import get_artifacts_registry_provider


def test_variables_of_the_local_oci(tmp_path: Path) -> None:
    """What ``local-oci --write-env`` writes is all that is needed; also without a namespace."""
    with LocalOciServer(tmp_path / "oci", registry=True) as server:
        for without in (None, "OCI_NAMESPACE"):
            environ = {**server.variables, "BOOTSTREAM_CACHE_DIR": str(tmp_path / "cache")}
            environ.pop(without or "", None)
            registry = get_artifacts_registry_provider(Settings.from_environment(environ))
            build = new_build()
            reference, digest = ArtifactsRegistryConformance.make(tmp_path / "images")
            assert registry.push_image(reference, "py", build, NO_PROGRESS) == digest
            assert registry.get_tag("py", build) == (
                f"{server.registry_host}/{server.namespace}/{server.repository}:py-{build}"
            )
            assert registry.get_image("py", build).digest == digest
            assert registry.details().provider == "OCI_OCIR"
            registry.delete("py", build)
            registry.close()


def test_the_default_is_a_folder(tmp_path: Path) -> None:
    """Without variables it is ``Local``, below the user's data folder, or where it is told."""
    environ = {
        "LOCAL_ARTIFACTS_REGISTRY_BASE_PATH": str(tmp_path / "registry"),
        "BOOTSTREAM_CACHE_DIR": str(tmp_path / "cache"),
        "DOCKER_HOST": "tcp://127.0.0.1:1",
    }
    registry = get_artifacts_registry_provider(Settings.from_environment(environ))
    assert isinstance(registry, LocalArtifactsRegistry)
    assert registry.folder == tmp_path / "registry"
    assert Settings.from_environment({}).registry.local_base_path.name == "artifacts-registry"


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"ARTIFACTS_REGISTRY_PROVIDER": "AWS_ECR"}, "AWS_DOCKER_REPOSITORY_NAME"),
        ({"ARTIFACTS_REGISTRY_PROVIDER": "GCP_ARTIFACTS"}, "GCP_PROJECT_ID"),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "GCP_ARTIFACTS", "GCP_PROJECT_ID": "p"},
            "GCP_REGION",
        ),
        ({"ARTIFACTS_REGISTRY_PROVIDER": "AZURE_ACR"}, "AZURE_CONTAINER_REGISTRY_NAME"),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR", "OCI_IMAGE_NAME": "x:{build_id}"},
            "OCI_IMAGE_NAME",
        ),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR", "OCI_CONTAINER_REPOSITORY_NAME": "A B"},
            "OCI_CONTAINER_REPOSITORY_NAME",
        ),
    ],
)
def test_what_is_missing_is_named(environ: dict[str, str], missing: str) -> None:
    """By its variable."""
    with pytest.raises(InvalidInput) as raised:
        get_artifacts_registry_provider(Settings.from_environment(environ))
    assert raised.value.object == missing


@pytest.mark.parametrize(
    ("provider", "package", "extra"),
    [
        ("OCI_OCIR", "cryptography", "oci"),
        ("AWS_ECR", "boto3", "aws"),
        ("GCP_ARTIFACTS", "google", "gcp"),
        ("AZURE_ACR", "azure", "azure"),
    ],
)
def test_missing_extras_are_named(provider: str, package: str, extra: str) -> None:
    """Without the cloud's packages the error says what to install; others do not need them."""
    code = f"""
import sys, importlib.util
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(name)
        return None
sys.meta_path.insert(0, Missing())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else real(name, *rest)
from bootstream.config import Settings
from bootstream.errors import InvalidInput
from bootstream.wiring import get_artifacts_registry_provider
environ = {{"ARTIFACTS_REGISTRY_PROVIDER": {provider!r}, "AWS_DOCKER_REPOSITORY_NAME": "x",
    "GCP_PROJECT_ID": "p", "GCP_REGION": "us", "GCP_DOCKER_REPOSITORY_NAME": "x",
    "AZURE_CONTAINER_REGISTRY_NAME": "x"}}
try:
    get_artifacts_registry_provider(Settings.from_environment(environ))
except InvalidInput as error:
    print(error.remedy)
get_artifacts_registry_provider(Settings.from_environment({{}}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=25
    )
    assert result.returncode == 0, result.stderr
    assert f"pip install 'bootstream[{extra}]'" in result.stdout
