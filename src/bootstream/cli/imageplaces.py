"""What people write for an image: a build's in the registry, or a reference of any kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bootstream import wiring
from bootstream.cli.context import Cli
from bootstream.config import REGISTRY_PROVIDERS, Settings
from bootstream.errors import Cancelled, InvalidInput
from bootstream.ids import is_build_id, is_template_id, validate_build_id, validate_template_id
from bootstream.images.reference import (
    DockerArchiveReference,
    LayoutReference,
    RegistryReference,
    parse_reference,
)
from bootstream.images.transfer import TransferSource, copy, narrowed

if TYPE_CHECKING:
    from bootstream.images.platform import Platform
    from bootstream.progress import Progress
    from bootstream.registry.protocol import ArtifactsRegistry


@dataclass(frozen=True, slots=True)
class BuildName:
    """A build's image in a registry."""

    template_id: str
    build_id: str

    def __str__(self) -> str:
        return f"{self.template_id}/{self.build_id}"


class Provider(click.ParamType[str]):
    """A provider of registries, in any case of letters."""

    name = "provider"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse, or fail as a usage error."""
        known = {name.lower(): name for name in REGISTRY_PROVIDERS}
        if str(value).lower() not in known:
            self.fail(f"{value!r} is none of {', '.join(REGISTRY_PROVIDERS)}", param, ctx)
        return known[str(value).lower()]


PROVIDER = Provider()


def remote_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of how registries that references name are spoken to."""
    function = click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False),
        help="Certificates to trust for the registry of a reference (PEM).",
    )(function)
    return click.option(
        "--plain-http", is_flag=True, help="Speak http to the registry of a reference."
    )(function)


def parse_build(text: str) -> BuildName:
    """Return the build of ``TEMPLATE/BUILD``. Raises InvalidInput."""
    template, slash, build = text.partition("/")
    if not slash or "/" in build or not is_build_id(build):
        raise InvalidInput(
            "it is not TEMPLATE/BUILD",
            operation="read",
            object=ascii(text)[1:-1][:200],
            remedy="write it as 'bootstream image ls' shows it, the build's id in full",
        )
    return BuildName(validate_template_id(template), validate_build_id(build))


def is_build(text: str) -> bool:
    """Whether ``text`` has the form ``TEMPLATE/BUILD``."""
    template, _, build = text.partition("/")
    return is_template_id(template) and is_build_id(build)


def tag_of(text: str) -> str | None:
    """Return what an image is called in a layout if nobody says it: its build, or its tag."""
    if is_build(text):
        return parse_build(text).build_id
    reference = parse_reference(text)
    if isinstance(reference, DockerArchiveReference):
        return reference.image.tag if reference.image else None
    return reference.tag


class Images:
    """Opens registries, each once; a context manager that closes them.

    Args:
        cli: of this invocation.
        plain_http, ca_file: of registries that references name.
    """

    def __init__(self, cli: Cli, *, plain_http: bool = False, ca_file: str | None = None) -> None:
        self._cli = cli
        self._plain_http = plain_http
        self._ca_file = ca_file
        self._registries: dict[str | None, ArtifactsRegistry] = {}

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        for registry in self._registries.values():
            registry.close()

    def registry(self, provider: str | None = None) -> ArtifactsRegistry:
        """Return the registry that the settings name, or that of another provider.

        Every provider has variables of its own, so that those of two clouds stand side by side.

        Raises:
            InvalidInput, PermissionDenied: as ``wiring.get_artifacts_registry_provider``.
        """
        if provider not in self._registries:
            settings = self._cli.settings
            if provider is not None:
                environment = {**os.environ, "ARTIFACTS_REGISTRY_PROVIDER": provider}
                settings = Settings.from_environment(environment)
            self._registries[provider] = wiring.get_artifacts_registry_provider(settings)
        return self._registries[provider]

    def source(self, text: str, provider: str | None = None) -> TransferSource:
        """Return what ``text`` names, to be looked at or copied.

        Raises:
            ImageNotFound: there is no such image.
            InvalidInput: it is no name of an image, or a provider is named for a reference.
        """
        if is_build(text):
            build = parse_build(text)
            return self.registry(provider).open_content(build.template_id, build.build_id)
        _refuse_provider(text, provider, "--from")
        return wiring.open_image_source(
            self._cli.settings, text, plain_http=self._plain_http, ca_file=self._ca_file
        )

    def check_target(self, text: str, provider: str | None = None) -> None:
        """Refuse, before anything is read, what nothing can be copied to.

        Raises:
            InvalidInput: an archive, a digest, a name that is none.
        """
        if not is_build(text):
            _refuse_provider(text, provider, "--to")
            _target_reference(text)

    def store(
        self,
        content: TransferSource,
        text: str,
        progress: Progress,
        *,
        provider: str | None = None,
        platform: Platform | None = None,
        tag: str | None = None,
    ) -> str:
        """Copy to what ``text`` names; return the digest.

        ``tag``: of a layout, where ``text`` has none. ``platform``: copy the image for this one
        only; None: everything.
        """
        if is_build(text):
            build = parse_build(text)
            if platform is not None:
                content = narrowed(content, platform)
            registry = self.registry(provider)
            return registry.put_content(content, build.template_id, build.build_id, progress)
        reference = _target_reference(text)
        if isinstance(reference, LayoutReference) and reference.tag is None:
            reference = LayoutReference(reference.path, tag)
        target = wiring.open_image_target(
            self._cli.settings, reference, plain_http=self._plain_http, ca_file=self._ca_file
        )
        with _gone_if_interrupted(reference):
            return copy(content, target, progress=progress, platform=platform)


@contextmanager
def _gone_if_interrupted(reference: RegistryReference | LayoutReference) -> Iterator[None]:
    """Remove a layout that was begun anew when somebody calls it off.

    After trouble it stays, without a name that anybody could see: the next try goes on there.
    """
    begun = isinstance(reference, LayoutReference) and not Path(reference.path).exists()
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        if begun and isinstance(reference, LayoutReference):
            shutil.rmtree(reference.path, ignore_errors=True)
        raise


def _target_reference(text: str) -> RegistryReference | LayoutReference:
    """Parse the reference of a place that can be written to."""
    reference = parse_reference(text)
    if isinstance(reference, DockerArchiveReference) or (
        isinstance(reference, LayoutReference) and reference.archive
    ):
        raise InvalidInput(
            "archives are read only",
            operation="copy to",
            object=text,
            remedy="copy to oci:DIR, then: tar -C DIR -cf FILE .",
        )
    if reference.digest:
        raise InvalidInput(
            "an image's digest is its own",
            operation="copy to",
            object=text,
            remedy="name it by a tag, or leave the digest out",
        )
    return reference


def _refuse_provider(text: str, provider: str | None, option: str) -> None:
    if provider is not None:
        raise InvalidInput(
            f"{option} is for a build in a registry, and this is a reference",
            operation="read",
            object=text,
            remedy="write TEMPLATE/BUILD, or leave the option out",
        )
