"""The forms of template and build ids, for every layer that makes names of them.

A build id is a UUID in lower case. A template id is 1 to 63 lower-case letters, digits and
``-``, begins with a letter or digit, and does not have the form of a build id: it would be
taken for a build wherever either may be given.
"""

from __future__ import annotations

import re

from bootstream.errors import InvalidInput

TEMPLATE_ID_FORM = "[a-z0-9][a-z0-9-]{0,62}"
BUILD_ID_FORM = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

_TEMPLATE_ID = re.compile(TEMPLATE_ID_FORM)
_BUILD_ID = re.compile(BUILD_ID_FORM)


def is_build_id(text: str) -> bool:
    """Tell whether ``text`` has the form of a build id."""
    return _BUILD_ID.fullmatch(text) is not None


def is_template_id(text: str) -> bool:
    """Tell whether ``text`` may name a template."""
    return _TEMPLATE_ID.fullmatch(text) is not None and not is_build_id(text)


def validate_build_id(text: str) -> str:
    """Return ``text`` if it is a UUID in lower case; raises InvalidInput."""
    if not is_build_id(text):
        raise InvalidInput(
            "this is not a build id",
            operation="read build id",
            object=ascii(text)[:80],
            remedy="build ids are UUIDs in lower case, as 'bootstream build' prints them",
        )
    return text


def validate_template_id(text: str) -> str:
    """Return ``text`` if it may name a template; raises InvalidInput."""
    if not is_template_id(text):
        raise InvalidInput(
            "this cannot name a template",
            operation="read template name",
            object=ascii(text)[:80],
            remedy="use 1 to 63 lower-case letters, digits and '-', starting with a letter or "
            "digit, and not the form of a build id",
        )
    return text
