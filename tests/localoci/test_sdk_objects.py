"""Oracle's own SDK as the client: what it sends is understood, what it expects is there."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import oci  # type: ignore[import-untyped]  # it has no types
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from oci.object_storage import models  # type: ignore[import-untyped]  # the same
from oci.object_storage.transfer.internal.download import (  # type: ignore[import-untyped]  # the same
    DownloadConfiguration,
    DownloadManager,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.localoci.conftest import Clock
    from tests.localoci.openserver import OpenServer


@pytest.fixture(scope="module")
def key() -> str:
    """A key to sign with; this server does not look at it."""
    return (
        rsa.generate_private_key(65537, 2048)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


@pytest.fixture
def sdk(open_server: OpenServer, key: str) -> Any:
    """The SDK's client of the open server, without retries."""
    config = {
        "user": "ocid1.user.oc1..a",
        "tenancy": "ocid1.tenancy.oc1..a",
        "fingerprint": "20:3b:97:13:55:1c:5b:0d:d3:37:d8:50:4e:c5:3a:34",
        "key_content": key,
        "region": "us-ashburn-1",
    }
    client = oci.object_storage.ObjectStorageClient(
        config, service_endpoint=open_server.url, retry_strategy=oci.retry.NoneRetryStrategy()
    )
    yield client
    client.base_client.session.close()


def test_objects(sdk: Any) -> None:
    """Names with slashes and other letters, metadata, ranges, errors."""
    assert sdk.get_namespace().data == "local"
    name = "a/b c/ü+%.txt"
    put = sdk.put_object("local", "b", name, b"hello", opc_meta={"x": "y"})
    got = sdk.get_object("local", "b", name, range="bytes=1-3")
    assert (got.status, got.data.content) == (206, b"ell")
    head = sdk.head_object("local", "b", name).headers
    assert (head["etag"], head["opc-meta-x"]) == (put.headers["etag"], "y")
    page = sdk.list_objects("local", "b", delimiter="/", fields="name,size").data
    assert (page.objects, page.prefixes) == ([], ["a/"])
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        sdk.put_object("local", "b", name, b"x", if_none_match="*")
    assert (caught.value.status, caught.value.code) == (412, "IfNoneMatchFailed")
    assert caught.value.request_id
    sdk.delete_object("local", "b", name)
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        sdk.get_object("local", "b", name)
    assert (caught.value.status, caught.value.code) == (404, "ObjectNotFound")


@pytest.mark.parametrize("algorithm", ["CRC32C", "SHA256", None])
def test_managers(sdk: Any, tmp_path: Path, algorithm: str | None) -> None:
    """The upload manager sends parts at once; the download manager checks the whole."""
    data = os.urandom(5 << 20)
    (tmp_path / "up").write_bytes(data)
    extra = {"opc_checksum_algorithm": algorithm} if algorithm else {}
    uploads = oci.object_storage.UploadManager(sdk, allow_parallel_uploads=True)
    uploads.upload_file("local", "b", "big", str(tmp_path / "up"), part_size=1 << 20, **extra)
    downloads = DownloadManager.DownloadManager(DownloadConfiguration.DownloadConfiguration(), sdk)
    downloads.get_object_to_path("local", "b", "big", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == data


def test_streams(sdk: Any) -> None:
    """A stream goes up in parts as it comes."""
    data = os.urandom(3_000_000)
    uploads = oci.object_storage.UploadManager(sdk)
    uploads.upload_stream("local", "b", "s", io.BytesIO(data), part_size=1 << 20)
    assert sdk.get_object("local", "b", "s").data.content == data


def test_the_rest(sdk: Any, clock: Clock) -> None:
    """Copies, renames, batches, addresses, buckets: every answer makes the SDK's model."""
    sdk.create_bucket(
        "local", models.CreateBucketDetails(name="c", compartment_id="x", metadata={"a": "b"})
    )
    assert sdk.get_bucket("local", "c").data.metadata == {"a": "b"}
    assert [item.name for item in sdk.list_buckets("local", "x").data] == ["c"]
    sdk.put_object("local", "b", "k", b"x")
    copy = models.CopyObjectDetails(
        source_object_name="k", destination_region="us-ashburn-1", destination_namespace="local",
        destination_bucket="c", destination_object_name="l",
    )  # fmt: skip
    request = sdk.copy_object("local", "b", copy).headers["opc-work-request-id"]
    done = oci.wait_until(
        sdk, sdk.get_work_request(request), "status", "COMPLETED",
        max_interval_seconds=1, max_wait_seconds=10,
    )  # fmt: skip
    assert done.data.operation_type == "COPY_OBJECT"
    rename = models.RenameObjectDetails(source_name="l", new_name="m")
    assert sdk.rename_object("local", "c", rename).status == 200
    versions = sdk.list_object_versions("local", "c").data
    assert [item.name for item in versions.items] == ["m"]
    batch = models.BatchDeleteObjectsDetails(
        objects=[
            models.BatchDeleteObjectIdentifier(object_name="m"),
            models.BatchDeleteObjectIdentifier(object_name="n"),
        ]
    )
    result = sdk.batch_delete_objects("local", "c", batch).data
    assert [item.object_name for item in result.deleted] == ["m"]
    assert [item.status_code for item in result.failed] == [404]
    details = models.CreatePreauthenticatedRequestDetails(
        name="p", object_name="k", access_type="ObjectRead",
        time_expires=datetime.fromtimestamp(clock.now + 60, UTC),
    )  # fmt: skip
    made = sdk.create_preauthenticated_request("local", "b", details).data
    assert made.full_path.endswith(made.access_uri)
    listed = sdk.list_preauthenticated_requests("local", "b").data
    assert [item.id for item in listed] == [made.id]
    sdk.delete_preauthenticated_request("local", "b", made.id)
    sdk.delete_bucket("local", "c")
