"""Platforms: operating system, architecture and variant, and which image runs where.

Names follow Go's, as the OCI image index specification asks ("Image Index
Property Descriptions", ``platform``). A variant is a level: a host of level 7 runs
what was made for level 6, never the other way round.
"""

from __future__ import annotations

import platform as host
import re
from dataclasses import dataclass

from bootstream.errors import InvalidInput

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
_OMITTED_VARIANTS = {("arm64", "v8"), ("amd64", "v1")}
_LEVEL = re.compile(r"v?(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform in its normal form: ``linux/amd64``, ``linux/arm/v7``, ``linux/arm64``.

    ``make`` and ``parse`` normalise; the constructor takes fields as they are.
    """

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def make(cls, os: str, architecture: str, variant: str = "") -> Platform:
        """Return the normal form: aliases resolved, the usual variant of arm64 left out."""
        os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = variant or implied
        level = _LEVEL.fullmatch(variant)
        if level:
            variant = f"v{int(level[1])}"
        if architecture == "arm" and not variant:
            variant = _DEFAULT_VARIANTS["arm"]
        if (architecture, variant) in _OMITTED_VARIANTS:
            variant = ""
        return cls("darwin" if os == "macos" else os, architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``OS/ARCH[/VARIANT]``, or ``ARCH`` for Linux. Raises InvalidInput."""
        parts = text.strip().split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(_WORD.fullmatch(part) for part in parts):
            raise InvalidInput(
                "it is not a platform",
                operation="read platform",
                object=ascii(text)[:120],
                remedy="write OS/ARCH or OS/ARCH/VARIANT: linux/amd64, linux/arm64, linux/arm/v7",
            )
        return cls.make(*parts)

    @classmethod
    def host(cls) -> Platform:
        """Return the platform of the virtual machines that this host runs: Linux, its own CPU."""
        return cls.make("linux", host.machine() or "unknown")

    def distance(self, offered: Platform) -> int | None:
        """Return how far below this platform ``offered`` is; None if it does not run here.

        0 is an exact match; an older variant of the same architecture is some levels away.
        """
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return None
        if self.variant == offered.variant:
            return 0
        wanted, level = self._level(), offered._level()
        if wanted is None or level is None or level > wanted:
            return None
        return wanted - level

    def _level(self) -> int | None:
        match = _LEVEL.fullmatch(self.variant or _DEFAULT_VARIANTS.get(self.architecture, ""))
        return int(match[1]) if match else None
