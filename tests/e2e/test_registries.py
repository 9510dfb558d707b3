"""From a cloud's registry into its storage, and from one cloud's registry to another's."""

from __future__ import annotations

import filecmp
import json
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bootstream.images.platform import Platform
from bootstream.testing.cli import CommandLine
from bootstream.testing.images import LayerBuilder, write_index, write_layout
from bootstream.testing.localoci import LocalOciServer
from bootstream.testing.registry import DockerRegistry, run
from bootstream.testing.servers.ecr import REGION, USER, EcrFront
from bootstream.testing.servers.s3 import Moto

OCI_PAGE = Path(__file__).parents[2] / "docs" / "clouds" / "oci.md"
TOLD = (
    "STORAGE_PROVIDER",
    "TEMPLATE_BUCKET_NAME",
    "ARTIFACTS_REGISTRY_PROVIDER",
    "OCI_CONTAINER_REPOSITORY_NAME",
    "OCI_REGION",
    "OCI_METADATA_BASE_URL",
    "OCI_CLI_FEDERATION_ENDPOINT",
    "OCI_OBJECT_STORAGE_ENDPOINT",
    "OCIR_ENDPOINT",
    "OCI_ARTIFACTS_ENDPOINT",
    "OCI_COMPARTMENT_ID",
)


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalOciServer]:
    with LocalOciServer(tmp_path_factory.mktemp("oci"), registry=True) as server:
        yield server


@pytest.fixture
def host(oci: LocalOciServer, tmp_path: Path) -> Iterator[CommandLine]:
    """An instance that was told where things are, under the policies of the page on OCI."""
    variables = {name: oci.variables[name] for name in TOLD}
    variables |= {"OCI_CLI_AUTH": "instance_principal", "HOME": str(tmp_path / "nobody")}
    allow(oci)
    yield CommandLine(tmp_path, variables)
    oci.set_policies(None)


def allow(oci: LocalOciServer, *, read_only: bool = False) -> None:
    """Put the page's statements into force, for the repository perhaps without writing."""
    statements = [
        line.replace(" DG ", " hosts ")
        .replace("'B'", f"'{oci.bucket}'")
        .replace("'R'", f"'{oci.repository}'")
        .replace("compartment C ", f"compartment id {oci.compartment} ")
        for line in OCI_PAGE.read_text().splitlines()
        if line.startswith("Allow dynamic-group DG ")
    ]
    assert any("'REPOSITORY_UPDATE'" in statement for statement in statements)
    if read_only:
        statements = [text.replace("REPOSITORY_UPDATE", "REPOSITORY_READ") for text in statements]
    statements.append("Allow group users to manage repos in tenancy")
    groups = {"hosts": ["instance"], "users": ["user"]}
    oci.set_policies({"groups": groups, "statements": statements})


def layers(text: bytes) -> list[LayerBuilder]:
    """Two layers, the lower of which every image here shares."""
    below, above = LayerBuilder(), LayerBuilder()
    below.file("usr/lib/common", bytes(range(256)) * 200)
    above.file("etc/message", text)
    return [below, above]


def pushed_by_skopeo(oci: LocalOciServer, folder: Path, *builds: str) -> tuple[str, str]:
    """Push an index of two architectures as a user; return its digest and where builds are."""
    digest = write_index(
        folder / "image",
        {"linux/amd64": layers(b"amd64"), "linux/arm64": layers(b"arm64")},
        tag="x",
        compression="zstd",
    )
    place = f"{oci.registry_host}/{oci.namespace}/{oci.repository}"
    for build in builds:
        push(f"oci:{folder}/image:x", f"docker://{place}:py-{build}", credentials(oci))
    return digest, place


def credentials(oci: LocalOciServer) -> str:
    return f"{oci.registry_user}:{oci.registry_password}"


def test_from_ocir_into_object_storage(oci: LocalOciServer, host: CommandLine) -> None:
    """With an instance principal and the documented statements: built, served, the same bytes.

    The image is pushed by another tool, as a user, and has two architectures: this host's is
    taken. A build that is missing is an error, and nothing is stored.
    """
    image, folder = str(uuid.uuid4()), host.folder
    pushed_by_skopeo(oci, folder, image)
    missing = host("build", "--template", "py", "--build", str(uuid.uuid4()))
    assert missing.code == 3
    assert host.json("ls") == []
    host.ok("build", "--template", "py", "--build", image, "--free", "1M")
    assert host.ok("cat", "py:/etc/message") == Platform.host().architecture
    host.ok("export", "py", folder / "exported")
    serve = host.start("serve", "py", "--socket", str(folder / "s"))
    assert serve.stdout is not None
    uri = serve.stdout.readline().strip()
    try:
        run("nbdcopy", uri, str(folder / "copied"))
    finally:
        serve.send_signal(signal.SIGTERM)
        serve.communicate(timeout=20)
    assert filecmp.cmp(folder / "exported", folder / "copied", shallow=False)
    host.ok("verify", "py")
    host.ok("rm", "py", "--all")
    host.ok("image", "rm", f"py/{image}")


def test_references_to_the_registry(oci: LocalOciServer, host: CommandLine) -> None:
    """By reference the instance signs in too, to read, to write, and to build from a base image."""
    image = str(uuid.uuid4())
    digest, place = pushed_by_skopeo(oci, host.folder, image)
    assert host.ok("image", "cp", f"{place}:py-{image}", f"{place}:base") == digest
    assert host.json("image", "show", f"{place}:base")["digest"] == digest
    host.ok("build", f"{place}:base", "-t", "by-reference", "--free", "1M")
    host.ok("image", "rm", f"py/{image}")


def test_images_that_builds_share(oci: LocalOciServer, host: CommandLine) -> None:
    """One of two builds goes, the other stays whole; who may only read deletes nothing."""
    image, twin, folder = str(uuid.uuid4()), str(uuid.uuid4()), host.folder
    digest, place = pushed_by_skopeo(oci, folder, image, twin)
    host.ok("image", "rm", f"py/{image}")
    assert host("image", "show", f"py/{image}").code == 3
    assert host.ok("image", "pull", f"py/{twin}", "-o", f"oci:{folder}/pulled:x") == digest
    run(
        *("skopeo", "copy", "--all", "--src-tls-verify=false", f"--src-creds={credentials(oci)}"),
        *(f"docker://{place}:py-{twin}", f"oci:{folder}/by-skopeo:x"),
    )
    allow(oci, read_only=True)
    denied = host("image", "rm", f"py/{twin}")
    assert denied.code == 5
    assert "REPOSITORY_UPDATE" in denied.stderr
    allow(oci)
    host.ok("image", "rm", f"py/{twin}")
    assert host.json("image", "ls") == []


def push(source: str, target: str, user: str) -> None:
    run(
        "skopeo", "copy", "--all", "--dest-tls-verify=false", f"--dest-creds={user}", source, target
    )


def test_move_from_aws_to_oci(oci: LocalOciServer, tmp_path: Path) -> None:
    """Every image of ECR is in OCIR afterwards, digest for digest; run again, nothing is sent."""
    with ExitStack() as stack:
        images = stack.enter_context(DockerRegistry(tmp_path / "ecr", htpasswd=USER))
        moto = stack.enter_context(Moto(tmp_path / "moto"))
        front = stack.enter_context(EcrFront(images.host, moto.url))
        stack.callback(front.ecr.close)
        cli = CommandLine(
            tmp_path,
            {
                **{name: oci.variables[name] for name in TOLD},
                "OCI_CLI_AUTH": "instance_principal",
                "OCI_CONTAINER_REPOSITORY_NAME": "moved",
                "AWS_DOCKER_REPOSITORY_NAME": "e2bdev/base",
                "AWS_REGION": REGION,
                "AWS_ENDPOINT_URL_ECR": moto.url,
                "AWS_ECR_ENDPOINT": front.host,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "HOME": str(tmp_path / "nobody"),
            },
        )
        pushed = set()
        for number, template in enumerate(("py", "py", "js")):
            tag = f"{number}"
            digest = write_layout(tmp_path / "images", layers(tag.encode()), tag=tag)
            build = str(uuid.uuid4())
            source, target = f"oci:{tmp_path}/images:{tag}", f"{template}/{build}"
            cli.ok("image", "cp", source, target, "--to", "AWS_ECR")
            pushed.add((template, build, digest))
        one = cli.json("image", "cp", "--all", "--from", "AWS_ECR", "--to", "oci_ocir", "js")
        assert [entry["template_id"] for entry in one] == ["js"]
        moved = cli.json("image", "cp", "--all", "--from", "AWS_ECR")
        assert {(e["template_id"], e["build_id"], e["digest"]) for e in moved} == pushed
        assert all(entry["error"] is None for entry in moved)
        there = cli.json("image", "ls")
        assert {(e["template_id"], e["build_id"], e["digest"]) for e in there} == pushed
        oci.take_requests()
        again = cli.ok("image", "cp", "--all", "--from", "AWS_ECR").splitlines()
        assert len(again) == len(pushed)
        requests = oci.take_requests()
        assert not {"StartUpload", "PutUpload", "PatchUpload", "PutManifest"} & set(requests)
        # One image's own trouble ends nothing but its own copy.
        lost = next(iter(pushed))
        digest = write_layout(tmp_path / "images", layers(b"lost"), tag="lost")
        build = str(uuid.uuid4())
        cli.ok("image", "cp", f"oci:{tmp_path}/images:lost", f"aa/{build}", "--to", "AWS_ECR")
        manifest = (tmp_path / "images" / "blobs" / "sha256" / digest[7:]).read_bytes()
        layer = json.loads(manifest)["layers"][-1]["digest"]
        (data,) = (tmp_path / "ecr").glob(f"**/{layer[7:]}/data")
        data.write_bytes(bytes(data.stat().st_size))
        result = cli("image", "cp", "--all", "--from", "AWS_ECR")
        assert result.code == 7
        assert f"aa/{build}: " in result.stderr
        assert f"{lost[0]}/{lost[1]}" in result.stdout


def test_demo_on_a_local_oci(tmp_path: Path) -> None:
    """The documented command: every step shown, nothing left, no process either."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    said = CommandLine(tmp_path, {"TMPDIR": str(temporary)}).ok("demo", "--oci")
    for step in ("local-oci", "image push", "build", "serve", "verify", "image rm", "image pull"):
        assert f"\n$ bootstream {step} " in said
    assert "registry and bucket are empty" in said
    assert "OCI_CLI_AUTH=instance_principal" in said
    assert list(temporary.iterdir()) == []


def test_demo_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the local OCI, its registry, and the command in hand; the folder goes."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with CommandLine(tmp_path, {"TMPDIR": str(temporary)}).start("demo", "--oci") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("$ bootstream image push"):
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=25)
    assert process.returncode == 130
    assert list(temporary.iterdir()) == []
