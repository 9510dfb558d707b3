"""Frozen settings, and the one place that reads them from environment variables.

Only the command line and the services call ``Settings.from_environment``; the
library takes arguments. The table of variables is in ``docs/settings.md``.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from bootstream.errors import InvalidInput

STORAGE_PROVIDERS = ("Local",)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SCALE = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_size(text: str, *, what: str = "size") -> int:
    """Return bytes for ``512``, ``64k``, ``1.5GiB``; powers of 1024. Raises InvalidInput."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a size",
            operation="read",
            object=what,
            remedy="write a number of bytes, or one with k, M, G or T (powers of 1024): 512M, 2G",
        )
    return int(float(match[1]) * _SCALE[match[2].lower()])


def parse_duration(text: str, *, what: str = "duration") -> float:
    """Return seconds for ``0s``, ``90``, ``10m``, ``24h``, ``7d``. Raises InvalidInput."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a duration",
            operation="read",
            object=what,
            remedy="write a number with s, m, h, d or w: 90s, 24h, 7d",
        )
    return float(match[1]) * _SECONDS[(match[2] or "s").lower()]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process needs to know of the world; see ``docs/settings.md``.

    Sizes in bytes. ``cache_size`` None means a tenth of the disk it lies on.
    """

    storage_provider: str
    template_bucket_prefix: str
    local_base_path: Path
    cache_dir: Path
    cache_size: int | None
    node_id: str
    registry_auth_file: Path | None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables; unset and empty mean the default. Raises InvalidInput."""

        def get(name: str) -> str | None:
            return environ.get(name) or None

        provider = get("STORAGE_PROVIDER") or "Local"
        if provider not in STORAGE_PROVIDERS:
            raise InvalidInput(
                f"no storage provider is called {provider!r}",
                operation="read",
                object="STORAGE_PROVIDER",
                remedy=f"set it to one of: {', '.join(STORAGE_PROVIDERS)}",
            )
        size = get("BOOTSTREAM_CACHE_SIZE")
        auth_file = get("REGISTRY_AUTH_FILE")
        return cls(
            storage_provider=provider,
            template_bucket_prefix=get("TEMPLATE_BUCKET_PREFIX") or "",
            local_base_path=_folder(get("LOCAL_TEMPLATE_STORAGE_BASE_PATH"))
            or user_data_path("bootstream") / "templates",
            cache_dir=_folder(get("BOOTSTREAM_CACHE_DIR")) or user_cache_path("bootstream"),
            cache_size=None if size is None else parse_size(size, what="BOOTSTREAM_CACHE_SIZE"),
            node_id=_node_id(get("NODE_ID") or socket.gethostname()),
            registry_auth_file=Path(auth_file) if auth_file else None,
        )


def _folder(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


def _node_id(text: str) -> str:
    """A node id is part of object names: anything unusual becomes ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:128].lstrip(".") or "node"
