"""What the kernel offers for block devices and machines: NBD, FUSE, KVM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bootstream.doctor.finding import Context, Finding, Host, State
from bootstream.errors import BootstreamError, NotFound

_MODPROBE = (
    "modprobe nbd nbds_max=64, and for the next boot: echo nbd >/etc/modules-load.d/nbd.conf; "
    "echo 'options nbd nbds_max=64' >/etc/modprobe.d/nbd.conf"
)
_NO_NBD = (
    "use a kernel with CONFIG_BLK_DEV_NBD (Debian's, Ubuntu's and Oracle Linux's have it); "
    "without it 'serve', 'mount' and 'boot' work, and 'attach' does not"
)


def check_nbd(context: Context) -> Iterator[Finding]:
    """Look for the kernel's NBD driver and for devices that nobody uses."""
    from bootstream.nbd.kernel.sysfs import Sysfs  # noqa: PLC0415 - not for --help

    host = context.host
    devices = list(Sysfs(host.sys, host.proc, host.dev).devices())
    if not devices and not (host.sys / "module" / "nbd").is_dir():
        there = _has_module(host, "nbd")
        remedy = _MODPROBE if there else _NO_NBD
        detail = "the driver is not loaded" if there else "the kernel has no NBD driver"
        yield Finding("nbd.module", State.LACKING, detail, remedy)
        return
    yield Finding("nbd.module", State.OK, "the driver is loaded")
    free = sum(device.pid is None for device in devices)
    if free:
        yield Finding("nbd.devices", State.OK, f"{free} of {len(devices)} devices are free")
    else:
        yield Finding(
            "nbd.devices",
            State.LACKING,
            f"all {len(devices)} devices are in use; further ones are made as they are needed",
            "see who has them: bootstream attach --list",
        )
    if os.geteuid() != 0:
        yield Finding(
            "nbd.rights",
            State.LACKING,
            "only root attaches devices",
            "run the orchestrator as root, or give it CAP_SYS_ADMIN and CAP_NET_ADMIN",
        )


def _has_module(host: Host, name: str) -> bool:
    """Whether the running kernel's modules have one of this name, which needs loading."""
    try:
        release = (host.proc / "sys" / "kernel" / "osrelease").read_text("utf-8").strip()
    except OSError:
        return False
    for top in (Path("/lib/modules"), Path("/usr/lib/modules")):
        listing = top / release / "modules.dep"
        try:
            lines = listing.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        if any(Path(line.partition(":")[0]).name.split(".ko")[0] == name for line in lines):
            return True
    return False


def check_fuse(context: Context) -> Iterator[Finding]:
    """Look for FUSE, by which templates are mounted without the NBD driver."""
    device = context.host.dev / "fuse"
    if not device.exists():
        yield Finding("fuse", State.LACKING, f"{device} is not there", "modprobe fuse")
        return
    if not os.access(device, os.R_OK | os.W_OK):
        yield Finding(
            "fuse", State.LACKING, f"{device} may not be used", f"chmod 0666 {device}, as root"
        )
        return
    missing = [name for name in ("nbdfuse", "fusermount3") if shutil.which(name) is None]
    if os.geteuid() == 0:
        missing = [name for name in missing if name != "fusermount3"]
    if missing:
        yield Finding(
            "fuse",
            State.LACKING,
            f"the device is there, and {', '.join(missing)} is not, which 'mount' needs",
            "install it (Debian: libnbd-bin fuse3)",
        )
    else:
        yield Finding("fuse", State.OK, f"{device} can be used")


def check_kvm(context: Context) -> Iterator[Finding]:
    """Boot a kernel under KVM: that the device is there says little inside other machines."""
    device = context.host.dev / "kvm"
    if not device.exists():
        yield Finding(
            "kvm",
            State.LACKING,
            f"{device} is not there: machines are emulated, and slow",
            "use a bare metal shape, or one with nested virtualization; modprobe kvm_intel or "
            "kvm_amd",
        )
        return
    if not os.access(device, os.R_OK | os.W_OK):
        yield Finding(
            "kvm", State.LACKING, f"{device} may not be used", "usermod -aG kvm $USER, sign in anew"
        )
        return
    try:
        works, kernel = _boots(context)
    except BootstreamError as error:
        yield Finding(
            "kvm",
            State.LACKING,
            f"{device} is there, and could not be tried: {error}",
            error.remedy or "name a kernel with --kernel",
        )
        return
    if works:
        yield Finding("kvm", State.OK, f"{kernel} boots under KVM")
    else:
        yield Finding(
            "kvm",
            State.LACKING,
            f"{device} is there, and {kernel} does not boot under it: machines are emulated",
            "use a bare metal shape, or a host whose nested virtualization works",
        )


def _boots(context: Context) -> tuple[bool, str]:
    from bootstream.vm import accel, qemu  # noqa: PLC0415 - only where there is KVM
    from bootstream.vm.boot import Plan  # noqa: PLC0415
    from bootstream.vm.initrd import find_busybox  # noqa: PLC0415
    from bootstream.vm.kernel import (  # noqa: PLC0415
        HostFiles,
        find_kernel,
        kernel_in,
        load_kernel,
    )

    if shutil.which(qemu.PROGRAM) is None:
        raise NotFound(
            "the program is not installed",
            operation="boot with",
            object=qemu.PROGRAM,
            remedy="install it (Debian: qemu-system-x86)",
        )
    path = context.kernel
    if path is None:
        kernel = find_kernel({"this host": HostFiles(Path("/"))})
    else:
        kernel = kernel_in(path) if path.is_dir() else load_kernel(path)
    plan = replace(Plan(kernel=kernel, busybox=find_busybox()), accel=qemu.KVM)
    remember = context.settings.runtime_dir / "accel.json"
    chosen = accel.choose(plan, remember=remember, device=context.host.dev / "kvm")
    return chosen == qemu.KVM, f"Linux {kernel.version}"
