"""Kernel modules: which are built in, where the others are, and in which order they load.

A module is an ELF file; its section ``.modinfo`` holds ``key=value`` texts, each with a zero
at its end, of which ``depends`` names what must be loaded before (Linux,
``include/linux/module.h``). So no ``modules.dep`` is needed, which a package's unpacked
folder does not have. ``modules.order`` and ``modules.builtin`` list paths below
``/lib/modules/VERSION`` (``Documentation/kbuild/kbuild.rst``).
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from bootstream.errors import Corrupt, NotFound

if TYPE_CHECKING:
    from bootstream.vm.kernel import Files

_SUFFIXES = ("", ".xz", ".zst", ".gz")
_MAX_MODULE = 1 << 26
_SECTION = struct.Struct("<IIQQQQ")


class Module(NamedTuple):
    """A module to load: its name, and its ELF file."""

    name: str
    data: bytes


class Modules:
    """The modules of one kernel.

    Args:
        files: the tree that they are in; None where there are none, so that everything that
            is asked for is taken for built in.
        top: ``/lib/modules/VERSION`` in it.
    """

    def __init__(self, files: Files | None, top: str) -> None:
        self._files = files
        self._top = top
        self._builtin = self._listed("modules.builtin")
        self._loadable = self._listed("modules.order")

    def __bool__(self) -> bool:
        return self._files is not None

    def has(self, name: str) -> bool:
        """Whether the kernel has it, built in or to be loaded."""
        name = _plain(name)
        return not self or name in self._builtin or name in self._loadable

    def load(self, names: Iterable[str]) -> list[Module]:
        """Return what to load for ``names``, in order; what is built in is left out.

        Raises:
            NotFound: the kernel has no such module.
            Corrupt: a module is damaged.
        """
        loaded: dict[str, Module] = {}
        for name in names:
            self._add(_plain(name), loaded, ())
        return list(loaded.values())

    def _add(self, name: str, loaded: dict[str, Module], above: tuple[str, ...]) -> None:
        if not self or name in self._builtin or name in loaded:
            return
        if name in above:
            raise Corrupt("modules depend on each other", operation="load module", object=name)
        module = Module(name, self._read(name))
        for needed in depends(module):
            self._add(_plain(needed), loaded, (*above, name))
        loaded[name] = module

    def _read(self, name: str) -> bytes:
        assert self._files is not None
        path = self._loadable.get(name)
        if path is not None:
            for suffix in _SUFFIXES:
                try:
                    data = self._files.read(f"{self._top}/{path}{suffix}")
                except NotFound:
                    continue
                return _expanded(name, data, suffix)
        raise NotFound(
            f"the kernel in {self._top} has no such module", operation="load module", object=name
        )

    def _listed(self, listing: str) -> dict[str, str]:
        """Return paths without a suffix of compression, by name; none where nothing lists them."""
        if self._files is None:
            return {}
        try:
            lines = self._files.read(f"{self._top}/{listing}").decode("utf-8", "replace").split()
        except NotFound:
            return {}
        found = {}
        for line in lines:
            path = line.partition(".ko")[0] + ".ko"
            found[_plain(path.rpartition("/")[2].removesuffix(".ko"))] = path
        return found


def depends(module: Module) -> list[str]:
    """Return the names of what a module needs.

    Raises:
        Corrupt: it is no module.
    """
    for line in _modinfo(module).split(b"\0"):
        key, _, value = line.partition(b"=")
        if key == b"depends":
            return [name for name in value.decode("ascii", "replace").split(",") if name]
    return []


def _modinfo(module: Module) -> bytes:
    """Return the section ``.modinfo``; empty where there is none (ELF, "Section Header")."""
    data = module.data
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        if data[:6] != b"\x7fELF\x02\x01":
            count = names = 0
        sections = [_SECTION.unpack_from(data, table + number * size) for number in range(count)]
        texts = _content(data, sections[names])
        for section in sections:
            if texts[section[0] : section[0] + 9] == b".modinfo\0":
                return _content(data, section)
    except (struct.error, IndexError) as error:
        raise Corrupt(
            "it is no kernel module", operation="load module", object=module.name
        ) from error
    return b""


def _content(data: bytes, section: tuple[int, ...]) -> bytes:
    offset, size = section[4], section[5]
    return data[offset : offset + size]


def _plain(name: str) -> str:
    """Return a module's name as the kernel has it."""
    return name.replace("-", "_")


def _expanded(name: str, data: bytes, suffix: str) -> bytes:
    """Return a module's bytes, at most 64 MiB of them."""
    try:
        match suffix:
            case ".xz":
                data = lzma.LZMADecompressor().decompress(data, _MAX_MODULE)
            case ".gz":
                data = zlib.decompressobj(31).decompress(data, _MAX_MODULE)
            case ".zst":
                import zstandard  # noqa: PLC0415 - for kernels that need it

                with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                    data = reader.read(_MAX_MODULE)
            case _:
                pass
    except Exception as error:  # each library has an error of its own
        raise Corrupt("it cannot be decompressed", operation="load module", object=name) from error
    return data
