"""Repositories and images as the Artifacts API writes them: the fields of OCI's SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bootstream.localoci.service import timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bootstream.localoci.registry.values import Image, Repository

_GB = 1 << 30


def image_summary(image: Image) -> dict[str, Any]:
    """A ``ContainerImageSummary``."""
    repository = image.repository
    return {
        "id": image.id,
        "compartmentId": repository.compartment,
        "digest": image.digest,
        "displayName": image.display_name,
        "lifecycleState": image.state,
        "repositoryId": repository.id,
        "repositoryName": repository.name,
        "timeCreated": timestamp(image.created),
        "version": image.versions[-1].version if image.versions else None,
        **_TAGS,
    }


def image_document(image: Image) -> dict[str, Any]:
    """A ``ContainerImage``; its layers are in the order of their digests."""
    created = timestamp(image.created)
    return image_summary(image) | {
        "createdBy": image.created_by,
        "layers": [
            {"digest": digest, "sizeInBytes": size, "timeCreated": created}
            for digest, size in sorted(image.layers.items())
        ],
        "layersSizeInBytes": sum(image.layers.values()),
        "manifestSizeInBytes": image.size,
        "pullCount": image.pulls,
        "timeLastPulled": None if image.pulled is None else timestamp(image.pulled),
        "versions": [
            {
                "version": version.version,
                "timeCreated": timestamp(version.created),
                "createdBy": version.created_by,
            }
            for version in reversed(image.versions)
        ],
    }


def repository_summary(
    repository: Repository, images: Sequence[Image], namespace: str
) -> dict[str, Any]:
    """A ``ContainerRepositorySummary``."""
    counts = totals(images)
    return {
        "id": repository.id,
        "compartmentId": repository.compartment,
        "displayName": repository.name,
        "namespace": namespace,
        "isPublic": repository.public,
        "lifecycleState": "AVAILABLE",
        "timeCreated": timestamp(repository.created),
        "billableSizeInGBs": -(-counts["layersSizeInBytes"] // _GB),
        **counts,
        **_TAGS,
        **_given(repository, "freeformTags", "definedTags"),
    }


def repository_document(
    repository: Repository, images: Sequence[Image], namespace: str
) -> dict[str, Any]:
    """A ``ContainerRepository``."""
    pushed = repository.pushed
    return repository_summary(repository, images, namespace) | {
        "createdBy": repository.created_by,
        "isImmutable": repository.immutable,
        "timeLastPushed": None if pushed is None else timestamp(pushed),
        "readme": repository.details.get("readme"),
    }


def totals(images: Sequence[Image]) -> dict[str, int]:
    """Counts of images, and of the layers of their repositories, each once."""
    layers: dict[tuple[str, str], int] = {}
    for image in images:
        layers |= {(image.repository.id, digest): size for digest, size in image.layers.items()}
    return {
        "imageCount": sum(image.state == "AVAILABLE" for image in images),
        "layerCount": len(layers),
        "layersSizeInBytes": sum(layers.values()),
    }


_TAGS: Mapping[str, Any] = {"freeformTags": {}, "definedTags": {}, "systemTags": {}}


def _given(repository: Repository, *names: str) -> dict[str, Any]:
    return {name: repository.details[name] for name in names if name in repository.details}
