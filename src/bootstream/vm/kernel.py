"""Kernels: where they are, and which version they say they are.

Sources: Linux, ``Documentation/arch/x86/boot.rst`` ("The Real-Mode Kernel Header") for a
bzImage. An uncompressed kernel says ``Linux version …`` somewhere in its data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from bootstream.errors import InvalidInput, NotFound, PermissionDenied
from bootstream.vm.modules import Modules

_HEADER = 0x202
_VERSION = 0x20E
_RELEASE = re.compile(rb"[\w.+~-]{1,64}")  # a name for a folder, and no path
_BANNER = re.compile(rb"Linux version ([\w.+~-]{1,64}) ")
_MAX_KERNEL = 1 << 28
_ELF = b"\x7fELF"


class Files(Protocol):
    """A tree that kernels are read from: this host's, or a template's."""

    def read(self, path: str) -> bytes:
        """Return a file's content. Raises NotFound where no file is."""

    def names(self, path: str) -> list[str]:
        """Return the names in a folder. Raises NotFound where no folder is."""


@dataclass(frozen=True, slots=True)
class HostFiles:
    """A folder of this host as a tree."""

    root: Path

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        try:
            return (self.root / path.lstrip("/")).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound("there is no such file", operation="read", object=path) from error
        except PermissionError as error:
            raise PermissionDenied(
                error.strerror or "not allowed", operation="read", object=path
            ) from error

    def names(self, path: str) -> list[str]:
        """Return the names in a folder."""
        try:
            return [entry.name for entry in (self.root / path.lstrip("/")).iterdir()]
        except OSError as error:
            raise NotFound("there is no such folder", operation="list", object=path) from error


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and its modules.

    Attributes:
        image: bzImage, or an uncompressed ELF with a PVH entry.
        version: what ``uname -r`` says in it; empty where the image does not tell.
        modules: its modules; everything is taken for built in where there are none.
        source: where it was found, for people.
    """

    image: bytes
    version: str
    modules: Modules
    source: str


def kernel_version(image: bytes, *, name: str) -> str:
    """Return the version of a kernel image, empty where it does not tell.

    Raises:
        InvalidInput: it is no kernel that can be booted here.
    """
    if image[_HEADER : _HEADER + 4] == b"HdrS":
        offset = int.from_bytes(image[_VERSION : _VERSION + 2], "little")
        match = _RELEASE.match(image, offset + 0x200) if offset else None
        return match[0].decode() if match else ""
    if image.startswith(_ELF):
        match = _BANNER.search(image)
        return match[1].decode() if match else ""
    raise InvalidInput(
        "it is neither a bzImage (vmlinuz) nor an ELF (vmlinux) for x86-64",
        operation="boot kernel",
        object=name,
    )


def load_kernel(path: Path) -> Kernel:
    """Return a kernel of this host, with its modules.

    They are looked for in ``lib/modules/VERSION`` beside the kernel (as in a package that
    was unpacked: ``x/boot/vmlinuz``, ``x/lib/modules``), beside its folder, and on this host.

    Raises:
        NotFound, PermissionDenied: it cannot be read.
        InvalidInput: it is no kernel.
    """
    path = path.absolute()
    image = _bounded(HostFiles(Path("/")).read(str(path)), str(path))
    version = kernel_version(image, name=str(path))
    roots = [path.parent, path.parent.parent, Path("/")]
    trees = [HostFiles(root) for root in roots]
    return Kernel(image, version, _modules(trees, version), str(path))


def find_kernel(trees: dict[str, Files]) -> Kernel:
    """Return the newest kernel in ``/boot`` of the first tree that has one.

    Args:
        trees: by what people call them; its modules are those of the same tree.

    Raises:
        NotFound: none has one.
        InvalidInput: what is there is no kernel.
    """
    for label, tree in trees.items():
        try:
            names = [name for name in tree.names("/boot") if name.startswith("vmlinuz-")]
        except NotFound:
            continue
        for name in sorted(names, key=_by_version, reverse=True):
            path = str(PurePosixPath("/boot") / name)
            try:
                image = _bounded(tree.read(path), path)
            except NotFound:  # a link that leads nowhere
                continue
            version = kernel_version(image, name=f"{label}:{path}")
            return Kernel(image, version, _modules([tree], version), f"{label}:{path}")
    raise NotFound(
        f"there is no /boot/vmlinuz-* in {' nor on '.join(trees)}",
        operation="find",
        object="a kernel",
        remedy="name one with --kernel: a vmlinuz, or the folder that a kernel's package was "
        "unpacked into with 'dpkg-deb -x'",
    )


def kernel_in(folder: Path) -> Kernel:
    """Return the newest kernel below a folder that a kernel's package was unpacked into."""
    return find_kernel({str(folder): HostFiles(folder)})


def _modules(trees: list[HostFiles] | list[Files], version: str) -> Modules:
    for tree in trees:
        for top in (f"/lib/modules/{version}", f"/usr/lib/modules/{version}"):
            try:
                if version and "kernel" in tree.names(top):
                    return Modules(tree, top)
            except NotFound:
                continue
    return Modules(None, "")


def _by_version(name: str) -> list[tuple[int, str]]:
    """Sort ``6.10`` after ``6.9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"[.-]", name)]


def _bounded(image: bytes, name: str) -> bytes:
    if len(image) > _MAX_KERNEL:
        raise InvalidInput("it is too large for a kernel", operation="boot kernel", object=name)
    return image
