"""What the kernel shows of its NBD devices, and who uses them.

Sources: Linux, ``Documentation/ABI/testing/sysfs-block`` and ``drivers/block/nbd.c``: of a
device that is connected, ``/sys/block/nbdN/pid`` is the thread that connected it, and
``backend`` (since Linux 5.14) the identifier that it gave; ``proc(5)`` for mounts,
swap and descriptors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_NAME = re.compile(r"nbd(\d+)")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Device:
    """One device as the kernel shows it; ``size`` in bytes, ``pid`` None if unconnected.

    ``backend`` is None where the kernel shows no identifier.
    """

    index: int
    pid: int | None
    backend: str | None
    size: int
    read_only: bool

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/nbd{self.index}"


@dataclass(frozen=True, slots=True)
class Sysfs:
    """Reads the kernel's files. Files that go meanwhile are none; nothing raises.

    Args:
        sys, proc, dev: where those file systems are.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = field(default=Path("/dev"))

    def devices(self) -> Iterator[Device]:
        """Yield all devices, by number."""
        with suppress(OSError):
            names = [_NAME.fullmatch(path.name) for path in (self.sys / "block").iterdir()]
            for index in sorted(int(match[1]) for match in names if match):
                yield self.device(index)

    def device(self, index: int) -> Device:
        """Return one device; one that is not there is unconnected and empty."""
        folder = self._folder(index)
        pid = _line(folder / "pid")
        size = _line(folder / "size")
        return Device(
            index=index,
            pid=int(pid) if pid is not None and pid.isdecimal() else None,
            backend=_line(folder / "backend"),
            size=512 * int(size) if size is not None and size.isdecimal() else 0,
            read_only=_line(folder / "ro") == "1",
        )

    def users(self, index: int) -> list[str]:
        """Say who uses a device: mounts, swap, other devices upon it, open descriptors.

        Mounts of other namespaces and other users' descriptors show only to root.
        """
        numbers = self._numbers(index)
        users = [f"mounted on {place}" for place in self._mounts(numbers)]
        users += [f"swap {name}" for name in self._swaps(index)]
        with suppress(OSError):
            holders = (self._folder(index) / "holders").iterdir()
            users += [f"below {path.name}" for path in sorted(holders)]
        users += self._openers(index)
        return users

    def _folder(self, index: int) -> Path:
        return self.sys / "block" / f"nbd{index}"

    def _numbers(self, index: int) -> set[str]:
        """Return ``MAJOR:MINOR`` of the device and of its partitions."""
        folder = self._folder(index)
        files = [folder / "dev", *folder.glob(f"nbd{index}p*/dev")]
        return {number for file in files if (number := _line(file)) is not None}

    def _mounts(self, numbers: set[str]) -> Iterator[str]:
        for line in _lines(self.proc / "self" / "mountinfo"):
            fields = line.split(" ")
            if len(fields) > 4 and fields[2] in numbers:
                yield _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])

    def _swaps(self, index: int) -> Iterator[str]:
        pattern = re.compile(rf"/dev/nbd{index}(p\d+)?")
        for line in _lines(self.proc / "swaps"):
            name = line.split(" ", 1)[0]
            if pattern.fullmatch(name):
                yield name

    def _openers(self, index: int) -> Iterator[str]:
        pattern = re.compile(rf"/dev/nbd{index}(p\d+)?")
        with suppress(OSError):
            for process in self.proc.iterdir():
                if process.name.isdecimal() and self._opens(process / "fd", pattern):
                    name = _line(process / "comm") or "a process"
                    yield f"opened by {name} (pid {process.name})"

    @staticmethod
    def _opens(folder: Path, pattern: re.Pattern[str]) -> bool:
        with suppress(OSError):
            for descriptor in folder.iterdir():
                with suppress(OSError):
                    if pattern.fullmatch(str(descriptor.readlink())):
                        return True
        return False


def _line(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text("utf-8").strip()
    return None


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text("utf-8", "surrogateescape").splitlines()
    return []
