"""The parts of a boot, without a machine: archives, modules, kernels, command lines."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bootstream.errors import Corrupt, InvalidInput, NotFound
from bootstream.vm import accel, cpio, firecracker, guest, qemu
from bootstream.vm.boot import Event, Plan, boot, machine_kind, parse_report
from bootstream.vm.guest import Stage
from bootstream.vm.initrd import build_initrd, find_busybox
from bootstream.vm.kernel import (
    HostFiles,
    Kernel,
    find_kernel,
    kernel_in,
    kernel_version,
    load_kernel,
)
from bootstream.vm.modules import Module, Modules, depends

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


def busybox(*arguments: str, folder: Path, data: bytes) -> bytes:
    """Run an applet of busybox, whose cpio is the kernel's format's other reader here."""
    return subprocess.run(
        ["busybox", *arguments], cwd=folder, input=data, capture_output=True, check=True, timeout=20
    ).stdout


def test_archives_unpack_elsewhere(tmp_path: Path) -> None:
    """Another program's cpio makes the same files of an archive."""
    entries = [
        cpio.folder("a"),
        cpio.file("a/empty", b""),
        cpio.file("a/odd", b"12345", 0o755),
        cpio.file("a/ünï", b"x" * 4096),
    ]
    busybox("cpio", "-i", folder=tmp_path, data=cpio.archive(entries))
    assert (tmp_path / "a/odd").read_bytes() == b"12345"
    assert (tmp_path / "a/odd").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/empty").read_bytes() == b""
    assert (tmp_path / "a/ünï").stat().st_size == 4096


@given(st.lists(st.tuples(names, st.binary(max_size=64)), max_size=6))
def test_archives_are_aligned_and_bounded(files: list[tuple[str, bytes]]) -> None:
    """Whatever is in it, every part starts at a multiple of 4, and the end is marked."""
    data = cpio.archive([cpio.file(name, content) for name, content in files])
    assert len(data) % 4 == 0
    at, found = 0, []
    while True:
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        assert data[at : at + 6] == b"070701"
        name = data[at + 110 : at + 110 + fields[11] - 1].decode("utf-8", "surrogateescape")
        start = at + -(-(110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!" and fields[1] == 0:
            break
        found.append((name, data[start : start + fields[6]]))
        at = start + -(-fields[6] // 4) * 4
    assert found == files


def test_modules_of_a_real_kernel(kernel: Path) -> None:
    """What a module needs comes before it; what is built in is not loaded."""
    found = kernel_in(kernel)
    order = [module.name for module in found.modules.load(["virtio-net", "nbd", "ext4"])]
    assert order.index("virtio_ring") < order.index("virtio") < order.index("virtio_net")
    assert order.index("failover") < order.index("net_failover") < order.index("virtio_net")
    assert "ext4" not in order
    assert found.modules.has("ext4")
    assert not found.modules.has("no_such")
    with pytest.raises(NotFound, match="no_such"):
        found.modules.load(["no_such"])
    assert machine_kind(found) == qemu.MICROVM
    assert f"vmlinuz-{found.version}" in found.source
    image = kernel / "boot" / f"vmlinuz-{found.version}"
    assert load_kernel(image).modules


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_compressed_modules(suffix: str, kernel: Path, tmp_path: Path) -> None:
    """Modules are found and expanded however the distribution compresses them."""
    (source,) = kernel.glob("lib/modules/*/kernel/drivers/virtio/virtio_ring.ko")
    data = source.read_bytes()
    packed = {
        "": data,
        ".xz": lzma.compress(data, lzma.FORMAT_XZ),
        ".gz": gzip.compress(data),
        ".zst": zstandard.compress(data),
    }[suffix]
    top = tmp_path / "lib/modules/6"
    (top / "kernel").mkdir(parents=True)
    (top / f"kernel/virtio_ring.ko{suffix}").write_bytes(packed)
    (top / "modules.order").write_text("kernel/virtio_ring.ko\n")
    (module,) = Modules(HostFiles(tmp_path), "/lib/modules/6").load(["virtio-ring"])
    assert module == Module("virtio_ring", data)
    if suffix:
        (top / f"kernel/virtio_ring.ko{suffix}").write_bytes(b"\xff" * 100)
        with pytest.raises(Corrupt, match="decompressed"):
            Modules(HostFiles(tmp_path), "/lib/modules/6").load(["virtio_ring"])


@given(st.binary(max_size=300), st.booleans())
def test_what_is_no_module(data: bytes, elf: bool) -> None:
    """Corrupt or nothing, never another exception."""
    try:
        depends(Module("x", b"\x7fELF\x02\x01" + data if elf else data))
    except Corrupt:
        pass


def test_modules_that_need_each_other(tmp_path: Path) -> None:
    """A circle is told, not walked forever."""
    top = tmp_path / "lib/modules/6"
    (top / "kernel").mkdir(parents=True)
    (top / "modules.order").write_text("kernel/a.ko\nkernel/b.ko\n")
    for name, needed in (("a", b"b"), ("b", b"a")):
        (top / f"kernel/{name}.ko").write_bytes(elf_module(b"depends=" + needed + b"\0"))
    with pytest.raises(Corrupt, match="each other"):
        Modules(HostFiles(tmp_path), "/lib/modules/6").load(["a"])


def elf_module(modinfo: bytes) -> bytes:
    """The smallest module: a header, and sections for names and ``.modinfo``."""
    texts = b"\0.modinfo\0"
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    body = texts + modinfo
    struct.pack_into("<Q", header, 0x28, 64 + len(body))
    struct.pack_into("<HHH", header, 0x3A, 64, 2, 0)
    section = struct.Struct("<IIQQQQ24x")
    table = section.pack(0, 3, 0, 0, 64, len(texts))
    table += section.pack(1, 1, 0, 0, 64 + len(texts), len(modinfo))
    return bytes(header) + body + table


def test_no_modules_means_built_in() -> None:
    """A kernel without modules is taken to have all that is asked for."""
    modules = Modules(None, "")
    assert not modules
    assert modules.has("virtio_mmio")
    assert modules.load(["virtio_mmio", "nbd"]) == []


def test_kernels_are_found_in_order(tmp_path: Path) -> None:
    """The newest of the first tree that has one; a version of numbers, not of text."""
    for label, versions in (("empty", []), ("template", ["6.9.1", "6.10.0"]), ("host", ["7.0"])):
        folder = tmp_path / label / "boot"
        folder.mkdir(parents=True)
        for version in versions:
            (folder / f"vmlinuz-{version}").write_bytes(bzimage(version))
        (folder / "vmlinuz-9-gone").symlink_to("nowhere")
    trees = {label: HostFiles(tmp_path / label) for label in ("empty", "template", "host")}
    found = find_kernel({**trees})
    assert (found.version, found.source) == ("6.10.0", "template:/boot/vmlinuz-6.10.0")
    with pytest.raises(NotFound, match=r"vmlinuz-\* in only") as caught:
        find_kernel({"only": HostFiles(tmp_path / "empty")})
    assert "--kernel" in (caught.value.remedy or "")


def bzimage(version: str) -> bytes:
    """The header of a bzImage that says which version it is."""
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    text = f"{version} (somebody) #1 SMP\0".encode()
    image[0x300 : 0x300 + len(text)] = text
    return bytes(image)


def test_versions_of_kernels() -> None:
    """From a bzImage's header, from the banner of a vmlinux; anything else is no kernel."""
    assert kernel_version(bzimage("6.1.0-1-x"), name="k") == "6.1.0-1-x"
    assert kernel_version(b"\x7fELF" + bytes(99) + b"Linux version 5.10.9 (a", name="k") == "5.10.9"
    assert kernel_version(b"\x7fELF", name="k") == ""
    assert kernel_version(bzimage("../../x"), name="k") == "..", "a version is no path"
    for image in (b"", b"#!/bin/sh\n", bytes(5000)):
        with pytest.raises(InvalidInput, match="neither a bzImage"):
            kernel_version(image, name="k")


@given(st.binary(max_size=0x300))
def test_headers_of_any_bytes(data: bytes) -> None:
    """A kernel's header that lies is no crash."""
    try:
        kernel_version(bytes(0x202) + b"HdrS" + data, name="k")
    except InvalidInput:
        pass


def test_busybox_must_be_static(tmp_path: Path) -> None:
    """A program that needs libraries is refused before anything boots."""
    assert find_busybox()[:4] == b"\x7fELF"
    dynamic = shutil.which("mkfs.ext4")
    assert dynamic is not None
    with pytest.raises(InvalidInput, match="statically"):
        find_busybox(Path(dynamic))
    with pytest.raises(NotFound, match="missing"):
        find_busybox(tmp_path / "missing")


def test_scripts_are_shell() -> None:
    """busybox's shell can parse what runs in the guest."""
    for script in (guest.INIT, guest.RUN):
        subprocess.run(["busybox", "sh", "-n"], input=script.encode(), check=True, timeout=10)


def test_names_of_files_for_the_guest() -> None:
    """A file cannot take the place of what the initrd brings itself, or leave its folder."""
    for name in ("run", "command", "../x", ""):
        with pytest.raises(InvalidInput, match="no name"):
            build_initrd(busybox=b"", modules=[], settings=b"", command=None, files={name: b""})


def test_command_line_of_a_machine() -> None:
    """Root over the socket, the console alone on stdio, the clock told to an emulated one."""
    machine = qemu.Machine(
        kernel=Path("k"),
        initrd=Path("i"),
        report=Path("/tmp/a,b"),
        root="nbd+unix:///debian%3A12?socket=/run/x,y.sock",
        read_only=True,
    )
    line = qemu.command_line(machine, tsc_khz=2_596_100)
    block = json.loads(line[line.index("-blockdev") + 1])
    assert block["server"] == {"type": "unix", "path": "/run/x,y.sock"}
    assert block["export"] == "debian:12"
    assert block["read-only"] is True
    assert "socket,id=report,path=/tmp/a,,b" in line
    assert "virtio-blk-device,drive=root" in line
    assert "-netdev" not in line
    assert "tsc_early_khz=2596100" in line[line.index("-append") + 1]
    other = qemu.Machine(Path("k"), Path("i"), Path("r"), kind=qemu.PC, accel=qemu.KVM)
    assert "tsc_early" not in qemu.kernel_arguments(other, tsc_khz=1)


def test_the_hosts_clock() -> None:
    """The nominal frequency where the processor's name has it, else the present one."""
    assert qemu.host_tsc_khz("model name : X @ 2.40GHz\ncpu MHz\t\t: 800.0\n") == 2_400_000
    assert qemu.host_tsc_khz("model name\t: EPYC\ncpu MHz\t\t: 2596.100\n") == 2_596_100
    assert qemu.host_tsc_khz("") is None


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b"exit 1.25 3\r\n", Event(Stage.EXIT, 2.0, 1.25, "3")),
        (b"root 0.5\n", Event(Stage.ROOT, 2.0, 0.5)),
        (b"failed 1 no  disk\n", Event(Stage.FAILED, 2.0, 1.0, "no  disk")),
        (b"something 1\n", None),
        (b"exit\n", None),
        (b"exit x\n", None),
        (b"\xff\xff", None),
    ],
)
def test_reports(line: bytes, event: Event | None) -> None:
    """What the guest says, and what it does not say."""
    assert parse_report(line, 2.0) == event


def test_kvm_is_tried_once(tmp_path: Path, kernel: Path) -> None:
    """Without the device it is emulation; with one, what a trial gave is remembered."""
    plan = Plan(kernel_in(kernel), find_busybox())
    remember = tmp_path / "deep" / "accel.json"
    assert accel.choose(plan, remember=remember, device=tmp_path / "none") == qemu.TCG
    assert not remember.exists()
    (tmp_path / "kvm").write_text("")
    first = accel.choose(plan, remember=remember, device=tmp_path / "kvm")
    (known,) = json.loads(remember.read_text()).values()
    assert known is (first == qemu.KVM)
    key = next(iter(json.loads(remember.read_text())))
    remember.write_text(json.dumps({key: not known}))
    assert accel.choose(plan, remember=remember, device=tmp_path / "kvm") != first
    remember.write_text("{")
    assert accel.choose(plan, remember=remember, device=tmp_path / "kvm") == first


def test_firecrackers_configuration() -> None:
    """The document names kernel and device; a command becomes the init's arguments."""
    machine = firecracker.MicroVM("vmlinux", "/dev/nbd3", command="uname -a", read_only=True)
    document = firecracker.configuration(machine)
    (drive,) = document["drives"]
    assert (drive["path_on_host"], drive["is_read_only"]) == ("/dev/nbd3", True)
    assert document["boot-source"]["boot_args"].endswith('init=/bin/sh -- -c "uname -a"')
    text = firecracker.script(machine, "debian:12")
    subprocess.run(["sh", "-n"], input=text.encode(), check=True, timeout=10)
    assert json.loads(text.partition("<<'END'\n")[2].partition("END\n")[0]) == document
    with pytest.raises(InvalidInput, match="double quote"):
        firecracker.configuration(firecracker.MicroVM("k", "d", command='echo "x"'))


def test_a_machine_needs_room() -> None:
    """Impossible sizes are refused before QEMU is asked."""
    kernel = Kernel(b"", "", Modules(None, ""), "k")
    with pytest.raises(InvalidInput, match="64 MiB"):
        boot(Plan(kernel, b"", memory=1))
