"""Who exists in the local cloud: one tenancy with a user, an instance and a certificate chain.

Everything is kept in the folder ``identity`` of the data folder, so that a second start
knows the keys of the first::

    identity.json       OCIDs, region, namespace; users and their public keys
    root.pem            the authority that the federation endpoint trusts
    intermediate.pem, intermediate.key      it signs instances' certificates
    token.key           signs security tokens
    user.key            the API key of the first user
    resource.key, resource.token            resource principal 2.2
    session.key, session.token              a session-token profile
    cluster.pem, cluster.key                TLS of the workload identity endpoint
    service-account.token                   what a pod of that cluster shows

An instance's own key and certificate live in memory only and are made anew before they
expire, as the cloud's metadata service does it.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from bootstream.errors import Corrupt

FOLDER = "identity"
_AUTHORITY_DAYS = 3650
_OCID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def make_key() -> rsa.RSAPrivateKey:
    """Return a new RSA key of 2,048 bits, the size that the cloud's own tools make."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def private_pem(key: rsa.RSAPrivateKey) -> bytes:
    """Return a private key as PKCS #8 PEM without a pass phrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: rsa.RSAPublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_private_key(data: bytes) -> rsa.RSAPrivateKey:
    """Parse a PEM private key without a pass phrase.

    Raises:
        ValueError: it is none, or not RSA.
    """
    key = serialization.load_pem_private_key(data, None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")  # noqa: TRY004 - about a value in a file
    return key


def load_public_key(data: bytes) -> rsa.RSAPublicKey:
    """Parse a PEM public key.

    Raises:
        ValueError: it is none, or not RSA.
    """
    key = serialization.load_pem_public_key(data)
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("not an RSA key")  # noqa: TRY004 - about a value in a request
    return key


def fingerprint(key: rsa.RSAPublicKey) -> str:
    """Return an API key's fingerprint: MD5 of the DER public key, in pairs with colons."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return colons(hashlib.md5(der, usedforsecurity=False).digest()).lower()


def colons(digest: bytes) -> str:
    """Return bytes as upper-case hexadecimal pairs with colons between."""
    return digest.hex(":").upper()


def make_ocid(kind: str, region: str = "") -> str:
    """Return a new Oracle Cloud identifier of a kind, e.g. ``instance``."""
    unique = "aaaaaaaa" + "".join(secrets.choice(_OCID_ALPHABET) for _ in range(52))
    return f"ocid1.{kind}.oc1.{region}.{unique}"


def name_of(common_name: str, units: Iterable[str] = ()) -> x509.Name:
    """Return a certificate subject: a common name, and organizational units."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]), *attributes])


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def issue(
    subject: x509.Name,
    issuer: Certificate | None,
    *,
    now: float,
    lifetime: float,
    authority: bool = False,
    addresses: Iterable[str] = (),
) -> Certificate:
    """Make a key and sign a certificate for it.

    Args:
        subject: whose it is.
        issuer: who signs; None: the subject itself.
        now: seconds since the epoch.
        lifetime: seconds.
        authority: whether it may sign others.
        addresses: IP addresses that a TLS server answers at.
    """
    key = make_key()
    start = datetime.datetime.fromtimestamp(now, datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(minutes=5))
        .not_valid_after(start + datetime.timedelta(seconds=lifetime))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if addresses:
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = builder.add_extension(
            x509.SubjectAlternativeName([*names, x509.DNSName("localhost")]), critical=False
        )
    signing_key = issuer.key if issuer else key
    return Certificate(builder.sign(signing_key, hashes.SHA256()), key)


@dataclass(frozen=True, slots=True)
class User:
    """A user who signs with an API key."""

    ocid: str
    name: str
    groups: tuple[str, ...]
    keys: dict[str, str]  # fingerprint -> public key, PEM


@dataclass(frozen=True, slots=True)
class Names:
    """What ``identity.json`` holds."""

    tenancy: str
    compartment: str
    instance: str
    function: str
    cluster: str
    region: str
    namespace: str
    users: tuple[User, ...]


class Identity:
    """The registry of principals, read from the data folder, or made there at first.

    Thread safe. Users and keys that others add to ``identity.json`` are seen at the next
    start.

    Args:
        data: the data folder, which exists.
        region: used when the identity is made; otherwise the file's own holds.
        namespace: the same.
        clock: seconds since the epoch.
        certificate_lifetime: seconds for which an instance's certificate is good.

    Raises:
        Corrupt: the folder's files cannot be read as what they are.
    """

    def __init__(
        self,
        data: Path,
        *,
        region: str,
        namespace: str,
        clock: Callable[[], float],
        certificate_lifetime: float = 24 * 3600,
    ) -> None:
        self.folder = data / FOLDER
        self._clock = clock
        self._certificate_lifetime = certificate_lifetime
        self._lock = threading.Lock()
        self._instance: Certificate | None = None
        if not (self.folder / "identity.json").exists():
            _create(self.folder, region, namespace, clock())
        try:
            self.names = _read_names(self.folder / "identity.json")
            self.root = x509.load_pem_x509_certificate(self._bytes("root.pem"))
            self.intermediate = Certificate(
                x509.load_pem_x509_certificate(self._bytes("intermediate.pem")),
                load_private_key(self._bytes("intermediate.key")),
            )
            self.token_key = load_private_key(self._bytes("token.key"))
            self.user_key = load_private_key(self._bytes("user.key"))
            self.resource_key = load_private_key(self._bytes("resource.key"))
            self.session_key = load_private_key(self._bytes("session.key"))
            self._api_keys = {
                (self.names.tenancy, user.ocid, print_): load_public_key(pem.encode())
                for user in self.names.users
                for print_, pem in user.keys.items()
            }
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise Corrupt(
                f"the local cloud's identity cannot be read ({error})",
                operation="open",
                object=str(self.folder),
                remedy="remove the folder; keys and certificates are then made anew",
            ) from error

    def _bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @property
    def user(self) -> User:
        """The first user, whose key the environment file names."""
        return self.names.users[0]

    def api_key(self, tenancy: str, user: str, fingerprint: str) -> rsa.RSAPublicKey | None:
        """Return the key that a key id names, or None if nobody has it."""
        return self._api_keys.get((tenancy, user, fingerprint.lower()))

    def instance(self) -> Certificate:
        """Return the instance's certificate and key, made anew when half its life is over."""
        with self._lock:
            now = self._clock()
            held = self._instance
            if held is None or _remaining(held, now) < self._certificate_lifetime / 2:
                held = self._instance = issue(
                    name_of(
                        self.names.instance.rpartition(".")[2],
                        (
                            "opc-certtype:instance",
                            f"opc-compartment:{self.names.compartment}",
                            f"opc-instance:{self.names.instance}",
                            f"opc-tenant:{self.names.tenancy}",
                        ),
                    ),
                    self.intermediate,
                    now=now,
                    lifetime=self._certificate_lifetime,
                )
            return held

    def rotate_instance(self) -> None:
        """Give the instance another key and certificate from its next request on."""
        with self._lock:
            self._instance = None

    def service_account_token(self) -> str:
        """Return what a pod shows to the workload identity endpoint."""
        return (self.folder / "service-account.token").read_text().strip()


def _remaining(held: Certificate, now: float) -> float:
    return held.certificate.not_valid_after_utc.timestamp() - now


def write_secret(path: Path, data: bytes) -> None:
    """Replace a file that only its owner may read, at once for those who read it meanwhile."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _create(folder: Path, region: str, namespace: str, now: float) -> None:
    """Make the whole folder beside its place, then rename it: never half of one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".identity-"))
    try:
        _fill(temporary, region, namespace, now)
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / "identity.json").exists():  # another start was first
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(folder: Path, region: str, namespace: str, now: float) -> None:
    lifetime = _AUTHORITY_DAYS * 86400.0
    root = issue(name_of("local OCI root"), None, now=now, lifetime=lifetime, authority=True)
    intermediate = issue(
        name_of("local OCI instances"), root, now=now, lifetime=lifetime, authority=True
    )
    cluster = issue(
        name_of("local OCI cluster"),
        None,
        now=now,
        lifetime=lifetime,
        authority=True,
        addresses=("127.0.0.1", "::1"),
    )
    user_key = make_key()
    names = Names(
        tenancy=make_ocid("tenancy"),
        compartment=make_ocid("compartment"),
        instance=make_ocid("instance", region),
        function=make_ocid("fnfunc", region),
        cluster=make_ocid("cluster", region),
        region=region,
        namespace=namespace,
        users=(
            User(
                make_ocid("user"),
                "local",
                ("Administrators",),
                {fingerprint(user_key.public_key()): public_pem(user_key.public_key()).decode()},
            ),
        ),
    )
    files = {
        "root.pem": root.pem,
        "intermediate.pem": intermediate.pem,
        "intermediate.key": private_pem(intermediate.key),
        "cluster.pem": cluster.pem,
        "cluster.key": private_pem(cluster.key),
        "user.key": private_pem(user_key) + b"OCI_API_KEY\n",  # the label OCI's tools look for
        "service-account.token": secrets.token_urlsafe(32).encode(),
        "identity.json": json.dumps(_as_json(names), indent=2).encode() + b"\n",
    }
    files |= {f"{name}.key": private_pem(make_key()) for name in ("token", "resource", "session")}
    for name, data in files.items():
        write_secret(folder / name, data)


def _as_json(names: Names) -> dict[str, Any]:
    fields = ("tenancy", "compartment", "instance", "function", "cluster", "region", "namespace")
    document: dict[str, Any] = {field: getattr(names, field) for field in fields}
    document["users"] = [
        {"ocid": user.ocid, "name": user.name, "groups": list(user.groups), "keys": user.keys}
        for user in names.users
    ]
    return document


def _read_names(path: Path) -> Names:
    document = json.loads(path.read_bytes())
    users = tuple(
        User(str(user["ocid"]), str(user["name"]), tuple(user["groups"]), dict(user["keys"]))
        for user in document.pop("users")
    )
    if not users:
        raise ValueError("no user")
    return Names(users=users, **{key: str(value) for key, value in document.items()})
