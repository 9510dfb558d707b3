"""``demo``: the main job from image to empty store, on a store of its own.

Every step is the command that a person would type, run as one; only the reading back
is done here, by the package's own NBD client, so that no other program is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bootstream.cli.base import verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.demo_image import TAG, write_layout
from bootstream.cli.output import human_size, percent
from bootstream.errors import AlreadyExists, BootstreamError, Corrupt
from bootstream.nbd.client import Client, connect

_BLOCK = 1 << 20
_SHOWN_LINES = 24
_PATIENCE = 10


@verb(
    "demo",
    """
    bootstream demo
    bootstream demo --keep /tmp/demo
    """,
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Do it in DIR, which must be new or empty, and leave it there.",
)
@pass_cli
def demo(cli: Cli, keep: Path | None) -> None:
    """Run the main job on a store of its own.

    Makes a small container image of files that are on this host, builds templates from
    it, serves, checks, changes, deletes: no cloud, no Docker, no root, no network. Prints
    each command that it runs. With --keep the two templates stay, to be looked at.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="bootstream-demo-") as folder, cli.interruption:
            Demo(Path(folder), cli).run(tidy=True)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise AlreadyExists("the folder is not empty", operation="demo in", object=str(keep))
    with cli.interruption:
        Demo(keep.absolute(), cli).run(tidy=False)
    click.echo("\nto look at what is left:")
    click.echo(f"  cd {keep.absolute()}")
    for name, value in Demo(keep.absolute(), cli).variables.items():
        click.echo(f"  export {name}={value}")
    click.echo("  bootstream ls")


class Demo:
    """The steps, in one folder."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder = folder
        self.cli = cli
        self.variables = {
            "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(folder / "templates"),
            "BOOTSTREAM_CACHE_DIR": str(folder / "cache"),
        }
        self._environment = {
            **os.environ,
            **self.variables,
            "STORAGE_PROVIDER": "Local",
            "TEMPLATE_BUCKET_PREFIX": "",
        }

    def run(self, *, tidy: bool) -> None:
        """Do all of it; raises the first thing that is not as it must be."""
        started = time.monotonic()
        self._make()
        self._look()
        self._serve()
        if tidy:
            self._tidy()
        self._say(f"all of it took {time.monotonic() - started:.1f} s")

    # -- the steps ------------------------------------------------------------------------

    def _make(self) -> None:
        self._say("a container image of three layers, from files of this host")
        write_layout(self.folder / "image", message="version 1")
        size = sum(p.stat().st_size for p in (self.folder / "image").rglob("*") if p.is_file())
        click.echo(f"  image/ is an OCI layout of {human_size(size)}")

        self._say("a template from it: layers to ext4 without root, cut, compressed, published")
        first = self._build("image", "demo:1")

        self._say("one file of the top layer changes: the rebuild stores what is new, no more")
        write_layout(self.folder / "image-2", message="version 2")
        second = self._build("image-2", "demo:2")
        share = percent(second["stored_size"], first["stored_size"])
        click.echo(f"  the second build stored {share} of what the first one did")

    def _look(self) -> None:
        self._say("what the store holds")
        self._bootstream("ls")
        self._bootstream("inspect", "demo:2")
        self._say("files, without mounting anything")
        self._bootstream("files", "demo:2", "/usr/bin", "-l")
        said = self._bootstream("cat", "demo:2:/etc/message")
        self._insist(said == "version 2\n", "the file is not what the image has")

    def _serve(self) -> None:
        self._say("a block device over a unix socket, and the same bytes as a file")
        self._bootstream("export", "demo:2", "exported.ext4")
        expected = _sha256_of_file(self.folder / "exported.ext4")
        uri = f"nbd+unix:///?socket={self.folder / 'nbd.sock'}"
        with self._serving("demo:2"), connect(uri) as device:
            started = time.monotonic()
            actual = _sha256_of_device(device)
            speed = device.size / (time.monotonic() - started)
            click.echo(f"  sha256 of the export {expected[:16]}…, over NBD {actual[:16]}…")
            click.echo(f"  read {human_size(device.size)} at {human_size(speed)}/s")
            self._insist(actual == expected, "the device is not what was exported")
            self._write_to_overlay(device)
        self._say("the write went to a throw-away overlay: the template is what it was")
        self._bootstream("verify", "demo:2")

    def _write_to_overlay(self, device: Client) -> None:
        """Write one block, read it back, and undo nothing: the overlay takes care of that."""
        offset = device.size // 2 // _BLOCK * _BLOCK
        before = _read(device, offset, _BLOCK)
        written = bytes(byte ^ 0xFF for byte in before)
        device.write(memoryview(written), offset)
        device.flush()
        self._insist(_read(device, offset, _BLOCK) == written, "a write cannot be read back")
        with (self.folder / "exported.ext4").open("rb") as file:
            file.seek(offset)
            self._insist(file.read(_BLOCK) == before, "the write reached what was exported")
        click.echo(f"  wrote {human_size(_BLOCK)} at {human_size(offset)} and read it back")

    def _tidy(self) -> None:
        self._say("delete, collect: nothing is left")
        self._bootstream("rm", "demo", "--all")
        self._bootstream("gc", "--older-than", "0s")
        left = sorted(p for p in (self.folder / "templates").rglob("*") if not p.is_dir())
        self._insist(not left, f"{len(left)} files are left in the store")
        click.echo("  the store is empty")

    # -- how they are done ------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """Open a step."""
        self.cli.interruption.check()
        click.echo(f"\n{text}")

    def _insist(self, condition: bool, message: str) -> None:
        """Raise unless something is as it must be."""
        if not condition:
            raise Corrupt(
                message,
                operation="demo in",
                object=str(self.folder),
                remedy="this is a defect; run it again with --keep and report what is left",
            )

    def _build(self, layout: str, name: str) -> dict[str, Any]:
        """Build a template; return what ``build --json`` says."""
        said = self._bootstream("build", f"oci:{layout}:{TAG}", "-t", name, "--json", quiet=True)
        result: dict[str, Any] = json.loads(said)
        click.echo(
            f"  build {result['build_id']}: {human_size(result['size'])}, "
            f"stored in {human_size(result['stored_size'])}"
        )
        return result

    def _bootstream(self, *arguments: str, quiet: bool = False) -> str:
        """Run one command as a person would, show it and its output; return its output."""
        self.cli.interruption.check()
        self._show(arguments)
        with self._start(*arguments) as process, _ended(process):
            said, complaint = process.communicate()
        self._insist_on_success(process.returncode, arguments, complaint)
        if not quiet:
            lines = said.splitlines()
            for line in lines[:_SHOWN_LINES]:
                click.echo(f"  {line}")
            if len(lines) > _SHOWN_LINES:
                click.echo(f"  ... and {len(lines) - _SHOWN_LINES} lines more")
        return said

    @contextmanager
    def _serving(self, ref: str) -> Iterator[None]:
        """Serve a template on ``nbd.sock`` in the folder, and end the server as init would."""
        arguments = ("serve", ref, "--socket", "nbd.sock")
        self._show(arguments)
        with self._start(*arguments) as process, _ended(process):
            assert process.stdout is not None
            # The line comes when it listens; the end of the pipe, if it never will.
            listening = process.stdout.readline()
            if listening:
                click.echo(f"  {listening.rstrip()}")
                yield
                process.terminate()
            _, complaint = process.communicate()
        self._insist_on_success(process.returncode, arguments, complaint)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "bootstream", *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
        )

    def _show(self, arguments: tuple[str, ...]) -> None:
        click.echo(f"$ bootstream {shlex.join(arguments)}")
        sys.stdout.flush()

    def _insist_on_success(self, code: int, arguments: tuple[str, ...], complaint: str) -> None:
        """Raise what a failed command said; an interruption is told as one."""
        self.cli.interruption.check()
        if code:
            raise BootstreamError(
                f"it ended with exit code {code}: {complaint.strip() or 'without a word'}",
                operation="run",
                object=f"bootstream {shlex.join(arguments)}",
            )


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a command that is still running when the demo fails or is interrupted."""
    try:
        yield
    except BaseException:
        process.terminate()
        try:
            process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_device(device: Client) -> str:
    digest = hashlib.sha256()
    for offset in range(0, device.size, _BLOCK):
        digest.update(_read(device, offset, min(_BLOCK, device.size - offset)))
    return digest.hexdigest()


def _read(device: Client, offset: int, length: int) -> bytearray:
    data = bytearray(length)
    device.read_into(memoryview(data), offset)
    return data
