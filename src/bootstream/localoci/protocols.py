"""What the object storage asks of the rest: who calls, what may they do, what goes wrong.

Sign-in, policies and faults are parts of their own. Each has a plain form here that lets
everything pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bootstream.localoci.http import Request, Response

    Authenticate = Callable[[Request], "Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request.

    ``kind`` is ``user``, ``instance``, ``resource``, ``workload`` or ``par``; the holder of
    a pre-authenticated request has the request's id as its principal. ``attributes`` are
    what policies may ask for, e.g. a compartment.
    """

    principal_ocid: str
    tenancy: str
    kind: str = "user"
    attributes: Mapping[str, str] = field(default_factory=dict)


class Policies(Protocol):
    """Decides what a caller may do."""

    def check(
        self, caller: Caller, permission: str, bucket: str | None, object_name: str | None
    ) -> None:
        """Return when ``permission``, e.g. ``OBJECT_READ``, is granted.

        Raises:
            ApiError: 404 ``BucketNotFound`` and the like, as the service answers.
        """
        ...


class Faults(Protocol):
    """Makes chosen requests fail, or slow, so that clients can be tried."""

    def before(self, request: Request) -> Response | None:
        """Called first, before sign-in: an answer to give instead, or None.

        Raises:
            ApiError: the answer is this error.
            Disconnect: the connection is cut.
        """
        ...

    def after(self, request: Request, response: Response) -> Response:
        """Called when the request has taken effect: the answer to give.

        Raises:
            ApiError: the answer is lost, and is this error.
            Disconnect: the connection is cut.
        """
        ...


class AllowAll:
    """Policies that grant everything."""

    def check(
        self, caller: Caller, permission: str, bucket: str | None, object_name: str | None
    ) -> None:
        """Grant."""


class NoFaults:
    """Nothing goes wrong."""

    def before(self, request: Request) -> Response | None:  # noqa: ARG002 - the protocol's
        """Let it pass."""
        return None

    def after(self, request: Request, response: Response) -> Response:  # noqa: ARG002 - the protocol's
        """Answer as it is."""
        return response


def anyone(request: Request) -> Caller:  # noqa: ARG001 - the callback's form
    """Take every request as one user's, signed or not."""
    return Caller("ocid1.user.oc1..local", "ocid1.tenancy.oc1..local")
