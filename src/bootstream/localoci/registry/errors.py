"""Errors of the registry's protocol: a status and ``{"errors": [{code, message, detail}]}``.

Source: OCI distribution specification 1.1, "Error Codes"; the challenge of a 401 is that of the
Distribution project's "Token Authentication Specification".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bootstream.localoci.http import json_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bootstream.localoci.http import Response


class RegistryError(Exception):
    """An answer of ``/v2/`` that is an error.

    Args:
        status: the HTTP status.
        code: the specification's name of it, e.g. ``"NAME_UNKNOWN"``.
        message: one sentence for a person; never a secret.
        detail: what it is about.
        headers: headers that the answer has besides the usual.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        detail: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer that it is."""
        error = {"code": self.code, "message": self.message, "detail": self.detail}
        return json_response({"errors": [error]}, self.status, self.headers)


def denied(message: str, detail: Any = None) -> RegistryError:
    """403 ``DENIED``: the caller is known, and may not."""
    return RegistryError(403, "DENIED", message, detail)


def unknown_name(name: str) -> RegistryError:
    """404 ``NAME_UNKNOWN``: there is no repository of the name."""
    return RegistryError(404, "NAME_UNKNOWN", "the repository does not exist", {"name": name})


def unknown_manifest(name: str, reference: str) -> RegistryError:
    """404 ``MANIFEST_UNKNOWN``: the repository has no such image."""
    detail = {"name": name, "reference": reference}
    return RegistryError(404, "MANIFEST_UNKNOWN", "the manifest does not exist", detail)


def unsupported(message: str) -> RegistryError:
    """405 ``UNSUPPORTED``."""
    return RegistryError(405, "UNSUPPORTED", message)
