"""``demo``: the main job from image to empty store, on a store of its own.

Every step is the command that a person would type, run as one; only the reading back
is done here, by the package's own NBD client, so that no other program is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bootstream.cli.base import verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.demo_image import TAG, write_layout
from bootstream.cli.output import human_size, percent
from bootstream.errors import AlreadyExists, BootstreamError, Corrupt
from bootstream.nbd.client import connect

_BLOCK = 1 << 20


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
        with self._serving("demo:2"):
            with connect(f"nbd+unix:///?socket={self.folder / 'nbd.sock'}") as device:
                started = time.monotonic()
                actual = _sha256_of_device(device)
                speed = device.size / (time.monotonic() - started)
                click.echo(f"  sha256 of the export {expected[:16]}…, over NBD {actual[:16]}…")
                click.echo(f"  read {human_size(device.size)} at {human_size(speed)}/s")
                self._insist(actual == expected, "the device is not what was exported")
                self._write_to_overlay(device)
        self._say("the write went to a throw-away overlay: the template is what it was")
        self._bootstream("verify", "demo:2")

    def _write_to_overlay(self, device: object) -> None:
        raise NotImplementedError

    def _tidy(self) -> None:
        self._say("delete, collect: nothing is left")
        self._bootstream("rm", "demo", "--all")
        self._bootstream("gc", "--older-than", "0s")
        left = sorted(p for p in (self.folder / "templates").rglob("*") if not p.is_dir())
        self._insist(not left, f"{len(left)} files are left in the store")
        click.echo("  the store is empty")
