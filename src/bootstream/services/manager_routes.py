"""The template-manager's operations. Handlers that ask the store run in threads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from bootstream.errors import (
    InvalidInput,
    PreconditionFailed,
    TemplateNotFound,
)
from bootstream.services.access import needs
from bootstream.services.jobs import Job, describe
from bootstream.services.journal import read_lines
from bootstream.services.manager import Manager
from bootstream.services.models import (
    Artifact,
    Build,
    BuildId,
    BuildPage,
    BuildRequest,
    BuildState,
    StoredBuild,
    Tag,
    TagList,
    TagName,
    TagRequest,
    Template,
    TemplateId,
    TemplatePage,
    Verification,
)
from bootstream.services.problems import documented
from bootstream.services.tokens import Token
from bootstream.templates.catalogue import ListedBuild
from bootstream.templates.manifest import Manifest

router = APIRouter(prefix="/v1", tags=["templates"])

_POLL_SECONDS = 0.2
_ALIVE_SECONDS = 15.0
_EVENT = {
    "type": "object",
    "description": "Each event: a line of the log as data, or the build's document at the end.",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["message", "end"]},
        "data": {"type": "string"},
    },
    "required": ["data"],
}
_CURSOR = r"^[0-9]{1,20}_[0-9a-f-]{36}$"


def _manager(request: Request) -> Manager:
    manager: Manager = request.app.state.manager
    return manager


ManagerOf = Annotated[Manager, Depends(_manager)]
Reader = Annotated[Token, Depends(needs("templates:read"))]
Writer = Annotated[Token, Depends(needs("templates:write"))]
Deleter = Annotated[Token, Depends(needs("templates:delete"))]
TemplatePath = Annotated[TemplateId, Path()]
BuildPath = Annotated[BuildId, Path()]
TagPath = Annotated[TagName, Path()]
Limit = Annotated[int, Query(ge=1, le=500)]
IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", description="The build id that the tag must name now, in quotes."),
]


# -- builds ---------------------------------------------------------------------------------


@router.post("/templates/{template_id}/builds", status_code=202, responses=documented(404, 409))
def start_build(
    template_id: TemplatePath,
    body: BuildRequest,
    response: Response,
    manager: ManagerOf,
    _token: Writer,
) -> Build:
    """Accept a build. The same request with the same build id again is the same build."""
    job = manager.start(template_id, body)
    response.headers["Location"] = f"/v1/templates/{template_id}/builds/{job.build_id}"
    return describe(job)


@router.get("/builds", responses=documented())
async def list_all_builds(
    manager: ManagerOf,
    _token: Reader,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=_CURSOR)] = None,
    state: Annotated[BuildState | None, Query()] = None,
) -> BuildPage:
    """List the builds that were accepted here, newest first."""
    return _page(manager.builds.jobs(), limit, cursor, state)


@router.get("/templates/{template_id}/builds", responses=documented())
async def list_builds(
    template_id: TemplatePath,
    manager: ManagerOf,
    _token: Reader,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(pattern=_CURSOR)] = None,
    state: Annotated[BuildState | None, Query()] = None,
) -> BuildPage:
    """List a template's builds that were accepted here, newest first."""
    return _page(manager.builds.jobs(template_id), limit, cursor, state)


@router.get("/templates/{template_id}/builds/{build_id}", responses=documented(404))
async def get_build(
    template_id: TemplatePath, build_id: BuildPath, manager: ManagerOf, _token: Reader
) -> Build:
    """Return a build's state; also of one that was made elsewhere and is in the store."""
    job = manager.builds.find(build_id)
    if job is not None and job.template_id == template_id:
        return describe(job)
    manifest = await run_in_threadpool(manager.stored, template_id, build_id)
    return _from_store(manifest)


@router.get(
    "/templates/{template_id}/builds/{build_id}/log",
    response_class=StreamingResponse,
    responses=documented(404)
    | {
        200: {
            "description": "Lines of JSON",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        }
    },
)
async def get_log(
    template_id: TemplatePath,
    build_id: BuildPath,
    manager: ManagerOf,
    _token: Reader,
    after: Annotated[int, Query(ge=0, le=1 << 50)] = 0,
    follow: bool = False,
) -> StreamingResponse:
    """Return the log, a JSON object a line; with ``follow`` until the build ends."""
    job = manager.builds.get(template_id, build_id)
    await run_in_threadpool(read_lines, job.log, after, piece=1)
    lines = _follow(manager, job, after, follow=follow)

    async def text() -> AsyncIterator[bytes]:
        async for _, data in lines:
            if data:
                yield data + b"\n"

    return StreamingResponse(text(), media_type="application/x-ndjson")


@router.get(
    "/templates/{template_id}/builds/{build_id}/events",
    response_class=StreamingResponse,
    responses=documented(404)
    | {
        200: {
            "description": "Server-sent events",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        204: {"description": "It ended, and the client has all of it"},
    },
)
async def get_events(
    template_id: TemplatePath,
    build_id: BuildPath,
    manager: ManagerOf,
    _token: Reader,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", pattern="^[0-9]{1,15}$", description="Go on after it."),
    ] = None,
) -> Response:
    """Follow the log as server-sent events; the last one is ``end``, with the build."""
    job = manager.builds.get(template_id, build_id)
    position = int(last_event_id or 0)
    final = job.result is not None
    rest = await run_in_threadpool(read_lines, job.log, position)
    if final and position and not rest:
        return Response(status_code=204)

    async def events() -> AsyncIterator[bytes]:
        end = position
        async for end, data in _follow(manager, job, position, follow=True):
            if data:
                yield b"id: %d\ndata: %s\n\n" % (end, data)
            else:
                yield b":\n\n"
        if job.result is not None:
            data = describe(job).model_dump_json().encode()
            yield b"id: %d\nevent: end\ndata: %s\n\n" % (end, data)

    return StreamingResponse(events(), media_type="text/event-stream")


@router.post(
    "/templates/{template_id}/builds/{build_id}/cancel",
    status_code=202,
    responses=documented(404, 409),
)
def cancel_build(
    template_id: TemplatePath, build_id: BuildPath, manager: ManagerOf, _token: Writer
) -> Build:
    """Have a build end; what it stored is removed. 409 if it has ended."""
    job = manager.builds.get(template_id, build_id)
    manager.builds.cancel(job)
    return describe(job)


@router.post("/templates/{template_id}/builds/{build_id}/verify", responses=documented(404))
def verify_build(
    template_id: TemplatePath, build_id: BuildPath, manager: ManagerOf, _token: Reader
) -> Verification:
    """Fetch and check everything of a published build; answers when that is done."""
    found = manager.verify(template_id, build_id)
    return Verification(
        build_id=build_id,
        ok=not found.problems,
        chunks=found.chunks,
        size=found.size,
        problems=found.problems[:1000],
    )


@router.delete(
    "/templates/{template_id}/builds/{build_id}",
    status_code=204,
    response_class=Response,
    responses=documented(404, 409),
)
def delete_build(
    template_id: TemplatePath, build_id: BuildPath, manager: ManagerOf, _token: Deleter
) -> None:
    """Delete a published build; it leaves every listing now, its bytes when collected."""
    manager.delete(template_id, build_id)


# -- templates and tags ---------------------------------------------------------------------


@router.get("/templates", responses=documented())
def list_templates(
    manager: ManagerOf,
    _token: Reader,
    limit: Limit = 100,
    after: Annotated[TemplateId | None, Query()] = None,
) -> TemplatePage:
    """List the templates that have a published build."""
    names = [name for name in manager.catalogue.templates() if after is None or name > after]
    more = len(names) > limit
    return TemplatePage(templates=names[:limit], next=names[limit - 1] if more else None)


@router.get("/templates/{template_id}", responses=documented(404))
def get_template(template_id: TemplatePath, manager: ManagerOf, _token: Reader) -> Template:
    """Return a template with its published builds."""
    builds = manager.catalogue.builds(template_id)
    if not builds:
        raise TemplateNotFound(
            "there is no such template", operation="find template", object=template_id
        )
    return Template(template_id=template_id, builds=[_stored(build) for build in builds])


@router.get("/templates/{template_id}/tags", responses=documented())
def list_tags(template_id: TemplatePath, manager: ManagerOf, _token: Reader) -> TagList:
    """List a template's tags."""
    tags = manager.catalogue.tags(template_id)
    return TagList(
        tags=[
            Tag(template_id=template_id, tag=tag, build_id=build)
            for tag, build in sorted(tags.items())
        ]
    )


@router.get("/templates/{template_id}/tags/{tag}", responses=documented(404))
def get_tag(
    template_id: TemplatePath, tag: TagPath, response: Response, manager: ManagerOf, _token: Reader
) -> Tag:
    """Return a tag. The ETag is the build id that it names."""
    build_id = manager.catalogue.tag(template_id, tag).build_id
    if build_id is None:
        raise _no_tag(template_id, tag)
    response.headers["ETag"] = f'"{build_id}"'
    return Tag(template_id=template_id, tag=tag, build_id=build_id)


@router.put("/templates/{template_id}/tags/{tag}", responses=documented(404, 412))
def put_tag(
    template_id: TemplatePath,
    tag: TagPath,
    body: TagRequest,
    response: Response,
    manager: ManagerOf,
    _token: Writer,
    if_match: IfMatch = None,
) -> Tag:
    """Make a tag name a build; with If-Match only if it names that other one now."""
    current = _build_of(if_match)
    manager.catalogue.set_tag(template_id, tag, body.build_id, if_current=current)
    response.headers["ETag"] = f'"{body.build_id}"'
    return Tag(template_id=template_id, tag=tag, build_id=body.build_id)


@router.delete(
    "/templates/{template_id}/tags/{tag}",
    status_code=204,
    response_class=Response,
    responses=documented(404, 412),
)
def delete_tag(
    template_id: TemplatePath,
    tag: TagPath,
    manager: ManagerOf,
    _token: Deleter,
    if_match: IfMatch = None,
) -> None:
    """Drop a tag; its build stays. With If-Match only if it names that build now."""
    current = _build_of(if_match)
    if manager.catalogue.drop_tag(template_id, tag, only_if=current) is not None:
        return
    if current is not None and manager.catalogue.tag(template_id, tag).build_id is not None:
        raise PreconditionFailed(
            "the tag names another build now", operation="drop tag", object=f"{template_id}:{tag}"
        )
    raise _no_tag(template_id, tag)


# -- helpers --------------------------------------------------------------------------------


def _build_of(if_match: str | None) -> str | None:
    """Return the build id of an If-Match header."""
    if if_match is None:
        return None
    match = re.fullmatch(r'"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"', if_match.strip())
    if match is None:
        raise InvalidInput("If-Match has one build id in double quotes", operation="read If-Match")
    return match[1]


def _no_tag(template_id: str, tag: str) -> TemplateNotFound:
    return TemplateNotFound(
        "the template has no such tag", operation="find tag", object=f"{template_id}:{tag}"
    )


def _key(job: Job) -> tuple[int, str]:
    return int(job.accepted.timestamp() * 1e6), job.build_id


def _page(jobs: list[Job], limit: int, cursor: str | None, state: BuildState | None) -> BuildPage:
    if cursor is not None:
        when, _, build_id = cursor.partition("_")
        jobs = [job for job in jobs if _key(job) < (int(when), build_id)]
    if state is not None:
        jobs = [job for job in jobs if job.state is state]
    shown = jobs[:limit]
    following = None
    if len(jobs) > limit:
        following = "{}_{}".format(*_key(shown[-1]))
    return BuildPage(builds=[describe(job) for job in shown], next=following)


async def _follow(
    manager: Manager, job: Job, position: int, *, follow: bool
) -> AsyncIterator[tuple[int, bytes]]:
    """Yield lines of a log, with the position after each; an empty one when nothing comes."""
    with manager.stream():
        quiet = 0.0
        while True:
            final = job.result is not None or not follow
            lines = await run_in_threadpool(read_lines, job.log, position)
            for line in lines:
                position = line.end
                yield line
            if manager.stopping.is_set() or (final and not lines):
                return
            if lines:
                quiet = 0.0
                continue
            await asyncio.sleep(_POLL_SECONDS)
            quiet += _POLL_SECONDS
            if quiet >= _ALIVE_SECONDS:
                quiet = 0.0
                yield position, b""


def _stored(build: ListedBuild) -> StoredBuild:
    manifest = build.manifest
    artifacts: dict[str, Any] = {
        name: Artifact(
            form=each.form,
            size=each.size,
            chunk_size=each.chunk_size,
            stored_size=each.stored_size,
        )
        for name, each in manifest.artifacts.items()
    }
    return StoredBuild(
        template_id=manifest.template_id,
        build_id=manifest.build_id,
        created=manifest.created.astimezone(UTC),
        parent=manifest.parent,
        tags=list(build.tags),
        size=manifest.size,
        stored_size=manifest.stored_size,
        artifacts=artifacts,
        image=None if manifest.image is None else dict(manifest.image),
    )


def _from_store(manifest: Manifest) -> Build:
    finished: datetime = manifest.created.astimezone(UTC)
    return Build(
        template_id=manifest.template_id,
        build_id=manifest.build_id,
        state=BuildState(manifest.state),
        finished=finished,
        size=manifest.size,
        stored_size=manifest.stored_size,
        parent=manifest.parent,
    )
