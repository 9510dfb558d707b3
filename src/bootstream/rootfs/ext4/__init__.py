"""The ext4 file system: writing images, and reading them without mounting."""

from bootstream.rootfs.ext4.reader import Ext4File, Ext4FileSystem, Status

__all__ = ["Ext4File", "Ext4FileSystem", "Status"]
