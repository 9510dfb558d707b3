"""The initial RAM disk: a static busybox, modules, scripts, and files for the guest."""

from __future__ import annotations

import shutil
import stat
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from bootstream.errors import InvalidInput, NotFound
from bootstream.vm import cpio, guest
from bootstream.vm.modules import Module

_PT_INTERP = 3
_REMEDY = "install a static busybox (Debian: busybox-static), or name one with --busybox"


def find_busybox(path: Path | None = None) -> bytes:
    """Return a statically linked busybox of this host.

    Raises:
        NotFound: there is none.
        InvalidInput: it needs libraries, which the initrd does not have.
    """
    candidates = [str(path)] if path else ["busybox", "/usr/lib/busybox/busybox-static"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is None:
            continue
        data = Path(found).read_bytes()
        if _is_static(data):
            return data
        raise InvalidInput(
            "it is not linked statically", operation="boot with", object=found, remedy=_REMEDY
        )
    raise NotFound(
        "it is not there", operation="boot with", object=str(path or "busybox"), remedy=_REMEDY
    )


def build_initrd(
    *,
    busybox: bytes,
    modules: Sequence[Module],
    settings: bytes,
    command: str | None,
    files: Mapping[str, bytes],
) -> bytes:
    """Return the archive.

    Args:
        busybox: static.
        modules: loaded in this order.
        settings: see :func:`bootstream.vm.guest.settings`.
        command: what the guest's shell runs, before the machine is switched off.
        files: by name, for ``/run/bootstream`` in the guest.

    Raises:
        InvalidInput: the name of a file is none.
    """
    entries = [
        *(cpio.folder(name) for name in ("bin", "dev", "etc", "modules", "payload")),
        cpio.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.file("init", guest.INIT.encode(), 0o755),
        cpio.file("etc/boot", settings),
        cpio.file("payload/run", guest.RUN.encode(), 0o755),
    ]
    entries += [
        cpio.file(f"modules/{number:03}-{module.name}.ko", module.data)
        for number, module in enumerate(modules)
    ]
    if command is not None:
        text = command.encode("utf-8", "surrogateescape")
        entries.append(cpio.file("payload/command", text + b"\n", 0o755))
    for name, data in files.items():
        if name in ("run", "command", "busybox", "", ".", "..") or "/" in name:
            raise InvalidInput("this is no name for a file", operation="boot with", object=name)
        entries.append(cpio.file(f"payload/{name}", data, 0o755))
    return cpio.archive(entries)


def _is_static(data: bytes) -> bool:
    """Whether an ELF program names no interpreter (ELF, "Program Header")."""
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            return False
        (table,) = struct.unpack_from("<Q", data, 0x20)
        size, count = struct.unpack_from("<HH", data, 0x36)
        kinds = [struct.unpack_from("<I", data, table + n * size)[0] for n in range(count)]
    except struct.error:
        return False
    return _PT_INTERP not in kinds
