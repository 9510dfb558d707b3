"""Root file systems: container layers to ext4, and reading files out of ext4."""

from bootstream.rootfs.build import build_ext4
from bootstream.rootfs.options import Ext4Options, Ext4Summary, ExtraFile

__all__ = ["Ext4Options", "Ext4Summary", "ExtraFile", "build_ext4"]
