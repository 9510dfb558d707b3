"""Layers applied one over the other, to a tree in memory.

The rules are those of the OCI image specification ("Image Layer Filesystem Changeset")
and, where it is silent, of the container runtimes:

- A name that is set again is replaced. Only a directory over a directory keeps what is in
  it; mode, owner, times and xattrs become the new ones.
- ``.wh.NAME`` hides NAME, ``.wh..wh..opq`` everything in its directory, as far as lower
  layers made it. What the same layer sets stays, whichever comes first in the archive.
- Parents that no member describes are made: 0755, root, modified at the epoch.
- A parent that is a symbolic link is followed inside the tree, never out of it; the last
  part of a path is never followed. A hard link's target is found the same way.

Every name remembers whether the layer being read has set it (``Directory.fresh``), which
is all that the order within a layer needs. Each layer visits a directory's lower content
at most once for hiding, however many whiteouts name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bootstream.errors import InvalidInput
from bootstream.rootfs.member import printable
from bootstream.rootfs.nodes import S_IFLNK, S_IFMT, Directory, Node

ROOT_INODE = 2
FIRST_INODE = 11
LOST_AND_FOUND = b"lost+found"
MAX_NAME = 255
MAX_LINKS = 65000
MAX_FOLLOWED = 40
WHITEOUT = b".wh."
BOOKKEEPING = b".wh..wh."
OPAQUE = b".wh..wh..opq"
_CACHED = 4096


class Tree:
    """The tree so far. Not thread safe.

    Args:
        max_depth, max_path: bounds, as ``Ext4Options`` has them.
        released: told of every inode that lost its last name.
    """

    def __init__(self, *, max_depth: int, max_path: int, released: Callable[[Node], None]) -> None:
        self._max_depth = max_depth
        self._max_path = max_path
        self._released = released
        self._parents: dict[bytes, Directory] = {}
        self._layer = 0
        self._next_inode = FIRST_INODE
        self.touched: list[Directory] = []
        self.root = Directory(ROOT_INODE, 0o755, 0, 0, 0, 0)
        self.root.links = 1
        self._touch(self.root)
        self.lost_and_found = self.set_directory(
            self.root, LOST_AND_FOUND, mode=0o700, uid=0, gid=0, mtime=0
        )

    @property
    def next_inode(self) -> int:
        """The number that the next inode gets: one more than the highest so far."""
        return self._next_inode

    def begin_layer(self) -> None:
        """Begin the next layer: nothing is fresh any more, nothing touched."""
        for directory in self.touched:
            directory.fresh = set()
        self.touched = []
        self._layer += 1
        self._parents.clear()

    # -- paths ----------------------------------------------------------------------------

    def split(self, path: bytes) -> tuple[bytes, bytes]:
        """Return a cleaned path's parent and last part; both empty for the root.

        Raises:
            InvalidInput: it leads outside, or is too long.
        """
        if len(path) > self._max_path:
            raise InvalidInput(
                f"a path of {len(path)} bytes is over the limit of {self._max_path}",
                operation="unpack",
                object=printable(path),
                remedy="raise Ext4Options.max_path if the image can be trusted",
            )
        path = path.strip(b"/")
        if b"/." in path or b"//" in path or path[:1] == b".":
            path = self._clean(path)
        parent, _, name = path.rpartition(b"/")
        if len(name) > MAX_NAME + len(WHITEOUT) * name.startswith(WHITEOUT):
            raise _refused(path, f"a name of {len(name)} bytes; {MAX_NAME} at most")
        return parent, name

    @staticmethod
    def _clean(path: bytes) -> bytes:
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part in (b"", b"."):
                continue
            if part != b"..":
                parts.append(part)
            elif parts:
                parts.pop()
            else:
                raise _refused(path, "its path leads outside the image")
        return b"/".join(parts)

    def directory(self, path: bytes, *, make: bool = True) -> Directory | None:
        """Return the directory at a cleaned path; it is made, or None, where it is missing.

        Raises:
            InvalidInput: to be made, and a part is no directory; links never end; too deep.
        """
        found = self._parents.get(path)
        if found is None:
            found = self._walk(path, make)
            if found is not None:
                if len(self._parents) >= _CACHED:
                    self._parents.clear()
                self._parents[path] = found
        return found

    def _walk(self, path: bytes, make: bool) -> Directory | None:
        stack = [self.root]
        todo = [part for part in reversed(path.split(b"/")) if part]
        followed = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(stack) > 1:
                    stack.pop()
                continue
            if len(part) > MAX_NAME:
                raise _refused(path, f"a name of {len(part)} bytes; {MAX_NAME} at most")
            here = stack[-1]
            child = here.children.get(part)
            if child is None:
                if not make:
                    return None
                child = self.set_directory(here, part, mode=0o755, uid=0, gid=0, mtime=0)
                here.fresh.discard(part)
            if isinstance(child, Directory):
                stack.append(child)
            elif child.mode & S_IFMT == S_IFLNK:
                followed += 1
                target = child.detail
                assert isinstance(target, bytes)
                if followed > MAX_FOLLOWED or len(todo) > self._max_path:
                    raise _refused(path, "its path goes through too many symbolic links")
                if target.startswith(b"/"):
                    del stack[1:]
                todo.extend(reversed(target.split(b"/")))
            elif not make:
                return None
            else:
                raise _refused(
                    path,
                    f"{printable(part)!r} is not a directory, so nothing can be put below it",
                )
        return stack[-1]

    def lookup(self, path: bytes) -> Node | None:
        """Return what a path names, the last part not followed; None if nothing."""
        parent, name = self.split(path)
        if not name:
            return self.root
        directory = self.directory(parent, make=False)
        return None if directory is None else directory.children.get(name)

    # -- setting names -------------------------------------------------------------------

    def new_node(self, mode: int, uid: int, gid: int, mtime: int) -> Node:
        """Return an inode without a name yet; ``mode`` includes the kind."""
        node = Node(self._next_inode, mode, uid, gid, mtime)
        self._next_inode += 1
        return node

    def place(self, parent: Directory, name: bytes, node: Node) -> None:
        """Give ``node`` a name in ``parent``; what had it is replaced."""
        old = parent.children.get(name)
        self._touch(parent)
        node.links += 1
        if old is None:
            parent.room += (len(name) + 11) & ~3
        else:
            self._drop_node(old)
        parent.children[name] = node
        parent.fresh.add(name)

    def set_directory(
        self, parent: Directory, name: bytes, *, mode: int, uid: int, gid: int, mtime: int
    ) -> Directory:
        """Make a directory, or give the one that is there new metadata; return it.

        Raises:
            InvalidInput: it would be too deep.
        """
        old = parent.children.get(name)
        if isinstance(old, Directory):
            self._touch(parent)
            parent.fresh.add(name)
            update_directory(old, mode=mode, uid=uid, gid=gid, mtime=mtime)
            return old
        if parent.depth >= self._max_depth:
            raise InvalidInput(
                f"over {self._max_depth} directories stand one in the other",
                operation="unpack",
                object=printable(name),
                remedy="raise Ext4Options.max_depth if the image can be trusted",
            )
        directory = Directory(self._next_inode, mode, uid, gid, mtime, parent.depth + 1)
        self._next_inode += 1
        self.place(parent, name, directory)
        self._touch(directory)
        return directory

    def _touch(self, directory: Directory) -> None:
        if directory.seen != self._layer:
            directory.seen = self._layer
            self.touched.append(directory)

    # -- hiding names --------------------------------------------------------------------

    def whiteout(self, directory: Directory, name: bytes) -> None:
        """Hide what lower layers have as ``name``."""
        child = directory.children.get(name)
        if child is None:
            return
        if not isinstance(child, Directory):
            if name not in directory.fresh:
                self._remove(directory, name, child)
            return
        self.opaque(child)
        if name not in directory.fresh:
            self._forget(directory, name, child)

    def opaque(self, directory: Directory) -> None:
        """Hide everything that lower layers have in ``directory``, at any depth."""
        if directory.cleared == self._layer:
            return
        directory.cleared = self._layer
        order = [directory]
        for current in order:  # grows while it is walked: parents come before children
            for child in current.children.values():
                if isinstance(child, Directory) and child.cleared != self._layer:
                    child.cleared = self._layer
                    order.append(child)
        for current in reversed(order):
            fresh = current.fresh
            for name, child in list(current.children.items()):
                if name in fresh:
                    continue
                if isinstance(child, Directory):
                    self._forget(current, name, child)
                else:
                    self._remove(current, name, child)

    def _forget(self, parent: Directory, name: bytes, child: Directory) -> None:
        """Drop a directory that lower layers made, or make it one that nobody described."""
        if child.children:
            update_directory(child, mode=0o755, uid=0, gid=0, mtime=0)
        else:
            self._remove(parent, name, child)

    def _remove(self, parent: Directory, name: bytes, child: Node) -> None:
        self._touch(parent)
        del parent.children[name]
        parent.room -= (len(name) + 11) & ~3
        self._drop_node(child)

    def _drop_node(self, node: Node) -> None:
        """Take one name from a node, and everything below it if it is a directory."""
        if not isinstance(node, Directory):
            node.links -= 1
            if node.mode & S_IFMT == S_IFLNK:
                self._parents.clear()
            if node.links == 0:
                self._released(node)
            return
        self._parents.clear()
        doomed: list[Node] = [node]
        while doomed:
            current = doomed.pop()
            current.links -= 1
            if isinstance(current, Directory):
                doomed.extend(current.children.values())
                current.children = {}
            if current.links == 0:
                self._released(current)

    # -- the end ---------------------------------------------------------------------------

    def finish(self) -> None:
        """Make sure of ``/lost+found``, which ext4 expects. Raises InvalidInput if it is a file."""
        there = self.root.children.get(LOST_AND_FOUND)
        if there is None:
            self.lost_and_found = self.set_directory(
                self.root, LOST_AND_FOUND, mode=0o700, uid=0, gid=0, mtime=0
            )
        elif isinstance(there, Directory):
            self.lost_and_found = there
        else:
            raise InvalidInput(
                "it is not a directory, and ext4 keeps this name for one",
                operation="unpack",
                object="/lost+found",
                remedy="remove it from the image",
            )

    def directories(self) -> Iterator[tuple[Directory, Directory]]:
        """Yield every directory with its parent, in a stable order; the root is its own."""
        todo = [(self.root, self.root)]
        while todo:
            directory, parent = todo.pop()
            yield directory, parent
            below = [
                (child, directory)
                for child in directory.children.values()
                if isinstance(child, Directory)
            ]
            todo.extend(reversed(below))


def update_directory(directory: Directory, *, mode: int, uid: int, gid: int, mtime: int) -> None:
    """Give a directory new metadata; what is not in a member's header is dropped."""
    directory.mode = (directory.mode & S_IFMT) | (mode & 0o7777)
    directory.uid = uid
    directory.gid = gid
    directory.mtime = mtime
    directory.atime = None
    directory.xattrs = ()


def _refused(path: bytes, message: str) -> InvalidInput:
    return InvalidInput(
        f"member {printable(path)!r}: {message}",
        operation="unpack",
        remedy="the layer is not one that a container runtime would unpack",
    )
