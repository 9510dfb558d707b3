"""The orchestrator's operations. Handlers that ask the store or the disk run in threads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from bootstream.services.access import needs
from bootstream.services.journal import describe_error
from bootstream.services.models import Failure
from bootstream.services.orchestrator import Orchestrator
from bootstream.services.problems import documented
from bootstream.services.sandbox_models import (
    Host,
    PausedBuild,
    PauseRequest,
    Sandbox,
    SandboxId,
    SandboxPage,
    SandboxRequest,
)
from bootstream.services.sandboxes import describe_sandbox
from bootstream.services.tokens import Token
from bootstream.templates.commit import Commit, CommitOptions

router = APIRouter(prefix="/v1", tags=["sandboxes"])


def _orchestrator(request: Request) -> Orchestrator:
    orchestrator: Orchestrator = request.app.state.orchestrator
    return orchestrator


OrchestratorOf = Annotated[Orchestrator, Depends(_orchestrator)]
Reader = Annotated[Token, Depends(needs("sandboxes:read"))]
Writer = Annotated[Token, Depends(needs("sandboxes:write"))]
SandboxPath = Annotated[SandboxId, Path()]


@router.post("/sandboxes", status_code=201, responses=documented(404, 409))
def create_sandbox(
    body: SandboxRequest, response: Response, orchestrator: OrchestratorOf, _token: Writer
) -> Sandbox:
    """Make a sandbox. The same request with the same id again is the same sandbox."""
    request = body.model_dump(mode="json", exclude={"sandbox_id"})
    entry, _ = orchestrator.sandboxes.create(request, sandbox_id=body.sandbox_id)
    response.headers["Location"] = f"/v1/sandboxes/{entry.sandbox_id}"
    return describe_sandbox(entry)


@router.get("/sandboxes", responses=documented())
async def list_sandboxes(
    orchestrator: OrchestratorOf,
    _token: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    after: Annotated[SandboxId | None, Query()] = None,
) -> SandboxPage:
    """List the sandboxes of this host."""
    entries = [e for e in orchestrator.sandboxes.entries() if after is None or e.sandbox_id > after]
    more = len(entries) > limit
    return SandboxPage(
        sandboxes=[describe_sandbox(entry) for entry in entries[:limit]],
        next=entries[limit - 1].sandbox_id if more else None,
    )


@router.get("/sandboxes/{sandbox_id}", responses=documented(404))
def get_sandbox(sandbox_id: SandboxPath, orchestrator: OrchestratorOf, _token: Reader) -> Sandbox:
    """Return a sandbox, with figures."""
    return describe_sandbox(orchestrator.sandboxes.get(sandbox_id), figures=True)


@router.post("/sandboxes/{sandbox_id}/pause", responses=documented(404, 409, 412))
def pause_sandbox(
    sandbox_id: SandboxPath, body: PauseRequest, orchestrator: OrchestratorOf, _token: Writer
) -> PausedBuild:
    """Make a build of what was written, and serve the sandbox no more; it can be resumed."""
    entry = orchestrator.sandboxes.get(sandbox_id)
    return _made(orchestrator.sandboxes.pause(entry, _options(body)))


@router.post("/sandboxes/{sandbox_id}/commit", responses=documented(404, 409, 412))
def commit_sandbox(
    sandbox_id: SandboxPath, body: PauseRequest, orchestrator: OrchestratorOf, _token: Writer
) -> PausedBuild:
    """Make a build of what was written; the sandbox goes on."""
    entry = orchestrator.sandboxes.get(sandbox_id)
    return _made(orchestrator.sandboxes.commit(entry, _options(body)))


@router.post("/sandboxes/{sandbox_id}/resume", responses=documented(404, 409))
def resume_sandbox(
    sandbox_id: SandboxPath, orchestrator: OrchestratorOf, _token: Writer
) -> Sandbox:
    """Serve a paused sandbox again, at the same socket."""
    entry = orchestrator.sandboxes.get(sandbox_id)
    orchestrator.sandboxes.resume(entry)
    return describe_sandbox(entry)


@router.delete(
    "/sandboxes/{sandbox_id}",
    status_code=204,
    response_class=Response,
    responses=documented(404),
)
def delete_sandbox(sandbox_id: SandboxPath, orchestrator: OrchestratorOf, _token: Writer) -> None:
    """End a sandbox, and throw away what was written to it."""
    orchestrator.sandboxes.delete(orchestrator.sandboxes.get(sandbox_id))


@router.get("/host", responses=documented())
def get_host(orchestrator: OrchestratorOf, _token: Reader) -> Host:
    """Return what this host has, and has left."""
    return orchestrator.host()


@router.put("/host/drain", responses=documented())
def drain(orchestrator: OrchestratorOf, _token: Writer) -> Host:
    """Take no more sandboxes; those that are here go on. Readiness says no from here on."""
    orchestrator.sandboxes.draining = True
    return orchestrator.host()


@router.delete("/host/drain", responses=documented())
def end_drain(orchestrator: OrchestratorOf, _token: Writer) -> Host:
    """Take sandboxes again."""
    orchestrator.sandboxes.draining = False
    return orchestrator.host()


def _options(body: PauseRequest) -> CommitOptions:
    return CommitOptions(
        template_id=body.template_id,
        build_id=body.build_id,
        flat=body.flat,
        tags=tuple(body.tags),
        if_current=body.if_current,
    )


def _made(done: Commit) -> PausedBuild:
    manifest = done.published.manifest
    error = None if done.tag_error is None else Failure(**describe_error(done.tag_error))
    return PausedBuild(
        template_id=manifest.template_id,
        build_id=manifest.build_id,
        parent=done.parent,
        changed_bytes=done.bytes_changed,
        stored_size=manifest.stored_size,
        tag_error=error,
    )
