"""The system calls that there are."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.syscalls import descriptors, locking, memory, processes, reading_writing, scheduling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.machine.kernel.syscalls.calling import Syscall

__all__ = ["SYSCALLS"]

SYSCALLS: Final[Mapping[int, Syscall]] = MappingProxyType(
    {
        int(call.number): call
        for family in (descriptors, locking, memory, processes, reading_writing, scheduling)
        for call in family.CALLS
    }
)
"""`sys_call_table`: the calls that there are, by number."""
