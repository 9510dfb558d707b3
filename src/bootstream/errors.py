"""The one error tree; each class says what a caller can do about it.

::

    BootstreamError
    ├── NotFound                what was named is not there
    │   ├── ObjectNotFound          an object in a bucket
    │   ├── BucketNotFound          the bucket or folder itself, or its namespace
    │   ├── ImageNotFound           an image, a tag or a platform of it
    │   ├── TemplateNotFound        a template or one of its tags
    │   └── BuildNotFound           a build
    ├── Conflict                somebody else was first: read again, decide again
    │   ├── AlreadyExists           create-only, and it exists
    │   └── PreconditionFailed      the object is not the version that was expected
    │       └── OutcomeUnknown          ... and the write may have been applied, and replaced since
    ├── PermissionDenied        signed in, or not, but not allowed
    ├── InvalidInput            the caller must change what it asked for
    ├── Throttled               transient: slow down, try again
    ├── Unavailable             usually transient: the network, a server, a time limit
    │   └── StorageFull             not transient: make room first
    ├── Corrupt                 bytes are not what their digest or format says
    └── Cancelled               stopped on request

``transient`` decides retries, in one place (the retry wrapper). Everything that
stands between an error and a person is on the error: operation, object, request
id, remedy. None of them ever holds a secret.
"""

from __future__ import annotations


class BootstreamError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        message: what happened, in one sentence, without the object's name.
        operation: what was being done, e.g. ``"read object"``.
        object: the name of what it was done to, e.g. a path, reference or build id.
        request_id: the server's id of the failed request, where it gave one.
        remedy: what the reader can do about it: a command, a variable, a policy.
        transient: whether the same call may succeed later; None takes the class's own.
        retry_after: seconds to wait that the server asked for, where it did.
    """

    transient: bool = False

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        object: str | None = None,
        request_id: str | None = None,
        remedy: str | None = None,
        transient: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.operation = operation
        self.object = object
        self.request_id = request_id
        self.remedy = remedy
        self.retry_after = retry_after
        if transient is not None:
            self.transient = transient

    def __str__(self) -> str:
        where = " ".join(part for part in (self.operation, self.object) if part)
        text = f"{where}: {self.message}" if where else self.message
        if self.request_id:
            text += f" (request id {self.request_id})"
        return text


class NotFound(BootstreamError):
    """What was named is not there."""


class ObjectNotFound(NotFound):
    """No such object in a bucket that exists."""


class BucketNotFound(NotFound):
    """The bucket, folder or namespace itself is missing, or hidden from this principal."""


class ImageNotFound(NotFound):
    """No such image, tag, digest or platform; never replaced by another image."""


class TemplateNotFound(NotFound):
    """No such template, or no such tag of it."""


class BuildNotFound(NotFound):
    """No such build, or it was deleted."""


class Conflict(BootstreamError):
    """Somebody else was first."""


class AlreadyExists(Conflict):
    """A create-only write found the object there."""


class PreconditionFailed(Conflict):
    """The object is not, or no longer, the version that was named."""


class OutcomeUnknown(PreconditionFailed):
    """A write's answer was lost, and the object is another version now.

    The write was either never applied, or applied and replaced since.
    """


class PermissionDenied(BootstreamError):
    """The principal may not do this."""


class InvalidInput(BootstreamError):
    """The request itself is wrong; repeating it cannot help."""


class Throttled(BootstreamError):
    """The other side asks us to slow down."""

    transient = True


class Unavailable(BootstreamError):
    """A server, network or device did not answer as it should."""

    transient = True


class StorageFull(Unavailable):
    """No room is left where bytes had to go."""

    transient = False


class Corrupt(BootstreamError):
    """Bytes differ from what their digest, size or format promises."""


class Cancelled(BootstreamError):
    """The work was stopped because somebody asked for it."""
