"""``image cp --all``: every image of one registry to another, as when a fleet moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from bootstream.cli.context import Cli
from bootstream.cli.errors import exit_code
from bootstream.cli.imageplaces import Images
from bootstream.cli.output import emit_json
from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    Corrupt,
    ImageNotFound,
    InvalidInput,
)

if TYPE_CHECKING:
    from bootstream.progress import Progress
    from bootstream.registry.protocol import ArtifactsRegistry, ListedImage

# One image's own trouble; others would stop every other image, too.
_ONE_IMAGES = (AlreadyExists, Corrupt, ImageNotFound, InvalidInput)


def copy_all(
    cli: Cli,
    images: Images,
    source_provider: str | None,
    target_provider: str | None,
    templates: Sequence[str],
    *,
    as_json: bool,
) -> int:
    """Copy the images of ``templates``, of all if empty; return the exit code."""
    if (source_provider or cli.settings.registry.provider) == (
        target_provider or cli.settings.registry.provider
    ):
        raise InvalidInput(
            "both are one registry",
            operation="image cp --all",
            remedy="name the other one, e.g. --from AWS_ECR --to OCI_OCIR",
        )
    source, target = images.registry(source_provider), images.registry(target_provider)
    done: list[dict[str, Any]] = []
    first: BootstreamError | None = None
    with cli.job() as progress:
        for image in _listed(source, templates):
            one, error = _copy(source, target, image, progress)
            first = first or error
            done.append(one)
            name = f"{image.template_id}/{image.build_id}"
            if error is not None:
                cli.print_line(f"error: {name}: {error}")
            elif not as_json:
                click.echo(name)
        cli.interruption.settle()
    if as_json:
        emit_json(done)
    failed = sum(one["error"] is not None for one in done)
    cli.tell(
        f"{len(done) - failed} images are in {target.details().location}"
        + (f", {failed} could not be copied" if failed else "")
    )
    return 0 if first is None else exit_code(first)


def _listed(source: ArtifactsRegistry, templates: Sequence[str]) -> Iterator[ListedImage]:
    names: list[str | None] = list(dict.fromkeys(templates))
    for template in names or [None]:
        found = False
        for image in source.list_images(template):
            found = True
            yield image
        if template is not None and not found:
            raise ImageNotFound(
                "the template has no images", operation="image cp --all", object=template
            )


def _copy(
    source: ArtifactsRegistry, target: ArtifactsRegistry, image: ListedImage, progress: Progress
) -> tuple[dict[str, Any], BootstreamError | None]:
    """Copy one image; return what became of it, for JSON, and its own trouble."""
    error: BootstreamError | None = None
    try:
        target.copy_image(source, image.template_id, image.build_id, progress)
    except _ONE_IMAGES as raised:
        error = raised
    return {
        "template_id": image.template_id,
        "build_id": image.build_id,
        "source": image.reference,
        "destination": target.get_tag(image.template_id, image.build_id),
        "digest": image.digest,
        "error": None if error is None else str(error),
    }, error
