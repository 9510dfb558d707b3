"""The one settings file of a fleet: TOML, checked before anything is done.

``docs/deploy/deploy.md`` describes it. Every mistake is told with the key it is at.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstream.config import Settings
from bootstream.deploy.units import SECRET_FILES
from bootstream.deploy.variables import CLOUD_VARIABLES, CLOUDS, SERVICES, template_names
from bootstream.errors import BootstreamError, InvalidInput, NotFound

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_HIDDEN = ("/home/", "/root/", "/run/user/")
_MODES = ("systemd", "nomad")
_KEYS = {
    "": {
        "cloud",
        "mode",
        "hosts",
        "manager",
        "package",
        "wheels",
        "python",
        "system_packages",
        "nbd_devices",
        "health_seconds",
        "keep_releases",
        "listen",
        "ssh",
        "values",
        "environment",
        "secrets",
    },
    "ssh": {"user", "port", "bastion", "identity", "known_hosts", "connect_seconds"},
}


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How hosts are reached; what is None is as ssh's own configuration has it."""

    user: str | None = None
    port: int | None = None
    bastion: str | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    connect_seconds: int = 10


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """A fleet.

    ``wheels``: a folder with the package and all it needs, for hosts without an index.
    ``secrets``: files of this machine by their names on the hosts, of ``units.SECRET_FILES``.
    ``environment``: by service; what is for all is in each.
    """

    cloud: str
    hosts: tuple[str, ...]
    mode: str = "systemd"
    manager: str | None = None
    package: str = "bootstream"
    wheels: Path | None = None
    python: str = "python3"
    system_packages: tuple[str, ...] = ()
    nbd_devices: int = 64
    health_seconds: int = 60
    keep_releases: int = 3
    listen: str | None = None
    ssh: SshSettings = SshSettings()
    values: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, Path] = field(default_factory=dict)

    def services_of(self, host: str) -> tuple[str, ...]:
        """Return the services that run on a host as units: none of them where Nomad has them."""
        if self.mode == "nomad":
            return ()
        return tuple(SERVICES) if host == self.manager else ("orchestrator",)

    def variables_of(self, service: str) -> dict[str, str]:
        """Return the variables of a service on any host, without what its unit sets."""
        found = {}
        for variable in CLOUD_VARIABLES[self.cloud]:
            text = variable.value
            found[variable.name] = self.values[text[2:-1]] if text.startswith("${") else text
        if self.listen is not None:
            found["BOOTSTREAM_LISTEN_HOST"] = self.listen
        return {**found, **self.environment.get(service, {})}


def load_fleet(path: Path) -> FleetSettings:
    """Read and check a settings file.

    Raises:
        NotFound: it, or a file that it names, is not there.
        InvalidInput: what is wrong, and at which key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(
            error.strerror or "it cannot be read",
            operation="read settings",
            object=str(path),
            remedy="write one, see docs/deploy/deploy.md",
        ) from error
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _wrong("", f"it is not TOML: {error}") from error
    return _Reader(document, path.parent).fleet()


def _wrong(key: str, message: str, remedy: str | None = None) -> InvalidInput:
    return InvalidInput(message, operation="read settings", object=key or "the file", remedy=remedy)


class _Reader:
    """Takes a parsed document apart; paths are relative to the file's folder."""

    def __init__(self, document: dict[str, Any], folder: Path) -> None:
        self._document = document
        self._folder = folder

    def fleet(self) -> FleetSettings:
        top = self._document
        self._known(top, "")
        cloud = self._text(top, "cloud", choices=CLOUDS)
        if cloud is None:
            raise _wrong("cloud", "it is missing", f"one of: {', '.join(CLOUDS)}")
        hosts = self._hosts()
        mode = self._text(top, "mode", choices=_MODES) or "systemd"
        manager = self._text(top, "manager", pattern=_HOST) or hosts[0]
        if manager not in hosts:
            raise _wrong("manager", f"{manager} is not among the hosts")
        listen = self._text(top, "listen", pattern=_HOST)
        settings = FleetSettings(
            cloud=cloud,
            hosts=hosts,
            mode=mode,
            manager=manager,
            package=self._text(top, "package", pattern=re.compile(r"[\x21-\x7e]{1,300}"))
            or f"bootstream[{cloud},server]",
            wheels=self._path(top, "wheels", "wheels"),
            python=self._text(top, "python", pattern=re.compile(r"[A-Za-z0-9./_-]{1,200}"))
            or "python3",
            system_packages=self._packages(),
            nbd_devices=self._number(top, "nbd_devices", 64, 0, 4096),
            health_seconds=self._number(top, "health_seconds", 60, 1, 3600),
            keep_releases=self._number(top, "keep_releases", 3, 1, 100),
            listen=listen,
            ssh=self._ssh(),
            values=self._values(cloud),
            environment=self._environment(),
            secrets=self._secrets(),
        )
        if (
            listen is not None
            and listen != "127.0.0.1"
            and set(settings.secrets) != set(SECRET_FILES)
        ):
            raise _wrong(
                "listen",
                f"{listen} is not loopback: the services want tokens and TLS there",
                f"give all of [secrets]: {', '.join(SECRET_FILES)}; or leave 'listen' out",
            )
        for service in SERVICES:
            try:
                Settings.from_environment(settings.variables_of(service))
            except BootstreamError as error:
                raise _wrong(
                    f"environment of {service}: {error.object}", error.message, error.remedy
                ) from error
        return settings

    def _known(self, table: Mapping[str, Any], name: str) -> None:
        for key in table:
            if key not in _KEYS[name]:
                where = f"{name}.{key}" if name else key
                raise _wrong(
                    where, "there is no such key", f"keys: {', '.join(sorted(_KEYS[name]))}"
                )

    def _table(self, key: str) -> dict[str, Any]:
        table = self._document.get(key, {})
        if not isinstance(table, dict):
            raise _wrong(key, "it is not a table", f"write [{key}]")
        return table

    def _text(
        self,
        table: Mapping[str, Any],
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        choices: tuple[str, ...] = (),
        where: str | None = None,
    ) -> str | None:
        value = table.get(key)
        where = where or key
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise _wrong(where, "it is not a text", f'{key} = "…"')
        if choices and value not in choices:
            raise _wrong(where, f"{value[:60]!r} is none of them", f"one of: {', '.join(choices)}")
        if pattern is not None and pattern.fullmatch(value) is None:
            raise _wrong(where, f"{value[:60]!r} cannot be that")
        return value

    def _number(
        self, table: Mapping[str, Any], key: str, default: int, least: int, most: int
    ) -> int:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(key, f"it is not a number from {least} to {most}")
        return value

    def _path(self, table: Mapping[str, Any], key: str, where: str) -> Path | None:
        text = self._text(table, key, where=where)
        if text is None:
            return None
        try:
            path = self._folder / Path(text).expanduser()
            there = path.is_dir() if key == "wheels" else path.is_file()
        except (RuntimeError, OSError, ValueError) as error:  # no such home; no such name
            raise _wrong(where, f"{ascii(text)[:60]} is no path: {error}") from error
        if not there:
            kind = "folder" if key == "wheels" else "file"
            raise NotFound(
                f"there is no such {kind}",
                operation="read settings",
                object=f"{where}: {ascii(str(path))[:300]}",
            )
        return path

    def _hosts(self) -> tuple[str, ...]:
        hosts = self._document.get("hosts")
        if not isinstance(hosts, list) or not hosts:
            raise _wrong("hosts", "it is not a list of hosts", 'hosts = ["10.0.0.5"]')
        for host in hosts:
            if not isinstance(host, str) or _HOST.fullmatch(host) is None:
                raise _wrong("hosts", f"{str(host)[:60]!r} is not a host")
        if len(set(hosts)) != len(hosts):
            raise _wrong("hosts", "a host is there twice")
        return tuple(hosts)

    def _packages(self) -> tuple[str, ...]:
        found = self._document.get("system_packages", [])
        if not isinstance(found, list):
            raise _wrong("system_packages", "it is not a list")
        for name in found:
            if not isinstance(name, str) or _PACKAGE.fullmatch(name) is None:
                raise _wrong("system_packages", f"{str(name)[:60]!r} is not a package")
        return tuple(found)

    def _ssh(self) -> SshSettings:
        table = self._table("ssh")
        self._known(table, "ssh")
        bastion = self._text(table, "bastion", where="ssh.bastion")
        if bastion is not None:
            user, at, rest = bastion.rpartition("@")
            host, _, port = rest.partition(":")
            good = (not at or _USER.fullmatch(user)) and _HOST.fullmatch(host)
            if not good or (port and not port.isdecimal()):
                raise _wrong("ssh.bastion", f"{bastion[:60]!r} is not [USER@]HOST[:PORT]")
        return SshSettings(
            user=self._text(table, "user", pattern=_USER, where="ssh.user"),
            port=self._number(table, "port", 22, 1, 65535) if "port" in table else None,
            bastion=bastion,
            identity=self._path(table, "identity", "ssh.identity"),
            known_hosts=self._path(table, "known_hosts", "ssh.known_hosts"),
            connect_seconds=self._number(table, "connect_seconds", 10, 1, 600),
        )

    def _values(self, cloud: str) -> dict[str, str]:
        table = self._table("values")
        needed = template_names(cloud)
        for key in table:
            if key not in needed:
                raise _wrong(f"values.{key}", "there is no such key", f"keys: {', '.join(needed)}")
        found = {}
        for key in needed:
            text = self._text(
                table, key, pattern=re.compile(r"[A-Za-z0-9._/:-]{1,256}"), where=f"values.{key}"
            )
            if text is None:
                raise _wrong(f"values.{key}", "it is missing", "terraform output job_values has it")
            if cloud == "local" and (not text.startswith("/") or text.startswith(_HIDDEN)):
                raise _wrong(
                    f"values.{key}",
                    f"{text} is no folder that a unit sees",
                    f"an absolute path, not below {', '.join(_HIDDEN)}",
                )
            found[key] = text
        return found

    def _environment(self) -> dict[str, dict[str, str]]:
        table = self._table("environment")
        common = {key: value for key, value in table.items() if key not in SERVICES}
        found = {}
        for service in SERVICES:
            own = table.get(service, {})
            if not isinstance(own, dict):
                raise _wrong(f"environment.{service}", "it is not a table")
            found[service] = {
                name: _variable(name, value) for name, value in {**common, **own}.items()
            }
        return found

    def _secrets(self) -> dict[str, Path]:
        table = self._table("secrets")
        found = {}
        for name in table:
            if name not in SECRET_FILES:
                raise _wrong(
                    f"secrets.{name}", "there is no such secret", f"keys: {', '.join(SECRET_FILES)}"
                )
            path = self._path(table, name, f"secrets.{name}")
            assert path is not None
            found[name] = path
        return found


def _variable(name: str, value: object) -> str:
    if _NAME.fullmatch(name) is None:
        raise _wrong(f"environment.{name[:60]}", "it is not the name of a variable")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _wrong(f"environment.{name}", "it is neither a text nor a number")
    text = str(value)
    if not text.isprintable():
        raise _wrong(f"environment.{name}", "it has line breaks or control characters")
    return text
