"""``export`` and ``import``: raw files out of and into the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bootstream import wiring
from bootstream.chunks.reader import export_artifact, load_index
from bootstream.cli.base import REF, verb
from bootstream.cli.build import build_options, name_option, print_published, storing_options
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.localfile import appearing
from bootstream.cli.output import human_size
from bootstream.errors import InvalidInput
from bootstream.templates.build import ROOTFS
from bootstream.templates.names import TemplateName


@verb(
    "export",
    """
    bootstream export debian debian.ext4
    bootstream export debian:12 memory --artifact memfile --force
    """,
)
@click.argument("ref", type=REF)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--artifact", default=ROOTFS, show_default=True, help="Which artifact of the build.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@pass_cli
def export(cli: Cli, ref: str, file: Path, artifact: str, force: bool) -> None:
    """Write an artifact to a raw file.

    The file is sparse, every byte of it was checked, and it appears whole or not at all.
    """
    manifest = cli.catalogue.resolve(ref)
    entry = manifest.artifact(artifact)
    with cli.job() as progress, appearing(file, operation="export to", replace=force) as target:
        index = load_index(
            cli.storage,
            manifest.build_id,
            artifact,
            sha256=entry.index_sha256,
            size=entry.index_size,
        )
        export_artifact(cli.storage, index, artifact, target, progress=progress)
    cli.tell(f"{file}: {human_size(entry.size)}")


@verb(
    "import",
    """
    bootstream import rootfs.ext4 -t debian
    bootstream import disk.img -t app:3 --artifact memfile=mem.bin --artifact snapfile=snap.bin
    """,
)
@click.argument("file", type=click.Path(path_type=Path))
@name_option
@click.option(
    "--artifact",
    "artifacts",
    metavar="NAME=FILE",
    multiple=True,
    help="Another artifact of the same build. Repeatable.",
)
@storing_options
@pass_cli
def import_(
    cli: Cli,
    /,
    file: Path,
    name: str,
    artifacts: tuple[str, ...],
    build_id: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Publish a raw image as a template.

    FILE becomes the root file system, as it is. Prints the build id, alone, on stdout.
    """
    files = {ROOTFS: file}
    for text in artifacts:
        artifact, equals, path = text.partition("=")
        if not equals or not artifact or not path:
            raise InvalidInput("it is not NAME=FILE", operation="read --artifact", object=text)
        if artifact in files:
            raise InvalidInput(
                "the artifact is named twice", operation="read --artifact", object=artifact
            )
        files[artifact] = Path(path)
    target = TemplateName.parse(name)
    wanted = build_options(options)
    with cli.job() as progress:
        published = wiring.open_builder(cli.settings, cli.storage).from_files(
            files, target, build_id=build_id, options=wanted, progress=progress
        )
        cli.interruption.settle()
    print_published(cli, published, as_json=as_json)
