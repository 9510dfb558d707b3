"""How builds' images are named in a repository or in many, and how names are read back.

A pattern such as ``e2b-templates:{template_id}-{build_id}`` or
``e2b/{template_id}:{build_id}`` stands for ``REPOSITORY[:TAG]`` below a registry's host. It
names each id once. A build id has a fixed form and length, so a name can only be read back in
one way, wherever the two ids meet. The grammar of names is the distribution project's
(``bootstream.images.reference``); some registries allow less, and say so themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bootstream.errors import InvalidInput
from bootstream.ids import (
    BUILD_ID_FORM,
    TEMPLATE_ID_FORM,
    is_template_id,
    validate_build_id,
    validate_template_id,
)
from bootstream.images.reference import MAX_NAME, parse_name

DEFAULT_TAG = "latest"
_ANY_HOST = "registry.invalid"
_LONGEST_TEMPLATE, _ANY_BUILD = "a" * 63, "00000000-0000-0000-0000-000000000000"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FIELDS = {
    "template_id": f"(?P<template_id>{TEMPLATE_ID_FORM})",
    "build_id": f"(?P<build_id>{BUILD_ID_FORM})",
}


@dataclass(frozen=True, slots=True)
class ImageNames:
    """Names by a pattern ``REPOSITORY[:TAG]``; without a tag all are called ``latest``.

    Raises:
        InvalidInput: the pattern lacks an id, has one twice or another placeholder, or what it
            makes is no name.
    """

    pattern: str
    setting: str = "OCI_IMAGE_NAME"
    _repository: str = field(init=False, repr=False)
    _tag: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = sorted(_PLACEHOLDER.findall(self.pattern))
        if found != sorted(_FIELDS):
            raise self._invalid("it has to have {template_id} and {build_id}, each once")
        repository, colon, tag = self.pattern.partition(":")
        object.__setattr__(self, "_repository", repository)
        object.__setattr__(self, "_tag", tag if colon else DEFAULT_TAG)
        try:
            self._check(_LONGEST_TEMPLATE, _ANY_BUILD)
        except InvalidInput as error:
            raise self._invalid(f"it makes no name of an image: {error.message}") from error

    @property
    def by_tag(self) -> bool:
        """Whether all images are in one repository."""
        return not _PLACEHOLDER.search(self._repository)

    @property
    def prefix(self) -> str:
        """What all repositories begin with; the repository itself where it is one."""
        return self._repository.partition("{")[0]

    def name(self, template_id: str, build_id: str) -> tuple[str, str]:
        """Return repository and tag of a build's image.

        Raises:
            InvalidInput: an id is none, or a registry could not take the name: a template id
                that ends with ``-`` cannot end a repository's component.
        """
        validate_template_id(template_id)
        validate_build_id(build_id)
        return self._check(template_id, build_id)

    def repository_of(self, template_id: str) -> str | None:
        """Return the one repository of a template's images; None where there may be several."""
        validate_template_id(template_id)
        if "{build_id}" in self._repository:
            return None
        return _fill(self._repository, {"template_id": template_id})

    def repositories(self, template_id: str) -> re.Pattern[str]:
        """Return what the repositories of one template match as a whole."""
        validate_template_id(template_id)
        return re.compile(_expression(self._repository, template_id))

    def parse(self, repository: str, tag: str) -> tuple[str, str] | None:
        """Return template and build id of a name; None if it is none of this pattern."""
        ids: dict[str, str] = {}
        for pattern, text in ((self._repository, repository), (self._tag, tag)):
            match = re.fullmatch(_expression(pattern), text)
            if match is None:
                return None
            ids |= match.groupdict()
        if not is_template_id(ids["template_id"]):
            return None
        return ids["template_id"], ids["build_id"]

    def _check(self, template_id: str, build_id: str) -> tuple[str, str]:
        ids = {"template_id": template_id, "build_id": build_id}
        repository, tag = (_fill(part, ids) for part in (self._repository, self._tag))
        parsed = parse_name(f"{_ANY_HOST}/{repository}:{tag}")
        if (parsed.repository, parsed.tag, parsed.digest) != (repository, tag, None):
            raise InvalidInput(
                "this is not the name of an image",
                operation="name image",
                object=ascii(f"{repository}:{tag}")[:MAX_NAME],
            )
        return repository, tag

    def _invalid(self, problem: str) -> InvalidInput:
        return InvalidInput(
            f"{ascii(self.pattern)[:200]} is no pattern for names of images: {problem}",
            operation="name images",
            object=self.setting,
            remedy="write REPOSITORY[:TAG] with both ids, such as "
            "e2b-templates:{template_id}-{build_id} or e2b/{template_id}:{build_id}",
        )


def _fill(pattern: str, ids: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: ids[match[1]], pattern)


def _expression(pattern: str, template_id: str | None = None) -> str:
    """Return the regular expression of what a part of the pattern stands for."""
    parts = []
    position = 0
    for match in _PLACEHOLDER.finditer(pattern):
        parts.append(re.escape(pattern[position : match.start()]))
        fixed = template_id if match[1] == "template_id" else None
        parts.append(_FIELDS[match[1]] if fixed is None else re.escape(fixed))
        position = match.end()
    return "".join([*parts, re.escape(pattern[position:])])
