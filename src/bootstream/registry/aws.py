"""Amazon's Elastic Container Registry (ECR): a repository a template, a tag a build.

Images are ``ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY/TEMPLATE:BUILD``. boto3 asks for
the password (``ecrtokens``), makes repositories, lists and deletes; images themselves go by the
registry's own protocol. ``BatchDeleteImage`` by tag takes the tag away, and the image with its
last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from bootstream.images.credentials import BearerSource, CredentialSource
from bootstream.registry.awserrors import mapped
from bootstream.registry.ecrtokens import EcrCredentials, EcrTokens
from bootstream.registry.hosts import RegistryHost, parse_host
from bootstream.registry.names import ImageNames
from bootstream.registry.protocol import ListedImage
from bootstream.registry.remote import Access, RemoteRegistry

_PAGE = 1000
_MAX_PAGES = 10_000
_READ = ("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability")
_WRITE = (
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
)


class AWSArtifactsRegistry(RemoteRegistry):
    """Repositories of ECR below one name. Safe to use from several threads.

    Args:
        access: how it is spoken to.
        repository: what repositories begin with, e.g. ``e2bdev/base``.
        region: of the registry; None takes AWS's own settings.
        endpoint: URL of another service that speaks ECR's API.
        host: another host of the registry, HOST[:PORT]; None: what the password is for.
        access_key: with ``secret_key``; None looks where AWS's tools look.
        secret_key: see there.
        session_token: of temporary keys.
        profile: of AWS's configuration files.
        create: make repositories where they are missing.

    Raises:
        InvalidInput: boto3 is not installed, or the settings make no client.
    """

    provider = "AWS_ECR"

    def __init__(
        self,
        access: Access,
        *,
        repository: str,
        region: str | None = None,
        endpoint: str | None = None,
        host: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
        profile: str | None = None,
        create: bool = True,
    ) -> None:
        super().__init__(access, create=create)
        self._names = ImageNames(
            f"{repository}/{{template_id}}:{{build_id}}", "AWS_DOCKER_REPOSITORY_NAME"
        )
        self._ecr = _client(
            access, region, endpoint, (access_key, secret_key, session_token), profile
        )
        self._tokens = EcrTokens(self._ecr)
        self._where: RegistryHost | None = None
        if host is not None:
            self._where = parse_host(
                host,
                setting="AWS_ECR_ENDPOINT",
                plain_http=access.plain_http,
                tls=access.ca_file is not None,
            )

    def names(self) -> ImageNames:
        """See ``RemoteRegistry``."""
        return self._names

    def host(self) -> str:
        """See ``RemoteRegistry``; asks for a password, which names the host."""
        return self._where.name if self._where is not None else self._tokens.token().host

    def plain_http(self) -> bool:
        """See ``RemoteRegistry``."""
        return self._where.plain_http if self._where is not None else self.access.plain_http

    def credentials(self, repository: str, *, writing: bool) -> CredentialSource | BearerSource:
        """See ``RemoteRegistry``."""
        del repository, writing
        return EcrCredentials(self._tokens)

    def make_repository(self, repository: str) -> None:
        """See ``RemoteRegistry``."""
        try:
            with mapped("look for repository", repository, needs="ecr:DescribeRepositories"):
                self._ecr.describe_repositories(repositoryNames=[repository])
        except NotFound:
            pass
        except PermissionDenied:
            return  # who may not look may still push to what is there
        else:
            return
        try:
            with mapped("create repository", repository, needs="ecr:CreateRepository"):
                self._ecr.create_repository(repositoryName=repository)
        except AlreadyExists:
            return
        except PermissionDenied as error:
            error.message = f"the repository is missing, and it may not be made: {error.message}"
            error.args = (error.message,)
            error.remedy = (
                "grant ecr:CreateRepository, or create it: "
                f"aws ecr create-repository --repository-name {repository}"
            )
            raise

    def repositories(self) -> Iterator[str]:
        """See ``RemoteRegistry``."""
        for page in self._pages("describe_repositories", "all", "ecr:DescribeRepositories"):
            for item in page.get("repositories", ()):
                yield str(item["repositoryName"])

    def listed(self, repository: str) -> Iterator[ListedImage]:
        """See ``RemoteRegistry``."""
        try:
            pages = list(
                self._pages(
                    "describe_images", repository, "ecr:DescribeImages", repositoryName=repository
                )
            )
        except NotFound:
            return
        for page in pages:
            for item in page.get("imageDetails", ()):
                yield from self._of(item, repository)

    def _of(self, item: dict[str, Any], repository: str) -> Iterator[ListedImage]:
        pushed, size = item.get("imagePushedAt"), item.get("imageSizeInBytes")
        for tag in item.get("imageTags", ()):
            ids = self._names.parse(repository, tag)
            if ids is not None:
                yield ListedImage(
                    *ids,
                    f"{self.host()}/{repository}:{tag}",
                    str(item.get("imageDigest") or ""),
                    size if isinstance(size, int) else None,
                    pushed if isinstance(pushed, datetime) else None,
                )

    def _pages(self, call: str, object: str, needs: str, **asked: Any) -> Iterator[dict[str, Any]]:
        token: str | None = None
        for _ in range(_MAX_PAGES):
            more = {} if token is None else {"nextToken": token}
            with mapped("list images", object, needs=needs):
                page = getattr(self._ecr, call)(maxResults=_PAGE, **asked, **more)
            yield page
            token = page.get("nextToken")
            if not token:
                return
        raise Unavailable("the listing does not end", operation="list images", object=object)

    def remove(self, repository: str, tag: str) -> None:
        """See ``RemoteRegistry``."""
        try:
            with mapped("delete image", f"{repository}:{tag}", needs="ecr:BatchDeleteImage"):
                answer = self._ecr.batch_delete_image(
                    repositoryName=repository, imageIds=[{"imageTag": tag}]
                )
        except NotFound:
            return
        for failure in answer.get("failures", ()):
            code = str(failure.get("failureCode") or "")
            if code != "ImageNotFound":
                raise InvalidInput(
                    f"{code}: {str(failure.get('failureReason') or '')[:300]}",
                    operation="delete image",
                    object=f"{repository}:{tag}",
                )

    def explain(self, error: BootstreamError, repository: str, *, writing: bool) -> None:
        """See ``RemoteRegistry``."""
        if isinstance(error, PermissionDenied):
            needed = _READ + (_WRITE if writing else ())
            error.remedy = (
                f"grant {', '.join(needed)} on repository {repository}, and "
                "ecr:GetAuthorizationToken on *"
            )
        elif isinstance(error, NotFound) and writing and error.operation != "resolve":
            error.remedy = (
                f"create it: aws ecr create-repository --repository-name {repository}; in "
                "Terraform it is aws_ecr_repository"
            )

    def close(self) -> None:
        """See ``ArtifactsRegistry``."""
        super().close()
        self._ecr.close()


def _client(
    access: Access,
    region: str | None,
    endpoint: str | None,
    keys: tuple[str | None, str | None, str | None],
    profile: str | None,
) -> Any:
    """Return boto3's client of ECR."""
    try:
        import boto3  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - optional
        from botocore.config import Config  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415
    except ImportError:
        raise InvalidInput(
            "Amazon's registry needs boto3, which is not installed",
            operation="open registry",
            object="AWS_ECR",
            remedy="pip install 'bootstream[aws]'",
        ) from None
    if (keys[0] is None) != (keys[1] is None):
        raise InvalidInput(
            "an access key and its secret come together",
            operation="open registry",
            object="AWS_ACCESS_KEY_ID",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    proxies = {
        scheme: found
        for scheme in ("http", "https")
        if (
            found := access.proxies.for_url(
                endpoint or f"{scheme}://api.ecr.{region}.amazonaws.com"
            )
        )
    }
    with mapped("open registry", "AWS_ECR", needs="ecr:GetAuthorizationToken"):
        session = boto3.session.Session(profile_name=None if keys[0] else profile)
        return session.client(
            "ecr",
            region_name=region,
            endpoint_url=endpoint,
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
            aws_session_token=keys[2],
            verify=access.ca_file,
            config=Config(
                connect_timeout=10,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 5},
                proxies=proxies,
            ),
        )
