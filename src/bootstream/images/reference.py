"""Image references as people write them.

The grammar of registry names is that of the distribution project
(``distribution/reference``, "Grammar"), with Docker's defaults: ``debian`` is
``docker.io/library/debian:latest``. The first component of a name is a registry if
it has a dot, a colon or an upper-case letter, or is ``localhost``. The transports
``oci:``, ``oci-archive:``, ``docker-archive:`` and ``docker://`` are those of
``containers-transports(5)``: a path ends at the first colon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bootstream.errors import InvalidInput

DOCKER_HUB = "docker.io"
MAX_NAME = 255

_OPERATION = "read reference"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_PATH_DIGEST = re.compile(r"(?P<rest>.*)@(?P<digest>[a-z0-9]+:[0-9a-fA-F]{16,})", re.DOTALL)
_HEX_NAME = re.compile(r"[0-9a-f]{64}")
_LAYOUT_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:@/+-]{0,254})")
_HUB_ALIASES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_OTHER_TRANSPORTS = ("containers-storage", "docker-daemon", "dir", "ostree", "sif", "tarball")


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry; with neither tag nor digest written, the tag is ``latest``."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """What a manifest is asked for by: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image in an OCI image layout: a folder, or a tar of one if ``archive``."""

    path: str
    tag: str | None = None
    digest: str | None = None
    archive: bool = False

    def __str__(self) -> str:
        transport = "oci-archive" if self.archive else "oci"
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{transport}:{self.path}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class DockerArchiveReference:
    """An image in what ``docker save`` writes: by name and tag, or by number from 0."""

    path: str
    image: RegistryReference | None = None
    number: int | None = None

    def __str__(self) -> str:
        if self.number is not None:
            return f"docker-archive:{self.path}:@{self.number}"
        return f"docker-archive:{self.path}" + (f":{self.image}" if self.image else "")


Reference = RegistryReference | LayoutReference | DockerArchiveReference


def parse_reference(text: str) -> Reference:
    """Parse a reference of any kind. Raises InvalidInput, with what would be right."""
    if any(character < " " or character == "\x7f" for character in text):
        raise _invalid("it has control characters", text)
    transport, colon, rest = text.partition(":")
    if colon and transport in ("oci", "oci-archive"):
        return _layout(rest, text, archive=transport == "oci-archive")
    if colon and transport == "docker-archive":
        return _docker_archive(rest, text)
    if text.startswith("docker://"):
        return parse_name(text.removeprefix("docker://"))
    if "://" in text:
        raise _invalid(
            "it is a URL", text, f"leave {text.partition('://')[0]}:// out: HOST[:PORT]/NAME[:TAG]"
        )
    if colon and transport in _OTHER_TRANSPORTS and "/" in rest:
        raise _invalid(
            f"{transport}: is not a kind of image that can be read",
            text,
            "copy it first: skopeo copy REFERENCE oci:DIR:TAG",
        )
    return parse_name(text)


def parse_name(text: str) -> RegistryReference:
    """Parse ``[REGISTRY/]NAME[:TAG][@DIGEST]`` with Docker's defaults. Raises InvalidInput."""
    remainder, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(
            f"{digest[:140]!r} is not a digest", text, "write @sha256: and 64 lower-case hex digits"
        )
    registry, name = _split_registry(remainder)
    name, colon, tag = name.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(
            f"{tag[:140]!r} is not a tag",
            text,
            "a tag has up to 128 letters, digits, '_', '.' and '-', and begins with none of '.-'",
        )
    if registry is None or registry in _HUB_ALIASES:
        registry = DOCKER_HUB
        name = name if "/" in name else f"library/{name}"
    _check_registry(registry, text)
    _check_repository(name, text)
    if len(registry) + 1 + len(name) > MAX_NAME:
        raise _invalid(f"its name is longer than {MAX_NAME} characters", text)
    if registry == DOCKER_HUB and _HEX_NAME.fullmatch(name.removeprefix("library/")):
        raise _invalid("it is an image id, not a name", text, "name it by repository and tag")
    if not tag and not at:
        tag = "latest"
    return RegistryReference(registry, name, tag or None, digest or None)


def _split_registry(text: str) -> tuple[str | None, str]:
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return first, rest
    return None, text


def _check_registry(registry: str, text: str) -> None:
    match = _REGISTRY.fullmatch(registry)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise _invalid(f"{registry[:80]!r} is not a registry", text, "write HOST or HOST:PORT")


def _check_repository(name: str, text: str) -> None:
    if all(_COMPONENT.fullmatch(part) for part in name.split("/")):
        return
    if name != name.lower():
        raise _invalid("its name has upper-case letters", text, f"write {name.lower()[:255]}")
    raise _invalid(
        "its name is not one of an image",
        text,
        "a name is made of lower-case letters and digits with '.', '_' or '-' between them: "
        "debian:12, registry.example/team/app:1.0",
    )


def _layout(rest: str, text: str, *, archive: bool) -> LayoutReference:
    what = "FILE" if archive else "DIR"
    match = _PATH_DIGEST.fullmatch(rest)
    digest = None
    if match is not None:
        rest, digest = match["rest"], match["digest"]
        if not _DIGEST.fullmatch(digest):
            raise _invalid(
                f"{digest[:140]!r} is not a digest",
                text,
                "write @sha256: and 64 lower-case hex digits",
            )
    path, colon, tag = rest.partition(":")
    if not path:
        raise _invalid("it names no path", text, f"write oci:{what}[:TAG]")
    if colon and not _LAYOUT_TAG.fullmatch(tag):
        raise _invalid(f"{tag[:80]!r} is not a tag", text, _colons(what))
    return LayoutReference(path, tag or None, digest, archive)


def _docker_archive(rest: str, text: str) -> DockerArchiveReference:
    path, colon, name = rest.partition(":")
    if not path:
        raise _invalid("it names no file", text, "write docker-archive:FILE[:NAME:TAG]")
    if not colon:
        return DockerArchiveReference(path)
    if re.fullmatch(r"@[0-9]{1,6}", name):
        return DockerArchiveReference(path, number=int(name[1:]))
    image = parse_name(name)
    if image.digest:
        raise _invalid("an archive's images have tags, not digests", text, "write NAME:TAG")
    return DockerArchiveReference(path, image)


def _colons(what: str) -> str:
    return f"a path ends at its first ':', so {what} itself can have none; rename or link it"


def _invalid(problem: str, text: str, remedy: str | None = None) -> InvalidInput:
    return InvalidInput(
        problem,
        operation=_OPERATION,
        object=ascii(text)[1:-1][:300],
        remedy=remedy or "write e.g. debian:12, oci:DIR:TAG, docker-archive:FILE",
    )
