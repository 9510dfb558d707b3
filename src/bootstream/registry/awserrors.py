"""What boto3 raises, in the package's own errors. The one place for Amazon's registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bootstream.errors import (
    AlreadyExists,
    BootstreamError,
    ImageNotFound,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Throttled,
    Unavailable,
)

_SIGN_IN = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the host a role; "
    "'aws sts get-caller-identity' shows who you are"
)
_UNKNOWN_CALLER = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_SLOW_DOWN = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded"}
)
_GONE = frozenset({"RepositoryNotFoundException", "RegistryNotFoundException"})
_THERE = frozenset({"RepositoryAlreadyExistsException", "ImageTagAlreadyExistsException"})
_TRANSIENT = frozenset({408, 500, 502, 503, 504})


@contextmanager
def mapped(operation: str, object: str, *, needs: str) -> Iterator[None]:
    """Raise what boto3 raises inside in the package's own errors.

    Args:
        operation: what is done.
        object: what it is done to.
        needs: the permission, e.g. ``ecr:CreateRepository``.
    """
    import botocore.exceptions as raised  # type: ignore[import-untyped]  # noqa: PLC0415 - optional

    try:
        yield
    except raised.ClientError as error:
        raise _filled(_of_service(error.response, needs), operation, object) from error
    except (
        raised.NoCredentialsError,
        raised.PartialCredentialsError,
        raised.CredentialRetrievalError,
        raised.TokenRetrievalError,
        raised.SSOError,
        raised.RefreshWithMFAUnsupportedError,
    ) as error:
        refused = PermissionDenied(f"no way to sign in: {_short(error)}", remedy=_SIGN_IN)
        raise _filled(refused, operation, object) from error
    except (raised.ProfileNotFound, raised.NoRegionError, raised.ConfigParseError) as error:
        wrong = InvalidInput(_short(error), remedy="check AWS_PROFILE and AWS_REGION")
        raise _filled(wrong, operation, object) from error
    except (raised.SSLError, raised.ProxyConnectionError) as error:
        raise _filled(
            Unavailable(f"no connection: {_short(error)}", transient=False), operation, object
        ) from error
    except (raised.HTTPClientError, raised.ConnectionError) as error:  # none, slow, or broken
        raise _filled(
            Unavailable(f"no answer: {_short(error)}", remedy="check AWS_REGION and the network"),
            operation,
            object,
        ) from error
    except raised.BotoCoreError as error:
        raise _filled(InvalidInput(_short(error)), operation, object) from error


def _of_service(response: dict[str, Any], needs: str) -> BootstreamError:
    inner = response.get("Error") or {}
    code, message = str(inner.get("Code") or ""), str(inner.get("Message") or "")
    meta = response.get("ResponseMetadata") or {}
    status = meta.get("HTTPStatusCode") or 0
    text = f"{code}: {_printable(message)}"
    error: BootstreamError
    if code in _SLOW_DOWN or status == 429:
        error = Throttled(text)
    elif code in _GONE:
        error = NotFound(text)
    elif code == "ImageNotFoundException":
        error = ImageNotFound(text)
    elif code in _THERE:
        error = AlreadyExists(text)
    elif code in _UNKNOWN_CALLER:
        error = PermissionDenied(text, remedy=_SIGN_IN)
    elif status in (401, 403) or code.startswith("AccessDenied"):
        error = PermissionDenied(text, remedy=f"grant {needs}")
    elif status >= 500 or status in _TRANSIENT or code == "ServerException":
        error = Unavailable(text, transient=status in _TRANSIENT or code == "ServerException")
    else:
        error = InvalidInput(text)
    request = meta.get("RequestId")
    error.request_id = request if isinstance(request, str) else None
    return error


def _filled(error: BootstreamError, operation: str, object: str) -> BootstreamError:
    error.operation, error.object = operation, object
    return error


def _short(error: Exception) -> str:
    return _printable(str(error).partition("\n")[0])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300].rstrip(".")
