"""What the tests of virtual machines boot: Debian's kernel, and a guest with Python.

The kernel is a package that is downloaded and unpacked, not installed; the guest's image is
made like that of ``debian.py``. Both are made once and kept.
"""

from __future__ import annotations

import fcntl
import importlib.util
import io
import marshal
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from bootstream.testing.debian import debian_layout

_META_PACKAGE = "linux-image-cloud-amd64"
GUEST_PACKAGES = "python3,mount,e2fsprogs"


def kernel_folder(folder: Path) -> Path:
    """Return a folder that Debian's cloud kernel is unpacked in, below ``folder``.

    It has ``boot/vmlinuz-*`` and ``lib/modules/*``. Several processes may ask at once.
    """
    with _locked(folder):
        kernel = folder / "linux-image"
        if not kernel.exists():
            download = folder / "kernel-download"
            shutil.rmtree(download, ignore_errors=True)
            download.mkdir()
            _download(download)
            (package,) = download.glob("linux-image-*.deb")
            making = download / "unpacked"
            _run("dpkg-deb", "-x", str(package), str(making))
            making.rename(kernel)
            shutil.rmtree(download)
        return kernel


def guest_layout(folder: Path) -> Path:
    """Return an OCI layout with tag ``bookworm``: Debian with Python, mount and e2fsprogs."""
    return debian_layout(folder / "guest", include=GUEST_PACKAGES)


def site_archive() -> bytes:
    """Return this package and what its command line imports, as a zip for ``PYTHONPATH``.

    Compiled code lies beside each source, so that an emulated processor need not compile it;
    another version of Python takes the source.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("bootstream", "click", "platformdirs"):
            file = import_module(name).__file__
            assert file is not None
            top = Path(file).parent
            for path in sorted(top.rglob("*.py")):
                inside = str(Path(name) / path.relative_to(top))
                archive.write(path, inside)
                archive.writestr(f"{inside}c", _compiled(path, inside))
    return buffer.getvalue()


def _compiled(path: Path, name: str) -> bytes:
    """Return a ``.pyc`` that is not compared with its source (PEP 552)."""
    code = compile(path.read_bytes(), name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + struct.pack("<I8x", 1) + marshal.dumps(code)


def _download(target: Path) -> None:
    """Download the newest kernel's package; with lists of our own where the host has none."""
    try:
        _download_with(target, ())
    except RuntimeError:
        state = target / "apt"
        for name in ("lists/partial", "archives/partial"):
            (state / name).mkdir(parents=True)
        options = (f"-oDir::State::Lists={state}/lists", f"-oDir::Cache={state}")
        _run("apt-get", *options, "update", "-qq")
        _download_with(target, options)


def _download_with(target: Path, options: tuple[str, ...]) -> None:
    lines = _run("apt-cache", *options, "depends", _META_PACKAGE).splitlines()
    packages = [line.split()[-1] for line in lines if "Depends: linux-image-" in line]
    if not packages:
        raise RuntimeError(f"no package {_META_PACKAGE} is known")
    _run("apt-get", *options, "-qq", "download", packages[0], folder=target)


def _run(*command: str, folder: Path | None = None) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kernel-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    images = Path(sys.argv[1])
    sys.stdout.write(f"{kernel_folder(images)}\n{guest_layout(images)}\n")
