"""A registry without a cloud: tags that the tests keep, by the distribution API alone."""

from __future__ import annotations

from bootstream.errors import BootstreamError
from bootstream.images.credentials import CredentialSource, NoCredentials
from bootstream.images.tags import delete_manifest, head_manifest, list_tags
from bootstream.registry.names import ImageNames
from bootstream.registry.remote import Access, RemoteRegistry


class PlainRegistry(RemoteRegistry):
    """docker-registry takes no tag away: a digest goes when no other tag of ours names it.

    Until then the tag stays, and the tests that see it are not for this provider.
    """

    provider = "Plain"

    def __init__(
        self,
        access: Access,
        host: str,
        *,
        pattern: str = "team/{template_id}:{build_id}",
        credentials: CredentialSource | None = None,
    ) -> None:
        super().__init__(access)
        self._names = ImageNames(pattern)
        self._host = host
        self._credentials = credentials or NoCredentials()

    def names(self) -> ImageNames:
        return self._names

    def host(self) -> str:
        return self._host

    def credentials(self, repository: str) -> CredentialSource:
        return self._credentials

    def remove(self, repository: str, tag: str) -> None:
        client = self.client(repository)
        found = head_manifest(client, tag)
        if found is None:
            return
        others = {head_manifest(client, name) for name in list_tags(client) if name != tag}
        if found.digest not in {other.digest for other in others if other}:
            delete_manifest(client, found.digest)

    def explain(self, error: BootstreamError, repository: str, *, writing: bool) -> None:
        """Nothing is known about these."""
