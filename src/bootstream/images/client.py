"""Requests to a registry, signed in: OCI distribution specification 1.1.

One attempt each; who calls decides what is tried again. A 401 is answered by signing in,
and the request repeated, its body included. The registry's own origin alone sees
credentials: where it sends reads elsewhere they go without, and a write that it redirects
to another host is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import urljoin, urlsplit

from bootstream.errors import BootstreamError, Unavailable
from bootstream.images.auth import Authenticator
from bootstream.images.challenge import parse_challenges
from bootstream.images.credentials import BearerSource, CredentialSource
from bootstream.images.httperrors import SILENCE_SECONDS, NotTls, host_of, status_error
from bootstream.images.reference import DOCKER_HUB, RegistryReference
from bootstream.images.transport import (
    MAX_REDIRECTS,
    Answer,
    Guard,
    Origin,
    Transport,
    is_loopback,
)
from bootstream.proxies import NO_PROXIES, Proxies

Body = bytes | Callable[[], Iterable[bytes]]
"""What is sent: bytes, or a function that yields them, called once for each attempt."""

_SIGN_IN_TRIES = 3
_DOCKER_HUB_HOST = "registry-1.docker.io"
_READS = ("GET", "HEAD")


class RegistryClient:
    """Requests to one repository of one registry. Thread safe.

    Args:
        reference: names registry and repository.
        plain_http: speak http. Otherwise https, and http only to registries of this host
            that do not speak TLS, as Docker does.
        ca_file: certificates (PEM) to trust beside the system's.
        credentials: what to sign in with.
        proxies: which requests go through which proxy.
        guard: told every peer before anything is sent to it; see ``Transport``.
    """

    def __init__(
        self,
        reference: RegistryReference,
        *,
        plain_http: bool,
        ca_file: str | None,
        credentials: CredentialSource | BearerSource,
        proxies: Proxies = NO_PROXIES,
        guard: Guard | None = None,
    ) -> None:
        self._reference = reference
        self._transport = Transport(ca_file=ca_file, proxies=proxies, guard=guard)
        self._credentials = credentials
        self._lock = threading.Lock()
        self._base: str | None = None
        self._auth: Authenticator | None = None
        host = _DOCKER_HUB_HOST if reference.registry == DOCKER_HUB else reference.registry
        self._host = host
        if plain_http:
            self._schemes = ["http"]
        elif ca_file is None and is_loopback(Origin.of(f"https://{host}").host):
            self._schemes = ["https", "http"]
        else:
            self._schemes = ["https"]

    @property
    def registry(self) -> str:
        """The registry's name: ``HOST`` or ``HOST:PORT``."""
        return self._reference.registry

    @property
    def repository(self) -> str:
        """The repository within it."""
        return self._reference.repository

    @property
    def name(self) -> str:
        """Registry and repository."""
        return self._reference.name

    def get(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        operation: str,
        object: str,
        verified: bool = False,
    ) -> Answer:
        """Send a GET; see ``request``."""
        return self.request(
            "GET", path, headers=headers, operation=operation, object=object, verified=verified
        )

    def request(
        self,
        method: str,
        target: str,
        *,
        operation: str,
        object: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        scopes: Sequence[str] = (),
        verified: bool = False,
        tagging: bool = False,
        silence: float = SILENCE_SECONDS,
    ) -> Answer:
        """Send a request, signed in if asked, and return the answer if it is a success (2xx).

        The answer is a context manager; its body is not read yet.

        Args:
            method: GET, HEAD, POST, PATCH, PUT or DELETE.
            target: a path below ``/v2/REPOSITORY/``; one from the registry's root, with a
                slash before it; or a whole URL, as ``locate`` returns it.
            operation: for errors.
            object: what it is done to, for errors.
            headers: to send; a Content-Length where ``body`` is a function.
            body: to send.
            scopes: what a token has to be good for, see ``scopes.py``; if empty, reading.
            verified: the content's digest will be checked, so any host may supply it.
            tagging: it sets a tag, which may be immutable.
            silence: seconds to wait for the answer to begin.

        Raises:
            ImageNotFound, PermissionDenied, Throttled, Unavailable, InvalidInput: as the
                answer says, or the network.
            AlreadyExists: the tag exists and is immutable.
            Corrupt: the registry says that it received other bytes.
        """
        base, auth = self._endpoint(operation)
        if target.startswith("/"):
            url = base + target
        elif "://" in target:
            url = target
        else:
            url = f"{base}/v2/{self._reference.repository}/{target}"
        at_home = Origin.of(url) == Origin.of(base)
        error: BootstreamError | None = None
        for _ in range(_SIGN_IN_TRIES):
            used = auth.authorization(scopes) if at_home else None
            answer = self._send(
                method, url, headers or {}, used, body, operation, verified=verified, wait=silence
            )
            if 200 <= answer.status < 300:
                return answer
            with answer:
                error = status_error(answer, operation=operation, object=object, tagging=tagging)
                challenges = parse_challenges(answer.headers("WWW-Authenticate"))
                asked = answer.status == 401 and at_home and answer.origin == Origin.of(url)
            if not asked or not auth.renew(challenges, used, scopes):
                raise error
        assert error is not None
        raise error

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        body: Body | None,
        operation: str,
        *,
        verified: bool,
        wait: float,
    ) -> Answer:
        """Send it and follow redirects; any other status is an answer."""
        if method in _READS:
            return self._transport.get(
                url,
                headers=headers,
                authorization=authorization,
                operation=operation,
                allow_downgrade=verified,
                method=method,
            )
        sent = dict(headers)
        if authorization is not None:
            sent["Authorization"] = authorization
        home = Origin.of(url)
        for _ in range(MAX_REDIRECTS):
            data = body() if callable(body) else body
            answer = self._transport.send(
                method, url, headers=sent, operation=operation, body=data, silence=wait
            )
            location = answer.header("Location")
            if answer.status not in (307, 308) or not location:
                return answer
            with answer:
                answer.drain()
            url = urljoin(url, location)
            if Origin.of(url) != home:
                raise Unavailable(
                    f"it redirects what is sent to another host ({host_of(url)}), which is not "
                    "followed",
                    operation=operation,
                    object=host_of(answer.url),
                    transient=False,
                )
        raise Unavailable(
            "it redirects too often", operation=operation, object=host_of(url), transient=False
        )

    def locate(self, answer: Answer, *, operation: str) -> str:
        """Return the URL in an answer's Location header, which may be relative.

        A registry behind a proxy that ends TLS may call itself by http: then it is meant to
        be asked as before. Any other way from https to http is refused.

        Raises:
            Unavailable: it has none, or no URL that can be used.
        """
        location = answer.header("Location")
        url = urljoin(answer.url, location or "")
        try:
            origin = Origin.of(url)
        except ValueError:
            location = None
        if not location:
            raise Unavailable(
                "the answer does not say where to go on",
                operation=operation,
                object=host_of(answer.url),
                transient=False,
            )
        asked = answer.origin
        if asked.scheme == "https" and origin.scheme == "http":
            if origin.host == asked.host and origin.port in (80, asked.port):
                parts, home = urlsplit(url), urlsplit(answer.url)
                return parts._replace(scheme="https", netloc=home.netloc).geturl()
            raise Unavailable(
                f"it sends an upload from https to http ({origin.host}), which is not followed",
                operation=operation,
                object=host_of(answer.url),
                transient=False,
            )
        return url

    def close(self) -> None:
        """Close idle connections; idempotent, and it can be used on."""
        self._transport.close()

    def _endpoint(self, operation: str) -> tuple[str, Authenticator]:
        """Return where requests go; the scheme is tried out once where there is a choice."""
        with self._lock:
            if self._base is None or self._auth is None:
                scheme = self._schemes[-1] if len(self._schemes) == 1 else self._probe(operation)
                self._base = f"{scheme}://{self._host}"
                self._auth = Authenticator(
                    Origin.of(self._base),
                    self._reference.registry,
                    self._reference.repository,
                    credentials=self._credentials,
                    transport=self._transport,
                )
            return self._base, self._auth

    def _probe(self, operation: str) -> str:
        """Return the scheme that a registry of this host speaks; https is tried first."""
        if self._speaks("https", operation):
            return "https"
        self._speaks("http", operation)
        return "http"

    def _speaks(self, scheme: str, operation: str) -> bool:
        url = f"{scheme}://{self._host}/v2/"
        try:
            answer = self._transport.send("GET", url, headers={}, operation=operation)
        except Unavailable as error:
            if scheme == "https" and (isinstance(error, NotTls) or error.transient):
                return False
            raise
        with answer:
            answer.drain()
        return True
