"""What one host gets: a release as an archive, named by the digest of all that is in it.

The same settings make the same bytes, so a host that has them already has nothing to do.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import tarfile
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from bootstream.deploy.settings import FleetSettings
from bootstream.deploy.units import render_unit, unit_name
from bootstream.deploy.variables import SERVICES
from bootstream.errors import InvalidInput

_LOOPBACK = {None, "0.0.0.0", "::"}  # noqa: S104 - such a service answers on loopback, too
_MAX_SECRET = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A release for a host: files by name, and which of them nobody else may see."""

    host: str
    release: str
    services: tuple[str, ...]
    contents: dict[str, bytes] = field(repr=False)

    def archive(self) -> bytes:
        """Return it as a tar archive; everything in it is its owner's alone."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, data in sorted(self.contents.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                entry.mode = 0o700 if name.endswith(".sh") else 0o600
                archive.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()

    def describe(self) -> list[tuple[str, int, str]]:
        """Return name, size and digest of each file, without contents."""
        return [
            (name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in sorted(self.contents.items())
        ]


def make_bundle(settings: FleetSettings, host: str) -> Bundle:
    """Return what a host gets.

    Raises:
        InvalidInput: a secret's file is too large, or there is no wheel in the folder.
    """
    services = settings.services_of(host)
    contents: dict[str, bytes] = {}
    secrets = {}
    for name, path in sorted(settings.secrets.items()):
        data = path.read_bytes()
        if len(data) > _MAX_SECRET:
            raise InvalidInput("it is too large for a secret", operation="read", object=str(path))
        secrets[name] = data
    folders = tuple(settings.values.values()) if settings.cloud == "local" else ()
    for service in services:
        contents[f"etc/{service}.env"] = environment_file(settings.variables_of(service))
        contents[f"units/{unit_name(service)}"] = render_unit(
            service, sorted(secrets), folders
        ).encode()
    if services:
        contents.update({f"etc/{name}": data for name, data in secrets.items()})
    if settings.nbd_devices:
        contents["etc/modules-load.conf"] = b"nbd\n"
        contents["etc/modprobe.conf"] = f"options nbd nbds_max={settings.nbd_devices}\n".encode()
    else:
        contents["etc/no-nbd"] = b""
    if not services:
        contents["units/none"] = b""
    if settings.wheels is not None:
        wheels = sorted(settings.wheels.glob("*.whl"))
        if not wheels:
            raise InvalidInput("no wheel is in it", operation="read", object=str(settings.wheels))
        contents.update({f"wheels/{path.name}": path.read_bytes() for path in wheels})
    wheels_only = {name: data for name, data in contents.items() if name.startswith("wheels/")}
    program = _digest(settings, wheels_only)
    packages = " ".join(settings.system_packages).encode()
    release = _digest(settings, {**contents, "packages": packages})
    contents["install.sh"] = _script()
    contents["release.env"] = _parameters(settings, services, release, program)
    return Bundle(host, release, services, contents)


def environment_file(variables: dict[str, str]) -> bytes:
    """Return an environment file as systemd reads it: values in double quotes, escaped."""
    lines = []
    for name, value in sorted(variables.items()):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        escaped = escaped.replace("$", "\\$").replace("`", "\\`")
        lines.append(f'{name}="{escaped}"\n')
    return "".join(lines).encode()


def _digest(settings: FleetSettings, contents: dict[str, bytes]) -> str:
    whole = hashlib.sha256(f"{settings.package}\0{settings.python}\0".encode())
    for name, data in sorted(contents.items()):
        whole.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\0".encode())
    return whole.hexdigest()[:16]


def _parameters(
    settings: FleetSettings, services: tuple[str, ...], release: str, program: str
) -> bytes:
    urls = [_health_url(settings, service) for service in services]
    parameters = {
        "RELEASE": release,
        "PROGRAM_ID": program,
        "PYTHON": settings.python,
        "PACKAGE": settings.package,
        "SERVICES": " ".join(services),
        "SYSTEM_PACKAGES": " ".join(settings.system_packages),
        "NBD_DEVICES": str(settings.nbd_devices),
        "HEALTH_SECONDS": str(settings.health_seconds),
        "KEEP": str(settings.keep_releases),
        "HEALTH_URLS": " ".join(urls),
    }
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in parameters.items()]
    return "".join(lines).encode()


def _health_url(settings: FleetSettings, service: str) -> str:
    variables = settings.variables_of(service)
    port = variables.get("BOOTSTREAM_LISTEN_PORT") or str(SERVICES[service])
    host = variables.get("BOOTSTREAM_LISTEN_HOST")
    name = "127.0.0.1" if host in _LOOPBACK else host
    if name is not None and ":" in name:
        name = f"[{name}]"
    tls = "tls.crt" in settings.secrets or "BOOTSTREAM_TLS_CERT_FILE" in variables
    return f"{'https' if tls else 'http'}://{name}:{port}/health"


def _script() -> bytes:
    script: Path = files("bootstream.deploy").joinpath("install.sh")  # type: ignore[assignment]
    return script.read_bytes()
