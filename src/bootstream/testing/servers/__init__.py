"""Real object storage servers for tests, each a context manager around a program.

They listen on free ports of 127.0.0.1, are waited for by asking their port, and are ended by
their process's id. ``s3``: moto, nanio, rclone, localbucket. ``azurite``: Azure's own emulator.
``gcs``: a server with Google's dialect and its preconditions, in front of moto.
"""

from __future__ import annotations

from bootstream.testing.servers.azurite import Azurite
from bootstream.testing.servers.gcs import GoogleServer
from bootstream.testing.servers.s3 import LocalBucket, Moto, Nanio, RcloneS3

__all__ = ["Azurite", "GoogleServer", "LocalBucket", "Moto", "Nanio", "RcloneS3"]
