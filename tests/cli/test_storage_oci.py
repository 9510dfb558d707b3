"""``bootstream storage`` on a local OCI: through signatures and HTTP."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstream.testing.cli import CommandLine
from bootstream.testing.localoci import LocalOciServer


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci")) as server:
        yield server


@pytest.fixture
def cloud(oci: LocalOciServer, tmp_path: Path) -> CommandLine:
    names = {name: value for name, value in oci.variables.items() if "RCLONE" not in name}
    return CommandLine(tmp_path, names)


def test_check(oci: LocalOciServer, cloud: CommandLine) -> None:
    """Everything is allowed, copies and signed URLs too."""
    found = cloud.json("storage", "check")
    assert found["store"] == f"oci://{oci.namespace}@{oci.bucket}"
    assert {step["state"] for step in found["steps"]} == {"ok"}, found


def test_everything_by_address(oci: LocalOciServer, cloud: CommandLine) -> None:
    """Up, down, across to a folder, listed and removed, by URL alone."""
    data = os.urandom(12_000_000)
    source = cloud.folder / "source"
    source.write_bytes(data)
    where = f"oci://{oci.namespace}@{oci.bucket}/by/address"
    variables = {
        name: value
        for name, value in cloud.environment.items()
        if name not in ("STORAGE_PROVIDER", "TEMPLATE_BUCKET_NAME", "OCI_NAMESPACE")
    }
    cli = CommandLine(cloud.folder, variables)
    digest = hashlib.sha256(data).hexdigest()
    assert cli.json("storage", "cp", source, where)[0]["sha256"] == digest
    cli.ok("storage", "cp", "--resume", where, "store:copied")
    assert (cli.store / "copied").read_bytes() == data
    assert cli.json("storage", "cp", "--resume", "store:copied", where)[0]["skipped"]
    cli.ok("storage", "cp", where, cli.folder / "out")
    assert (cli.folder / "out").read_bytes() == data
    assert cli.ok("storage", "ls", f"{where.rpartition('/')[0]}/") == "by/address"
    assert cli.json("storage", "rm", where) == {"deleted": 1}


def test_denied(cloud: CommandLine, oci: LocalOciServer) -> None:
    """A bucket that may not be seen: exit code 3 or 5, with the statement that grants it."""
    result = cloud("storage", "check", "--json", "--store", f"oci://{oci.namespace}@missing")
    assert result.code in (3, 5)
    document = json.loads(result.stdout)
    opened = document["steps"][0]
    assert opened["state"] == "failed"
    assert "to read buckets in compartment" in opened["remedy"]
    assert "target.bucket.name='missing'" in opened["remedy"]


def test_statement_of_each_permission(cloud: CommandLine, oci: LocalOciServer) -> None:
    """What is denied is named, step by step; the statements that are printed grant it."""
    statements = [
        f"Allow any-user to read buckets in tenancy where target.bucket.name='{oci.bucket}'",
        "Allow any-user to manage objects in tenancy where any "
        "{request.permission='OBJECT_INSPECT', request.permission='OBJECT_DELETE'}",
    ]
    needed = ["OBJECT_CREATE", "OBJECT_READ", "OBJECT_OVERWRITE"]
    try:
        for permission in [*needed, None]:
            oci.set_policies(
                {"groups": {"everybody": ["*"]}, "statements": statements},
            )
            result = cloud("storage", "check", "--json")
            failed = [
                step
                for step in result.json["steps"]
                if step["needed"] and step["state"] == "failed"
            ]
            if permission is None:
                assert not failed, failed
                assert result.code == 0
                break
            assert result.code == 5, result
            remedy = failed[0]["remedy"]
            assert permission in remedy, result.json
            group = remedy.partition("Allow ")[2].partition(" to ")[0]
            statements.append(
                remedy.replace(group, "group everybody").replace("<compartment>", "here")
            )
    finally:
        oci.set_policies(None)


def test_main_job(cloud: CommandLine, oci: LocalOciServer) -> None:
    """A template is made, checked, read back and removed in the cloud as on a disk."""
    image = cloud.folder / "image"
    image.write_bytes(os.urandom(5_000_000) + bytes(3_000_000))
    where = f"oci://{oci.namespace}@{oci.bucket}/main/job"
    build_id = cloud.ok("--store", where, "import", image, "-t", "debian")
    assert cloud.json("ls", "--store", where)[0]["build_id"] == build_id
    assert cloud.json("verify", "debian", "--store", where)["ok"]
    cloud.ok("export", "debian", cloud.folder / "out", "--store", where)
    assert (cloud.folder / "out").read_bytes() == image.read_bytes()
    assert cloud.ok("storage", "ls", f"{where}/templates/debian/tags/").endswith("tags/latest")
    assert not cloud.store.exists()
    cloud.ok("rm", "debian", "--store", where)
    cloud.ok("gc", "--older-than", "0s", "--store", where)
    assert cloud.ok("storage", "ls", "--store", where) == ""


def test_service_in_trouble(cloud: CommandLine, oci: LocalOciServer) -> None:
    """What fails now and then is repeated; a cut upload leaves nothing behind."""
    source = cloud.folder / "source"
    source.write_bytes(os.urandom(20_000_000))
    where = f"oci://{oci.namespace}@{oci.bucket}/trouble"
    rules = [
        oci.faults.add("status", status=503, probability=0.3, seed=5, operation=operation)
        for operation in ("PutObject", "UploadPart", "GetObject")
    ]
    try:
        cloud.ok("storage", "cp", source, f"{where}/a")
        cloud.ok("storage", "cp", "--resume", f"{where}/a", cloud.folder / "out")
        assert sum(oci.faults.hits(rule) for rule in rules) > 0
    finally:
        oci.faults.clear()
    assert (cloud.folder / "out").read_bytes() == source.read_bytes()
    assert cloud.json("storage", "rm", "-r", where) == {"deleted": 1}
