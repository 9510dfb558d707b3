"""Who a request is from: a key and the name the cloud knows it by, always together.

A token and the key it was made for belong together: a request signed with one
and naming the other is refused. So both travel in one immutable value, and a
refresh replaces that value in one assignment. Whoever signs takes
``principal.credentials()`` once for a request and uses nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey


@dataclass(frozen=True, slots=True, eq=False)
class Credentials:
    """A key with its key id; compares by identity, so that ``stale`` is one snapshot.

    ``key_id`` is ``tenancy/user/fingerprint`` for API keys and ``ST$`` with a token
    otherwise. ``expires`` is when the token ends, in seconds since 1970, None for keys
    that do not end. Neither key nor token shows in ``repr``.
    """

    key_id: str = field(repr=False)
    private_key: RSAPrivateKey = field(repr=False)
    expires: float | None = None

    def __reduce__(self) -> str:
        raise TypeError("credentials are not written down")


class Principal(Protocol):
    """Where credentials come from and who they stand for. Implementations are thread safe."""

    @property
    def name(self) -> str:
        """The kind, in the words of ``OCI_CLI_AUTH``, e.g. ``instance_principal``."""
        ...

    @property
    def tenancy(self) -> str | None:
        """The tenancy's OCID, where the kind of principal tells."""
        ...

    @property
    def region(self) -> str | None:
        """The region's identifier, e.g. ``us-ashburn-1``, where the kind of principal tells."""
        ...

    def credentials(self) -> Credentials:
        """Return a snapshot that is valid now; cheap, for every single request.

        Waits only when there is none yet or the last one has expired. Raises
        PermissionDenied where the cloud refuses, Unavailable where nobody answers.
        """
        ...

    def refresh(self, stale: Credentials) -> Credentials:
        """Return a newer snapshot than ``stale``, which the cloud refused with 401.

        However many threads ask, one refresh is made. Where the newest snapshot is
        not ``stale`` any more, it is returned at once. A principal that has no other
        key returns ``stale`` itself. Raises as ``credentials`` does.
        """
        ...
