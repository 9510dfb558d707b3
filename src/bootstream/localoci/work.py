"""Work requests: what is accepted now and done later, with a status to ask for."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bootstream.localoci.errors import ApiError
from bootstream.localoci.http import Response, json_response
from bootstream.localoci.service import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from bootstream.localoci.database import Database
    from bootstream.localoci.service import Call

log = logging.getLogger(__name__)

_ENDED = frozenset({"FAILED", "COMPLETED", "CANCELED"})
_KEPT = 10_000  # work requests that are remembered


@dataclass(slots=True)
class _Pending:
    """Work that was accepted: what wakes it early, and whether to do it then."""

    wake: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False


class Work:
    """Runs work in threads, and keeps what became of it. Thread safe.

    Args:
        delay: seconds for which work stays ACCEPTED, and then IN_PROGRESS, before it is done.
    """

    def __init__(self, database: Database, clock: Callable[[], float], delay: float = 0.0) -> None:
        self._database = database
        self._clock = clock
        self._delay = delay
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._pending: dict[str, _Pending] = {}
        self._threads: set[threading.Thread] = set()
        for row in database.rows("SELECT id, details FROM work"):
            if json.loads(row["details"])["status"] not in _ENDED:
                self._end(row["id"], "FAILED", ApiError(500, "Interrupted", "The server ended"))

    def start(
        self, kind: str, compartment: str, resources: list[Any], do: Callable[[], None]
    ) -> str:
        """Accept work; its id. ``do`` runs in a thread, and may raise ApiError."""
        identity = f"ocid1.objectstorageworkrequest.oc1..{uuid.uuid4().hex}"
        now = self._clock()
        details = {
            "operationType": kind,
            "status": "ACCEPTED",
            "id": identity,
            "compartmentId": compartment,
            "resources": resources,
            "percentComplete": 0.0,
            "timeAccepted": timestamp(now),
            "timeStarted": None,
            "timeFinished": None,
            "_errors": [],
            "_logs": [{"message": "Accepted", "timestamp": timestamp(now)}],
        }
        with self._database.write(()) as rows:
            rows.execute(
                "INSERT INTO work (id, created, details) VALUES (?,?,?)",
                (identity, now, json.dumps(details)),
            )
            rows.execute(
                "DELETE FROM work WHERE id IN"
                " (SELECT id FROM work ORDER BY created DESC LIMIT -1 OFFSET ?)",
                (_KEPT,),
            )
        thread = threading.Thread(target=self._run, args=(identity, do), daemon=True)
        with self._lock:
            self._pending[identity] = _Pending()
            self._threads.add(thread)
        thread.start()
        return identity

    def _run(self, identity: str, do: Callable[[], None]) -> None:
        pending = self._pending[identity]
        try:
            if self._waits(pending):
                self._change(identity, status="IN_PROGRESS", timeStarted=timestamp(self._clock()))
            if self._waits(pending):
                do()
                self._end(identity, "COMPLETED")
            elif pending.cancelled:
                self._end(identity, "CANCELED")
        except ApiError as error:
            self._end(identity, "FAILED", error)
        except Exception as error:  # the status is where a failure of a thread is told
            log.exception("work %s", identity)
            self._end(identity, "FAILED", ApiError(500, "InternalServerError", str(error)))
        finally:
            with self._lock:
                del self._pending[identity]
                self._threads.discard(threading.current_thread())

    def _waits(self, pending: _Pending) -> bool:
        """Wait as long as work shall take; whether it may go on."""
        pending.wake.wait(self._delay)
        return not (pending.cancelled or self._closing.is_set())

    def cancel(self, identity: str) -> None:
        """Cancel what has not been done yet."""
        with self._lock:
            pending = self._pending.get(identity)
        if pending is not None:
            self._change(identity, status="CANCELING")
            pending.cancelled = True
            pending.wake.set()

    def hurry(self) -> None:
        """Do now what was accepted so far, whatever the delay."""
        with self._lock:
            for pending in self._pending.values():
                pending.wake.set()

    def get(self, identity: str) -> dict[str, Any]:
        """A work request with its errors and logs.

        Raises:
            ApiError: 404, there is none.
        """
        row = self._database.row("SELECT details FROM work WHERE id=?", identity)
        if row is None:
            raise ApiError(404, "NotAuthorizedOrNotFound", f"No work request '{identity}'")
        details: dict[str, Any] = json.loads(row["details"])
        return details

    def all(self) -> list[dict[str, Any]]:
        """Those that are remembered, newest first."""
        rows = self._database.rows(
            f"SELECT details FROM work ORDER BY created DESC LIMIT {_KEPT}"  # noqa: S608 - a constant
        )
        return [json.loads(row["details"]) for row in rows]

    def _change(self, identity: str, **changes: object) -> None:
        with self._database.write(()) as rows:
            row = rows.execute("SELECT details FROM work WHERE id=?", (identity,)).fetchone()
            if row is not None and json.loads(row["details"])["status"] not in _ENDED:
                details = {**json.loads(row["details"]), **changes}
                rows.execute(
                    "UPDATE work SET details=? WHERE id=?", (json.dumps(details), identity)
                )

    def _end(self, identity: str, status: str, error: ApiError | None = None) -> None:
        now = timestamp(self._clock())
        changes: dict[str, object] = {"status": status, "timeFinished": now}
        if status == "COMPLETED":
            changes["percentComplete"] = 100.0
        if error is not None:
            changes["_errors"] = [{"code": error.code, "message": error.message, "timestamp": now}]
        self._change(identity, **changes)

    def close(self) -> None:
        """Stop: work that has begun is done, work that waits is left."""
        self._closing.set()
        with self._lock:
            threads = list(self._threads)
            for pending in self._pending.values():
                pending.wake.set()
        for thread in threads:
            thread.join()


def get_work(call: Call, identity: str) -> Response:
    """GET /workRequests/{id}."""
    details = call.service.work.get(identity)
    headers = {} if details["status"] in _ENDED else {"retry-after": "1"}
    return json_response(_shown(details), headers=headers)


def list_work(call: Call) -> Response:
    """GET /workRequests?compartmentId."""
    compartment = call.text("compartmentId")
    found = [item for item in call.service.work.all() if item["compartmentId"] == compartment]
    return json_response([_shown(item) for item in found[: call.limit()]])


def get_work_errors(call: Call, identity: str) -> Response:
    """GET /workRequests/{id}/errors."""
    return json_response(call.service.work.get(identity)["_errors"])


def get_work_logs(call: Call, identity: str) -> Response:
    """GET /workRequests/{id}/logs."""
    return json_response(call.service.work.get(identity)["_logs"])


def cancel_work(call: Call, identity: str) -> Response:
    """DELETE /workRequests/{id}."""
    call.service.work.get(identity)
    call.service.work.cancel(identity)
    return Response(202)


def _shown(details: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in details.items() if key[0] != "_"}
