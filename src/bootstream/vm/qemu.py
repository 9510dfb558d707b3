"""QEMU's command line for one machine.

Two kinds of machine: ``microvm`` (virtio over MMIO, found through ACPI; nothing emulated
that a template does not need) and ``pc`` (virtio over PCI), for kernels that lack
``virtio_mmio``. Without KVM the guest would measure its clock against emulated hardware,
which fails on a busy host now and then; it is told the frequency instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from bootstream.nbd.uri import parse_uri

PROGRAM = "qemu-system-x86_64"
MICROVM, PC = "microvm", "pc"
KVM, TCG = "kvm", "tcg"
_MODULES = {
    MICROVM: ("virtio_mmio", "virtio_blk"),
    PC: ("virtio_pci", "virtio_blk"),
}
_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)", re.MULTILINE)
_GHZ = re.compile(r"@ ([0-9.]+)GHz")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine to be.

    Attributes:
        kernel, initrd: files.
        report: a unix socket on which somebody listens for what the guest reports.
        root: URI of the export with the root; None for a machine without a disk.
        kind: :data:`MICROVM` or :data:`PC`.
        accel: :data:`KVM` or :data:`TCG`.
        memory: MiB.
        cpus: how many.
        network: whether there is one; the host is 10.0.2.2, the guest 10.0.2.15.
        read_only: whether the disk is.
        interactive: whether the terminal is the guest's console, Ctrl-A X ends it.
        append: further kernel arguments.
    """

    kernel: Path
    initrd: Path
    report: Path
    root: str | None = None
    kind: str = MICROVM
    accel: str = TCG
    memory: int = 512
    cpus: int = 1
    network: bool = False
    read_only: bool = False
    interactive: bool = False
    append: str = ""


def modules_for(kind: str, *, network: bool) -> tuple[str, ...]:
    """Return the names of the kernel modules that a machine needs, ext4 with them."""
    return (*_MODULES[kind], *(("virtio_net",) if network else ()), "ext4")


def command_line(machine: Machine, *, tsc_khz: int | None) -> list[str]:
    """Return program and arguments.

    Args:
        machine: what to start.
        tsc_khz: frequency of this host's time stamp counter, which an emulated one follows.
    """
    micro = machine.kind == MICROVM
    bus = "device" if micro else "pci"
    line = [PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    line += ["-M", "microvm,acpi=on,rtc=on" if micro else "pc"]
    line += ["-accel", machine.accel, "-cpu", "host" if machine.accel == KVM else "max"]
    line += ["-m", f"{machine.memory}M", "-smp", str(machine.cpus)]
    line += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd)]
    line += ["-append", kernel_arguments(machine, tsc_khz=tsc_khz)]
    mux = "on,signal=off" if machine.interactive else "off"
    line += ["-chardev", f"stdio,id=console,mux={mux}", "-serial", "chardev:console"]
    if machine.interactive:
        line += ["-mon", "chardev=console,mode=readline"]
    line += ["-chardev", f"socket,id=report,path={_escaped(str(machine.report))}"]
    line += (
        ["-serial", "chardev:report"]
        if not micro
        else [
            "-device",
            "isa-serial,chardev=report,iobase=0x2f8,irq=3,index=1",
        ]
    )
    if machine.root is not None:
        line += ["-blockdev", json.dumps(_root(machine.root, read_only=machine.read_only))]
        line += ["-device", f"virtio-blk-{bus},drive=root"]
    if machine.network:
        line += ["-netdev", "user,id=net0", "-device", f"virtio-net-{bus},netdev=net0"]
    return line


def kernel_arguments(machine: Machine, *, tsc_khz: int | None) -> str:
    """Return the kernel's command line."""
    words = ["console=ttyS0", "panic=-1", "reboot=t", "quiet", "loglevel=3"]
    if machine.accel == TCG:
        words += ["mitigations=off", "nokaslr", "lpj=4000000", "no_timer_check"]
        if tsc_khz is not None:
            words.append(f"tsc_early_khz={tsc_khz}")
    return " ".join([*words, *machine.append.split()])


def host_tsc_khz(cpuinfo: str) -> int | None:
    """Return the frequency of the time stamp counter from ``/proc/cpuinfo``, if it tells.

    The nominal one where the processor's name has it: the other moves with the load.
    """
    nominal = _GHZ.search(cpuinfo)
    if nominal:
        return round(float(nominal[1]) * 1e6)
    now = _MHZ.search(cpuinfo)
    return round(float(now[1]) * 1e3) if now else None


def _root(uri: str, *, read_only: bool) -> dict[str, object]:
    address = parse_uri(uri)
    server: dict[str, object]
    if address.path is not None:
        server = {"type": "unix", "path": address.path}
    else:
        server = {"type": "inet", "host": address.host, "port": str(address.port)}
    return {
        "driver": "nbd",
        "node-name": "root",
        "server": server,
        "export": address.name,
        "read-only": read_only,
        "discard": "unmap",
    }


def _escaped(path: str) -> str:
    """Commas end a value in QEMU's arguments, two are one."""
    return path.replace(",", ",,")
