"""The orchestrator's operations, as methods. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bootstream.client.transport import ServiceClient

_COMMIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as the service sees it; ``document`` is all that it said."""

    sandbox_id: str
    state: str
    socket: str
    uri: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MadeBuild:
    """A build that was made of a sandbox; ``tag_error`` is why it got not its tags."""

    template_id: str
    build_id: str
    parent: str | None
    changed_bytes: int
    tag_error: str | None


class OrchestratorClient(ServiceClient):
    """Asks an orchestrator. Thread safe; a context manager."""

    def create(
        self,
        template_id: str,
        *,
        tag: str | None = None,
        build_id: str | None = None,
        sandbox_id: str | None = None,
        writable: bool = True,
    ) -> Sandbox:
        """Make a sandbox; with ``sandbox_id`` the request may be repeated, and is.

        Raises:
            TemplateNotFound, BuildNotFound: there is nothing to make it from.
            AlreadyExists: there is another sandbox of this id.
            Conflict: the host drains.
            Throttled: the host is full.
        """
        body = {
            "template_id": template_id,
            "tag": tag,
            "build_id": build_id,
            "sandbox_id": sandbox_id,
            "writable": writable,
        }
        return _sandbox(
            self._connection.call(
                "POST", ("v1", "sandboxes"), body=body, repeat=sandbox_id is not None
            )
        )

    def get(self, sandbox_id: str) -> Sandbox:
        """Return a sandbox, with figures in its document. Raises NotFound."""
        return _sandbox(self._connection.call("GET", ("v1", "sandboxes", sandbox_id)))

    def sandboxes(self) -> Iterator[Sandbox]:
        """Yield the host's sandboxes in the order of their ids, page by page."""
        after = None
        while True:
            page = self._connection.call("GET", ("v1", "sandboxes"), query={"after": after})
            yield from map(_sandbox, page["sandboxes"])
            after = page["next"]
            if after is None:
                return

    def pause(self, sandbox_id: str, *, tags: Sequence[str] = (), **options: Any) -> MadeBuild:
        """Make a build of what was written, and have the sandbox served no more.

        Raises:
            NotFound: there is no such sandbox.
            Conflict: it is not served, or the build id is taken.
        """
        return self._make("pause", sandbox_id, tags, options)

    def commit(self, sandbox_id: str, *, tags: Sequence[str] = (), **options: Any) -> MadeBuild:
        """Make a build of what was written; the sandbox goes on. Raises as ``pause``."""
        return self._make("commit", sandbox_id, tags, options)

    def _make(
        self, verb: str, sandbox_id: str, tags: Sequence[str], options: Mapping[str, Any]
    ) -> MadeBuild:
        document = self._connection.call(
            "POST",
            ("v1", "sandboxes", sandbox_id, verb),
            body={**options, "tags": list(tags)},
            silence=_COMMIT_SECONDS,
        )
        error = document.get("tag_error")
        return MadeBuild(
            document["template_id"],
            document["build_id"],
            document["parent"],
            document["changed_bytes"],
            None if error is None else str(error["message"]),
        )

    def resume(self, sandbox_id: str) -> Sandbox:
        """Have a paused sandbox served again. Raises NotFound, Conflict."""
        return _sandbox(self._connection.call("POST", ("v1", "sandboxes", sandbox_id, "resume")))

    def delete(self, sandbox_id: str) -> None:
        """End a sandbox. Raises NotFound."""
        self._connection.call("DELETE", ("v1", "sandboxes", sandbox_id))

    def host(self) -> Mapping[str, Any]:
        """Return what the host has, and has left."""
        document: Mapping[str, Any] = self._connection.call("GET", ("v1", "host"))
        return document

    def drain(self, *, on: bool = True) -> None:
        """Have the host take no more sandboxes, or take them again."""
        self._connection.call("PUT" if on else "DELETE", ("v1", "host", "drain"))


def _sandbox(document: Mapping[str, Any]) -> Sandbox:
    return Sandbox(
        str(document["sandbox_id"]),
        str(document["state"]),
        str(document["socket"]),
        str(document["uri"]),
        document,
    )
