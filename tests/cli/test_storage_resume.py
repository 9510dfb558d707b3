"""``storage cp --resume`` after a run that was killed: what is there is not sent again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import boto3  # type: ignore[import-untyped,unused-ignore]  # it has no types
import pytest

from bootstream.storage.oci import OCIBucketStorageProvider
from bootstream.storage.oci.listing import pages, unfinished_uploads
from bootstream.testing.cli import CommandLine
from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.servers.s3 import REGION, Nanio

SLOW = {"BOOTSTREAM_UPLOAD_RATE": "8M", "BOOTSTREAM_DOWNLOAD_RATE": "8M"}
SIZE = 30_000_001
DEADLINE = 20.0


class Bucket(NamedTuple):
    """A bucket, and what it has of unfinished uploads: the sizes of parts, upload by upload."""

    address: str
    variables: dict[str, str]
    left: Callable[[], list[list[int]]]


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with LocalOciServer(tmp_path_factory.mktemp("oci")) as server:
        provider = OCIBucketStorageProvider(
            server.bucket,
            namespace=server.namespace,
            principal=server.principal(),
            endpoint=server.endpoint,
        )

        def left() -> list[list[int]]:
            client = provider._client
            return [
                [
                    int(str(part["size"]))
                    for part in pages(client, f"u/{one.name}?uploadId={one.upload_id}", "list")
                ]
                for one in unfinished_uploads(client)
            ]

        names = {name: value for name, value in server.variables.items() if "RCLONE" not in name}
        yield Bucket(f"oci://{server.namespace}@{server.bucket}", names, left)
        provider.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with Nanio(tmp_path_factory.mktemp("s3")) as server:
        server.create_bucket("bucket")
        client = boto3.client(
            "s3",
            endpoint_url=server.url,
            region_name=REGION,
            aws_access_key_id=server.keys.access_key,
            aws_secret_access_key=server.keys.secret_key,
        )

        def left() -> list[list[int]]:
            uploads = client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
            return [parts_of(one["Key"], one["UploadId"]) for one in uploads]

        def parts_of(key: str, upload: str) -> list[int]:
            found = client.list_parts(Bucket="bucket", Key=key, UploadId=upload)
            return [part["Size"] for part in found.get("Parts", [])]

        variables = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": server.keys.access_key,
            "AWS_SECRET_ACCESS_KEY": server.keys.secret_key,
        }
        yield Bucket("s3://bucket", variables, left)
        client.close()


@pytest.fixture(params=["oci", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


def slow(cli: CommandLine) -> CommandLine:
    return CommandLine(cli.folder, {**cli.environment, **SLOW})


def killed_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """End a process with SIGKILL in the middle of its work."""
    deadline = time.monotonic() + DEADLINE
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()


def test_upload_that_was_killed(bucket: Bucket, tmp_path: Path) -> None:
    """Its parts are found, compared and kept; what was left is gone with the object complete."""
    cli = CommandLine(tmp_path, bucket.variables)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    where = f"{bucket.address}/{tmp_path.name}"
    process = slow(cli).start("storage", "cp", source, where)
    killed_when(process, lambda: any(len(parts) >= 2 for parts in bucket.left()))
    [parts] = bucket.left()
    [record] = (tmp_path / "cache/uploads").iterdir()
    assert json.loads(record.read_text())["size"] == SIZE
    [done] = cli.json("storage", "cp", "--resume", source, where)
    assert done["resumed"] == sum(parts) > 0
    assert done["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    cli.ok("storage", "cp", where, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert bucket.left() == []
    assert list((tmp_path / "cache/uploads").iterdir()) == []
    assert cli.json("storage", "cp", "--resume", source, where)[0]["skipped"]


def test_source_that_changed(bucket: Bucket, tmp_path: Path) -> None:
    """The old upload is aborted, the new one begins anew, and that is said."""
    cli = CommandLine(tmp_path, bucket.variables)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    where = f"{bucket.address}/{tmp_path.name}"
    process = slow(cli).start("storage", "cp", "--resume", source, where)
    killed_when(process, lambda: any(bucket.left()))
    with source.open("r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"!!")
    again = cli("storage", "cp", "--resume", "--json", source, where)
    assert again.code == 0
    assert "has changed since" in again.stderr
    assert again.json[0]["resumed"] == 0
    cli.ok("storage", "cp", where, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert bucket.left() == []


def test_upload_that_was_aborted_meanwhile(bucket: Bucket, tmp_path: Path) -> None:
    """Collected by somebody else: it is begun anew. Without --resume, the old one is aborted."""
    cli = CommandLine(tmp_path, bucket.variables)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    where = f"{bucket.address}/{tmp_path.name}"
    process = slow(cli).start("storage", "cp", "--resume", source, where)
    killed_when(process, lambda: any(bucket.left()))
    [record] = (tmp_path / "cache/uploads").iterdir()
    remembered = record.read_text()
    assert cli.json("storage", "cp", source, where)[0]["resumed"] == 0
    assert bucket.left() == []
    record.write_text(remembered)
    cli.ok("storage", "rm", where)
    assert cli.json("storage", "cp", "--resume", source, where)[0]["resumed"] == 0
    cli.ok("storage", "cp", where, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()


def test_download_that_was_killed(bucket: Bucket, tmp_path: Path) -> None:
    """The bytes that are there are not asked for again."""
    cli = CommandLine(tmp_path, bucket.variables)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    where = f"{bucket.address}/{tmp_path.name}"
    cli.ok("storage", "cp", source, where)
    out = tmp_path / "out"

    def begun() -> list[int]:
        return [file.stat().st_size for file in tmp_path.glob(".out.*.part")]

    process = slow(cli).start("storage", "cp", "--resume", where, out)
    killed_when(process, lambda: sum(begun()) >= 8 << 20)
    assert not out.exists()
    [size] = begun()
    [done] = cli.json("storage", "cp", "--resume", where, out)
    assert 0 < done["resumed"] <= size < SIZE
    assert out.read_bytes() == source.read_bytes()
    assert begun() == []
