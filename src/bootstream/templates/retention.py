"""Which builds of a template to keep. A pure choice; ``Catalogue.delete_build`` acts on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from bootstream.errors import InvalidInput
from bootstream.templates.catalogue import ListedBuild
from bootstream.templates.names import DEFAULT_TAG


def superfluous(
    builds: Sequence[ListedBuild],
    *,
    keep_last: int | None = None,
    keep_tags: Collection[str] = (),
) -> list[ListedBuild]:
    """Return the builds that nothing says to keep, oldest first.

    Args:
        builds: a template's builds, oldest first, as ``Catalogue.builds`` gives them.
        keep_last: how many of the newest stay.
        keep_tags: builds with one of these tags stay; ``*`` and ``?`` match as in a shell.

    What ``latest`` names always stays: it is what a reference without a tag means.

    Raises:
        InvalidInput: nothing is said, or a negative count.
    """
    if keep_last is None and not keep_tags:
        raise InvalidInput(
            "nothing says which builds to keep",
            operation="prune",
            remedy="pass --keep-last N, --keep-tag TAG, or both",
        )
    if keep_last is not None and keep_last < 0:
        raise InvalidInput("a count cannot be negative", operation="prune", object=str(keep_last))
    older = builds[: max(0, len(builds) - (keep_last or 0))]
    patterns = {DEFAULT_TAG, *keep_tags}
    return [
        build
        for build in older
        if not any(fnmatchcase(tag, pattern) for tag in build.tags for pattern in patterns)
    ]
