"""Profiles of OCI's configuration file, with the variables that override them.

"SDK and CLI Configuration File" of Oracle's documentation: an INI file whose sections are
profiles; all inherit from ``DEFAULT``; ``~`` is the home folder. The file is the one that is
named, else ``OCI_CLI_CONFIG_FILE``, else ``~/.oci/config``, else ``OCI_CONFIG_FILE``, else
``~/.oraclebmc/config``. The variables ``OCI_CLI_USER``, ``_TENANCY``, ``_FINGERPRINT``,
``_REGION``, ``_KEY_FILE``, ``_KEY_CONTENT``, ``_PASSPHRASE`` and ``_SECURITY_TOKEN_FILE`` win over
the file, and need none.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bootstream.clouds.oci.keys import read_file
from bootstream.errors import PermissionDenied

_OVERRIDES = {
    "OCI_CLI_USER": "user",
    "OCI_CLI_TENANCY": "tenancy",
    "OCI_CLI_FINGERPRINT": "fingerprint",
    "OCI_CLI_REGION": "region",
    "OCI_CLI_KEY_FILE": "key_file",
    "OCI_CLI_KEY_CONTENT": "key_content",
    "OCI_CLI_PASSPHRASE": "pass_phrase",
    "OCI_CLI_SECURITY_TOKEN_FILE": "security_token_file",
}
_DEFAULT = "DEFAULT"
_NO_SECTION = "\x00"  # configparser's own inheritance would hide where a value stands


@dataclass(frozen=True, slots=True)
class Profile:
    """The values of one profile; empty ones are absent.

    ``source`` names file and profile for errors. ``own`` are the names set by the profile
    itself or by a variable, not inherited. Values are not in ``repr``: some are secrets.
    """

    source: str
    folder: Path
    values: Mapping[str, str] = field(repr=False)
    own: frozenset[str]
    home: Path

    def get(self, name: str) -> str | None:
        """Return a value, or None."""
        return self.values.get(name)

    def require(self, *names: str) -> list[str]:
        """Return values that must be there. Raises PermissionDenied naming what is missing."""
        missing = [name for name in names if not self.get(name)]
        if missing:
            raise PermissionDenied(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
                operation="read profile",
                object=self.source,
                remedy="add it to the profile, or set "
                + ", ".join(_variable(name) for name in missing),
            )
        return [self.values[name] for name in names]

    def path(self, name: str) -> Path:
        """Return a value that is a path, with ``~`` expanded; raises as ``require``."""
        return expand(self.require(name)[0], self.home)


def _variable(name: str) -> str:
    return next(variable for variable, value in _OVERRIDES.items() if value == name)


def home_of(environ: Mapping[str, str]) -> Path:
    """Return the home folder that ``~`` stands for."""
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def expand(text: str, home: Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` expanded."""
    if text == "~" or text.startswith("~/"):
        return home / text[2:]
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def find_config_file(named: Path | None, environ: Mapping[str, str]) -> tuple[Path, bool]:
    """Return the file to read and whether somebody named it; it may not exist."""
    home = home_of(environ)
    if named is not None:
        return expand(str(named), home), True
    if text := environ.get("OCI_CLI_CONFIG_FILE"):
        return expand(text, home), True
    usual = home / ".oci" / "config"
    if usual.is_file():
        return usual, False
    if text := environ.get("OCI_CONFIG_FILE"):
        return expand(text, home), True
    old = home / ".oraclebmc" / "config"
    return (old if old.is_file() else usual), False


def load_profile(
    config_file: Path | None, profile: str | None, environ: Mapping[str, str]
) -> Profile:
    """Read a profile. Raises PermissionDenied: no file, no such profile, not an INI file."""
    path, _ = find_config_file(config_file, environ)
    name = profile or environ.get("OCI_CLI_PROFILE") or _DEFAULT
    overrides = {
        value: environ[variable] for variable, value in _OVERRIDES.items() if environ.get(variable)
    }
    if not path.exists() and _complete(overrides):
        return Profile(
            "the OCI_CLI_* variables",
            path.parent,
            overrides,
            frozenset(overrides),
            home_of(environ),
        )
    source = f"{path} [{name}]"
    sections = _parse(path)
    if name not in sections and not (name == _DEFAULT and _complete(overrides)):
        known = ", ".join(sorted(sections)) or "none"
        raise PermissionDenied(
            f"there is no profile {name!r}; the file has: {known}",
            operation="read profile",
            object=str(path),
            remedy="name one of these with OCI_CLI_PROFILE, or add a section to the file",
        )
    own = sections.get(name, {})
    values = {**sections.get(_DEFAULT, {}), **own}
    if "key_file" in overrides or ("key_file" in own and "key_content" not in own):
        values.pop("key_content", None)  # an inherited one would win over the nearer file
    values.update(overrides)
    return Profile(
        source,
        path.parent,
        {key: value for key, value in values.items() if value},
        frozenset(own) | frozenset(overrides),
        home_of(environ),
    )


def _complete(overrides: Mapping[str, str]) -> bool:
    key = "key_file" in overrides or "key_content" in overrides
    return key and (
        overrides.keys() >= {"user", "tenancy", "fingerprint"} or "security_token_file" in overrides
    )


def _parse(path: Path) -> dict[str, dict[str, str]]:
    """Every section's own values. The parser's messages quote lines, so only numbers are kept."""
    data = read_file(path, "configuration file")
    parser = configparser.ConfigParser(interpolation=None, default_section=_NO_SECTION)
    try:
        parser.read_string(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        problem = "the file is not UTF-8 text"
    except configparser.MissingSectionHeaderError as error:
        problem = f"line {error.lineno} comes before any [profile]"
    except configparser.ParsingError as error:
        numbers = ", ".join(str(number) for number, _ in error.errors)
        problem = f"this is not `name=value`: line {numbers}"
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        problem = f"line {error.lineno} repeats a profile or a name"
    except configparser.Error:
        problem = "the file is not a configuration file"
    else:
        return {name: dict(parser.items(name)) for name in parser.sections()}
    raise PermissionDenied(
        problem,
        operation="read configuration file",
        object=str(path),
        remedy="mend the file; `oci setup config` writes a new one",
    )
