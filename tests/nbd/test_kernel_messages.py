"""Netlink messages and the family "nbd": bytes alone, no kernel."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstream.nbd.kernel import family, netlink
from bootstream.nbd.kernel.family import Attribute, Command, Connect
from bootstream.nbd.kernel.netlink import Answer, NetlinkError

kinds = st.integers(0, 0x3FFF)


@given(st.lists(st.tuples(kinds, st.binary(max_size=40)), max_size=8))
def test_attributes_come_back(attributes: list[tuple[int, bytes]]) -> None:
    """What is packed is parsed, whatever its length, and everything is aligned to 4 bytes."""
    data = b"".join(netlink.attribute(kind, value) for kind, value in attributes)
    assert len(data) % 4 == 0
    assert [tuple(found) for found in netlink.parse_attributes(data)] == attributes


@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFFFFFF),
            st.binary(max_size=64),
        ),
        max_size=5,
    )
)
def test_messages_come_back(messages: list[tuple[int, int, int, bytes]]) -> None:
    """Several messages in a datagram are told apart."""
    datagram = b"".join(netlink.pack(*message) for message in messages)
    assert [tuple(found) for found in netlink.parse(datagram)] == messages


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    """Nothing but NetlinkError comes out of bytes that are no messages, and it ends."""
    for parse in (netlink.parse, netlink.parse_attributes):
        try:
            list(parse(data))
        except NetlinkError:
            pass
    for understand in (family.parse_family, family.parse_connected, family.parse_status):
        try:
            understand(netlink.parse_generic(data))
        except NetlinkError:
            pass
    try:
        netlink.parse_error(netlink.Message(netlink.ERROR, 0x300, 0, data))
    except NetlinkError:
        pass


@given(st.data())
def test_damaged_answers_are_refused_or_understood(data: st.DataObject) -> None:
    """One byte of a good answer changed: a value or NetlinkError, nothing else."""
    devices = netlink.nested(
        Attribute.DEVICE_LIST,
        [netlink.nested(1, [netlink.u32(1, n), netlink.u8(2, n & 1)]) for n in range(3)],
    )
    good = bytearray(netlink.pack_generic(Command.STATUS, [devices]))
    assert family.parse_status(netlink.parse_generic(bytes(good))) == {0: False, 1: True, 2: False}
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] = data.draw(st.integers(0, 255))
    try:
        family.parse_status(netlink.parse_generic(bytes(good)))
    except NetlinkError:
        pass


def test_connect_has_the_form_that_the_kernel_reads() -> None:
    """Every attribute with its number and width (``nbd-netlink.h``), sockets nested twice."""
    request = family.connect(
        Connect(
            sockets=[7, 9],
            size=1 << 40,
            block_size=4096,
            flags=0x10D,
            timeout=30,
            dead_timeout=300,
            index=3,
            identifier="bootstream-x",
        )
    )
    answer = netlink.parse_generic(request)
    assert answer.command == 1
    fields = dict(answer.attributes)
    assert fields[1] == struct.pack("=I", 3)
    assert [struct.unpack("=Q", fields[kind])[0] for kind in (2, 3, 4, 5, 8)] == [
        1 << 40,
        4096,
        30,
        0x10D,
        300,
    ]
    items = [dict(netlink.parse_attributes(i.value)) for i in netlink.parse_attributes(fields[7])]
    assert items == [{1: struct.pack("=I", 7)}, {1: struct.pack("=I", 9)}]
    assert fields[10] == b"bootstream-x\0"


def test_a_free_device_is_asked_for_without_an_index() -> None:
    """No index means that the kernel chooses; no identifier leaves that out too."""
    wanted = Connect([3], 4096, 4096, 1, 0, 0)
    kinds = [kind for kind, _ in netlink.parse_generic(family.connect(wanted)).attributes]
    assert Attribute.INDEX not in kinds
    assert Attribute.BACKEND_IDENTIFIER not in kinds


def test_family_answer() -> None:
    """Number and multicast groups are found in what the controller says."""
    group = netlink.nested(1, [netlink.u32(2, 9), netlink.string(1, family.NOTICES)])
    answer = netlink.parse_generic(
        netlink.pack_generic(
            1,
            [
                netlink.string(2, "nbd"),
                netlink.attribute(1, struct.pack("=H", 0x1B)),
                netlink.nested(7, [group]),
            ],
        )
    )
    found = family.parse_family(answer)
    assert (found.number, dict(found.groups)) == (0x1B, {family.NOTICES: 9})


def test_answers_without_what_matters_are_refused() -> None:
    """A family without a number, a device without one."""
    with pytest.raises(NetlinkError, match="number"):
        family.parse_family(Answer(1, ()))
    with pytest.raises(NetlinkError, match="which device"):
        family.parse_connected(Answer(1, ()))


@pytest.mark.parametrize("capped", [True, False])
def test_errors_carry_the_kernels_words(capped: bool) -> None:
    """Errno and explanation, with the request repeated in full or not."""
    request = netlink.pack(0x1B, 5, 1, b"abcdefg")
    repeated = request[:16] if capped else request
    payload = struct.pack("=i", -errno.EBUSY) + repeated + netlink.string(1, "nbd3 already in use")
    verdict = netlink.parse_error(
        netlink.Message(netlink.ERROR, 0x200 | (0x100 if capped else 0), 1, payload)
    )
    assert verdict == (errno.EBUSY, "nbd3 already in use")
