"""OCI's own clients are content with the local OCI: the SDK, oci-cli, and ocifs."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oci  # type: ignore[import-untyped]  # it has no types
import pytest

from bootstream.testing.localoci import LocalOciServer

TOOLS = Path(sys.prefix) / "tools" / "bin"
MIB = 1 << 20
LARGE = random.Random(3).randbytes(11 * MIB + 5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalOciServer) -> Any:
    return oci.object_storage.ObjectStorageClient(
        oci.config.from_file(str(server.config_file)), service_endpoint=server.endpoint
    )


def test_sdk_objects(server: LocalOciServer, client: Any) -> None:
    """Put, head, get, a range, list, delete."""
    where = (server.namespace, server.bucket)
    put = client.put_object(*where, "a/ü b", b"content", opc_meta={"key": "value"})
    head = client.head_object(*where, "a/ü b")
    assert head.headers["etag"] == put.headers["etag"]
    assert head.headers["opc-meta-key"] == "value"
    assert client.get_object(*where, "a/ü b").data.content == b"content"
    ranged = client.get_object(*where, "a/ü b", range="bytes=2-4")
    assert (ranged.status, ranged.data.content) == (206, b"nte")
    listed = client.list_objects(*where, prefix="a/", fields="name,size,etag").data.objects
    assert [(item.name, item.size, item.etag) for item in listed] == [
        ("a/ü b", 7, put.headers["etag"])
    ]
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        client.put_object(*where, "a/ü b", b"", if_none_match="*")
    assert (caught.value.status, caught.value.code) == (412, "IfNoneMatchFailed")
    client.delete_object(*where, "a/ü b")
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        client.head_object(*where, "a/ü b")
    assert caught.value.status == 404


def test_sdk_upload_manager(server: LocalOciServer, client: Any, tmp_path: Path) -> None:
    """Files and streams in parts, several at a time."""
    where = (server.namespace, server.bucket)
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    manager = oci.object_storage.UploadManager(client, allow_parallel_uploads=True)
    server.take_requests()
    manager.upload_file(*where, "managed", str(path), part_size=3 * MIB)
    assert server.take_requests()["UploadPart"] == 4
    assert client.get_object(*where, "managed").data.content == LARGE
    assert client.head_object(*where, "managed").headers["opc-multipart-md5"].endswith("-4")
    manager.upload_stream(*where, "streamed", io.BytesIO(LARGE), part_size=10 * MIB)
    assert client.get_object(*where, "streamed").data.content == LARGE


def test_sdk_copy(server: LocalOciServer, client: Any) -> None:
    """A copy is a work request that ends."""
    where = (server.namespace, server.bucket)
    client.put_object(*where, "from", b"copied")
    details = oci.object_storage.models.CopyObjectDetails(
        source_object_name="from",
        destination_region=server.region,
        destination_namespace=server.namespace,
        destination_bucket=server.bucket,
        destination_object_name="to",
    )
    work = client.copy_object(*where, details).headers["opc-work-request-id"]
    deadline = time.monotonic() + 10
    while client.get_work_request(work).data.status != "COMPLETED":
        assert time.monotonic() < deadline
    assert client.get_object(*where, "to").data.content == b"copied"


def test_sdk_retries_faults(server: LocalOciServer) -> None:
    """The SDK's own retries get over what a fault rule does."""
    client = oci.object_storage.ObjectStorageClient(
        oci.config.from_file(str(server.config_file)),
        service_endpoint=server.endpoint,
        retry_strategy=oci.retry.RetryStrategyBuilder()
        .add_max_attempts(4)
        .add_service_error_check(service_error_retry_on_any_5xx=True)
        .get_retry_strategy(),
    )
    number = server.faults.add("status", status=503, operation="GetNamespace", count=1)
    assert client.get_namespace().data == server.namespace
    assert server.faults.hits(number) == 1
    server.faults.clear()


def run(server: LocalOciServer, program: str, *arguments: str, **more: str) -> str:
    """Run a program of the tools' own environment, and insist on success."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(server.folder), **server.variables}
    result = subprocess.run(
        [TOOLS / program, *arguments],
        env=environment | {"OCI_CLI_PROMPT_FOR_INPUT": "False"} | more,
        capture_output=True,
        check=False,
        timeout=28,
    )
    assert result.returncode == 0, (result.stderr + result.stdout).decode()[-3000:]
    return result.stdout.decode()


def command_line(server: LocalOciServer, *arguments: str) -> Any:
    """Run oci-cli for objects of the bucket; return what it prints, parsed."""
    text = run(server, "oci", "os", "object", *arguments, "--bucket-name", server.bucket)
    return json.loads(text) if text.strip().startswith("{") else text


def test_oci_cli(server: LocalOciServer, tmp_path: Path) -> None:
    """Put in parts, list, get, copy; the environment alone points it here."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    command_line(
        server, "put", "--file", str(source), "--name", "cli/a file", "--part-size", "5", "--force"
    )
    listed = command_line(server, "list", "--prefix", "cli/")["data"]
    assert [(item["name"], item["size"]) for item in listed] == [("cli/a file", len(LARGE))]
    command_line(server, "get", "--name", "cli/a file", "--file", str(target))
    assert target.read_bytes() == LARGE


def test_oci_cli_instance_principal(server: LocalOciServer, tmp_path: Path) -> None:
    """Metadata and federation, as ``OCI_CLI_AUTH`` and the endpoint's variable say."""
    source = tmp_path / "source"
    source.write_text("from an instance")
    arguments = ("put", "--file", str(source), "--name", "cli-instance", "--force")
    auth = ("--auth", "instance_principal")
    run(server, "oci", "os", "object", *arguments, "--bucket-name", server.bucket, *auth)
    names = command_line(server, "list", "--prefix", "cli-instance")["data"]
    assert [item["name"] for item in names] == ["cli-instance"]


def test_oci_cli_bulk_delete(server: LocalOciServer, client: Any) -> None:
    """What it lists it deletes, one by one."""
    for number in range(5):
        client.put_object(server.namespace, server.bucket, f"bulk/{number}", b"x")
    result = command_line(server, "bulk-delete", "--prefix", "bulk/", "--force")
    assert len(result["deleted-objects"]) == 5
    assert client.list_objects(server.namespace, server.bucket, prefix="bulk/").data.objects == []


OCIFS = """
import os, sys
from ocifs import OCIFileSystem
bucket, config, endpoint = sys.argv[1:]
fs = OCIFileSystem(config=config, profile="DEFAULT", config_kwargs={"service_endpoint": endpoint})
root = f"oci://{bucket}/fs"
data = os.urandom(7 << 20)
with fs.open(f"{root}/sub/file", "wb", block_size=5 << 20) as file:
    file.write(data)
assert fs.info(f"{root}/sub/file")["size"] == len(data)
with fs.open(f"{root}/sub/file", "rb") as file:
    file.seek(6 << 20)
    assert file.read(100) == data[6 << 20:][:100]
assert fs.cat(f"{root}/sub/file") == data
assert [name.rpartition("/")[2] for name in fs.ls(f"{root}/sub")] == ["file"]
fs.copy(f"{root}/sub/file", f"{root}/copied")
assert fs.cat(f"{root}/copied") == data
fs.rm(f"{root}/copied")
assert not fs.exists(f"{root}/copied")
print("done")
"""


def test_ocifs(server: LocalOciServer) -> None:
    """A file system over the SDK: write in parts, seek, list, copy, remove."""
    place = f"{server.bucket}@{server.namespace}"
    text = run(server, "python", "-c", OCIFS, place, str(server.config_file), server.endpoint)
    assert text.strip() == "done"
