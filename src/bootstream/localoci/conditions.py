"""If-Match and If-None-Match: RFC 9110 section 13.1, in the service's way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootstream.localoci.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Conditions:
    """What must hold of the object that a request replaces, deletes or reads."""

    if_match: str | None = None
    if_none_match: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Conditions:
        """The conditions of a request."""
        return cls(headers.get("if-match"), headers.get("if-none-match"))

    def check(self, current: str | None) -> None:
        """Compare with the etag of what is there, None for nothing.

        Raises:
            ApiError: 412 ``IfMatchFailed`` or ``IfNoneMatchFailed``.
        """
        if self.if_match is not None and not matches(self.if_match, current):
            raise ApiError(412, "IfMatchFailed", "The If-Match header is not the object's ETag")
        if self.if_none_match is not None and matches(self.if_none_match, current):
            raise ApiError(412, "IfNoneMatchFailed", "The object exists already")


NO_CONDITIONS = Conditions()


def matches(expected: str, current: str | None) -> bool:
    """Whether an etag is one of a header's; ``*`` is any that exists."""
    if current is None:
        return False
    return any(
        part.strip().removeprefix("W/").strip('"') in {current, "*"} for part in expected.split(",")
    )
