"""``image push``, ``image pull`` and ``image cp``."""

from __future__ import annotations

from typing import Any

import click

from bootstream import wiring
from bootstream.cli.base import json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.imageplaces import (
    PROVIDER,
    BuildName,
    Images,
    is_build,
    parse_build,
    remote_options,
    tag_of,
)
from bootstream.cli.imagesall import copy_all
from bootstream.cli.output import emit_json
from bootstream.errors import InvalidInput
from bootstream.ids import validate_build_id, validate_template_id
from bootstream.images.platform import Platform

platform_option = click.option(
    "--platform", metavar="OS/ARCH", help="The image for this platform alone; all if left out."
)


@verb(
    "push",
    """
    bootstream image push debian:12 -t debian
    bootstream image push oci:app app 7d8b1c0e-52a9-4a6e-9d0c-3f5b8e2a1c44
    """,
)
@click.argument("image")
@click.argument("template", required=False)
@click.argument("build", required=False)
@click.option("-t", "--tag", "name", metavar="TEMPLATE", help="Whose image it becomes.")
@click.option("--build-id", metavar="UUID", help="With -t: its build; a new one if left out.")
@platform_option
@remote_options
@json_option
@pass_cli
def push(
    cli: Cli,
    /,
    image: str,
    template: str | None,
    build: str | None,
    name: str | None,
    build_id: str | None,
    platform: str | None,
    plain_http: bool,
    ca: str | None,
    as_json: bool,
) -> None:
    r"""Store an image as a template's.

    \b
    IMAGE is any reference (debian:12, oci:DIR, docker-archive:FILE) or TEMPLATE/BUILD.
    It becomes the image of TEMPLATE BUILD, also written TEMPLATE/BUILD; or with -t of a
    build whose id is made now.

    All platforms are stored, byte for byte. The image has its name last: interrupted, it
    leaves nothing that anybody sees. Prints the build id, alone, on stdout.
    """
    target = _target_of(template, build, name, build_id)
    wanted = None if platform is None else Platform.parse(platform)
    with Images(cli, plain_http=plain_http, ca_file=ca) as images, cli.job() as progress:
        content = images.source(image)
        digest = images.store(content, str(target), progress, platform=wanted)
        reference = images.registry().get_tag(target.template_id, target.build_id)
        cli.interruption.settle()
    if as_json:
        emit_json(
            {
                "template_id": target.template_id,
                "build_id": target.build_id,
                "reference": reference,
                "digest": digest,
            }
        )
        return
    cli.tell(f"{reference} is {digest}")
    click.echo(target.build_id)


def _target_of(
    template: str | None, build: str | None, name: str | None, build_id: str | None
) -> BuildName:
    """Return the build that is named in one of the ways there are."""
    if (template is None) == (name is None):
        raise InvalidInput(
            "one of TEMPLATE and -t is needed",
            operation="image push",
            remedy="write TEMPLATE BUILD, or -t TEMPLATE for a new build id",
        )
    if name is not None:
        from bootstream.templates.names import new_build_id  # noqa: PLC0415 - rarely needed

        chosen = new_build_id() if build_id is None else validate_build_id(build_id)
        return BuildName(validate_template_id(name), chosen)
    assert template is not None
    if build_id is not None:
        raise InvalidInput("--build-id goes with -t", operation="image push")
    if build is None:
        return parse_build(template)
    return BuildName(validate_template_id(template), validate_build_id(build))


@verb(
    "pull",
    """
    bootstream image pull debian:12 -o oci:debian:12
    bootstream image pull debian/7d8b1c0e-52a9-4a6e-9d0c-3f5b8e2a1c44 -o oci:images
    bootstream image pull ghcr.io/org/app:3
    """,
)
@click.argument("image")
@click.option(
    "-o",
    "--output",
    metavar="oci:DIR[:TAG]",
    help="An OCI image layout; the cache of layers if left out.",
)
@click.option(
    "--platform",
    metavar="OS/ARCH",
    help="The image for this platform alone; with -o all if left out, else this host's.",
)
@remote_options
@json_option
@pass_cli
def pull(
    cli: Cli,
    image: str,
    output: str | None,
    platform: str | None,
    plain_http: bool,
    ca: str | None,
    as_json: bool,
) -> None:
    """Bring an image to this host.

    IMAGE is TEMPLATE/BUILD in the registry, or any reference. With -o it is copied into an
    OCI image layout, byte for byte, with all platforms; without a TAG it is called what it
    was called before: its build, or its tag. Without -o its layers come into the cache,
    where 'bootstream build' finds them.

    Prints the image's digest. Interrupted, it leaves no layout, and no name in one that
    was there; what broke off otherwise goes on when it is run again.
    """
    wanted = None if platform is None else Platform.parse(platform)
    with Images(cli, plain_http=plain_http, ca_file=ca) as images, cli.job() as progress:
        if output is None:
            found = open_image(cli, images, image, platform, plain_http=plain_http, ca_file=ca)
            found.fetch(progress)
            digest, place = found.digest, "the cache"
        else:
            place = _layout(output)
            images.check_target(output)
            content = images.source(image)
            digest = images.store(content, output, progress, platform=wanted, tag=tag_of(image))
        cli.interruption.settle()
    if as_json:
        emit_json({"source": image, "destination": output, "digest": digest})
        return
    cli.tell(f"{image} is in {place}")
    click.echo(digest)


def _layout(output: str) -> str:
    if not output.startswith("oci:"):
        raise InvalidInput(
            "it is not an OCI image layout",
            operation="pull to",
            object=output,
            remedy="write oci:DIR or oci:DIR:TAG; 'bootstream image cp' copies to registries",
        )
    return output


def open_image(
    cli: Cli,
    images: Images,
    text: str,
    platform: str | None,
    *,
    plain_http: bool = False,
    ca_file: str | None = None,
) -> Any:
    """Return an image for one platform, with layers that can be fetched."""
    if is_build(text):
        build = parse_build(text)
        return images.registry().get_image(build.template_id, build.build_id, platform)
    return wiring.open_image(
        cli.settings, text, platform=platform, plain_http=plain_http, ca_file=ca_file
    )


@verb(
    "cp",
    """
    bootstream image cp debian:12 registry.example/base/debian:12
    bootstream image cp oci:app:3 app/7d8b1c0e-52a9-4a6e-9d0c-3f5b8e2a1c44
    bootstream image cp --all --from AWS_ECR --to OCI_OCIR
    bootstream image cp --all --from AWS_ECR --to OCI_OCIR debian py311
    """,
)
@click.argument("names", metavar="SOURCE DESTINATION", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every image, or those of TEMPLATE....")
@click.option(
    "--from",
    "source_provider",
    metavar="PROVIDER",
    type=PROVIDER,
    help="Registry of SOURCE's build, as ARTIFACTS_REGISTRY_PROVIDER names it.",
)
@click.option(
    "--to",
    "target_provider",
    metavar="PROVIDER",
    type=PROVIDER,
    help="Registry of DESTINATION's build.",
)
@platform_option
@remote_options
@json_option
@pass_cli
def cp(
    cli: Cli,
    /,
    names: tuple[str, ...],
    everything: bool,
    source_provider: str | None,
    target_provider: str | None,
    platform: str | None,
    plain_http: bool,
    ca: str | None,
    as_json: bool,
) -> int:
    """Copy an image, or all of a registry, byte for byte.

    SOURCE and DESTINATION are TEMPLATE/BUILD or references: HOST/NAME:TAG, oci:DIR[:TAG];
    SOURCE may be an archive. All platforms are copied, and digests stay. Layers that are
    there are not sent; within one registry they are mounted; nothing is kept on disk.

    --from and --to name the registries of builds, the one that the settings name if left
    out. Each provider has variables of its own: with those of both clouds set, --all moves
    every image, or those of the templates that are named. It may be run again, and then
    copies what is missing. An image that cannot be copied is told, and the rest goes on.

    Prints the digest; with --all, builds that were copied.
    """
    wanted = None if platform is None else Platform.parse(platform)
    with Images(cli, plain_http=plain_http, ca_file=ca) as images:
        if everything:
            if wanted is not None:
                raise InvalidInput("--all copies all platforms", operation="image cp")
            return copy_all(cli, images, source_provider, target_provider, names, as_json=as_json)
        if len(names) != 2:
            raise click.UsageError("SOURCE and DESTINATION are needed, or --all")
        source, destination = names
        images.check_target(destination, target_provider)
        with cli.job() as progress:
            digest = images.store(
                images.source(source, source_provider),
                destination,
                progress,
                provider=target_provider,
                platform=wanted,
                tag=tag_of(source),
            )
            cli.interruption.settle()
    if as_json:
        emit_json({"source": source, "destination": destination, "digest": digest})
    else:
        click.echo(digest)
    return 0
