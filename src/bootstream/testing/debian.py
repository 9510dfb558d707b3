"""A real Debian root file system as an image of four layers, for tests and benchmarks.

The first layer is what ``mmdebstrap`` makes. The others do to it what image builds
do: whiteouts, an opaque directory, a file that becomes a directory and the other
way round, hard links into the layer below, devices, file capabilities, sparse
files, odd names. ``umoci`` puts them together, so nothing of ours has a part in it.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

EPOCH = 1_700_000_000
_CAP_NET_BIND = bytes.fromhex("0100000200040000000000000000000000000000")
"""``security.capability`` version 2: cap_net_bind_service, permitted and effective."""


def debian_layout(folder: Path, *, include: str = "perl-base,ca-certificates") -> Path:
    """Return an OCI layout with tag ``bookworm`` below ``folder``, made once and kept.

    Args:
        folder: where it is kept; several processes may ask at once.
        include: further packages, comma-separated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = folder / "layout"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layout.exists():
            base = folder / "base.tar"
            _mmdebstrap(base, include)
            making = folder / "making"
            shutil.rmtree(making, ignore_errors=True)
            assemble(making, [base, *write_layers(folder)])
            making.rename(layout)
    return layout


def _mmdebstrap(target: Path, include: str) -> None:
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    _run(
        "mmdebstrap --quiet --variant=essential",
        f"--include={include}",
        "bookworm",
        str(target),
        environment=environment,
    )


def assemble(layout: Path, layers: list[Path]) -> None:
    """Make an OCI layout with tag ``bookworm`` of layer tars, bottom first, with umoci."""
    image = f"{layout}:bookworm"
    _run("umoci init --layout", str(layout))
    _run("umoci new --image", image)
    for layer in layers:
        _run("umoci raw add-layer --image", image, str(layer))
    settings = "--os linux --architecture amd64 --config.cmd /bin/bash"
    _run(f"umoci config {settings} --image", image)


def _run(words: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    command = [*words.split(), *arguments]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")


def write_layers(folder: Path) -> list[Path]:
    """Write the upper layers as tars into ``folder``; return their paths, bottom first."""
    return [_second_layer(folder / "2.tar"), _third_layer(folder / "3.tar"), top_layer(folder)]


class _Tar:
    """A few lines over tarfile: everything has fixed times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed below

    def add(
        self, name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object
    ) -> None:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.mtime = EPOCH
        member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        member.size = len(data)
        for key, value in fields.items():
            setattr(member, key, value)
        self._tar.addfile(member, io.BytesIO(data) if data else None)

    def close(self) -> Path:
        self._tar.close()
        return self.path


def _second_layer(path: Path) -> Path:
    tar = _Tar(path)
    tar.add("app", tarfile.DIRTYPE, mode=0o2775, uid=1000, gid=100_000)
    tar.add("app/server", data=b"#!/bin/sh\necho served\n", mode=0o755)
    tar.add(
        "app/capable",
        data=b"\x7fELF not really\n" * 4000,
        mode=0o755,
        pax_headers={
            "SCHILY.xattr.security.capability": _CAP_NET_BIND.decode("utf-8", "surrogateescape"),
            "SCHILY.xattr.user.note": "kept",
        },
    )
    tar.add("app/capable-link", tarfile.LNKTYPE, linkname="app/capable")
    tar.add("app/setuid", data=b"x" * 70_000, mode=0o4755)
    tar.add("app/sticky", tarfile.DIRTYPE, mode=0o1777)
    tar.add("app/null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    tar.add("app/wide", tarfile.BLKTYPE, devmajor=259, devminor=70_000, mode=0o660)
    tar.add("app/pipe", tarfile.FIFOTYPE, mode=0o600)
    tar.add("app/" + "n" * 251, data=b"long name\n")
    tar.add("app/ünïcode", data="ü\n".encode())
    tar.add("app/long-link", tarfile.SYMTYPE, linkname="x/" * 200 + "y")
    tar.add("app/short-link", tarfile.SYMTYPE, linkname="/etc/passwd")
    tar.add("app/becomes-dir", data=b"a file for now\n")
    tar.add("app/becomes-file", tarfile.DIRTYPE)
    tar.add("app/becomes-file/inner", data=b"gone later\n")
    tar.add("app/hidden", tarfile.DIRTYPE)
    tar.add("app/hidden/lower", data=b"gone later\n")
    tar.add("app/deep", data=b"shared\n" * 1000)
    return tar.close()


def _third_layer(path: Path) -> Path:
    tar = _Tar(path)
    tar.add("usr/share/doc/.wh..wh..opq")
    tar.add("usr/share/doc", tarfile.DIRTYPE)
    tar.add("usr/share/doc/only", data=b"what is left\n")
    tar.add("etc/.wh.motd")
    tar.add("app/.wh.becomes-file")
    tar.add("app/becomes-dir", tarfile.DIRTYPE, mode=0o700)
    tar.add("app/becomes-dir/inside", data=b"now a directory\n")
    tar.add("app/hidden", tarfile.DIRTYPE)
    tar.add("app/hidden/upper", data=b"stays\n")
    tar.add("app/hidden/.wh..wh..opq")
    tar.add("app/deep-again", tarfile.LNKTYPE, linkname="app/deep")
    tar.add("app/half-hole", data=b"\0" * 300_000 + b"end\n")
    return tar.close()


def top_layer(folder: Path, *, message: bytes = b"version 1\n") -> Path:
    """Write the top layer, the one that a rebuild changes, into ``folder``."""
    tar = _Tar(folder / "4.tar")
    tar.add("app/becomes-file", data=b"a file at last\n", uid=7, gid=8)
    tar.add("srv/data", data=bytes(range(256)) * 4096, mode=0o640)
    tar.add("srv/message", data=message)
    tar.add("srv/tail", data=b"tail\n" * 50_000)
    return tar.close()


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{debian_layout(Path(sys.argv[1]))}\n")
