"""Errors as the service answers them: a status, a code and a message.

Every error answer has the body ``{"code": …, "message": …}`` (HEAD has none) and an
``opc-request-id``. Whatever handles a request raises :class:`ApiError`; the server turns it
into the answer, in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: the HTTP status, e.g. 404.
        code: the service's own name of the error, e.g. ``"BucketNotFound"``.
        message: one sentence for a person; never a secret.
        headers: headers that the answer has besides the usual, e.g. ``retry-after``.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class Disconnect(Exception):
    """The connection ends without an answer: a broken body, or a fault that was asked for."""

    reset = False  # whether the client sees a reset, rather than an end


def not_authenticated(message: str) -> ApiError:
    """401 ``NotAuthenticated``: the request is not signed, or not by a key that is known."""
    return ApiError(401, "NotAuthenticated", message)


def not_found_or_not_authorized(bucket: str) -> ApiError:
    """404 ``BucketNotFound``: the service does not say which of the two it is."""
    return ApiError(
        404,
        "BucketNotFound",
        f"Either the bucket named '{bucket}' does not exist in the namespace or you are not "
        "authorized to access it",
    )


def invalid(message: str, code: str = "InvalidParameter") -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, code, message)
