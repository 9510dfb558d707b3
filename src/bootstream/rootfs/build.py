"""From layers to an ext4 image: the one pass over everything.

Every layer is read once, bottom first. The tree is kept in memory, file data go straight
to their final blocks, metadata follow at the end. Nothing is unpacked on the way, so no
privilege is needed: owners, devices and attributes are only ever bytes in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bootstream.errors import InvalidInput
from bootstream.progress import Progress
from bootstream.rootfs import member as tar
from bootstream.rootfs.ext4 import xattrs as ext4_xattrs
from bootstream.rootfs.ext4.filedata import SMALL, sparse_pieces, whole_pieces
from bootstream.rootfs.ext4.inodes import FAST_SYMLINK
from bootstream.rootfs.ext4.output import Output, file_error
from bootstream.rootfs.ext4.writer import Ext4Writer
from bootstream.rootfs.member import Member, printable
from bootstream.rootfs.nodes import (
    S_IFBLK,
    S_IFCHR,
    S_IFIFO,
    S_IFLNK,
    S_IFREG,
    Directory,
    Node,
    Xattrs,
)
from bootstream.rootfs.options import Ext4Options, Ext4Summary, ExtraFile
from bootstream.rootfs.source import ByteStream, Source
from bootstream.rootfs.tar import TarReader
from bootstream.rootfs.tree import BOOKKEEPING, MAX_LINKS, OPAQUE, WHITEOUT, Tree

PHASE = "rootfs"
_MAX_MAJOR = 0xFFF
_MAX_MINOR = 0xFFFFF
_WARNINGS = 20
"""Lines of the log about attributes left out, at most."""


def build_ext4(
    layers: Sequence[Callable[[], ByteStream]],
    destination: Path,
    options: Ext4Options,
    progress: Progress,
    *,
    seed: str,
) -> Ext4Summary:
    """Make an ext4 image of a container image's layers.

    The same layers, options and seed give the same bytes, always.

    Args:
        layers: each opens one layer's uncompressed tar, bottom first; opened once each.
        destination: the file to write, sparse; replaced if it is there, removed on failure.
        options: see ``Ext4Options``.
        progress: hears the phase ``rootfs``, in bytes of the layers; may cancel.
        seed: what the UUID is made of beside the options, e.g. the layers' diff ids.

    Raises:
        InvalidInput: an option makes no sense; the image leads outside, is over a limit, or
            holds what ext4 cannot; the size is too small.
        Corrupt: an archive is damaged.
        StorageFull, PermissionDenied, NotFound: of the destination, or of an extra file.
        Cancelled: ``progress`` said so. Errors of the layers' streams pass.
    """
    options.check()
    progress.phase(PHASE)
    with Output(destination, options.block_size) as output:
        summary = _Build(output, options, progress, seed).run(layers)
    progress.log(
        f"rootfs: {summary.entries} names, {summary.size >> 20} MiB, "
        f"{summary.free >> 20} MiB of them free"
    )
    progress.done(PHASE)
    return summary


class _Build:
    """One image in the making."""

    def __init__(self, output: Output, options: Ext4Options, progress: Progress, seed: str) -> None:
        self._options = options
        self._progress = progress
        self._writer = Ext4Writer(output, options, options.identity(seed), self._tick)
        self._data = self._writer.data
        self._tree = Tree(
            max_depth=options.max_depth,
            max_path=options.max_path,
            released=self._writer.release,
        )
        self._content = 0
        self._entries = 0
        self._warnings = 0
        self._label = ""
        self._seen_xattrs: dict[Xattrs, Xattrs] = {}
        self._make = {
            tar.SYMLINK: self._symlink,
            tar.CHARACTER: self._device,
            tar.BLOCK: self._device,
            tar.FIFO: self._fifo,
        }

    def run(self, layers: Sequence[Callable[[], ByteStream]]) -> Ext4Summary:
        self._writer.end_layer(self._tree)
        for number, open_layer in enumerate(layers, 1):
            self._label = f"layer {number} of {len(layers)}"
            before = self._entries
            self._tree.begin_layer()
            with Source(open_layer, self._count_bytes) as source:
                self._layer(source)
            self._writer.end_layer(self._tree)
            self._progress.log(f"rootfs: {self._label}: {self._entries - before} members")
        if self._options.extra_files:
            self._label = "extra files"
            self._tree.begin_layer()
            for extra in self._options.extra_files:
                self._extra(extra)
            self._writer.end_layer(self._tree)
        self._tree.finish()
        volume, used_inodes, names = self._writer.finish(self._tree)
        block_size = self._options.block_size
        return Ext4Summary(
            size=max(volume.blocks * block_size, self._options.size or 0),
            free=volume.free_blocks * block_size,
            blocks=volume.blocks,
            inodes=volume.groups * volume.inodes_per_group,
            used_inodes=used_inodes,
            entries=names,
            content=self._content,
            uuid=str(self._writer.uuid),
        )

    def _tick(self) -> None:
        self._progress.advance(PHASE, 0)

    def _count_bytes(self, size: int) -> None:
        self._content += size
        if self._content > self._options.max_content:
            raise InvalidInput(
                f"the layers unpack to over {self._options.max_content} bytes",
                operation="unpack",
                object=self._label,
                remedy="raise Ext4Options.max_content if the image can be trusted",
            )
        self._progress.advance(PHASE, size)

    # -- members ------------------------------------------------------------------------------

    def _layer(self, source: Source) -> None:
        reader = TarReader(source, self._label)
        most = self._options.max_entries
        tree = self._tree
        while (member := reader.next()) is not None:
            self._entries += 1
            if self._entries > most:
                raise reader.refused(
                    f"there are over {most} members",
                    "raise Ext4Options.max_entries if the image can be trusted",
                )
            try:
                parent_path, name = tree.split(member.name)
                if name.startswith(WHITEOUT):
                    self._whiteout(reader, parent_path, name)
                elif not parent_path.startswith(BOOKKEEPING):
                    self._apply(reader, member, parent_path, name)
            except InvalidInput as error:
                if error.object is None or not error.object.startswith(self._label):
                    raise self._at_member(error, member) from error
                raise

    def _at_member(self, error: InvalidInput, member: Member) -> InvalidInput:
        name = printable(member.name)
        text = error.message
        if error.object:
            text = f"{error.object}: {text}"
        return InvalidInput(
            text if repr(name) in text else f"member {name!r}: {text}",
            operation="unpack",
            object=self._label,
            remedy=error.remedy,
        )

    def _whiteout(self, reader: TarReader, parent_path: bytes, name: bytes) -> None:
        tree = self._tree
        if name == OPAQUE:
            directory = tree.directory(parent_path, make=False)
            if directory is not None:
                tree.opaque(directory)
            return
        if name.startswith(BOOKKEEPING):
            return  # left by AUFS: its own lists, not the image's
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise reader.refused("a whiteout of nothing, or of a directory above")
        directory = tree.directory(parent_path, make=False)
        if directory is not None:
            tree.whiteout(directory, hidden)

    def _apply(self, reader: TarReader, member: Member, parent_path: bytes, name: bytes) -> None:
        tree = self._tree
        kind = member.kind
        if not name:
            self._root(reader, member)
            return
        parent = tree.directory(parent_path)
        assert parent is not None
        if kind == tar.REGULAR:
            node = tree.new_node(
                S_IFREG | member.mode & 0o7777, member.uid, member.gid, member.mtime
            )
            self._regular(reader, member, node)
        elif kind == tar.DIRECTORY:
            directory = tree.set_directory(
                parent,
                name,
                mode=member.mode,
                uid=member.uid,
                gid=member.gid,
                mtime=member.mtime,
            )
            self._finish_node(reader, member, directory)
            return
        elif kind == tar.HARD_LINK:
            self._hard_link(reader, member, parent, name)
            return
        else:
            node = self._make[kind](reader, member)
        if member.xattrs or member.atime is not None:
            self._finish_node(reader, member, node)
        tree.place(parent, name, node)

    def _root(self, reader: TarReader, member: Member) -> None:
        if member.kind != tar.DIRECTORY:
            raise reader.refused("its path names the image's root, and it is no directory")
        root = self._tree.root
        root.mode = root.mode & ~0o7777 | member.mode & 0o7777
        root.uid, root.gid = member.uid, member.gid
        root.mtime = member.mtime
        self._finish_node(reader, member, root)

    def _finish_node(self, reader: TarReader, member: Member, node: Node) -> None:
        node.atime = member.atime
        if not member.xattrs:
            if isinstance(node, Directory):
                node.xattrs = ()
            return
        try:
            xattrs, unknown, bits = ext4_xattrs.convert(member.xattrs)
        except ValueError as error:
            raise reader.refused(f"its extended attributes are wrong: {error}") from None
        if not ext4_xattrs.fits(xattrs, self._options.block_size):
            raise reader.refused(
                f"{ext4_xattrs.total_size(xattrs)} bytes of extended attributes are more than "
                f"a block of {self._options.block_size} holds",
                "use a larger block size, or fewer attributes",
            )
        node.xattrs = self._seen_xattrs.setdefault(xattrs, xattrs)
        if bits is not None:
            node.mode = node.mode & ~0o777 | bits
        for name in unknown:
            self._warn(f"{printable(member.name)}: left out the attribute {printable(name)}")

    def _warn(self, text: str) -> None:
        self._warnings += 1
        if self._warnings <= _WARNINGS:
            self._progress.log(f"rootfs: {self._label}: {text}")

    # -- kinds -----------------------------------------------------------------------------------

    def _regular(self, reader: TarReader, member: Member, node: Node) -> None:
        node.size = size = member.size
        block_size = self._options.block_size
        if size > 0xFFFFFFFF * block_size:
            raise reader.refused(f"a file of {size} bytes is larger than ext4 allows")
        if member.sparse is not None:
            self._data.large(node, sparse_pieces(reader.read, member.sparse, block_size))
        elif size >= SMALL:
            self._data.large(node, whole_pieces(reader.read))
        elif size:
            self._data.small(node, reader.read(size))

    def _symlink(self, reader: TarReader, member: Member) -> Node:
        target = member.link
        if not target:
            raise reader.refused("a symbolic link to nothing")
        if len(target) >= min(self._options.block_size, 4096):
            raise reader.refused(
                f"a symbolic link's target of {len(target)} bytes; "
                f"{min(self._options.block_size, 4096) - 1} at most"
            )
        node = self._tree.new_node(S_IFLNK | 0o777, member.uid, member.gid, member.mtime)
        node.size = len(target)
        node.detail = target
        if len(target) >= FAST_SYMLINK:
            self._data.small(node, target)
        return node

    def _device(self, reader: TarReader, member: Member) -> Node:
        if not (0 <= member.major <= _MAX_MAJOR and 0 <= member.minor <= _MAX_MINOR):
            raise reader.refused(
                f"device {member.major}:{member.minor}; "
                f"{_MAX_MAJOR}:{_MAX_MINOR} is the highest of Linux"
            )
        kind = S_IFCHR if member.kind == tar.CHARACTER else S_IFBLK
        node = self._tree.new_node(
            kind | member.mode & 0o7777, member.uid, member.gid, member.mtime
        )
        node.detail = (member.major, member.minor)
        return node

    def _fifo(self, reader: TarReader, member: Member) -> Node:
        del reader
        return self._tree.new_node(
            S_IFIFO | member.mode & 0o7777, member.uid, member.gid, member.mtime
        )

    def _hard_link(self, reader: TarReader, member: Member, parent: Directory, name: bytes) -> None:
        target = self._tree.lookup(member.link)
        wanted = printable(member.link)
        if target is None:
            raise reader.refused(
                f"a hard link to {wanted!r}, which is not there",
                "the layer needs a lower one that is missing, or was made wrongly",
            )
        if isinstance(target, Directory):
            raise reader.refused(f"a hard link to the directory {wanted!r}")
        if parent.children.get(name) is target:
            parent.fresh.add(name)
            return
        if target.links >= MAX_LINKS:
            raise reader.refused(f"{wanted!r} has {MAX_LINKS} links already, the most of ext4")
        self._tree.place(parent, name, target)

    # -- extra files --------------------------------------------------------------------------

    def _extra(self, extra: ExtraFile) -> None:
        tree = self._tree
        parent, name = self._extra_place(extra)
        node = tree.new_node(S_IFREG | extra.mode, extra.uid, extra.gid, 0)
        try:
            with extra.source.open("rb") as file:
                data = file.read(SMALL)
                if len(data) < SMALL:
                    node.size = len(data)
                    if data:
                        self._data.small(node, data)
                else:
                    file.seek(0)
                    self._data.large(node, whole_pieces(self._counting(file.read, node)))
        except OSError as error:
            raise file_error(error, extra.source, "add file") from error
        tree.place(parent, name, node)

    def _extra_place(self, extra: ExtraFile) -> tuple[Directory, bytes]:
        target = extra.target.encode("utf-8", "surrogateescape")
        problem = None
        try:
            parent_path, name = self._tree.split(target)
            parent = self._tree.directory(parent_path)
        except InvalidInput as error:
            problem = error.message
        else:
            assert parent is not None
            if not name or target.endswith(b"/") or b"\0" in target:
                problem = "it is not the path of a file"
            elif isinstance(parent.children.get(name), Directory):
                problem = "a directory is there already"
            else:
                return parent, name
        raise InvalidInput(
            problem,
            operation="add file",
            object=extra.target,
            remedy="name a path inside the image, e.g. /sbin/init",
        )

    def _counting(self, read: Callable[[int], bytes], node: Node) -> Callable[[int], bytes]:
        def counted(size: int) -> bytes:
            data = read(size)
            node.size += len(data)
            self._count_bytes(len(data))
            return data

        return counted
