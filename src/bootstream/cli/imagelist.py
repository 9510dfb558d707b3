"""``image ls``, ``image show`` and ``image rm``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.imageplaces import Images, parse_build, remote_options
from bootstream.cli.output import emit_json, human_size, printable, short_time, table
from bootstream.errors import Corrupt, ImageNotFound, InvalidInput
from bootstream.images.platform import Platform
from bootstream.images.transfer import TransferSource, image_of, make_plan, offered

if TYPE_CHECKING:
    from bootstream.images.image import SourcedImage
    from bootstream.images.manifest import Descriptor


@verb(
    "ls",
    """
    bootstream image ls
    bootstream image ls debian --json | jq -r '.[].build_id'
    """,
)
@click.argument("template", required=False)
@json_option
@pass_cli
def ls(cli: Cli, template: str | None, as_json: bool) -> None:
    """List the images of templates in the registry.

    By template and build; with TEMPLATE, only that one's. SIZE and PUSHED are known where
    the registry tells them.
    """
    with Images(cli) as images:
        registry = images.registry()
        found = list(registry.list_images(template))
        where = registry.details().location
    if as_json:
        emit_json(
            [
                {
                    "template_id": image.template_id,
                    "build_id": image.build_id,
                    "reference": image.reference,
                    "digest": image.digest,
                    "size": image.size,
                    "pushed": image.pushed,
                }
                for image in found
            ]
        )
        return
    rows = [
        (
            image.template_id,
            image.build_id,
            image.digest.partition(":")[2][:12],
            "-" if image.size is None else human_size(image.size),
            "-" if image.pushed is None else short_time(image.pushed),
        )
        for image in found
    ]
    if rows:
        table(("TEMPLATE", "BUILD", "DIGEST", "SIZE>", "PUSHED"), rows)
    else:
        cli.tell(f"no images in {where}; 'bootstream image push IMAGE -t TEMPLATE' stores one")


@verb(
    "show",
    """
    bootstream image show debian:12
    bootstream image show debian/7d8b1c0e-52a9-4a6e-9d0c-3f5b8e2a1c44 --platform linux/arm64
    bootstream image show oci:debian --json | jq .image.config
    """,
)
@click.argument("image")
@click.option("--platform", metavar="OS/ARCH", help="Which image; this host's if left out.")
@remote_options
@json_option
@pass_cli
def show(
    cli: Cli, image: str, platform: str | None, plain_http: bool, ca: str | None, as_json: bool
) -> None:
    """Show an image: platforms, layers, configuration.

    IMAGE is TEMPLATE/BUILD in the registry, or any reference. Layers are not downloaded.
    Of an image without one for this host only the platforms are shown.
    """
    wanted = None if platform is None else Platform.parse(platform)
    with Images(cli, plain_http=plain_http, ca_file=ca) as images, cli.interruption:
        content = images.source(image)
        entries = offered(content)
        found: SourcedImage | None = None
        if wanted is None and len(entries) == 1:
            wanted = entries[0][1]  # the only one, whatever this host is
        try:
            found = image_of(content, wanted)
        except ImageNotFound:
            if wanted is not None:
                raise
        size = make_plan(content).size
    facts = _facts(content, entries, found, size)
    if as_json:
        emit_json(facts)
    else:
        _print(facts)


def _facts(
    content: TransferSource,
    entries: tuple[tuple[Descriptor, Platform | None], ...],
    found: SourcedImage | None,
    size: int,
) -> dict[str, Any]:
    return {
        "reference": content.name,
        "digest": content.root.digest,
        "media_type": content.root.media_type,
        "size": size,
        "platforms": [
            {
                "platform": None if platform is None else str(platform),
                "digest": entry.digest,
                "attestation": entry.is_attestation,
            }
            for entry, platform in entries
        ],
        "image": None if found is None else _image(found),
    }


def _image(found: SourcedImage) -> dict[str, Any]:
    config = found.config
    return {
        "platform": str(found.platform),
        "digest": found.digest,
        "size": sum({layer.digest: layer.size for layer in found.layers}.values()),
        "layers": [
            {
                "digest": layer.digest,
                "diff_id": layer.diff_id,
                "size": layer.size,
                "media_type": layer.media_type,
            }
            for layer in found.layers
        ],
        "config": {
            "env": list(config.env),
            "entrypoint": list(config.entrypoint),
            "cmd": list(config.cmd),
            "user": config.user,
            "working_dir": config.working_dir,
            "labels": dict(config.labels),
        },
    }


def _print(facts: dict[str, Any]) -> None:
    def line(name: str, value: str) -> None:
        if value:
            click.echo(f"{name + ':':<12}{printable(value)}")

    line("reference", facts["reference"])
    line("digest", facts["digest"])
    line("type", facts["media_type"])
    line("size", f"{human_size(facts['size'])} of layers and configurations")
    platforms = [entry for entry in facts["platforms"] if not entry["attestation"]]
    line("platforms", ", ".join(entry["platform"] or "unknown" for entry in platforms))
    image = facts["image"]
    if image is None:
        return
    click.echo()
    config = image["config"]
    line("image", image["platform"])
    line("manifest", image["digest"])
    line("entrypoint", shlex.join(config["entrypoint"]))
    line("command", shlex.join(config["cmd"]))
    line("user", config["user"])
    line("folder", config["working_dir"])
    for entry in config["env"]:
        line("env", entry)
    for name, value in sorted(config["labels"].items()):
        line("label", f"{name}={value}")
    click.echo()
    rows = [
        (layer["digest"], human_size(layer["size"]), layer["media_type"].rpartition(".")[2])
        for layer in image["layers"]
    ]
    table(("LAYER", "SIZE>", "TYPE"), rows)


@verb(
    "rm",
    """
    bootstream image rm debian/7d8b1c0e-52a9-4a6e-9d0c-3f5b8e2a1c44
    """,
)
@click.argument("images", metavar="TEMPLATE/BUILD...", nargs=-1, required=True)
@json_option
@pass_cli
def rm(cli: Cli, images: tuple[str, ...], as_json: bool) -> None:
    """Remove templates' images.

    The build's tag goes, and the contents unless another build shares them: what is left
    stays whole. Templates that were built from the image are not touched. Prints what was
    removed.
    """
    builds = [parse_build(text) for text in images]
    deleted = []
    with Images(cli) as opened, cli.interruption:
        registry = opened.registry()
        for build in builds:
            cli.interruption.check()
            try:
                registry.open_content(build.template_id, build.build_id)
            except (Corrupt, InvalidInput) as error:  # damaged: all the more may it go
                cli.warn(f"{build}: {error}")
            registry.delete(build.template_id, build.build_id)
            deleted.append(str(build))
            if not as_json:
                click.echo(str(build))
    if as_json:
        emit_json({"deleted": deleted})
