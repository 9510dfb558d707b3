"""``image``: a group of verbs about container images in registries and layouts."""

from __future__ import annotations

import click

from bootstream.cli.group import group

VERBS: dict[str, tuple[str, str, str]] = {
    "ls": ("imagelist", "ls", "List the images of templates in the registry."),
    "show": ("imagelist", "show", "Show an image: platforms, layers, configuration."),
    "push": ("imagecopy", "push", "Store an image as a template's."),
    "pull": ("imagecopy", "pull", "Bring an image to this host."),
    "cp": ("imagecopy", "cp", "Copy an image, or all of a registry, byte for byte."),
    "rm": ("imagelist", "rm", "Remove templates' images."),
}

_EPILOG = """\b
Examples:
  bootstream image push debian:12 -t debian
  bootstream image ls debian
  bootstream image cp --all --from AWS_ECR --to OCI_OCIR

\b
The registry is what ARTIFACTS_REGISTRY_PROVIDER and its variables name. IMAGE is
TEMPLATE/BUILD there, or any reference: debian:12, HOST/NAME:TAG, oci:DIR[:TAG],
oci-archive:FILE, docker-archive:FILE.
"""


@group("image", VERBS, _EPILOG)
@click.pass_context
def image(context: click.Context) -> None:
    """List, push, pull and copy container images.

    A template's images are kept in the cloud's own registry, one a build.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
