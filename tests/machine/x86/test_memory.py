"""Physical memory: sparse, exact, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.machine.x86 import FRAME_BYTES, BusError, PhysicalMemory

SIZE = 4 * FRAME_BYTES


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(max_size=2 * FRAME_BYTES)), max_size=8))
def test_as_an_array_of_bytes(writes: list[tuple[int, bytes]]) -> None:
    """Any sequence of writes leaves what it leaves in a bytearray; what does not fit changes nothing."""
    memory, expected = PhysicalMemory(SIZE), bytearray(SIZE)
    for paddr, data in writes:
        if paddr + len(data) > SIZE:
            with pytest.raises(BusError):
                memory.write(paddr, data)
        else:
            memory.write(paddr, data)
            expected[paddr : paddr + len(data)] = data
        assert memory.read(0, SIZE) == expected
    for paddr in (0, 4, FRAME_BYTES - 4, FRAME_BYTES):
        assert memory.read_u64(paddr) == int.from_bytes(expected[paddr : paddr + 8], "little")


@pytest.mark.parametrize("paddr", [0, 8, 4, FRAME_BYTES - 4])
def test_words(paddr: int) -> None:
    """Words are little-endian, aligned or not, also across frames."""
    memory = PhysicalMemory(SIZE)
    memory.write_u64(paddr, 0x1122_3344_5566_7788)
    assert memory.read(paddr, 8) == bytes.fromhex("8877665544332211")
    assert memory.read_u64(paddr) == 0x1122_3344_5566_7788


def test_sparse() -> None:
    """A large memory costs nothing until it is written; reading and zeroing do not count."""
    memory = PhysicalMemory(1 << 46)
    assert memory.read(1 << 45, 3 * FRAME_BYTES) == bytes(3 * FRAME_BYTES)
    memory.zero(1 << 44, 2 * FRAME_BYTES)
    assert memory.frames_in_use == 0
    memory.write(FRAME_BYTES - 1, b"ab")
    assert memory.frames_in_use == 2


def test_zero_keeps_the_storage() -> None:
    """Zeroing a part clears just that, in the same storage."""
    memory = PhysicalMemory(SIZE)
    frame = memory.frame(1)
    memory.write(0, b"\xff" * SIZE)
    memory.zero(FRAME_BYTES - 1, FRAME_BYTES)
    assert memory.read(0, SIZE) == b"\xff" * (FRAME_BYTES - 1) + bytes(FRAME_BYTES) + b"\xff" * (2 * FRAME_BYTES + 1)
    assert memory.frame(1) is frame


def test_refusals() -> None:
    """Sizes that are none, and addresses beyond the end; the message says where memory ends."""
    for size in (0, -FRAME_BYTES, FRAME_BYTES + 1):
        with pytest.raises(
            ValueError, match=f"^the size of physical memory is a positive multiple of 4096, not {size}$"
        ):
            PhysicalMemory(size)
    memory = PhysicalMemory(SIZE)
    with pytest.raises(BusError, match=r"^no memory at physical address 0x4000 \(there are 0x4000 bytes\)$") as caught:
        memory.read(SIZE - 1, 2)
    assert caught.value.paddr == SIZE
    for access in (
        lambda: memory.read_u64(SIZE),
        lambda: memory.write_u64(SIZE, 0),
        lambda: memory.write(SIZE - 1, b"ab"),
        lambda: memory.frame(4),
        lambda: memory.zero(SIZE - 1, 2),
        lambda: memory.read(-1, 1),
    ):
        with pytest.raises(BusError):
            access()
    assert memory.read(0, SIZE) == bytes(SIZE)
