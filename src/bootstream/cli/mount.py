"""``mount``: a template's file system on a folder, through NBD, FUSE and the kernel.

``serve`` on a private socket, ``nbdfuse`` makes a file of the export, and that file is
mounted: by the kernel's own ext4 over a loop device for root, else by ``fuse2fs`` or
``fuseext2``. Undone in the opposite order, whatever ends it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from bootstream.cli.base import REF, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.serve import Served, serving, wait_for_end
from bootstream.errors import BootstreamError, InvalidInput, NotFound, PermissionDenied
from bootstream.templates.traces import TraceMode

_START_SECONDS = 20.0
_POLL_SECONDS = 0.01


@verb(
    "mount",
    """
    bootstream mount debian /mnt/debian --read-only
    bootstream mount debian:12 ./look
    """,
)
@click.argument("ref", type=REF)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--read-only", is_flag=True, help="Refuse writes, and keep no overlay.")
@pass_cli
def mount(cli: Cli, ref: str, folder: Path, read_only: bool) -> None:
    """Mount a template on a folder.

    Stays in the foreground until Ctrl-C or SIGTERM, then unmounts. Needs nbdfuse (Debian:
    libnbd-bin) and the FUSE device; then root, for a loop mount by the kernel, or
    fuse2fs. Writes go to an overlay that is thrown away. Prints one line once it is
    mounted.
    """
    mounter = _find_mounter(folder)
    with cli.interruption, ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bootstream-mount-")))
        socket = scratch / "nbd.sock"
        # What is looked at in a mount is not what a boot reads.
        served = Served(refs=(ref,), socket=socket, read_only=read_only, trace=TraceMode.OFF)
        stack.enter_context(serving(cli, served))
        image = stack.enter_context(_nbdfuse(socket, scratch, read_only=read_only))
        stack.enter_context(_mounted(mounter, image, folder, read_only=read_only))
        click.echo(f"mounted {ref} on {folder}")
        sys.stdout.flush()
        wait_for_end(cli.interruption)


def _find_mounter(folder: Path) -> str:
    """Return the program that mounts; raises an error that says exactly what is missing."""
    if not folder.is_dir():
        raise InvalidInput("there is no such folder", operation="mount on", object=str(folder))
    if shutil.which("nbdfuse") is None:
        raise NotFound(
            "the program is not installed",
            operation="mount with",
            object="nbdfuse",
            remedy="install it (Debian: libnbd-bin), or read files with 'bootstream cat' and 'cp'",
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise PermissionDenied(
            "this user may not use it" if Path("/dev/fuse").exists() else "it is not there",
            operation="open",
            object="/dev/fuse",
            remedy="load the kernel's fuse module and allow this user to open it, or read files "
            "with 'bootstream cat' and 'cp'",
        )
    if os.geteuid() == 0:
        return "mount"
    for program in ("fuse2fs", "fuseext2"):
        if shutil.which(program) is not None:
            return program
    raise NotFound(
        "mounting needs root, or one of these programs",
        operation="mount with",
        object="fuse2fs, fuseext2",
        remedy="run it as root, or install fuse2fs (Debian: fuse2fs)",
    )


@contextmanager
def _nbdfuse(socket: Path, scratch: Path, *, read_only: bool) -> Iterator[Path]:
    """Yield a file that is the export."""
    folder = scratch / "fuse"
    folder.mkdir()
    image = folder / "image"
    command = ["nbdfuse", *(["-r"] if read_only else []), str(image)]
    command.append(f"nbd+unix:///?socket={socket}")
    log = scratch / "nbdfuse.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    try:
        limit = time.monotonic() + _START_SECONDS
        while not image.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise _failed("nbdfuse", log.read_text("utf-8", "replace"))
            time.sleep(_POLL_SECONDS)
        yield image
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask nbdfuse to unmount its folder, and wait for it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _mounted(mounter: str, image: Path, folder: Path, *, read_only: bool) -> Iterator[None]:
    options = ["nosuid", "nodev", *(["ro", "noload"] if read_only else [])]
    if mounter == "mount":
        command = ["mount", "-t", "ext4", "-o", ",".join(["loop", *options])]
        undo = ["umount", str(folder)]
    else:
        command = [mounter, "-o", "ro" if read_only else "fakeroot"]
        undo = [shutil.which("fusermount3") or "fusermount", "-u", str(folder)]
    _run([*command, str(image), str(folder)])
    try:
        yield
    finally:
        _unmount(undo)


def _unmount(command: list[str]) -> None:
    """Unmount; while somebody still uses the folder, wait for a moment, then detach it."""
    limit = time.monotonic() + 5.0
    while True:
        try:
            _run(command)
        except BootstreamError:
            if time.monotonic() < limit:
                time.sleep(0.1)
                continue
            lazy = ["umount", "-l"] if command[0] == "umount" else [command[0], "-u", "-z"]
            _run([*lazy, command[-1]])
        return


def _run(command: list[str]) -> None:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
    )
    if result.returncode != 0:
        raise _failed(command[0], (result.stderr + result.stdout).decode("utf-8", "replace"))


def _failed(program: str, said: str) -> BootstreamError:
    what = " ".join(said.split()) or "it failed and said nothing"
    return BootstreamError(what, operation="run", object=program)
