"""The host itself: disk, memory, limits, ports, programs."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import bootstream
from bootstream.doctor.finding import Context, Finding, State

_GIB = 1 << 30
_LEAST_DISK = _GIB
_LEAST_MEMORY = 512 << 20
_FILES = 4096
"""Descriptors: some forty for each of fifty sandboxes, and the pools of two clouds."""
_SECONDS = 5.0

_PROGRAMS = (
    # name, how to ask for the version, what needs it, Debian's package
    ("qemu-system-x86_64", "--version", "'boot'", "qemu-system-x86"),
    ("busybox", "--help", "'boot': a static one", "busybox-static"),
    ("nbdfuse", "--version", "'mount'", "libnbd-bin"),
    ("mount", "--version", "'mount'", "mount"),
    ("firecracker", "--version", "machines of Firecracker", ""),
)


def check_version(context: Context) -> Iterator[Finding]:
    """Tell which bootstream this is, on what."""
    del context
    yield Finding(
        "version",
        State.OK,
        f"bootstream {bootstream.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def check_disk(context: Context) -> Iterator[Finding]:
    """See that the cache has a disk with room on it, which can be written to."""
    folder = context.settings.cache_dir
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            "disk",
            State.FAILED,
            f"{there} may not be written to",
            f"let this user write to {there}, or set BOOTSTREAM_CACHE_DIR",
        )
        return
    usage = shutil.disk_usage(there)
    wanted = context.settings.cache_size or usage.total // 10
    free = f"{usage.free / _GIB:.1f} GiB of {usage.total / _GIB:.1f} GiB are free below {folder}"
    if usage.free < _LEAST_DISK:
        yield Finding(
            "disk",
            State.FAILED,
            f"{free}: builds and exports need more",
            "make room: bootstream gc, or set BOOTSTREAM_CACHE_DIR to another disk",
        )
    elif usage.free < wanted:
        yield Finding(
            "disk",
            State.LACKING,
            f"{free}, and the cache may grow to {wanted / _GIB:.1f} GiB",
            f"set BOOTSTREAM_CACHE_SIZE={usage.free * 8 // 10 // _GIB}G, or make room",
        )
    else:
        yield Finding("disk", State.OK, free)


def check_memory(context: Context) -> Iterator[Finding]:
    """See that some memory is left, and enough descriptors."""
    values = {}
    for line in (context.host.proc / "meminfo").read_text("utf-8").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[0] if rest.split() else ""
        if number.isdecimal():
            values[name] = int(number) << 10
    free, total = values.get("MemAvailable", 0), values.get("MemTotal", 0)
    said = f"{free / _GIB:.1f} GiB of {total / _GIB:.1f} GiB are available"
    if free < _LEAST_MEMORY:
        yield Finding("memory", State.LACKING, said, "stop something, or take a larger machine")
    else:
        yield Finding("memory", State.OK, said)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "any number of" if hard == resource.RLIM_INFINITY else str(hard)
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        yield Finding(
            "memory.files",
            State.LACKING,
            f"a process has {hard} descriptors at most; fifty sandboxes need {_FILES}",
            "LimitNOFILE=65536 in the unit, or a line in /etc/security/limits.d",
        )
    else:
        yield Finding("memory.files", State.OK, f"{soft} descriptors, {most} at most")


def check_ports(context: Context) -> Iterator[Finding]:
    """See whether the services' ports are free, or our services answer there."""
    for name, port in context.ports.items():
        yield _port(name, port)


def _port(name: str, port: int) -> Finding:
    where = f"ports.{name}"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            return Finding(where, State.LACKING, f"{port}: {error.strerror}", "use another port")
        except OSError:
            pass
        else:
            return Finding(where, State.OK, f"{port} is free")
    if _healthy(port):
        return Finding(where, State.OK, f"{name} answers on {port}")
    return Finding(
        where,
        State.LACKING,
        f"{port} is taken by something else",
        f"see what it is: ss -ltnp 'sport = :{port}'; stop it, or give {name} another port",
    )


def _healthy(port: int) -> bool:
    """Whether something answers there as our services do."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2.0) as answer:
            document = json.loads(answer.read(64 << 10))
    except (OSError, ValueError, HTTPException):
        return False
    return isinstance(document, dict)


def check_e2fsprogs(context: Context) -> Iterator[Finding]:
    """Look for the tools that judge file systems; images are made without them."""
    del context
    found = _version("e2fsck", "-V")
    if found is None:
        yield Finding(
            "e2fsprogs",
            State.LACKING,
            "e2fsck is not installed: images are made without it, and nobody else checks them",
            "install it (Debian: e2fsprogs)",
        )
    else:
        yield Finding("e2fsprogs", State.OK, found)


def check_programs(context: Context) -> Iterator[Finding]:
    """Tell the versions of programs that some verbs need."""
    del context
    for program, option, purpose, package in _PROGRAMS:
        found = _version(program, option)
        name = f"programs.{program}"
        if found is not None:
            yield Finding(name, State.OK, found)
        else:
            remedy = f"install it (Debian: {package})" if package else "see its project's releases"
            yield Finding(name, State.LACKING, f"not installed; needed by {purpose}", remedy)


def _version(program: str, option: str) -> str | None:
    """Return the first line that a program says of itself; None: it is not there."""
    path = shutil.which(program, path=os.pathsep.join([os.defpath, *_path()]))
    if path is None:
        return None
    try:
        result = subprocess.run(
            [path, option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (result.stdout + result.stderr).decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in lines if line.strip()), path)


def _path() -> list[str]:
    """Where programs are, of administrators too; the search path of this process first."""
    own = os.get_exec_path()
    return [*own, "/usr/sbin", "/sbin", str(Path(sys.executable).parent)]
