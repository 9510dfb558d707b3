"""A small but real container image for the demo, made of files that every host has.

An OCI image layout of three layers: Python's own library with links and a setuid
file; an application with a file capability, a hard link into the layer below, a
whiteout and an opaque directory; and one small layer that a rebuild changes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import bootstream

EPOCH = 1_700_000_000
TAG = "demo"
_LIBRARY_BYTES = 12 << 20
_CAP_NET_BIND_SERVICE = bytes.fromhex("0100000200040000000000000000000000000000")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class _Layer:
    """A layer tar in memory: it holds some MiB at most, and its times are fixed."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - finish()
        self._folders: set[str] = set()

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder and those above it, once."""
        if not name or name in self._folders:
            return
        self.folder(name.rpartition("/")[0])
        self._folders.add(name)
        self._add(name, tarfile.DIRTYPE, mode)

    def file(
        self,
        name: str,
        data: bytes,
        mode: int = 0o644,
        *,
        owner: int = 0,
        xattrs: dict[str, bytes] | None = None,
    ) -> None:
        """Add a regular file."""
        self.folder(name.rpartition("/")[0])
        headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in (xattrs or {}).items()
        }
        self._add(name, tarfile.REGTYPE, mode, data, owner=owner, headers=headers)

    def link(self, name: str, target: str, *, hard: bool = False) -> None:
        """Add a symbolic or a hard link."""
        self.folder(name.rpartition("/")[0])
        self._add(name, tarfile.LNKTYPE if hard else tarfile.SYMTYPE, 0o777, link=target)

    def _add(
        self,
        name: str,
        kind: bytes,
        mode: int,
        data: bytes = b"",
        *,
        owner: int = 0,
        link: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.size, member.linkname = kind, mode, len(data), link
        member.uid = member.gid = owner
        member.mtime = EPOCH
        member.pax_headers = headers or {}
        self._tar.addfile(member, io.BytesIO(data))

    def finish(self) -> bytes:
        """Return the tar."""
        self._tar.close()
        return self._buffer.getvalue()


def write_layout(folder: Path, *, message: str) -> None:
    """Write the image as an OCI layout into ``folder``; ``message`` is what its top layer says."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    layers = [_library(), _application(), _top(message)]
    compressed = [gzip.compress(layer, 5, mtime=0) for layer in layers]
    config = _json(
        {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Cmd": ["/usr/bin/app"], "Env": ["PATH=/usr/bin"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
            },
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob(folder, config, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                _blob(folder, data, "application/vnd.oci.image.layer.v1.tar+gzip")
                for data in compressed
            ],
        }
    )
    entry = _blob(folder, manifest, "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _blob(folder: Path, data: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (folder / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _library() -> bytes:
    layer = _Layer()
    layer.folder("tmp", 0o1777)
    layer.file("etc/os-release", b'NAME="Demo"\nID=demo\nPRETTY_NAME="bootstream demo image"\n')
    layer.file("etc/motd", b"deleted by a later layer\n")
    for name, data in _modules():
        layer.file(f"usr/lib/python3/{name}", data)
    layer.link("lib", "usr/lib")
    layer.file("usr/bin/su", b"\x7fELF not really\n" * 500, 0o4755)
    layer.file("var/cache/old/one", b"hidden by an opaque directory\n")
    return layer.finish()


def _modules() -> Iterator[tuple[str, bytes]]:
    """Modules of the standard library, in order, some MiB of them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    room = _LIBRARY_BYTES
    sources = [*library.glob("*.py"), *library.glob("*/*.py")]
    for path in sorted(sources):
        name = path.relative_to(library).as_posix()
        if name.startswith(("test/", "site-packages/", "dist-packages/")) or not path.is_file():
            continue
        data = path.read_bytes()
        room -= len(data)
        if room < 0:
            return
        yield name, data


def _application() -> bytes:
    layer = _Layer()
    package = Path(bootstream.__file__).parent
    for path in sorted(package.rglob("*.py")):
        layer.file(f"usr/lib/app/{path.relative_to(package).as_posix()}", path.read_bytes())
    capability = {"security.capability": _CAP_NET_BIND_SERVICE, "user.origin": b"demo"}
    layer.file("usr/bin/app", b"#!/usr/bin/python3\n" * 4000, 0o755, xattrs=capability)
    layer.link("etc/app-release", "etc/os-release", hard=True)
    layer.file("home/app/notes", b"owned by an ordinary user\n", 0o600, owner=1000)
    layer.file("srv/data", bytes(range(256)) * 8192)
    layer.file("etc/.wh.motd", b"")
    layer.folder("var/cache/old")
    layer.file("var/cache/old/.wh..wh..opq", b"")
    layer.file("var/cache/old/two", b"all that is left here\n")
    return layer.finish()


def _top(message: str) -> bytes:
    layer = _Layer()
    layer.file("etc/message", f"{message}\n".encode())
    return layer.finish()
