"""What a server offers, and what one client may take of the server."""

from __future__ import annotations

from dataclasses import dataclass

from bootstream.block.device import Device
from bootstream.nbd.handshake import Offer


@dataclass(frozen=True, slots=True)
class Export:
    """A device as it is offered. The server closes no device.

    Args:
        device: what is read and written.
        description: one line that listing clients show.
        preferred_block_size: bytes, a power of two from 512 to 32 MiB.
        fast_zero: whether zeroing with leave to make a hole beats writing zeros.
    """

    device: Device
    description: str = ""
    preferred_block_size: int = 4096
    fast_zero: bool = True

    def offer(self) -> Offer:
        """Return what a client is told of it."""
        return Offer(
            self.device.size, self.device.writable, self.description, self.preferred_block_size
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may hold.

    Args:
        connections: of one server; more clients wait until one leaves.
        handshake_timeout: seconds without a word before the transmission.
        workers: threads of one connection that wait for the device.
        requests: requests of one connection that wait or are under way.
        request_bytes: bytes of these.
        send_buffer: bytes of a socket's send buffer; the host may allow fewer.
    """

    connections: int = 256
    handshake_timeout: float = 60.0
    workers: int = 16
    requests: int = 128
    request_bytes: int = 64 << 20
    send_buffer: int = 4 << 20
