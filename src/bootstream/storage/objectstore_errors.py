"""The one place where what obstore says becomes the package's own errors.

obstore gives an exception's class for the common cases and a text for everything else: the
request, its status, and the service's answer, in which S3, Google's XML API and Azure alike
have ``<Code>``, ``<Message>`` and a request id. The text is taken apart here. It is never
passed on as it is, since it holds whole URLs, and those of a SAS hold a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    BucketNotFound,
    InvalidInput,
    ObjectNotFound,
    PermissionDenied,
    PreconditionFailed,
    Throttled,
    Unavailable,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([^<]{1,100}?)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*([^<]{1,500}?)\s*</Message>")
_REQUEST_ID = re.compile(r"<RequestId>\s*([^<\s]{1,100})\s*</RequestId>|RequestId:([\w-]{1,100})")
_PATH = re.compile(r'Path "([^"]*)"')
_BULK_CODE = re.compile(r"\(code: (\w{1,100})\)")
_URL = re.compile(r"(https?://)[^\s?]*(\?\S*)?")

_BAD_NAME = (
    "delete the object with the cloud's own tools, or keep other things' objects out of "
    "TEMPLATE_BUCKET_PREFIX"
)
_CERTIFICATE = "name the authority that signed it, a file in PEM, in BOOTSTREAM_STORAGE_CA_FILE"

_NO_BUCKET = frozenset(
    {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"}
)
_NO_OBJECT = frozenset({"NoSuchKey", "BlobNotFound", "NoSuchVersion"})
_BUSY = frozenset(
    {"SlowDown", "ServerBusy", "TooManyRequests", "RequestLimitExceeded", "Throttling"}
)
_TRY_AGAIN = frozenset({"RequestTimeout", "ConditionalRequestConflict", "OperationAborted"})
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch"})
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"})

NO_CREDENTIALS = "no credentials were found: nothing is configured, and this host gives out none"


@dataclass(frozen=True, slots=True)
class Remedies:
    """What a reader can do, in the words of one cloud."""

    credentials: str
    permission: str
    bucket: str
    region: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a failed request.

    ``status`` 0: there was no answer. ``detail``: why there was none, in lower case.
    """

    kind: str
    text: str
    status: int
    code: str
    message: str
    request_id: str | None
    detail: str = ""

    @property
    def no_bucket(self) -> bool:
        """Whether the service itself says that the bucket is missing."""
        return self.code in _NO_BUCKET

    @property
    def missing(self) -> bool:
        """Whether the object, or all it is in, is missing."""
        return self.kind == "FileNotFoundError" or self.no_bucket

    @property
    def names_the_object(self) -> bool:
        """Whether the service says that it is the object alone that is missing."""
        return self.code in _NO_OBJECT

    @property
    def bad_range(self) -> bool:
        """Whether a range lies, wholly or in part, past the object's end."""
        return (
            self.status == 416
            or self.code == "InvalidRange"
            or (self.status == 400 and "range" in self.message.lower())
            or "Wanted range starting at" in self.text
        )

    @property
    def condition_failed(self) -> bool:
        """Whether a condition of the request did not hold."""
        return self.kind in ("PreconditionError", "NotModifiedError")

    @property
    def exists(self) -> bool:
        """Whether the service refused to create what is there."""
        return self.kind == "AlreadyExistsError" and self.code not in _TRY_AGAIN


def parse(error: BaseException) -> Answer:
    """Take apart what obstore raised."""
    text, _, detail = str(error).partition("\n\nDebug source")
    code = _CODE.search(text) or _BULK_CODE.search(text)
    message = _MESSAGE.search(text)
    status = _STATUS.search(text)
    request_id = _REQUEST_ID.search(text)
    return Answer(
        type(error).__name__,
        text,
        int(status[1]) if status else _bulk_status(code),
        code[1] if code else "",
        message[1].partition("\n")[0].strip() if message else "",
        (request_id[1] or request_id[2]) if request_id else None,
        "" if status else detail.lower(),
    )


def _bulk_status(code: re.Match[str] | None) -> int:
    """Return the status that Azure gives instead of a code for one of many deletions."""
    return int(code[1]) if code and re.fullmatch(r"[1-5]\d\d", code[1]) else 0


def store_error(
    answer: Answer, *, operation: str, object: str, bucket: str, remedies: Remedies
) -> BootstreamError:
    """Return the error of the tree for an answer."""
    kind, what, remedy, transient = _judge(answer, remedies)
    return kind(
        what,
        operation=operation,
        object=bucket if kind is BucketNotFound else object,
        request_id=answer.request_id,
        remedy=remedy,
        transient=transient,
    )


_Verdict = tuple[type[BootstreamError], str, str | None, bool | None]


def _judge(answer: Answer, remedies: Remedies) -> _Verdict:
    status, code, text = answer.status, answer.code, answer.text
    said = _said(answer)
    if answer.kind == "InvalidPathError":
        return InvalidInput, _bad_name(text), _BAD_NAME, None
    if "certificate" in answer.detail:
        return Unavailable, "its certificate is not trusted", _CERTIFICATE, False
    if answer.no_bucket:
        return BucketNotFound, "this bucket does not exist", remedies.bucket, None
    if answer.kind == "FileNotFoundError":
        return ObjectNotFound, "it does not exist", None, None
    if _no_credentials(answer):
        return PermissionDenied, NO_CREDENTIALS, remedies.credentials, None
    if answer.exists:
        return AlreadyExists, "it exists", None, None
    if answer.condition_failed:
        return PreconditionFailed, "it is not the version that was expected", None, None
    if code in _TRY_AGAIN:
        return Unavailable, said, None, None
    if code in _CLOCK:
        remedy = "set this host's clock: it differs from the storage's by minutes"
        return PermissionDenied, said, remedy, None
    if code in _REGION or status in (301, 307, 308) or "incorrectly configured region" in text:
        return InvalidInput, "the bucket is in another region", remedies.region, None
    if status == 401 or answer.kind == "UnauthenticatedError":
        return PermissionDenied, said, remedies.credentials, None
    if status == 403 or code in _DENIED or answer.kind == "PermissionDeniedError":
        signed = "Signature" in code or "Token" in code or "AccessKey" in code
        remedy = remedies.credentials if signed or "Authentication" in code else remedies.permission
        return PermissionDenied, said, remedy, None
    if status == 429 or code in _BUSY:
        return Throttled, said, None, None
    if "non-partial response" in text or "Content-Range" in text or "unexpected range" in text:
        what = "it answers a request for a part of an object with something else"
        return Unavailable, what, "use a storage that serves ranges", False
    if status in (408, 409) or status >= 500 or status == 0:
        return _without_answer(answer, said)
    if status == 416:
        return Unavailable, "it changed while it was read", None, True
    return InvalidInput, said, None, None


def _no_credentials(answer: Answer) -> bool:
    """Whether the search for credentials failed, which ends at the host's metadata service."""
    if "//169.254." in answer.text or "//metadata.google.internal" in answer.text:
        return True
    return answer.status == 0 and "credential" in _URL.sub("", answer.text).lower()


def _bad_name(text: str) -> str:
    name = _PATH.search(text)
    what = ascii(name[1])[:120] if name else "an object"
    return f"it has an object that nobody could name here: {what}"


def _without_answer(answer: Answer, said: str) -> _Verdict:
    if answer.status:
        return Unavailable, said, None, answer.status not in (501, 505)
    if answer.kind in ("NotSupportedError", "UnknownConfigurationKeyError"):
        return InvalidInput, said, None, None
    if answer.kind in ("ValueError", "TypeError"):
        return InvalidInput, said, None, None
    return Unavailable, said, None, None


def _said(answer: Answer) -> str:
    """Return what the service said, in a line without URLs."""
    if answer.message or answer.code:
        what = ": ".join(part for part in (answer.code, answer.message) if part)
        return f"the storage says {answer.status or 'no'}, {what}"
    if answer.status:
        return f"the storage answers with status {answer.status}"
    line = _URL.sub(r"\1…", answer.text.partition("\n")[0])
    if " - " in line:
        return f"the storage cannot be reached: {line.rpartition(' - ')[2]}"[:300]
    return line[:300] or f"the storage client failed ({answer.kind})"
