"""What people write for a place in a store, and for one on this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bootstream import wiring
from bootstream.cli.context import Cli
from bootstream.errors import InvalidInput
from bootstream.storage.paths import normalize_prefix
from bootstream.storage.url import StoreAddress, is_url, parse_store

if TYPE_CHECKING:
    from bootstream.storage.protocol import StorageProvider

STORE = "store:"


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a store: an object, or what is below it; "" is all of the store.

    ``folder``: it was written with a slash at its end, so it is no object.
    """

    storage: StorageProvider
    path: str
    name: str
    folder: bool = False

    def __str__(self) -> str:
        return self.name

    def below(self, relative: str) -> str:
        """Return the path of what is called ``relative`` below this one."""
        return f"{self.path}/{relative}" if self.path else relative


class Places:
    """Opens stores, each once."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._stores: dict[StoreAddress, StorageProvider] = {}

    def stored(self, text: str) -> Place:
        """Return the place of an address, or of a path in the configured store.

        Raises:
            InvalidInput: it is neither.
        """
        if is_url(text):
            return self._at(parse_store(text), text)
        path = text.removeprefix(STORE)
        prefix = normalize_prefix(path).removesuffix("/")
        return Place(self._cli.storage, prefix, text, path == "" or path.endswith("/"))

    def any(self, text: str) -> Place | Path:
        """Return the place of an address or of ``store:PATH``; else, or for ``file://``, a path.

        Raises:
            InvalidInput: it is none of them.
        """
        if text.startswith(STORE):
            return self.stored(text)
        address = parse_store(text)
        if address.provider == "Local":
            return Path(address.folder)
        return self._at(address, text)

    def _at(self, address: StoreAddress, text: str) -> Place:
        if address.provider == "Local":
            # Seen from the folder around it, so that it may be a file or a folder.
            path = Path(address.folder)
            if path == path.parent:
                raise InvalidInput("the root folder is no store", operation="open", object=text)
            address = replace(address, folder=str(path.parent))
            return Place(self._open(address), path.name, text, text.endswith("/"))
        path_in_bucket = address.prefix
        ends = path_in_bucket == "" or text.endswith("/")
        return Place(self._open(replace(address, prefix="")), path_in_bucket, text, ends)

    def _open(self, address: StoreAddress) -> StorageProvider:
        if address not in self._stores:
            settings = wiring.with_store(self._cli.settings, str(address))
            self._stores[address] = wiring.get_template_storage_provider(settings)
        return self._stores[address]
