"""``files``, ``cat`` and ``cp``: a template's files without mounting it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click

from bootstream import wiring
from bootstream.cli.base import REF, json_option, verb
from bootstream.cli.context import Cli, pass_cli
from bootstream.cli.errors import from_os_error
from bootstream.cli.localfile import appearing, umask
from bootstream.cli.output import emit_json, iso, printable, table
from bootstream.errors import Corrupt, InvalidInput
from bootstream.rootfs.ext4.reader import Ext4FileSystem
from bootstream.templates.build import ROOTFS

_COPY_BYTES = 1 << 20

artifact_option = click.option(
    "--artifact", default=ROOTFS, show_default=True, help="Which artifact of the build."
)


def split_reference(text: str, path: str | None) -> tuple[str, bytes]:
    """Return reference and absolute path for ``REF:PATH``, or ``REF`` and ``PATH``.

    ``NAME:TAG:/PATH`` and ``NAME:/PATH`` are told apart by the slash.
    """
    if path is None:
        text, colon, rest = text.partition(":/")
        if not colon:
            raise InvalidInput(
                "it does not say which file",
                operation="read",
                object=text,
                remedy="write REF:/PATH or REF PATH, e.g. debian:/etc/os-release",
            )
        path = "/" + rest
    return text, b"/" + os.fsencode(path).lstrip(b"/")


@contextmanager
def open_file_system(cli: Cli, ref: str, artifact: str) -> Iterator[Ext4FileSystem]:
    """Yield a build's file system; only what is looked at is fetched."""
    manifest = cli.catalogue.resolve(ref)
    with (
        closing(wiring.open_node_cache(cli.settings)) as cache,
        closing(wiring.open_device(cli.storage, cache, manifest, artifact)) as device,
    ):
        system = Ext4FileSystem(device.read_into, device.size)
        if system.needs_recovery:
            cli.warn(f"{ref}: its journal was not replayed, so the newest changes are not seen")
        yield system


@verb(
    "files",
    """
    bootstream files debian /etc -l
    bootstream files debian:12:/usr/share/doc --recursive --json
    """,
)
@click.argument("ref", metavar="REF[:PATH]", type=REF)
@click.argument("path", required=False)
@click.option("-l", "--long", "long_", is_flag=True, help="Mode, owner, size, time, link target.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, too.")
@artifact_option
@json_option
@pass_cli
def files(
    cli: Cli,
    ref: str,
    path: str | None,
    long_: bool,
    recursive: bool,
    artifact: str,
    as_json: bool,
) -> None:
    """List files inside a template.

    PATH is the root if left out. Names that are not printable are shown escaped.
    """
    if path is None and ":/" not in ref:
        path = "/"
    name, start = split_reference(ref, path)
    with open_file_system(cli, name, artifact) as system:
        entries = _entries(system, start, recursive=recursive)
        if as_json:
            emit_json([_entry_to_json(system, entry) for entry in entries])
        elif long_:
            rows = [_entry_to_row(system, entry) for entry in entries]
            table(("MODE", "OWNER>", "SIZE>", "MODIFIED", "NAME"), rows)
        else:
            for entry in entries:
                click.echo(printable(entry))


def _entries(system: Ext4FileSystem, start: bytes, *, recursive: bool) -> Iterator[bytes]:
    """Yield what is to be listed, in order: a folder's contents, or the one file."""
    if not stat.S_ISDIR(system.stat(start).mode):
        yield start
        return
    # Not by recursion: an image may be deeper than the interpreter's stack.
    waiting = [_children(system, start)]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
            continue
        yield path
        if recursive and stat.S_ISDIR(system.stat(path, follow=False).mode):
            waiting.append(_children(system, path))


def _children(system: Ext4FileSystem, folder: bytes) -> Iterator[bytes]:
    """Return the paths of what is in a folder, sorted."""
    prefix = folder.rstrip(b"/") + b"/"
    return iter([prefix + name for name in sorted(system.listdir(folder))])


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _entry_to_json(system: Ext4FileSystem, path: bytes) -> dict[str, Any]:
    status = system.stat(path, follow=False)
    link = stat.S_ISLNK(status.mode)
    return {
        "path": path.decode("utf-8", "surrogateescape"),
        "type": _TYPES.get(stat.S_IFMT(status.mode), "unknown"),
        "mode": f"{stat.S_IMODE(status.mode):04o}",
        "uid": status.uid,
        "gid": status.gid,
        "size": status.size,
        "mtime": iso(_time(status.mtime_ns)),
        "target": system.readlink(path).decode("utf-8", "surrogateescape") if link else None,
    }


def _entry_to_row(system: Ext4FileSystem, path: bytes) -> tuple[str, ...]:
    status = system.stat(path, follow=False)
    name = printable(path)
    if stat.S_ISLNK(status.mode):
        name += f" -> {printable(system.readlink(path))}"
    size = str(status.size)
    if stat.S_ISCHR(status.mode) or stat.S_ISBLK(status.mode):
        size = f"{os.major(status.rdev)},{os.minor(status.rdev)}"
    return (
        stat.filemode(status.mode),
        f"{status.uid}:{status.gid}",
        size,
        _time(status.mtime_ns).strftime("%Y-%m-%d %H:%M"),
        name,
    )


def _time(nanoseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)


@verb(
    "cat",
    """
    bootstream cat debian:/etc/os-release
    bootstream cat debian:12 /usr/lib/os-release | grep ID
    """,
)
@click.argument("ref", metavar="REF[:PATH]", type=REF)
@click.argument("path", required=False)
@artifact_option
@pass_cli
def cat(cli: Cli, ref: str, path: str | None, artifact: str) -> None:
    """Print a file of a template.

    Symbolic links are followed inside the image.
    """
    name, wanted = split_reference(ref, path)
    with open_file_system(cli, name, artifact) as system:
        _insist_on_file(system, wanted, "print")
        with system.open(wanted) as source:
            while data := source.read(_COPY_BYTES):
                sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@verb(
    "cp",
    """
    bootstream cp debian:/etc/os-release .
    bootstream cp debian:12:/usr/share/doc ./doc
    """,
)
@click.argument("source", metavar="REF:PATH", type=REF)
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@artifact_option
@pass_cli
def cp(cli: Cli, source: str, destination: Path, artifact: str) -> None:
    """Copy a file or folder out of a template.

    Into DEST if that is a folder. Permissions and times are kept, owners and setuid are
    not; devices, fifos and sockets are skipped with a warning. A folder is only ever
    copied to a place where nothing is.
    """
    name, wanted = split_reference(source, None)
    if destination.is_dir():
        destination /= os.fsdecode(wanted.rstrip(b"/").rpartition(b"/")[2]) or "rootfs"
    with open_file_system(cli, name, artifact) as system, cli.interruption:
        if stat.S_ISDIR(system.stat(wanted).mode):
            Copier(cli, system).folder(wanted, destination)
            return
        _insist_on_file(system, wanted, "copy")
        with appearing(destination, operation="copy to", replace=True) as target:
            Copier(cli, system).contents(wanted, target)


def _insist_on_file(system: Ext4FileSystem, path: bytes, operation: str) -> None:
    mode = system.stat(path).mode
    if not stat.S_ISREG(mode):
        raise InvalidInput(
            f"it is a {_TYPES.get(stat.S_IFMT(mode), 'thing of unknown type')}, not a file",
            operation=operation,
            object=printable(path),
            remedy="'bootstream files REF PATH' lists a folder, 'bootstream cp' copies one",
        )


class _Folder(NamedTuple):
    """A folder that is being copied, and the names that are left to do."""

    source: bytes
    target: Path
    names: Iterator[bytes]


class Copier:
    """Copies out of an image whose names and links are not to be trusted.

    Everything is created afresh and never through a link: a folder that lists one name
    twice, as a link and as something else, fails instead of leading elsewhere.
    """

    def __init__(self, cli: Cli, system: Ext4FileSystem) -> None:
        self._cli = cli
        self._system = system

    def folder(self, source: bytes, target: Path) -> None:
        """Copy a folder with everything below; ``target`` must not exist."""
        waiting = [self._begin(source, target)]
        while waiting:
            folder = waiting[-1]
            name = next(folder.names, None)
            if name is None:
                # Only now: what is put into a folder changes its time.
                self._finish(folder.source, folder.target)
                waiting.pop()
                continue
            self._cli.interruption.check()
            if name in (b".", b"..") or b"/" in name:
                raise Corrupt("a name cannot be", operation="copy", object=printable(folder.source))
            path = folder.source.rstrip(b"/") + b"/" + name
            place = folder.target / os.fsdecode(name)
            if stat.S_ISDIR(self._system.stat(path, follow=False).mode):
                waiting.append(self._begin(path, place))
            else:
                self._one(path, place)

    def _begin(self, source: bytes, target: Path) -> _Folder:
        try:
            target.mkdir(mode=0o700)
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(target)) from error
        return _Folder(source, target, iter(sorted(self._system.listdir(source))))

    def _one(self, source: bytes, target: Path) -> None:
        """Copy what is no folder."""
        mode = self._system.stat(source, follow=False).mode
        try:
            if stat.S_ISLNK(mode):
                target.symlink_to(os.fsdecode(self._system.readlink(source)))
            elif stat.S_ISREG(mode):
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                self.contents(source, target)
            else:
                kind = _TYPES.get(stat.S_IFMT(mode), "unknown")
                self._cli.warn(f"{printable(source)}: not copied, it is a {kind}")
        except OSError as error:
            raise from_os_error(error, operation="copy to", object=str(target)) from error

    def contents(self, source: bytes, target: Path) -> None:
        """Fill a file, leaving holes where there are zeros."""
        with self._system.open(source) as reader, target.open("r+b") as writer:
            while data := reader.read(_COPY_BYTES):
                self._cli.interruption.check()
                if data.count(0) == len(data):
                    writer.seek(len(data), os.SEEK_CUR)
                else:
                    writer.write(data)
            writer.truncate()
        self._finish(source, target)

    def _finish(self, source: bytes, target: Path) -> None:
        status = self._system.stat(source)
        target.chmod(status.mode & 0o777 & ~umask())
        os.utime(target, ns=(status.mtime_ns, status.mtime_ns))
