"""What Firecracker needs to boot a template from an attached device.

Source: Firecracker, ``docs/getting-started.md`` and ``src/firecracker/swagger/firecracker.yaml``
(the objects of a ``--config-file``). Firecracker opens a drive as a file or block device of
the host and knows no NBD, so the template is attached first. It adds ``root=/dev/vda`` and
``ro`` or ``rw`` to the kernel's arguments by itself.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from bootstream.errors import InvalidInput

BOOT_ARGUMENTS = "console=ttyS0 reboot=k panic=1 pci=off quiet"


@dataclass(frozen=True, slots=True)
class MicroVM:
    """A Firecracker machine: ``kernel`` an uncompressed vmlinux, ``memory`` in MiB."""

    kernel: str
    device: str
    memory: int = 512
    cpus: int = 1
    read_only: bool = False
    append: str = ""
    command: str | None = None


def configuration(machine: MicroVM) -> dict[str, Any]:
    """Return the document for ``firecracker --config-file``. Raises InvalidInput."""
    arguments = [BOOT_ARGUMENTS, *machine.append.split()]
    if machine.command is not None:
        arguments += ["init=/bin/sh", "--", "-c", _quoted(machine.command)]
    return {
        "boot-source": {"kernel_image_path": machine.kernel, "boot_args": " ".join(arguments)},
        "drives": [
            {
                "drive_id": "rootfs",
                "path_on_host": machine.device,
                "is_root_device": True,
                "is_read_only": machine.read_only,
                # The guest's flushes reach the device, and so our overlay.
                "cache_type": "Writeback",
                "io_engine": "Sync",
            }
        ],
        "machine-config": {"vcpu_count": machine.cpus, "mem_size_mib": machine.memory},
    }


def script(machine: MicroVM, ref: str) -> str:
    """Return a shell script that attaches, boots, and detaches ``ref``."""
    attach = ["bootstream", "attach", ref, "--device", machine.device]
    attach += ["--read-only"] if machine.read_only else []
    document = json.dumps(configuration(machine), indent=2)
    return "\n".join(
        [
            "set -e",
            "modprobe nbd",
            "mkfifo attached",
            f"{shlex.join(attach)} > attached &",
            "read -r device < attached  # waits until the device is there",
            "cat > vm.json <<'END'",
            document,
            "END",
            "firecracker --no-api --config-file vm.json",
            f"bootstream detach {shlex.quote(machine.device)}",
            "",
        ]
    )


def _quoted(text: str) -> str:
    """Quote as the kernel's command line has it: in double quotes, which cannot be escaped."""
    if '"' in text or "\n" in text:
        raise InvalidInput(
            "a double quote or a line break cannot stand in a kernel's arguments",
            operation="boot with --cmd",
            object=text,
            remedy="put it into a script of the template",
        )
    return f'"{text}"'
