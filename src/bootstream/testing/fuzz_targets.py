"""What is fuzzed: every parser of bytes from outside, with valid samples to start from."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from bootstream.testing.fuzz import Target
from bootstream.testing.fuzz_devices import DEVICE_TARGETS
from bootstream.testing.images import (
    CAP_NET_BIND_SERVICE,
    LayerBuilder,
    docker_archive,
    write_index,
    write_layout,
)
from bootstream.testing.images import oci_archive as write_oci_archive

# Layers are imported where they are fuzzed: one that is broken breaks its own target alone.
# ruff: noqa: PLC0415

_BUILD = "8c5a9d9e-58f3-4e2b-9b54-0a3d2f6e1c11"
_PIECE = 1 << 16
_MOST = 1 << 20
"""How much of an output that may be endless is looked at."""


# -- chunks and templates ----------------------------------------------------------------------


@cache
def _index_samples() -> Sequence[bytes]:
    from bootstream.chunks.index import Index
    from bootstream.chunks.writer import write_artifact
    from bootstream.storage.memory import MemoryStorageProvider

    samples = []
    storage = MemoryStorageProvider()
    content = b"".join(bytes([n]) * 4096 for n in (0, 1, 2, 0, 0, 1, 3)) + b"tail"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        parent = None
        for number, form in ((1, "chunked"), (2, "chunked"), (3, "raw")):
            path.write_bytes(content + b"more" * 3000 * number)
            build_id = f"{number:08x}-0000-4000-8000-000000000000"
            written: Any = write_artifact
            written(
                path,
                build_id=build_id,
                artifact="rootfs.ext4",
                storage=storage,
                parent=parent if form == "chunked" else None,
                chunk_size=4096,
                threads=1,
                form=form,
            )
            buffer = io.BytesIO()
            storage.open_object(f"{build_id}/rootfs.ext4.index").write_to(buffer)
            samples.append(buffer.getvalue())
            parent = Index.parse(samples[-1], name="sample")
    return samples


def _run_index(data: bytes) -> None:
    from bootstream.chunks.index import Index
    from bootstream.chunks.report import summarise

    index = Index.parse(data, name="fuzzed")
    chunk = 0
    for _ in range(200):
        if chunk >= index.chunk_count:
            break
        index.lookup(chunk)
        index.chunk_length(chunk)
        length, zero = index.run(chunk, index.chunk_count - chunk)
        if length < 1 or zero != index.is_zero(chunk):
            raise AssertionError("a run that is none")
        chunk += length
    if index.chunk_count <= 1 << 20:
        if len(index.kinds()) != index.chunk_count:
            raise AssertionError("kinds of another image")
        summarise(index, _BUILD)


def _seal_index(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


@cache
def _manifest_samples() -> Sequence[bytes]:
    from bootstream.templates.manifest import Artifact, Manifest, taken_over

    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    parent = "00000000-0000-4000-8000-000000000001"
    manifest = Manifest(
        build_id=_BUILD,
        template_id="py311",
        state="published",
        created=when,
        parent=parent,
        depends_on=(parent,),
        artifacts={
            "rootfs.ext4": Artifact("chunked", 1 << 30, 65536, 4096, "a" * 64, 123456),
            "snapfile": Artifact("raw", 5, 4096, 300, "b" * 64, 5, sha256="c" * 64),
        },
        image={"reference": "debian:12", "env": ["PATH=/bin"]},
        options={"label": "root", "size": None},
        tool="bootstream 0",
    )
    others = (manifest.as_deleted(when), taken_over(_BUILD, when))
    return [manifest.to_json(), *(other.to_json() for other in others)]


def _run_manifest(data: bytes) -> None:
    from bootstream.templates.manifest import Manifest

    manifest = Manifest.from_json(data, build_id=_BUILD)
    again = Manifest.from_json(manifest.to_json(), build_id=_BUILD)
    if again.to_json() != manifest.to_json():
        raise AssertionError("what was read is not what is written")


# -- images ------------------------------------------------------------------------------------


@cache
def _layout_files() -> Sequence[bytes]:
    """Every JSON document of a layout with one image and one of two platforms."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = {"Env": ["A=b"], "Cmd": ["sh"], "Labels": {"x": "y"}, "User": "1:2"}
        write_layout(folder, [_layer()], tag="one", compression="zstd", config=config)
        write_index(folder, {"linux/amd64": [_layer()], "linux/arm64/v8": [b""]}, tag="two")
        write_layout(folder, [_layer()], tag="docker", flavour="docker")
        files = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [data for data in files if data.startswith(b"{")]


def _run_image_document(data: bytes) -> None:
    from bootstream.errors import BootstreamError
    from bootstream.images.manifest import parse_config, parse_document

    refused: BootstreamError | None = None
    for media_type in (None, "application/vnd.oci.image.index.v1+json"):
        try:
            parse_document(data, media_type=media_type, what="fuzzed")
        except BootstreamError as error:
            refused = error
    try:
        parse_config(data, what="fuzzed")
    except BootstreamError as error:
        refused = refused or error
    if refused is not None and data not in _layout_files():
        raise refused


def _run_credentials(data: bytes) -> None:
    from bootstream.images.credentials import CredentialFile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "config.json"
        path.write_bytes(data)
        file = CredentialFile(path)
        for registry in ("registry.example:5000", "docker.io"):
            found = file.find(registry, "a/b")
            if found is not None:
                found.basic()


# Without helpers: those are programs, and fuzzing starts none.
_CREDENTIALS = (
    b'{"auths": {"registry.example:5000": {"auth": "dXNlcjpwYXNz"}, '
    b'"https://index.docker.io/v1/": {"username": "u", "password": "p"}, '
    b'"registry.example:5000/a": {"identitytoken": "t"}}}',
)


@cache
def _archives() -> Sequence[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layers = [_layer(), LayerBuilder().file("top", b"x")]
        write_layout(folder / "layout", layers, tag="t")
        write_oci_archive(folder / "oci.tar", folder / "layout")
        docker_archive(folder / "docker.tar", layers, "demo:t")
        return [(folder / f"{kind}.tar").read_bytes() for kind in ("oci", "docker")]


def _run_archive(data: bytes) -> None:
    from bootstream.errors import BootstreamError
    from bootstream.images import BlobCache, resolve

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.tar").write_bytes(data)
        cache_ = BlobCache(folder / "cache")
        errors = []
        for reference in (f"oci-archive:{folder}/a.tar:t", f"docker-archive:{folder}/a.tar"):
            try:
                image = resolve(reference, cache=cache_)
                for layer in image.layers:
                    with layer.open() as stream:
                        _drain(stream.read)
            except BootstreamError as error:
                errors.append(error)
        if len(errors) == 2:
            raise errors[0]


def _drain(read: Callable[[int], bytes]) -> None:
    total = 0
    while total < 16 * _MOST and (piece := read(_PIECE)):
        total += len(piece)


@cache
def _blobs() -> Sequence[bytes]:
    layer = _layer().finish()
    return [
        gzip.compress(layer, 5, mtime=0),
        gzip.compress(layer[:2000], mtime=0) + gzip.compress(layer[2000:], mtime=0),
        zstandard.ZstdCompressor(write_checksum=True).compress(layer),
        layer,
    ]


def _run_blob(data: bytes) -> None:
    from bootstream.images.compression import decompress

    total = 0
    for piece in decompress(io.BytesIO(data).read, name="fuzzed"):
        total += len(piece)
        if len(piece) > 16 * _MOST:
            raise AssertionError("a piece without bounds")
        if total > 64 * _MOST:
            break


def _run_text(data: bytes) -> None:
    """Parse text in every way in which the command line takes some."""
    from bootstream.chunks.names import validate_artifact, validate_build_id
    from bootstream.config import parse_duration, parse_size
    from bootstream.errors import BootstreamError
    from bootstream.images.platform import Platform
    from bootstream.images.reference import parse_reference
    from bootstream.nbd.uri import parse_uri
    from bootstream.templates.names import TemplateName

    text = data.decode("utf-8", "surrogateescape")
    parsers: list[Callable[[str], object]] = [
        parse_reference,
        parse_uri,
        TemplateName.parse,
        Platform.parse,
        parse_size,
        parse_duration,
        validate_artifact,
        validate_build_id,
    ]
    refused = []
    for parse in parsers:
        try:
            parse(text)
        except BootstreamError as error:
            refused.append(error)
    if len(refused) == len(parsers):
        raise refused[0]


def _run_challenge(data: bytes) -> None:
    from bootstream.images.challenge import parse_challenges

    text = data.decode("latin-1")
    parse_challenges([text, text])


_CHALLENGES = (
    b'Bearer realm="https://a.example/token",service="s",scope="r:x:pull,push", Basic realm=b',
    b'Basic realm="a \\"quoted\\" one", Negotiate YWJj==',
)

_TEXTS = (
    b"debian:12", b"registry.example:5000/a/b:t@sha256:" + b"a" * 64, b"oci:/images/x:tag",
    b"oci-archive:/x.tar", b"docker-archive:/x.tar:debian:12", b"nbd+unix:///name?socket=/s",
    b"nbd://127.0.0.1:10809/name", b"linux/arm64/v8", b"1.5GiB", b"90s", b"py311:latest",
    _BUILD.encode(), b"rootfs.ext4",
)  # fmt: skip


# -- file systems ------------------------------------------------------------------------------


@cache
def _layer() -> LayerBuilder:
    return _make_layer()


def _make_layer() -> LayerBuilder:
    layer = LayerBuilder(parents=True)
    layer.file("etc/passwd", b"root:x:0:0\n" * 40, uid=0, gid=0)
    xattrs = {"security.capability": CAP_NET_BIND_SERVICE, "user.note": b"kept"}
    layer.file("bin/app", b"\x7fELF" * 400, 0o4755, uid=70_000, xattrs=xattrs)
    layer.file("n" * 200, b"long name", mtime=1.25, uid=5_000_000)
    layer.link("lib", "usr/lib").link("etc/again", "etc/passwd", hard=True)
    layer.link("far", "x/" * 80).device("dev/null", 1, 3).fifo("pipe")
    layer.whiteout("etc/gone").opaque("var/cache")
    for form in ("1.0", "0.1", "0.0", "gnu"):
        pieces = [(4096 * n, b"%d" % n * 512) for n in range(6)]
        fields: Any = {"form": form}
        layer.sparse(f"sparse-{form}", 1 << 16, pieces, **fields)
    layer.raw(layer_header("old", b"old"), b"old")
    return layer


def layer_header(name: str, data: bytes) -> bytes:
    """Return a header of the time before ustar."""
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = len(data)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[257:512] = bytes(255)
    return _seal_tar(bytes(block))


def _seal_tar(data: bytes) -> bytes:
    """Make the checksums of all blocks right that look like headers."""
    sealed = bytearray(data)
    for at in range(0, len(sealed) - 511, 512):
        block = sealed[at : at + 512]
        if block[257:262] == b"ustar" or (at == 0 and not any(block[257:])):
            block[148:156] = b" " * 8
            sealed[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(sealed)


def _run_tar(data: bytes) -> None:
    from bootstream.rootfs.source import Source
    from bootstream.rootfs.tar import TarReader

    with Source(lambda: io.BytesIO(data), lambda _size: None) as source:
        reader = TarReader(source, "fuzzed")
        total = 0
        for _ in range(10_000):
            if reader.next() is None:
                return
            while total < 16 * _MOST and (piece := reader.read(_PIECE)):
                total += len(piece)


def _run_build(data: bytes) -> None:
    from bootstream.progress import NO_PROGRESS
    from bootstream.rootfs import Ext4Options, build_ext4

    build: Any = build_ext4
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image"
        build(
            [lambda: io.BytesIO(_make_layer().finish()), lambda: io.BytesIO(data)],
            path,
            Ext4Options(),
            NO_PROGRESS,
            seed="fuzz",
        )
        subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)


_EXT4_FORMS = (
    "-b 1024 -O ^has_journal",
    "-b 1024 -O ^has_journal,^extent,^64bit",
    "-b 1024 -O ^has_journal,inline_data,ea_inode",
    "-b 4096 -O ^has_journal -I 256",
)


@cache
def _ext4_samples() -> Sequence[bytes]:
    return [_ext4_sample(form) for form in _EXT4_FORMS]


def _ext4_sample(form: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "tree"
        (tree / "a" / "b" / "c").mkdir(parents=True)
        for number in range(40):
            (tree / "a" / f"file {number}").write_bytes(b"%d" % number * number)
        (tree / "link").symlink_to("a/b")
        (tree / "far").symlink_to("x/" * 100)
        with (tree / "holes").open("wb") as file:
            for number in range(60):
                file.seek(number * 8192)
                file.write(b"data" * 250)
        image = folder / "image"
        command = ["mkfs.ext4", "-q", "-F", *form.split(), "-N", "80", "-d", str(tree)]
        subprocess.run([*command, str(image), "1M"], check=True, capture_output=True)
        (folder / "v").write_bytes(bytes(range(256)))
        script = f"ea_set link user.a b\nea_set holes -f {folder}/v user.large\nmknod dev c 5 1\n"
        subprocess.run(
            ["debugfs", "-w", "-f", "-", image],
            input=script.encode(), check=True, capture_output=True,
        )  # fmt: skip
        return image.read_bytes()


def _run_ext4(data: bytes) -> None:
    import stat

    from bootstream.errors import BootstreamError
    from bootstream.rootfs.ext4 import Ext4FileSystem

    def read_at(buffer: memoryview, offset: int) -> None:
        if not 0 <= offset <= offset + len(buffer) <= len(data):
            raise AssertionError("a read outside the image")
        buffer[:] = data[offset : offset + len(buffer)]

    system = Ext4FileSystem(read_at, len(data))
    refused: list[BootstreamError] = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except BootstreamError as error:
            refused.append(error)

    def read(path: bytes) -> None:
        with system.open(path) as file:
            total = 0
            while total < 4 * _MOST and (piece := file.read(_PIECE)):
                total += len(piece)
            file.seek(-min(100, file.size), io.SEEK_END)
            file.read()

    def look(path: bytes) -> None:
        mode = system.stat(path, follow=False).mode
        attempt(lambda: system.xattrs(path, follow=False))
        if stat.S_ISLNK(mode):
            system.readlink(path)
            system.stat(path)
        elif stat.S_ISDIR(mode):
            system.listdir(path)
        elif stat.S_ISREG(mode):
            read(path)

    def walk() -> None:
        for number, path in enumerate(system.walk()):
            attempt(lambda path=path: look(path))  # type: ignore[misc]  # the loop's own value
            if number > 5000:
                return

    attempt(walk)
    for path in (b"/", b"/a/file 7", b"/link/c", b"/far", b"/holes", b"/dev"):
        attempt(lambda path=path: look(path))  # type: ignore[misc]  # as above
    if refused and data not in _ext4_samples():
        raise refused[0]


def _seal_json(data: bytes) -> bytes:
    """Make it JSON again where a mutation broke it; what is beyond repair stays."""
    try:
        return json.dumps(json.loads(data, strict=False)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return data


TARGETS: dict[str, Target] = {
    "index": Target(_index_samples, _run_index, seal=_seal_index),
    "manifest": Target(_manifest_samples, _run_manifest, seal=_seal_json, document=True),
    "image": Target(_layout_files, _run_image_document, seal=_seal_json, document=True),
    "archive": Target(_archives, _run_archive, seal=_seal_tar),
    "blob": Target(_blobs, _run_blob),
    "text": Target(lambda: _TEXTS, _run_text),
    "credentials": Target(lambda: _CREDENTIALS, _run_credentials, document=True),
    "challenge": Target(lambda: _CHALLENGES, _run_challenge),
    "tar": Target(lambda: [_make_layer().finish()], _run_tar, seal=_seal_tar),
    "build": Target(lambda: [_make_layer().finish()], _run_build, seal=_seal_tar),
    "ext4": Target(_ext4_samples, _run_ext4),
    **DEVICE_TARGETS,
}
