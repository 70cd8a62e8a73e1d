"""Kernel code that reaches user memory: `copy_from_user`, `copy_to_user` and their like (arch/x86/lib/usercopy_64.c).

Faults at user addresses are handled in the middle of it, by mapping what is missing, or end it short: the exception
table. Sizes and addresses are in bytes.
"""

from __future__ import annotations

from typing import Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.errors import MachineError
from asikit.machine.mm import Symbol, page_parts

__all__ = ["UserAccess", "UserAccessError", "UserFixup"]

_FROM_USER = Symbol("_copy_from_user")
_TO_USER = Symbol("_copy_to_user")


class _Kernel(doors.Processors, doors.Described, doors.Memory, Protocol):
    """What is needed of the kernel here."""


class UserAccessError(Exception):
    """An address that the program may not use: -EFAULT.

    :ivar address: The first byte that could not be copied.
    """

    def __init__(self, address: int) -> None:
        super().__init__(f"user address {address:#x} cannot be accessed")
        self.address = address


class UserFixup(MachineError):  # noqa: N818 - not an error: how the exception table gets from the fault to its fixup
    """A fault inside of user access that cannot be handled; caught here and nowhere else.

    :ivar address: The faulting address.
    """

    def __init__(self, address: int) -> None:
        super().__init__(f"user access faulted at {address:#x}")
        self.address = address


class UserAccess:
    """User access of the current task."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel

    def access_ok(self, address: int, size: int) -> bool:
        """Return whether a range lies in user space, `access_ok()`."""
        return address >= 0 and size >= 0 and address + size <= self._kernel.layout.user_end

    def copy_to_user(self, address: int, data: bytes) -> int:
        """Write user memory; returns how many bytes could not be written."""
        if not self.access_ok(address, len(data)):
            return len(data)
        access, done = self._kernel.access, 0
        task = self._kernel.current
        access.enter(_TO_USER)
        self._stac()
        try:
            for part, size in page_parts(address, len(data)):
                access.store(part, data[done : done + size])
                done += size
        except UserFixup as fixup:
            # The last page may be written in part, as the instruction is restarted byte by byte.
            done = max(done, min(fixup.address - address, len(data)))
        finally:
            self._clac(task.uaccess - 1)
            access.leave()
        return len(data) - done

    def copy_from_user(self, address: int, size: int) -> bytes:
        """Read user memory; returns what could be read, which is shorter if not all could."""
        if not self.access_ok(address, size):
            return b""
        access = self._kernel.access
        task = self._kernel.current
        parts: list[bytes] = []
        access.enter(_FROM_USER)
        self._stac()
        try:
            parts.extend(access.load(part, length) for part, length in page_parts(address, size))
        except UserFixup:
            pass
        finally:
            self._clac(task.uaccess - 1)
            access.leave()
        return b"".join(parts)

    def to_user(self, address: int, data: bytes) -> None:
        """Write user memory, all of it. Raises UserAccessError."""
        missing = self.copy_to_user(address, data)
        if missing:
            raise UserAccessError(address + len(data) - missing)

    def from_user(self, address: int, size: int) -> bytes:
        """Read user memory, all of it. Raises UserAccessError."""
        data = self.copy_from_user(address, size)
        if len(data) < size:
            raise UserAccessError(address + len(data))
        return data

    def get_u32(self, address: int) -> int:
        """Read a 32-bit number, `get_user()`. Raises UserAccessError."""
        return int.from_bytes(self.from_user(address, 4), "little")

    def put_u32(self, address: int, value: int) -> None:
        """Write a 32-bit number, `put_user()`. Raises UserAccessError."""
        self.to_user(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def put_u64(self, address: int, value: int) -> None:
        """Write a 64-bit number, `put_user()`. Raises UserAccessError."""
        self.to_user(address, (value & (1 << 64) - 1).to_bytes(8, "little"))

    def clear_user(self, address: int, size: int) -> int:
        """Write zeroes; returns how many bytes could not be written."""
        return self.copy_to_user(address, bytes(size))

    def string_from_user(self, address: int, limit: int) -> bytes | None:
        """Read a string up to its zero byte, `strncpy_from_user()`; None if it is longer than `limit` bytes.

        Raises UserAccessError.
        """
        found = b""
        for part, size in page_parts(address, limit):
            chunk = self.from_user(part, size)
            end = chunk.find(b"\0")
            if end >= 0:
                return found + chunk[:end]
            found += chunk
        return None

    def _stac(self) -> None:
        """Allow accesses to user addresses, with a fixup for faults."""
        kernel = self._kernel
        kernel.current.uaccess += 1
        kernel.cpu.hw.ac = True

    def _clac(self, depth: int) -> None:
        kernel = self._kernel
        kernel.current.uaccess = depth
        kernel.cpu.hw.ac = depth > 0
