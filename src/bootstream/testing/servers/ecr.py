"""Amazon's ECR: moto has its API and its rules for tags, docker-registry has the images."""

from __future__ import annotations

from typing import Any

from bootstream.testing.servers.registryfront import RegistryFront, registry_error

ACCOUNT = "123456789012"
USER = ("AWS", f"{ACCOUNT}-auth-token")
REGION = "us-east-1"


class EcrFront(RegistryFront):
    """Puts what is pushed into moto, and asks moto what a tag names.

    Args:
        upstream: docker-registry, with ``USER`` as its only one.
        moto: URL of moto's server.
    """

    kept_back = ()

    def __init__(self, upstream: str, moto: str) -> None:
        super().__init__(upstream)
        import boto3  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - optional

        self.ecr: Any = boto3.client(
            "ecr",
            region_name=REGION,
            endpoint_url=moto,
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - moto takes any
        )

    def check_repository(self, repository: str) -> None:
        """Repositories have to be made first."""
        try:
            self.ecr.describe_repositories(repositoryNames=[repository])
        except self.ecr.exceptions.RepositoryNotFoundException:
            raise registry_error(
                404, "NAME_UNKNOWN", f"The repository with name '{repository}' does not exist"
            ) from None

    def set_tag(self, repository: str, tag: str, digest: str, manifest: bytes, kind: str) -> None:
        """Have moto decide."""
        try:
            self.ecr.put_image(
                repositoryName=repository,
                imageManifest=manifest.decode(),
                imageManifestMediaType=kind,
                imageTag=tag,
                imageDigest=digest,  # moto's own is none of the manifest
            )
        except (
            self.ecr.exceptions.ImageAlreadyExistsException,  # moto's for both
            self.ecr.exceptions.ImageTagAlreadyExistsException,
        ):
            if self.find_tag(repository, tag) == digest:
                return
            raise registry_error(
                400,
                "TAG_INVALID",
                f"The image tag '{tag}' already exists in the '{repository}' repository and "
                "cannot be overwritten because the repository is immutable.",
            ) from None

    def find_tag(self, repository: str, tag: str) -> str | None:
        """Ask moto."""
        gone = self.ecr.exceptions
        try:
            found = self.ecr.describe_images(
                repositoryName=repository, imageIds=[{"imageTag": tag}]
            )
        except (gone.ImageNotFoundException, gone.RepositoryNotFoundException):
            return None
        return str(found["imageDetails"][0]["imageDigest"])
