"""NBD without sockets: the states of a connection and the numbers of the protocol.

The protocol is that of https://github.com/NetworkBlockDevice/nbd, ``doc/proto.md``; the
sections named in this package are the headings of that document. All integers are big
endian.

A connection has two halves. In the *handshake* (``handshake.py``) the server greets, the
client answers with 32 bits of flags, and then sends options one after the other: a header,
then as many bytes of data as the header says. Every option has at least one reply, except
EXPORT_NAME, which has none of the usual form. EXPORT_NAME or GO ends the handshake::

    FLAGS ──flags──▶ OPTION ──header──▶ DATA ──data──▶ OPTION …
                        │                 ├── GO, EXPORT_NAME ──▶ TRANSMISSION
                        │                 └── ABORT ──▶ CLOSED
                        └─header of an oversized option─▶ SKIP ──data──▶ OPTION

In the *transmission* (``requests.py``, ``replies.py``) the client sends requests: a header
of 28 bytes, followed by the payload where it is a WRITE. Requests are independent: the
server answers in any order, each reply carries the cookie of its request. A reply is
*simple* (a header of 16 bytes, then the data of a successful READ), or, where the client
asked for it, *structured*: chunks, each with a header of 20 bytes, of which the last has
the DONE flag. There is no way to find the next message once a header is wrong, so whatever
breaks the framing ends the connection: :class:`ProtocolError`. What is merely not allowed
(a range past the end, an unknown flag) is an error reply and the connection goes on.

Nothing here allocates by a number that came from outside: an option's data is collected up
to :data:`MAX_OPTION`, the rest is counted and dropped; a payload is received up to
:data:`MAX_PAYLOAD`, a longer one likewise.
"""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag

PORT = 10809

# "Newstyle negotiation"
NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
# "Transmission"
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

MAX_STRING = 4096
"""Bytes of a name, query or message ("Values": strings)."""
MAX_OPTION = 64 << 10
"""Bytes of option data that are kept; more is read, dropped and refused."""
MAX_SKIP = 32 << 20
"""Bytes of option data that are read only to be refused; more ends the connection."""
MAX_OPTIONS = 4096
"""Options of one handshake."""
MAX_PAYLOAD = 32 << 20
"""Bytes of one READ or WRITE ("Block size constraints": what every server must take)."""

BASE_ALLOCATION = "base:allocation"
"""The one metadata context that is offered."""
BASE_ALLOCATION_ID = 1


class ProtocolError(Exception):
    """The other side broke the framing: the connection cannot go on."""


class Phase(Enum):
    """Where a handshake stands."""

    FLAGS = "flags"
    OPTION = "option"
    DATA = "data"
    SKIP = "skip"
    TRANSMISSION = "transmission"
    CLOSED = "closed"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.FLAGS: frozenset({Phase.OPTION}),
    Phase.OPTION: frozenset({Phase.DATA, Phase.SKIP}),
    Phase.DATA: frozenset({Phase.OPTION, Phase.TRANSMISSION, Phase.CLOSED}),
    Phase.SKIP: frozenset({Phase.OPTION}),
    Phase.TRANSMISSION: frozenset(),
    Phase.CLOSED: frozenset(),
}
"""From each phase of a handshake, where it may go; a broken one may end anywhere."""


class HandshakeFlag(IntFlag):
    """Section "Handshake flags", and the client's answer with the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class ExportFlag(IntFlag):
    """Section "Transmission flags": what an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    """Section "Option types" that have a meaning here; any other number is unsupported."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """Section "Option reply types"; errors have the top bit."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """Kinds of NBD_REP_INFO replies."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Section "Request types"."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Section "Command flags"."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(IntEnum):
    """Section "Structured reply types"; errors have bit 15."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


CHUNK_DONE = 1
"""NBD_REPLY_FLAG_DONE: the last chunk of a reply."""
CHUNK_IS_ERROR = 1 << 15

STATE_HOLE = 1
STATE_ZERO = 2


class Errno(IntEnum):
    """Section "Error values": the only ones that the wire knows."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
