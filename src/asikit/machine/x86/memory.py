"""Physical memory: sparse, byte-exact, little-endian."""

from __future__ import annotations

from struct import Struct

from asikit.machine.x86.errors import BusError

__all__ = ["FRAME_BYTES", "FRAME_SHIFT", "PhysicalMemory"]

FRAME_SHIFT = 12
FRAME_BYTES = 1 << FRAME_SHIFT

_OFFSET = FRAME_BYTES - 1
_U64 = Struct("<Q")


class PhysicalMemory:
    """Memory of `size` bytes from physical address 0, a multiple of FRAME_BYTES.

    A frame's storage is made on its first write, so a large memory costs only what is used of it. Reads of memory that
    nobody wrote give zeroes. Every access raises BusError beyond `size`, before it changes anything.
    """

    __slots__ = ("_frames", "size")

    def __init__(self, size: int) -> None:
        if size <= 0 or size % FRAME_BYTES:
            raise ValueError(f"the size of physical memory is a positive multiple of {FRAME_BYTES}, not {size}")
        self.size = size
        self._frames: dict[int, bytearray] = {}

    @property
    def frames_in_use(self) -> int:
        """How many frames have storage."""
        return len(self._frames)

    def frame(self, pfn: int) -> bytearray:
        """Return the storage of a frame, made on first use; the same object for the life of the memory."""
        frame = self._frames.get(pfn)
        if frame is None:
            self._check(pfn << FRAME_SHIFT, FRAME_BYTES)
            frame = self._frames[pfn] = bytearray(FRAME_BYTES)
        return frame

    def read(self, paddr: int, size: int) -> bytes:
        """Return `size` bytes from a physical address; the range may cross frames."""
        offset = paddr & _OFFSET
        if offset + size <= FRAME_BYTES:
            frame = self._frames.get(paddr >> FRAME_SHIFT)
            if frame is not None:
                return bytes(frame[offset : offset + size])
        self._check(paddr, size)
        parts = []
        while size > 0:
            offset = paddr & _OFFSET
            part = min(size, FRAME_BYTES - offset)
            frame = self._frames.get(paddr >> FRAME_SHIFT)
            parts.append(bytes(part) if frame is None else bytes(frame[offset : offset + part]))
            paddr += part
            size -= part
        return b"".join(parts)

    def write(self, paddr: int, data: bytes) -> None:
        """Write bytes at a physical address; the range may cross frames."""
        size = len(data)
        offset = paddr & _OFFSET
        if offset + size <= FRAME_BYTES:
            self.frame(paddr >> FRAME_SHIFT)[offset : offset + size] = data
            return
        self._check(paddr, size)
        done = 0
        while done < size:
            offset = (paddr + done) & _OFFSET
            part = min(size - done, FRAME_BYTES - offset)
            self.frame((paddr + done) >> FRAME_SHIFT)[offset : offset + part] = data[done : done + part]
            done += part

    def read_u64(self, paddr: int) -> int:
        """Return the 8 bytes at an 8-byte aligned physical address as a number."""
        frame = self._frames.get(paddr >> FRAME_SHIFT)
        if frame is None or paddr & 7:
            return int.from_bytes(self.read(paddr, 8), "little")
        value: int = _U64.unpack_from(frame, paddr & _OFFSET)[0]
        return value

    def write_u64(self, paddr: int, value: int) -> None:
        """Write a number of 64 bits at a physical address."""
        if paddr & 7:
            self.write(paddr, value.to_bytes(8, "little"))
        else:
            _U64.pack_into(self.frame(paddr >> FRAME_SHIFT), paddr & _OFFSET, value)

    def zero(self, paddr: int, size: int) -> None:
        """Overwrite `size` bytes with zeroes."""
        self._check(paddr, size)
        end = paddr + size
        while paddr < end:
            offset = paddr & _OFFSET
            part = min(end - paddr, FRAME_BYTES - offset)
            frame = self._frames.get(paddr >> FRAME_SHIFT)
            if frame is not None:
                frame[offset : offset + part] = bytes(part)
            paddr += part

    def _check(self, paddr: int, size: int) -> None:
        if paddr < 0 or paddr + size > self.size:
            raise BusError(paddr if not 0 <= paddr < self.size else self.size, self.size)
