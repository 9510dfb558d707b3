"""``demo``: the main job from image to empty store, on a store of its own.

Every step is the command that a person would type, run as one; only the reading back
is done here, by the package's own NBD client, so that no other program is needed.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.demo_image import TAG, write_layout
from bootstream.cli.demosteps import Runner
from bootstream.cli.output import human_size, percent
from bootstream.errors import AlreadyExists

if TYPE_CHECKING:
    from bootstream.cli.demooci import OciDemo


@verb(
    "demo",
    """
    bootstream demo
    bootstream demo --keep /tmp/demo
    bootstream demo --oci
    """,
)
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Do it in DIR, which must be new or empty, and leave it there.",
)
@click.option(
    "--oci",
    is_flag=True,
    help="On a local OCI: from its registry into its storage; needs docker-registry.",
)
@pass_cli
def demo(cli: Cli, keep: Path | None, oci: bool) -> None:
    """Run the main job on a store of its own.

    Makes a small container image of files that are on this host, builds templates from
    it, serves, checks, changes, deletes: no cloud, no Docker, no root, no network. Prints
    each command that it runs. With --keep the two templates stay, to be looked at.

    With --oci it does what a host in Oracle's cloud does, on a local one: with nothing but
    an instance principal it pushes images to the Container Registry (OCIR), builds from
    them into Object Storage, serves, checks, and deletes.
    """
    kind: type[Demo | OciDemo] = Demo
    if oci:
        from bootstream.cli.demooci import OciDemo  # noqa: PLC0415 - rarely needed

        kind = OciDemo
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="bootstream-demo-") as folder, cli.interruption:
            kind(Path(folder), cli).run(tidy=True)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise AlreadyExists("the folder is not empty", operation="demo in", object=str(keep))
    with cli.interruption:
        done = kind(keep.absolute(), cli)
        done.run(tidy=False)
    click.echo("\nto look at what is left:")
    click.echo(f"  cd {keep.absolute()}")
    for line in done.how_to_look():
        click.echo(f"  {line}")
    click.echo("  bootstream ls")


class Demo(Runner):
    """The steps, in one folder."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.variables = {
            "LOCAL_TEMPLATE_STORAGE_BASE_PATH": str(folder / "templates"),
            "BOOTSTREAM_CACHE_DIR": str(folder / "cache"),
        }
        others = {"STORAGE_PROVIDER": "Local", "TEMPLATE_BUCKET_PREFIX": ""}
        super().__init__(folder, cli, {**os.environ, **self.variables, **others})

    def run(self, *, tidy: bool) -> None:
        """Do all of it; raises the first thing that is not as it must be."""
        started = time.monotonic()
        self._make()
        self._look()
        self.serve_and_compare("demo:2")
        if tidy:
            self._tidy()
        self.say(f"all of it took {time.monotonic() - started:.1f} s")

    def how_to_look(self) -> list[str]:
        """Return the lines of a shell that make its store the one that commands use."""
        return [f"export {name}={value}" for name, value in self.variables.items()]

    # -- the steps ------------------------------------------------------------------------

    def _make(self) -> None:
        self.say("a container image of three layers, from files of this host")
        write_layout(self.folder / "image", message="version 1")
        size = sum(p.stat().st_size for p in (self.folder / "image").rglob("*") if p.is_file())
        click.echo(f"  image/ is an OCI layout of {human_size(size)}")

        self.say("a template from it: layers to ext4 without root, cut, compressed, published")
        first = self._build("image", "demo:1")

        self.say("one file of the top layer changes: the rebuild stores what is new, no more")
        write_layout(self.folder / "image-2", message="version 2")
        second = self._build("image-2", "demo:2")
        share = percent(second["stored_size"], first["stored_size"])
        click.echo(f"  the second build stored {share} of what the first one did")

    def _look(self) -> None:
        self.say("what the store holds")
        self.bootstream("ls")
        self.bootstream("inspect", "demo:2")
        self.say("files, without mounting anything")
        self.bootstream("files", "demo:2", "/usr/bin", "-l")
        said = self.bootstream("cat", "demo:2:/etc/message")
        self.insist(said == "version 2\n", "the file is not what the image has")

    def _tidy(self) -> None:
        self.say("delete, collect: nothing is left")
        self.bootstream("rm", "demo", "--all")
        self.bootstream("gc", "--older-than", "0s")
        left = sorted(p for p in (self.folder / "templates").rglob("*") if not p.is_dir())
        self.insist(not left, f"{len(left)} files are left in the store")
        click.echo("  the store is empty")

    def _build(self, layout: str, name: str) -> dict[str, Any]:
        """Build a template; return what ``build --json`` says."""
        said = self.bootstream("build", f"oci:{layout}:{TAG}", "-t", name, "--json", quiet=True)
        result: dict[str, Any] = json.loads(said)
        click.echo(
            f"  build {result['build_id']}: {human_size(result['size'])}, "
            f"stored in {human_size(result['stored_size'])}"
        )
        return result
