"""What a registry has: tags, repositories, manifests; and how a manifest is deleted.

OCI distribution specification 1.1, "Content Discovery" and "Content Management"; the
catalogue of repositories is the distribution project's ``/v2/_catalog``. Lists come in
pages; the next one is named by a Link header (RFC 8288, ``rel="next"``), and is asked for
at the same registry only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

from bootstream.errors import Corrupt, ImageNotFound, InvalidInput
from bootstream.images.client import RegistryClient
from bootstream.images.digest import digest_of, is_digest
from bootstream.images.manifest import (
    ACCEPTED,
    MAX_BLOB,
    MAX_MANIFEST,
    Descriptor,
    parse_json,
)
from bootstream.images.retry import Retry
from bootstream.images.scopes import DELETE, repository_scope
from bootstream.images.transport import Answer, Origin

PAGE = 1000
MAX_PAGES = 10_000
_MAX_PAGE_BYTES = 8 << 20
_LINK = re.compile(r"<([^<>]*)>([^<]*)")
_NEXT = re.compile(r';\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next\b)', re.IGNORECASE)


def list_tags(client: RegistryClient, *, page: int = PAGE) -> Iterator[str]:
    """Yield the tags of the client's repository, in the registry's order; at least none.

    Args:
        client: names the repository.
        page: how many to ask for at once; registries may send fewer, or all.

    Raises:
        ImageNotFound: there is no such repository.
        Corrupt: the registry answers something else than lists, or lists without end.
        PermissionDenied, Throttled, Unavailable, InvalidInput: as it answers.
    """
    target = f"tags/list?n={page}"
    return _list(client, target, "tags", object=client.name, scopes=())


def list_repositories(client: RegistryClient, *, page: int = PAGE) -> Iterator[str]:
    """Yield the repositories of the client's registry, where it has a catalogue.

    Raises:
        ImageNotFound, InvalidInput: it has none.
        Corrupt, PermissionDenied, Throttled, Unavailable: as ``list_tags``.
    """
    return _list(
        client,
        f"/v2/_catalog?n={page}",
        "repositories",
        object=client.registry,
        scopes=("registry:catalog:*",),
    )


def _list(
    client: RegistryClient, target: str, key: str, *, object: str, scopes: tuple[str, ...]
) -> Iterator[str]:
    def ask(target: str) -> tuple[list[str], str | None]:
        with client.request(
            "GET",
            target,
            headers={"Accept": "application/json"},
            operation=f"list {key}",
            object=object,
            scopes=scopes,
        ) as answer:
            data = parse_json(answer.read_all(_MAX_PAGE_BYTES), what=f"{object}, list of {key}")
            return _strings(data, key, object), next_page(answer)

    seen: set[str] = set()
    following: str | None = target
    while following is not None:
        if following in seen or len(seen) >= MAX_PAGES:
            raise Corrupt("the list does not end", operation=f"list {key}", object=object)
        seen.add(following)
        current = following
        names, following = Retry().run(lambda current=current: ask(current), time.sleep)  # type: ignore[misc]  # default
        yield from names


def next_page(answer: Answer) -> str | None:
    """Return the URL of a list's next page, None on the last one.

    Raises:
        Corrupt: it is somewhere else than at this registry.
    """
    for value in answer.headers("Link"):
        for target, parameters in _LINK.findall(value):
            if not _NEXT.search(parameters):
                continue
            try:
                url = urljoin(answer.url, target)
                same = Origin.of(url).host == answer.origin.host
            except ValueError:
                same = False
            if not same:
                raise Corrupt(
                    "the list goes on at another host, which is not followed",
                    operation="list",
                    object=answer.origin.host,
                )
            return str(url[url.index("/", url.index("://") + 3) :])
    return None


def _strings(document: Any, key: str, name: str) -> list[str]:
    found = document.get(key) if isinstance(document, dict) else ""
    found = [] if found is None else found
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise Corrupt(f"the answer has no list of {key}", operation=f"list {key}", object=name)
    return found


def head_manifest(
    client: RegistryClient, version: str, *, retry: Retry | None = None
) -> Descriptor | None:
    """Return what a tag or digest names in the client's repository; None if there is nothing.

    Raises:
        PermissionDenied, Throttled, Unavailable, InvalidInput, Corrupt: as the registry answers.
    """
    return (retry or Retry()).run(lambda: _head(client, version), time.sleep)


def _head(client: RegistryClient, version: str) -> Descriptor | None:
    name = version_name(client, version)
    headers = {"Accept": ", ".join(ACCEPTED)}
    try:
        with client.request(
            "HEAD", f"manifests/{version}", headers=headers, operation="look up", object=name
        ) as answer:
            digest = answer.header("Docker-Content-Digest")
            length = answer.header("Content-Length") or ""
            media_type = answer.header("Content-Type") or ""
        if is_digest(version):
            digest = version
        if is_digest(digest) and length.isascii() and length.isdigit() and len(length) < 20:
            assert digest is not None
            return Descriptor(media_type, digest, min(int(length), MAX_BLOB))
        with client.request(
            "GET", f"manifests/{version}", headers=headers, operation="look up", object=name
        ) as answer:
            data = answer.read_all(MAX_MANIFEST)
            return Descriptor(answer.header("Content-Type") or "", digest_of(data), len(data))
    except ImageNotFound:
        return None


def delete_manifest(client: RegistryClient, version: str) -> bool:
    """Delete a manifest by its digest, with all of its tags; False if it is not there.

    By tag only the tag goes, where the registry can do that.

    Raises:
        InvalidInput: the registry deletes nothing, or not by tag.
        PermissionDenied, Throttled, Unavailable: as it answers.
    """

    def ask() -> bool:
        try:
            with client.request(
                "DELETE",
                f"manifests/{version}",
                operation="delete",
                object=version_name(client, version),
                scopes=(repository_scope(client.repository, f"pull,{DELETE}"),),
            ) as answer:
                answer.drain()
        except ImageNotFound:
            return False
        except InvalidInput as error:
            if not error.remedy:
                error.remedy = "the registry may have deletes switched off"
            raise
        return True

    return Retry().run(ask, time.sleep)


def version_name(client: RegistryClient, version: str) -> str:
    """Return a manifest's full name: by tag with a colon, by digest with an at sign."""
    return f"{client.name}{'@' if is_digest(version) else ':'}{version}"
