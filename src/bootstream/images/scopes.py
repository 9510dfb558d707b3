"""Scopes of bearer tokens: what a token is good for.

Format: the distribution project's "Docker Registry Token Scope and Access":
``repository:NAME:ACTION,ACTION``, several separated by blanks.
"""

from __future__ import annotations

from collections.abc import Iterable

PULL = "pull"
PUSH = "pull,push"
DELETE = "delete"


def repository_scope(repository: str, actions: str) -> str:
    """Return the scope of actions, separated by commas, in a repository."""
    return f"repository:{repository}:{actions}"


def merge_scopes(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes in all texts, each resource once, with all of its actions, in order.

    A scope that cannot be understood is kept as it is.
    """
    found: dict[str, list[str]] = {}
    for scope in " ".join(texts).split():
        resource, _, actions = scope.rpartition(":")
        if not resource or not actions.strip(","):
            found.setdefault(scope, [])
            continue
        known = found.setdefault(resource, [])
        for action in actions.split(","):
            if action and action not in known:
                known.append(action)
    return tuple(
        f"{resource}:{','.join(actions)}" if actions else resource
        for resource, actions in found.items()
    )
