"""Structured logs: one JSON object a line on stderr, with the id of the request they belong to."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

_REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_request_id() -> str | None:
    """Return the id of the request that is being answered."""
    return _REQUEST_ID.get()


def set_request_id(request_id: str | None) -> None:
    """Say whose work this thread or task does from here on."""
    _REQUEST_ID.set(request_id)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; what a call gives as ``extra={"fields": …}`` is merged in."""

    def __init__(self, service: str, node_id: str) -> None:
        super().__init__()
        self._constant = {"service": service, "node": node_id}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **self._constant,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = current_request_id()
        if request_id is not None:
            line["request_id"] = request_id
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


def configure(
    service: str, node_id: str, *, level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send the package's log, and the web server's, to ``stream`` (stderr) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service, node_id))
    for name in ("bootstream", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if name in ("bootstream", "uvicorn") else []
        logger.propagate = name not in ("bootstream", "uvicorn")
        logger.setLevel(level if name == "bootstream" else max(level, logging.WARNING))
