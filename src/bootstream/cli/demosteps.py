"""How demos are run: each step is the command that a person would type, shown and run as one."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from bootstream.cli.context import Cli
from bootstream.cli.output import human_size
from bootstream.errors import BootstreamError, Corrupt
from bootstream.nbd.client import Client, connect

_BLOCK = 1 << 20
_SHOWN_LINES = 24
_PATIENCE = 10


class Runner:
    """Runs commands in one folder.

    Args:
        folder: where they are run.
        cli: who asked.
        environment: of the commands.
    """

    def __init__(self, folder: Path, cli: Cli, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.cli = cli
        self.environment = dict(environment)

    def say(self, text: str) -> None:
        """Open a step."""
        self.cli.interruption.check()
        click.echo(f"\n{text}")

    def insist(self, condition: bool, message: str) -> None:
        """Raise unless something is as it must be."""
        if not condition:
            raise Corrupt(
                message,
                operation="demo in",
                object=str(self.folder),
                remedy="this is a defect; run it again with --keep and report what is left",
            )

    def serve_and_compare(self, ref: str) -> None:
        """Serve a template; insist that it is what an export of it is, and writes stay apart."""
        self.say("a block device over a unix socket, and the same bytes as a file")
        self.bootstream("export", ref, "exported.ext4")
        expected = _sha256_of_file(self.folder / "exported.ext4")
        uri = f"nbd+unix:///?socket={self.folder / 'nbd.sock'}"
        with self.running("serve", ref, "--socket", "nbd.sock"), connect(uri) as device:
            started = time.monotonic()
            actual = _sha256_of_device(device)
            speed = device.size / (time.monotonic() - started)
            click.echo(f"  sha256 of the export {expected[:16]}…, over NBD {actual[:16]}…")
            click.echo(f"  read {human_size(device.size)} at {human_size(speed)}/s")
            self.insist(actual == expected, "the device is not what was exported")
            self._write_to_overlay(device)
        self.say("the write went to a throw-away overlay: the template is what it was")
        self.bootstream("verify", ref)

    def _write_to_overlay(self, device: Client) -> None:
        """Write one block, read it back, and undo nothing: the overlay takes care of that."""
        offset = device.size // 2 // _BLOCK * _BLOCK
        before = _read(device, offset, _BLOCK)
        written = bytes(byte ^ 0xFF for byte in before)
        device.write(memoryview(written), offset)
        device.flush()
        self.insist(_read(device, offset, _BLOCK) == written, "a write cannot be read back")
        with (self.folder / "exported.ext4").open("rb") as file:
            file.seek(offset)
            self.insist(file.read(_BLOCK) == before, "the write reached what was exported")
        click.echo(f"  wrote {human_size(_BLOCK)} at {human_size(offset)} and read it back")

    def bootstream(self, *arguments: str, quiet: bool = False) -> str:
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
    def running(self, *arguments: str) -> Iterator[None]:
        """Run a server that prints a line once it listens, and end it as init would."""
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
            env=self.environment,
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
