"""``build``."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from bootstream import wiring
from bootstream.cli.base import SIZE, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.output import emit_json, human_size, percent
from bootstream.cli.remote import build_there, print_built, server_option
from bootstream.errors import InvalidInput
from bootstream.rootfs import Ext4Options, ExtraFile
from bootstream.templates.build import BuildOptions, Published
from bootstream.templates.names import TemplateName

_ADD = re.compile(
    r"(?P<source>.+?):(?P<target>/[^:]*)(:(?P<mode>0?[0-7]{3,4})(:(?P<uid>\d+):(?P<gid>\d+))?)?"
)


def storing_options(function: Any) -> Any:
    """Options of how a build is stored, shared by ``build`` and ``import``."""
    options = [
        click.option("--chunk-size", type=SIZE, help="Bytes of a chunk; a power of two."),
        click.option("--level", type=int, help="Level of zstd compression."),
        click.option("--threads", type=click.IntRange(min=1), help="Compressors at a time."),
        click.option(
            "--form",
            type=click.Choice(["chunked", "raw"]),
            default="chunked",
            show_default=True,
            help="Chunked and compressed, or the bytes as they are.",
        ),
        click.option(
            "--parent",
            metavar="REF|auto|none",
            default="auto",
            show_default=True,
            help="Build to share chunks with; auto is what the tag, or latest, names now.",
        ),
        click.option("--build-id", metavar="UUID", help="Use this build id, never used before."),
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


def name_option(function: Any) -> Any:
    """The name of what is made."""
    return click.option(
        "-t", "--tag", "name", metavar="NAME[:TAG]", required=True, help="Name of the template."
    )(function)


def registry_options(function: Any) -> Any:
    """A build's image in the registry, in the place of a reference."""
    function = click.option(
        "--build", "image_build", metavar="BUILD", help="With --template: which build's image."
    )(function)
    return click.option(
        "--template",
        "image_template",
        metavar="TEMPLATE",
        help="Build from this template's image in the registry, in the place of REF.",
    )(function)


@verb(
    "build",
    """
    bootstream build oci:debian:12 -t debian
    bootstream build registry.example/app:3 -t app:3 --free 1G --add ./init:/sbin/init:0755
    bootstream build --template app --build 7d8b1c0e-52a9-4a6e-9d0c-3f5b8e2a1c44
    """,
)
@click.argument("reference", metavar="REF", required=False)
@click.option(
    "-t",
    "--tag",
    "name",
    metavar="NAME[:TAG]",
    help="Name of the template; that of --template if left out.",
)
@registry_options
@click.option(
    "--platform", metavar="OS/ARCH", help="Platform of the image; this host's if left out."
)
@click.option("--size", type=SIZE, help="Size of the file system.")
@click.option("--free", type=SIZE, help="Free space in the file system, instead of --size.")
@click.option("--inodes", type=click.IntRange(min=1), help="How many inodes it has at least.")
@click.option("--inode-ratio", type=SIZE, help="One inode for this many bytes.")
@click.option("--label", help="Label of the file system.")
@click.option("--block-size", type=SIZE, help="Block size of the file system.")
@click.option(
    "--add",
    "additions",
    metavar="SRC:DEST[:MODE[:UID:GID]]",
    multiple=True,
    help="Put a file of this host into the image. Repeatable.",
)
@storing_options
@click.option("--plain-http", is_flag=True, help="Speak http to the registry.")
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificates to trust for the registry (PEM).",
)
@server_option
@pass_cli
def build(
    cli: Cli,
    /,
    reference: str | None,
    name: str | None,
    image_template: str | None,
    image_build: str | None,
    platform: str | None,
    build_id: str | None,
    as_json: bool,
    plain_http: bool,
    ca: str | None,
    server: str | None,
    **options: Any,
) -> None:
    r"""Build a template from a container image.

    \b
    REF is one of
      debian:12, ghcr.io/org/app@sha256:...   an image in a registry
      oci:DIR[:TAG], oci-archive:FILE[:TAG]   an OCI image layout
      docker-archive:FILE[:TAG]               what 'docker save' writes

    or left out: --template and --build name an image in the registry of templates' images
    (ARTIFACTS_REGISTRY_PROVIDER), where 'bootstream image push' and others put it. Where it
    is missing nothing is taken in its place.

    The image becomes an ext4 file system, chunks that the parent build has are shared,
    and the rest is compressed and stored. Prints the build id, alone, on stdout. Nothing
    shows before it is whole; interrupted, it leaves nothing.
    """
    target = TemplateName.parse(_name(name, image_template))
    wanted = build_options(options)
    if server is not None:
        if options["additions"] or ca is not None:
            raise click.UsageError(
                "--add and --ca are files of this host; --server cannot have them"
            )
        request = {key: value for key, value in options.items() if key != "additions"}
        request |= {"image": reference, "platform": platform, "plain_http": plain_http}
        if image_template is not None or image_build is not None:
            template_id, image_id = _image_ids(reference, image_template, image_build)
            request["registry"] = {"template_id": template_id, "build_id": image_id}
        document = build_there(cli, server, target, build_id, request)
        print_built(cli, document, as_json=as_json)
        return
    with ExitStack() as stack, cli.job() as progress:
        if image_template is not None or image_build is not None:
            template_id, image_id = _image_ids(reference, image_template, image_build)
            registry = wiring.get_artifacts_registry_provider(cli.settings)
            stack.callback(registry.close)
            image = registry.get_image(template_id, image_id, platform)
        elif reference is not None:
            image = wiring.open_image(
                cli.settings, reference, platform=platform, plain_http=plain_http, ca_file=ca
            )
        else:
            raise click.UsageError("REF is missing, or --template and --build")
        published = wiring.open_builder(cli.settings, cli.storage).from_image(
            image, target, build_id=build_id, options=wanted, progress=progress
        )
        cli.interruption.settle()
    print_published(cli, published, as_json=as_json)


def _name(name: str | None, image_template: str | None) -> str:
    """Return the name of what is made."""
    if name is None and image_template is None:
        raise click.UsageError("Missing option '-t' / '--tag'")
    return name if name is not None else str(image_template)


def _image_ids(
    reference: str | None, template_id: str | None, build_id: str | None
) -> tuple[str, str]:
    """Return the ids of the image in the registry."""
    if template_id is None or build_id is None:
        raise click.UsageError("--template and --build come together")
    if reference is not None:
        raise click.UsageError("REF and --template exclude each other")
    return template_id, build_id


def build_options(options: dict[str, Any]) -> BuildOptions:
    """Return the library's options for those of the command line; unset ones are its defaults."""
    if options.get("size") and options.get("free"):
        raise InvalidInput("--size and --free exclude each other", operation="build")
    if options.get("inodes") and options.get("inode_ratio"):
        raise InvalidInput("--inodes and --inode-ratio exclude each other", operation="build")
    rootfs = {
        key: options[key]
        for key in ("size", "free", "inodes", "inode_ratio", "label", "block_size")
        if options.get(key) is not None
    }
    additions = tuple(parse_addition(text) for text in options.get("additions", ()))
    if additions:
        rootfs["extra_files"] = additions
    form: Literal["chunked", "raw"] = "raw" if options["form"] == "raw" else "chunked"
    return BuildOptions(
        rootfs=Ext4Options(**rootfs),
        parent=options["parent"],
        chunk_size=options["chunk_size"],
        level=options["level"],
        threads=options["threads"],
        form=form,
    )


def parse_addition(text: str) -> ExtraFile:
    """Parse ``SRC:DEST[:MODE[:UID:GID]]``; the mode is SRC's own if left out."""
    match = _ADD.fullmatch(text)
    if match is None:
        raise InvalidInput(
            "it is not SRC:DEST[:MODE[:UID:GID]]",
            operation="read --add",
            object=text,
            remedy="write e.g. ./init:/sbin/init:0755:0:0; DEST begins with '/'",
        )
    source = Path(match["source"])
    if not source.is_file():
        raise InvalidInput(
            "there is no such regular file", operation="read --add", object=str(source)
        )
    mode = int(match["mode"], 8) if match["mode"] else source.stat().st_mode & 0o7777
    return ExtraFile(
        source=source,
        target=match["target"],
        mode=mode,
        uid=int(match["uid"] or 0),
        gid=int(match["gid"] or 0),
    )


def print_published(cli: Cli, published: Published, *, as_json: bool) -> None:
    """Print the build id; with JSON also what became of every artifact's chunks."""
    manifest = published.manifest
    if as_json:
        artifacts = {name: asdict(summary) for name, summary in published.summaries.items()}
        emit_json(
            {
                "build_id": manifest.build_id,
                "template_id": manifest.template_id,
                "parent": manifest.parent,
                "size": manifest.size,
                "stored_size": manifest.stored_size,
                "artifacts": artifacts,
            }
        )
        return
    cli.tell(
        f"stored {human_size(manifest.stored_size)} for {human_size(manifest.size)} "
        f"({percent(manifest.stored_size, manifest.size)})"
    )
    click.echo(manifest.build_id)
