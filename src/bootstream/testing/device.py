"""What every device promises, as tests: subclass, and give a ``device`` and what it holds.

::

    class TestMyDevice(DeviceConformance):
        @pytest.fixture
        def device(self, contents: bytes, tmp_path: Path) -> Iterator[Device]:
            ...yield one that reads as ``contents``, and close it afterwards

Writable devices are written to, read-only ones are expected to refuse. ``contents`` may be
overridden too; it needs some zeros, some data, and a size of at least 1 MiB.
"""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bootstream.block.device import Device
from bootstream.errors import InvalidInput

_BLOCK = 4096


def sample_contents(size: int = (2 << 20) + 3 * _BLOCK + 512, *, seed: int = 1) -> bytes:
    """Data and zeros in runs of all lengths, the last block short; the same for a seed."""
    source = random.Random(seed)  # noqa: S311 - test data
    pieces: list[bytes] = []
    total = 0
    while total < size:
        length = source.choice((512, _BLOCK, 3 * _BLOCK, 40_000, 131_072))
        pieces.append(bytes(length) if source.random() < 0.4 else source.randbytes(length))
        total += length
    return b"".join(pieces)[:size]


def read_all(device: Device, offset: int = 0, length: int | None = None) -> bytes:
    """Read a range, by default to the end, in pieces such as the wire asks for."""
    end = device.size if length is None else offset + length
    step = 1 << 20
    return b"".join(
        view
        for at in range(offset, end, step)
        for view in device.read_views(at, min(step, end - at))
    )


class DeviceConformance:
    """The suite. Tests are independent of each other."""

    @pytest.fixture
    def contents(self) -> bytes:
        """What the device reads as at first."""
        return sample_contents()

    @pytest.fixture
    def device(self, contents: bytes) -> Device:
        """The device under test: adapters override this."""
        raise NotImplementedError

    @staticmethod
    def _ranges(size: int) -> list[tuple[int, int]]:
        source = random.Random(2)  # noqa: S311 - test data
        ranges = [(0, 1), (0, size), (size - 1, 1), (0, _BLOCK), (size - 1000, 1000), (511, 2)]
        for _ in range(200):
            length = min(size, source.choice((1, 512, _BLOCK, 5000, 65_536, 300_000)))
            ranges.append((source.randrange(size - length + 1), length))
        return ranges

    # Reading

    def test_size(self, device: Device, contents: bytes) -> None:
        """The size is that of the contents, in bytes."""
        assert device.size == len(contents)

    def test_views(self, device: Device, contents: bytes) -> None:
        """Any range reads as the contents, as views without empty ones between."""
        for offset, length in self._ranges(device.size):
            views = device.read_views(offset, length)
            assert all(view.nbytes for view in views)
            assert b"".join(views) == contents[offset : offset + length]

    def test_into(self, device: Device, contents: bytes) -> None:
        """Reading into a buffer fills it, and nothing beside it."""
        for offset, length in self._ranges(device.size):
            buffer = bytearray(b"\xa5" * (length + 2))
            device.read_into(memoryview(buffer)[1:-1], offset)
            assert buffer == b"\xa5" + contents[offset : offset + length] + b"\xa5"

    def test_warm(self, device: Device, contents: bytes) -> None:
        """A warm read is None or right; what was just read can be answered warm."""
        for offset, length in self._ranges(device.size):
            views = device.read_warm(offset, length)
            assert views is None or b"".join(views) == contents[offset : offset + length]
        device.read_views(_BLOCK, _BLOCK)
        views = device.read_warm(_BLOCK, _BLOCK)
        assert views is not None
        assert b"".join(views) == contents[_BLOCK : 2 * _BLOCK]

    def test_concurrent_readers(self, device: Device, contents: bytes) -> None:
        """Many readers at once all get the contents."""
        start = threading.Barrier(8)

        def read(seed: int) -> bool:
            start.wait()
            source = random.Random(seed)  # noqa: S311 - test data
            right = True
            for _ in range(60):
                offset = source.randrange(device.size - 9000)
                data = b"".join(device.read_views(offset, 9000))
                right = right and data == contents[offset : offset + 9000]
            return right

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))

    def test_extents(self, device: Device, contents: bytes) -> None:
        """Extents cover exactly the range, neighbours differ, zeros are zeros."""
        for offset, length in self._ranges(device.size):
            extents = device.extents(offset, length)
            assert sum(extent.length for extent in extents) == length
            assert all(extent.length > 0 for extent in extents)
            assert all(a[1:] != b[1:] for a, b in itertools.pairwise(extents))
            at = offset
            for extent in extents:
                if extent.zero:
                    assert not any(contents[at : at + extent.length])
                at += extent.length

    def test_prefetch(self, device: Device, contents: bytes) -> None:
        """Advice to prefetch changes nothing, whatever the range."""
        for offset, length in self._ranges(device.size)[:20]:
            device.prefetch(offset, length)
        assert read_all(device) == contents

    def test_views_outlive_the_device(self, device: Device, contents: bytes) -> None:
        """Views that were handed out stay valid after close, and close is idempotent."""
        views = list(device.read_views(0, device.size))
        device.close()
        device.close()
        assert b"".join(views) == contents

    # Writing

    def test_refuses_writes(self, device: Device, contents: bytes) -> None:
        """A read-only device refuses every change, and stays as it is."""
        if device.writable:
            device.write(memoryview(b"x"), 0)
            return
        with pytest.raises(InvalidInput):
            device.write(memoryview(b"x"), 0)
        with pytest.raises(InvalidInput):
            device.zero(0, _BLOCK, may_trim=True)
        with pytest.raises(InvalidInput):
            device.trim(0, _BLOCK)
        device.flush()
        assert read_all(device) == contents

    def test_changes_read_back(self, device: Device, contents: bytes) -> None:
        """Writes, zeroes and trims of any range, and flushes, read back as they should."""
        if not device.writable:
            return
        model = bytearray(contents)
        source = random.Random(3)  # noqa: S311 - test data
        for offset, length in self._ranges(device.size)[2:]:
            what = source.randrange(6)
            if what <= 2:
                data = source.randbytes(length)
                device.write(memoryview(data), offset)
                model[offset : offset + length] = data
            elif what == 3:
                device.trim(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                device.zero(offset, length, may_trim=what == 4)
                model[offset : offset + length] = bytes(length)
            if source.random() < 0.1:
                device.flush()
            around = max(0, offset - 5000), min(device.size, offset + length + 5000)
            assert read_all(device, around[0], around[1] - around[0]) == model[slice(*around)]
        assert read_all(device) == model
        at = 0
        for extent in device.extents(0, device.size):
            if extent.zero:
                assert not any(model[at : at + extent.length])
            at += extent.length

    def test_concurrent_writers(self, device: Device, contents: bytes) -> None:
        """Writers of neighbouring parts of the same blocks do not undo each other."""
        if not device.writable:
            return
        count, size = 8, 512
        stripes = device.size // (count * size)
        start = threading.Barrier(count)

        def write(number: int) -> None:
            start.wait()
            for stripe in range(stripes):
                device.write(
                    memoryview(bytes([number + 1]) * size), (stripe * count + number) * size
                )

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(write, range(count)))
        expected = b"".join(bytes([number + 1]) * size for number in range(count)) * stripes
        assert read_all(device) == expected + contents[len(expected) :]

    def test_written_data_is_no_hole(self, device: Device) -> None:
        """What was written is reported as data, what was trimmed may be a hole and is zero."""
        if not device.writable:
            return
        device.write(memoryview(b"\x01" * _BLOCK), 0)
        device.trim(_BLOCK, _BLOCK)
        first = device.extents(0, _BLOCK)
        assert not any(extent.zero for extent in first)
        assert b"".join(device.read_views(_BLOCK, _BLOCK)) == bytes(_BLOCK)
