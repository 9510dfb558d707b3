"""Settings from variables and addresses, and the stacks that are made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.config import REGISTRY_PROVIDERS, Settings
from bootstream.errors import BootstreamError, InvalidInput
from bootstream.storage.limit import LimitStorageProvider
from bootstream.storage.local import LocalStorageProvider
from bootstream.storage.metrics import Metrics, MetricsStorageProvider
from bootstream.storage.prefix import PrefixStorageProvider
from bootstream.storage.retry import RetryStorageProvider
from bootstream.wiring import (
    get_template_storage_provider,
    open_provider,
    store_address,
    with_store,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"


def settings(**environ: str) -> Settings:
    return Settings.from_environment(environ)


def test_defaults() -> None:
    """With nothing set: a local store, no limits, nothing named."""
    found = settings()
    assert found.storage_provider == "Local"
    assert found.template_bucket_name is None
    assert found == settings(STORAGE_PROVIDER="", TEMPLATE_BUCKET_NAME="", OCI_REGION="")
    assert found.limits == settings(BOOTSTREAM_UPLOAD_RATE="").limits
    assert isinstance(open_provider(found), LocalStorageProvider)


def test_variables_of_every_cloud() -> None:
    """Each variable arrives where it belongs."""
    found = settings(
        STORAGE_PROVIDER="OCIBucket",
        TEMPLATE_BUCKET_NAME="b",
        TEMPLATE_BUCKET_PREFIX="p/q",
        OCI_REGION="eu-frankfurt-1",
        OCI_NAMESPACE="ns",
        OCI_COMPARTMENT_ID="ocid1.compartment.oc1..a",
        OCI_CLI_AUTH="instance_principal",
        OCI_CONFIG_FILE="/etc/oci/config",
        OCI_CLI_PROFILE="OTHER",
        OCI_OBJECT_STORAGE_ENDPOINT="http://127.0.0.1:8080/",
        OCI_METADATA_BASE_URL="http://127.0.0.1:8081/opc/v2",
        OCI_RESOURCE_PRINCIPAL_VERSION="2.2",
        KUBERNETES_SERVICE_HOST="10.0.0.1",
        AWS_REGION="eu-west-1",
        AWS_ENDPOINT_URL="https://s3.example.com",
        AWS_PROFILE="dev",
        GCP_PROJECT_ID="project",
        GCP_REGION="europe-west1",
        GOOGLE_APPLICATION_CREDENTIALS="/etc/key.json",
        AZURE_STORAGE_ACCOUNT_NAME="account",
        BOOTSTREAM_STORAGE_CONCURRENCY="8",
        BOOTSTREAM_UPLOAD_RATE="10M",
        BOOTSTREAM_DOWNLOAD_RATE="1G",
        UNRELATED="not kept",
    )
    assert (found.template_bucket_name, found.template_bucket_prefix) == ("b", "p/q")
    oci = found.oci
    assert (oci.region, oci.namespace, oci.auth) == ("eu-frankfurt-1", "ns", "instance_principal")
    assert (oci.config_file, oci.profile) == (Path("/etc/oci/config"), "OTHER")
    assert oci.compartment_id == "ocid1.compartment.oc1..a"
    assert oci.endpoint == "http://127.0.0.1:8080"
    assert oci.metadata_base_url == "http://127.0.0.1:8081/opc/v2"
    assert {"OCI_RESOURCE_PRINCIPAL_VERSION", "KUBERNETES_SERVICE_HOST"} <= set(oci.environ)
    assert "UNRELATED" not in oci.environ
    assert (found.aws.region, found.aws.endpoint_url) == ("eu-west-1", "https://s3.example.com")
    assert found.aws.profile == "dev"
    assert found.gcp.credentials_file == Path("/etc/key.json")
    assert (found.gcp.project_id, found.gcp.region) == ("project", "europe-west1")
    assert found.azure.account == "account"
    limits = found.limits
    assert (limits.concurrency, limits.upload, limits.download) == (8, 10 << 20, 1 << 30)


@pytest.mark.parametrize("host", ["127.0.0.1:9023", "http://127.0.0.1:9023/"])
def test_google_emulator(host: str) -> None:
    """Google's own variable, in both of its forms; nothing is signed then."""
    gcp = settings(STORAGE_EMULATOR_HOST=host, GCP_STORAGE_ENDPOINT="https://other").gcp
    assert (gcp.endpoint_url, gcp.anonymous) == ("http://127.0.0.1:9023", True)
    assert not settings(GCP_STORAGE_ENDPOINT="https://other").gcp.anonymous


def test_no_secret_is_shown() -> None:
    """Settings in a log or traceback tell no credentials."""
    found = settings(
        AWS_ACCESS_KEY_ID="AKIASECRET",
        AWS_SECRET_ACCESS_KEY="hunter2",
        AWS_SESSION_TOKEN="hunter2",
        AZURE_STORAGE_ACCOUNT_KEY="hunter2",
        AZURE_STORAGE_SAS_TOKEN="hunter2",
        OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM="hunter2",
    )
    assert found.aws.secret_key == found.azure.account_key == "hunter2"
    assert "hunter2" not in repr(found)
    assert "AKIASECRET" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STORAGE_PROVIDER", "oci"),
        ("OCI_OBJECT_STORAGE_ENDPOINT", "objectstorage.example.com"),
        ("OCI_OBJECT_STORAGE_ENDPOINT", "https://user:hunter2@host"),
        ("OCI_METADATA_BASE_URL", "ftp://host"),
        ("AWS_ENDPOINT_URL", "https://host:port"),
        ("BOOTSTREAM_STORAGE_CONCURRENCY", "0"),
        ("BOOTSTREAM_STORAGE_CONCURRENCY", "many"),
        ("BOOTSTREAM_UPLOAD_RATE", "0"),
        ("BOOTSTREAM_DOWNLOAD_RATE", "fast"),
    ],
)
def test_values_that_cannot_be(name: str, value: str) -> None:
    """The variable is named, and a remedy; a password in it is not repeated."""
    with pytest.raises(InvalidInput, match=name) as raised:
        settings(**{name: value})
    assert raised.value.remedy
    assert "hunter2" not in str(raised.value)


@given(st.dictionaries(st.sampled_from(sorted(
    {"STORAGE_PROVIDER", "OCI_OBJECT_STORAGE_ENDPOINT", "AWS_ENDPOINT_URL", "NODE_ID",
     "BOOTSTREAM_CACHE_SIZE", "BOOTSTREAM_UPLOAD_RATE", "BOOTSTREAM_STORAGE_CONCURRENCY"}
)), st.text(st.characters(exclude_characters="\0"), max_size=30)))  # fmt: skip
def test_any_values(environ: dict[str, str]) -> None:
    """Settings, or InvalidInput."""
    try:
        Settings.from_environment(environ)
    except InvalidInput:
        return


# -- addresses -------------------------------------------------------------------------------


def test_address_in_the_place_of_variables() -> None:
    """A URL says all of it; what it leaves out of a namespace comes from the variables."""
    base = settings(
        STORAGE_PROVIDER="AWSBucket",
        TEMPLATE_BUCKET_NAME="other",
        TEMPLATE_BUCKET_PREFIX="other",
        OCI_NAMESPACE="mine",
    )
    found = with_store(base, "oci://ns@bucket/a/b")
    assert found.storage_provider == "OCIBucket"
    assert (found.template_bucket_name, found.template_bucket_prefix) == ("bucket", "a/b")
    assert found.oci.namespace == "ns"
    assert str(store_address(found)) == "oci://ns@bucket/a/b"
    assert with_store(base, "oci://bucket").oci.namespace == "mine"
    assert str(store_address(with_store(base, "s3://bucket/x"))) == "s3://bucket/x"
    assert str(store_address(base)) == "s3://other/other"


def test_folder_in_the_place_of_variables(tmp_path: Path) -> None:
    """A folder keeps the prefix of the variables, as it always did; a URL of one does not."""
    base = settings(
        STORAGE_PROVIDER="OCIBucket", TEMPLATE_BUCKET_NAME="b", TEMPLATE_BUCKET_PREFIX="p"
    )
    folder = with_store(base, str(tmp_path))
    assert folder.storage_provider == "Local"
    get_template_storage_provider(folder).open_object("x").put(b"1")
    assert (tmp_path / "p/x").read_bytes() == b"1"
    url = with_store(base, f"file://{tmp_path}")
    get_template_storage_provider(url).open_object("x").put(b"2")
    assert (tmp_path / "x").read_bytes() == b"2"


# -- stacks ----------------------------------------------------------------------------------


def layers(provider: object) -> list[type]:
    found = [type(provider)]
    while hasattr(provider, "_inner"):
        provider = provider._inner
        found.append(type(provider))
    return found


def test_order_of_the_stack(tmp_path: Path) -> None:
    """Prefix, metrics, retry, limit, provider; what is not asked for is not there."""
    plain = settings(LOCAL_TEMPLATE_STORAGE_BASE_PATH=str(tmp_path))
    assert layers(get_template_storage_provider(plain)) == [
        RetryStorageProvider,
        LocalStorageProvider,
    ]
    full = settings(
        LOCAL_TEMPLATE_STORAGE_BASE_PATH=str(tmp_path),
        TEMPLATE_BUCKET_PREFIX="p",
        BOOTSTREAM_UPLOAD_RATE="1G",
    )
    metrics = Metrics()
    store = get_template_storage_provider(full, metrics=metrics)
    assert layers(store) == [
        PrefixStorageProvider,
        MetricsStorageProvider,
        RetryStorageProvider,
        LimitStorageProvider,
        LocalStorageProvider,
    ]
    store.open_object("a").put(b"123")
    assert metrics.snapshot()["put"]["bytes"] == 3


@pytest.mark.parametrize("provider", ["OCIBucket", "AWSBucket", "GCPBucket", "AzureBlob"])
def test_bucket_that_is_not_named(provider: str) -> None:
    """The variable and the other way are named."""
    with pytest.raises(InvalidInput, match="TEMPLATE_BUCKET_NAME") as raised:
        get_template_storage_provider(settings(STORAGE_PROVIDER=provider))
    assert "--store" in (raised.value.remedy or "")


@pytest.mark.parametrize("name", ["UPPER/../x", "a/b", "..", "b?x", "b@c"])
def test_bucket_that_cannot_be(name: str) -> None:
    """A name never becomes another part of a URL."""
    with pytest.raises(BootstreamError) as raised:
        found = settings(STORAGE_PROVIDER="AWSBucket", TEMPLATE_BUCKET_NAME=name)
        assert store_address(found).bucket != name
        open_provider(found)
    assert isinstance(raised.value, InvalidInput)


def test_azure_without_account() -> None:
    """The variable is named."""
    with pytest.raises(InvalidInput, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_provider(with_store(settings(), "az://container"))


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("oci://ns@bucket", "cryptography", "oci"),
        ("s3://bucket", "obstore", "aws"),
        ("gs://bucket", "obstore", "gcp"),
        ("az://container", "obstore", "azure"),
    ],
)
def test_missing_extra(url: str, package: str, extra: str) -> None:
    """Without the cloud's package: one line that says what to install."""
    code = f"""
import importlib.util, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(name)
        return None
sys.meta_path.insert(0, Missing())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else real(name, *rest)
from bootstream.cli.app import run
sys.exit(run(["ls", "--store", {url!r}]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={"AZURE_STORAGE_ACCOUNT_NAME": "account", "HOME": "/nonexistent"},
    )
    assert result.returncode == 2, result.stderr
    assert f"pip install 'bootstream[{extra}]'" in result.stderr


def test_document_names_every_variable() -> None:
    """docs/settings.md stays true: every variable that is read is in its table.

    Those of proxies count in lower case, too; the page says so once.
    """
    text = DOCUMENT.read_text("utf-8")

    class Watched(dict[str, str]):
        asked: set[str] = set()  # noqa: RUF012 - one for all on purpose

        def get(self, name: str, default: Any = None) -> Any:
            self.asked.add(name)
            return super().get(name, default)

    Settings.from_environment(Watched())
    for provider in REGISTRY_PROVIDERS:
        Settings.from_environment(Watched(ARTIFACTS_REGISTRY_PROVIDER=provider))
    missing = {name for name in Watched.asked if f"`{name.upper()}`" not in text}
    assert missing == set()


@pytest.mark.parametrize(
    ("environ", "object"),
    [
        ({"ARTIFACTS_REGISTRY_PROVIDER": "OCIR"}, "ARTIFACTS_REGISTRY_PROVIDER"),
        ({"BOOTSTREAM_REGISTRY_CREATE": "perhaps"}, "BOOTSTREAM_REGISTRY_CREATE"),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR", "OCIR_USERNAME": "ns/me"},
            "OCIR_USERNAME, OCIR_PASSWORD",
        ),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR", "OCIR_ENDPOINT": "iad.ocir.io/ns"},
            "OCIR_ENDPOINT",
        ),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR", "OCIR_ENDPOINT": "me:secret@iad.ocir.io"},
            "OCIR_ENDPOINT",
        ),
        (
            {"ARTIFACTS_REGISTRY_PROVIDER": "AWS_ECR", "AWS_ENDPOINT_URL_ECR": "ecr"},
            "AWS_ENDPOINT_URL_ECR",
        ),
    ],
)
def test_registry_settings_that_cannot_be(environ: dict[str, str], object: str) -> None:
    """They are refused by their variable's name, and what may be a password is not repeated."""
    with pytest.raises(InvalidInput) as raised:
        Settings.from_environment(environ)
    assert raised.value.object == object
    assert "secret" not in str(raised.value)


def test_registry_settings() -> None:
    """Each provider reads its own variables; the auth token does not show."""
    settings = Settings.from_environment(
        {
            "ARTIFACTS_REGISTRY_PROVIDER": "OCI_OCIR",
            "OCIR_USERNAME": "ns/me",
            "OCIR_PASSWORD": "secret-token",
            "OCIR_ENDPOINT": "127.0.0.1:5000",
            "AWS_DOCKER_REPOSITORY_NAME": "e2bdev/base",
        }
    ).registry
    assert (settings.repository, settings.endpoint) == ("e2b-templates", "127.0.0.1:5000")
    assert settings.password == "secret-token"
    assert "secret-token" not in repr(settings)
    aws = Settings.from_environment(
        {
            "ARTIFACTS_REGISTRY_PROVIDER": "AWS_ECR",
            "AWS_DOCKER_REPOSITORY_NAME": "e2bdev/base",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1/",
            "BOOTSTREAM_REGISTRY_CREATE": "no",
        }
    ).registry
    assert (aws.repository, aws.api_endpoint) == ("e2bdev/base", "http://127.0.0.1:1")
    assert not aws.create
