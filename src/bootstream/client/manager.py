"""The template-manager's operations, as methods. Sizes are bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from urllib3.exceptions import HTTPError

from bootstream.client.transport import ServiceClient
from bootstream.errors import BootstreamError, Corrupt, Unavailable

FINAL = frozenset({"published", "failed", "cancelled", "deleted"})
_MOST_LINE = 1 << 20
_AGAIN_SECONDS = 0.5
_MOST_TROUBLES = 20


@dataclass(frozen=True, slots=True)
class Build:
    """A build as the service sees it; ``document`` is all that it said."""

    template_id: str
    build_id: str
    state: str
    document: Mapping[str, Any]

    @property
    def is_final(self) -> bool:
        """Whether the state will stay as it is, deletion aside."""
        return self.state in FINAL

    @property
    def error(self) -> str | None:
        """Why it failed."""
        error = self.document.get("error")
        return None if error is None else str(error.get("message"))


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a build's log; ``id`` is where one can go on after it."""

    id: int
    type: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Template:
    """A template: the documents of its published builds, oldest first."""

    template_id: str
    builds: tuple[Mapping[str, Any], ...]


class TemplateManagerClient(ServiceClient):
    """Asks a template-manager. Thread safe; a context manager."""

    # -- builds ---------------------------------------------------------------------------

    def start_build(
        self,
        template_id: str,
        *,
        image: str | None = None,
        build_id: str | None = None,
        tags: Sequence[str] = (),
        **options: Any,
    ) -> Build:
        """Ask for a build; with ``build_id`` the request may be repeated, and is.

        Args:
            template_id: of the build.
            image: a reference to a registry's image; or ``registry`` among the options.
            build_id: a UUID never used before.
            tags: of the build; ``latest`` if none.
            options: further members of the request; the service's description has them all.

        Raises:
            InvalidInput: the request is not one, or the image may not be asked for.
            AlreadyExists: another request had this build id.
            Throttled: too many builds wait.
        """
        body = {**options, "tags": list(tags)}
        if image is not None:
            body["image"] = image
        if build_id is not None:
            body["build_id"] = build_id
        document = self._connection.call(
            "POST",
            ("v1", "templates", template_id, "builds"),
            body=body,
            repeat=build_id is not None,
        )
        return _build(document)

    def get_build(self, template_id: str, build_id: str) -> Build:
        """Return a build's state. Raises BuildNotFound."""
        return _build(self._connection.call("GET", self._of(template_id, build_id)))

    def builds(
        self, template_id: str | None = None, *, state: str | None = None
    ) -> Iterator[Build]:
        """Yield the builds that the service accepted, newest first, page by page."""
        parts: tuple[str, ...] = ("v1", "builds")
        if template_id is not None:
            parts = ("v1", "templates", template_id, "builds")
        cursor = None
        while True:
            page = self._connection.call("GET", parts, query={"cursor": cursor, "state": state})
            yield from map(_build, page["builds"])
            cursor = page["next"]
            if cursor is None:
                return

    def events(self, template_id: str, build_id: str, *, after: int = 0) -> Iterator[Event]:
        """Yield the log's lines until the build ends, across restarts of the service.

        Where the connection breaks off it goes on after the last line that came.
        """
        troubles = 0
        position = after
        while True:
            try:
                for event in self._events(template_id, build_id, position):
                    troubles = 0
                    if event is None:
                        return
                    position = event.id
                    yield event
            except BootstreamError as error:
                troubles += 1
                if not error.transient or troubles > _MOST_TROUBLES:
                    raise
            time.sleep(_AGAIN_SECONDS)

    def _events(self, template_id: str, build_id: str, after: int) -> Iterator[Event | None]:
        """Yield what one connection brings; None says that the build ended."""
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        parts = (*self._of(template_id, build_id), "events")
        with self._connection.open("GET", parts, headers=headers) as answer:
            if answer.status == 204:
                yield None
                return
            try:
                for block in _blocks(answer):
                    fields = _fields(block)
                    if fields.get("event") == "end":
                        yield None
                        return
                    if "data" in fields:
                        data = json.loads(fields["data"])
                        yield Event(int(fields["id"]), data["type"], data)
            except (HTTPError, OSError) as error:
                raise Unavailable("the stream broke off", operation="follow build") from error
            except (ValueError, KeyError, TypeError) as error:
                raise Corrupt("it is no stream of events", operation="follow build") from error

    def wait(self, template_id: str, build_id: str) -> Build:
        """Return the build once it ended."""
        for _ in self.events(template_id, build_id):
            pass
        return self.get_build(template_id, build_id)

    def cancel(self, template_id: str, build_id: str) -> Build:
        """Have a build end. Raises Conflict if it has ended already."""
        return _build(self._connection.call("POST", (*self._of(template_id, build_id), "cancel")))

    def delete(self, template_id: str, build_id: str) -> None:
        """Delete a published build, or forget one that failed. Idempotent while it is known."""
        self._connection.call("DELETE", self._of(template_id, build_id))

    def verify(self, template_id: str, build_id: str, *, silence: float = 3600.0) -> list[str]:
        """Have everything of a build fetched and checked; return the problems, none if sound."""
        document = self._connection.call(
            "POST", (*self._of(template_id, build_id), "verify"), silence=silence
        )
        return [str(problem) for problem in document["problems"]]

    # -- templates and tags ---------------------------------------------------------------

    def templates(self) -> Iterator[str]:
        """Yield the ids of templates that have a published build, page by page."""
        after = None
        while True:
            page = self._connection.call("GET", ("v1", "templates"), query={"after": after})
            yield from page["templates"]
            after = page["next"]
            if after is None:
                return

    def template(self, template_id: str) -> Template:
        """Return a template. Raises TemplateNotFound."""
        document = self._connection.call("GET", ("v1", "templates", template_id))
        return Template(document["template_id"], tuple(document["builds"]))

    def tags(self, template_id: str) -> dict[str, str]:
        """Return tag -> build id."""
        document = self._connection.call("GET", ("v1", "templates", template_id, "tags"))
        return {each["tag"]: each["build_id"] for each in document["tags"]}

    def set_tag(
        self, template_id: str, tag: str, build_id: str, *, if_current: str | None = None
    ) -> None:
        """Make a tag name a build; with ``if_current`` only if it names that one now.

        Raises:
            BuildNotFound: there is no such build of the template.
            PreconditionFailed: the tag names another build.
        """
        self._connection.call(
            "PUT",
            ("v1", "templates", template_id, "tags", tag),
            body={"build_id": build_id},
            headers={} if if_current is None else {"If-Match": f'"{if_current}"'},
        )

    def drop_tag(self, template_id: str, tag: str, *, if_current: str | None = None) -> None:
        """Drop a tag. Raises TemplateNotFound, PreconditionFailed."""
        self._connection.call(
            "DELETE",
            ("v1", "templates", template_id, "tags", tag),
            headers={} if if_current is None else {"If-Match": f'"{if_current}"'},
        )

    @staticmethod
    def _of(template_id: str, build_id: str) -> tuple[str, ...]:
        return ("v1", "templates", template_id, "builds", build_id)


def _build(document: Mapping[str, Any]) -> Build:
    return Build(
        str(document["template_id"]), str(document["build_id"]), str(document["state"]), document
    )


def _blocks(answer: Any) -> Iterator[bytes]:
    """Yield the events of a stream: HTML, section 9.2.6, as the service writes them."""
    rest = b""
    for piece in answer.stream(1 << 16):
        rest += piece
        *whole, rest = rest.split(b"\n\n")
        yield from whole
        if len(rest) > _MOST_LINE:
            raise Corrupt("an event is too long", operation="follow build")


def _fields(block: bytes) -> dict[str, str]:
    fields = {}
    for line in block.decode("utf-8").split("\n"):
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
    return fields
